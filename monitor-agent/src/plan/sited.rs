//! Calls that are told by the function that they enter, proven in an executable.

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

/// A kind of call: where it starts and finishes, and what lies where then.
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
    /// An end that only an error tells.
    given: Given,
    /// Where the code lies that tells failures in the middle of a call: from, to.
    interim: Vec<(u64, u64)>,
    messages: Option<MessagePlan>,
}

/// Where a kind of call finishes.
#[derive(Clone, Debug)]
struct Ends {
    sites: Vec<u64>,
    /// How far above the stack pointer the object's address lies at each of them; 0 where it is in a register.
    kept_at: u16,
    /// What is in which register at each of them, as the first one says.
    entry: &'static Entry,
}

/// What must hold for a hit to be one.
#[derive(Clone, Debug)]
struct Conditions {
    /// At the start.
    begins: Option<Asked>,
    /// At a finish without a start, to be the first of its call.
    first: Option<Asked>,
    /// At each finish.
    gates: Vec<Asked>,
}

/// Where the code of a finish's status lies.
#[derive(Clone, Debug)]
struct Status {
    /// Itab of the errors that have one; 0 where the finish gets a status itself.
    error: u64,
    /// Itab of the errors that may say that all is well; 0 if there are none.
    well: u64,
    well_text: &'static str,
    /// Itab of the errors that wrap another, and where it lies in them; 0 if there are none.
    wrap: (u64, u8),
    message: Place,
    code: Place,
}

/// The calls of a copy of a framework, their sites with the finishes first, and notes about what can't be told.
pub(super) struct Found {
    pub(super) calls: Vec<SitedCall>,
    pub(super) sites: Vec<Site>,
    /// Sites of messages, entries first.
    pub(super) message_sites: Vec<Site>,
    pub(super) notes: Vec<String>,
    /// Notes about calls that are not watched at all.
    pub(super) unwatched: Vec<String>,
}
