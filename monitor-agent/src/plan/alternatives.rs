//! Operations of a spec, of which an executable may have some, and of some one of several descriptions.

use super::Refusal;
use crate::specs::Operation;

/// The operations that are there, and notes about those that are not.
pub(super) struct Alternatives<T> {
    pub(super) found: Vec<T>,
    pub(super) notes: Vec<String>,
}

impl<T> Alternatives<T> {
    /// Looks for each operation. Those of one name are one operation, as releases have it: the first that is there counts,
    /// and no other of them is missing. At least one operation must be there.
    pub(super) fn find(
        operations: &[Operation],
        mut find: impl FnMut(u8, &Operation) -> Result<T, Refusal>,
    ) -> Result<Self, Refusal> {
        let mut found = Vec::new();
        let mut there: Vec<&str> = Vec::new();
        let mut missing: Vec<(&str, Refusal)> = Vec::new();
        for (number, operation) in (0..).zip(operations) {
            let name = operation.name.as_str();
            if there.contains(&name) {
                continue;
            }
            match find(number, operation) {
                Ok(one) => {
                    found.push(one);
                    there.push(name);
                }
                Err(why) if why.is_missing() => missing.push((name, why)),
                Err(why) => return Err(why),
            }
        }
        missing.retain(|(name, _)| !there.contains(name));
        if found.is_empty() {
            let last = missing.pop().map(|(_, why)| why);
            return Err(last.unwrap_or(Refusal::NoShape));
        }
        Ok(Self { found, notes: notes(&missing) })
    }
}

/// A note for each name.
fn notes(missing: &[(&str, Refusal)]) -> Vec<String> {
    let is_first = |index: usize, name: &str| missing.iter().take(index).all(|(other, _)| *other != name);
    let first = missing.iter().enumerate().filter(|(index, (name, _))| is_first(*index, name));
    let note = |(_, (name, _)): (usize, &(&str, Refusal))| {
        let of = missing.iter().filter(|(other, _)| other == name);
        let reasons: Vec<_> = of.map(|(_, why)| why.reason()).collect();
        format!("{name} is not watched ({})", reasons.join("; "))
    };
    first.map(note).collect()
}
