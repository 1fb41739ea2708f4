//! The locations of the repository's files and of build results.

use std::path::{Path, PathBuf};

/// The directory of this package.
pub(crate) fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Cargo's directory for build results.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| tests().with_file_name("target"), PathBuf::from)
}
