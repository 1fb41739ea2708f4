//! Knowledge about RPC frameworks, as data in embedded files.
//!
//! A framework is described by names only: of functions, types and fields. The [plan](crate::plan) finds and proves
//! their addresses and offsets in a given executable.

mod by_function;
mod by_type;
mod parts;
mod read;
mod spec;
mod written;

use std::sync::LazyLock;

pub use read::read;
pub use spec::{
    Alternatives, CallSpec, Condition, Entry, ErrorSpec, Family, Framework, Function, Home, Key, KindSpec,
    Known, MessageSpec, Metrics, ObjectOf, Pair, ProtocolSpec, Question, RecordedSpec, Route, ShapeSpec,
    SitedFramework, SitedMessages, StatusSpec, Untold, Way,
};

/// The files: name and text.
pub static FILES: [(&str, &str); 2] = [
    ("kitex.toml", include_str!("../../frameworks/kitex.toml")),
    ("grpc-go.toml", include_str!("../../frameworks/grpc-go.toml")),
];

/// All frameworks, in the order in which they are searched for.
#[derive(Debug)]
pub struct Frameworks {
    /// Frameworks whose calls are identified by the type of their object.
    pub by_type: Vec<Framework>,
    /// Frameworks whose calls are identified by the function that they enter.
    pub sited: Vec<SitedFramework>,
}

/// Returns the frameworks that the files describe. The files are read once.
///
/// # Panics
///
/// If a file can't be parsed. The files are part of the program, and its tests read them.
#[must_use]
pub fn known() -> &'static Frameworks {
    static READ: LazyLock<Frameworks> = LazyLock::new(|| {
        let mut all = Frameworks { by_type: Vec::new(), sited: Vec::new() };
        for (file, text) in FILES {
            match read(file, text) {
                Ok(Known::ByType(framework)) => all.by_type.push(*framework),
                Ok(Known::ByFunction(framework)) => all.sited.push(*framework),
                Err(error) => panic!("{error}"),
            }
        }
        all
    });
    &READ
}

impl Frameworks {
    /// Returns the title and the module path of each framework.
    pub fn titles(&self) -> impl Iterator<Item = (&str, &str)> {
        let by_type = self.by_type.iter().map(|framework| (&*framework.title, &*framework.module));
        by_type.chain(self.sited.iter().map(|framework| (&*framework.title, &*framework.module)))
    }

    /// The name of a status code, such as `NotFound`; `None` if the framework has no such code.
    #[must_use]
    pub fn code(&self, number: u32) -> Option<&str> {
        let framework = self.sited.iter().find(|framework| framework.metrics.family == Family::Grpc)?;
        framework.status.codes.get(usize::try_from(number).ok()?).map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
