//! What the agent knows about RPC frameworks: data, no code.
//!
//! A framework is described by names only: of functions, types and fields. Which addresses and offsets these
//! have in a given executable is the [plan](crate::plan)'s to find and to prove.

mod grpc;
mod kitex;
mod spec;

pub use spec::{
    Alternatives, CallSpec, Condition, Entry, ErrorSpec, Framework, Home, Key, KindSpec, MessageSpec,
    ObjectOf, Pair, ProtocolSpec, Question, RecordedSpec, Route, ShapeSpec, Side, SitedFramework,
    SitedMessages, StatusSpec, Way,
};

/// The frameworks whose calls are told by the type of their object.
pub static FRAMEWORKS: &[&Framework] = &[&kitex::KITEX];

/// The frameworks whose calls are told by the function that they enter.
pub static SITED_FRAMEWORKS: &[&SitedFramework] = &[&grpc::GRPC];
