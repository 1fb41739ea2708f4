//! The fields that a line and the answer about slow calls have in common; `docs/events.md` explains them.

use std::{net::SocketAddr, time::Duration};

use serde::Serialize;

use crate::pipeline::{Details, Labels};

/// The identity of a call, and how it ended. The order of the fields is the order of an answer's parts.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CallFields<'a> {
    target: u32,
    side: &'static str,
    caller: &'a str,
    callee: &'a str,
    method: &'a str,
    #[serde(rename = "type")]
    call_type: &'static str,
    status: &'static str,
}

impl<'a> CallFields<'a> {
    /// Returns the fields of a finished call of a target.
    pub(super) fn of(target: u32, labels: &'a Labels) -> Self {
        Self {
            target,
            side: labels.side.name(),
            caller: &labels.caller,
            callee: &labels.callee,
            method: &labels.method,
            call_type: labels.call_type.name(),
            status: labels.status(),
        }
    }
}

/// Further fields of a finished call.
#[derive(Default, Serialize)]
pub(super) struct DetailFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    goroutine: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    received_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
}

impl DetailFields {
    /// Returns the fields of these details; all are absent without details.
    pub(super) fn of(details: Option<Details>) -> Self {
        let Some(Details { goroutine, sent_bytes, received_bytes, peer }) = details else {
            return Self::default();
        };
        Self { goroutine: Some(goroutine), sent_bytes, received_bytes, peer }
    }
}

/// Converts a duration to whole microseconds, rounding down.
pub(super) fn micros(duration: Option<Duration>) -> Option<u64> {
    // No duration in nanoseconds that fits into 64 bits is longer.
    duration.map(|duration| duration.as_micros().try_into().unwrap_or(u64::MAX))
}
