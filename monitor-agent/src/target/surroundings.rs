//! The surroundings of a process, as far as they are visible from outside.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::{Target, TargetError, into_io, status_of};

/// The most bytes that are read of an environment. An exec gives a process no more, arguments included
/// (`bprm_stack_limits` in fs/exec.c @ v6.18). A process can later declare that its environment lies elsewhere and is
/// larger (`PR_SET_MM_ENV_END`, prctl(2)).
const ENVIRONMENT_MAX: u64 = 6 << 20;
/// The most bytes of a variable after an exec, its name included (`MAX_ARG_STRLEN` in include/uapi/linux/binfmts.h @
/// v6.18).
const VARIABLE_MAX: usize = 128 << 10;

impl Target {
    /// Returns the variables with these names from the environment with which the process was started. All others are
    /// skipped, since they may be secret. So are variables longer than an exec allows.
    pub fn environment(&self, names: &[&str]) -> Result<BTreeMap<String, String>, TargetError> {
        let file = self.process.open_relative("environ").map_err(into_io);
        let block = file.and_then(first_of).map_err(|error| self.explain("environ", error))?;
        self.still_running()?;
        Ok(variables(&block, names))
    }

    /// The process's pid in its own pid namespace.
    #[must_use]
    pub fn own_pid(&self) -> u32 {
        let status = status_of(&self.process).ok();
        status.as_deref().and_then(innermost_pid).unwrap_or(self.pid())
    }

    /// Returns an id that distinguishes the process from every other, on any machine, as long as it lives: boot id, pid
    /// and start time. Another agent that sees the process under the same pid returns the same id.
    #[must_use]
    pub fn instance(&self) -> String {
        // Without the boot id, the other two still distinguish the processes that one agent sees.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        format!("{}:{}:{}", boot.trim_end(), self.pid(), self.identity.start_time)
    }

    /// The host name of the process. Known only if process and agent are in the same UTS namespace, and so have the
    /// same host name by construction.
    #[must_use]
    pub fn host_name(&self) -> Option<String> {
        let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/uts")).map(|file| file.ino());
        let same = namespace(&self.pid().to_string()).ok()? == namespace("self").ok()?;
        let name = fs::read_to_string("/proc/sys/kernel/hostname").ok().filter(|_| same)?;
        Some(name.trim_end().to_owned())
    }
}

/// Returns the CPU quota of this process's cgroup, or of the nearest cgroup above it that has one, as far as they are
/// visible: quota and period in microseconds. `None` if there is no quota, or no cgroup v2 hierarchy.
#[must_use]
pub fn own_cpu_quota() -> Option<String> {
    cpu_quota(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The same for a process in these cgroups of the hierarchy at `root`.
fn cpu_quota(root: &Path, groups: &str) -> Option<String> {
    let own = root.join(groups.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let around = own.ancestors().take_while(|group| group.starts_with(root));
    let mut limits = around.filter_map(|group| fs::read_to_string(group.join("cpu.max")).ok());
    limits.find(|limit| !limit.starts_with("max")).map(|limit| limit.trim_end().to_owned())
}

/// Returns the pid in the innermost namespace, from the text of `/proc/PID/status`.
fn innermost_pid(status: &str) -> Option<u32> {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_whitespace().last()?.parse().ok()
}

/// Reads the first [`ENVIRONMENT_MAX`] bytes of an environment.
fn first_of(environment: impl Read) -> io::Result<Vec<u8>> {
    let mut block = Vec::new();
    environment.take(ENVIRONMENT_MAX).read_to_end(&mut block)?;
    Ok(block)
}

/// Returns the variables with these names from a block such as `/proc/PID/environ`. Bytes that are not UTF-8 are
/// replaced.
fn variables(block: &[u8], names: &[&str]) -> BTreeMap<String, String> {
    let variable = |line: &[u8]| {
        let (name, value) = line.split_at_checked(line.iter().position(|byte| *byte == b'=')?)?;
        let name = names.iter().find(|wanted| wanted.as_bytes() == name)?;
        Some(((*name).to_owned(), String::from_utf8_lossy(value.get(1..)?).into_owned()))
    };
    let lines = block.split(|byte| *byte == 0).filter(|line| line.len() <= VARIABLE_MAX);
    lines.filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_is_that_in_the_innermost_namespace() {
        let status = "Name:\tcut-here-\u{fffd}\nPid:\t4000\nNSpid:\t4000\t17\t1\nNSsid:\t9\n";
        assert_eq!(innermost_pid(status), Some(1));
        assert_eq!(innermost_pid("Pid:\t4000\n"), None);
        let own = Target::open(std::process::id()).expect("the test itself");
        assert_eq!(status_of(&own.process).ok().as_deref().and_then(innermost_pid), Some(own.pid()));
    }

    #[test]
    fn only_what_is_asked_for_is_taken() {
        let block = b"SECRET=a\0NAME=one=two\0NAMED=x\0=\0NAME2\0\xff=y\0EMPTY=\0";
        let found = variables(block, &["NAME", "EMPTY", "ABSENT"]);
        let expected = [("EMPTY", ""), ("NAME", "one=two")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn no_environment_is_too_large() {
        let block = first_of(io::repeat(b'x')).expect("endless bytes");
        assert_eq!(block.len(), 6 << 20);
        let longest = format!("NAME={}", "x".repeat(VARIABLE_MAX - 5));
        let found = variables(format!("{longest}\0EMPTY=\0").as_bytes(), &["NAME", "EMPTY"]);
        assert_eq!((found["NAME"].len(), found.len()), (VARIABLE_MAX - 5, 2));
        let found = variables(format!("{longest}x\0EMPTY=\0").as_bytes(), &["NAME", "EMPTY"]);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["EMPTY"]);
    }

    #[test]
    fn an_instance_is_one_process_whoever_looks() {
        let own = || Target::open(std::process::id()).expect("this process").instance();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a child");
        let other = Target::open(child.id()).expect("the child").instance();
        child.kill().expect("a child to kill");
        child.wait().expect("a child that has ended");
        assert_eq!(own(), own());
        assert_ne!(own(), other);
        let parts: Vec<_> = other.split(':').map(str::len).collect();
        assert!(parts.len() == 3 && parts[0] == 36 && !parts.contains(&0), "{other}");
    }

    #[test]
    fn a_quota_is_that_of_the_own_cgroup_or_of_one_around_it() {
        let root = std::env::temp_dir().join(format!("monitor-agent-quota-{}", std::process::id()));
        let limit = |group: &str, text: &str| {
            let group = root.join(group);
            fs::create_dir_all(&group).expect("a directory");
            fs::write(group.join("cpu.max"), text).expect("a file");
        };
        limit("other", "1000 100000\n");
        limit("pod/agent", "max 100000\n");
        let quota = || cpu_quota(&root, "1:cpu:/other\n0::/pod/agent\n");
        assert_eq!(quota(), None);
        limit("pod", "5000 100000\n");
        assert_eq!(quota().as_deref(), Some("5000 100000"));
        limit("pod/agent", "4000 50000\n");
        assert_eq!(quota().as_deref(), Some("4000 50000"));
        assert_eq!(cpu_quota(&root, "1:cpu:/other\n"), None);
        fs::remove_dir_all(&root).expect("the directory");
    }

    #[test]
    fn the_own_surroundings_are_known() {
        let target = Target::open(std::process::id()).expect("this process");
        let path = std::env::var("PATH").expect("a path");
        assert_eq!(target.environment(&["PATH"]).expect("an environment")["PATH"], path);
        assert_eq!(target.own_pid(), std::process::id());
        let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        assert_eq!(target.host_name().as_deref(), Some(name.trim_end()));
    }
}
