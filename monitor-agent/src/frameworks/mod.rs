//! What the agent knows about RPC frameworks: data, no code.
//!
//! A framework is described by names only: of functions, types and fields. Which addresses and offsets these
//! have in a given executable is the [plan](crate::plan)'s to find and to prove.

mod kitex;
mod spec;

pub use spec::{
    Alternatives, Condition, ErrorSpec, Framework, Home, Key, MessageSpec, Pair, ProtocolSpec, Question,
    Route, ShapeSpec, Side,
};

/// Every framework the agent knows.
pub static FRAMEWORKS: &[&Framework] = &[&kitex::KITEX];
