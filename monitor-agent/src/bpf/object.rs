//! The eBPF object in the kernel: its maps, those of its programs that are wanted, and links from sites to them.

use std::{
    io,
    num::NonZeroU32,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::Map,
    programs::{
        ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeLink, UProbeScope},
    },
};
use aya_log::EbpfLogger;
use log::Log;

use super::{
    BpfError, RunTimes,
    multi::{self, MultiPrograms},
};

/// Built by `cargo xtask ebpf`, kept in the repository: building the agent needs cargo only.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/monitor.bpf.o"));

/// What probes hang on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeLinks {
    /// Multi-uprobe links where the kernel has them, else perf events.
    #[default]
    Best,
    /// A perf event for each site, as before Linux 6.6. To test that, and to compare with.
    Perf,
}

/// What an object is loaded with.
pub(super) struct Settings<'a> {
    /// Values of its constants, by name.
    pub(super) globals: Vec<(&'static str, &'a [u8])>,
    /// Sizes of maps, by name; the others are as the object says.
    pub(super) entries: Vec<(&'static str, u32)>,
}

/// The object, loaded.
pub(super) enum Object {
    /// For multi-uprobe links.
    Multi(MultiPrograms),
    /// By aya, for perf events.
    Perf(Ebpf),
}

/// From one site or several to a program. The kernel takes its time to take one away.
pub(super) enum Link {
    Multi(OwnedFd),
    Perf(UProbeLink),
}

impl Link {
    /// Takes the probes away, as dropping it does, but all of these side by side.
    pub(super) fn detach_all(links: impl IntoIterator<Item = Self>) {
        thread::scope(|scope| {
            for link in links {
                scope.spawn(move || match link {
                    Self::Multi(link) => drop(link),
                    Self::Perf(link) => drop(link),
                });
            }
        });
    }
}

impl Object {
    /// Makes the maps, and loads these programs.
    pub(super) fn load(
        settings: &Settings<'_>,
        programs: &[&'static str],
        links: ProbeLinks,
    ) -> Result<Self, EbpfError> {
        if links == ProbeLinks::Best && multi::works() {
            return MultiPrograms::load(OBJECT, settings, programs).map(Self::Multi);
        }
        let mut loader = EbpfLoader::new();
        // No program asks for a kernel type.
        loader.btf(None);
        for (name, value) in &settings.globals {
            loader.override_global(name, *value, true);
        }
        for (map, entries) in &settings.entries {
            loader.map_max_entries(map, *entries);
        }
        let mut ebpf = loader.load(OBJECT)?;
        for name in programs {
            program(&mut ebpf, name)?.load()?;
        }
        Ok(Self::Perf(ebpf))
    }

    /// A map.
    pub(super) fn map(&self, name: &str) -> Option<&Map> {
        match self {
            Self::Multi(multi) => multi.map(name),
            Self::Perf(ebpf) => ebpf.map(name),
        }
    }

    /// The same, for whoever asks first.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        match self {
            Self::Multi(multi) => multi.take_map(name),
            Self::Perf(ebpf) => ebpf.take_map(name),
        }
    }

    /// What forwards the programs' own diagnostics.
    pub(super) fn logger(&mut self) -> Option<EbpfLogger<&'static dyn Log>> {
        match self {
            Self::Multi(multi) => multi.logger(),
            Self::Perf(ebpf) => EbpfLogger::init(ebpf).ok(),
        }
    }

    /// Puts a program at offsets of an executable, for one process only; errors say that this was for an `action`.
    pub(super) fn attach(
        &mut self,
        name: &str,
        exe: &Path,
        pid: u32,
        offsets: &[u64],
        action: &'static str,
    ) -> Result<Vec<Link>, BpfError> {
        let Some(pid) = NonZeroU32::new(pid) else {
            return Err(BpfError::from_io(action, io::ErrorKind::InvalidInput.into()));
        };
        let ebpf = match self {
            Self::Multi(multi) => {
                let link = multi.attach(name, exe, pid.get(), offsets);
                let link = link.map_err(|error| BpfError::from_io(action, error))?;
                return Ok(vec![Link::Multi(link)]);
            }
            Self::Perf(ebpf) => ebpf,
        };
        let failed = |error| BpfError::from_program(action, error);
        let program = program(ebpf, name).map_err(failed)?;
        let mut attach = |offset: &u64| {
            let location = UProbeAttachLocation::AbsoluteOffset(*offset);
            let link = program.attach(location, exe, UProbeScope::OneProcess(pid))?;
            program.take_link(link).map(Link::Perf)
        };
        offsets.iter().map(&mut attach).collect::<Result<_, _>>().map_err(failed)
    }

    /// How often a program has run and for how long; zeros if it is not loaded.
    pub(super) fn run_times(&self, name: &str) -> RunTimes {
        self.program(name).map(RunTimes::of).unwrap_or_default()
    }

    /// A loaded program.
    fn program(&self, name: &str) -> Option<BorrowedFd<'_>> {
        let program: &UProbe = match self {
            Self::Multi(multi) => return multi.get(name).map(OwnedFd::as_fd),
            Self::Perf(ebpf) => ebpf.program(name)?.try_into().ok()?,
        };
        program.fd().ok().map(|program| program.as_fd())
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, ProgramError> {
    let Some(program) = ebpf.program_mut(name) else {
        return Err(ProgramError::InvalidName { name: name.to_owned() });
    };
    program.try_into()
}
