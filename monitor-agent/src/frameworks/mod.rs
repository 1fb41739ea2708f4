//! What the agent knows about RPC frameworks: data, in files that are embedded.
//!
//! A framework is described by names only: of functions, types and fields. Which addresses and offsets these
//! have in a given executable is the [plan](crate::plan)'s to find and to prove.

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

/// The files, and their texts.
pub static FILES: [(&str, &str); 2] = [
    ("kitex.toml", include_str!("../../frameworks/kitex.toml")),
    ("grpc-go.toml", include_str!("../../frameworks/grpc-go.toml")),
];

/// All frameworks, in the order in which they are looked for.
#[derive(Debug)]
pub struct Frameworks {
    /// Those whose calls are told by the type of their object.
    pub by_type: Vec<Framework>,
    /// Those whose calls are told by the function that they enter.
    pub sited: Vec<SitedFramework>,
}

/// What the files say. They are read once.
///
/// # Panics
///
/// If one of them says nothing that can be understood. They are part of the program: its tests read them.
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
    /// Name for people and module path of each.
    pub fn titles(&self) -> impl Iterator<Item = (&str, &str)> {
        let by_type = self.by_type.iter().map(|framework| (&*framework.title, &*framework.module));
        by_type.chain(self.sited.iter().map(|framework| (&*framework.title, &*framework.module)))
    }

    /// The name of a status's code, such as `NotFound`; `None` for a number that means nothing to the framework.
    #[must_use]
    pub fn code(&self, number: u32) -> Option<&str> {
        let framework = self.sited.iter().find(|framework| framework.metrics.family == Family::Grpc)?;
        framework.status.codes.get(usize::try_from(number).ok()?).map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
