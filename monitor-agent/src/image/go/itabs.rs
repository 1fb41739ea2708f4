//! The itabs that the linker made.

use std::collections::HashMap;

use super::{GoImage, Slice, module::Itabs, to_len};
use crate::image::ImageError;
use crate::image::bytes::u64_at;

/// The most itabs. A Kitex program has a thousand.
const MAX_ITABS: usize = 1 << 17;
/// The size of `ITab` in internal/abi/iface.go @ go1.27, with one method.
const ITAB: u64 = 32;

/// A pair of an interface type and a concrete type that the linker knew. An interface value with that concrete type
/// holds the address of the itab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Itab {
    /// Its own link-time address.
    pub address: u64,
    /// Address of the interface's type descriptor.
    pub interface: u64,
    /// Address of the concrete type's descriptor.
    pub concrete: u64,
}

impl GoImage<'_> {
    /// Returns all itabs that the linker made.
    pub fn itabs(&self) -> Result<Vec<Itab>, ImageError> {
        match self.module.itabs {
            Itabs::Pointers(links) => self.linked_itabs(links),
            Itabs::Packed(range) => self.packed_itabs(range),
        }
    }

    /// Up to Go 1.26: a list of pointers.
    fn linked_itabs(&self, links: Slice) -> Result<Vec<Itab>, ImageError> {
        let count = to_len(links.len)?;
        if count > MAX_ITABS {
            return Err(too_many_itabs());
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let pointers = self.image.read(links.address, count * 8)?;
        let addresses = pointers.chunks_exact(8).filter_map(|pointer| u64_at(pointer, 0));
        addresses.map(|address| self.itab(address)).collect()
    }

    /// Since Go 1.27: the itabs themselves. The length of each depends on the number of its interface's methods.
    fn packed_itabs(&self, range: Slice) -> Result<Vec<Itab>, ImageError> {
        let mut found = Vec::new();
        let mut method_counts = HashMap::new();
        let mut at = 0;
        while at < range.len {
            if found.len() == MAX_ITABS {
                return Err(too_many_itabs());
            }
            let address = range.address.checked_add(at).ok_or_else(|| ImageError::malformed("itabs"))?;
            let itab = self.itab(address)?;
            found.push(itab);
            let methods = match method_counts.get(&itab.interface) {
                Some(&count) => count,
                None => *method_counts.entry(itab.interface).or_insert(self.method_count(itab.interface)?),
            };
            at = at.saturating_add(self.itab_size(address, methods)?);
        }
        Ok(found)
    }

    fn itab(&self, address: u64) -> Result<Itab, ImageError> {
        let data = self.image.read(address, 16)?;
        let pair = u64_at(&data, 0).zip(u64_at(&data, 8));
        let pair =
            pair.filter(|&(interface, concrete)| self.holds_type(interface) && self.holds_type(concrete));
        let (interface, concrete) =
            pair.ok_or_else(|| ImageError::malformed(format!("there is no Go itab at {address:#x}")))?;
        Ok(Itab { address, interface, concrete })
    }

    /// Returns the size of an itab: `(*ITab).Size` in internal/abi/iface.go @ go1.27.
    fn itab_size(&self, address: u64, methods: u64) -> Result<u64, ImageError> {
        let first = self.image.read(address.saturating_add(ITAB - 8), 8)?;
        let implemented = u64_at(&first, 0) != Some(0);
        Ok(if implemented { (ITAB - 8).saturating_add(methods.max(1).saturating_mul(8)) } else { ITAB })
    }

    /// Returns the number of an interface's methods (`InterfaceType` in internal/abi/type.go @ go1.27).
    fn method_count(&self, interface: u64) -> Result<u64, ImageError> {
        let data = self.image.read(interface.saturating_add(64), 8)?;
        u64_at(&data, 0).ok_or_else(too_many_itabs)
    }
}

fn too_many_itabs() -> ImageError {
    ImageError::malformed("it has more Go itabs than a program needs")
}
