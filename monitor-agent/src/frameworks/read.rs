//! From a framework's file to what it says, or to what is wrong in it and where. What users' specs say too is written and
//! read as there.

use super::{
    by_function, by_type,
    spec::Known,
    written::{Head, ToldBy},
};
use crate::specs::{SpecError, read::of_text};

/// Reads a framework's file. `file` is what errors call it.
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
