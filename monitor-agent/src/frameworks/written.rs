//! The format of a framework's file, as it is parsed.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use crate::specs::written::{WrittenEnd, WrittenEntry, WrittenSide};

/// The key that decides the format of the rest of the file.
#[derive(Deserialize)]
pub(super) struct Head {
    pub(super) told_by: ToldBy,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToldBy {
    Type,
    Function,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenByType {
    pub(super) name: Spanned<String>,
    pub(super) title: Spanned<String>,
    pub(super) module: Spanned<String>,
    #[serde(rename = "told_by")]
    _told_by: ToldBy,
    pub(super) metrics: WrittenMetrics,
    pub(super) home: Spanned<Vec<Spanned<WrittenHome>>>,
    pub(super) operation: Spanned<Vec<Spanned<WrittenShape>>>,
    pub(super) errors: WrittenErrors,
    pub(super) messages: WrittenMessages,
    pub(super) protocols: WrittenProtocols,
    pub(super) open_interfaces: BTreeMap<String, Spanned<String>>,
    pub(super) untold: Spanned<Vec<WrittenUntold>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenByFunction {
    pub(super) name: Spanned<String>,
    pub(super) title: Spanned<String>,
    pub(super) module: Spanned<String>,
    #[serde(rename = "told_by")]
    _told_by: ToldBy,
    pub(super) metrics: WrittenMetrics,
    pub(super) operation: Spanned<Vec<Spanned<WrittenCall>>>,
    pub(super) status: WrittenStatus,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenMetrics {
    pub(super) family: WrittenFamily,
    pub(super) labels: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WrittenFamily {
    Kitex,
    Grpc,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenHome {
    pub(super) start: Spanned<WrittenEntry>,
    pub(super) finish: Spanned<WrittenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenShape {
    pub(super) name: Spanned<String>,
    pub(super) side: WrittenSide,
    pub(super) key: WrittenKey,
    pub(super) types: Spanned<BTreeMap<String, Spanned<String>>>,
    pub(super) labels: WrittenNames,
    pub(super) when: Option<WrittenCondition>,
    pub(super) streaming: WrittenQuestion,
    pub(super) oneway: WrittenQuestion,
    pub(super) stream: Spanned<String>,
    pub(super) sent_bytes: Spanned<String>,
    pub(super) received_bytes: Spanned<String>,
    pub(super) peer: Option<WrittenPeer>,
    pub(super) retries: Option<Spanned<String>>,
    pub(super) protocol: Spanned<String>,
    pub(super) panicked: Spanned<String>,
    pub(super) recorded: WrittenRecorded,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WrittenKey {
    Pointer,
    GoroutineUnlessStreaming,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenNames {
    pub(super) caller: Spanned<String>,
    pub(super) callee: Spanned<String>,
    pub(super) method: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenCondition {
    pub(super) field: Spanned<String>,
    pub(super) holds: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenQuestion {
    pub(super) number: Spanned<Choices>,
    pub(super) is: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenPeer {
    pub(super) address: Spanned<String>,
    pub(super) port: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenRecorded {
    pub(super) events: Spanned<String>,
    pub(super) index: u8,
    pub(super) state: Spanned<String>,
    pub(super) bit: u32,
    pub(super) time: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenErrors {
    pub(super) class: Spanned<String>,
    pub(super) message: Spanned<String>,
    pub(super) wrapped: Spanned<String>,
    pub(super) points: Spanned<String>,
    pub(super) carrier: Spanned<String>,
    pub(super) carries: Spanned<String>,
    pub(super) messages: Spanned<BTreeMap<String, Spanned<String>>>,
    pub(super) types: Spanned<BTreeMap<String, Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenMessages {
    pub(super) sent: Spanned<String>,
    pub(super) received: Spanned<String>,
    pub(super) arguments: Spanned<String>,
    pub(super) error: Spanned<String>,
    pub(super) handlers: Spanned<Vec<WrittenHandlers>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenHandlers {
    #[serde(rename = "in")]
    pub(super) way: Spanned<String>,
    pub(super) sent: Spanned<String>,
    pub(super) received: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenProtocols {
    pub(super) none: Spanned<String>,
    pub(super) bits: Spanned<Vec<(u16, Spanned<String>)>>,
    pub(super) joined_since: (u32, u32),
    pub(super) combinations: Spanned<Vec<(u16, Spanned<String>)>>,
    pub(super) other: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenUntold {
    pub(super) since: (u32, u32),
    pub(super) before: (u32, u32),
    pub(super) note: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenCall {
    pub(super) name: Spanned<String>,
    pub(super) side: WrittenSide,
    #[serde(rename = "key")]
    _key: PointerKey,
    pub(super) key_at: Option<Spanned<String>>,
    pub(super) policy: Option<CallPolicy>,
    pub(super) starts_as: Option<Spanned<String>>,
    pub(super) in_place_of: Option<Spanned<String>>,
    pub(super) types: BTreeMap<String, Spanned<Choices>>,
    pub(super) labels: WrittenMethod,
    pub(super) unary: Option<Spanned<bool>>,
    pub(super) streams: Option<WrittenStreams>,
    pub(super) not_within: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) ends_once: Option<Spanned<String>>,
    pub(super) begins_if: Option<WrittenQuestion>,
    pub(super) first_if: Option<WrittenQuestion>,
    #[serde(default)]
    pub(super) only_if: Vec<WrittenQuestion>,
    pub(super) start: Option<Spanned<Vec<Spanned<WrittenEnd>>>>,
    pub(super) finish: Spanned<Vec<Spanned<WrittenEnd>>>,
    pub(super) also_finish: Option<Spanned<Vec<Spanned<WrittenEnd>>>>,
    pub(super) error_finish: Option<Spanned<Vec<Spanned<WrittenErrorEnd>>>>,
    pub(super) messages: Option<Spanned<Vec<WrittenMethods>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenErrorEnd {
    pub(super) function: Spanned<String>,
    pub(super) arguments: Spanned<String>,
    pub(super) given_by: Spanned<String>,
    pub(super) key: Spanned<usize>,
    pub(super) error: Spanned<String>,
    pub(super) code: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenMethods {
    #[serde(rename = "in")]
    pub(super) way: Spanned<Choices>,
    pub(super) sent: Spanned<String>,
    pub(super) received: Spanned<String>,
    pub(super) arguments: Spanned<String>,
    pub(super) pointer: Option<Spanned<String>>,
    pub(super) interface: Option<WrittenInterface>,
    pub(super) streams: WrittenStreams,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenInterface {
    pub(super) field: Spanned<String>,
    pub(super) holds: Spanned<String>,
    pub(super) no_call: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PointerKey {
    Pointer,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CallPolicy {
    Overwrite,
    FirstFinish,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenMethod {
    pub(super) method: Spanned<Choices>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenStreams {
    pub(super) client: Spanned<String>,
    pub(super) server: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenStatus {
    pub(super) error: Spanned<String>,
    pub(super) from_error: Spanned<String>,
    pub(super) message: Spanned<String>,
    pub(super) code: Spanned<String>,
    pub(super) well: WrittenWell,
    pub(super) wrap: WrittenWrap,
    pub(super) codes: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenWell {
    pub(super) error: Spanned<String>,
    pub(super) text: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenWrap {
    pub(super) error: Spanned<String>,
    pub(super) field: Spanned<String>,
}

/// One text, or alternatives for different releases.
#[derive(Deserialize)]
#[serde(untagged, expecting = "one text, or a list of texts to choose from")]
pub(super) enum Choices {
    One(String),
    Several(Vec<String>),
}

impl Choices {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
        }
    }
}
