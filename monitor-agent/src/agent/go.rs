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

/// Reasons for failed reads, as in `monitor_read_errors_total`.
const REASONS: [&str; 7] =
    ["evidence_differs", HELD_UP, "implausible", "no_table", "not_found", "not_in_memory", "not_permitted"];
/// Nothing was read at all, because the memory did not come.
const HELD_UP: &str = "held_up";

/// The result of one read, with its faults; `None` if it is another program's.
pub(super) type Read = Option<(Readings, Vec<Fault>)>;

/// A reader, with its errors.
#[derive(Debug)]
pub(super) struct GoRuntime {
    /// `None` if there is nothing to read, or no longer.
    reader: Option<(AddressSpace, Arc<Mutex<Reader>>)>,
    readings: Aside,
    version: String,
    detail: Detail,
    target: String,
    errors: BTreeMap<&'static str, u32>,
}

impl GoRuntime {
    /// Opens a reader for a target, using what is known of its executable's runtime. If that fails, logs why, and there
    /// are no metrics.
    pub(super) fn open(place: &Place, known: Result<&Known, &Unknown>, config: &WatchConfig) -> Self {
        let name = place.name.clone();
        // OpenTelemetry's old names include the calls of C, which are not read by default.
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

    /// Begins a read; `None` if there is nothing to read, or no longer.
    pub(super) fn begin(&self) -> Option<Awaited<Read>> {
        let (memory, reader) = self.reader.clone()?;
        Some(self.readings.begin(move || {
            let read = reader.lock().unwrap_or_else(PoisonError::into_inner).read();
            // The process has not become another program meanwhile.
            memory.is_there().then_some(read)
        }))
    }

    /// Returns the readings, and counts the faults. `None` stands for a read that has not come.
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

    /// Counts a failed read. Returns how often it has failed for this reason.
    fn count(&mut self, reason: &'static str) -> u32 {
        let count = self.errors.entry(reason).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// Returns a reading in the form of `client_golang`.
    pub(super) fn families(&self, readings: &Readings) -> Vec<MetricFamily> {
        metrics::go(readings, &self.version, self.detail)
    }

    /// Stops reading: the target has ended.
    pub(super) fn close(&mut self) {
        self.reader = None;
    }

    /// Returns how often something could not be read, by reason.
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
