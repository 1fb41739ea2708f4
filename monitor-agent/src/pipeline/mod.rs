//! From records to what a scrape reads: decode, aggregate, publish.
//!
//! Data flows in one direction: changes are published, and a reader takes a [`Snapshot`] of the newest. Either side
//! waits for the other only while pointers are copied. There is no I/O in this module: records and counters are passed
//! in as values.

mod aggregate;
mod buckets;
mod budget;
mod durations;
mod labels;
mod losses;
mod operations;
mod overhead;
mod snapshot;
mod tracer;

pub use aggregate::{Aggregate, CounterValues, Outcomes};
pub use buckets::{Buckets, BucketsError, Ladder};
pub use budget::{Budget, BudgetError, Percent, Shedding, Step};
use durations::Durations;
pub use labels::{CallType, Executable, Framework, KnownLabels, Labels, Side, StreamKind, shown};
pub(crate) use labels::{NoExecutable, OTHER, UNKNOWN, UNREADABLE};
pub use losses::Losses;
pub use overhead::{CopyCounts, Counts, Overhead, PerProbe, ProbeCost, ProbeKind, Sample};
pub use snapshot::{Changes, Extras, Histogram, Published, Series, Snapshot};
pub use tracer::{Details, EventKind, FinishedCall, LossReason, Lost, StartedCall, Tracer};
