//! The cargo that started this process, for further builds.

use std::process::Command;

/// Returns a command of this cargo whose builds share their results with all others, so that nothing is built twice.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` sets this to the libraries of its own rustc. Another rustc must not load them.
    command.env_remove("LD_LIBRARY_PATH");
    // `cargo run` also names the package of this process. Build scripts read that, and would run again in every build
    // that is started another way.
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
