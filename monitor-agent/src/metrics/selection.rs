//! The user's selection of metrics. Data that no chosen family needs is not gathered: no probe is attached and nothing
//! is read for it.

use std::{collections::BTreeSet, fmt, str::FromStr};

use thiserror::Error;

use crate::frameworks;

/// Metrics that are chosen together. The metrics about the agent itself are always shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `kitex_…`: calls, as Kitex's in-process extension names them.
    Kitex,
    /// Calls and the Go runtime, under OpenTelemetry's names.
    Otel,
    /// `grpc_…`: calls of gRPC-Go.
    Grpc,
    /// `go_…`: the Go runtime.
    Go,
    /// `process_…`: data from `/proc`.
    Process,
}

impl Family {
    const ALL: [Self; 5] = [Self::Kitex, Self::Otel, Self::Grpc, Self::Go, Self::Process];

    /// Returns the family's name in `--metrics`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kitex => "kitex",
            Self::Otel => "otel",
            Self::Grpc => "grpc",
            Self::Go => "go",
            Self::Process => "process",
        }
    }

    /// Returns whether the family is about calls, which require a framework in the target.
    fn tells_of_calls(self) -> bool {
        matches!(self, Self::Kitex | Self::Otel | Self::Grpc)
    }
}

/// The families chosen with `--metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(BTreeSet<Family>);

/// An error in a list of families.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SelectionError {
    /// The family does not exist.
    #[error("`{0}` is not a family of metrics; choose from kitex, otel, grpc, go, process")]
    Unknown(String),
    /// A family is listed twice.
    #[error("family `{0}` is listed twice")]
    Twice(String),
}

impl Default for Selection {
    /// The metrics that in-process monitoring has by default.
    fn default() -> Self {
        Self([Family::Kitex, Family::Grpc, Family::Go, Family::Process].into())
    }
}

impl Selection {
    /// Selects the calls of every framework, and nothing else.
    #[must_use]
    pub fn calls() -> Self {
        Self([Family::Kitex, Family::Grpc].into())
    }

    /// Returns whether a family was chosen.
    #[must_use]
    pub fn contains(&self, family: Family) -> bool {
        self.0.contains(&family)
    }

    /// Adds a family to the selection.
    #[must_use]
    pub fn with(mut self, family: Family) -> Self {
        self.0.insert(family);
        self
    }

    /// Returns whether calls are watched. If not, any process can be a target.
    #[must_use]
    pub fn wants_calls(&self) -> bool {
        self.0.iter().any(|family| family.tells_of_calls())
    }

    /// Returns whether the calls that feed this family are shown anywhere.
    #[must_use]
    pub fn wants_calls_of(&self, calls: frameworks::Family) -> bool {
        let family = match calls {
            frameworks::Family::Kitex => Family::Kitex,
            frameworks::Family::Grpc => Family::Grpc,
        };
        self.contains(Family::Otel) || self.contains(family)
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|family| family.name()).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Selection {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        let mut families = BTreeSet::new();
        for word in text.split(',') {
            let word = word.trim();
            let Some(family) = Family::ALL.into_iter().find(|family| family.name() == word) else {
                return Err(SelectionError::Unknown(word.to_owned()));
            };
            if !families.insert(family) {
                return Err(SelectionError::Twice(word.to_owned()));
            }
        }
        Ok(Self(families))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(text: &str) -> Selection {
        text.parse().expect("a selection")
    }

    #[test]
    fn families_are_chosen_by_name() {
        assert_eq!(selection("process, kitex,go,grpc"), Selection::default());
        for family in Family::ALL {
            assert!(selection(family.name()).contains(family), "{family:?}");
        }
        assert_eq!(selection("go,otel").to_string(), "otel,go");
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        let error = |text: &str| text.parse::<Selection>().expect_err("an error");
        for text in ["", "go,", "Go", "monitor", "kitex;go"] {
            assert!(matches!(error(text), SelectionError::Unknown(_)), "{text}");
        }
        assert_eq!(error("go,process,go"), SelectionError::Twice("go".to_owned()));
        // The error lists all names to choose from.
        let text = error("x").to_string();
        assert!(Family::ALL.iter().all(|family| text.contains(family.name())), "{text}");
    }

    #[test]
    fn calls_are_watched_for_those_who_want_them() {
        assert!(!selection("go,process").wants_calls());
        for family in ["kitex", "otel", "grpc"] {
            assert!(selection(family).wants_calls(), "{family}");
        }
        assert!(selection("kitex,go").wants_calls_of(frameworks::Family::Kitex));
        assert!(selection("otel").wants_calls_of(frameworks::Family::Kitex));
        assert!(!selection("grpc,go").wants_calls_of(frameworks::Family::Kitex));
    }
}
