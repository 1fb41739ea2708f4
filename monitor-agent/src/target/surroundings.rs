//! What a process finds around itself, as far as it can be seen from outside.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};

use super::{Target, TargetError};

impl Target {
    /// Those of the variables of the environment that it was started with that have one of these names. All others are
    /// passed over: they are nobody's business, and may be secret.
    pub fn environment(&self, names: &[&str]) -> Result<BTreeMap<String, String>, TargetError> {
        let text = self.read("environ")?;
        self.still_running()?;
        Ok(variables(&text, names))
    }

    /// Its pid as it sees it itself: that in its own namespace.
    #[must_use]
    pub fn own_pid(&self) -> u32 {
        let status = self.process.status().ok();
        let innermost = status.and_then(|status| status.nspid?.last().copied());
        innermost.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(self.pid())
    }

    /// The name that its host has for it. Only known where the agent's host has the same name by construction: where
    /// both are in one namespace of host names.
    #[must_use]
    pub fn host_name(&self) -> Option<String> {
        let namespace = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/uts")).map(|file| file.ino());
        let same = namespace(&self.pid().to_string()).ok()? == namespace("self").ok()?;
        let name = fs::read_to_string("/proc/sys/kernel/hostname").ok().filter(|_| same)?;
        Some(name.trim_end().to_owned())
    }
}

/// The variables with these names in a block such as `/proc/PID/environ`. Bytes that are not UTF-8 are replaced.
fn variables(block: &[u8], names: &[&str]) -> BTreeMap<String, String> {
    let variable = |line: &[u8]| {
        let (name, value) = line.split_at_checked(line.iter().position(|byte| *byte == b'=')?)?;
        let name = names.iter().find(|wanted| wanted.as_bytes() == name)?;
        Some(((*name).to_owned(), String::from_utf8_lossy(value.get(1..)?).into_owned()))
    };
    block.split(|byte| *byte == 0).filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_taken() {
        let block = b"SECRET=a\0NAME=one=two\0NAMED=x\0=\0NAME2\0\xff=y\0EMPTY=\0";
        let found = variables(block, &["NAME", "EMPTY", "ABSENT"]);
        let expected = [("EMPTY", ""), ("NAME", "one=two")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
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
