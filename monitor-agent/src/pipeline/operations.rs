//! Label sets of operations that specs describe, under the names that the specs give.

use std::borrow::Cow;

use super::{Framework, Labels};
use crate::specs::{Operation, Source, Spec, Specs};

/// The value of a label that could not be read.
const UNREADABLE: &str = "unreadable";

impl Labels {
    /// Returns the operation that these labels belong to, and its spec; `None` for the labels of a call.
    #[must_use]
    pub fn operation<'a>(&self, specs: &'a Specs) -> Option<(&'a Spec, &'a Operation)> {
        let Framework::Spec { spec, operation } = self.framework else { return None };
        let spec = specs.get(spec)?;
        Some((spec, spec.operations.get(usize::from(operation))?))
    }

    /// Returns how the operation ended, as events show it. `None` if its spec does not define failure, or if the number
    /// that decides was not read.
    #[must_use]
    pub fn ending(&self, operation: &Operation) -> Option<&'static str> {
        let is_told = operation.tells_outcome() && (self.failed || !operation.is_untold(self.code));
        is_told.then(|| self.status())
    }

    /// Returns whether these labels belong to an operation of a spec.
    #[must_use]
    pub fn is_operation(&self) -> bool {
        matches!(self.framework, Framework::Spec { .. })
    }

    /// Returns the values of the operation's labels, in the order of their names.
    #[must_use]
    pub fn values<'a>(&'a self, operation: &'a Operation) -> Vec<Cow<'a, str>> {
        let mut names = [&self.caller, &self.callee, &self.method].into_iter();
        let value = |source: &'a Source| -> Cow<'a, str> {
            match source {
                Source::Name(_) => {
                    names.next().map_or(Cow::Borrowed(""), |name| Cow::Borrowed(name.as_str()))
                }
                Source::Number { zero, .. } => {
                    number(self.code.map(|code| operation.number(code)), zero.as_deref())
                }
                Source::Text(text) => Cow::Borrowed(text.as_str()),
                Source::Outcome([_, failed]) if self.failed => Cow::Borrowed(failed.as_str()),
                Source::Outcome(_) if operation.is_untold(self.code) => Cow::Borrowed(UNREADABLE),
                Source::Outcome([succeeded, _]) => Cow::Borrowed(succeeded.as_str()),
            }
        };
        operation.labels.iter().map(value).collect()
    }
}

fn number(number: Option<i64>, zero: Option<&str>) -> Cow<'_, str> {
    match (number, zero) {
        (Some(0), Some(zero)) => Cow::Borrowed(zero),
        (Some(number), _) => Cow::Owned(number.to_string()),
        (None, _) => Cow::Borrowed(UNREADABLE),
    }
}

#[cfg(test)]
mod tests {
    use monitor_ebpf::LabelSet;

    use super::*;
    use crate::{pipeline::labels::NoExecutable, specs::read};

    #[test]
    fn an_ending_that_was_not_read_is_no_success() {
        const SPEC: &str = "name = \"any\"\n[[native]]\nname = \"any\"\nkey = \"thread\"\nfailed = \"< 0\"\n\
                            labels = { status = { outcome = [\"good\", \"bad\"] } }\n\
                            [[native.start]]\nfunction = \"begin\"\n\
                            [[native.finish]]\nfunction = \"end\"\nnumber = 0\n";
        let operation = &read("", SPEC).expect("a spec").operations[0];
        for (failed, code, shown, ending) in [
            (false, Some(1), "good", Some("succeed")),
            (true, Some(u32::MAX), "bad", Some("error")),
            (false, None, "unreadable", None),
            (true, None, "bad", Some("error")),
        ] {
            let labels = Labels { failed, code, ..Labels::decode(&LabelSet::EMPTY, &NoExecutable) };
            assert_eq!(labels.values(operation), [shown]);
            assert_eq!(labels.ending(operation), ending);
        }
    }
}
