//! The Go runtime of a target, for the server to read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::proto::MetricFamily;
use tracing::{info, warn};

use super::{
    WatchConfig,
    aside::{Aside, Awaited},
    attached::Place,
};
use crate::{
    goruntime::{Detail, Fault, Known, Reader, Readings, Unknown},
    metrics::{self, Family},
    target::AddressSpace,
    text::printable,
};

/// Why something could not be read, as `monitor_read_errors_total` tells it.
const REASONS: [&str; 7] =
    ["evidence_differs", HELD_UP, "implausible", "no_table", "not_found", "not_in_memory", "not_permitted"];
/// Nothing was read at all, since the memory did not come.
const HELD_UP: &str = "held_up";

/// What is read at a time, and what is wrong with it; `None` if it is another program's.
pub(super) type Read = Option<(Readings, Vec<Fault>)>;

/// A reader, and what has gone wrong with it.
#[derive(Debug)]
pub(super) struct GoRuntime {
    /// `None` where there is nothing to read, or nothing any more.
    reader: Option<(AddressSpace, Arc<Mutex<Reader>>)>,
    readings: Aside,
    version: String,
    detail: Detail,
    target: String,
    errors: BTreeMap<&'static str, u32>,
}

impl GoRuntime {
    /// A reader for a target by what is known of its executable's runtime. What stands in the way is logged, and its metrics are
    /// absent.
    pub(super) fn open(place: &Place, known: Result<&Known, &Unknown>, config: &WatchConfig) -> Self {
        let name = place.name.clone();
        // Of what is not shown by default OpenTelemetry's old names have the calls of C.
        let has_old_names = config.metrics.contains(Family::Otel) && config.otel.go.old;
        let reader = reader(place, known, if has_old_names { Detail::All } else { config.go });
        let mut errors: BTreeMap<_, _> = REASONS.map(|reason| (reason, 0)).into();
        let reader = reader.map_err(|(reason, why)| {
            warn!("{name}: no metrics of its Go runtime: {why}");
            errors.insert(reason, 1);
        });
        let version = place.executable.inspection.go_version.clone();
        let reader = reader.ok().map(|(memory, reader)| (memory, Arc::new(Mutex::new(reader))));
        let readings = Aside::new(&name, "there are no metrics of its Go runtime");
        Self { reader, readings, version, detail: config.go, target: name, errors }
    }

    /// Begins to read; `None` where there is nothing to read, or nothing any more.
    pub(super) fn begin(&self) -> Option<Awaited<Read>> {
        let (memory, reader) = self.reader.clone()?;
        Some(self.readings.begin(move || {
            let read = reader.lock().unwrap_or_else(PoisonError::into_inner).read();
            // It has not become another program meanwhile.
            memory.is_there().then_some(read)
        }))
    }

    /// What was read, and counts what was not; `None` for a reading that has not come.
    pub(super) fn take_over(&mut self, read: Option<Read>) -> Option<Readings> {
        let Some(read) = read else {
            self.count(HELD_UP);
            return None;
        };
        let (readings, faults) = read?;
        for fault in faults {
            if self.count(reason(fault)) == 1 {
                warn!("{}: of its Go runtime {fault}; what depends on it is left out", self.target);
            }
        }
        Some(readings)
    }

    /// Counts what could not be read; tells how often it was for this reason.
    fn count(&mut self, reason: &'static str) -> u32 {
        let count = self.errors.entry(reason).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// A reading as `client_golang` shows it.
    pub(super) fn families(&self, readings: &Readings) -> Vec<MetricFamily> {
        metrics::go(readings, &self.version, self.detail)
    }

    /// Reads no more: the target has ended.
    pub(super) fn close(&mut self) {
        self.reader = None;
    }

    /// How often something could not be read, by reason.
    pub(super) fn errors(&self) -> &BTreeMap<&'static str, u32> {
        &self.errors
    }
}

fn reader(
    place: &Place,
    known: Result<&Known, &Unknown>,
    detail: Detail,
) -> Result<(AddressSpace, Reader), (&'static str, String)> {
    let known = known.map_err(|unknown| {
        let reason = match unknown {
            Unknown::NoTable(_) | Unknown::NotGos(_) => "no_table",
            Unknown::OffsetDiffers { .. } | Unknown::AddressDiffers { .. } => "evidence_differs",
            Unknown::Image(_) => "not_found",
        };
        (reason, printable(&unknown.to_string()))
    })?;
    if let Some(note) = &known.evidence.note {
        info!("{}: {}", place.name, printable(note));
    }
    let memory = place.target.memory().map_err(|error| ("not_permitted", error.to_string()))?;
    let (sources, layout) = (known.sources.clone(), known.layout.clone());
    let reader = Reader::new(Box::new(memory.clone()), sources, place.bias, layout, detail);
    Ok((memory, reader))
}

fn reason(fault: Fault) -> &'static str {
    match fault {
        Fault::Permission => "not_permitted",
        Fault::Unreadable => "not_in_memory",
        Fault::Implausible(_) | Fault::Fell(_) => "implausible",
        Fault::NotFound(_) | Fault::NoPlace(_) => "not_found",
    }
}
