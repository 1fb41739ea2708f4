//! The probes of one plan. Either all of them stay attached, or the start probes are attached only in windows of a
//! second.
//!
//! The kernel takes 50 ms or more to remove a probe. This is done on a thread of its own, which owns the programs
//! meanwhile.

use std::{
    collections::BTreeSet,
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io,
    ops::Range,
    sync::{
        Arc,
        mpsc::{self, SendError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    aside::{Aside, FOR_A_SCRAPE},
    attached::Place,
    verify::Breakpoint,
};
use crate::{
    bpf::{Programs, Sampling},
    pipeline::Aggregate,
    plan::Role,
    target::Liveness,
    threads::NotDone,
};

/// The minimum length of a window. It ends when the schedule is next followed.
const WINDOW: Duration = Duration::from_secs(1);
/// How long to wait after probes could not be attached, before the next try.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The failure where the kernel has accepted probes but put none in place. overlayfs copies a file up when its mode,
/// owner or times are changed. From then on probes go into the copy, but a process that runs the executable still has
/// the former file in its memory.
const IN_ANOTHER_FILE: &str = "none is in its memory, which is not of the file that they are put into now: was the \
                               executable changed on overlayfs?";
/// The failure where it can't be read in time whether the kernel has put probes in place.
const UNSEEN: &str = "its memory did not say in time whether they are";

/// The calls whose durations are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Latency {
    /// All calls.
    #[default]
    Full,
    /// A sample of the calls, which costs the target less. All calls are counted.
    Economy {
        /// The period. Start probes are attached for one second in each, at a random time. Longer than a second.
        every: Duration,
    },
    /// No calls. No start probe is attached, and the starts that calls have recorded are not read.
    Off,
}

impl Latency {
    /// Returns the share of the time in which start probes are attached.
    pub(super) fn share(self) -> f64 {
        match self {
            Self::Full => 1.0,
            Self::Economy { every } => WINDOW.as_secs_f64() / every.as_secs_f64(),
            Self::Off => 0.0,
        }
    }
}

/// See the [module](self). Dropping it removes the probes and waits until they are removed, at most a second of that
/// for the target's memory.
pub(super) struct Probes {
    hands: Hands,
    sampling: Arc<Sampling>,
    /// `None` if start probes are never removed.
    starts: Option<Starts>,
    /// Start probes are attached.
    is_open: bool,
    /// For how long start probes had been attached when they last changed, and when that was.
    watched: (Duration, Instant),
    /// When start probes are to be attached.
    schedule: Schedule,
    failures: Failures,
    /// It was logged that it can't be read whether start probes are in place.
    is_unread_told: bool,
}

/// What it takes to attach the start probes again.
#[derive(Clone)]
struct Starts {
    exe: Arc<File>,
    pid: u32,
    /// Offsets of the start sites in the file.
    offsets: Vec<u64>,
    /// Reads in the target's memory whether the probes are in place. The thread that has the programs must not wait for
    /// it.
    memory: Arc<Aside>,
}

/// The owner of the programs.
enum Hands {
    Held(Programs),
    Away(JoinHandle<Option<Returned>>),
    /// Only in the middle of a change.
    Empty,
}

impl Hands {
    /// Gives the programs to a new thread for a change. If there can be no thread, keeps them and returns the reason.
    fn lend(
        programs: Programs,
        change: impl FnOnce(Programs) -> Returned + Send + 'static,
    ) -> (Self, Option<io::Error>) {
        let (give, given) = mpsc::channel();
        let thread = match thread::Builder::new().spawn(move || given.recv().ok().map(change)) {
            Ok(thread) => thread,
            Err(error) => return (Self::Held(programs), Some(error)),
        };
        match give.send(programs) {
            Ok(()) => (Self::Away(thread), None),
            Err(SendError(programs)) => (Self::Held(programs), None),
        }
    }
}

/// The result of a change.
struct Returned {
    programs: Programs,
    /// Start probes are attached now.
    is_open: bool,
    failure: Option<String>,
    /// Why it could not be read whether the probes are in place.
    unread: Option<io::Error>,
}

impl Probes {
    /// Takes over programs whose probes are all attached, in a file and for a process. The probes at `starts` are
    /// removed now and then if latency is to be sampled; if `starts` is empty, none ever is.
    pub(super) fn new(
        programs: Programs,
        sampling: Arc<Sampling>,
        (exe, place): (Arc<File>, &Place),
        starts: Vec<u64>,
    ) -> Self {
        let memory =
            Aside::new(&place.name, "it is not seen whether probes at the starts of calls are in place");
        let starts = Starts { exe, pid: place.target.pid(), offsets: starts, memory: Arc::new(memory) };
        let starts = Some(starts).filter(|starts| !starts.offsets.is_empty());
        Self {
            hands: Hands::Held(programs),
            sampling,
            starts,
            is_open: true,
            watched: (Duration::ZERO, Instant::now()),
            schedule: Schedule::Always,
            failures: Failures::default(),
            is_unread_told: false,
        }
    }

    /// Returns the programs, unless a thread has them.
    pub(super) fn programs(&self) -> Option<&Programs> {
        match &self.hands {
            Hands::Held(programs) => Some(programs),
            _ => None,
        }
    }

    /// Chooses the calls whose durations are taken. Takes effect when the schedule is next followed.
    pub(super) fn set_latency(&mut self, latency: Latency) {
        if !self.has_windows() {
            return;
        }
        let now = Instant::now();
        self.schedule = match (latency, &self.schedule) {
            (Latency::Full, _) => Schedule::Always,
            (Latency::Economy { every }, Schedule::InWindows(windows)) => {
                Schedule::InWindows(windows.in_periods_of(every, now))
            }
            (Latency::Economy { every }, _) => Schedule::InWindows(Windows::new(every, now)),
            (Latency::Off, _) => Schedule::Never,
        };
        if !matches!(self.schedule, Schedule::Always) {
            self.sampling.begin_windows();
        }
    }

    /// Returns for how long start probes have been attached in all.
    pub(super) fn watched(&self) -> Duration {
        let (watched, then) = self.watched;
        if self.is_open { watched + then.elapsed() } else { watched }
    }

    /// Returns whether start probes may be removed.
    pub(super) fn has_windows(&self) -> bool {
        self.starts.is_some()
    }

    /// Returns whether, in the last period with calls whose start was not seen, each of them got a duration from the
    /// start that it had recorded.
    pub(super) fn are_recorded(&self) -> bool {
        matches!(&self.schedule, Schedule::InWindows(windows) if windows.are_recorded)
    }

    /// Returns whether the next call of [`follow_schedule`](Self::follow_schedule) decides about a window.
    pub(super) fn is_to_decide(&self, now: Instant) -> bool {
        matches!(&self.schedule, Schedule::InWindows(windows) if now >= windows.period_ends)
    }

    /// Returns whether a thread is attaching or removing probes.
    pub(super) fn are_changing(&self) -> bool {
        matches!(self.hands, Hands::Away(_))
    }

    /// Returns whether no durations are taken.
    pub(super) fn is_off(&self) -> bool {
        matches!(self.schedule, Schedule::Never)
    }

    /// Attaches or removes the start probes, if it is time to. No call gets older than `max_age`. `unseen` returns the
    /// counts of calls so far, if they may record their own starts.
    pub(super) fn follow_schedule(
        &mut self,
        now: Instant,
        place: &Place,
        max_age: Duration,
        unseen: impl FnOnce() -> Option<Unseen>,
    ) {
        self.take_back(now, place);
        let wants_open = match &mut self.schedule {
            Schedule::Always => true,
            Schedule::InWindows(windows) => windows.is_open(now, unseen()),
            Schedule::Never => false,
        };
        if wants_open != self.is_open {
            if !self.failures.is_recent(now) {
                self.change(wants_open, now, place);
            }
        } else if matches!(self.schedule, Schedule::Always) && self.programs().is_some() {
            // Otherwise a thread may be removing probes that still count as attached.
            self.sampling.end_windows(max_age);
        }
    }

    /// Starts a thread that opens or closes a window, unless one is running.
    fn change(&mut self, open: bool, now: Instant, place: &Place) {
        let Some(starts) = self.starts.clone() else { return };
        let sampling = Arc::clone(&self.sampling);
        let (hands, refused) = match std::mem::replace(&mut self.hands, Hands::Empty) {
            Hands::Held(programs) if open => {
                let first = starts.first(place);
                Hands::lend(programs, move |programs| starts.put_in_place(programs, first, &sampling))
            }
            Hands::Held(programs) => Hands::lend(programs, move |programs| take_away(programs, &sampling)),
            busy => (busy, None),
        };
        self.hands = hands;
        if let Some(error) = refused {
            let what = if open { "are not in place" } else { "are not taken away" };
            self.fail(what, &NotDone::NoThread(error).to_string(), now, place);
        }
    }

    /// Records a failed change, and logs it if its reason is new.
    fn fail(&mut self, what: &str, failure: &str, now: Instant, place: &Place) {
        if self.failures.add(failure.to_owned(), now) && place.target.liveness() == Liveness::Running {
            warn!("{}: the probes at the starts of calls {what}: {failure}", place.name);
        }
    }

    /// Takes the programs back from a thread that is done.
    fn take_back(&mut self, now: Instant, place: &Place) {
        if !matches!(&self.hands, Hands::Away(thread) if thread.is_finished()) {
            return;
        }
        let Hands::Away(thread) = std::mem::replace(&mut self.hands, Hands::Empty) else { return };
        // A panic was already reported, and leaves nothing attached.
        let Ok(Some(Returned { programs, is_open, failure, unread })) = thread.join() else { return };
        self.hands = Hands::Held(programs);
        self.watched = (self.watched(), Instant::now());
        self.is_open = is_open;
        match failure {
            Some(failure) => self.fail("are not in place", &failure, now, place),
            None => self.failures = Failures::default(),
        }
        let Some(error) = unread.filter(|_| !self.is_unread_told) else { return };
        if place.target.liveness() == Liveness::Running {
            self.is_unread_told = true;
            warn!(
                "{}: it can't be read whether the probes at the starts of calls are in place: {error}",
                place.name
            );
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if let Hands::Away(thread) = std::mem::replace(&mut self.hands, Hands::Empty) {
            // The programs come back and are dropped here.
            let _ = thread.join();
        }
    }
}

impl Starts {
    /// Returns where the first start probe must be in the target's memory, since all are in one file. `None` if the
    /// memory may not be read.
    fn first(&self, place: &Place) -> Option<Breakpoint> {
        let offset = self.offsets.first()?;
        let mut sites = place.executable.inspection.plans().flat_map(|(_, plan)| &plan.sites);
        Breakpoint::of(place, sites.find(|site| site.file_offset == *offset)?)
    }

    /// Opens a window; on failure it stays closed entirely.
    fn put_in_place(
        &self,
        mut programs: Programs,
        first: Option<Breakpoint>,
        sampling: &Sampling,
    ) -> Returned {
        let attached = programs.attach(Role::Start, &self.exe, self.pid, &self.offsets);
        let looked = attached.map_err(|error| error.to_string()).and_then(|()| match first {
            Some(first) => look_for(&self.memory, move || first.is_there()),
            None => Ok(None),
        });
        let (failure, unread) = match looked {
            Ok(unread) => (None, unread),
            Err(failure) => (Some(failure), None),
        };
        if failure.is_some() {
            programs.detach_starts();
        } else {
            sampling.open();
        }
        Returned { programs, is_open: failure.is_none(), failure, unread }
    }
}

/// Fails unless `is_there` finds a probe in the target's memory in time. If the memory can't be read, the probes count
/// as attached, as on first attach, and the error is returned.
fn look_for(
    memory: &Aside,
    is_there: impl FnOnce() -> io::Result<bool> + Send + 'static,
) -> Result<Option<io::Error>, String> {
    let looking = memory.begin(is_there);
    if let Some(refusal) = looking.refusal() {
        return Err(refusal.to_string());
    }
    match looking.take(Instant::now() + FOR_A_SCRAPE) {
        Some(Ok(true)) => Ok(None),
        Some(Ok(false)) => Err(IN_ANOTHER_FILE.to_owned()),
        Some(Err(error)) => Ok(Some(error)),
        None => Err(UNSEEN.to_owned()),
    }
}

/// Closes a window.
fn take_away(mut programs: Programs, sampling: &Sampling) -> Returned {
    sampling.close();
    programs.detach_starts();
    Returned { programs, is_open: false, failure: None, unread: None }
}

/// Why start probes could not be attached, since they last were.
#[derive(Debug, Default)]
struct Failures {
    reasons: BTreeSet<String>,
    last: Option<Instant>,
}

impl Failures {
    /// Adds a failure. Returns whether its reason is new.
    fn add(&mut self, reason: String, now: Instant) -> bool {
        self.last = Some(now);
        self.reasons.insert(reason)
    }

    /// Returns whether it is too early for another try.
    fn is_recent(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) < RETRY_AFTER)
    }
}

/// When start probes are to be attached.
#[derive(Debug)]
enum Schedule {
    Always,
    InWindows(Windows),
    Never,
}

/// Counts of finished calls whose start was not seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unseen {
    /// Calls with a duration, from the start that they had recorded.
    recorded: u64,
    /// Calls without a duration.
    missed: u64,
}

impl Unseen {
    /// Counts the calls that came out of a ring, and those that the programs have counted as sampled out. A call whose
    /// record means nothing counts as missed: after the clock was set back, that can go on for hours. Calls that began
    /// before the first look at the clock, or before it was first set after that, do not count, since they say nothing
    /// about calls that begin now: otherwise windows would come and go as long as such calls end.
    pub(super) fn of(aggregate: &Aggregate, sampled_out: u64) -> Self {
        Self { recorded: aggregate.timed_by_own_start(), missed: sampled_out + aggregate.clock_set_since() }
    }

    /// Returns whether all calls since `before` have a duration; `None` if there were no calls.
    fn are_recorded_since(self, before: Self) -> Option<bool> {
        let has_missed = self.missed > before.missed;
        (has_missed || self.recorded > before.recorded).then_some(!has_missed)
    }
}

/// When windows are open: once in each period, at a random time, so that a periodic load is not always sampled at the
/// same phase. There is no window after a period in which calls have shown that they need none. A period without calls
/// shows nothing: the next may have some.
#[derive(Debug)]
struct Windows {
    every: Duration,
    window: Range<Instant>,
    period_ends: Instant,
    /// The counts of calls at the beginning of this period, if calls may record their starts.
    unseen: Option<Unseen>,
    /// In the last period with such calls, all of them had a duration from their record.
    are_recorded: bool,
}

impl Windows {
    /// Creates a schedule whose first window is open now.
    fn new(every: Duration, now: Instant) -> Self {
        let window = now..now + WINDOW;
        Self { every, window, period_ends: now + every, unseen: None, are_recorded: false }
    }

    /// Returns the schedule with another period. The first period begins now, with its window if one is needed.
    fn in_periods_of(&self, every: Duration, now: Instant) -> Self {
        let window = if self.window.is_empty() { now..now } else { now..now + WINDOW };
        Self { every, window, period_ends: now + every, ..*self }
    }

    /// Returns whether a window is open. `unseen` has the counts of calls so far, if they may record their starts.
    fn is_open(&mut self, now: Instant, unseen: Option<Unseen>) -> bool {
        // Calls missed earlier, while no durations were taken, show nothing.
        self.unseen = self.unseen.or(unseen);
        if now >= self.period_ends {
            let opens = now + random_below(self.every.saturating_sub(WINDOW));
            let shown =
                unseen.zip(self.unseen).and_then(|(unseen, before)| unseen.are_recorded_since(before));
            let is_needed = shown != Some(true);
            self.window = opens..if is_needed { opens + WINDOW } else { opens };
            self.period_ends = now + self.every;
            self.unseen = unseen;
            self.are_recorded = shown.unwrap_or(self.are_recorded);
        }
        self.window.contains(&now)
    }
}

/// Returns a random duration below `limit`, in whole milliseconds.
fn random_below(limit: Duration) -> Duration {
    let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
    // Each state has its own random keys.
    Duration::from_millis(RandomState::new().hash_one(0) % milliseconds)
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::{LabelSet, Record, record_flag};

    use super::*;
    use crate::{
        agent::{call::Call, clock::Clock},
        pipeline::{FinishedCall, Labels, NoExecutable, Tracer as _},
        threads::testing::without_threads,
    };

    const SECOND: u64 = 1_000_000_000;

    /// Counts a call that has recorded its start as a time of day. Its end is by the programs' clock.
    fn finish_recorded(aggregate: &mut Aggregate, clock: Clock, start_ns: u64, end_ns: u64) -> Unseen {
        let labels = &Arc::new(Labels::decode(&LabelSet::EMPTY, &NoExecutable));
        let record = Record { label_set: 0, flags: record_flag::RECORDED, start_ns, duration_ns: end_ns };
        let call = Call { target: 1, record: &record, more: None, labels, clock };
        call.hand_over(aggregate, &mut Aggregate::new(Arc::default()));
        Unseen::of(aggregate, 0)
    }

    #[test]
    fn a_failure_is_told_once_and_followed_by_patience() {
        let began = Instant::now();
        let mut failures = Failures::default();
        assert!(!failures.is_recent(began));
        for (second, reason, is_news) in
            [(0, "no files", true), (1, "no files", false), (2, "no memory", true), (3, "no files", false)]
        {
            let now = began + Duration::from_secs(second);
            assert!(!failures.is_recent(now), "after {second} s");
            assert_eq!(failures.add(reason.to_owned(), now), is_news, "after {second} s: {reason}");
            assert!(failures.is_recent(now + Duration::from_millis(999)), "after {second} s");
        }
    }

    #[test]
    fn each_period_has_one_window_somewhere_in_it() {
        let began = Instant::now();
        let mut windows = Windows::new(Duration::from_secs(10), began);
        let mut opened_at = BTreeSet::new();
        for period in 0..20 {
            let mut is_open = |tick: &u32| {
                windows.is_open(began + (100 * period + tick) * Duration::from_millis(100), None)
            };
            let open: Vec<_> = (0..100).filter(&mut is_open).collect();
            let (first, last) = (open[0], open[open.len() - 1]);
            assert!((9..=10).contains(&open.len()) && last - first < 10, "{open:?}");
            assert!(period > 0 || first == 0, "{open:?}");
            opened_at.insert(first);
        }
        assert!(opened_at.len() > 5, "{opened_at:?}");
    }

    /// After an idle period there is a window. Otherwise an intermittent load could come only in periods without one.
    #[test]
    fn there_is_no_window_after_a_period_whose_calls_had_all_recorded_their_start() {
        let (every, began) = (Duration::from_secs(10), Instant::now());
        let mut windows = Windows::new(every, began);
        windows.is_open(began, Some(Unseen { recorded: 0, missed: 500 }));
        let cells = [
            // Recorded and missed before the period, whether it has a window, and whether the last calls were recorded.
            (0, 500, true, false),
            (9, 500, false, true),
            (9, 500, true, true),
            (9, 500, true, true),
            (12, 500, false, true),
            (15, 501, true, false),
            (15, 501, true, false),
            (15, 502, true, false),
            (16, 502, false, true),
        ];
        for (period, (recorded, missed, expected, are_recorded)) in (1_u32..).zip(cells) {
            let mut ticks = (0..100).map(|tick| began + period * every + tick * Duration::from_millis(100));
            let unseen = Unseen { recorded, missed };
            assert_eq!(ticks.any(|now| windows.is_open(now, Some(unseen))), expected, "period {period}");
            assert_eq!(windows.are_recorded, are_recorded, "period {period}");
        }
    }

    /// The case for hours after the clock was set back that far.
    #[test]
    fn there_is_a_window_after_a_period_whose_calls_have_recorded_what_means_nothing() {
        let labels = &Arc::new(Labels::decode(&LabelSet::EMPTY, &NoExecutable));
        let mut aggregate = Aggregate::new(Arc::default());
        let mut finish = |duration| {
            aggregate.finish(&FinishedCall {
                target: 1,
                label_set: 0,
                labels,
                time_ns: 1,
                duration,
                has_own_start: true,
                details: None,
            });
            Some(Unseen::of(&aggregate, 500))
        };
        let (every, began) = (Duration::from_secs(10), Instant::now());
        let mut windows = Windows::new(every, began);
        windows.is_open(began, finish(Some(every)));
        for (period, (duration, has_window)) in (1_u32..).zip([(Some(every), false), (None, true)]) {
            windows.is_open(began + period * every, finish(duration));
            let shown = (!windows.window.is_empty(), windows.are_recorded);
            assert_eq!(shown, (has_window, !has_window), "period {period}");
        }
    }

    /// Streams that began before the agent end one by one, for hours.
    #[test]
    fn there_is_no_window_for_calls_that_began_before_the_clock_was_looked_at() {
        let mut aggregate = Aggregate::new(Arc::default());
        let mut clock = Clock::default();
        clock.sync_at(1_000 * SECOND, 50 * SECOND);
        // Each call ends at 100 s.
        let mut finish = |began_s: u64| {
            let unseen = finish_recorded(&mut aggregate, clock, (1_000 + began_s) * SECOND, 100 * SECOND);
            (unseen, aggregate.clock_set())
        };
        let (every, began) = (Duration::from_secs(10), Instant::now());
        let mut windows = Windows::new(every, began);
        windows.is_open(began, Some(finish(60).0));
        let cells = [
            // When the call began, how many calls have no duration by then, and whether there is a window.
            (60, 0, false),
            (49, 1, false),
            (60, 1, false),
            (1, 2, false),
            // A start after the call's end.
            (101, 3, true),
        ];
        for (period, (began_s, expected, has_window)) in (1_u32..).zip(cells) {
            finish(began_s);
            // Each period also has a call with a duration from its record.
            let (unseen, clock_set) = finish(60);
            assert_eq!(clock_set, expected, "period {period}");
            windows.is_open(began + period * every, Some(unseen));
            let shown = (!windows.window.is_empty(), windows.are_recorded);
            assert_eq!(shown, (has_window, !has_window), "period {period}");
        }
    }

    /// The clock of a virtual machine may do this: long calls that begin now will have no duration either.
    #[test]
    fn there_are_windows_where_the_clock_is_set_forward_again_and_again() {
        let mut aggregate = Aggregate::new(Arc::default());
        let mut clock = Clock::default();
        let mut ahead_ns = 1_000 * SECOND;
        clock.sync_at(ahead_ns, 50 * SECOND);
        let (every, began) = (Duration::from_secs(10), Instant::now());
        let mut windows = Windows::new(every, began);
        let start_ns = clock.unix_ns(60 * SECOND);
        windows.is_open(began, Some(finish_recorded(&mut aggregate, clock, start_ns, 61 * SECOND)));
        for (period, has_window) in (1_u32..).zip([false, true, true]) {
            let set_at = u64::from(period) * 100 * SECOND;
            let long_ns = clock.unix_ns(set_at - 20 * SECOND);
            ahead_ns += 3_600 * SECOND;
            clock.sync_at(ahead_ns, set_at);
            finish_recorded(&mut aggregate, clock, long_ns, set_at + 3 * SECOND);
            let short_ns = clock.unix_ns(set_at + SECOND);
            let unseen = finish_recorded(&mut aggregate, clock, short_ns, set_at + 2 * SECOND);
            assert_eq!(aggregate.clock_set(), u64::from(period), "period {period}");
            windows.is_open(began + period * every, Some(unseen));
            let shown = (!windows.window.is_empty(), windows.are_recorded);
            assert_eq!(shown, (has_window, !has_window), "period {period}");
        }
    }

    #[test]
    fn want_of_a_thread_is_not_taken_for_memory_that_does_not_come() {
        let look = || look_for(&Aside::new("target", "nothing is seen"), || Ok(true));
        let why = without_threads(look).expect_err("no thread");
        assert!(why.contains("pids.max"), "{why}");
    }

    #[test]
    fn memory_that_does_not_come_is_not_waited_for() {
        let memory = Aside::new("target", "nothing is seen");
        assert!(matches!(look_for(&memory, || Ok(true)), Ok(None)));
        assert_eq!(look_for(&memory, || Ok(false)).expect_err("none"), IN_ANOTHER_FILE);
        // Text that is executable but not readable.
        let unread = look_for(&memory, || Err(io::Error::from_raw_os_error(libc::EFAULT)));
        assert!(matches!(unread, Ok(Some(_))), "{unread:?}");
        let (come, page) = mpsc::channel();
        let held_up = move || page.recv().map_err(io::Error::other);
        assert_eq!(look_for(&memory, held_up).expect_err("it never comes"), UNSEEN);
        // Nobody waits again either.
        let again = Instant::now();
        assert_eq!(look_for(&memory, || Ok(true)).expect_err("nor does this"), UNSEEN);
        assert!(again.elapsed() < FOR_A_SCRAPE);
        come.send(true).expect("it is still waited for there");
    }

    #[test]
    fn other_periods_begin_with_a_window_where_one_is_needed() {
        let (every, began) = (Duration::from_secs(10), Instant::now());
        let mut windows = Windows::new(every, began);
        let unseen = |recorded, missed| Some(Unseen { recorded, missed });
        assert!(windows.is_open(began, unseen(0, 500)));
        assert!(windows.in_periods_of(2 * every, began).is_open(began, unseen(0, 500)));
        // Calls missed before the first period create no need.
        let later = began + every;
        assert!(!windows.is_open(later, unseen(7, 500)));
        let mut longer = windows.in_periods_of(2 * every, later);
        assert!(!longer.is_open(later, unseen(7, 500)) && longer.window.is_empty());
        // A call missed in the longer period does.
        longer.is_open(later + 2 * every, unseen(7, 501));
        assert!(!longer.window.is_empty());
    }
}
