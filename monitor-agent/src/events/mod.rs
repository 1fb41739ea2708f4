//! Calls as lines: chosen by a filter, written as text, kept for each reader until it takes them.
//!
//! One direction, as everywhere: whoever reads slowly loses lines of its own and is told how many; nobody waits for
//! it. `docs/events.md` has every field.

mod fields;
mod filter;
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
