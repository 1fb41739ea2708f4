//! The `monitor-agent` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    monitor_agent::cli::main()
}
