//! Another tool at the same functions: the kernel's own uprobe events, through tracefs.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};

/// The kernel's tracing, with a buffer of its own.
pub struct Tracing {
    /// Where a private tracefs is mounted.
    mounted: PathBuf,
    /// A unique name.
    name: String,
}

impl Tracing {
    /// Mounts tracefs and creates an instance. Needs root.
    pub fn open() -> Result<Self> {
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let name = format!("monitor_{}_{}", std::process::id(), OPENED.fetch_add(1, Ordering::Relaxed));
        let mounted = std::env::temp_dir().join(format!("{name}-tracefs"));
        fs::create_dir_all(&mounted)?;
        let status = Command::new("mount").args(["-t", "tracefs", "none"]).arg(&mounted).status()?;
        ensure!(status.success(), "cannot mount tracefs: {status}");
        let tracing = Self { mounted, name };
        fs::create_dir(tracing.instance())?;
        fs::write(tracing.instance().join("buffer_size_kb"), "8192")?;
        Ok(tracing)
    }

    /// Places a probe at a file offset, for all processes that run the file. `values` has what to record of each hit,
    /// in the format of `Documentation/trace/uprobetracer.rst` in the kernel.
    pub fn place(&self, event: &str, file: &Path, offset: u64, values: &str) -> Result<Event<'_>> {
        let line = format!("p:{}/{event} {}:{offset:#x} {values}", self.name, file.display());
        self.define(&line)?;
        let event = Event { tracing: self, name: event.to_owned(), file: file.to_owned() };
        event.enable(true)?;
        Ok(event)
    }

    fn define(&self, line: &str) -> Result<()> {
        let mut events = OpenOptions::new().append(true).open(self.mounted.join("uprobe_events"))?;
        events.write_all(line.as_bytes()).with_context(|| line.to_owned())
    }

    fn instance(&self) -> PathBuf {
        self.mounted.join("instances").join(&self.name)
    }

    /// Returns the lines of all hits so far, oldest first.
    pub fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.instance().join("trace"))?;
        Ok(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.instance());
        let _ = Command::new("umount").arg(&self.mounted).status();
        let _ = fs::remove_dir(&self.mounted);
    }
}

/// A probe of the kernel's own tracing. It is removed when dropped.
pub struct Event<'a> {
    tracing: &'a Tracing,
    name: String,
    file: PathBuf,
}

impl Event<'_> {
    fn enable(&self, enabled: bool) -> Result<()> {
        let directory = self.tracing.instance().join("events").join(&self.tracing.name).join(&self.name);
        let value = if enabled { "1" } else { "0" };
        fs::write(directory.join("enable"), value).with_context(|| directory.display().to_string())
    }

    /// Returns how often the probe was hit, in all processes.
    pub fn hits(&self) -> Result<u64> {
        // The columns: file, event, hits.
        let profile = fs::read_to_string(self.tracing.mounted.join("uprobe_profile"))?;
        let of_file = format!("{} ", self.file.display());
        for line in profile.lines().filter(|line| line.trim_start().starts_with(&of_file)) {
            let mut words = line.split_whitespace().rev();
            let hits = words.next();
            if words.next() == Some(&self.name) {
                return hits.and_then(|hits| hits.parse().ok()).with_context(|| line.to_owned());
            }
        }
        anyhow::bail!("{} is not in\n{profile}", self.name)
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        let _ = self.enable(false);
        let _ = self.tracing.define(&format!("-:{}/{}", self.tracing.name, self.name));
    }
}
