//! The tables that the Go runtime keeps in a program: module data, function table, itabs.

mod functions;
mod inlined;
mod itabs;
mod module;
#[cfg(test)]
mod tests;

use std::cell::Cell;

pub(crate) use functions::A_WRAPPER;
pub use functions::{Function, StandIn};
pub use inlined::Dissolved;
pub use itabs::Itab;

use self::{
    functions::TableFormat,
    module::{ModuleData, find_module_data, find_tables, table_format},
};
use super::bytes::{u32_at, u64_at};
use super::{GoVersion, Image, ImageError};

/// The least that one read of type data costs of the budget.
const MIN_TYPE_COST: u64 = 64;
/// The budget for type data, as a multiple of its size. Types are read where they are needed, some several times. The
/// plan of a Kitex program reads a tenth of the type data.
const TYPE_READS: u64 = 4;
/// The smallest budget, however small the type data is.
const MIN_TYPE_READS: u64 = 1 << 20;
/// The largest budget, however large the type data is. It also bounds the names that are kept.
const MAX_TYPE_READS: u64 = 32 << 20;

/// The Go side of an executable.
pub struct GoImage<'a> {
    pub(super) image: &'a Image,
    pub(super) version: GoVersion,
    format: TableFormat,
    module: ModuleData,
    /// The bytes of type data that may still be read. Types may refer to each other and share their parts: a small file
    /// could keep the agent busy for hours.
    type_budget: Cell<u64>,
    /// The functions that were inlined into others, read on first use.
    inlined: inlined::Inlined,
}

#[derive(Clone, Copy)]
struct Slice {
    address: u64,
    len: u64,
}

/// The results of a search through the file.
#[derive(Clone, Copy)]
pub(super) struct Found {
    version: GoVersion,
    format: TableFormat,
    module: ModuleData,
}

/// Finds and checks the module data of `image`.
pub(super) fn find(image: &Image) -> Result<Found, ImageError> {
    let name = image.build_info()?.go_version;
    let unsupported = |why: &str| ImageError::UnsupportedGo { version: name.clone(), why: why.to_owned() };
    let version = GoVersion::parse(&name)
        .ok_or_else(|| unsupported("this names no Go release (garble, for one, removes it)"))?;
    if (version.major, version.minor) < (1, 17) {
        return Err(unsupported("before Go 1.17, arguments are not passed in registers"));
    }
    if version.major > 1 {
        return Err(unsupported("only Go 1 is known"));
    }
    let tables = find_tables(image)?;
    let format = TableFormat::of_release(version.minor);
    for &table in &tables {
        let header = image.read(table, 80)?;
        if table_format(&header) != Some(format) {
            continue;
        }
        if let Some(module) = find_module_data(image, version, table, &header, format)? {
            return Ok(Found { version, format, module });
        }
    }
    Err(ImageError::malformed(if tables.is_empty() {
        "it has no Go function table; it may be compressed or obfuscated".to_owned()
    } else {
        format!("its Go function table is not one of {version}; the program may be obfuscated (garble)")
    }))
}

impl<'a> GoImage<'a> {
    /// Makes the Go side from the results of the search. Reads nothing.
    pub(super) fn new(image: &'a Image, found: Found) -> Self {
        let Found { version, format, module } = found;
        let inlined = inlined::Inlined::in_table_of(module.functions.len);
        let go = Self { image, version, format, module, type_budget: Cell::new(0), inlined };
        go.renew_type_budget();
        go
    }
}

impl GoImage<'_> {
    /// The Go release that built the program.
    #[must_use]
    pub fn version(&self) -> GoVersion {
        self.version
    }

    /// Converts an offset in the type data to an address.
    pub(super) fn type_offset(&self, offset: u32) -> Result<u64, ImageError> {
        let address = self.module.types.checked_add(u64::from(offset));
        let inside = address.filter(|&address| address < self.module.types_end);
        inside.ok_or_else(|| ImageError::malformed("its Go type data refers outside itself"))
    }

    /// Deducts the cost of reading `len` bytes of type data from the budget.
    pub(super) fn pay_for_type(&self, len: usize) -> Result<(), ImageError> {
        self.type_budget.set(self.type_budget.get().saturating_sub((len as u64).max(MIN_TYPE_COST)));
        self.check_types()
    }

    /// Resets the budget for type data, for another question. There must be few such questions.
    pub(crate) fn renew_type_budget(&self) {
        let types = (self.module.types_end - self.module.types).min(self.image.left_at(self.module.types));
        let budget = types.saturating_mul(TYPE_READS).saturating_add(MIN_TYPE_READS).min(MAX_TYPE_READS);
        self.type_budget.set(budget);
    }

    /// Fails once the budget for type data is used up. From then on no type can be read, and a type that was not found
    /// may exist.
    pub fn check_types(&self) -> Result<(), ImageError> {
        if self.type_budget.get() == 0 {
            return Err(ImageError::malformed("its Go types refer to each other without end"));
        }
        Ok(())
    }

    /// Whether a type descriptor can be at this address.
    pub(super) fn holds_type(&self, address: u64) -> bool {
        (self.module.types..self.module.types_end).contains(&address)
    }
}

fn to_len(len: u64) -> Result<usize, ImageError> {
    usize::try_from(len).map_err(|_| ImageError::malformed(format!("a table of {len} bytes is too large")))
}

/// Returns the number in `data`, which has 4 or 8 bytes.
fn number(data: &[u8]) -> Result<u64, ImageError> {
    let value = u64_at(data, 0).or_else(|| u32_at(data, 0).map(u64::from));
    value.ok_or_else(|| ImageError::malformed("its Go function table is cut"))
}
