//! What is read.

use std::{collections::BTreeMap, io};

use thiserror::Error;

/// Why something was not read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// The kernel refuses access to the memory.
    #[error("not permitted")]
    Permission,
    /// There is no memory at the address, or no process any more.
    #[error("no memory there")]
    Unreadable,
    /// What is there contradicts itself: the table does not fit, or it would not come to rest.
    #[error("{0} makes no sense")]
    Implausible(&'static str),
    /// What only rises was higher before.
    #[error("{0} fell")]
    Fell(&'static str),
    /// The variable was not found in the executable.
    #[error("{0} was not found")]
    NotFound(&'static str),
    /// The release keeps no such thing.
    #[error("the release has no {0}")]
    NoPlace(&'static str),
}

impl Fault {
    #[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
    pub(super) fn of_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission,
            _ => Self::Unreadable,
        }
    }
}

/// One moment of a Go runtime. What could not be read, or made no sense, is absent.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Goroutines of the program; the runtime's own are not counted.
    pub goroutines: Option<u64>,
    /// Threads that the runtime knows.
    pub threads: Option<u64>,
    /// Garbage collections.
    pub gc: Option<GcCycles>,
    /// Values by their names in Go's `runtime/metrics`.
    pub metrics: BTreeMap<&'static str, Value>,
    /// The highest that each number among them has been since the process was first read, from 0 on: what a counter shows.
    pub highest: BTreeMap<&'static str, f64>,
}

impl Readings {
    /// The value of a metric that is a whole number.
    #[must_use]
    pub fn unsigned(&self, name: &str) -> Option<u64> {
        match self.metrics.get(name) {
            Some(Value::Unsigned(value)) => Some(*value),
            _ => None,
        }
    }
}

/// What `debug.ReadGCStats` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcCycles {
    /// Garbage collections that have ended.
    pub count: u64,
    /// Time for which they have stopped the program, in nanoseconds.
    pub pause_total_ns: u64,
    /// When the last ended, in nanoseconds since 1970; 0 if there was none.
    pub last_unix_ns: u64,
    /// The pauses of the last 256 at most, in nanoseconds, the oldest first.
    pub pauses_ns: Vec<u64>,
}

/// A value in the units of its name.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Unsigned(u64),
    /// Seconds.
    Float(f64),
    /// A distribution.
    Histogram(Histogram),
}

/// A distribution as `runtime/metrics` gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// How many values were in each bucket.
    pub counts: Vec<u64>,
    /// The buckets' inclusive lower bounds, and the exclusive upper bound of the last: one more than there are counts.
    pub bounds: Vec<f64>,
}
