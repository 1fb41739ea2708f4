//! Reads a framework's file, or finds the place of the error in it. Its format is that of users' specs
//! where both say the same.

use super::{
    by_function, by_type,
    spec::Known,
    written::{Head, ToldBy},
};
use crate::specs::{SpecError, read::of_text};

/// Reads a framework's file. `file` is its name in errors.
pub fn read(file: &str, text: &str) -> Result<Known, SpecError> {
    let head: Head = of_text(file, text, Ok)?;
    match head.told_by {
        ToldBy::Type => of_text(file, text, by_type::framework).map(Box::new).map(Known::ByType),
        ToldBy::Function => {
            let framework = of_text(file, text, |written| by_function::framework(&written))?;
            Ok(Known::ByFunction(Box::new(framework)))
        }
    }
}
