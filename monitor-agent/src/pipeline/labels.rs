//! Label sets, decoded for people and for Prometheus.

use std::{borrow::Cow, sync::Arc};

use monitor_ebpf::{
    LabelSet, TEXT_BYTES, call_type, error_class, label, mark, protocol, retry_count, side, status_code,
    stream,
};

use crate::frameworks;

/// The longest string that is looked up in the file for a label whose bytes were not in memory, in bytes.
const LOOKUP_MAX: u64 = 1 << 20;

/// The target's side of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The target called.
    Client,
    /// The target was called.
    Server,
}

/// The kind of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallType {
    /// One request, one reply.
    PingPong,
    /// One request, no reply.
    Oneway,
    /// A stream.
    Streaming,
}

/// The kind of a stream (`pkg/serviceinfo/serviceinfo.go` @ v0.16.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    /// The executable does not contain the kind.
    Unknown,
    /// One request and one reply, over a streaming protocol.
    Unary,
    /// Only the client sends more than one message.
    Client,
    /// Only the server sends more than one message.
    Server,
    /// Both sides send more than one message.
    Bidirectional,
}

impl StreamKind {
    /// Converts one of the numbers in [`stream`].
    #[must_use]
    pub fn of(number: u8) -> Self {
        match number {
            1 => Self::Unary,
            2 => Self::Client,
            4 => Self::Server,
            6 => Self::Bidirectional,
            _ => Self::Unknown,
        }
    }

    /// Returns the value of the label `kind`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Unary => "unary",
            Self::Client => "client",
            Self::Server => "server",
            Self::Bidirectional => "bidirectional",
        }
    }
}

/// The framework of a call, as far as the meaning of a label set depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Framework {
    /// Kitex: three names and a class of errors.
    #[default]
    Kitex,
    /// gRPC: one name for service and method, and a status code.
    Grpc,
    /// A user's spec: up to three names and a number, whose meaning only the spec knows.
    Spec {
        /// The number of the spec.
        spec: u8,
        /// The number of the operation in the spec; before it is known, the first that it can be.
        operation: u8,
    },
}

/// What decoding a label set needs to know about the executable.
pub trait Executable {
    /// The framework.
    fn framework(&self) -> Framework;

    /// Returns the `length` bytes at an address of the target that were not in memory. `None` if they may have changed
    /// since the file was mapped.
    fn constant(&self, address: u64, length: usize) -> Option<Vec<u8>>;

    /// Returns whether every value of an operation's number is valid. If not, a number with all bits set was not read.
    fn reads_any_number(&self, operation: u8) -> bool {
        let _ = operation;
        false
    }

    /// Returns whether an operation of a spec that ended with this number has failed.
    fn fails(&self, operation: u8, number: Option<u32>) -> bool {
        let _ = (operation, number);
        false
    }

    /// Returns whether the programs can read how often a client's call was retried. If not, they write 0.
    fn tells_retries(&self) -> bool {
        true
    }

    /// Returns the name of the class of errors that the object at this offset of the executable stands for.
    fn error_class(&self, offset: u32) -> &'static str;

    /// Returns the name of the protocol to which the framework gives this number.
    fn protocol(&self, number: u16) -> Option<String>;
}

/// The labels of a call. Names are stored as they are shown: `unknown` where the in-process code shows that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    /// The framework.
    pub framework: Framework,
    /// The target's side of the call.
    pub side: Side,
    /// The kind of the call.
    pub call_type: CallType,
    /// The name of the calling service.
    pub caller: String,
    /// The name of the called service.
    pub callee: String,
    /// The name of the method.
    pub method: String,
    /// Whether the call finished with an error.
    pub failed: bool,
    /// How often the call was retried, in digits; `unreadable` if that could not be read.
    pub retry: String,
    /// The class of the error; `none` if there is no error, or if the class is not read. gRPC has codes instead of
    /// classes: [`error`](Self::error) covers both.
    pub error_class: &'static str,
    /// The call's protocol, in the framework's spelling; empty if it is not read, `unreadable` if it could not be read.
    pub protocol: String,
    /// Whether the target's code panicked during the call, if that is read. Not every panic ends in an error.
    pub panicked: bool,
    /// The kind of stream, in the label sets of messages and of gRPC.
    pub stream: StreamKind,
    /// The status code, if the framework has codes and it could be read; for an operation of a spec, its number.
    pub code: Option<u32>,
    /// The number of names that were cut, since they are longer than a label set keeps. A cut name may stand for
    /// several names that begin alike. gRPC's service and method count as one name.
    pub cut_names: u8,
}

impl Side {
    /// Returns the side's name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

impl CallType {
    /// Returns the value of the label `type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PingPong => "pingpong",
            Self::Oneway => "oneway",
            Self::Streaming => "streaming",
        }
    }
}

impl Labels {
    /// Decodes a label set that the programs wrote.
    pub fn decode(set: &LabelSet, executable: &dyn Executable) -> Self {
        match executable.framework() {
            Framework::Kitex => Self::decode_names(set, executable),
            Framework::Grpc => Self::decode_path(set, executable),
            Framework::Spec { spec, operation } => Self::decode_operation((spec, operation), set, executable),
        }
    }

    /// Decodes the label set of an operation of a spec: the names in their order, and a number.
    fn decode_operation((spec, first): (u8, u8), set: &LabelSet, executable: &dyn Executable) -> Self {
        let operation = first.saturating_add(set.stream.saturating_sub(stream::FIRST_OPERATION));
        let is_read = |code: &u32| {
            set.retry != retry_count::UNREADABLE
                && (*code != status_code::UNREADABLE || executable.reads_any_number(operation))
        };
        let code = Some(set.error).filter(is_read);
        let failed = set.failed != 0 || executable.fails(operation, code);
        Self {
            framework: Framework::Spec { spec, operation },
            code,
            failed,
            error_class: if failed { OTHER } else { NO_ERROR },
            ..Self::decode_names(
                &LabelSet { error: error_class::NONE, stream: 0, retry: 0, ..*set },
                executable,
            )
        }
    }

    /// Decodes the label set of a framework with one name for service and method, `/package.Service/Method`, which
    /// takes the room of all three names.
    fn decode_path(set: &LabelSet, executable: &dyn Executable) -> Self {
        let path = text(set.text.as_flattened(), set, 0, executable);
        let (service, method) = path.service_and_method();
        Self {
            framework: Framework::Grpc,
            callee: service.to_owned(),
            method: method.to_owned(),
            code: Some(set.error).filter(|code| *code != status_code::UNREADABLE),
            error_class: if set.failed == 0 { NO_ERROR } else { OTHER },
            cut_names: u8::from(path.is_cut),
            ..Self::decode_names(&LabelSet { error: error_class::NONE, ..without_names(set) }, executable)
        }
    }

    fn decode_names(set: &LabelSet, executable: &dyn Executable) -> Self {
        let mut cut_names = 0;
        let [caller, service, method] = [label::CALLER, label::CALLEE, label::METHOD].map(|index| {
            let Name { shown, is_cut, .. } = name(set, index, executable);
            cut_names += u8::from(is_cut);
            shown
        });
        let side = if set.side == side::SERVER { Side::Server } else { Side::Client };
        Self {
            framework: Framework::Kitex,
            side,
            call_type: match set.call_type {
                call_type::ONEWAY => CallType::Oneway,
                call_type::STREAMING => CallType::Streaming,
                _ => CallType::PingPong,
            },
            caller,
            callee: service,
            method,
            failed: set.failed != 0,
            retry: match set.retry {
                retry_count::UNREADABLE => UNREADABLE.to_owned(),
                _ if side == Side::Client && !executable.tells_retries() => UNREADABLE.to_owned(),
                count => count.to_string(),
            },
            error_class: match set.error {
                error_class::NONE => NO_ERROR,
                error_class::ELSEWHERE => OTHER,
                offset => executable.error_class(offset),
            },
            protocol: match set.protocol {
                protocol::NONE => String::new(),
                protocol::UNREADABLE => UNREADABLE.to_owned(),
                number => executable.protocol(number - 1).unwrap_or_else(|| UNREADABLE.to_owned()),
            },
            panicked: set.panicked != 0,
            stream: StreamKind::of(set.stream),
            code: None,
            cut_names,
        }
    }

    /// Returns the value of the label `status`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        if self.failed { "error" } else { "succeed" }
    }

    /// Returns the name of the status code, as gRPC-Go writes it.
    #[must_use]
    pub fn code_name(&self) -> Cow<'static, str> {
        let Some(code) = self.code else { return Cow::Borrowed(UNREADABLE) };
        frameworks::known().code(code).map_or_else(|| Cow::Owned(format!("Code({code})")), Cow::Borrowed)
    }

    /// Returns the kind of error that the call finished with: the name of the code for gRPC, otherwise the class.
    /// `None` if there was no error.
    #[must_use]
    pub fn error(&self) -> Option<Cow<'static, str>> {
        self.failed.then(|| match self.framework {
            Framework::Grpc => self.code_name(),
            Framework::Kitex | Framework::Spec { .. } => Cow::Borrowed(self.error_class),
        })
    }
}

/// The labels of each label set number seen so far, decoded once.
#[derive(Debug, Default)]
pub struct KnownLabels(Vec<Option<Arc<Labels>>>);

impl KnownLabels {
    /// Returns the labels of a label set number. `decode` is called if the number is new.
    pub fn get(&mut self, label_set: u32, decode: impl FnOnce() -> Labels) -> &Arc<Labels> {
        let index = label_set as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, None);
        }
        self.0[index].get_or_insert_with(|| Arc::new(decode()))
    }
}

/// The value shown for a name that could not be read.
pub(crate) const UNREADABLE: &str = "unreadable";
/// The value shown for an empty name, as in the in-process code.
pub(crate) const UNKNOWN: &str = "unknown";
/// The value shown for names past the limit on label sets, and for errors of no known class.
pub(crate) const OTHER: &str = "other";
/// The class of calls without an error.
const NO_ERROR: &str = "none";

fn without_names(set: &LabelSet) -> LabelSet {
    let LabelSet { lengths, marks, text, .. } = LabelSet::EMPTY;
    LabelSet { lengths, marks, text, ..*set }
}

/// A name as it is shown.
struct Name {
    shown: String,
    is_cut: bool,
    /// Whether `shown` is a placeholder, such as `other`.
    is_instead: bool,
}

impl Name {
    fn of(bytes: &[u8], is_cut: bool) -> Self {
        Self { shown: shown(bytes, is_cut), is_cut, is_instead: false }
    }

    /// Creates a placeholder for a name.
    fn instead(text: &str) -> Self {
        Self { shown: text.to_owned(), is_cut: false, is_instead: true }
    }

    /// Splits `/package.Service/Method` into service and method where go-grpc-prometheus does. A peer may call a path
    /// that lacks either, or both.
    fn service_and_method(&self) -> (&str, &str) {
        let whole = self.shown.as_str();
        let path = whole.strip_prefix('/').unwrap_or(whole);
        match path.split_once('/') {
            Some((service, method)) => (or_unknown(service), or_unknown(method)),
            // A placeholder stands for both. If a path without a second slash was cut, its method is lost.
            None if self.is_instead || self.is_cut => (path, path),
            None => (UNKNOWN, UNKNOWN),
        }
    }
}

fn or_unknown(name: &str) -> &str {
    if name.is_empty() { UNKNOWN } else { name }
}

fn name(set: &LabelSet, index: usize, executable: &dyn Executable) -> Name {
    text(set.text.get(index).map_or(&[][..], |text| &text[..]), set, index, executable)
}

/// Decodes a label whose text is in `room`.
fn text(room: &[u8], set: &LabelSet, index: usize, executable: &dyn Executable) -> Name {
    let length = set.lengths.get(index).map_or(0, |length| usize::from(*length));
    let text = room.get(..length).unwrap_or(room);
    let name = match set.marks.get(index).copied() {
        Some(mark::WHOLE) => Some(Name::of(text, false)),
        Some(mark::CUT) => Some(Name::of(text, true)),
        Some(mark::OTHER) => Some(Name::instead(OTHER)),
        Some(mark::ADDRESS | mark::LITERAL) => looked_up(text, room.len(), executable),
        Some(mark::C_ADDRESS) => looked_up_c(text, executable),
        _ => None,
    };
    name.unwrap_or_else(|| Name::instead(UNREADABLE))
}

fn looked_up(text: &[u8], room: usize, executable: &dyn Executable) -> Option<Name> {
    let (address, rest) = text.split_first_chunk()?;
    let (length, _) = rest.split_first_chunk()?;
    let (address, length) = (u64::from_ne_bytes(*address), u64::from_ne_bytes(*length));
    let cut = length > room as u64;
    let kept = usize::try_from(length.min(LOOKUP_MAX)).ok()?.min(room);
    let bytes = executable.constant(address, kept)?;
    Some(Name::of(bytes.get(..kept)?, cut))
}

/// Looks up a string that ends with a zero byte, by its address.
fn looked_up_c(text: &[u8], executable: &dyn Executable) -> Option<Name> {
    let address = u64::from_ne_bytes(*text.first_chunk()?);
    let bytes = executable.constant(address, TEXT_BYTES + 1)?;
    let end = bytes.iter().position(|byte| *byte == 0);
    Some(Name::of(bytes.get(..end.unwrap_or(TEXT_BYTES))?, end.is_none()))
}

/// Converts a name's bytes to a label value: never empty, always UTF-8, ending in `…` if it was cut.
#[must_use]
pub fn shown(bytes: &[u8], cut: bool) -> String {
    if bytes.is_empty() {
        return UNKNOWN.to_owned();
    }
    if !cut {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    // A character that the cut split is left out, since it is not an invalid byte of the target's.
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.get(..error.valid_up_to()).unwrap_or(bytes),
        _ => bytes,
    };
    format!("{}…", String::from_utf8_lossy(whole))
}

/// An executable of which nothing is known.
pub(crate) struct NoExecutable;

impl Executable for NoExecutable {
    fn framework(&self) -> Framework {
        Framework::Kitex
    }

    fn constant(&self, _: u64, _: usize) -> Option<Vec<u8>> {
        None
    }

    fn error_class(&self, _: u32) -> &'static str {
        OTHER
    }

    fn protocol(&self, _: u16) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests;
