//! The command line.

mod args;
mod inspect;
mod log;

use std::process::ExitCode;

use clap::Parser;

use crate::{agent, descriptors, memory};
use args::{Arguments, Command, SpecCommand};
use log::Log;

/// Runs the command given to the process. Reports a failure on stderr, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    memory::keep_little();
    descriptors::take_all();
    let result = match Arguments::parse().command {
        Command::Run(arguments) => Log::over(arguments.log_level, arguments.log_format, |_| {
            arguments.validate().and_then(agent::run)
        }),
        Command::Events(arguments) => Log::over(arguments.log_level, arguments.log_format, |log| {
            agent::events(arguments.validate()?, || log.attached())
        }),
        Command::Inspect(arguments) => inspect::inspect(&arguments).inspect_err(log::failure),
        Command::Spec(SpecCommand::Check(arguments)) => {
            inspect::check_spec(&arguments).inspect_err(log::failure)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.kind as u8),
    }
}
