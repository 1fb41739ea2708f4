//! Label sets of operations that specs describe, under the names that those give.

use std::borrow::Cow;

use super::{Framework, Labels};
use crate::specs::{Operation, Source, Spec, Specs};

impl Labels {
    /// The operation whose labels these are, and its spec; `None` for a call's.
    #[must_use]
    pub fn operation<'a>(&self, specs: &'a Specs) -> Option<(&'a Spec, &'a Operation)> {
        let Framework::Spec { spec, operation } = self.framework else { return None };
        let spec = specs.get(spec)?;
        Some((spec, spec.operations.get(usize::from(operation))?))
    }

    /// Whether they are an operation's.
    #[must_use]
    pub fn is_operation(&self) -> bool {
        matches!(self.framework, Framework::Spec { .. })
    }

    /// The values of the labels of the operation, in the order of their names.
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
                Source::Outcome([succeeded, failed]) => {
                    Cow::Borrowed(if self.failed { failed.as_str() } else { succeeded.as_str() })
                }
            }
        };
        operation.labels.iter().map(value).collect()
    }
}

fn number(number: Option<i64>, zero: Option<&str>) -> Cow<'_, str> {
    match (number, zero) {
        (Some(0), Some(zero)) => Cow::Borrowed(zero),
        (Some(number), _) => Cow::Owned(number.to_string()),
        (None, _) => Cow::Borrowed("unreadable"),
    }
}
