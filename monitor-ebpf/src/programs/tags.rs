//! The number of retries, from the tag `retry` of the callee: a look-up in a Go `map[string]string`.
//!
//! Such maps are small: at most eight entries lie in one group (Go 1.24 and later,
//! `internal/runtime/maps/map.go`) or one bucket (before, `runtime/map.go`). Larger maps are not searched.

use monitor_ebpf::{NO_SCRATCH, TagMap, retry_count};

use super::{
    maps::recipe,
    memory::{ask, is_user_address},
    scratch::Scratch,
    shape::ShapeRef,
};

/// Entries of a group or bucket, which begins with a byte for each entry that says whether it is in use.
const ENTRIES: u64 = 8;
/// Size of a string header, in bytes.
const STRING: u64 = 16;
/// The tag's name (`rpcinfo.RetryTag` in Kitex) as the bytes of a word.
const NAME: u64 = u64::from_le_bytes(*b"retry\0\0\0");
/// Length of the tag's name, in bytes.
const NAME_LENGTH: u64 = 5;
/// Maximum number of digits.
const DIGITS_MAX: u64 = 4;

/// Returns how often the call was retried; 0 if there is no tag, or the recipe does not ask for it.
#[inline(always)]
pub(crate) fn retries(shape: ShapeRef, scratch: &Scratch) -> u16 {
    let layout = recipe!(tag_map);
    let at = shape.tags_at();
    if layout == TagMap::None as u8 || at == NO_SCRATCH {
        return 0;
    }
    match scratch.word(at) {
        0 => 0,
        map if is_user_address(map) => search(map, layout) as u16,
        _ => retry_count::UNREADABLE,
    }
}

/// Searches the map. Not inlined, so that it has a stack frame of its own.
#[inline(never)]
fn search(map: u64, layout: u8) -> u32 {
    look_up(map, layout).unwrap_or(u32::from(retry_count::UNREADABLE))
}

/// Looks up the number of retries; `None` if the map cannot be read.
#[inline(always)]
fn look_up(map: u64, layout: u8) -> Option<u32> {
    let swiss = layout == TagMap::Swiss as u8;
    // The number of entries comes first in both layouts.
    let [used, word, pointer, length] = read::<4>(map)?;
    if used == 0 {
        return Some(0);
    }
    // Swiss: a single group has its address where a directory's would be. Buckets: there are 2^B, B is 0.
    let single = if swiss { length == 0 } else { (word >> 8) as u8 == 0 };
    if !single || used > ENTRIES || !is_user_address(pointer) {
        return None;
    }
    let [control] = read::<1>(pointer)?;
    for entry in 0..ENTRIES {
        let byte = control >> (entry * 8) & 0xff;
        // Swiss: the top bit marks an empty or deleted slot. Buckets: values below 5 do.
        let in_use = if swiss { byte & 0x80 == 0 } else { byte >= 5 };
        if !in_use {
            continue;
        }
        let (key, value) = if swiss {
            let slot = pointer + 8 + entry * 2 * STRING;
            (slot, slot + STRING)
        } else {
            let key = pointer + 8 + entry * STRING;
            (key, key + ENTRIES * STRING)
        };
        if is_name(key)? {
            return number(value);
        }
    }
    Some(0)
}

/// Returns whether the string with this header is the tag's name.
#[inline(always)]
fn is_name(header: u64) -> Option<bool> {
    let [pointer, length] = read::<2>(header)?;
    if length != NAME_LENGTH {
        return Some(false);
    }
    let mut text = 0_u64;
    copy((&raw mut text).cast(), NAME_LENGTH as u32, pointer)?;
    Some(text == NAME)
}

/// Returns the number whose digits are the string with this header.
#[inline(always)]
fn number(header: u64) -> Option<u32> {
    let [pointer, length] = read::<2>(header)?;
    if length == 0 || length > DIGITS_MAX {
        return None;
    }
    let mut digits = 0_u64;
    copy((&raw mut digits).cast(), length as u32, pointer)?;
    let mut number = 0;
    for index in 0..DIGITS_MAX {
        if index >= length {
            break;
        }
        let digit = (digits >> (index * 8) & 0xff) as u32;
        if !(0x30..0x3a).contains(&digit) {
            return None;
        }
        number = number * 10 + (digit - 0x30);
    }
    Some(number)
}

#[inline(always)]
fn read<const WORDS: usize>(address: u64) -> Option<[u64; WORDS]> {
    let mut words = [0; WORDS];
    copy(words.as_mut_ptr().cast(), (WORDS * 8) as u32, address)?;
    Some(words)
}

#[inline(always)]
fn copy(to: *mut u8, length: u32, address: u64) -> Option<()> {
    // SAFETY: the callers' memory has this many bytes; the verifier checks it.
    unsafe { ask(to, length, address) }.then_some(())
}
