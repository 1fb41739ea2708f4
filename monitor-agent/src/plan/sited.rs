//! Calls that are identified by the function that they enter, proven in an executable.

mod find;
mod messages;
mod shape;

use monitor_ebpf::Given;

use super::{
    Site,
    layout::{Asked, Nodes, Place},
};
use crate::frameworks::{CallSpec, Entry};

pub(super) use find::find;

use messages::MessagePlan;

/// A kind of call: its sites, and where its values lie at a hit.
#[derive(Clone, Debug)]
pub(super) struct SitedCall {
    spec: &'static CallSpec,
    start: Option<(u64, &'static Entry)>,
    ends: Ends,
    nodes: Nodes,
    key: Option<Place>,
    method: Place,
    streams: Option<[Place; 2]>,
    status: Status,
    conditions: Conditions,
    /// An end that is visible only as an error passed between two functions.
    given: Given,
    /// The code that reports failures in the middle of a call: start and end addresses.
    interim: Vec<(u64, u64)>,
    messages: Option<MessagePlan>,
}

/// Where a kind of call finishes.
#[derive(Clone, Debug)]
struct Ends {
    sites: Vec<u64>,
    /// The offset of the object's address from the stack pointer at each finish site, in bytes;
    /// 0 if it is in a register.
    kept_at: u16,
    /// The registers at each finish site, taken from the first one.
    entry: &'static Entry,
}

/// The conditions for a hit to count.
#[derive(Clone, Debug)]
struct Conditions {
    /// At a start.
    begins: Option<Asked>,
    /// For a finish without a start to be the first of its call.
    first: Option<Asked>,
    /// At each finish.
    gates: Vec<Asked>,
}

/// Where the status code lies at a finish.
#[derive(Clone, Debug)]
struct Status {
    /// The itab of errors that have a status; 0 if the finish gets the status itself.
    error: u64,
    /// The itab of errors that may mean success; 0 if there are none.
    well: u64,
    well_text: &'static str,
    /// The itab of errors that wrap another one, and the offset of the wrapped one; 0 if there are none.
    wrap: (u64, u8),
    message: Place,
    code: Place,
}

/// The calls of a copy of a framework, their sites with the finishes first, and notes about what is unknown.
pub(super) struct Found {
    pub(super) calls: Vec<SitedCall>,
    pub(super) sites: Vec<Site>,
    /// The sites for messages, entries first.
    pub(super) message_sites: Vec<Site>,
    pub(super) notes: Vec<String>,
    /// Notes about calls that are not watched at all.
    pub(super) unwatched: Vec<String>,
}
