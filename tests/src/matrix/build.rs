//! Builds the program of a cell.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Build, Cell, Framework, Matrix, Source, fork};
use crate::{paths, process::Process, targets};

impl Cell {
    /// Builds the program and returns its path. `go build` decides what is stale. Fetches the cell's release of Go
    /// through the module proxy if it is missing.
    pub fn build(&self, matrix: &Matrix) -> Result<PathBuf> {
        let room = paths::target().join("matrix").join(self.to_string());
        fs::create_dir_all(&room)?;
        let lock = File::create(room.join("lock"))?;
        lock.lock()?;
        let build = matrix.builds.get(&self.build).with_context(|| format!("{self}: no such build"))?;
        let mut go = self.sources(build, &room)?;
        go.tags = match self.framework {
            Framework::Kitex => matrix.tags(&self.release)?,
            Framework::Grpc => build.tags.clone(),
        };
        let executable = room.join(self.framework.program());
        let mut flags = build.flags.clone();
        if build.profile {
            let plain = room.join("unprofiled");
            go.build(self, build.cgo, &flags, &plain)?;
            flags.push(format!("-pgo={}", profile(self.framework, &plain, &room)?.display()));
        }
        go.build(self, build.cgo, &flags, &executable)?;
        if build.strip {
            run(Command::new("strip").arg("-s").arg(&executable))?;
        }
        Ok(executable)
    }

    /// Prepares the program's sources, with the framework where the cell needs it.
    fn sources(&self, build: &Build, room: &Path) -> Result<Go> {
        let program = paths::tests().join("targets").join(self.framework.program());
        let modfile = modfile(&program, &build.tags, &self.release);
        let go = |directory| Go { directory, modfile: None, gopath: None, tags: String::new() };
        match build.source {
            Source::Modules => Ok(Go { modfile: Some(modfile), ..go(program) }),
            Source::Vendored => {
                let gopath = room.join("gopath");
                let directory = gopath.join("src").join(format!("{}-target", self.framework.program()));
                fork::copy_program(&program, &modfile, &directory)?;
                // -e: vendoring also looks for what the files for other releases import.
                run(command(&directory, &self.go).args(["mod", "vendor", "-e"]))?;
                Ok(Go { gopath: Some(gopath), ..go(directory) })
            }
            Source::Renamed | Source::Altered => {
                let directory = room.join("program");
                fork::copy_program(&program, &modfile, &directory)?;
                let module = module(self.framework, &directory, &self.go)?;
                let copy = room.join("framework");
                if build.source == Source::Altered {
                    ensure!(self.framework == Framework::Kitex, "{self}: only Kitex is altered");
                    fork::alter(&module, &copy, &directory)?;
                } else {
                    fork::rename(self.framework, &module, &copy, &directory, &self.release)?;
                }
                Ok(go(directory))
            }
        }
    }
}

/// Returns the file with the modules for a release, or the program's own `go.mod` if the release has none. Files that
/// build tags add to the program may need more modules.
fn modfile(program: &Path, tags: &str, release: &str) -> PathBuf {
    let of_release = program.join("mods").join(tags).join(format!("{release}.mod"));
    if of_release.exists() { of_release } else { program.join("go.mod") }
}

/// A directory of sources, and how `go` builds them.
struct Go {
    directory: PathBuf,
    modfile: Option<PathBuf>,
    gopath: Option<PathBuf>,
    tags: String,
}

impl Go {
    fn build(&self, cell: &Cell, cgo: Option<bool>, flags: &[String], to: &Path) -> Result<()> {
        let mut build = command(&self.directory, &cell.go);
        build.args(["build", "-buildvcs=false"]).args(flags).args(["-tags", &self.tags]);
        match (&self.gopath, &self.modfile) {
            (Some(gopath), _) => {
                // The module cache also has the release of Go. By default, it is below GOPATH.
                let modcache = said(command(&self.directory, &cell.go).args(["env", "GOMODCACHE"]))?;
                build.env("GO111MODULE", "off").env("GOPATH", gopath).env("GOMODCACHE", modcache);
            }
            (None, modfile) => {
                build.arg("-mod=readonly");
                build.args(modfile.iter().map(|path| format!("-modfile={}", path.display())));
            }
        }
        if let Some(cgo) = cgo {
            build.env("CGO_ENABLED", if cgo { "1" } else { "0" });
        }
        run(build.arg("-o").arg(to).arg(".")).with_context(|| format!("cannot build {cell}"))
    }
}

/// Returns a command that runs `go` in a directory, in the cell's release, at a low priority: another cell may be
/// watched meanwhile, and its calls end otherwise than intended if they lack a processor.
fn command(directory: &Path, release: &str) -> Command {
    let go = targets::go().unwrap_or_else(|_| "go".into());
    let mut command = Command::new("nice");
    command.arg(go).current_dir(directory).env("GOTOOLCHAIN", format!("go{release}")).env("GOFLAGS", "");
    command
}

/// Returns the directory of a framework in the module cache.
fn module(framework: Framework, directory: &Path, release: &str) -> Result<PathBuf> {
    let path = fork::path_of(framework);
    run(command(directory, release).args(["mod", "download", path]))?;
    let mut list = command(directory, release);
    list.args(["list", "-mod=mod", "-m", "-f", "{{.Dir}}", path]);
    Ok(said(&mut list)?.into())
}

/// Has the program make a CPU profile of itself, once: a new profile would cause everything to be recompiled.
fn profile(framework: Framework, executable: &Path, room: &Path) -> Result<PathBuf> {
    let path = room.join("cpu.pprof");
    if path.exists() {
        return Ok(path);
    }
    let unfinished = room.join("cpu.pprof.unfinished");
    let mut calls = Process::start_command(Command::new(executable).env("CALLS_PROFILE", &unfinished))?;
    let commands: &[&str] = match framework {
        Framework::Kitex => &["run framed 2000", "run ttheader 2000", "run grpc_bidi 2000"],
        Framework::Grpc => &["load 50000 16", "run bidirectional 10000"],
    };
    for command in commands {
        calls.command(command)?;
    }
    let status = calls.quit()?;
    ensure!(status.success(), "{} ended with {status}", executable.display());
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Returns the line that a command prints.
fn said(command: &mut Command) -> Result<String> {
    let line = String::from_utf8(output(command)?)?.trim().to_owned();
    ensure!(!line.is_empty(), "{command:?} printed nothing");
    Ok(line)
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
