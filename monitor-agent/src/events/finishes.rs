//! The lines of finished calls as JSON.
//!
//! There may be a hundred thousand such lines a second. Most of a line is the same for all calls with the same labels:
//! that part is made once.

use std::{borrow::Cow, collections::BTreeMap, io::Write as _, sync::Arc};

use serde::Serialize;

use super::{
    fields::{CallFields, micros},
    lines::append_json,
};
use crate::{
    pipeline::{Details, FinishedCall, Labels},
    specs::{Operation, Spec, Specs},
};

/// The number of label sets whose parts are kept. Those that share a place in the table replace each other.
const PLACES: usize = 1_024;

/// Writes the lines of finished calls.
#[derive(Debug, Default)]
pub(super) struct Finishes {
    known: Vec<Option<Known>>,
}

/// What all lines of calls with the same labels in the same target have in common.
#[derive(Debug)]
struct Known {
    target: u32,
    labels: Arc<Labels>,
    /// The fields before the duration, without braces.
    before: Vec<u8>,
    /// The fields after it, each with a comma in front.
    after: Vec<u8>,
    has_goroutine: bool,
}

impl Finishes {
    /// Appends the line of a call that finished at `time`.
    pub(super) fn write(&mut self, call: &FinishedCall<'_>, time: &str, specs: &Specs, out: &mut Vec<u8>) {
        let known = self.known(call, specs);
        out.extend_from_slice(b"{\"event\":\"finish\",\"time\":\"");
        out.extend_from_slice(time.as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(&known.before);
        out.extend_from_slice(b",\"duration_us\":");
        match micros(call.duration) {
            Some(duration_us) => append_number(duration_us, out),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(&known.after);
        if let Some(details) = call.details {
            append_details(&details, known.has_goroutine, out);
        }
        out.extend_from_slice(b"}\n");
    }

    fn known(&mut self, call: &FinishedCall<'_>, specs: &Specs) -> &Known {
        let FinishedCall { target, labels, .. } = *call;
        if self.known.is_empty() {
            self.known.resize_with(PLACES, || None);
        }
        let place = &mut self.known[place_of(labels)];
        place.take_if(|known| known.target != target || !Arc::ptr_eq(&known.labels, labels));
        place.get_or_insert_with(|| Known::new(target, labels, specs))
    }
}

impl Known {
    fn new(target: u32, labels: &Arc<Labels>, specs: &Specs) -> Self {
        let kept = Arc::clone(labels);
        if let Some((spec, operation)) = labels.operation(specs) {
            let before = fields(&OperationFields::of(target, labels, spec, operation));
            let has_goroutine = operation.native.is_none();
            return Self { target, labels: kept, before, after: Vec::new(), has_goroutine };
        }
        let before = fields(&CallFields::of(target, labels));
        let error = labels.error().map(|error| fields(&ErrorField { error }));
        let after = error.map(|field| [b",".as_slice(), &field].concat()).unwrap_or_default();
        Self { target, labels: kept, before, after, has_goroutine: true }
    }
}

/// The fields that tell a spec's operation from others; `docs/events.md` explains them.
#[derive(Serialize)]
struct OperationFields<'a> {
    target: u32,
    spec: &'a str,
    operation: &'a str,
    side: &'static str,
    labels: BTreeMap<&'a str, Cow<'a, str>>,
    /// Absent if the spec does not define failure, or if the number that decides was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

impl<'a> OperationFields<'a> {
    fn of(target: u32, labels: &'a Labels, spec: &'a Spec, operation: &'a Operation) -> Self {
        let names = spec.labels.iter().map(String::as_str);
        Self {
            target,
            spec: &spec.name,
            operation: &operation.name,
            side: labels.side.name(),
            labels: names.zip(labels.values(operation)).collect(),
            status: labels.ending(operation),
        }
    }
}

#[derive(Serialize)]
struct ErrorField {
    error: Cow<'static, str>,
}

/// Returns the place of a label set in the table.
fn place_of(labels: &Arc<Labels>) -> usize {
    Arc::as_ptr(labels).addr() / size_of::<Labels>() % PLACES
}

/// Returns the fields of an object as JSON, without the braces.
fn fields(object: &impl Serialize) -> Vec<u8> {
    let mut json = Vec::new();
    append_json(object, &mut json);
    json.pop();
    json.remove(0);
    json
}

fn append_details(details: &Details, has_goroutine: bool, out: &mut Vec<u8>) {
    let Details { goroutine, sent_bytes, received_bytes, peer } = *details;
    let numbers: [(&[u8], Option<u64>); 3] = [
        (b",\"goroutine\":", has_goroutine.then_some(goroutine)),
        (b",\"sent_bytes\":", sent_bytes),
        (b",\"received_bytes\":", received_bytes),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            out.extend_from_slice(name);
            append_number(number, out);
        }
    }
    if let Some(peer) = peer {
        // Writing to memory can't fail.
        let _ = write!(out, ",\"peer\":\"{peer}\"");
    }
}

fn append_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use monitor_ebpf::LabelSet;
    use serde_json::Value;

    use super::*;
    use crate::pipeline::NoExecutable;

    fn line(finishes: &mut Finishes, target: u32, labels: &Arc<Labels>, duration: Option<Duration>) -> Value {
        let call = FinishedCall {
            target,
            label_set: 0,
            labels,
            time_ns: 0,
            duration,
            has_own_start: false,
            details: None,
        };
        let mut out = Vec::new();
        finishes.write(&call, "now", &Specs::default(), &mut out);
        serde_json::from_slice(&out).expect("JSON")
    }

    /// There are more label sets than places.
    #[test]
    fn each_line_has_the_labels_of_its_own_call() {
        let labels = |number: usize| {
            let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
            let failed = number.is_multiple_of(2);
            Arc::new(Labels { method: number.to_string(), failed, error_class: "timeout", ..labels })
        };
        let all: Vec<_> = (0..3 * PLACES).map(labels).collect();
        let mut finishes = Finishes::default();
        for target in [7, 8, 7] {
            for (number, labels) in all.iter().enumerate() {
                let line = line(&mut finishes, target, labels, Some(Duration::from_micros(number as u64)));
                let error = number.is_multiple_of(2).then_some("timeout");
                assert_eq!((&line["target"], &line["duration_us"]), (&target.into(), &number.into()));
                assert_eq!(
                    (line["method"].as_str(), line["error"].as_str()),
                    (Some(&*number.to_string()), error)
                );
            }
        }
    }

    #[test]
    fn the_longest_duration_is_a_number() {
        let labels = Arc::new(Labels::decode(&LabelSet::EMPTY, &NoExecutable));
        let longest = Duration::from_nanos(u64::MAX);
        let line = line(&mut Finishes::default(), 1, &labels, Some(longest));
        assert_eq!(line["duration_us"].as_u64().map(u128::from), Some(longest.as_micros()));
    }
}
