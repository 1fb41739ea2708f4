//! Events as lines of text.

use std::{
    fmt::Write as _,
    io::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;

use super::{fields::micros, finishes::Finishes};
use crate::{
    pipeline::{CallType, Details, FinishedCall, Labels, Lost, Side, StartedCall, StreamKind},
    specs::{Operation, Spec, Specs},
    text::printable,
    time::rfc3339,
};

/// The format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Ndjson,
    /// Text for people.
    Pretty,
}

/// Writes events as lines.
#[derive(Debug)]
pub struct Lines {
    format: Format,
    time: TimeText,
    finishes: Finishes,
    specs: Specs,
}

impl Lines {
    /// Creates a writer of lines in a format, for calls and for operations of these specs.
    #[must_use]
    pub fn new(format: Format, specs: Specs) -> Self {
        Self { format, time: TimeText::default(), finishes: Finishes::default(), specs }
    }

    /// Returns the specs whose operations have lines.
    pub(super) fn specs(&self) -> &Specs {
        &self.specs
    }

    /// Appends the line of a start.
    pub(super) fn start(&mut self, call: &StartedCall<'_>, out: &mut Vec<u8>) {
        let (time, labels) = (self.time.of(call.time_ns), call.labels);
        let line = StartLine {
            event: "start",
            time,
            target: call.target,
            side: labels.side.name(),
            caller: &labels.caller,
            callee: &labels.callee,
            method: &labels.method,
            call_type: is_told(labels).then_some(labels.call_type.name()),
            goroutine: call.goroutine,
        };
        match self.format {
            Format::Ndjson => append_line(&line, out),
            Format::Pretty => pretty(out, time, &format!("{} starts {}", called(labels), via(labels))),
        }
    }

    /// Appends the line of a finish.
    pub(super) fn finish(&mut self, call: &FinishedCall<'_>, out: &mut Vec<u8>) {
        let time = self.time.of(call.time_ns);
        match self.format {
            Format::Ndjson => self.finishes.write(call, time, &self.specs, out),
            Format::Pretty => pretty(out, time, &finish_for_people(call, &self.specs)),
        }
    }

    /// Appends the line of a loss.
    pub(super) fn lost(&mut self, lost: &Lost, out: &mut Vec<u8>) {
        let time = self.time.of(lost.time_ns);
        let line = LostLine {
            event: "lost",
            time,
            target: lost.target,
            lost: lost.count,
            of: lost.event.name(),
            reason: lost.reason.name(),
        };
        match self.format {
            Format::Ndjson => append_line(&line, out),
            Format::Pretty => {
                let text = format!("pid {} lost {} of {}: {}", line.target, line.lost, line.of, line.reason);
                pretty(out, time, &text);
            }
        }
    }
}

/// The fields of a start, in order; `docs/events.md` explains them.
#[derive(Serialize)]
struct StartLine<'a> {
    event: &'static str,
    time: &'a str,
    target: u32,
    side: &'static str,
    caller: &'a str,
    callee: &'a str,
    method: &'a str,
    #[serde(rename = "type")]
    call_type: Option<&'static str>,
    goroutine: u64,
}

/// The fields of a loss.
#[derive(Serialize)]
struct LostLine<'a> {
    event: &'static str,
    time: &'a str,
    target: u32,
    lost: u64,
    of: &'static str,
    reason: &'static str,
}

/// Returns what a line for people tells of a finished call.
fn finish_for_people(call: &FinishedCall<'_>, specs: &Specs) -> String {
    match call.labels.operation(specs) {
        Some((spec, operation)) => operation_for_people(call, spec, operation),
        None => call_for_people(call),
    }
}

fn operation_for_people(call: &FinishedCall<'_>, spec: &Spec, operation: &Operation) -> String {
    let mut text = format!("{} {}{}", spec.name, operation.name, took(call.duration));
    if let Some(status) = call.labels.ending(operation) {
        let _ = write!(text, " {status}");
    }
    let mut labels: Vec<_> = spec.labels.iter().zip(call.labels.values(operation)).collect();
    labels.sort();
    for (name, value) in labels {
        let _ = write!(text, " {name}={value}");
    }
    text
}

fn call_for_people(call: &FinishedCall<'_>) -> String {
    let labels = call.labels;
    let mut text = format!("{}{} {}", called(labels), took(call.duration), labels.status());
    if let Some(error) = labels.error() {
        let _ = write!(text, " ({error})");
    }
    let _ = write!(text, " {}", via(labels));
    let Some(Details { sent_bytes, received_bytes, peer, .. }) = call.details else { return text };
    for (bytes, what) in [(sent_bytes, "sent"), (received_bytes, "received")] {
        if let Some(bytes) = bytes {
            let _ = write!(text, ", {bytes} B {what}");
        }
    }
    if let Some(peer) = peer {
        let _ = write!(text, ", from {peer}");
    }
    text
}

/// Returns the part about the duration, which begins with a space.
fn took(duration: Option<Duration>) -> String {
    match micros(duration) {
        Some(us) => format!(" {us} µs"),
        None => " (no duration)".to_owned(),
    }
}

/// Returns whether the type of a starting call is known. Servers start most calls before they have read the request,
/// and with it the type. The servers of gRPC-Go know the kind.
fn is_told(labels: &Labels) -> bool {
    labels.side == Side::Client
        || labels.call_type != CallType::PingPong
        || labels.stream != StreamKind::Unknown
}

fn called(labels: &Labels) -> String {
    format!("{} {}", labels.side.name(), labels.method)
}

fn via(labels: &Labels) -> String {
    format!("{} -> {}", labels.caller, labels.callee)
}

fn append_line(line: &impl Serialize, out: &mut Vec<u8>) {
    append_json(line, out);
    out.push(b'\n');
}

/// Appends a value as JSON that does not control a terminal either.
pub(super) fn append_json(value: &impl Serialize, out: &mut Vec<u8>) {
    let begin = out.len();
    // Writing text and numbers to memory can't fail.
    let _ = serde_json::to_writer(&mut *out, value);
    escape_controls(out, begin);
}

/// Escapes the characters that JSON allows and terminals obey: DEL, and the control characters from U+0080 to U+009F,
/// of two bytes each. Names are chosen by the target's peers.
fn escape_controls(out: &mut Vec<u8>, begin: usize) {
    let written = out.get(begin..).unwrap_or_default();
    let is_control = |pair: &[u8]| matches!(pair, [0xc2, 0x80..=0x9f]);
    if !written.contains(&0x7f) && !written.windows(2).any(is_control) {
        return;
    }
    let text = String::from_utf8_lossy(written).into_owned();
    out.truncate(begin);
    for character in text.chars() {
        if character.is_control() {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        } else {
            let _ = write!(out, "{character}");
        }
    }
}

/// Writes a line for people. Names are chosen by the target's peers, so nothing in them may control a terminal.
fn pretty(out: &mut Vec<u8>, time: &str, text: &str) {
    let _ = writeln!(out, "{time} {}", printable(text));
}

/// Formats times. The part down to the second is cached, since most events share it.
#[derive(Debug, Default)]
struct TimeText {
    second: Option<u64>,
    text: String,
}

impl TimeText {
    /// The length of the cached part, in bytes: `2026-01-02T03:04:05`.
    const KEPT: usize = 19;

    fn of(&mut self, unix_ns: u64) -> &str {
        let (second, nanos) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = rfc3339(UNIX_EPOCH + Duration::from_secs(second));
        }
        self.text.truncate(Self::KEPT);
        self.text.push('.');
        self.text.extend(nine_digits(nanos).map(char::from));
        self.text.push('Z');
        &self.text
    }
}

/// Returns the last nine decimal digits of a number, as text. Written out, since each line has them: without the
/// standard library's formatting a line takes less time.
fn nine_digits(number: u64) -> [u8; 9] {
    let mut rest = number;
    let mut digits = [b'0'; 9];
    for digit in digits.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    digits
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use monitor_ebpf::LabelSet;

    use super::*;
    use crate::pipeline::{Details, EventKind, LossReason, NoExecutable};

    const TIME_NS: u64 = 1_767_323_045_000_000_006;

    fn labels() -> Labels {
        let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
        Labels { method: "Ec\"ho\u{1b}".to_owned(), caller: "shop".to_owned(), ..labels }
    }

    fn finish(format: Format, labels: Labels, call: FinishedCall<'_>) -> String {
        let mut out = Vec::new();
        Lines::new(format, Specs::default())
            .finish(&FinishedCall { labels: &Arc::new(labels), ..call }, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_finish_has_what_is_known() {
        let known = &Arc::new(labels());
        let peer = Some(SocketAddr::from(([127, 0, 0, 1], 80)));
        let details = Details { goroutine: 0xc000, sent_bytes: Some(5), received_bytes: None, peer };
        let call = FinishedCall {
            target: 7,
            label_set: 0,
            labels: known,
            time_ns: TIME_NS,
            duration: Some(Duration::from_nanos(1_999)),
            has_own_start: false,
            details: Some(details),
        };
        let failed = Labels { failed: true, error_class: "timeout", ..labels() };
        assert_eq!(
            finish(Format::Ndjson, failed.clone(), call),
            "{\"event\":\"finish\",\"time\":\"2026-01-02T03:04:05.000000006Z\",\"target\":7,\"side\":\"client\",\
             \"caller\":\"shop\",\"callee\":\"unknown\",\"method\":\"Ec\\\"ho\\u001b\",\"type\":\"pingpong\",\
             \"status\":\"error\",\"duration_us\":1,\"error\":\"timeout\",\"goroutine\":49152,\"sent_bytes\":5,\
             \"peer\":\"127.0.0.1:80\"}\n"
        );
        assert_eq!(
            finish(Format::Pretty, failed, call),
            "2026-01-02T03:04:05.000000006Z client Ec\"ho\\u{1b} 1 µs error (timeout) shop -> unknown, 5 B sent, from 127.0.0.1:80\n"
        );
        let unpaired = FinishedCall { duration: None, details: None, ..call };
        let line = finish(Format::Ndjson, labels(), unpaired);
        assert!(line.contains("\"status\":\"succeed\",\"duration_us\":null}"), "{line}");
    }

    #[test]
    fn no_name_steers_a_terminal() {
        let method = "Ec\u{9b}2Jho\u{7f}é\u{1b}";
        let labels = Labels { method: method.to_owned(), ..labels() };
        let call = FinishedCall {
            target: 7,
            label_set: 0,
            labels: &Arc::new(labels.clone()),
            time_ns: TIME_NS,
            duration: None,
            has_own_start: false,
            details: None,
        };
        let line = finish(Format::Ndjson, labels, call);
        assert!(!line.trim_end().contains(char::is_control), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(read["method"], method);
    }

    #[test]
    fn a_start_has_the_type_where_it_is_known_by_then() {
        let server = Labels { side: Side::Server, ..labels() };
        assert!(!is_told(&server));
        assert!(is_told(&Labels { stream: StreamKind::Unary, ..server }));
    }

    #[test]
    fn a_loss_says_how_many_and_why() {
        let mut out = Vec::new();
        let (event, reason) = (EventKind::Start, LossReason::RingFull);
        Lines::new(Format::Ndjson, Specs::default())
            .lost(&Lost { target: 7, time_ns: TIME_NS, event, reason, count: 3 }, &mut out);
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "{\"event\":\"lost\",\"time\":\"2026-01-02T03:04:05.000000006Z\",\"target\":7,\"lost\":3,\
             \"of\":\"start\",\"reason\":\"ring_full\"}\n"
        );
    }

    #[test]
    fn times_are_whole_at_every_second() {
        let mut text = TimeText::default();
        for ns in [TIME_NS, TIME_NS + 1, TIME_NS + 999_999_994, TIME_NS, 0] {
            assert_eq!(text.of(ns), rfc3339(UNIX_EPOCH + Duration::from_nanos(ns)));
        }
    }
}
