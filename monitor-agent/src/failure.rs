//! Why the agent ends, as a sentence for people and an exit code for scripts.

use std::{io, path::Path};

use crate::{
    bpf::BpfError,
    descriptors::{advice_on_system, is_out_of_descriptors},
    events::SocketError,
    export::http::ListenError,
    image::ImageError,
    plan::Refusal,
    specs::SpecError,
    target::TargetError,
    text::{printable, shown},
    threads::NotDone,
};

/// The kinds of failure and their exit codes. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An error while running.
    Running = 1,
    /// Wrong use of the command line.
    Usage = 2,
    /// No such process, or it ended.
    NoProcess = 3,
    /// A capability is missing.
    Permission = 4,
    /// The binary can't be read.
    Unreadable = 5,
    /// Nothing in the binary can be proven: not Go, no framework, unknown layout.
    Unprovable = 6,
    /// The address can't be listened on.
    Address = 7,
    /// The kernel can't do it.
    Kernel = 8,
}

/// A reason to end.
#[derive(Debug)]
pub struct Failure {
    /// The kind, which gives the exit code.
    pub kind: Kind,
    /// What happened, to which pid or file, and what to do.
    pub text: String,
}

impl Failure {
    /// Creates a failure.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The headers of an executable can't be read. `what` names it: a path, and the pid if there is one.
    #[must_use]
    pub fn of_image(what: &str, error: &ImageError) -> Self {
        let kind = match error {
            ImageError::NotGo | ImageError::UnsupportedGo { .. } => Kind::Unprovable,
            _ => Kind::Unreadable,
        };
        Self::new(kind, format!("{what} {}{}", shown(error), advice(error)))
    }

    /// What Go put into an executable can't be read, though its headers are good.
    #[must_use]
    pub fn of_contents(what: &str, error: &ImageError) -> Self {
        let failure = Self::of_image(what, error);
        match error {
            ImageError::Malformed { .. } => Self { kind: Kind::Unprovable, ..failure },
            _ => failure,
        }
    }

    /// A framework in an executable can't be watched.
    #[must_use]
    pub fn of_refusal(what: &str, framework: &str, refusal: &Refusal) -> Self {
        if let Refusal::Image(error) = refusal {
            return Self::of_contents(what, error);
        }
        let why = shown(refusal);
        Self::new(Kind::Unprovable, format!("{what}: {framework} can't be watched: {why}"))
    }

    /// A file can't be opened.
    #[must_use]
    pub fn of_file(path: &Path, error: &io::Error) -> Self {
        let path = printable(&path.to_string_lossy());
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::new(
                Kind::Permission,
                format!("not permitted to read {path}: run as its owner or with CAP_DAC_READ_SEARCH"),
            ),
            io::ErrorKind::NotFound => Self::new(
                Kind::Unreadable,
                format!("{path} does not exist: give the path of an executable file"),
            ),
            _ if is_out_of_descriptors(error) => {
                Self::new(Kind::Running, format!("{path} can't be read: {error}{}", advice_on_system(error)))
            }
            _ => Self::new(Kind::Unreadable, format!("{path} can't be read: {error}")),
        }
    }
}

/// Returns what a user can do about an error, if its text does not say so.
fn advice(error: &ImageError) -> &'static str {
    match error {
        ImageError::Empty | ImageError::NotElf | ImageError::NotExecutable(_) => {
            "; give an executable for linux/amd64, which Go has built, unless a spec has [[native]]"
        }
        ImageError::Truncated { .. } => "; copy or build it again",
        ImageError::NotGo => {
            "; give the Go service itself, not what starts it, or a spec that has [[native]] in place of [[operation]]"
        }
        _ => "",
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        let kind = match &error {
            TargetError::NoSuchProcess(_)
            | TargetError::Thread { .. }
            | TargetError::Ended(_)
            | TargetError::Replaced(_) => Kind::NoProcess,
            TargetError::KernelThread(_) => Kind::Unprovable,
            TargetError::Permission { .. } => Kind::Permission,
            TargetError::Io { .. } => Kind::Running,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<BpfError> for Failure {
    fn from(error: BpfError) -> Self {
        let kind = match &error {
            BpfError::Permission { .. } => Kind::Permission,
            BpfError::Descriptors { .. } => Kind::Running,
            BpfError::Memory { .. } | BpfError::Hazard { .. } | BpfError::Kernel { .. } => Kind::Kernel,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<NotDone> for Failure {
    fn from(error: NotDone) -> Self {
        Self::new(Kind::Running, error.to_string())
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self::new(Kind::Usage, printable(&error.to_string()))
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        Self::new(Kind::Address, error.to_string())
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        let kind = match &error {
            ListenError::Io { source, .. } if is_out_of_descriptors(source) => Kind::Running,
            _ => Kind::Address,
        };
        Self::new(kind, error.to_string())
    }
}
