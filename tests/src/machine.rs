//! A virtual machine that runs another kernel, without a disk and with its programs in an initramfs.
//!
//! QEMU emulates the processor, so any machine can run it. `tests/machine/init` runs inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{paths, process};

/// The environment variable that [`kernels`] reads.
const VARIABLE: &str = "MONITOR_KERNELS";
const BUSYBOX: &str = "/bin/busybox";
/// How many of the last lines of a machine's console an error has.
const LAST_LINES: usize = 40;

/// Returns the kernels to boot: the files in `MONITOR_KERNELS`, separated by colons.
pub fn kernels() -> Result<Vec<PathBuf>> {
    let named = std::env::var_os(VARIABLE).with_context(|| {
        format!("{VARIABLE} names no kernels to boot: `cargo xtask test` fetches Debian's")
    })?;
    let kernels: Vec<_> = std::env::split_paths(&named).collect();
    for kernel in &kernels {
        ensure!(kernel.is_file(), "{VARIABLE} names {}, which is no file", kernel.display());
    }
    Ok(kernels)
}

/// An archive of files, which becomes a kernel's initramfs.
#[derive(Debug, Default)]
pub struct Files {
    archive: Vec<u8>,
    directories: BTreeSet<PathBuf>,
    libraries: BTreeSet<PathBuf>,
    entries: u32,
}

impl Files {
    /// Creates an archive with what every machine needs: a shell and the init script.
    pub fn new() -> Result<Self> {
        let mut files = Self::default();
        files.add_program("busybox", Path::new(BUSYBOX)).context("Debian's busybox-static is needed")?;
        let init = paths::tests().join("machine/init");
        files.add(
            "init",
            0o755,
            &fs::read(&init).with_context(|| format!("cannot read {}", init.display()))?,
        );
        Ok(files)
    }

    /// Adds a program under a new name, without symbols and debug information, together with the libraries that it
    /// needs.
    pub fn add_stripped(&mut self, name: &str, program: &Path) -> Result<()> {
        let stripped = directory()?.join(format!("{name}-{}", std::process::id()));
        run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
        let added = self.add_program(name, &stripped);
        fs::remove_file(stripped)?;
        added
    }

    /// Adds a program under a new name, together with the libraries that it needs.
    pub fn add_program(&mut self, name: &str, program: &Path) -> Result<()> {
        let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        self.add(&format!("bin/{name}"), 0o755, &content);
        // `ldd` fails for programs that need none.
        let needs = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
        for library in
            String::from_utf8(needs.stdout)?.split_whitespace().filter(|word| word.starts_with('/'))
        {
            let library = PathBuf::from(library);
            if self.libraries.insert(library.clone()) {
                let content =
                    fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
                self.add(&library.to_string_lossy()[1..], 0o755, &content);
            }
        }
        Ok(())
    }

    /// Adds a file at a path below the root.
    pub fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        let parents: Vec<_> = Path::new(path).ancestors().skip(1).map(Path::to_path_buf).collect();
        for parent in parents.into_iter().rev().filter(|parent| parent.as_os_str() != "") {
            if self.directories.insert(parent.clone()) {
                self.entry(&parent.to_string_lossy(), 0o040_755, &[]);
            }
        }
        self.entry(path, 0o100_000 | mode, content);
    }

    /// Adds an entry in cpio's `newc` format, which kernels read: thirteen numbers, the path, the content.
    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("files are far smaller than 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths are short");
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.archive.extend_from_slice(b"070701");
        for number in numbers {
            self.archive.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.archive.extend_from_slice(path.as_bytes());
        self.archive.push(0);
        self.pad();
        self.archive.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }

    /// Writes the archive to a file and returns its path.
    pub fn write(mut self) -> Result<PathBuf> {
        self.entry("TRAILER!!!", 0, &[]);
        let path = directory()?.join(format!("files-{}", std::process::id()));
        File::create(&path)?.write_all(&self.archive)?;
        Ok(path)
    }
}

/// What a machine has reported: texts by name.
pub type Report = BTreeMap<String, String>;

/// Boots a kernel with an archive of files, waits until it powers off, and returns its report. If the report is not
/// complete within `patience`, fails with the end of the machine's console.
pub fn boot(kernel: &Path, files: &Path, patience: Duration) -> Result<Report> {
    let name = kernel.file_name().unwrap_or_default().to_string_lossy();
    let [console, told] =
        ["console", "told"].map(|what| files.with_file_name(format!("{name}-{}.{what}", std::process::id())));
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1", "-m", "1024"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(files)
        .args(["-serial", &format!("file:{}", console.display())])
        .args(["-serial", &format!("file:{}", told.display())])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64, of Debian's qemu-system-x86")?;
    let ended = process::wait(&mut child, patience);
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let read = |path: &Path| -> Result<String> { Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned()) };
    let report = sections(&read(&told)?);
    if ended.is_err() || !report.contains_key("end") {
        let ended = ended.map_or_else(|error| error.to_string(), |status| format!("ended with {status}"));
        bail!(
            "{name} has not told all: {ended}; told: {:?}; its console:\n{}",
            report.keys(),
            last(&read(&console)?)
        );
    }
    fs::remove_file(console)?;
    fs::remove_file(told)?;
    Ok(report)
}

/// Splits a report into sections. Each has a line `=== NAME` before it.
fn sections(told: &str) -> Report {
    let parts = told.split("=== ").skip(1).filter_map(|part| part.split_once('\n'));
    parts.map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
}

fn last(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

fn directory() -> Result<PathBuf> {
    let directory = paths::target().join("tmp/machine");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
