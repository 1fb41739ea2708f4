//! The cargo that has started this process, to build with.

use std::process::Command;

/// A command of it that builds the same, and nothing twice, whoever asks.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` points it at the libraries of its own rustc; another rustc must not load those.
    command.env_remove("LD_LIBRARY_PATH");
    // It also says of which package this process is. Build scripts look at that, and would run again in every build that
    // is started another way.
    for (name, _) in std::env::vars_os() {
        let is_of_package = name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if is_of_package {
            command.env_remove(name);
        }
    }
    command
}
