//! The command line.

mod args;
mod inspect;
mod log;

use clap::Parser;

use crate::{agent, failure::Failure};
use args::{Arguments, Command};

/// Runs the command that the process was started with.
pub fn main() -> Result<(), Failure> {
    match Arguments::parse().command {
        Command::Run(arguments) => {
            log::init(arguments.log_level, arguments.log_format);
            agent::run(arguments.validate()?)
        }
        Command::Inspect(arguments) => inspect::inspect(&arguments),
    }
}
