//! Label sets as people and Prometheus see them.

use std::{borrow::Cow, sync::Arc};

use monitor_ebpf::{
    LabelSet, TEXT_BYTES, call_type, error_class, label, mark, protocol, retry_count, side, status_code,
    stream,
};

use crate::frameworks;

/// Longest string that is looked up in the file for a label whose bytes were not in memory.
const LOOKUP_MAX: u64 = 1 << 20;

/// On which side of the call the target was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// It called.
    Client,
    /// It was called.
    Server,
}

/// What kind of call it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallType {
    /// One request, one reply.
    PingPong,
    /// One request, no reply.
    Oneway,
    /// A stream.
    Streaming,
}

/// What kind of stream a message went over (`pkg/serviceinfo/serviceinfo.go` @ v0.16.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamKind {
    /// The executable doesn't say.
    Unknown,
    /// One request and one reply, over a streaming protocol.
    Unary,
    /// Only the client sends more than one message.
    Client,
    /// Only the server does.
    Server,
    /// Both do.
    Bidirectional,
}

impl StreamKind {
    /// By one of [`stream`].
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

    /// The value of the label `kind`.
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

/// The framework whose calls they are, as far as the meaning of a label set depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Framework {
    /// Kitex: three names, a class of errors.
    #[default]
    Kitex,
    /// gRPC: one name for service and method, the code of a status.
    Grpc,
    /// A user's spec: up to three names and a number, which only the spec knows the meaning of.
    Spec {
        /// Number of the spec.
        spec: u8,
        /// Number of the operation in it; where that is not known yet, of the first that it may be.
        operation: u8,
    },
}

/// What a label set needs of the executable to be decoded.
pub trait Executable {
    /// The framework.
    fn framework(&self) -> Framework;

    /// Bytes that were not in memory: gets an address of the target and a length, and gives them only when they
    /// can't have changed since the file was mapped.
    fn constant(&self, address: u64, length: usize) -> Option<Vec<u8>>;

    /// Whether any number of an operation of a spec may be what was read. Else one with all bits set was not read.
    fn reads_any_number(&self, operation: u8) -> bool {
        let _ = operation;
        false
    }

    /// Whether an operation of a spec has failed that ended with this number.
    fn fails(&self, operation: u8, number: Option<u32>) -> bool {
        let _ = (operation, number);
        false
    }

    /// Whether the programs can read how often a client's call was retried. Where they can't, they write 0.
    fn tells_retries(&self) -> bool {
        true
    }

    /// Name of the class of errors that the object at this offset of the executable stands for.
    fn error_class(&self, offset: u32) -> &'static str;

    /// Name of the protocol that the framework has this number for.
    fn protocol(&self, number: u16) -> Option<String>;
}

/// The labels of a call. Names are as they are to be shown: `unknown` where the in-process code says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    /// The framework.
    pub framework: Framework,
    /// Side of the call.
    pub side: Side,
    /// Kind of the call.
    pub call_type: CallType,
    /// The service that called.
    pub caller: String,
    /// The service that was called.
    pub callee: String,
    /// The method.
    pub method: String,
    /// Whether it finished with an error.
    pub failed: bool,
    /// How often it was retried, in digits; `unreadable` where that could not be read.
    pub retry: String,
    /// Class of the error; `none` where there is none, and where nobody asked. gRPC has codes in place of classes:
    /// [`error`](Self::error) has both.
    pub error_class: &'static str,
    /// The protocol that it went over, as the framework writes that; empty where nobody asked, `unreadable` where that
    /// could not be read.
    pub protocol: String,
    /// Whether the target's code panicked in it, if anybody asked. Not every panic ends in an error.
    pub panicked: bool,
    /// Kind of stream, in the label sets of messages and of gRPC.
    pub stream: StreamKind,
    /// The status's code, where the framework has codes and it could be read.
    pub code: Option<u32>,
    /// How many of its names are longer than what is kept of one: such a name may be another's that begins alike. gRPC's
    /// service and method are one name.
    pub cut_names: u8,
}

impl Side {
    /// The side's name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

impl CallType {
    /// The value of the label `type`.
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
    /// Decodes what the programs wrote.
    pub fn decode(set: &LabelSet, executable: &dyn Executable) -> Self {
        match executable.framework() {
            Framework::Kitex => Self::decode_names(set, executable),
            Framework::Grpc => Self::decode_path(set, executable),
            Framework::Spec { spec, operation } => Self::decode_operation((spec, operation), set, executable),
        }
    }

    /// Of an operation of a spec: the names in their order, and a number.
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

    /// Of a framework with one name for service and method, `/package.Service/Method`, which takes the room of all three.
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

    /// The value of the label `status`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        if self.failed { "error" } else { "succeed" }
    }

    /// The name of the status's code, as gRPC-Go writes it.
    #[must_use]
    pub fn code_name(&self) -> Cow<'static, str> {
        let Some(code) = self.code else { return Cow::Borrowed(UNREADABLE) };
        frameworks::known().code(code).map_or_else(|| Cow::Owned(format!("Code({code})")), Cow::Borrowed)
    }

    /// What kind of error it finished with: of gRPC the name of the code, else the class. `None` where there is none.
    #[must_use]
    pub fn error(&self) -> Option<Cow<'static, str>> {
        self.failed.then(|| match self.framework {
            Framework::Grpc => self.code_name(),
            Framework::Kitex | Framework::Spec { .. } => Cow::Borrowed(self.error_class),
        })
    }
}

/// The labels of each label set number that was met, decoded once.
#[derive(Debug, Default)]
pub struct KnownLabels(Vec<Option<Arc<Labels>>>);

impl KnownLabels {
    /// The labels of a number; `decode` is asked for those that were not met before.
    pub fn get(&mut self, label_set: u32, decode: impl FnOnce() -> Labels) -> &Arc<Labels> {
        let index = label_set as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, None);
        }
        self.0[index].get_or_insert_with(|| Arc::new(decode()))
    }
}

/// Stands for a name that could not be read.
pub(crate) const UNREADABLE: &str = "unreadable";
/// Stands for an empty name, as in the in-process code.
pub(crate) const UNKNOWN: &str = "unknown";
/// Stands for names past the limit on label sets, and for errors of no known class.
pub(crate) const OTHER: &str = "other";
/// The class of calls without an error.
const NO_ERROR: &str = "none";

fn without_names(set: &LabelSet) -> LabelSet {
    let LabelSet { lengths, marks, text, .. } = LabelSet::EMPTY;
    LabelSet { lengths, marks, text, ..*set }
}

/// A name as it is to be shown.
struct Name {
    shown: String,
    is_cut: bool,
    /// Something else stands in for it.
    is_instead: bool,
}

impl Name {
    fn of(bytes: &[u8], is_cut: bool) -> Self {
        Self { shown: shown(bytes, is_cut), is_cut, is_instead: false }
    }

    /// What stands in for a name.
    fn instead(text: &str) -> Self {
        Self { shown: text.to_owned(), is_cut: false, is_instead: true }
    }

    /// Service and method of `/package.Service/Method`, where go-grpc-prometheus parts them. A peer may call what lacks
    /// either, or both.
    fn service_and_method(&self) -> (&str, &str) {
        let whole = self.shown.as_str();
        let path = whole.strip_prefix('/').unwrap_or(whole);
        match path.split_once('/') {
            Some((service, method)) => (or_unknown(service), or_unknown(method)),
            // What stands in for the path does so for both, and where it was cut the method is gone.
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

/// A label that has this much room.
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

/// A text that ends at a byte that is 0, by its address.
fn looked_up_c(text: &[u8], executable: &dyn Executable) -> Option<Name> {
    let address = u64::from_ne_bytes(*text.first_chunk()?);
    let bytes = executable.constant(address, TEXT_BYTES + 1)?;
    let end = bytes.iter().position(|byte| *byte == 0);
    Some(Name::of(bytes.get(..end.unwrap_or(TEXT_BYTES))?, end.is_none()))
}

/// A name's bytes as a label value: never empty, always UTF-8, marked when it was cut.
#[must_use]
pub fn shown(bytes: &[u8], cut: bool) -> String {
    if bytes.is_empty() {
        return UNKNOWN.to_owned();
    }
    if !cut {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    // A character that the cut went through is left out; it is not a wrong byte of the target's.
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.get(..error.valid_up_to()).unwrap_or(bytes),
        _ => bytes,
    };
    format!("{}…", String::from_utf8_lossy(whole))
}

/// An executable that nothing is known of.
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
