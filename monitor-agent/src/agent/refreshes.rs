//! Refreshes what is published, when somebody wants to read it.
//!
//! Nobody reads what is published but those who scrape, push or read the page, most of them once in many seconds. So they
//! ask for a refresh before they read, and wait for it: rings are drained and totals read then. Who asks at the same time
//! shares one. A wait in vain is counted, since numbers that stand still look like a quiet service.

use std::{
    mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{info, warn};

/// What was published so shortly ago is new enough for everybody, so that refreshes are no more frequent, whoever asks.
const NEW_FOR: Duration = Duration::from_millis(50);
/// How long a reader waits for a refresh, until it takes what there is. A scrape that is late is worth more than one that is
/// behind, but must not hang.
const PATIENCE: Duration = Duration::from_secs(1);
/// For how long whoever refreshes may do something else until that is a standstill: a hundred times as long as usual.
const STANDSTILL: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Refreshes {
    state: Mutex<State>,
    /// A refresh is done, or none will be any more.
    done: Condvar,
    /// Somebody wants one, or it is time to end.
    wanted: Condvar,
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The time has come.
    InTime,
    /// Somebody asks for a refresh.
    Asked,
    /// There shall be no more of them.
    ToEnd,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody is there to refresh.
    is_open: bool,
    /// Somebody has asked since the last wait.
    is_asked: bool,
    /// It is time to end.
    is_over: bool,
    /// When the newest refresh that is done began.
    began: Option<Instant>,
    /// When whoever refreshes came here last.
    came: Option<Instant>,
    /// Waits for a refresh in vain.
    in_vain: u64,
    /// When the first of them began that was after the newest refresh.
    behind_since: Option<Instant>,
}

impl State {
    fn is_new(&self, at: Instant) -> bool {
        self.began.is_some_and(|began| at.saturating_duration_since(began) < NEW_FOR)
    }
}

impl Refreshes {
    /// From now on somebody refreshes.
    pub(super) fn open(&self) {
        let mut state = self.lock();
        state.is_open = true;
        state.came = Some(Instant::now());
    }

    /// All is published that there will ever be.
    pub(super) fn close(&self) {
        self.lock().is_open = false;
        self.done.notify_all();
    }

    /// Asks for a refresh, and waits until all that there is by now is published.
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
        // At the end there may be no refresh any more.
        if !waited.timed_out() || state.is_over {
            return;
        }
        // Then what is there is all that can be had.
        state.in_vain += 1;
        let is_news = state.behind_since.is_none();
        state.behind_since = state.behind_since.or(Some(asked));
        // Whoever refreshes must not wait until that is logged.
        drop(state);
        if is_news {
            warn!("what is counted by now can't be read in time: scrapes and pushes have what was before");
        }
    }

    /// How often somebody got what was there before, since no refresh was done in time.
    pub(super) fn in_vain(&self) -> u64 {
        self.lock().in_vain
    }

    /// For how long nobody has come to refresh, or to empty the rings in between, if that is too long.
    pub(super) fn standstill(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let came = state.came.filter(|_| state.is_open)?;
        Some(now.saturating_duration_since(came)).filter(|gone| *gone >= STANDSTILL)
    }

    /// Ends the waits of whoever refreshes, for good.
    pub(super) fn end(&self) {
        self.lock().is_over = true;
        self.wanted.notify_one();
    }

    /// Waits until then, unless somebody asks before. A moment that has come goes first: asking without end delays nothing.
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

    /// Refreshes by this for those who have asked, unless the newest refresh was what they asked for.
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

    /// Refreshes, for so long each time, until the last of those who ask is done; gives how often that was.
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
        // One was there when the refresh began at the latest; who came after that finds it new.
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
