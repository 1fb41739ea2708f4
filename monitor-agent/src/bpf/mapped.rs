//! Array maps as memory, readable without a system call.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// The values of a mappable array map, as 64-bit words.
///
/// The kernel side writes to them at any time; every access is one aligned atomic operation.
#[derive(Debug)]
pub(super) struct MappedWords {
    start: NonNull<AtomicU64>,
    words: usize,
    access: Access,
}

/// How a mapping is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The kernel side writes, the agent reads.
    Read,
    /// Both write.
    Write,
}

// SAFETY: the mapping is shared memory that only atomic operations access; it belongs to no thread.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps the first `words` words of the map's values.
    pub(super) fn new(map: BorrowedFd<'_>, words: usize, access: Access) -> io::Result<Self> {
        Self::at(map, 0, words, access)
    }

    /// Maps words at an offset in bytes, a multiple of the page size, into the map's mappable memory.
    pub(super) fn at(
        map: BorrowedFd<'_>,
        offset: libc::off_t,
        words: usize,
        access: Access,
    ) -> io::Result<Self> {
        let protection = match access {
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: requests a new mapping and overwrites none.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), words * 8, protection, libc::MAP_SHARED, map.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, words, access })
            .ok_or_else(io::Error::last_os_error)
    }

    /// Returns the word at an index; 0 past the end.
    pub(super) fn get(&self, index: usize) -> u64 {
        if index >= self.words {
            return 0;
        }
        // SAFETY: inside the mapping, which lives as long as `self`. Acquire: whoever reads a published number also
        // sees the data that it refers to.
        unsafe { self.start.add(index).as_ref().load(Ordering::Acquire) }
    }

    /// Returns the bytes from a word on; zeros past the end.
    pub(super) fn bytes<const LENGTH: usize>(&self, first: usize) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&self.get(first + index).to_ne_bytes());
        }
        bytes
    }

    /// Writes a word. The kernel side must only read it.
    pub(super) fn set(&self, index: usize, new: u64) {
        if index >= self.words || self.access != Access::Write {
            return;
        }
        // SAFETY: inside the mapping, which lives as long as `self` and may be written to.
        unsafe { self.start.add(index).as_ref() }.store(new, Ordering::SeqCst);
    }

    /// Writes `new` to the word at an index if it is `old`; returns whether it was.
    pub(super) fn replace(&self, index: usize, old: u64, new: u64) -> bool {
        if index >= self.words || self.access != Access::Write {
            return false;
        }
        // SAFETY: inside the mapping, which lives as long as `self` and may be written to.
        let word = unsafe { self.start.add(index).as_ref() };
        word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `at`, which nothing uses any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * 8) };
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::{
        fs::File,
        io::{self, Write as _},
        os::fd::FromRawFd as _,
    };

    /// Returns memory that can be mapped like a map.
    pub(crate) fn memory(bytes: &[u8]) -> File {
        // SAFETY: only reads the name, and returns a descriptor or a negative number.
        let descriptor = unsafe { libc::memfd_create(c"map".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(descriptor >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nothing else owns it.
        let mut memory = unsafe { File::from_raw_fd(descriptor) };
        memory.write_all(bytes).unwrap();
        memory
    }
}
