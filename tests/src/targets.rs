//! Builds the Go programs that the agent is tested on.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::{paths, whose_turn::whose_turn};

/// The minor version of Go that the programs' `go.mod` files require.
const GO_MINOR: u32 = 26;
/// Builds that take longer are announced.
const PATIENCE: Duration = Duration::from_secs(2);
/// The environment variable with a time in seconds since 1970: programs built since then are not stale. A process that
/// has built programs sets it for the processes that it starts.
pub const BUILT_SINCE: &str = "MONITOR_BUILT_SINCE";

/// A Go program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// A Kitex server, client or relay (`targets/kitex`).
    Kitex,
    /// A Go program without an RPC framework (`targets/plain`).
    Plain,
    /// A program that enters Kitex's functions itself, with arbitrary objects (`targets/strange`).
    Strange,
    /// A Go program that prints its runtime's own statistics (`targets/runtime`).
    Runtime,
    /// A Kitex server or client with all monitoring libraries in the process (`targets/inside`).
    Inside,
    /// An OpenTelemetry Collector (`targets/collector`).
    Collector,
    /// A Go program with collectors of its own runtime metrics (`targets/collectors`).
    Collectors,
    /// A program that makes every kind of gRPC call (`targets/grpc`).
    Grpc,
    /// The same program with go-grpc-prometheus, which counts too.
    GrpcReference,
    /// A gRPC server, or a client that loads it (`targets/echo`).
    Echo,
    /// A program that enters Kitex's functions at a given rate (`targets/synthetic`).
    Synthetic,
    /// A program with operations that only specs describe (`targets/operations`).
    Operations,
    /// A Hertz server that receives requests (`targets/hertz`).
    Hertz,
    /// net/http servers that receive requests (`targets/web`).
    Web,
}

/// The oldest release of Go whose programs can be watched.
pub const OLDEST_GO: &str = "go1.18.10";
/// The newest release of Go whose programs can be watched.
pub const NEWEST_GO: &str = "go1.27.3";
const GO_BETWEEN: [&str; 8] =
    ["go1.19.13", "go1.20.14", "go1.21.13", "go1.22.12", "go1.23.12", "go1.24.11", "go1.25.5", "go1.26.8"];

/// Returns the releases of Go that a test uses: the oldest, the newest, and one of the others in turn. With
/// `MONITOR_ALL_GO`, all of them.
#[must_use]
pub fn go_releases() -> Vec<&'static str> {
    if std::env::var_os("MONITOR_ALL_GO").is_some() {
        return [&[OLDEST_GO], &GO_BETWEEN[..], &[NEWEST_GO]].concat();
    }
    vec![OLDEST_GO, GO_BETWEEN[whose_turn() % GO_BETWEEN.len()], NEWEST_GO]
}

/// Releases of Hertz that have modules of their own, in addition to the one in its `go.mod`.
const OLDER_HERTZ: [&str; 3] = ["v0.9.2", "v0.9.7", "v0.10.3"];

/// Returns one of the older releases of Hertz in turn. With `MONITOR_ALL_HERTZ`, all of them.
#[must_use]
pub fn older_hertz() -> Vec<&'static str> {
    if std::env::var_os("MONITOR_ALL_HERTZ").is_some() {
        return OLDER_HERTZ.to_vec();
    }
    vec![OLDER_HERTZ[whose_turn() % OLDER_HERTZ.len()]]
}

/// Parses the minor version of a release: 26 for `go1.26.8`.
#[must_use]
pub fn minor(release: &str) -> Option<u32> {
    release.strip_prefix("go1.")?.split('.').next()?.parse().ok()
}

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// The default of `go build`: with a symbol table and DWARF.
    Default,
    /// Without symbol table and DWARF (`-ldflags "-s -w"`).
    Stripped,
    /// Position independent (`-buildmode=pie`).
    Pie,
    /// With DWARF that is not compressed (`-ldflags=-compressdwarf=false`).
    PlainDwarf,
    /// Position independent, without symbol table and DWARF.
    StrippedPie,
    /// Without a symbol table, but with DWARF, uncompressed. Since Go 1.22.
    NoSymbols,
    /// With gRPC-Go compiled for a debugger: without optimisation and inlining.
    NotOptimised,
}

impl Flavour {
    /// The flavours in which a Kitex target is tested.
    pub const ALL: [Self; 4] = [Self::Default, Self::Stripped, Self::Pie, Self::PlainDwarf];

    fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Stripped => "stripped",
            Self::Pie => "pie",
            Self::PlainDwarf => "plain-dwarf",
            Self::StrippedPie => "stripped-pie",
            Self::NoSymbols => "no-symbols",
            Self::NotOptimised => "not-optimised",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::Stripped => &["-ldflags=-s -w"],
            Self::Pie => &["-buildmode=pie"],
            Self::PlainDwarf => &["-ldflags=-compressdwarf=false"],
            Self::StrippedPie => &["-buildmode=pie", "-ldflags=-s -w"],
            Self::NoSymbols => &["-ldflags=-s -w=0 -compressdwarf=false"],
            Self::NotOptimised => &["-gcflags=google.golang.org/grpc=-N -l"],
        }
    }
}

/// The release of Go or of the framework that a program is built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// The releases that the program's `go.mod` names.
    GoMod,
    /// A release of Go, such as `go1.18.10`.
    Go(&'static str),
    /// A release of the framework, such as `v0.9.7`.
    Framework(&'static str),
}

impl By {
    /// The release, or an empty text for that of `go.mod`.
    fn name(self) -> &'static str {
        match self {
            Self::GoMod => "",
            Self::Go(release) | Self::Framework(release) => release,
        }
    }

    fn go(self) -> Option<&'static str> {
        match self {
            Self::Go(release) => Some(release),
            _ => None,
        }
    }
}

impl Program {
    /// All programs.
    pub const ALL: [Self; 13] = [
        Self::Kitex,
        Self::Plain,
        Self::Strange,
        Self::Runtime,
        Self::Inside,
        Self::Collector,
        Self::Collectors,
        Self::Grpc,
        Self::Echo,
        Self::Synthetic,
        Self::Operations,
        Self::Hertz,
        Self::Web,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Kitex => "kitex-target",
            Self::Plain => "plain-go",
            Self::Strange => "strange-target",
            Self::Runtime => "go-runtime",
            Self::Inside => "inside",
            Self::Collector => "collector",
            Self::Collectors => "go-collectors",
            Self::Grpc => "grpc-target",
            Self::GrpcReference => "grpc-reference",
            Self::Echo => "grpc-echo",
            Self::Synthetic => "synthetic-target",
            Self::Operations => "operations",
            Self::Hertz => "hertz-target",
            Self::Web => "web-target",
        }
    }

    fn source(self) -> PathBuf {
        paths::tests().join("targets").join(match self {
            Self::Kitex => "kitex",
            Self::Plain => "plain",
            Self::Strange => "strange",
            Self::Runtime => "runtime",
            Self::Inside => "inside",
            Self::Collector => "collector",
            Self::Collectors => "collectors",
            Self::Grpc | Self::GrpcReference => "grpc",
            Self::Echo => "echo",
            Self::Synthetic => "synthetic",
            Self::Operations => "operations",
            Self::Hertz => "hertz",
            Self::Web => "web",
        })
    }

    /// Returns the flags that select the modules for an older release of Go or of the framework.
    fn modules(self, by: By) -> Vec<String> {
        let file = match (by, by.go().and_then(minor)) {
            (By::Framework(release), _) => format!("{release}.mod"),
            _ if self != Self::Collectors => return Vec::new(),
            (_, Some(18..=19)) => "go1.18.mod".to_owned(),
            (_, Some(20..=22)) => "go1.20.mod".to_owned(),
            (_, Some(23..=25)) => "go1.23.mod".to_owned(),
            _ => return Vec::new(),
        };
        let mut args = vec![format!("-modfile={}", self.source().join("mods").join(&file).display())];
        args.extend(["go1.18.mod", "go1.20.mod"].contains(&file.as_str()).then(|| "-tags=old".to_owned()));
        args
    }

    /// Builds the program and returns the path of the executable. `go build` decides what is stale, once per process,
    /// or once since the time in [`BUILT_SINCE`].
    ///
    /// The first build takes a minute or two and needs the Go module proxy. Progress is printed to stderr.
    pub fn build(self, flavour: Flavour) -> Result<PathBuf> {
        self.build_by(By::GoMod, flavour)
    }

    /// Builds the program with a release of Go, such as `go1.18.10`. Go fetches the release if it is missing. With
    /// releases older than the one in `go.mod`, only [`Program::Runtime`], [`Program::Collectors`] and [`Program::Web`]
    /// can be built.
    pub fn build_with(self, release: &'static str, flavour: Flavour) -> Result<PathBuf> {
        self.build_by(By::Go(release), flavour)
    }

    /// Builds the program with another release of its framework. The modules are in `mods` of the program's sources.
    pub fn build_of(self, release: &'static str, flavour: Flavour) -> Result<PathBuf> {
        self.build_by(By::Framework(release), flavour)
    }

    fn build_by(self, by: By, flavour: Flavour) -> Result<PathBuf> {
        type Key = (Program, By, Flavour);
        static BUILT: Mutex<BTreeMap<Key, PathBuf>> = Mutex::new(BTreeMap::new());
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(executable) = built.get(&(self, by, flavour)) {
            return Ok(executable.clone());
        }
        let executable = self.build_now(by, flavour)?;
        built.insert((self, by, flavour), executable.clone());
        Ok(executable)
    }

    fn build_now(self, by: By, flavour: Flavour) -> Result<PathBuf> {
        let go = go()?;
        let directory = paths::target().join("targets").join(by.name()).join(flavour.name());
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        // Test programs may run in parallel, and a file that is being executed cannot be written.
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        let executable = directory.join(self.name());
        // `go build` also updates the time of executables that are not stale.
        if is_built(&executable) {
            return Ok(executable);
        }
        let mut command = Command::new(&go);
        command.arg("build").args(["-trimpath", "-buildvcs=false", "-mod=readonly"]).args(flavour.flags());
        command.args(self.modules(by));
        if self == Self::GrpcReference {
            command.arg("-tags=reference");
        }
        command.arg("-o").arg(&executable).arg(".").current_dir(self.source());
        // For the same executable, whether a C compiler is installed or not.
        command.env("CGO_ENABLED", "0").envs(toolchain());
        if let Some(release) = by.go() {
            command.env("GOTOOLCHAIN", release);
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", go.display()))?;
        let what = [self.name(), flavour.name(), by.name()].join(" ");
        if !wait_saying(child, &what)?.success() {
            bail!("cannot build {what}: go build failed in {}", self.source().display());
        }
        Ok(executable)
    }
}

/// Builds what most tests need in addition to the default builds of [`Program::ALL`], so that the tests need not wait
/// for it. A test that needs anything else builds it itself.
pub fn build_more() -> Result<()> {
    for (program, flavour) in [
        (Program::Kitex, Flavour::Stripped),
        (Program::Kitex, Flavour::Pie),
        (Program::Kitex, Flavour::PlainDwarf),
        (Program::Plain, Flavour::StrippedPie),
        (Program::Grpc, Flavour::Stripped),
        (Program::Grpc, Flavour::StrippedPie),
        (Program::Grpc, Flavour::NotOptimised),
        (Program::GrpcReference, Flavour::Default),
        (Program::Synthetic, Flavour::Stripped),
        (Program::Operations, Flavour::StrippedPie),
        (Program::Hertz, Flavour::Stripped),
    ] {
        program.build(flavour)?;
    }
    for release in go_releases() {
        for (program, flavour) in [
            (Program::Runtime, Flavour::Default),
            (Program::Runtime, Flavour::StrippedPie),
            (Program::Collectors, Flavour::Default),
            (Program::Collectors, Flavour::Stripped),
            (Program::Web, Flavour::Stripped),
        ] {
            program.build_with(release, flavour)?;
        }
    }
    for flavour in [Flavour::Pie, Flavour::NoSymbols, Flavour::Stripped] {
        Program::Runtime.build_with(NEWEST_GO, flavour)?;
    }
    Program::Operations.build_with(NEWEST_GO, Flavour::Stripped)?;
    for release in older_hertz() {
        Program::Hertz.build_of(release, Flavour::Stripped)?;
    }
    Ok(())
}

/// Whether a file was built since the time in [`BUILT_SINCE`].
fn is_built(executable: &Path) -> bool {
    let since = std::env::var(BUILT_SINCE).ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let modified = fs::metadata(executable).and_then(|metadata| metadata.modified());
    since.zip(modified.ok()).is_some_and(|(since, modified)| {
        modified.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|at| at >= Duration::from_secs(since))
    })
}

fn wait_saying(mut child: Child, what: &str) -> Result<ExitStatus> {
    let begin = Instant::now();
    let mut said = false;
    loop {
        if let Some(status) = child.try_wait()? {
            if said {
                eprintln!("built {what} in {:.0} s", begin.elapsed().as_secs_f64());
            }
            return Ok(status);
        }
        if !said && begin.elapsed() > PATIENCE {
            said = true;
            eprintln!("building {what} (a minute or two the first time)");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the path of Go: `MONITOR_GO` if set, else `go` on `PATH`, if it is new enough.
pub fn go() -> Result<PathBuf> {
    if let Some(go) = std::env::var_os("MONITOR_GO") {
        let go = PathBuf::from(go);
        return match go_minor(&go) {
            Some(minor) if minor >= GO_MINOR => Ok(go),
            Some(minor) => bail!("MONITOR_GO names a Go 1.{minor}; the targets need 1.{GO_MINOR} or later"),
            None => bail!("MONITOR_GO names {}, which is no Go that runs", go.display()),
        };
    }
    match go_minor(Path::new("go")) {
        Some(minor) if minor >= GO_MINOR => Ok(PathBuf::from("go")),
        Some(minor) => bail!(
            "the Go on PATH is 1.{minor}, the targets need 1.{GO_MINOR} or later: `cargo xtask test` fetches one, \
             or set MONITOR_GO"
        ),
        None => bail!(
            "no Go found, the targets need 1.{GO_MINOR} or later: `cargo xtask test` fetches one, or set MONITOR_GO"
        ),
    }
}

fn go_minor(go: &Path) -> Option<u32> {
    let output = Command::new(go).arg("version").envs(toolchain()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let rest = text.strip_prefix("go version go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Keeps Go from downloading another tool chain unless the user has allowed it.
fn toolchain() -> Option<(&'static str, &'static str)> {
    std::env::var_os("GOTOOLCHAIN").is_none().then_some(("GOTOOLCHAIN", "local"))
}
