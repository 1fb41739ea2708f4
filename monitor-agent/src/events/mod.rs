//! Calls as lines: chosen by a filter, written as text, and queued for each reader.
//!
//! Data flows in one direction, as everywhere: nothing waits for a slow reader. It loses lines of its own, and gets a
//! line with their number. `docs/events.md` has every field.

mod fields;
mod filter;
mod finishes;
mod lines;
mod outbox;
mod slowest;
mod socket;
mod stream;

pub use filter::{Condition, ConditionError, Filter};
pub use lines::{Format, Lines};
pub use outbox::Outbox;
pub use slowest::{SlowCalls, Wish};
pub use socket::{EventSocket, SocketError};
pub use stream::{EventStream, Readers};
