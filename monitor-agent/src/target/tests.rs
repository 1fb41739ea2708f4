//! Tests with live processes.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::Instant,
};

use super::*;

/// A child process that is killed and reaped at the end of its test.
struct Kept(Child);

impl Kept {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts"))
    }

    fn sleep() -> Self {
        Self::start(Command::new("sleep").arg("600"))
    }

    fn open(&self) -> Target {
        Target::open(self.0.id()).expect("a live child can be opened")
    }

    /// Lets a shell that waits for a line go on.
    fn go(&mut self) {
        let stdin = self.0.stdin.as_mut().expect("a pipe");
        io::Write::write_all(stdin, b"go\n").expect("the shell reads");
    }

    fn end(&mut self) {
        self.0.kill().expect("the child can be killed");
        self.0.wait().expect("the child can be waited for");
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `done`, ten seconds at most.
fn wait_until(mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(10), "not within ten seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the child runs `name`: a spawned child exists before its exec.
fn settled(child: &Kept, name: &OsStr) {
    wait_until(|| fs::read_link(exe_path(child.0.id())).is_ok_and(|link| link.file_name() == Some(name)));
}

/// Starts a shell that becomes `program` once it has read a line. `launcher` runs the shell.
fn shell_that_becomes(program: &str, launcher: &[&str]) -> Kept {
    let script = format!("read -r line; exec {program}");
    let command = [launcher, &["sh", "-c", &script]].concat();
    let child = Kept::start(Command::new(command[0]).args(&command[1..]));
    settled(&child, fs::canonicalize("/bin/sh").expect("a shell").file_name().expect("a name"));
    child
}

#[test]
fn this_process_is_itself() {
    let target = Target::open(std::process::id()).expect("one's own process can be opened");
    let own = fs::metadata(std::env::current_exe().expect("a path")).expect("the test's file is there");
    assert_eq!(target.identity().exe, FileId::of(&own));
    assert_eq!(target.liveness(), Liveness::Running);
    assert_eq!(Path::new(target.exe_name()), std::env::current_exe().expect("a path"));
    assert!(!target.exe_deleted());
}

#[test]
fn memory_reads_what_is_there() {
    let target = Target::open(std::process::id()).expect("one's own process can be opened");
    let text = *b"some bytes of this test";
    let mut copy = [0; 23];
    target.read_memory(text.as_ptr().addr() as u64, &mut copy).expect("one's own stack is readable");
    assert_eq!(copy, text);
    let error = target.read_memory(8, &mut copy).expect_err("the first page is never mapped");
    assert!(matches!(error, TargetError::Io { .. }), "{error}");
}

#[test]
fn many_places_are_read_in_their_order() {
    // More than the kernel accepts at once.
    let numbers: Vec<u32> = (0..3000).collect();
    let addresses: Vec<u64> =
        numbers.iter().rev().map(|number| std::ptr::from_ref(number).addr() as u64).collect();
    let target = Target::open(std::process::id()).expect("one's own process can be opened");
    let memory = target.memory().expect("one's own memory is readable");
    let by_file = AddressSpace { pages: None, ..memory.clone() };
    for memory in [memory, by_file] {
        let mut pieces = vec![[0; 4]; addresses.len()];
        memory.read_each(&addresses, &mut pieces).expect("one's own memory is readable");
        let read: Vec<u32> = pieces.into_iter().rev().map(u32::from_ne_bytes).collect();
        assert_eq!(read, numbers);
        let partly = memory.read_each(&[addresses[0], 8], &mut [[0; 4]; 2]);
        assert!(partly.is_err(), "the first page is never mapped");
    }
}

#[test]
fn whether_it_seems_to_run_is_not_told_while_its_memory_is_read() {
    let target = Target::open(std::process::id()).expect("one's own process can be opened");
    let memory = target.memory().expect("one's own memory is readable");
    assert!(target.seems_running());
    memory.read(target.identity.layout.stack, &mut [0; 8]).expect("its stack is there");
    assert!(target.seems_running());
    assert!(memory.read(8, &mut [0; 8]).is_err(), "the first page is never mapped");
    assert!(target.seems_running());
    // Like a read that waits.
    target.pages.as_ref().expect("a pagemap").reads.fetch_add(1, Ordering::SeqCst);
    assert!(!target.seems_running());
    assert_eq!(target.liveness(), Liveness::Running);
}

#[test]
fn pages_are_there_until_an_exec_or_an_exit() {
    let mut child = shell_that_becomes("sleep 600", &[]);
    let pages = |child: &Kept| child.open().pages.expect("a pagemap");
    let first = pages(&child);
    assert!(first.are_there() && !first.are_gone());
    child.go();
    wait_until(|| first.are_gone());
    assert!(!first.are_there());
    let second = pages(&child);
    assert!(second.are_there() && !second.are_gone());
    // Not reaped: it stays a zombie.
    child.0.kill().expect("the child can be killed");
    wait_until(|| second.are_gone());
    assert!(!second.are_there());
}

#[test]
fn mappings_lead_to_the_bytes_of_the_file() {
    let target = Target::open(std::process::id()).expect("one's own process can be opened");
    let code = target
        .mappings()
        .expect("maps can be read")
        .into_iter()
        .find(|mapping| mapping.perms[2] == b'x')
        .expect("code");
    let (mut in_memory, mut in_file) = ([0; 64], [1; 64]);
    target.read_memory(code.start, &mut in_memory).expect("code is readable");
    target
        .open_exe()
        .expect("the file opens")
        .read_exact_at(&mut in_file, code.offset)
        .expect("it is long enough");
    assert_eq!(in_memory, in_file);
}

#[test]
fn load_bias_is_what_the_auxiliary_vector_says() {
    let target = Target::open(std::process::id()).expect("one's own process can be opened");
    let mut header = [0; 64];
    target.open_exe().expect("the file opens").read_exact_at(&mut header, 0).expect("an ELF header");
    let entry = u64::from_le_bytes(header[24..32].try_into().expect("eight bytes"));
    // SAFETY: getauxval has no preconditions.
    let loaded = unsafe { libc::getauxval(libc::AT_ENTRY) };
    assert_eq!(target.load_bias(0).expect("a bias"), loaded - entry);
    assert!(target.load_bias(u64::MAX).is_err());
}

#[test]
fn a_pid_that_nothing_has_is_refused() {
    for pid in [0, u32::MAX, i32::MAX.unsigned_abs(), 0x8000_0000] {
        assert!(matches!(Target::open(pid), Err(TargetError::NoSuchProcess(p)) if p == pid), "{pid}");
    }
}

#[test]
fn a_thread_is_refused_by_naming_its_process() {
    let tid = std::thread::spawn(|| {
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() }.unsigned_abs();
        Target::open(tid)
    });
    let error = tid.join().expect("no panic").expect_err("a thread is no process");
    let TargetError::Thread { process, .. } = error else { panic!("{error}") };
    assert_eq!(process, std::process::id());
}

#[test]
fn a_kernel_thread_is_refused() {
    // Pid 2 is kthreadd in a machine's own pid namespace. Elsewhere it is something else or nothing.
    if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd") {
        assert!(matches!(Target::open(2), Err(TargetError::KernelThread(2))));
    }
}

#[test]
fn a_zombie_has_ended() {
    let mut child = Kept::sleep();
    let target = child.open();
    child.0.kill().expect("the child can be killed");
    wait_until(|| target.liveness() == Liveness::Exited);
    assert!(matches!(Target::open(child.0.id()), Err(TargetError::Ended(_))));
    child.end();
    assert_eq!(target.liveness(), Liveness::Exited);
    assert!(!target.seems_running());
    assert!(matches!(target.mappings(), Err(TargetError::Ended(_))));
    assert!(matches!(target.open_exe(), Err(TargetError::Ended(_))));
    assert!(matches!(target.read_memory(0x1000, &mut [0]), Err(TargetError::Ended(_))));
}

#[test]
fn the_ends_of_many_are_told_once_each() {
    let mut children: Vec<_> = (0..100).map(|_| Kept::sleep()).collect();
    let targets: Vec<_> = children.iter().map(Kept::open).collect();
    let exits = Exits::of(&targets).expect("descriptors");
    assert_eq!(exits.take().count(), 0);
    children[7].end();
    assert_eq!(exits.take().collect::<Vec<_>>(), [7]);
    assert_eq!(exits.take().count(), 0);
    // A process that nobody has reaped has ended all the same.
    for child in &mut children[10..] {
        child.0.kill().expect("the child can be killed");
    }
    let mut ended = Vec::new();
    wait_until(|| {
        ended.extend(exits.take());
        ended.len() >= 90
    });
    ended.sort_unstable();
    assert_eq!(ended, (10..100).collect::<Vec<_>>());
    assert_eq!(targets[7].liveness(), Liveness::Exited);
    assert_eq!(exits.take().count(), 0);
}

#[test]
fn an_exec_of_another_file_and_of_the_same_file_replaces() {
    let programs = ["sleep 600", "sh -c 'read -r line'"];
    // With random addresses, and without.
    let launchers: [&[&str]; 2] = [&[], &["setarch", "-R"]];
    for (program, launcher) in
        programs.iter().flat_map(|program| launchers.map(|launcher| (program, launcher)))
    {
        let mut child = shell_that_becomes(program, launcher);
        let target = child.open();
        assert_eq!(target.liveness(), Liveness::Running, "{program}");
        assert!(target.seems_running(), "{program}");
        let memory = target.memory().expect("a child's memory is readable");
        let (at, mut words) = (target.identity.layout.stack & !15, [[0; 16]; 2]);
        memory.read(at, &mut words[0]).expect("its stack is there");
        target.read_memory(at, &mut words[1]).expect("its stack is there");
        assert!(memory.is_there() && words[0] == words[1], "{program}: {words:?}");
        child.go();
        wait_until(|| target.liveness() != Liveness::Running);
        assert_eq!(target.liveness(), Liveness::Replaced, "{program}");
        // The former memory goes away a moment after the new one has come.
        wait_until(|| !target.seems_running());
        // Any read now returns another program's memory.
        assert!(!memory.is_there(), "{program}");
        assert!(matches!(target.mappings(), Err(TargetError::Replaced(_))));
        assert!(matches!(target.read_memory(0x1000, &mut [0]), Err(TargetError::Replaced(_))));
    }
}

/// The same file, arguments, environment and addresses: only the address space differs.
#[test]
fn an_exec_of_the_very_same_replaces() {
    let script = r#"echo; read -r line; exec /bin/sh -c "$0" "$0""#;
    let mut child = Kept::start(Command::new("setarch").args(["-R", "/bin/sh", "-c", script, script]));
    let mut output = child.0.stdout.take().expect("a pipe");
    let mut runs = || io::Read::read_exact(&mut output, &mut [0]).expect("the shell says that it runs");
    runs();
    // The first shell adds to the environment that it was given. The second adds nothing to the first's.
    child.go();
    runs();
    let target = child.open();
    assert_eq!(target.liveness(), Liveness::Running);
    child.go();
    runs();
    assert_eq!(target.liveness(), Liveness::Replaced);
    assert_eq!(child.open().identity(), target.identity(), "they are told apart by more");
}

#[test]
fn an_exec_shows_though_somebody_keeps_the_former_memory() {
    let mut child = shell_that_becomes("sleep 600", &[]);
    let mut target = child.open();
    // Another process's pages, which stay.
    target.pages = Target::open(std::process::id()).expect("one's own process can be opened").pages;
    let memory = target.memory().expect("a child's memory is readable");
    assert!(memory.is_there());
    child.go();
    wait_until(|| target.liveness() == Liveness::Replaced);
    assert!(target.seems_running(), "the pages have not stayed");
    assert!(!memory.is_there());
}

#[test]
fn a_target_opened_during_an_exec_is_the_new_program() {
    for _ in 0..300 {
        // By chance, the exec is in progress or not.
        let child = Kept::sleep();
        let target = child.open();
        settled(&child, fs::canonicalize("/bin/sleep").expect("sleep").file_name().expect("a name"));
        if target.exe_name().ends_with("/sleep") {
            std::thread::sleep(Duration::from_millis(1));
            assert_eq!(target.liveness(), Liveness::Running);
        } else {
            wait_until(|| target.liveness() == Liveness::Replaced);
        }
    }
}

#[test]
fn a_deleted_executable_is_still_the_one_that_runs() {
    let path = std::env::temp_dir().join(format!("monitor-deleted-{}", std::process::id()));
    fs::copy(fs::canonicalize("/bin/sleep").expect("sleep"), &path).expect("a copy");
    let child = Kept::start(Command::new(&path).arg("600"));
    settled(&child, path.file_name().expect("a name"));
    let before = FileId::of(&fs::metadata(&path).expect("the copy is there"));
    fs::remove_file(&path).expect("the copy can be removed");
    let target = child.open();
    assert!(target.exe_deleted());
    assert_eq!(Path::new(target.exe_name()), path);
    assert_eq!(target.identity().exe, before);
    assert!(!target.mappings().expect("maps can be read").is_empty());
    let mut magic = [0; 4];
    target.open_exe().expect("the inode still opens").read_exact_at(&mut magic, 0).expect("four bytes");
    assert_eq!(&magic, b"\x7fELF");
}

#[test]
fn a_name_that_has_changed_still_leads_to_the_mappings() {
    let path = std::env::temp_dir().join(format!("monitor-renamed-{}", std::process::id()));
    let renamed = path.with_extension("1");
    fs::copy(fs::canonicalize("/bin/sleep").expect("sleep"), &path).expect("a copy");
    let child = Kept::start(Command::new(&path).arg("600"));
    settled(&child, path.file_name().expect("a name"));
    let mut target = child.open();
    // As on a file system where `stat` and `maps` report different numbers.
    target.identity.exe = FileId { dev: u64::MAX, ino: u64::MAX };
    let lowest = || Some(target.mappings().expect("maps can be read").first()?.start);
    let first = lowest();
    assert_ne!(first, None);
    fs::rename(&path, &renamed).expect("the copy can be renamed");
    assert_eq!(lowest(), first);
    fs::remove_file(&renamed).expect("the copy can be removed");
    assert_eq!(lowest(), first);
}

#[test]
fn a_name_that_is_no_text_does_no_harm() {
    let name = OsStr::from_bytes(b"a) \xff\n(b: ");
    let path = std::env::temp_dir().join(format!("monitor-name-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a directory");
    let path = path.join(name);
    fs::copy(fs::canonicalize("/bin/sleep").expect("sleep"), &path).expect("a copy");
    let child = Kept::start(Command::new(&path).arg("600"));
    settled(&child, path.file_name().expect("a name"));
    let target = child.open();
    assert_eq!(target.liveness(), Liveness::Running);
    assert!(!target.mappings().expect("maps can be read").is_empty());
    fs::remove_dir_all(path.parent().expect("a directory")).expect("it can be removed");
}
