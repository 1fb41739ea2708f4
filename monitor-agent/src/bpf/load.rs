//! Loads the object for one target, attaches its programs and detaches them.

use std::{
    fs::File,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use aya::{EbpfError, maps::Array, util::nr_cpus};
use monitor_ebpf::{COUNTERS, ENDED_KEYS, Native, PageTables, Recipe, WAYS, by_site, extra, name, word};

use super::{
    BpfError, Maps, MemoryReads, ProbeLinks, ProgramLog, RunTimes,
    object::{self, Object, Settings},
    page_tables::{self, Known},
};
use crate::plan::Role;

/// Label sets beyond the limit, for those with `other` instead of their strings: every combination of side, type,
/// status and a few retry counts.
pub(super) const OTHER_LABEL_SETS: u32 = 256;

/// Limits on the kernel memory of one framework in a target.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Label sets stored with their strings.
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
    /// Rows of totals and counters.
    pub(super) rows: u32,
    /// Buckets of the in-flight table.
    pub(super) buckets: u32,
    /// Label sets stored with their strings.
    pub(super) label_limit: u32,
    /// All label sets.
    pub(super) label_capacity: u32,
    /// Slots of the label cache, indexed by a hash of the set.
    pub(super) label_cache: u32,
    /// Whether bytes or messages are counted.
    pub(super) has_extras: bool,
    /// Size of the ring in bytes.
    pub(super) ring_bytes: u32,
}

/// Returns the number of buckets for this many calls in flight: a power of two, at least two.
fn buckets(in_flight: u32) -> u32 {
    in_flight.div_ceil(u32::try_from(WAYS).unwrap_or(1)).max(2).next_power_of_two()
}

/// Returns how many of the buckets are tried first: few enough to fit the caches, enough to keep CPUs off each
/// other's cache lines. A power of two.
fn near_buckets(cpus: u32, buckets: u32) -> u32 {
    cpus.clamp(1, buckets).next_power_of_two().saturating_mul(NEAR_OF_CPU).min(buckets)
}

/// Returns the rows of totals and counters for this many CPUs. Each CPU has a row of its own up to a limit, which
/// keeps contention low without memory for every CPU that a machine may have. A power of two.
fn rows(cpus: u32) -> u32 {
    cpus.clamp(1, ROWS_MAX).next_power_of_two()
}

/// Limit on the rows: a power of two.
const ROWS_MAX: u32 = 32;

/// Near buckets for each CPU: 8 KiB, for 512 calls.
const NEAR_OF_CPU: u32 = 128;

/// Returns the slots of the label cache for this many label sets. Two sets in the same slot are looked up by content
/// again and again; with four slots per set this is rare. A power of two, at least four; 2 MiB at most.
fn label_cache(label_sets: u32) -> u32 {
    label_sets.clamp(1, 65_536).next_power_of_two() * 4
}

/// Entries for nested calls, however few calls may be in flight.
const SPILL_MIN: u32 = 64;

fn program_name(native: &Native, role: Role) -> &'static str {
    let is_native = *native != Native::NONE;
    match role {
        Role::Start if is_native => name::NATIVE_START,
        Role::Finish if is_native && native.finish_key == word::LEFT_STACK => name::NATIVE_RETURN,
        Role::Finish if is_native => name::NATIVE_FINISH,
        Role::Start => name::START,
        Role::Finish => name::FINISH,
        Role::Sent => name::SENT,
        Role::Received => name::RECEIVED,
        Role::Entered => name::ENTERED,
    }
}

/// Loads the programs that do nothing. They use no maps, so these are the smallest.
pub(super) fn load_nothing(links: ProbeLinks) -> Result<Object, BpfError> {
    let object = Object::load(&Settings::smallest(), &[name::NOTHING, name::NOTHING_RETURNED], links);
    object.map_err(|error| BpfError::from_ebpf("load an empty eBPF program", error))
}

/// The programs of one target: loaded, and attached by [`Programs::attach`].
///
/// Dropping this detaches everything.
pub struct Programs {
    object: Object,
    links: Vec<(Role, OwnedFd)>,
    sizes: Sizes,
    native: Native,
}

impl Programs {
    /// Loads the programs for these roles, and their maps, without attaching them.
    ///
    /// `log_level` is the most verbose level of the programs' diagnostics, numbered as in `log::Level`; 0 for none.
    /// The verifier removes statements above it.
    pub fn load(
        recipe: &Recipe,
        roles: &[Role],
        limits: Limits,
        links: ProbeLinks,
        reads: MemoryReads,
        log_level: u8,
    ) -> Result<Self, BpfError> {
        let cpus = nr_cpus().map_err(|(_, error)| BpfError::from_io("count its CPUs", error))?;
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let has_messages = roles.iter().any(|role| matches!(role, Role::Sent | Role::Received));
        let sizes = Sizes {
            rows: rows(cpus),
            buckets: buckets(limits.in_flight),
            label_limit: limits.label_sets,
            label_capacity: limits.label_sets.saturating_add(OTHER_LABEL_SETS),
            label_cache: label_cache(limits.label_sets),
            has_extras: has_messages || recipe.has_extras(),
            ring_bytes: limits.ring_bytes,
        };
        let recipe = Recipe {
            label_limit: sizes.label_limit,
            label_capacity: sizes.label_capacity,
            bucket_shift: u64::BITS - sizes.buckets.trailing_zeros(),
            near_mask: near_buckets(cpus, sizes.buckets) - 1,
            row_mask: sizes.rows - 1,
            cache_shift: u64::BITS - sizes.label_cache.trailing_zeros(),
            ..*recipe
        };
        let known = page_tables::parameters(reads);
        let mut object = load_with(&recipe, roles, limits, sizes, links, known, log_level);
        if let (Some(_), Err(error)) = (known, &object) {
            // This verifier may have a lower instruction limit, or track pointers differently: try the reads that
            // work on every kernel before giving up.
            log::debug!("programs that go by page tables are refused: {}", last_word(error));
            object = load_with(&recipe, roles, limits, sizes, links, None, log_level);
        }
        let object = object.map_err(|error| BpfError::from_ebpf("load the eBPF programs", error))?;
        Ok(Self { object, links: Vec::new(), sizes, native: recipe.native })
    }

    /// Attaches the program of a role at these offsets of an executable, for process `pid` only. The probes are on
    /// the file, whatever the process runs by then.
    ///
    /// Attach finish sites before start sites, so that every seen start has its finish seen too.
    pub fn attach(&mut self, role: Role, exe: &File, pid: u32, file_offsets: &[u64]) -> Result<(), BpfError> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", exe.as_raw_fd()));
        let links = self.object.attach(program_name(&self.native, role), &path, pid, file_offsets);
        let links = links.map_err(|error| BpfError::from_io("attach a uprobe", error))?;
        self.links.extend(links.into_iter().map(|link| (role, link)));
        if role == Role::Start { self.forget_ended() } else { Ok(()) }
    }

    /// Clears the map of ended calls, once all starts are seen. Until then another call may have started unseen under
    /// the key of an ended one, and its end would be taken for a second end of that one.
    fn forget_ended(&mut self) -> Result<(), BpfError> {
        let Some(map) = self.object.take_map(name::ENDED) else { return Ok(()) };
        let failed = |error| BpfError::from_ebpf("empty a map", EbpfError::MapError(error));
        let mut ended = Array::<_, u64>::try_from(map).map_err(failed)?;
        (0..ended.len()).try_for_each(|index| ended.set(index, 0, 0)).map_err(failed)
    }

    /// Removes all probes at starts in parallel. The kernel takes 50 ms for this, or 100 ms per probe with perf
    /// events: don't call it from an async task.
    pub fn detach_starts(&mut self) {
        let (starts, others) =
            std::mem::take(&mut self.links).into_iter().partition(|(of, _)| *of == Role::Start);
        self.links = others;
        detach_all(starts);
    }

    /// Takes the maps of the programs. Returns an error if called twice.
    pub fn maps(&mut self) -> Result<Maps, BpfError> {
        Maps::take(&mut self.object, self.sizes)
    }

    /// Returns the forwarder of the programs' diagnostics to the log.
    ///
    /// `None` if the log level left no statement in the programs.
    #[must_use]
    pub fn log(&self) -> Option<ProgramLog> {
        self.object.log()
    }

    /// Returns how often, and for how long, the program of a role has run while the kernel measured it; zeros if it
    /// is not loaded.
    #[must_use]
    pub fn run_times(&self, role: Role) -> RunTimes {
        self.object.run_times(program_name(&self.native, role))
    }

    /// Removes the probes: those at ends first, then those at begins, each group in parallel.
    ///
    /// A finish pairs with the start stored under its key. So as long as finishes are seen, every start must be too:
    /// it replaces the start of a call without an end, and nests in the call around it. Calls that start in between
    /// stay in flight.
    ///
    /// The kernel takes 50 ms for each group, or 100 ms per site with perf events: don't call this from an async
    /// task.
    fn detach(&mut self) {
        let (begins, ends) = std::mem::take(&mut self.links).into_iter().partition(|(of, _)| is_begin(*of));
        detach_all(ends);
        detach_all(begins);
    }
}

/// Whether the program of a role records something for a later probe.
fn is_begin(role: Role) -> bool {
    matches!(role, Role::Start | Role::Entered)
}

fn detach_all(links: Vec<(Role, OwnedFd)>) {
    object::detach_all(links.into_iter().map(|(_, link)| link));
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Returns the verifier's last message, without the numbers after it.
fn last_word(error: &EbpfError) -> String {
    let text = error.to_string();
    let last = text.lines().rev().find(|line| line.starts_with(|first: char| first.is_ascii_alphabetic()));
    last.unwrap_or_default().to_owned()
}

fn load_with(
    recipe: &Recipe,
    roles: &[Role],
    limits: Limits,
    sizes: Sizes,
    links: ProbeLinks,
    known: Option<&Known>,
    log_level: u8,
) -> Result<Object, EbpfError> {
    let labels = sizes.label_capacity.saturating_mul(sizes.rows);
    let extras = if sizes.has_extras { labels.saturating_mul(extra::COUNT) } else { 1 };
    let programs: Vec<_> = roles.iter().map(|role| program_name(&recipe.native, *role)).collect();
    let messages = if roles.contains(&Role::Entered) { limits.in_flight } else { 1 };
    let mut recipe = *recipe;
    recipe.tables = known.map_or(PageTables::NONE, |known| known.tables);
    let settings = Settings {
        globals: vec![(name::RECIPE, bytes_of(&recipe)), ("AYA_LOG_LEVEL", std::slice::from_ref(&log_level))],
        entries: vec![
            (name::IN_FLIGHT, sizes.buckets),
            (name::OBJECTS, sizes.buckets),
            (name::ENDED, if recipe.by_site == by_site::PATH { ENDED_KEYS } else { 1 }),
            (name::SPILL, (limits.in_flight / 4).max(SPILL_MIN)),
            (name::MESSAGES, messages),
            (name::LABEL_IDS, sizes.label_capacity),
            (name::LABEL_SETS, sizes.label_capacity),
            (name::LABEL_CACHE, sizes.label_cache),
            (name::TOTALS, labels),
            (name::EXTRAS, extras),
            (name::COUNTERS, COUNTERS.saturating_mul(sizes.rows)),
            (name::RECORDS, limits.ring_bytes),
        ],
        numbers: known.map(|known| known.numbers),
    };
    Object::load(&settings, &programs, links)
}

/// Returns the recipe as the bytes of the programs' constant.
pub(super) fn bytes_of(recipe: &Recipe) -> &[u8] {
    fn is_plain<T: aya::Pod>(_: &T) {}

    is_plain(recipe);
    // SAFETY: exactly the recipe's bytes, and it consists of integers without padding.
    unsafe { std::slice::from_raw_parts((&raw const *recipe).cast(), size_of::<Recipe>()) }
}

#[cfg(test)]
mod tests {
    use super::{label_cache, near_buckets, rows};

    #[test]
    fn the_cache_has_room_for_all_label_sets_and_no_end_of_memory() {
        let sizes = [0, 1, 4_096, 10_000, u32::MAX].map(label_cache);
        assert_eq!(sizes, [4, 4, 16_384, 65_536, 262_144]);
    }

    #[test]
    fn cpus_have_rows_of_their_own_unless_there_are_very_many() {
        assert_eq!([0, 1, 2, 3, 32, 33, 8_192].map(rows), [1, 1, 2, 4, 32, 32, 32]);
    }

    #[test]
    fn near_buckets_are_few_and_some_of_all() {
        assert_eq!([(2, 16_384), (3, 16_384)].map(|(cpus, all)| near_buckets(cpus, all)), [256, 512]);
        assert_eq!(
            [(1, 2), (64, 4_096), (1_000, 1 << 20)].map(|(cpus, all)| near_buckets(cpus, all)),
            [2, 4_096, 131_072]
        );
    }
}
