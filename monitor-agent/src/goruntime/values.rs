//! The values that are read, and why one is not.

use std::{collections::BTreeMap, io};

use thiserror::Error;

/// Why a value was not read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// The kernel refuses access to the memory.
    #[error("not permitted")]
    Permission,
    /// There is no memory at the address, or no process any more.
    #[error("no memory there")]
    Unreadable,
    /// The memory contradicts itself: the table does not fit, or the data did not come to rest.
    #[error("{0} makes no sense")]
    Implausible(&'static str),
    /// A value that only rises was higher before.
    #[error("{0} fell")]
    Fell(&'static str),
    /// The variable was not found in the executable.
    #[error("{0} was not found")]
    NotFound(&'static str),
    /// The release does not have it.
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

/// One reading of a Go runtime. What could not be read, or is implausible, is absent.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Goroutines of the program, without the runtime's own.
    pub goroutines: Option<u64>,
    /// Threads that the runtime knows of.
    pub threads: Option<u64>,
    /// Garbage collections.
    pub gc: Option<GcCycles>,
    /// Values by their names in Go's `runtime/metrics`.
    pub metrics: BTreeMap<&'static str, Value>,
    /// The highest value of each number in `metrics` since the process was first read, at least 0. Counters show it.
    pub highest: BTreeMap<&'static str, f64>,
}

impl Readings {
    /// Returns the value of a metric that is a whole number.
    #[must_use]
    pub fn unsigned(&self, name: &str) -> Option<u64> {
        match self.metrics.get(name) {
            Some(Value::Unsigned(value)) => Some(*value),
            _ => None,
        }
    }
}

/// The data of `debug.ReadGCStats`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcCycles {
    /// Garbage collections that have ended.
    pub count: u64,
    /// The total time for which they stopped the program, in nanoseconds.
    pub pause_total_ns: u64,
    /// The end of the last one, in nanoseconds since 1970; 0 if there was none.
    pub last_unix_ns: u64,
    /// The last pauses, at most 256, in nanoseconds, the oldest first.
    pub pauses_ns: Vec<u64>,
}

/// A value in the unit of its name.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Unsigned(u64),
    /// Seconds.
    Float(f64),
    /// A distribution.
    Histogram(Histogram),
}

/// A distribution as in `runtime/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// The number of values in each bucket.
    pub counts: Vec<u64>,
    /// The inclusive lower bounds of the buckets, and the exclusive upper bound of the last: one more than there are
    /// counts.
    pub bounds: Vec<f64>,
}
