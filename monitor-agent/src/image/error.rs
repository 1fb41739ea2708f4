//! Why an executable cannot be read.

use std::io;
use std::sync::Arc;

use thiserror::Error;

/// Why a file, or a part of it, cannot be used.
///
/// Each text follows the file's name in a sentence: "/bin/x is not an ELF file".
#[derive(Clone, Debug, Error)]
pub enum ImageError {
    /// The operating system could not read the file.
    #[error("can't be read: {0}")]
    Io(Arc<io::Error>),
    /// The file has no bytes.
    #[error("is empty")]
    Empty,
    /// The file does not start as an ELF file does.
    #[error("is not an ELF file")]
    NotElf,
    /// The file ends before the end that its headers give.
    #[error("is truncated: it ends before the end of its {what}")]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
    },
    /// A 32-bit program.
    #[error("is a 32-bit program; only 64-bit programs for x86-64 can be read")]
    WrongClass,
    /// A program for a big-endian machine.
    #[error("is a program for a big-endian machine; only 64-bit programs for x86-64 can be read")]
    WrongEndian,
    /// A program for another processor.
    #[error("is a program for {0}; only programs for x86-64 can be read")]
    WrongMachine(String),
    /// An ELF file that no process can run.
    #[error("is {0}, not an executable program")]
    NotExecutable(&'static str),
    /// A program without Go build information.
    #[error("is not a Go program: it has no Go build information")]
    NotGo,
    /// A Go program built by an unsupported release.
    #[error("is built by {version}, which is not supported: {why}")]
    UnsupportedGo {
        /// The release as the program names it.
        version: String,
        /// What is missing.
        why: String,
    },
    /// The debug information cannot be read.
    #[error("has DWARF that can't be read: {0}")]
    Dwarf(String),
    /// Something in the file contradicts its format.
    #[error("is malformed: {what}")]
    Malformed {
        /// What is wrong.
        what: String,
    },
}

impl ImageError {
    /// A [`ImageError::Malformed`] with this text.
    pub(super) fn malformed(what: impl Into<String>) -> Self {
        Self::Malformed { what: what.into() }
    }

    /// A [`ImageError::Dwarf`] with this text.
    pub(super) fn dwarf(what: impl Into<String>) -> Self {
        Self::Dwarf(what.into())
    }
}

impl From<io::Error> for ImageError {
    fn from(error: io::Error) -> Self {
        // All reads lie inside the length that the file had when it was opened.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated { what: "contents (it shrank while it was read)" };
        }
        Self::Io(Arc::new(error))
    }
}
