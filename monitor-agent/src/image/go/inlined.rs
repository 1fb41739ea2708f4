//! Functions that the compiler has also inlined into others. Their inlined code enters no function, and hits no probe.
//!
//! The runtime needs this for tracebacks, so every program has it: for each function a tree of the calls that were
//! inlined into it (`FUNCDATA_InlTree`), and a table that maps its instructions to the calls in the tree
//! (`PCDATA_InlTreeIndex`; runtime/symtab.go @ go1.18 to go1.20, runtime/symtabinl.go @ go1.21 to go1.27).

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;

use super::functions::{MAX_FOUND, MAX_NAME, MAX_NAMES, MAX_TABLES, Names, TableFormat, Window, sought};
use super::{Function, GoImage, Slice, number, to_len};
use crate::image::ImageError;
use crate::image::bytes::{u32_at, varint_at};

/// The indices of a function's tree among its data, and of the table that maps instructions to calls.
const TREE: u32 = 3;
const INDEX: u32 = 2;
/// The table of one function has some hundred bytes. Only its content shows where it ends, so it is read in ever larger
/// pieces.
const INDEX_PIECES: [usize; 3] = [1 << 10, 16 << 10, 256 << 10];
/// The most functions that have a tree, and that are in one. The largest programs have a million functions.
const MAX_CALLED: usize = 1 << 20;
/// The budget for reads, as a multiple of the function table: the table, the trees and their tables, none of which is
/// larger than the first.
const READS: u64 = 4;
/// The smallest budget, however small the function table is.
const MIN_READS: u64 = 16 << 20;
/// The largest budget, however large the function table is: a second.
const MAX_READS: u64 = 256 << 20;

/// The calls that were inlined.
pub(super) struct Inlined {
    /// All calls, or why they cannot be read. Set on first use.
    calls: OnceCell<Result<Calls, String>>,
    /// The bytes that may still be read. A small file may have many functions whose trees and tables share their bytes.
    budget: Cell<u64>,
}

/// The functions whose calls were inlined.
struct Calls {
    /// Maps the offset of each function's name to that of a function into which it is inlined.
    callers: HashMap<u32, u32>,
    /// The pairs whose first function is not in the function table.
    dissolved: Vec<(u32, u32)>,
}

/// A function that has no code of its own: every call of it is inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dissolved {
    /// The linker's name.
    pub name: String,
    /// The offset of the name of a function into which it is inlined.
    caller: u32,
}

impl Inlined {
    /// Has read nothing yet, of a program with a function table of this size.
    pub(super) fn in_table_of(bytes: u64) -> Self {
        let budget = bytes.saturating_mul(READS).saturating_add(MIN_READS).min(MAX_READS);
        Self { calls: OnceCell::new(), budget: Cell::new(budget) }
    }

    /// Deducts the bytes of a read from the budget.
    fn pay(&self, bytes: u64) -> Result<(), ImageError> {
        let left = self.budget.get().saturating_sub(bytes);
        self.budget.set(left);
        if left == 0 {
            return Err(ImageError::malformed(
                "the calls inlined into its Go functions can't be looked through in reasonable time",
            ));
        }
        Ok(())
    }
}

/// The tree of calls inlined into a function.
struct Tree {
    /// Its offset in the function data.
    offset: u32,
    /// The offset of the table that maps instructions to calls.
    index: u32,
    /// The offset of the function's name.
    name: u32,
    /// The number of calls in the tree, once counted.
    calls: u32,
}

/// The layout of a call in a tree: its size, and the position of its name's offset.
#[derive(Clone, Copy)]
struct CallLayout {
    size: u64,
    name: u64,
}

impl GoImage<'_> {
    /// Returns the name of a function into which this one is inlined, if there is one. Always `None` for Go 1.17, which
    /// inlines small functions only.
    pub fn inlined_into(&self, function: &Function) -> Result<Option<String>, ImageError> {
        let Some(calls) = self.inlined_calls()? else { return Ok(None) };
        let name = self.image.read(function.record.saturating_add(self.format.width()), 4)?;
        let name = u32_at(&name, 0).ok_or_else(cut)?;
        calls.callers.get(&name).map(|caller| self.name_at_place(*caller)).transpose()
    }

    /// Returns the functions whose name `matches` and that are not in the function table, since every call of them is
    /// inlined. Names are as in [`functions_named`](Self::functions_named). A function in the table may have the same
    /// name: another instance of a generic one.
    pub fn dissolved(&self, matches: &dyn Fn(&str) -> bool) -> Result<Vec<Dissolved>, ImageError> {
        let Some(calls) = self.inlined_calls()? else { return Ok(Vec::new()) };
        let Slice { address, len } = self.module.names;
        let names = self.image.read(address, to_len(len)?)?;
        let mut names = Names::new(&names);
        let mut found = Vec::new();
        let mut room = MAX_NAMES;
        for (name, caller) in &calls.dissolved {
            if let Some(name) = sought(names.get(u64::from(*name))?)
                && matches(name)
            {
                room = room.checked_sub(name.len()).filter(|_| found.len() < MAX_FOUND).ok_or_else(|| {
                    ImageError::malformed("too many functions inlined into others have such a name")
                })?;
                found.push(Dissolved { name: name.to_owned(), caller: *caller });
            }
        }
        Ok(found)
    }

    /// Returns the name of a function into which this one is inlined.
    pub fn dissolved_into(&self, function: &Dissolved) -> Result<String, ImageError> {
        self.name_at_place(function.caller)
    }

    /// Returns all calls that were inlined, which are read once. `None` for Go 1.17.
    fn inlined_calls(&self) -> Result<Option<&Calls>, ImageError> {
        let (Some(base), Some(layout)) = (self.module.function_data, self.call_layout()) else {
            return Ok(None);
        };
        // A failed read is not repeated: every caller gets the same error.
        let calls = self.inlined.calls.get_or_init(|| {
            self.read_calls(base, layout).map_err(|error| match error {
                ImageError::Malformed { what } => what,
                other => other.to_string(),
            })
        });
        calls.as_ref().map(Some).map_err(|what| ImageError::malformed(what.as_str()))
    }

    fn call_layout(&self) -> Option<CallLayout> {
        match self.format {
            TableFormat::Go116 => None,
            TableFormat::Go118 => Some(CallLayout { size: 20, name: 12 }),
            TableFormat::Go120 => Some(CallLayout { size: 16, name: 4 }),
        }
    }

    fn read_calls(&self, base: u64, layout: CallLayout) -> Result<Calls, ImageError> {
        self.inlined.pay(self.module.functions.len)?;
        let (mut trees, mut rows) = self.read_trees()?;
        self.count_calls(&mut trees)?;
        trees.sort_unstable_by_key(|tree| (tree.offset, tree.index));
        let mut data = Window::new(self.image, Slice { address: base, len: self.image.left_at(base) });
        let mut callers = HashMap::new();
        for tree in &trees {
            self.inlined.pay(layout.size.saturating_mul(tree.calls.into()))?;
            for call in 0..u64::from(tree.calls) {
                let place = u64::from(tree.offset) + layout.size * call + layout.name;
                let name = u32_at(data.get(place, 4)?, 0).ok_or_else(cut)?;
                callers.entry(name).or_insert(tree.name);
                if callers.len() > MAX_CALLED {
                    return Err(too_many());
                }
            }
        }
        rows.sort_unstable();
        let is_dissolved = |(name, _): &(&u32, &u32)| rows.binary_search(name).is_err();
        let dissolved = callers.iter().filter(is_dissolved).map(|(name, caller)| (*name, *caller));
        let mut dissolved: Vec<_> = dissolved.collect();
        dissolved.sort_unstable();
        Ok(Calls { callers, dissolved })
    }

    /// Reads all trees, and the offsets of the names of all functions.
    fn read_trees(&self) -> Result<(Vec<Tree>, Vec<u32>), ImageError> {
        let width = self.format.width();
        let mut rows = Window::new(self.image, self.module.functions);
        let mut records = Window::new(self.image, self.module.functions);
        let mut trees = Vec::new();
        let mut names = Vec::new();
        for row in 0..self.module.function_count {
            let record = number(rows.get(2 * width * row + width, to_len(width)?)?)?;
            let (name, tree) = self.tree_of(&mut records, record)?;
            names.push(name);
            trees.extend(tree);
            if trees.len() > MAX_CALLED {
                return Err(too_many());
            }
        }
        Ok((trees, names))
    }

    /// Returns the offset of the name of the function with this record, and its tree (`_func` in runtime/runtime2.go).
    fn tree_of(&self, records: &mut Window<'_>, record: u64) -> Result<(u32, Option<Tree>), ImageError> {
        let fixed = self.record_size();
        let head = records.get(record, fixed)?;
        let (Some(name), Some(tables), Some(data)) =
            (u32_at(head, 4), u32_at(head, 28), head.last().copied())
        else {
            return Err(cut());
        };
        if tables > MAX_TABLES || tables <= INDEX || u32::from(data) <= TREE {
            return Ok((name, None));
        }
        let mut word = |number: u32| {
            let at = fixed as u64 + 4 * u64::from(number);
            let word = records.get(record.saturating_add(at), 4)?;
            u32_at(word, 0).ok_or_else(cut)
        };
        let (index, offset) = (word(INDEX)?, word(tables + TREE)?);
        let tree = Tree { offset, index, name, calls: 0 };
        Ok((name, (index != 0 && offset != u32::MAX).then_some(tree)))
    }

    /// Counts the calls in each tree. Functions may share a table, which is read once.
    fn count_calls(&self, trees: &mut [Tree]) -> Result<(), ImageError> {
        let address = self.module.values.address;
        let mut tables = Window::new(self.image, Slice { address, len: self.image.left_at(address) });
        trees.sort_unstable_by_key(|tree| tree.index);
        // There is no table at offset 0.
        let (mut index, mut calls) = (0, 0);
        for tree in trees {
            if tree.index != index {
                (index, calls) = (tree.index, self.calls_in(&mut tables, tree.index)?);
            }
            tree.calls = calls;
        }
        Ok(())
    }

    /// Returns the number of calls in a tree with this table.
    fn calls_in(&self, tables: &mut Window<'_>, index: u32) -> Result<u32, ImageError> {
        for most in INDEX_PIECES {
            let table = tables.get_up_to(index.into(), most)?;
            let found = values(table);
            self.inlined.pay(found.map_or(table.len(), |(_, len)| len) as u64)?;
            if let Some((calls, _)) = found {
                return Ok(calls);
            }
        }
        Err(ImageError::malformed("a table of the calls inlined into a Go function is cut"))
    }

    /// Returns the name at an offset in the names.
    fn name_at_place(&self, place: u32) -> Result<String, ImageError> {
        let Slice { address, len } = self.module.names;
        let outside = || ImageError::malformed("a Go function name lies outside its table");
        let left = len.checked_sub(place.into()).ok_or_else(outside)?;
        let text =
            self.image.read_up_to(address.saturating_add(place.into()), to_len(left)?.min(MAX_NAME))?;
        let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }
}

fn cut() -> ImageError {
    ImageError::malformed("its Go function table is cut")
}

fn too_many() -> ImageError {
    ImageError::malformed("the calls inlined into its Go functions are more than a program has")
}

/// Returns the highest value in a table plus one, and the length of the table. A table maps instructions to values by
/// pairs: the difference from the previous value, which is -1 at the start, and how long the value holds (`pcvalue` and
/// `step` in runtime/symtab.go).
fn values(table: &[u8]) -> Option<(u32, usize)> {
    let (mut value, mut highest) = (-1_i64, -1_i64);
    let mut at = 0;
    loop {
        let (difference, len) = varint_at(table, at)?;
        if difference == 0 && at > 0 {
            return Some((u32::try_from(highest + 1).ok()?, at + len));
        }
        let half = i64::from(difference >> 1);
        value += if difference & 1 == 0 { half } else { -half - 1 };
        highest = highest.max(value);
        at += len;
        at += varint_at(table, at)?.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{
        Image,
        testing::{GoFile, RODATA},
    };

    #[test]
    fn the_highest_value_of_a_table_counts() {
        // -1, 0, 2, 1.
        assert_eq!(values(&[0, 5, 2, 1, 4, 200, 1, 1, 3, 0]), Some((3, 10)));
        assert_eq!(values(&[0, 5, 0, 7, 7]), Some((0, 3)));
        assert_eq!(values(&[0, 5, 2, 1]), None);
        assert_eq!(values(&[]), None);
    }

    #[test]
    fn a_function_that_is_inlined_is_found_in_every_release() {
        for minor in 18..=27 {
            for pie in [false, true] {
                let (file, _) = GoFile { pie, inlined: true, ..GoFile::of_release(minor) }.build();
                let image = Image::parse(Box::new(file)).expect("an image");
                let go = image.go().expect("a Go image");
                let functions = go.functions_named(&|_| true).expect("functions");
                let into = |index: usize| go.inlined_into(&functions[index]).expect("an answer");
                assert_eq!(into(0).as_deref(), Some(&*functions[1].name), "go1.{minor}");
                assert_eq!(into(1), None, "go1.{minor}");
            }
        }
    }

    #[test]
    fn a_function_of_which_nothing_is_left_is_found_in_every_release() {
        for minor in 18..=27 {
            for inlined in [false, true] {
                let dissolved = Some("main.gone");
                let (file, _) = GoFile { inlined, dissolved, ..GoFile::of_release(minor) }.build();
                let image = Image::parse(Box::new(file)).expect("an image");
                let go = image.go().expect("a Go image");
                let functions = go.functions_named(&|_| true).expect("functions");
                let found = go.dissolved(&|name| name.starts_with("main.")).expect("functions");
                assert_eq!(found.len(), 1, "go1.{minor}: {found:?}");
                assert_eq!(found[0].name, "main.gone");
                assert_eq!(go.dissolved_into(&found[0]).expect("a name"), functions[1].name);
                // A function with a row is not among them.
                assert!(go.dissolved(&|name| name != "main.gone").expect("functions").is_empty());
                let is_inlined = go.inlined_into(&functions[0]).expect("an answer").is_some();
                assert_eq!(is_inlined, inlined, "go1.{minor}");
            }
        }
    }

    #[test]
    fn another_instance_of_the_same_name_is_told_from_one_that_is_there() {
        let dissolved = Some("main.main");
        let (file, _) = GoFile { dissolved, ..GoFile::of_release(26) }.build();
        let image = Image::parse(Box::new(file)).expect("an image");
        let go = image.go().expect("a Go image");
        let there = go.functions_named(&|name| name == "main.main").expect("functions");
        assert_eq!(go.inlined_into(&there[0]).expect("an answer"), None);
        assert_eq!(go.dissolved(&|_| true).expect("functions").len(), 1);
    }

    #[test]
    fn trees_are_looked_through_once_for_all_questions() {
        let (file, _) = GoFile { inlined: true, ..GoFile::of_release(26) }.build();
        let image = Image::parse(Box::new(file)).expect("an image");
        let go = image.go().expect("a Go image");
        let function = go.functions_named(&|_| true).expect("functions").remove(0);
        let all = go.inlined.budget.get();
        assert!((MIN_READS..MIN_READS + (64 << 10)).contains(&all), "{all}");
        assert!(go.inlined_into(&function).expect("an answer").is_some());
        let cost = all - go.inlined.budget.get();
        assert!((1..64 << 10).contains(&cost), "{cost}");
        // As many functions as a spec has, and more, with no more to spend than that.
        let go = image.go().expect("a Go image");
        go.inlined.budget.set(cost + 1);
        for number in 0..200 {
            let asked = Function { record: RODATA + number, ..function.clone() };
            go.inlined_into(&asked).expect("an answer");
            go.dissolved(&|_| true).expect("functions");
        }
        assert!(go.inlined_into(&function).expect("an answer").is_some());
        assert_eq!(go.inlined.budget.get(), 1);
    }

    #[test]
    fn trees_are_not_looked_through_for_longer_than_any_are_worth() {
        let (file, _) = GoFile { inlined: true, ..GoFile::of_release(26) }.build();
        let image = Image::parse(Box::new(file)).expect("an image");
        let go = image.go().expect("a Go image");
        let function = go.functions_named(&|_| true).expect("functions").remove(0);
        go.inlined.budget.set(4);
        for _ in 0..2 {
            let error = go.inlined_into(&function).expect_err("a refusal").to_string();
            assert!(error.contains("can't be looked through in reasonable time"), "{error}");
        }
        // However large the function table claims to be.
        assert_eq!(Inlined::in_table_of(u64::MAX).budget.get(), MAX_READS);
    }

    #[test]
    fn the_table_of_a_tree_may_be_long() {
        // A call for each byte of code. The table ends after 16 KiB.
        let table = [[2_u8, 1].repeat(10 << 10), vec![0]].concat();
        assert_eq!(values(&table), Some((10 << 10, table.len())));
        assert_eq!(values(&table[..16 << 10]), None);
    }

    #[test]
    fn without_trees_nothing_is_inlined() {
        let (file, _) = GoFile::of_release(26).build();
        let image = Image::parse(Box::new(file)).expect("an image");
        let go = image.go().expect("a Go image");
        for function in go.functions_named(&|_| true).expect("functions") {
            assert_eq!(go.inlined_into(&function).expect("an answer"), None);
        }
        assert!(go.dissolved(&|_| true).expect("functions").is_empty());
    }
}
