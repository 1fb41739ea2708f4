//! Filters for the calls that a reader wants.

use std::{str::FromStr, time::Duration};

use thiserror::Error;

use crate::{
    pipeline::{FinishedCall, Labels, Side, StartedCall},
    specs::Specs,
};

/// One condition: `side=server`, `method=Echo,Lookup`, `status=error`, `min_duration=5ms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The target's side is one of these.
    Side(Vec<Side>),
    /// The method is one of these. Operations of specs have none.
    Method(Vec<String>),
    /// The call failed (`true`) or succeeded (`false`). An operation of a spec matches neither if its line has no
    /// status.
    Status(Vec<bool>),
    /// The call took at least this long. A call whose duration is unknown does not match.
    MinDuration(Duration),
}

/// An error in a condition.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConditionError {
    /// The condition has no `=`.
    #[error("`{0}` is not FIELD=VALUE; fields are {FIELDS}")]
    NoValue(String),
    /// The field does not exist.
    #[error("there is no field `{0}` to filter by; fields are {FIELDS}")]
    Field(String),
    /// The field can't have this value.
    #[error("`{value}` is no {field}: {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// The given value.
        value: String,
        /// The possible values.
        expected: &'static str,
    },
}

const FIELDS: &str = "side, method, status, min_duration";

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let (field, values) = text.split_once('=').ok_or_else(|| ConditionError::NoValue(text.to_owned()))?;
        match field.trim() {
            "side" => each(values, side).map(Self::Side),
            "method" => each(values, method).map(Self::Method),
            "status" => each(values, status).map(Self::Status),
            "min_duration" => duration(values.trim()).map(Self::MinDuration),
            other => Err(ConditionError::Field(other.to_owned())),
        }
    }
}

fn each<T>(
    values: &str,
    parse: impl Fn(&str) -> Result<T, ConditionError>,
) -> Result<Vec<T>, ConditionError> {
    values.split(',').map(|value| parse(value.trim())).collect()
}

fn wrong(field: &'static str, value: &str, expected: &'static str) -> ConditionError {
    ConditionError::Value { field, value: value.to_owned(), expected }
}

fn side(value: &str) -> Result<Side, ConditionError> {
    let known = [Side::Client, Side::Server].into_iter().find(|side| side.name() == value);
    known.ok_or_else(|| wrong("side", value, "client or server"))
}

fn method(value: &str) -> Result<String, ConditionError> {
    if value.is_empty() {
        return Err(wrong("method", value, "a name, or `unknown` for calls without one"));
    }
    Ok(value.to_owned())
}

fn status(value: &str) -> Result<bool, ConditionError> {
    match value {
        "succeed" => Ok(false),
        "error" => Ok(true),
        _ => Err(wrong("status", value, "succeed or error")),
    }
}

fn duration(value: &str) -> Result<Duration, ConditionError> {
    let failed = || wrong("min_duration", value, "a whole number of us, ms or s, such as 500us");
    let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(end);
    let number: u64 = number.parse().map_err(|_| failed())?;
    match unit {
        "us" | "µs" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => Err(failed()),
    }
}

/// Conditions that must all hold. Without conditions, every call passes.
#[derive(Clone, Debug, Default)]
pub struct Filter(Vec<Condition>);

impl Filter {
    /// Creates a filter of these conditions.
    #[must_use]
    pub fn all(conditions: Vec<Condition>) -> Self {
        Self(conditions)
    }

    /// Returns whether a finished call passes, or an operation of one of these specs.
    #[must_use]
    pub fn takes_finish(&self, call: &FinishedCall<'_>, specs: &Specs) -> bool {
        self.0.iter().all(|condition| match condition {
            Condition::Status(wanted) => {
                has_status(call.labels, specs) && wanted.contains(&call.labels.failed)
            }
            Condition::MinDuration(least) => call.duration.is_some_and(|duration| duration >= *least),
            Condition::Side(_) | Condition::Method(_) => takes_names(condition, call.labels),
        })
    }

    /// Returns whether the start of any call can pass.
    #[must_use]
    pub fn may_take_starts(&self) -> bool {
        !self.0.iter().any(|condition| matches!(condition, Condition::Status(_) | Condition::MinDuration(_)))
    }

    /// Returns whether a start passes. How the call ends is not known yet, so no start passes a condition about that.
    #[must_use]
    pub fn takes_start(&self, call: &StartedCall<'_>) -> bool {
        self.0.iter().all(|condition| takes_names(condition, call.labels))
    }
}

/// Returns whether the line of a call or operation has a status.
fn has_status(labels: &Labels, specs: &Specs) -> bool {
    labels.operation(specs).is_none_or(|(_, operation)| labels.ending(operation).is_some())
}

fn takes_names(condition: &Condition, labels: &Labels) -> bool {
    match condition {
        Condition::Side(wanted) => wanted.contains(&labels.side),
        Condition::Method(wanted) => !labels.is_operation() && wanted.contains(&labels.method),
        Condition::Status(_) | Condition::MinDuration(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use monitor_ebpf::LabelSet;

    use super::*;
    use crate::{
        pipeline::{Framework, NoExecutable},
        specs,
    };

    fn filter(conditions: &[&str]) -> Filter {
        Filter::all(conditions.iter().map(|text| text.parse().expect("a condition")).collect())
    }

    fn labels(side: Side, method: &str, failed: bool) -> Arc<Labels> {
        let labels = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
        Arc::new(Labels { side, method: method.to_owned(), failed, ..labels })
    }

    fn takes(conditions: &[&str], labels: &Arc<Labels>, duration_us: Option<u64>) -> bool {
        takes_of(&Specs::default(), conditions, labels, duration_us)
    }

    fn takes_of(specs: &Specs, conditions: &[&str], labels: &Arc<Labels>, duration_us: Option<u64>) -> bool {
        let call = FinishedCall {
            target: 1,
            label_set: 0,
            labels,
            time_ns: 0,
            duration: duration_us.map(Duration::from_micros),
            has_own_start: false,
            details: None,
        };
        filter(conditions).takes_finish(&call, specs)
    }

    #[test]
    fn all_conditions_must_hold_and_one_value_of_each() {
        let echo = &labels(Side::Server, "Echo", false);
        assert!(takes(&[], echo, None));
        assert!(takes(&["side=server", "method=Lookup,Echo", "status=succeed"], echo, None));
        assert!(!takes(&["side=client"], echo, None));
        assert!(!takes(&["side=client", "method=Echo"], echo, None));
        assert!(!takes(&["method=Lookup"], echo, None));
        assert!(!takes(&["status=error"], echo, None));
        assert!(takes(&["status=error,succeed", "side=client,server"], echo, None));
        // The duration is unknown.
        assert!(!takes(&["min_duration=0us"], echo, None));
        let limits = [("1ms", true), ("1001us", false), ("1s", false), ("1000us", true)];
        for (limit, passes) in limits {
            assert_eq!(takes(&[&format!("min_duration={limit}")], echo, Some(1_000)), passes, "{limit}");
        }
    }

    /// The first operation never has a status, the second has none if its number could not be read.
    #[test]
    fn an_operation_whose_line_has_no_status_has_none_to_filter_by() {
        const SPEC: &str = "name = \"any\"\n\
                            [[native]]\nname = \"untold\"\nkey = \"thread\"\n\
                            [[native.start]]\nfunction = \"begin\"\n\
                            [[native.finish]]\nfunction = \"end\"\n\
                            [[native]]\nname = \"told\"\nkey = \"thread\"\nfailed = \"< 0\"\n\
                            [[native.start]]\nfunction = \"begin\"\n\
                            [[native.finish]]\nfunction = \"end\"\nnumber = 0\n";
        let specs = Specs::of(vec![specs::read("", SPEC).expect("a spec")]).expect("one spec");
        for (operation, failed, code, passes) in [
            (0, false, None, [false, false]),
            (1, false, None, [false, false]),
            (1, false, Some(1), [true, false]),
            (1, true, Some(u32::MAX), [false, true]),
        ] {
            let framework = Framework::Spec { spec: 0, operation };
            let set = Labels::decode(&LabelSet::EMPTY, &NoExecutable);
            let labels = &Arc::new(Labels { framework, failed, code, ..set });
            let takes = |conditions: &[&str]| takes_of(&specs, conditions, labels, None);
            let answers = ["status=succeed", "status=error"].map(|condition| takes(&[condition]));
            assert_eq!(answers, passes, "{operation} {code:?}");
            assert!(takes(&[]), "{operation} {code:?}");
            assert_eq!(takes(&["status=succeed,error"]), passes.contains(&true), "{operation} {code:?}");
        }
    }

    #[test]
    fn a_start_passes_what_is_known_of_it() {
        let echo = &labels(Side::Client, "Echo", false);
        let start = StartedCall { target: 1, labels: echo, time_ns: 0, goroutine: 0 };
        assert!(filter(&["side=client", "method=Echo"]).takes_start(&start));
        assert!(!filter(&["status=succeed"]).takes_start(&start));
        assert!(!filter(&["min_duration=1us"]).takes_start(&start));
        assert!(filter(&["side=server", "method=Lookup"]).may_take_starts() && filter(&[]).may_take_starts());
        assert!(!filter(&["side=client", "status=succeed"]).may_take_starts());
        assert!(!filter(&["min_duration=0us"]).may_take_starts());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| text.parse::<Condition>().expect_err(text).to_string();
        assert!(error("methods=Echo").contains("no field `methods`"));
        assert!(error("").contains("FIELD=VALUE"));
        assert!(error("side=both").contains("client or server"));
        assert!(error("status=").contains("succeed or error"));
        assert!(error("method=").contains("a name"));
        for text in ["min_duration=5", "min_duration=ms", "min_duration=-1s", "min_duration=1.5ms"] {
            assert!(error(text).contains("us, ms or s"), "{text}");
        }
    }
}
