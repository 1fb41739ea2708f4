//! Alternative descriptions of a spec's operations. An executable may have some of the operations,
//! each in one description.

use super::{Refusal, Site, site::same_kinds};
use crate::specs::{Operation, Spec};

/// The operations that the executable has, and notes about the others.
pub(super) struct Alternatives<T> {
    pub(super) found: Vec<T>,
    pub(super) notes: Vec<String>,
}

impl<T> Alternatives<T> {
    /// Looks for each operation. Operations of the same name are alternatives for different releases: the first one
    /// that exists with all that it needs is used, and the others are not missing. At least one operation must exist.
    pub(super) fn find(
        operations: &[Operation],
        mut find: impl FnMut(u8, &Operation) -> Result<T, Refusal>,
    ) -> Result<Self, Refusal> {
        let mut found = Vec::new();
        let mut there: Vec<&str> = Vec::new();
        let mut missing: Vec<(&str, Refusal)> = Vec::new();
        let mut unfit: Vec<(&str, Refusal)> = Vec::new();
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
                Err(why) if is_of_another_release(&why) => unfit.push((name, why)),
                Err(why) => return Err(why),
            }
        }
        // Calls of an inlined function would be missed, so another description must not take its place.
        let is_described =
            |name: &str| there.contains(&name) || unfit.iter().any(|(other, _)| *other == name);
        let hidden = missing.iter().position(|(name, why)| why.is_inlined() && is_described(name));
        if let Some(hidden) = hidden {
            return Err(missing.swap_remove(hidden).1);
        }
        if let Some((_, first)) = unfit.into_iter().find(|(name, _)| !there.contains(name)) {
            return Err(first);
        }
        missing.retain(|(name, _)| !there.contains(name));
        if found.is_empty() {
            // An inlined function is the better reason.
            missing.sort_by_key(|(_, why)| why.is_inlined());
            let last = missing.pop().map(|(_, why)| why);
            return Err(last.unwrap_or(Refusal::NoShape));
        }
        Ok(Self { found, notes: notes(&missing) })
    }
}

/// Notes about descriptions that fit but are not used, because an earlier one has the same name. `is_elsewhere`
/// says whether the later one, by its number, exists at other functions. Without the note, nothing would show that
/// its calls are not counted.
pub(super) fn passed_over<T>(
    spec: &Spec,
    found: &[T],
    number: impl Fn(&T) -> usize,
    mut is_elsewhere: impl FnMut(&T, u8) -> bool,
) -> Vec<String> {
    let mut notes = Vec::new();
    for one in found {
        let Some(first) = spec.operations.get(number(one)) else { continue };
        let behind = (0..).zip(&spec.operations).skip(number(one) + 1);
        for (number, other) in behind.filter(|(_, other)| other.name == first.name) {
            if is_elsewhere(one, number) {
                notes.push(format!(
                    "{} is described a second time ({}), which fits as well: its calls there are not counted; if that is another \
                     operation, give it another name",
                    first.name,
                    spec.place(other.place())
                ));
            }
        }
    }
    notes
}

/// Whether an operation exists, but not as described. Another description may then fit this release.
fn is_of_another_release(why: &Refusal) -> bool {
    match why {
        Refusal::InSpec { why, .. } => is_of_another_release(why),
        Refusal::WrongArguments { .. }
        | Refusal::ArgumentsUntold(_)
        | Refusal::Generic(_)
        | Refusal::Wrapper(_)
        | Refusal::Assembly(_)
        | Refusal::NoCxxString { .. }
        | Refusal::NoParameters(_)
        | Refusal::TypeMissing(_)
        | Refusal::TypeUnused(_)
        | Refusal::TypeElsewhere { .. }
        | Refusal::FieldMissing { .. }
        | Refusal::WrongType { .. } => true,
        _ => false,
    }
}

/// Alternative functions as a refusal names them: the first, then the others in parentheses.
pub(super) fn any_of<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    let first = names.next().unwrap_or_default();
    let others: Vec<_> = names.collect();
    if others.is_empty() { first.to_owned() } else { format!("{first} (or {})", others.join(", ")) }
}

/// Refuses sites whose hits can't all be filtered by the same processor flags.
pub(super) fn one_kind(sites: &[Site]) -> Result<(), Refusal> {
    same_kinds(sites).map_err(|why| match why {
        Refusal::TooMuch(_) => Refusal::KindsOfSites,
        why => why,
    })
}

/// Returns one note per name, with all its reasons.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::specs::read;

    /// A spec with operations of these names.
    fn spec(names: &[&str]) -> Spec {
        let one = |name: &&str| {
            format!(
                "[[native]]\nname = \"{name}\"\nkey = \"thread\"\n[[native.start]]\nfunction = \"begin\"\n\
                 [[native.finish]]\nfunction = \"end\"\n"
            )
        };
        let text = format!("name = \"any\"\n{}", names.iter().map(one).collect::<String>());
        read("any.toml", &text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn no_field(field: &str) -> Refusal {
        Refusal::FieldMissing { type_name: "main.T".to_owned(), field: field.to_owned() }
    }

    fn no_function() -> Refusal {
        Refusal::FunctionMissing("main.f".to_owned())
    }

    /// The numbers of the operations found, or why there are none.
    fn found(names: &[&str], mut why: impl FnMut(u8) -> Option<Refusal>) -> Result<Vec<u8>, String> {
        let spec = spec(names);
        let found = Alternatives::find(&spec.operations, |number, _| why(number).map_or(Ok(number), Err));
        found.map(|found| found.found).map_err(|why| why.to_string())
    }

    #[test]
    fn the_next_description_of_an_operation_is_tried_where_one_does_not_fit() {
        let first = |why: fn() -> Refusal| move |number: u8| (number == 0).then(why);
        let ways: [fn() -> Refusal; 11] = [
            || no_field("a"),
            || Refusal::TypeMissing("main.T".to_owned()),
            || Refusal::TypeUnused("main.T".to_owned()),
            || Refusal::TypeElsewhere { name: "app.T".to_owned(), full: "example.com/app.T".to_owned() },
            || Refusal::wrong_type("a", "bool", "a string"),
            || Refusal::Generic("main.f[...]".to_owned()),
            || Refusal::Wrapper("main.(*T).f".to_owned()),
            || Refusal::Assembly("main.f".to_owned()),
            || Refusal::wrong_arguments("main.f", "w".to_owned(), "ww"),
            || Refusal::ArgumentsUntold("main.f".to_owned()),
            no_function,
        ];
        for way in ways {
            assert_eq!(found(&["a", "a"], first(way)), Ok(vec![1]), "{}", way());
        }
        // Any other reason is final, and so is any reason about the only description.
        assert!(found(&["a", "a"], first(|| Refusal::NoShape)).is_err());
        assert!(found(&["a", "b"], first(|| no_field("a"))).is_err());
        assert_eq!(found(&["a", "b"], first(no_function)), Ok(vec![1]));
        let elsewhere =
            || Refusal::FunctionElsewhere { name: "app.f".to_owned(), full: "example.com/app.f".to_owned() };
        assert_eq!(found(&["a", "b"], first(elsewhere)), Ok(vec![1]));
    }

    #[test]
    fn a_function_that_is_inlined_is_not_taken_for_one_of_another_release() {
        let inlined = || {
            let [symbol, caller] = ["main.f", "main.g"].map(str::to_owned);
            Refusal::Inlined { symbol, caller }
        };
        let only_first = |number: u8| (number == 0).then(inlined);
        // An operation is left out if there are others.
        assert_eq!(found(&["a", "b"], only_first), Ok(vec![1]));
        let before =
            |other: fn() -> Refusal| move |number: u8| Some(if number == 0 { inlined() } else { other() });
        for found in [
            found(&["a", "a"], only_first),
            found(&["a", "a"], before(no_function)),
            found(&["a", "a"], before(|| no_field("b"))),
            found(&["a", "b"], before(no_function)),
        ] {
            assert!(found.as_ref().is_err_and(|why| why.contains("is inlined into main.g")), "{found:?}");
        }
    }

    #[test]
    fn the_first_reason_is_kept() {
        let field = |number: u8| Some(no_field(&format!("field{number}")));
        let text = found(&["a", "a", "a"], field).expect_err("no fields");
        assert!(text.contains("field0"), "{text}");
        let later = |number: u8| Some(if number == 0 { no_function() } else { no_field("later") });
        let text = found(&["a", "a"], later).expect_err("no field");
        assert!(text.contains("later"), "{text}");
    }

    #[test]
    fn a_second_operation_of_a_name_is_told_of_where_it_is_there_too() {
        let spec = spec(&["a", "b", "a", "a"]);
        let told = |found: &[usize], is_there: fn(usize, u8) -> bool| {
            passed_over(&spec, found, |one| *one, |one, number| is_there(*one, number))
        };
        assert!(told(&[0, 1], |_, _| false).is_empty());
        let notes = told(&[0, 1], |_, _| true);
        let begins = |place: &str| format!("a is described a second time (any.toml:{place}),");
        let [third, fourth] = ["20:12", "27:12"].map(begins);
        let [one, other] = &notes[..] else { panic!("{notes:?}") };
        assert!(one.starts_with(&third) && other.starts_with(&fourth), "{notes:?}");
        // The first description does not fit.
        let notes = told(&[1, 2], |one, number| (one, number) == (2, 3));
        assert!(matches!(&notes[..], [one] if one.starts_with(&fourth)), "{notes:?}");
    }

    #[test]
    fn all_functions_that_would_do_are_named() {
        assert_eq!(any_of(["a"].into_iter()), "a");
        assert_eq!(any_of(["a", "b", "c"].into_iter()), "a (or b, c)");
    }
}
