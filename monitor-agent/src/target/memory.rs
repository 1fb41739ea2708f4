//! Repeated reads of a process's memory.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use procfs::process::Process;

use super::Layout;

/// The page map (`/proc/PID/pagemap`) of the address space that the process had when it was opened.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    file: Arc<File>,
    /// The number of memory reads in progress. Each keeps the address space alive while it waits.
    pub(super) reads: Arc<AtomicUsize>,
}

impl Pages {
    /// Opens the page map of the program that the process runs now. Returns `None` if the file does not exist or cannot
    /// be opened, or if the kernel does not answer as [`Self::ask`] expects.
    pub(super) fn open(process: &Process) -> Option<Self> {
        let file = process.open_relative("pagemap").ok()?;
        Some(Self { file: Arc::new(file), reads: Arc::default() }).filter(Self::are_there)
    }

    /// Whether the address space certainly still exists.
    pub(super) fn are_there(&self) -> bool {
        self.ask().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
    }

    /// Whether the address space is certainly gone: it has no users left.
    pub(super) fn are_gone(&self) -> bool {
        self.ask().is_ok_and(|bytes| bytes == 0)
    }

    /// Whether this agent is reading the memory right now.
    pub(super) fn are_read(&self) -> bool {
        self.reads.load(Ordering::SeqCst) != 0
    }

    /// Asks for one byte, which the kernel never returns: an entry of the page map has eight. If the address space has
    /// no users left, the read returns 0 bytes. Otherwise the kernel rejects the size, before it would take the lock of
    /// the address space (`pagemap_read` in `fs/proc/task_mmu.c` @ v5.15 and v6.18). The target can hold that lock
    /// forever.
    fn ask(&self) -> io::Result<usize> {
        self.file.read_at(&mut [0], 0)
    }
}

/// The memory of a process while it runs the same program as when it was opened.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    pub(super) pid: libc::pid_t,
    /// `/proc/PID/mem`.
    pub(super) file: Arc<File>,
    pub(super) pages: Option<Pages>,
    pub(super) process: Arc<Process>,
    /// Where the program lies.
    pub(super) layout: Layout,
}

impl AddressSpace {
    /// Fills `buf` with the bytes at `address`, or fails. The bytes belong to this address space if it [is still
    /// there](Self::is_there) after the read. Otherwise they may be another's.
    ///
    /// Uses `process_vm_readv`, which releases the lock of the address space while it waits for a page, and can be
    /// killed while it waits. A read of `/proc/PID/mem` does neither: at its next `mmap`, the target would wait too.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_pieces(&[address], buf.len(), buf)
    }

    /// Fills each piece from the address with the same index, in this order, with as little time in between as
    /// possible.
    pub fn read_each<const N: usize>(&self, addresses: &[u64], pieces: &mut [[u8; N]]) -> io::Result<()> {
        self.read_pieces(addresses, N, pieces.as_flattened_mut())
    }

    /// Fills `buf` with `size` bytes from each address.
    fn read_pieces(&self, addresses: &[u64], size: usize, buf: &mut [u8]) -> io::Result<()> {
        let Some(pages) = &self.pages else { return self.read_file(addresses, size, buf) };
        pages.reads.fetch_add(1, Ordering::SeqCst);
        let read = match self.read_unlocked(addresses, size, buf) {
            // Permission is checked at each call, but for the file only when it was opened. The call may also be
            // forbidden altogether.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                self.read_file(addresses, size, buf)
            }
            read => read,
        };
        pages.reads.fetch_sub(1, Ordering::SeqCst);
        read
    }

    fn read_file(&self, addresses: &[u64], size: usize, buf: &mut [u8]) -> io::Result<()> {
        let mut pieces = addresses.iter().zip(buf.chunks_mut(size.max(1)));
        pieces.try_for_each(|(address, piece)| self.file.read_exact_at(piece, *address))
    }

    fn read_unlocked(&self, addresses: &[u64], size: usize, buf: &mut [u8]) -> io::Result<()> {
        /// The most ranges that the kernel accepts at once (`UIO_MAXIOV`).
        const PIECES: usize = 1024;
        let parts = buf.chunks_mut(PIECES.saturating_mul(size).max(1));
        for (addresses, part) in addresses.chunks(PIECES).zip(parts) {
            let there = addresses.iter().map(|address| -> io::Result<_> {
                let address = usize::try_from(*address).map_err(io::Error::other)?;
                Ok(libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: size })
            });
            let there = there.collect::<io::Result<Vec<_>>>()?;
            let here = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
            let count = there.len() as libc::c_ulong;
            // SAFETY: `here` is one buffer with its size, and is only written to. `there` is a list of `count` ranges
            // in another process, which the kernel checks.
            let read =
                unsafe { libc::process_vm_readv(self.pid, &raw const here, 1, there.as_ptr(), count, 0) };
            match usize::try_from(read) {
                Ok(read) if read == part.len() => {}
                Ok(_) => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        Ok(())
    }

    /// Whether what was read before belongs to this address space: the process has neither ended nor started another
    /// program.
    #[must_use]
    pub fn is_there(&self) -> bool {
        // The file returns nothing from any other address space.
        let Some(pages) = &self.pages else { return true };
        // A read that still waits keeps this address space alive, even if the process has long had another.
        pages.are_there() && self.process.stat().is_ok_and(|stat| self.layout.fits(&stat))
    }
}
