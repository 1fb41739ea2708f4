//! The memory of a process, for whoever reads much of it.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

/// Bytes of a page, and of what the kernel says of one (`PM_ENTRY_BYTES` in `fs/proc/task_mmu.c`).
const PAGE: u64 = 4096;
const PAGE_ENTRY: usize = 8;

/// What the kernel knows of an address space's pages (`/proc/PID/pagemap`), bound to it as it was opened.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    pub(super) file: Arc<File>,
    /// An address that is in it.
    pub(super) start_stack: u64,
}

impl Pages {
    /// Whether the address space is still there. An address space that nobody has any more gives no bytes (`pagemap_read` in
    /// `fs/proc/task_mmu.c`). Nothing of the memory itself is asked for: the target may have mapped a file there that is
    /// never given.
    pub(super) fn are_there(&self) -> bool {
        let mut entry = [0; PAGE_ENTRY];
        let at = self.start_stack / PAGE * PAGE_ENTRY as u64;
        self.file.read_at(&mut entry, at).is_ok_and(|bytes| bytes == PAGE_ENTRY)
    }
}

/// The memory of a process as it is while it runs the program that it ran when it was opened.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    pub(super) pid: libc::pid_t,
    /// `/proc/PID/mem`.
    pub(super) file: Arc<File>,
    pub(super) pages: Option<Pages>,
}

impl AddressSpace {
    /// Fills `buf` from an address on, or fails. It is this address space's memory if that [is there](Self::is_there) after it
    /// was read; else it may be another's.
    ///
    /// By `process_vm_readv`, which lets go of the address space's lock while it waits for a page, and stops waiting when it
    /// is killed. A read of the file does neither: the target would wait with it, at its next `mmap`.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.pages.is_none() {
            return self.file.read_exact_at(buf, address);
        }
        match self.read_unlocked(address, buf) {
            // It asks each time what was asked of the file only as it was opened, and may be forbidden altogether.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                self.file.read_exact_at(buf, address)
            }
            read => read,
        }
    }

    fn read_unlocked(&self, address: u64, buf: &mut [u8]) -> io::Result<()> {
        let size = buf.len();
        let address = usize::try_from(address).map_err(io::Error::other)?;
        let here = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: size };
        let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: size };
        // SAFETY: one place of this size here, which is only written to, and one in another process, which the kernel checks.
        let read = unsafe { libc::process_vm_readv(self.pid, &raw const here, 1, &raw const there, 1, 0) };
        match usize::try_from(read) {
            Ok(read) if read == size => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Whether what was read before belongs to this address space: the process has neither ended nor become another program.
    #[must_use]
    pub fn is_there(&self) -> bool {
        // The file gives nothing of any other.
        self.pages.as_ref().is_none_or(Pages::are_there)
    }
}
