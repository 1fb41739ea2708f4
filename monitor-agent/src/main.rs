//! The `monitor-agent` command: outcomes to exit codes.

use std::process::ExitCode;

fn main() -> ExitCode {
    match monitor_agent::cli::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("monitor-agent: {}", failure.text);
            ExitCode::from(failure.kind as u8)
        }
    }
}
