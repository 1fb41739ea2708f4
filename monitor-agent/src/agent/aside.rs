//! Reads of a target's memory, which may take as long as the target likes.
//!
//! A page of the target's memory may have to be supplied by someone else: a page of a file on FUSE, or one with a
//! userfaultfd. A read of it waits in the kernel until the page comes or the target is gone. Only SIGKILL ends the wait
//! sooner, and not always: a request that a FUSE daemon has taken is waited for to its end. So memory is read on a
//! thread of its own. A caller begins a read, and later takes what it has given by then. There is never more than one
//! thread; reads that are begun at the same time run on it one after the other. Once a caller has waited for the thread
//! in vain, no other read begins until the thread is free, and no caller waits again.

use std::{
    collections::VecDeque,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use tracing::warn;

use crate::threads::NotDone;

/// How long a scrape or a push waits for all its reads together, once it has begun them. Far longer than any read takes
/// on a machine that is not overloaded.
pub(super) const FOR_A_SCRAPE: Duration = Duration::from_secs(1);

/// Reads for one purpose. See the [module](self).
#[derive(Debug)]
pub(super) struct Aside(Arc<Queue>);

/// A read that has begun, or that could not begin.
#[derive(Debug)]
pub(super) struct Awaited<T> {
    given: Receiver<T>,
    /// Why the read could not begin, if there was no thread for it.
    refusal: Option<NotDone>,
    began: Instant,
    queue: Arc<Queue>,
}

impl Aside {
    /// Creates a queue for the target of this name. `left_out` says, for the log, what is missing while its memory does
    /// not come.
    pub(super) fn new(name: &str, left_out: &str) -> Self {
        let about = format!("{name}: its memory does not come when it is read, so {left_out}");
        Self(Arc::new(Queue { state: Mutex::default(), about, is_told: AtomicBool::new(false) }))
    }

    /// Queues a read, which runs as soon as the thread is free. Does not wait.
    pub(super) fn begin<T: Send + 'static>(
        &self,
        reading: impl FnOnce() -> T + Send + 'static,
    ) -> Awaited<T> {
        let (give, given) = mpsc::sync_channel(1);
        let began = Instant::now();
        let added = self.0.add(Box::new(move || {
            // Fails if the caller no longer waits.
            let _ = give.send(reading());
        }));
        Awaited { given, refusal: added.err(), began, queue: Arc::clone(&self.0) }
    }
}

impl<T> Awaited<T> {
    /// Returns why the read will never give anything, if there was no thread for it.
    pub(super) fn refusal(&self) -> Option<&NotDone> {
        self.refusal.as_ref()
    }

    /// Waits until `until` for the result of the read, and returns it; `None` if it has not come by then, or
    /// immediately if it never will. A result that comes too late is dropped: it describes a time that is over.
    pub(super) fn take(self, until: Instant) -> Option<T> {
        match self.given.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(read) => Some(read),
            Err(RecvTimeoutError::Timeout) => {
                self.queue.give_up();
                self.queue.tell_late(self.began);
                None
            }
            // The read did not begin, or it panicked, which was reported.
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Returns the result if it has come, without waiting, for callers that can use it however late it is. Ready with
    /// `None` if it will never come.
    pub(super) fn poll(&self) -> Poll<Option<T>> {
        match self.given.try_recv() {
            Ok(read) => Poll::Ready(Some(read)),
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => {
                if self.began.elapsed() >= FOR_A_SCRAPE {
                    self.queue.tell_late(self.began);
                }
                Poll::Pending
            }
        }
    }
}

/// A read that hands over its own result.
type Reading = Box<dyn FnOnce() + Send>;

/// State shared by the thread and its callers.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// Whose memory it is, and what is missing while it does not come.
    about: String,
    is_told: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The reads to run next. Dropping one tells its caller that no result comes.
    next: VecDeque<Reading>,
    /// The thread exists.
    is_busy: bool,
    /// A caller has waited for the thread in vain.
    is_held_up: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { next, is_busy, is_held_up } = self;
        write!(f, "{} to read, busy: {is_busy}, held up: {is_held_up}", next.len())
    }
}

impl Queue {
    /// Fails if the thread can't be created.
    fn add(self: &Arc<Self>, reading: Reading) -> Result<(), NotDone> {
        let mut state = self.lock();
        if state.is_held_up {
            return Ok(());
        }
        state.next.push_back(reading);
        if state.is_busy {
            return Ok(());
        }
        let queue = Arc::clone(self);
        match thread::Builder::new().name("memory".to_owned()).spawn(move || queue.read_all()) {
            Ok(_) => {
                state.is_busy = true;
                Ok(())
            }
            Err(error) => {
                state.next.clear();
                let refusal = NotDone::NoThread(error);
                self.tell(&refusal.to_string());
                Err(refusal)
            }
        }
    }

    fn read_all(&self) {
        while let Some(reading) = self.take_next() {
            // A panic is reported, and does not keep the other reads from running.
            let _ = panic::catch_unwind(AssertUnwindSafe(reading));
        }
    }

    fn take_next(&self) -> Option<Reading> {
        let mut state = self.lock();
        let next = state.next.pop_front();
        state.is_busy = next.is_some();
        state.is_held_up = false;
        next
    }

    /// Lets no caller wait any longer for what the thread does now.
    fn give_up(&self) {
        let mut state = self.lock();
        state.is_held_up = state.is_busy;
        state.next.clear();
    }

    fn tell_late(&self, began: Instant) {
        self.tell(&format!("not within {} ms", began.elapsed().as_millis()));
    }

    /// Logs once what is missing from now on. The metrics show it every time.
    fn tell(&self, why: &str) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            warn!("{} ({why})", self.about);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::AtomicU32,
        mpsc::{Sender, channel},
    };

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    /// Far longer than anything here takes that does not wait in vain.
    const LONG: Duration = Duration::from_secs(30);

    fn after(time: Duration) -> Instant {
        Instant::now() + time
    }

    fn aside() -> Aside {
        Aside::new("target", "nothing is shown")
    }

    /// Begins a read that returns `number` once its page is sent.
    fn read_page(aside: &Aside, number: u32) -> (Sender<()>, Awaited<u32>) {
        let (come, page) = channel();
        let reading = aside.begin(move || {
            let _ = page.recv();
            number
        });
        (come, reading)
    }

    /// Returns the result of a read, however late it is.
    fn poll_to_the_end<T>(awaited: &Awaited<T>) -> Option<T> {
        loop {
            match awaited.poll() {
                Poll::Ready(read) => return read,
                Poll::Pending => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    #[test]
    fn a_reading_that_is_held_up_is_waited_for_once_and_no_other_begins() {
        let aside = aside();
        let (come, held_up) = read_page(&aside, 1);
        assert_eq!(held_up.take(after(SHORT)), None);
        let begun = Arc::new(AtomicU32::new(0));
        let read = || {
            let begun = Arc::clone(&begun);
            aside.begin(move || begun.fetch_add(1, Ordering::SeqCst))
        };
        let again = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(read().take(after(LONG)), None);
        }
        assert!(again.elapsed() < LONG, "waited again");
        assert_eq!(begun.load(Ordering::SeqCst), 0, "another was begun");
        come.send(()).expect("the thread waits");
        // The result that comes now is old.
        let read = std::iter::repeat_with(|| aside.begin(|| 2).take(after(LONG))).take(1_000_000);
        assert_eq!(read.flatten().next(), Some(2));
    }

    #[test]
    fn one_that_panics_is_over() {
        let aside = aside();
        let (come, first) = read_page(&aside, 1);
        let panics = aside.begin(|| -> u32 { panic!("in a test") });
        let last = aside.begin(|| 3);
        come.send(()).expect("the thread waits");
        let until = after(LONG);
        assert_eq!([first, panics, last].map(|reading| reading.take(until)), [Some(1), None, Some(3)]);
        assert_eq!(aside.begin(|| 4).take(after(LONG)), Some(4));
    }

    #[test]
    fn those_who_ask_at_the_same_time_are_served_one_after_the_other() {
        let aside = aside();
        let reading = Arc::new(AtomicU32::new(0));
        let begin = |number| {
            let reading = Arc::clone(&reading);
            aside.begin(move || {
                assert_eq!(reading.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
                thread::sleep(Duration::from_millis(2));
                reading.fetch_sub(1, Ordering::SeqCst);
                number
            })
        };
        let all: Vec<_> = (0..20).map(begin).collect();
        let until = after(LONG);
        let read: Vec<_> = all.into_iter().map(|reading| reading.take(until)).collect();
        assert_eq!(read, (0..20).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn who_stands_behind_one_that_is_held_up_waits_no_longer() {
        let aside = aside();
        let (_come, held_up) = read_page(&aside, 1);
        let behind = aside.begin(|| 2);
        assert_eq!(held_up.take(after(SHORT)), None);
        let began = Instant::now();
        assert_eq!(behind.take(after(LONG)), None);
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn many_that_are_held_up_take_no_more_time_than_one_and_none_of_the_others() {
        let held_up: Vec<_> = (0..100).map(|_| read_page(&aside(), 1)).collect();
        let (come, good) = read_page(&aside(), 2);
        let (began, patience) = (Instant::now(), Duration::from_millis(500));
        come.send(()).expect("the thread waits");
        let mut pages = Vec::new();
        for (come, reading) in held_up {
            pages.push(come);
            assert_eq!(reading.take(began + patience), None);
        }
        // The deadline is over by now, but this result came before it.
        assert_eq!(good.take(began + patience), Some(2));
        let took = began.elapsed();
        assert!(took >= patience && took < 5 * patience, "{took:?}");
    }

    #[test]
    fn what_comes_late_is_there_for_whoever_does_not_wait() {
        let aside = aside();
        let (come, late) = read_page(&aside, 1);
        thread::sleep(3 * SHORT);
        let began = Instant::now();
        for _ in 0..1_000 {
            assert_eq!(late.poll(), Poll::Pending);
        }
        assert!(began.elapsed() < FOR_A_SCRAPE, "waited");
        come.send(()).expect("the thread waits");
        assert_eq!(poll_to_the_end(&late), Some(1));
        assert_eq!(poll_to_the_end(&aside.begin(|| -> u32 { panic!("in a test") })), None);
    }
}
