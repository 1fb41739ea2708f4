//! The Unix socket where programs read the event stream.
//!
//! Only its owner may connect. The agent reads nothing from a reader.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::{UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use thiserror::Error;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{UnixListener, UnixStream},
    task::{JoinSet, coop::consume_budget},
    time::{interval, sleep},
};
use tracing::warn;

use super::{Format, Outbox, Readers};
use crate::text::printable;

/// The maximum number of readers at once; further readers are turned away.
const READERS: usize = 16;
/// The capacity of a reader's outbox, in bytes.
const OUTBOX_BYTES: usize = 4 << 20;
/// The maximum length of a write, in bytes, except for a longer line. A write of up to this size goes into one buffer of
/// the kernel, completely or not at all (`unix_stream_sendmsg` in `net/unix/af_unix.c` @ v6.18). So no reader is left
/// with half a line when the agent ends.
const WHOLE_BYTES: usize = 32 << 10;
/// The size of a connection's buffer, in bytes, of which the kernel uses up to the double for data and its own books.
/// With room for the lines of one pass over the rings, nobody has to wait for the reader in between.
const BUFFER_BYTES: u32 = 2 << 20;
/// How often the agent checks whether a reader is still there while there is nothing to write.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The maximum length of a socket's path, in bytes (`sun_path`, less the 0 at its end).
const PATH_BYTES: usize = 107;
/// The maximum number of connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// The mode of the socket's file: read and write for the owner, nothing for others.
const OWNER_ONLY: u32 = 0o600;
/// How often the lock is tried while another agent starts, and the pause between two tries.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// An error that prevents a socket at a path.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path exists and is not a socket.
    #[error("{0} is there and is no socket: give another path, or remove it")]
    Occupied(String),
    /// Another process serves the socket.
    #[error("{0} is served by another process: give another path")]
    Live(String),
    /// The path is longer than the kernel allows for a socket.
    #[error("{0} is too long a path for a socket: give one of at most {PATH_BYTES} bytes")]
    TooLong(String),
    /// Another error of the system.
    #[error("can't listen on {path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A bound socket. Its file is removed on drop.
#[derive(Debug)]
pub struct EventSocket {
    listener: StdListener,
    path: PathBuf,
    /// The device and inode of the file, so that another agent's file at the path is not removed.
    file: (u64, u64),
}

impl EventSocket {
    /// Creates the socket, accessible only to its owner from the first moment on. A socket that nobody serves any more
    /// is replaced. Links are not followed.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: shown(path), source };
        if path.as_os_str().len() > PATH_BYTES {
            return Err(SocketError::TooLong(shown(path)));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        // Two agents that start at once must not both find an old socket dead: the second would remove the first one's.
        let directory = lock(parent.unwrap_or(Path::new("."))).map_err(failed)?;
        remove_dead(path)?;
        let listener = listen(path).map_err(failed)?;
        drop(directory);
        let found = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), file: (found.dev(), found.ino()) })
    }

    /// Accepts readers until `shutdown` resolves, then waits for the connected ones.
    pub async fn serve(self, readers: Arc<Readers>, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let mut shutdown = std::pin::pin!(shutdown);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < READERS => {
                        connections.spawn(write_for(stream, Arc::clone(&readers)));
                    }
                    Ok(_) => warn!("{READERS} readers of events are there: one more was turned away"),
                    Err(error) => {
                        warn!(%error, "cannot accept a reader of events");
                        sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(self);
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

impl Drop for EventSocket {
    fn drop(&mut self) {
        let is_own = |found: fs::Metadata| (found.dev(), found.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_own) {
            // If the file can't be removed, the next agent replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes lines to one reader until the stream ends or the reader disconnects.
async fn write_for(stream: UnixStream, readers: Arc<Readers>) {
    // From here on tokio knows nothing of the connection: it would have this thread woken up each time the reader has
    // taken something.
    let Ok(stream) = stream.into_std() else { return };
    enlarge_buffer(&stream);
    let outbox = Arc::new(Outbox::new(OUTBOX_BYTES, Format::Ndjson));
    readers.add(Arc::clone(&outbox));
    tokio::select! {
        // After any error, the reader is gone.
        _ = write_lines(&outbox, &stream) => {}
        () = hung_up(stream.as_raw_fd()) => {}
    }
    readers.remove(&outbox);
}

async fn write_lines(outbox: &Outbox, stream: &StdStream) -> io::Result<()> {
    while let Some(text) = outbox.next(WHOLE_BYTES).await {
        write_all(stream, &text).await?;
        outbox.taken(&text);
        // Other readers and scrapes get their turns.
        consume_budget().await;
    }
    Ok(())
}

async fn write_all(mut stream: &StdStream, text: &[u8]) -> io::Result<()> {
    let mut rest = text;
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // SAFETY: the descriptor stays open and the same as long as it is borrowed.
                let waiting = unsafe { AsyncFd::register_with_interest(stream.as_fd(), Interest::WRITABLE) }?;
                waiting.writable().await?.retain_ready();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Enlarges a connection's buffer, as far as this is allowed.
fn enlarge_buffer(stream: &StdStream) {
    // Beyond `net.core.wmem_max`, which takes CAP_NET_ADMIN.
    if force_buffer(stream, BUFFER_BYTES).is_err() {
        // With a smaller buffer the lines are the same, and this thread waits more often.
        let _ = SockRef::from(stream).set_send_buffer_size(BUFFER_BYTES as usize);
    }
}

fn force_buffer(stream: &StdStream, bytes: u32) -> io::Result<()> {
    const LENGTH: libc::socklen_t = 4;
    let (descriptor, bytes) = (stream.as_raw_fd(), (&raw const bytes).cast());
    // SAFETY: passes a valid number and its length, and the descriptor is open.
    let done = unsafe { libc::setsockopt(descriptor, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes, LENGTH) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Resolves when the other end of a connection is closed. A peer that has only shut down its writing side still reads.
async fn hung_up(descriptor: i32) {
    let mut look = interval(LOOK_EVERY);
    loop {
        look.tick().await;
        let mut state = libc::pollfd { fd: descriptor, events: 0, revents: 0 };
        // SAFETY: the array has one valid entry, and the call does not wait. The caller holds the descriptor open.
        let found = unsafe { libc::poll(&raw mut state, 1, 0) };
        if found == 1 && state.revents & (libc::POLLHUP | libc::POLLERR) != 0 {
            return;
        }
    }
}

/// Locks a directory until the returned file is dropped.
fn lock(directory: &Path) -> io::Result<File> {
    let directory = File::open(directory)?;
    for _ in 0..LOCK_TRIES {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "another process holds the lock of its directory"))
}

/// Removes a socket that nobody serves any more.
fn remove_dead(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: shown(path), source };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::Occupied(shown(path)));
    }
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        // A socket whose queue is full is served, too: connecting would wait.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        _ => Err(SocketError::Live(shown(path))),
    }
}

/// Tries to connect, without waiting.
fn connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn listen(path: &Path) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode of the socket (`unix_bind_bsd` in net/unix/af_unix.c). So nobody else can connect,
    // not even in the moment before the mode could be changed.
    let file = File::from(OwnedFd::from(socket.try_clone()?));
    file.set_permissions(Permissions::from_mode(OWNER_ONLY))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(OwnedFd::from(socket).into())
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::{
        events::outbox::{Batch, Loss},
        pipeline::{EventKind, LossReason},
    };

    /// A separate directory for each test, removed after it.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("monitor-agent-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }

        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn only_the_owner_may_connect_and_nothing_stays() {
        let directory = Directory::new("owner");
        let path = directory.join("socket");
        let socket = EventSocket::bind(&path).expect("a socket");
        let mode = fs::symlink_metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY, "{mode:o}");
        StdStream::connect(&path).expect("a connection");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = Directory::new("dead");
        let path = directory.join("socket");
        // A killed agent leaves the socket like this.
        drop(StdListener::bind(&path).expect("a socket"));
        assert!(path.exists());
        let socket = EventSocket::bind(&path).expect("a socket in its place");
        assert!(matches!(EventSocket::bind(&path), Err(SocketError::Live(_))));
        // The socket of a stopped agent, which accepts nobody, is live as well.
        let mut waiting = Vec::new();
        while connect(&path).is_ok() {
            waiting.push(connect(&path));
        }
        assert!(matches!(EventSocket::bind(&path), Err(SocketError::Live(_))));
        drop(socket);
    }

    #[test]
    fn other_files_stay_as_they_are() {
        let directory = Directory::new("other");
        let file = directory.join("file");
        fs::write(&file, "mine").expect("a file");
        assert!(matches!(EventSocket::bind(&file), Err(SocketError::Occupied(_))));
        // A link is not a socket, wherever it leads.
        for (name, leads_to) in [("to-file", "file"), ("to-nothing", "nothing")] {
            let link = directory.join(name);
            let _ = symlink(directory.join(leads_to), &link);
            assert!(matches!(EventSocket::bind(&link), Err(SocketError::Occupied(_))), "{name}");
        }
        assert_eq!(fs::read_to_string(&file).expect("the file"), "mine");
        assert!(!directory.join("nothing").exists());
        let nowhere = directory.join("no/such/directory");
        assert!(matches!(EventSocket::bind(&nowhere), Err(SocketError::Io { .. })));
    }

    /// All that was put in is more than the connection's buffer holds.
    #[test]
    fn a_reader_that_is_late_gets_all_lines_whole() {
        const LINES: usize = 100_000;
        let long = "x".repeat(99);
        let outbox = Outbox::new(usize::MAX, Format::Ndjson);
        let mut batch = Batch::default();
        let loss = Loss { target: 7, event: EventKind::Finish, reason: LossReason::SlowReader };
        for _ in 0..LINES {
            batch.text.extend_from_slice(format!("{long}\n").as_bytes());
            batch.end_line(loss, 1);
        }
        outbox.put(&batch, 0);
        outbox.close(0);
        let (reader, writer) = StdStream::pair().expect("two ends");
        writer.set_nonblocking(true).expect("an own end");
        enlarge_buffer(&writer);
        let reading = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            io::read_to_string(reader).expect("text")
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(write_lines(&outbox, &writer)).expect("a reader");
        drop(writer);
        let text = reading.join().expect("no panic");
        assert_eq!(text.lines().filter(|line| *line == long).count(), LINES);
        assert_eq!(text.len(), LINES * (long.len() + 1));
    }

    #[test]
    fn a_connection_has_a_larger_buffer_than_others() {
        let (other, stream) = StdStream::pair().expect("two ends");
        enlarge_buffer(&stream);
        let sizes = [&stream, &other].map(|stream| SockRef::from(stream).send_buffer_size().expect("a size"));
        assert!(sizes[0] > sizes[1], "{sizes:?}");
    }

    #[test]
    fn a_file_that_replaced_the_socket_is_not_removed() {
        let directory = Directory::new("replaced");
        let path = directory.join("socket");
        let socket = EventSocket::bind(&path).expect("a socket");
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, "mine").expect("a file");
        drop(socket);
        assert_eq!(fs::read_to_string(&path).expect("the file"), "mine");
    }
}
