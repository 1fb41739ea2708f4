//! From records to what a scrape reads: decode, aggregate, publish.
//!
//! One direction, no way back: the pipeline never waits for a reader, and a reader takes the newest
//! [`Snapshot`] and never waits for the pipeline. No I/O here: records and counters come in as values.

mod aggregate;
mod buckets;
mod labels;
mod snapshot;

pub use aggregate::{Aggregate, CounterValues};
pub use buckets::{Buckets, BucketsError};
pub use labels::{CallType, Labels, Side};
pub use snapshot::{Histogram, Published, Series, Snapshot};
