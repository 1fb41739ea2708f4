//! Loading the object for one target, attaching its programs, detaching them.

use std::{num::NonZeroU32, path::Path};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel, include_bytes_aligned,
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeLink, UProbeScope},
    },
    util::nr_cpus,
};
use monitor_ebpf::{COUNTERS, Recipe, WAYS, extra, name};

use super::{BpfError, Maps, RunTimes};
use crate::plan::Role;

/// Built by `cargo xtask ebpf`, kept in the repository: building the agent needs cargo only.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/monitor.bpf.o"));

/// Label sets kept beyond the limit, for those with `other` in place of their strings: every combination of
/// side, type, status and a few retry counts.
pub(super) const OTHER_LABEL_SETS: u32 = 256;

/// Bounds of what one framework of a target may take in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Label sets kept with their strings.
    pub label_sets: u32,
    /// Calls in flight.
    pub in_flight: u32,
    /// Bytes of the ring: a power of two.
    pub ring_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { label_sets: 4_096, in_flight: 65_536, ring_bytes: 4 << 20 }
    }
}

/// Sizes of the maps of one target's programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) cpus: u32,
    /// Buckets of the in-flight table.
    pub(super) buckets: u32,
    /// Label sets kept with their strings.
    pub(super) label_limit: u32,
    /// All of them.
    pub(super) label_capacity: u32,
    /// Bytes or messages are counted, too.
    pub(super) has_extras: bool,
}

/// Buckets for this many calls in flight: a power of two, at least two.
fn buckets(in_flight: u32) -> u32 {
    in_flight.div_ceil(u32::try_from(WAYS).unwrap_or(1)).max(2).next_power_of_two()
}

/// Room for nested calls, however few may be in flight.
const SPILL_MIN: u32 = 64;

fn program_name(role: Role) -> &'static str {
    match role {
        Role::Start => name::START,
        Role::Finish => name::FINISH,
        Role::Sent => name::SENT,
        Role::Received => name::RECEIVED,
        Role::Entered => name::ENTERED,
    }
}

/// Loads the program that does nothing, with the smallest maps: it uses none of them.
pub(super) fn load_nothing() -> Result<Ebpf, BpfError> {
    let load = || -> Result<Ebpf, EbpfError> {
        let mut loader = EbpfLoader::new();
        loader.btf(None).map_max_entries(name::RECORDS, SMALLEST_RING);
        for map in
            [name::IN_FLIGHT, name::OBJECTS, name::SPILL, name::LABEL_IDS, name::LABEL_SETS, name::TOTALS]
        {
            loader.map_max_entries(map, 1);
        }
        let mut ebpf = loader.load(OBJECT)?;
        nothing(&mut ebpf)?.load()?;
        Ok(ebpf)
    };
    load().map_err(|error| BpfError::from_ebpf("load an empty eBPF program", error))
}

/// The loaded program that does nothing.
pub(super) fn nothing(ebpf: &mut Ebpf) -> Result<&mut UProbe, ProgramError> {
    program_named(ebpf, name::NOTHING)
}

/// Bytes: whole pages, a power of two.
const SMALLEST_RING: u32 = 4096;

/// The programs of one target: loaded, and attached as far as [`Programs::attach`] was called.
///
/// Dropping it detaches everything.
pub struct Programs {
    ebpf: Ebpf,
    links: Vec<(Role, UProbeLink)>,
    sizes: Sizes,
}

impl Programs {
    /// Loads the programs for these roles, and their maps; attached to nothing yet.
    ///
    /// `log_level` is the most verbose level of the programs' own diagnostics, 0 for none, as `log::Level`
    /// counts; statements above it are removed by the verifier.
    pub fn load(recipe: &Recipe, roles: &[Role], limits: Limits, log_level: u8) -> Result<Self, BpfError> {
        let cpus = nr_cpus().map_err(|(_, error)| BpfError::from_io("count its CPUs", error))?;
        let has_messages = roles.iter().any(|role| matches!(role, Role::Sent | Role::Received));
        let sizes = Sizes {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            buckets: buckets(limits.in_flight),
            label_limit: limits.label_sets,
            label_capacity: limits.label_sets.saturating_add(OTHER_LABEL_SETS),
            has_extras: has_messages || recipe.has_extras(),
        };
        let recipe = Recipe {
            label_limit: sizes.label_limit,
            label_capacity: sizes.label_capacity,
            bucket_shift: u64::BITS - sizes.buckets.trailing_zeros(),
            ..*recipe
        };
        // The verifier's log is asked for by a second try only: writing it makes every load slower.
        let load = |log| Self::load_with(&recipe, roles, limits, sizes, log_level, log);
        let ebpf = match load(VerifierLogLevel::DISABLE) {
            Err(EbpfError::ProgramError(ProgramError::LoadError { .. })) => load(VerifierLogLevel::DEBUG),
            other => other,
        };
        let ebpf = ebpf.map_err(|error| BpfError::from_ebpf("load the eBPF programs", error))?;
        Ok(Self { ebpf, links: Vec::new(), sizes })
    }

    fn load_with(
        recipe: &Recipe,
        roles: &[Role],
        limits: Limits,
        sizes: Sizes,
        log_level: u8,
        verifier_log: VerifierLogLevel,
    ) -> Result<Ebpf, EbpfError> {
        let labels = sizes.label_capacity.saturating_mul(sizes.cpus);
        let extras = if sizes.has_extras { labels.saturating_mul(extra::COUNT) } else { 1 };
        let mut ebpf = EbpfLoader::new()
            // No program asks for a kernel type, and parsing the kernel's takes 30 ms.
            .btf(None)
            .verifier_log_level(verifier_log)
            .override_global(name::RECIPE, recipe, true)
            .override_global("AYA_LOG_LEVEL", &log_level, true)
            .map_max_entries(name::IN_FLIGHT, sizes.buckets)
            .map_max_entries(name::OBJECTS, sizes.buckets)
            .map_max_entries(name::SPILL, (limits.in_flight / 4).max(SPILL_MIN))
            .map_max_entries(
                name::MESSAGES,
                if roles.contains(&Role::Entered) { limits.in_flight } else { 1 },
            )
            .map_max_entries(name::LABEL_IDS, sizes.label_capacity)
            .map_max_entries(name::LABEL_SETS, sizes.label_capacity)
            .map_max_entries(name::TOTALS, labels)
            .map_max_entries(name::EXTRAS, extras)
            .map_max_entries(name::COUNTERS, COUNTERS.saturating_mul(sizes.cpus))
            .map_max_entries(name::RECORDS, limits.ring_bytes)
            .load(OBJECT)?;
        for role in roles {
            program(&mut ebpf, *role)?.load()?;
        }
        Ok(ebpf)
    }

    /// Puts a probe at `file_offset` of the executable `exe`, for process `pid` only.
    ///
    /// Finish sites must be attached before start sites, so that no start is seen whose finish is not.
    pub fn attach(&mut self, role: Role, exe: &Path, pid: u32, file_offset: u64) -> Result<(), BpfError> {
        let failed = |error| BpfError::from_program("attach a uprobe", error);
        let Some(pid) = NonZeroU32::new(pid) else {
            return Err(BpfError::missing("attach a uprobe", "process 0"));
        };
        let program = program(&mut self.ebpf, role).map_err(failed)?;
        let location = UProbeAttachLocation::AbsoluteOffset(file_offset);
        let link = program.attach(location, exe, UProbeScope::OneProcess(pid)).map_err(failed)?;
        let link = program.take_link(link).map_err(failed)?;
        self.links.push((role, link));
        Ok(())
    }

    /// Takes the probes at the starts away, all at once. The kernel takes about 100 ms for that; the caller should not be
    /// a task.
    pub fn detach_starts(&mut self) {
        let (starts, others) =
            std::mem::take(&mut self.links).into_iter().partition(|(of, _)| *of == Role::Start);
        self.links = others;
        drop_side_by_side(starts);
    }

    /// The maps of the programs. Once only: the second call is an error.
    pub fn maps(&mut self) -> Result<Maps, BpfError> {
        Maps::take(&mut self.ebpf, self.sizes)
    }

    /// Forwards the programs' own diagnostics to the log, until the programs are dropped.
    ///
    /// `None` when there is nothing to forward: the level left no statement in the programs.
    pub fn logger(&mut self) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
        aya_log::EbpfLogger::init(&mut self.ebpf).ok()
    }

    /// How often the program of a role has run, and for how long, while the kernel measured it; zeros if it is not
    /// loaded.
    #[must_use]
    pub fn run_times(&self, role: Role) -> RunTimes {
        let program: Option<&UProbe> =
            self.ebpf.program(program_name(role)).and_then(|program| program.try_into().ok());
        program.map(RunTimes::of).unwrap_or_default()
    }

    /// Takes the probes away: start sites first, then all others at once.
    ///
    /// The kernel takes about 100 ms for each link on a virtual machine; the caller should not be a task.
    fn detach(&mut self) {
        self.detach_starts();
        drop_side_by_side(std::mem::take(&mut self.links));
    }
}

fn drop_side_by_side(links: Vec<(Role, UProbeLink)>) {
    std::thread::scope(|scope| {
        for (_, link) in links {
            scope.spawn(move || drop(link));
        }
    });
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.detach();
    }
}

fn program(ebpf: &mut Ebpf, role: Role) -> Result<&mut UProbe, ProgramError> {
    program_named(ebpf, program_name(role))
}

fn program_named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, ProgramError> {
    let Some(program) = ebpf.program_mut(name) else {
        return Err(ProgramError::InvalidName { name: name.to_owned() });
    };
    program.try_into()
}
