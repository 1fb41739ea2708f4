//! The memory of a process, for whoever reads much of it.

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

/// What the kernel knows of an address space's pages (`/proc/PID/pagemap`), bound to it as it was opened.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    file: Arc<File>,
    /// Reads of the memory that are under way: each keeps the address space for as long as it waits.
    pub(super) reads: Arc<AtomicUsize>,
}

impl Pages {
    /// Of the program that the process runs now. `None` where there is no such file, or it can't be opened, or a kernel does
    /// not answer as [`Self::ask`] expects.
    pub(super) fn open(process: &Process) -> Option<Self> {
        let file = process.open_relative("pagemap").ok()?;
        Some(Self { file: Arc::new(file), reads: Arc::default() }).filter(Self::are_there)
    }

    /// Whether the address space is surely still there.
    pub(super) fn are_there(&self) -> bool {
        self.ask().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
    }

    /// Whether it is surely gone: nobody has it any more.
    pub(super) fn are_gone(&self) -> bool {
        self.ask().is_ok_and(|bytes| bytes == 0)
    }

    /// Whether this agent reads the memory at this moment.
    pub(super) fn are_read(&self) -> bool {
        self.reads.load(Ordering::SeqCst) != 0
    }

    /// Asks for one byte, which is never given: what the file says of a page has eight. An address space that nobody has any
    /// more gives no bytes; else the kernel refuses the number of bytes, and only after that would it take the lock of the
    /// address space (`pagemap_read` in `fs/proc/task_mmu.c` @ v5.15 and v6.18), which the target can keep from others for good.
    fn ask(&self) -> io::Result<usize> {
        self.file.read_at(&mut [0], 0)
    }
}

/// The memory of a process as it is while it runs the program that it ran when it was opened.
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
    /// Fills `buf` from an address on, or fails. It is this address space's memory if that [is there](Self::is_there) after it
    /// was read; else it may be another's.
    ///
    /// By `process_vm_readv`, which lets go of the address space's lock while it waits for a page, and stops waiting when it
    /// is killed. A read of the file does neither: the target would wait with it, at its next `mmap`.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_pieces(&[address], buf.len(), buf)
    }

    /// The same of several addresses, one after the other in this order, with as little time in between as can be.
    pub fn read_each<const N: usize>(&self, addresses: &[u64], pieces: &mut [[u8; N]]) -> io::Result<()> {
        self.read_pieces(addresses, N, pieces.as_flattened_mut())
    }

    /// Fills `buf` with so many bytes from each address.
    fn read_pieces(&self, addresses: &[u64], size: usize, buf: &mut [u8]) -> io::Result<()> {
        let Some(pages) = &self.pages else { return self.read_file(addresses, size, buf) };
        pages.reads.fetch_add(1, Ordering::SeqCst);
        let read = match self.read_unlocked(addresses, size, buf) {
            // It asks each time what was asked of the file only as it was opened, and may be forbidden altogether.
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
        /// The kernel takes no more at once (`UIO_MAXIOV`).
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
            // SAFETY: one place of its size here, which is only written to, and a list of as many as it says in another process,
            // which the kernel checks.
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

    /// Whether what was read before belongs to this address space: the process has neither ended nor become another program.
    #[must_use]
    pub fn is_there(&self) -> bool {
        // The file gives nothing of any other.
        let Some(pages) = &self.pages else { return true };
        // A read that still waits keeps this one, when the process may long have another.
        pages.are_there() && self.process.stat().is_ok_and(|stat| self.layout.fits(&stat))
    }
}
