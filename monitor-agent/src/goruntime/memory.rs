//! Access to a target's memory.

use std::io;

use super::Fault;
use crate::target::AddressSpace;

/// Memory that can be read at any address.
pub trait Memory: Send {
    /// Fills `buf` from `address` on. A partial read is an error.
    fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Reads a number at each of these addresses, in this order, with as little time in between as possible.
    fn read_each(&self, addresses: &[u64], numbers: &mut [[u8; 4]]) -> io::Result<()> {
        addresses.iter().zip(numbers).try_for_each(|(address, number)| self.read(*address, number))
    }
}

impl Memory for AddressSpace {
    fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(address, buf)
    }

    fn read_each(&self, addresses: &[u64], numbers: &mut [[u8; 4]]) -> io::Result<()> {
        self.read_each(addresses, numbers)
    }
}

/// A piece of memory from one read.
#[derive(Debug, Default)]
pub(super) struct Block(Vec<u8>);

impl Block {
    /// Reads `size` bytes. The caller bounds the size.
    pub(super) fn read(memory: &dyn Memory, address: u64, size: u32) -> Result<Self, Fault> {
        let mut data = vec![0; size as usize];
        memory.read(address, &mut data).map_err(Fault::of_io)?;
        Ok(Self(data))
    }

    pub(super) fn u64(&self, offset: u32) -> Result<u64, Fault> {
        self.bytes(offset).map(u64::from_le_bytes)
    }

    pub(super) fn i64(&self, offset: u32) -> Result<i64, Fault> {
        self.bytes(offset).map(i64::from_le_bytes)
    }

    pub(super) fn u32(&self, offset: u32) -> Result<u32, Fault> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    pub(super) fn i32(&self, offset: u32) -> Result<i32, Fault> {
        self.bytes(offset).map(i32::from_le_bytes)
    }

    /// Returns consecutive numbers.
    pub(super) fn u64s(&self, offset: u32, count: u32) -> Result<Vec<u64>, Fault> {
        (0..count).map(|index| self.u64(offset.saturating_add(index.saturating_mul(8)))).collect()
    }

    fn bytes<const N: usize>(&self, offset: u32) -> Result<[u8; N], Fault> {
        let start = offset as usize;
        let bytes = start.checked_add(N).and_then(|end| self.0.get(start..end));
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(Fault::Implausible("a field outside its variable"))
    }
}

/// Reads the 64-bit number at an address.
pub(super) fn u64_at(memory: &dyn Memory, address: u64) -> Result<u64, Fault> {
    Block::read(memory, address, 8)?.u64(0)
}

/// Reads the 32-bit number at an address.
pub(super) fn u32_at(memory: &dyn Memory, address: u64) -> Result<u32, Fault> {
    Block::read(memory, address, 4)?.u32(0)
}

/// Reads the 32-bit numbers at several addresses, shortly after one another.
pub(super) fn u32s_at(memory: &dyn Memory, addresses: &[u64]) -> Result<Vec<u32>, Fault> {
    let mut numbers = vec![[0; 4]; addresses.len()];
    memory.read_each(addresses, &mut numbers).map_err(Fault::of_io)?;
    Ok(numbers.into_iter().map(u32::from_le_bytes).collect())
}

/// Returns the address of a field.
pub(super) fn at(base: u64, offset: u32) -> u64 {
    base.wrapping_add(offset.into())
}

/// Reads the pointer and length of a Go slice with 1 to `max` elements.
pub(super) fn slice(memory: &dyn Memory, address: u64, max: u64) -> Result<(u64, u64), Fault> {
    let header = Block::read(memory, address, 24)?;
    let (pointer, length, capacity) = (header.u64(0)?, header.u64(8)?, header.u64(16)?);
    if pointer == 0 || length == 0 || length > capacity || length > max {
        return Err(Fault::Implausible("a list of the scheduler"));
    }
    Ok((pointer, length))
}
