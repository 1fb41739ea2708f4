//! Which functions the compiler has put into others as well: what runs there enters no function, and hits no probe.
//!
//! The runtime needs it for tracebacks, so every program has it: for each function a tree of the calls that were inlined into
//! it (`FUNCDATA_InlTree`), and which of its instructions are of which call in the tree (`PCDATA_InlTreeIndex`;
//! runtime/symtab.go @ go1.18 to go1.20, runtime/symtabinl.go @ go1.21 to go1.27).

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;

use super::functions::{MAX_TABLES, TableFormat, Window};
use super::{Function, GoImage, Slice, number, to_len};
use crate::image::ImageError;
use crate::image::bytes::{u32_at, varint_at};

/// Number of the data that is a function's tree, and of the table of what is of which call.
const TREE: u32 = 3;
const INDEX: u32 = 2;
/// The table of one function has some hundred bytes. It says itself where it ends, so it is read in ever larger pieces.
const INDEX_PIECES: [usize; 3] = [1 << 10, 16 << 10, 256 << 10];
/// Trees are read in pieces of this size.
const PIECE: usize = 256 << 10;
/// All trees of a large program have a few megabytes.
const MAX_TREES: u64 = 128 << 20;
/// How often the place of a name is looked into that is found among the trees. Most are in one.
const MAX_FOUND: usize = 1 << 12;
/// What all questions together may read. Each looks through all trees, which have less than half of the bytes of the function
/// table, and a framework has up to some twenty.
const READS: u64 = 16;
/// However small the function table is.
const MIN_READS: u64 = 64 << 20;
/// However large the function table is: half a second.
const MAX_READS: u64 = 512 << 20;

/// What is known of the calls that were inlined.
pub(super) struct Inlined {
    /// All trees, by their places.
    trees: OnceCell<Vec<Tree>>,
    /// How many calls are in a tree, by its place.
    calls: RefCell<HashMap<u32, u64>>,
    /// What each function is inlined into, by the place of its name.
    answers: RefCell<HashMap<u32, Option<String>>>,
    /// How many bytes may still be read. A small file may have many functions, trees that share their tables, and names that
    /// are nearly everywhere among them.
    budget: Cell<u64>,
}

impl Inlined {
    /// Nothing yet, of a program with a function table of this size.
    pub(super) fn in_table_of(bytes: u64) -> Self {
        let budget = bytes.saturating_mul(READS).saturating_add(MIN_READS).min(MAX_READS);
        Self {
            trees: OnceCell::new(),
            calls: RefCell::default(),
            answers: RefCell::default(),
            budget: Cell::new(budget),
        }
    }

    /// Takes the cost of reading so many bytes from the budget.
    fn pay(&self, bytes: usize) -> Result<(), ImageError> {
        let left = self.budget.get().saturating_sub(bytes as u64);
        self.budget.set(left);
        if left == 0 {
            return Err(ImageError::malformed(
                "the calls inlined into its Go functions can't be looked through in reasonable time",
            ));
        }
        Ok(())
    }
}

/// The tree of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tree {
    /// Its distance from the start of function data.
    offset: u32,
    /// Where the table is that says what is of which call.
    index: u32,
    /// Where the function's name is.
    name: u32,
}

/// How a call lies in a tree: its size, and where the place of its name is in it.
#[derive(Clone, Copy)]
struct CallLayout {
    size: u32,
    name: u32,
}

impl GoImage<'_> {
    /// The name of a function that this one is inlined into, if there is any. Go 1.17, which inlines small functions only, is
    /// not asked.
    pub fn inlined_into(&self, function: &Function) -> Result<Option<String>, ImageError> {
        let (Some(base), Some(layout)) = (self.module.function_data, self.call_layout()) else {
            return Ok(None);
        };
        let name = self.image.read(function.record.saturating_add(self.format.width()), 4)?;
        let name = u32_at(&name, 0).ok_or_else(|| ImageError::malformed("its Go function table is cut"))?;
        if let Some(known) = self.inlined.answers.borrow().get(&name) {
            return Ok(known.clone());
        }
        let answer = self.look_for(name, &function.name, base, layout)?;
        self.inlined.answers.borrow_mut().insert(name, answer.clone());
        Ok(answer)
    }

    /// The name of a function into which one is inlined that has its name at this place.
    fn look_for(
        &self,
        name: u32,
        symbol: &str,
        base: u64,
        layout: CallLayout,
    ) -> Result<Option<String>, ImageError> {
        let trees = self.trees()?;
        let (Some(first), Some(last)) = (trees.first(), trees.last()) else { return Ok(None) };
        let end =
            self.calls(*last)?.saturating_mul(u64::from(layout.size)).saturating_add(last.offset.into());
        let mut at = u64::from(first.offset);
        if end - at > MAX_TREES {
            return Err(ImageError::malformed(
                "the calls inlined into its Go functions are more than a program has",
            ));
        }
        let mut left = MAX_FOUND;
        while at < end {
            let len = to_len(end - at)?.min(PIECE);
            self.inlined.pay(len)?;
            let piece = self.image.read(base.saturating_add(at), len)?;
            let words = piece.chunks_exact(4).enumerate();
            for (word, _) in words.filter(|(_, word)| u32_at(word, 0) == Some(name)) {
                left = left
                    .checked_sub(1)
                    .ok_or_else(|| ImageError::malformed(format!("{symbol} is inlined too often")))?;
                if let Some(tree) = self.tree_around(trees, at + 4 * word as u64, layout)? {
                    return self.name_at_place(tree.name).map(Some);
                }
            }
            at += piece.len() as u64;
        }
        Ok(None)
    }

    fn call_layout(&self) -> Option<CallLayout> {
        match self.format {
            TableFormat::Go116 => None,
            TableFormat::Go118 => Some(CallLayout { size: 20, name: 12 }),
            TableFormat::Go120 => Some(CallLayout { size: 16, name: 4 }),
        }
    }

    /// The tree that has the place of a call's name here.
    fn tree_around(
        &self,
        trees: &[Tree],
        place: u64,
        layout: CallLayout,
    ) -> Result<Option<Tree>, ImageError> {
        let behind = trees.partition_point(|tree| u64::from(tree.offset) <= place);
        let Some(tree) = behind.checked_sub(1).and_then(|last| trees.get(last)) else { return Ok(None) };
        let inside = place - u64::from(tree.offset);
        let size = u64::from(layout.size);
        let is_name = inside % size == u64::from(layout.name) && inside / size < self.calls(*tree)?;
        Ok(is_name.then_some(*tree))
    }

    /// How many calls are in a tree.
    fn calls(&self, tree: Tree) -> Result<u64, ImageError> {
        if let Some(known) = self.inlined.calls.borrow().get(&tree.offset) {
            return Ok(*known);
        }
        let address = self.module.values.address.saturating_add(tree.index.into());
        for len in INDEX_PIECES {
            self.inlined.pay(len)?;
            if let Some(calls) = values(&self.image.read_up_to(address, len)?) {
                self.inlined.calls.borrow_mut().insert(tree.offset, calls);
                return Ok(calls);
            }
        }
        Err(ImageError::malformed("a table of the calls inlined into a Go function is cut"))
    }

    /// All trees, by their places.
    fn trees(&self) -> Result<&[Tree], ImageError> {
        if let Some(trees) = self.inlined.trees.get() {
            return Ok(trees);
        }
        // Once, and again only if it has failed.
        self.inlined.pay(to_len(self.module.functions.len)?)?;
        let found = self.read_trees()?;
        Ok(self.inlined.trees.get_or_init(|| found))
    }

    fn read_trees(&self) -> Result<Vec<Tree>, ImageError> {
        let width = self.format.width();
        let mut rows = Window::new(self.image, self.module.functions);
        let mut records = Window::new(self.image, self.module.functions);
        let mut trees = Vec::new();
        for row in 0..self.module.function_count {
            let record = number(rows.get(2 * width * row + width, to_len(width)?)?)?;
            trees.extend(self.tree_of(&mut records, record)?);
        }
        trees.sort_unstable();
        trees.dedup_by_key(|tree| tree.offset);
        Ok(trees)
    }

    /// The tree of the function with this record (`_func` in runtime/runtime2.go).
    fn tree_of(&self, records: &mut Window<'_>, record: u64) -> Result<Option<Tree>, ImageError> {
        let fixed = self.record_size();
        let head = records.get(record, fixed)?;
        let (Some(name), Some(tables), Some(data)) =
            (u32_at(head, 4), u32_at(head, 28), head.last().copied())
        else {
            return Ok(None);
        };
        if tables > MAX_TABLES || tables <= INDEX || u32::from(data) <= TREE {
            return Ok(None);
        }
        let mut word = |number: u32| {
            let at = fixed as u64 + 4 * u64::from(number);
            let word = records.get(record.saturating_add(at), 4)?;
            u32_at(word, 0).ok_or_else(|| ImageError::malformed("its Go function table is cut"))
        };
        let (index, offset) = (word(INDEX)?, word(tables + TREE)?);
        Ok((index != 0 && offset != u32::MAX).then_some(Tree { offset, index, name }))
    }

    /// The name at a place among the names.
    fn name_at_place(&self, place: u32) -> Result<String, ImageError> {
        let Slice { address, len } = self.module.names;
        let cut = || ImageError::malformed("a Go function name lies outside its table");
        let left = len.checked_sub(place.into()).ok_or_else(cut)?;
        let text = self.image.read_up_to(address.saturating_add(place.into()), to_len(left)?.min(PIECE))?;
        let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }
}

/// One more than the highest in a table of values by instruction: pairs of how much a value differs from the one before it,
/// which is -1 for the first, and for how long it holds (`pcvalue` and `step` in runtime/symtab.go).
fn values(table: &[u8]) -> Option<u64> {
    let (mut value, mut highest) = (-1_i64, -1_i64);
    let mut at = 0;
    loop {
        let (difference, len) = varint_at(table, at)?;
        if difference == 0 && at > 0 {
            return u64::try_from(highest + 1).ok();
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
    use crate::image::{Image, testing::GoFile};

    #[test]
    fn the_highest_value_of_a_table_counts() {
        // -1, 0, 2, 1.
        assert_eq!(values(&[0, 5, 2, 1, 4, 200, 1, 1, 3, 0]), Some(3));
        assert_eq!(values(&[0, 5, 0]), Some(0));
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
    fn trees_cannot_be_looked_through_again_and_again() {
        let (file, _) = GoFile { inlined: true, ..GoFile::of_release(26) }.build();
        let image = Image::parse(Box::new(file)).expect("an image");
        let go = image.go().expect("a Go image");
        let functions = go.functions_named(&|_| true).expect("functions");
        assert!(go.inlined_into(&functions[0]).expect("an answer").is_some());
        let left = go.inlined.budget.get();
        assert!((MIN_READS - (64 << 10)..MIN_READS + (64 << 10)).contains(&left), "{left}");
        // What has been asked once is known.
        assert!(go.inlined_into(&functions[0]).expect("an answer").is_some());
        assert_eq!(go.inlined.budget.get(), left);
        assert_eq!(go.inlined_into(&functions[1]).expect("an answer"), None);
        assert!(go.inlined.budget.get() < left);
        go.inlined.budget.set(4);
        let error = go.inlined_into(&functions[2]).expect_err("a refusal").to_string();
        assert!(error.contains("can't be looked through in reasonable time"), "{error}");
        // However large the function table claims to be.
        assert_eq!(Inlined::in_table_of(u64::MAX).budget.get(), MAX_READS);
    }

    #[test]
    fn the_table_of_a_tree_may_be_long() {
        // A call for each byte of code, and the end behind 16 KiB.
        let table = [[2_u8, 1].repeat(10 << 10), vec![0]].concat();
        assert_eq!(values(&table), Some(10 << 10));
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
    }
}
