//! Refreshes what is published, on request.
//!
//! Only scrapes, pushes and the page read published data, most of them once in many seconds. So readers request a
//! refresh before they read, and wait for it. Only then are rings drained and totals read. Simultaneous requests share
//! one refresh. A wait in vain is counted, since numbers that stand still look like an idle service.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

/// Age below which published data is new enough for every reader. Limits the rate of refreshes.
const NEW_FOR: Duration = Duration::from_millis(50);
/// How long a reader waits for a refresh before it takes the data that is there. A late scrape is worth more than
/// outdated data, but a scrape must not hang.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the refreshing thread may be away before that is a standstill: a hundred times as long as usual.
const STANDSTILL: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Refreshes {
    state: Mutex<State>,
    /// A refresh is done, or there will be no more.
    done: Condvar,
    /// A refresh is requested, or the wait must end.
    wanted: Condvar,
}

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The deadline has passed.
    InTime,
    /// A refresh is requested.
    Asked,
    /// The run must end.
    ToEnd,
}

#[derive(Debug, Default)]
struct State {
    /// A thread is there to refresh.
    is_open: bool,
    /// A refresh was requested since the last wait.
    is_asked: bool,
    /// The run must end.
    is_over: bool,
    /// When the newest finished refresh began.
    began: Option<Instant>,
    /// When the refreshing thread last waited here.
    came: Option<Instant>,
    /// Number of waits in vain.
    in_vain: u64,
    /// When the first wait in vain since the newest refresh began.
    behind_since: Option<Instant>,
}

impl State {
    fn is_new(&self, at: Instant) -> bool {
        self.began.is_some_and(|began| at.saturating_duration_since(began) < NEW_FOR)
    }
}

impl Refreshes {
    /// Marks that a thread refreshes from now on.
    pub(super) fn open(&self) {
        let mut state = self.lock();
        state.is_open = true;
        state.came = Some(Instant::now());
    }

    /// Marks that everything is published and that there will be no more refreshes.
    pub(super) fn close(&self) {
        self.lock().is_open = false;
        self.done.notify_all();
    }

    /// Requests a refresh, and waits until everything up to now is published.
    pub(super) fn ask(&self) {
        let asked = Instant::now();
        let is_wanting = |state: &State| state.is_open && !state.is_new(asked);
        let mut state = self.lock();
        if !is_wanting(&state) {
            return;
        }
        state.is_asked = true;
        self.wanted.notify_one();
        let waited = self.done.wait_timeout_while(state, PATIENCE, |state| is_wanting(state));
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        // When the run ends, there may be no more refresh.
        if !waited.timed_out() || state.is_over {
            return;
        }
        // The reader has to take the data that is there.
        state.in_vain += 1;
        let is_news = state.behind_since.is_none();
        state.behind_since = state.behind_since.or(Some(asked));
        // The refreshing thread must not wait for the log.
        drop(state);
        if is_news {
            warn!("what is counted by now can't be read in time: scrapes and pushes have what was before");
        }
    }

    /// Returns how often a reader got old data because no refresh was done in time.
    pub(super) fn in_vain(&self) -> u64 {
        self.lock().in_vain
    }

    /// Returns for how long the refreshing thread has been away, from refreshing and from draining the rings; `None` if
    /// that is not too long.
    pub(super) fn standstill(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let came = state.came.filter(|_| state.is_open)?;
        Some(now.saturating_duration_since(came)).filter(|gone| *gone >= STANDSTILL)
    }

    /// Ends the waits of the refreshing thread, permanently.
    pub(super) fn end(&self) {
        self.lock().is_over = true;
        self.wanted.notify_one();
    }

    /// Waits until `until`, or until a refresh is requested. A deadline that has passed comes first, so endless
    /// requests delay nothing.
    pub(super) fn wait(&self, until: Instant) -> Woken {
        let mut state = self.lock();
        state.came = Some(Instant::now());
        loop {
            if state.is_over {
                return Woken::ToEnd;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Woken::InTime;
            }
            if mem::take(&mut state.is_asked) {
                return Woken::Asked;
            }
            let waited = self.wanted.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Runs `refresh` to answer requests, unless the newest refresh is new enough.
    pub(super) fn answer(&self, refresh: impl FnOnce()) {
        let begins = Instant::now();
        if self.lock().is_new(begins) {
            return;
        }
        refresh();
        let mut state = self.lock();
        state.began = Some(begins);
        let behind_since = state.behind_since.take();
        drop(state);
        self.done.notify_all();
        if let Some(since) = behind_since {
            let seconds = since.elapsed().as_secs();
            info!("scrapes and pushes have what is counted by now again, after {seconds} s");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        thread,
    };

    use super::*;

    /// Refreshes, taking this long each time, until all `asking` threads are done. Returns how often.
    fn times_refreshed(refreshes: &Refreshes, lasting: Duration, asking: Vec<thread::JoinHandle<()>>) -> u32 {
        let mut times = 0;
        while asking.iter().any(|one| !one.is_finished()) {
            if refreshes.wait(Instant::now() + Duration::from_millis(10)) == Woken::Asked {
                refreshes.answer(|| {
                    thread::sleep(lasting);
                    times += 1;
                });
            }
        }
        for one in asking {
            one.join().unwrap();
        }
        times
    }

    #[test]
    fn who_asks_sees_all_that_there_was() {
        let refreshes = Arc::new(Refreshes::default());
        refreshes.open();
        let (made, published) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let reader = {
            let (refreshes, made, published) = (refreshes.clone(), made.clone(), published.clone());
            thread::spawn(move || {
                for _ in 0..5 {
                    let before = made.fetch_add(1, Ordering::SeqCst) + 1;
                    refreshes.ask();
                    assert_eq!(published.load(Ordering::SeqCst), before);
                    thread::sleep(NEW_FOR);
                }
            })
        };
        for _ in 0..5 {
            assert_eq!(refreshes.wait(Instant::now() + PATIENCE), Woken::Asked);
            refreshes.answer(|| published.store(made.load(Ordering::SeqCst), Ordering::SeqCst));
        }
        reader.join().unwrap();
    }

    #[test]
    fn who_asks_together_shares_a_refresh() {
        let refreshes = Arc::new(Refreshes::default());
        refreshes.open();
        let ask = |_| {
            let refreshes = refreshes.clone();
            thread::spawn(move || refreshes.ask())
        };
        let asking = (0..20).map(ask).collect();
        // One request came before the refresh began. Later ones find the data new.
        assert_eq!(times_refreshed(&refreshes, Duration::from_millis(10), asking), 1);
    }

    #[test]
    fn who_asks_without_end_gets_no_more_refreshes_than_that() {
        let refreshes = Arc::new(Refreshes::default());
        refreshes.open();
        let began = Instant::now();
        let asking = {
            let refreshes = refreshes.clone();
            thread::spawn(move || (0..100_000).for_each(|_| refreshes.ask()))
        };
        let times = times_refreshed(&refreshes, Duration::ZERO, vec![asking]);
        let at_most = began.elapsed().as_millis() / NEW_FOR.as_millis() + 1;
        assert!(u128::from(times) <= at_most, "{times} of {at_most}");
    }

    #[test]
    fn a_wait_ends_in_time_whoever_asks_and_at_once_at_the_end() {
        let refreshes = Arc::new(Refreshes::default());
        refreshes.open();
        let asking = {
            let refreshes = refreshes.clone();
            thread::spawn(move || refreshes.ask())
        };
        let until = Instant::now() + Duration::from_millis(20);
        while refreshes.wait(until) == Woken::Asked {}
        assert!(Instant::now() >= until);
        assert_eq!(refreshes.wait(until), Woken::InTime, "a moment that is over");
        let ending = {
            let refreshes = refreshes.clone();
            thread::spawn(move || refreshes.end())
        };
        let began = Instant::now();
        while refreshes.wait(began + PATIENCE) == Woken::Asked {}
        assert!(began.elapsed() < PATIENCE / 2);
        assert_eq!(refreshes.wait(began), Woken::ToEnd, "for good");
        refreshes.close();
        for one in [asking, ending] {
            one.join().unwrap();
        }
    }

    #[test]
    fn nobody_waits_where_nobody_refreshes() {
        let refreshes = Refreshes::default();
        let began = Instant::now();
        refreshes.ask();
        assert!(began.elapsed() < PATIENCE / 2, "before");
        assert_eq!(refreshes.in_vain(), 0);
        refreshes.open();
        let began = Instant::now();
        refreshes.ask();
        assert!(began.elapsed() >= PATIENCE, "in vain");
        assert_eq!(refreshes.in_vain(), 1);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| refreshes.ask());
            thread::sleep(Duration::from_millis(20));
            refreshes.close();
            waiting.join().unwrap();
            let began = Instant::now();
            refreshes.ask();
            assert!(began.elapsed() < PATIENCE / 2, "after");
        });
        assert_eq!(refreshes.in_vain(), 1, "who did not have to wait to the end has all that there is");
    }

    #[test]
    fn who_is_behind_is_so_until_the_next_refresh() {
        let refreshes = Refreshes::default();
        refreshes.open();
        refreshes.ask();
        assert!(refreshes.lock().behind_since.is_some());
        refreshes.answer(|| {});
        assert_eq!(refreshes.lock().behind_since, None);
    }

    #[test]
    fn who_does_not_come_for_long_stands_still() {
        let refreshes = Refreshes::default();
        assert_eq!(refreshes.standstill(Instant::now() + 2 * STANDSTILL), None, "before");
        refreshes.open();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(refreshes.standstill(Instant::now()), None);
        let then = Instant::now() + STANDSTILL;
        assert!(refreshes.standstill(then).is_some_and(|gone| gone >= STANDSTILL));
        assert_eq!(refreshes.wait(Instant::now()), Woken::InTime);
        assert_eq!(refreshes.standstill(then), None, "it has just come");
        assert!(refreshes.standstill(then + STANDSTILL).is_some());
        refreshes.close();
        assert_eq!(refreshes.standstill(then + STANDSTILL), None, "after");
    }
}
