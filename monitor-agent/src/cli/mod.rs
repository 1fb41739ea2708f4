//! The command line.

mod args;
mod inspect;
mod log;

use std::process::ExitCode;

use clap::Parser;

use crate::{agent, descriptors, memory};
use args::{Arguments, Command, SpecCommand};
use log::Format;

/// Runs the command that the process was started with, says on stderr why it failed, and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    memory::keep_little();
    descriptors::take_all();
    let (result, format) = match Arguments::parse().command {
        Command::Run(arguments) => {
            let format = arguments.log_format;
            log::init(arguments.log_level, format);
            (arguments.validate().and_then(agent::run), format)
        }
        Command::Events(arguments) => {
            let format = arguments.log_format;
            log::init(arguments.log_level, format);
            (arguments.validate().and_then(agent::events), format)
        }
        Command::Inspect(arguments) => (inspect::inspect(&arguments), Format::Text),
        Command::Spec(SpecCommand::Check(arguments)) => (inspect::check_spec(&arguments), Format::Text),
    };
    let Err(failure) = result else { return ExitCode::SUCCESS };
    log::failure(&failure, format);
    ExitCode::from(failure.kind as u8)
}
