//! Why the agent ends, as a sentence for people and an exit code for scripts.

use std::path::Path;

use crate::{bpf::BpfError, export::http::ListenError, image::ImageError, plan::Refusal, target::TargetError};

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
    /// Not a binary that can be read.
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
    /// What kind of reason.
    pub kind: Kind,
    /// What happened, to which pid or file, and what to do.
    pub text: String,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// A failure to read an executable. `what` names it: a path, and the pid if there is one.
    #[must_use]
    pub fn of_image(what: &str, error: &ImageError) -> Self {
        let kind = match error {
            ImageError::NotGo | ImageError::UnsupportedGo { .. } => Kind::Unprovable,
            _ => Kind::Unreadable,
        };
        Self::new(kind, format!("{what} {error}"))
    }

    /// A framework in an executable that can't be watched.
    #[must_use]
    pub fn of_refusal(what: &str, framework: &str, refusal: &Refusal) -> Self {
        if let Refusal::Image(error) = refusal {
            return Self::of_image(what, error);
        }
        Self::new(Kind::Unprovable, format!("{what}: {framework} can't be watched: {refusal}"))
    }

    /// A file that can't be opened.
    #[must_use]
    pub fn of_file(path: &Path, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Kind::Permission,
            _ => Kind::Unreadable,
        };
        Self::new(kind, format!("{} can't be read: {error}", path.display()))
    }
}

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
            BpfError::Kernel { .. } => Kind::Kernel,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Self::new(Kind::Address, error.to_string())
    }
}
