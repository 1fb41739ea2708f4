//! Finds types that are never used as an interface. They are reached from types that are, through pointers, slices,
//! fields, and the arguments and results of functions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::resolve::{PARAMETER_COUNT, PARAMETERS, ends_in, type_full_name};
use crate::image::{GoImage, Image, Kind, Type};

/// The maximum number of types visited.
const TYPES_MAX: usize = 1 << 14;
/// The maximum number of arguments and results of a function.
const PARAMETERS_MAX: usize = 16;
/// The size, in bytes, of the part of a named type before its parameters (`UncommonType` in
/// internal/abi/type.go @ go1.26).
const UNCOMMON: u64 = 16;

/// Returns the addresses of struct types with these full names, or with full names that end in one of them. Searches
/// from the types in `used`, a map from addresses to full names, and begins with the packages closest to the names.
pub(super) fn named(
    names: &[&str],
    used: &BTreeMap<u64, String>,
    image: &Image,
    go: &GoImage<'_>,
) -> BTreeMap<String, BTreeSet<u64>> {
    let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let mut seen: BTreeSet<u64> = used.keys().copied().collect();
    let mut roots: Vec<(usize, u64)> =
        used.iter().map(|(address, name)| (usize::MAX - closeness(name, names), *address)).collect();
    roots.sort_unstable();
    let mut waiting: VecDeque<u64> = roots.into_iter().map(|(_, address)| address).collect();
    for _ in 0..TYPES_MAX {
        let Some(address) = waiting.pop_front() else { break };
        let Ok(this) = go.type_at(address) else { continue };
        if this.kind == Kind::Struct {
            let name = type_full_name(&this);
            if names.iter().any(|wanted| name == *wanted || ends_in(&name, wanted)) {
                found.entry(name).or_default().insert(address);
            }
        }
        let behind = this.elem.into_iter().chain(this.fields.iter().map(|field| field.type_address));
        for next in behind.chain(parameters(&this, image)) {
            if seen.len() < 4 * TYPES_MAX && seen.insert(next) {
                waiting.push_back(next);
            }
        }
    }
    found
}

/// The length of the longest common prefix of a type's name and one of the names.
fn closeness(used: &str, names: &[&str]) -> usize {
    let used = used.trim_start_matches('*');
    let common = |name: &&str| name.bytes().zip(used.bytes()).take_while(|(one, other)| one == other).count();
    names.iter().map(common).max().unwrap_or_default()
}

/// Returns the types of a function's arguments and results.
fn parameters(function: &Type, image: &Image) -> Vec<u64> {
    if function.kind != Kind::Func {
        return Vec::new();
    }
    let word = |offset: u64| -> Option<u64> {
        let bytes = image.read(function.address.checked_add(offset)?, 8).ok()?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let Some(counts) = word(PARAMETER_COUNT) else { return Vec::new() };
    // The top bit of the results marks a variadic function.
    let [arguments, results] = [counts & 0xffff, counts >> 16 & 0x7fff];
    let first = PARAMETERS + if function.pkg_path.is_some() { UNCOMMON } else { 0 };
    let count = usize::try_from(arguments + results).unwrap_or(usize::MAX).min(PARAMETERS_MAX);
    (0..count as u64).map_while(|index| word(first + 8 * index)).collect()
}
