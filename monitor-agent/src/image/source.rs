//! The source of an image's bytes.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};

/// Bytes that can be read at any offset: an open file, or memory.
///
/// A source must not be a mapping of a file that others can truncate.
pub trait Source: Send + Sync {
    /// The number of bytes, or 0 if it is unknown.
    fn len(&self) -> u64;

    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` with the bytes at `offset`, or fails. Never fills it partly.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
}

impl Source for File {
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_exact_at(buf, offset)
    }
}

impl Source for Arc<File> {
    fn len(&self) -> u64 {
        Source::len(&**self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Source::read_at(&**self, offset, buf)
    }
}

/// A file that may be closed while an image of it exists. From then on nothing can be read.
impl Source for Weak<File> {
    fn len(&self) -> u64 {
        self.upgrade().map_or(0, |file| Source::len(&*file))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let file = self.upgrade().ok_or_else(|| Error::new(ErrorKind::NotFound, "it has been closed"))?;
        Source::read_at(&*file, offset, buf)
    }
}

impl Source for &'static [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        copy_at(self, offset, buf)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        copy_at(self, offset, buf)
    }
}

fn copy_at(data: &[u8], offset: u64, buf: &mut [u8]) -> Result<()> {
    let from = usize::try_from(offset).ok();
    let range = from.and_then(|from| Some(from..from.checked_add(buf.len())?));
    let bytes =
        range.and_then(|range| data.get(range)).ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?;
    buf.copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_long_as_somebody_has_it_open() {
        let file = Arc::new(File::open("/proc/self/exe").expect("this program"));
        let source = Arc::downgrade(&file);
        let mut magic = [0; 4];
        Source::read_at(&source, 0, &mut magic).expect("an open file");
        assert_eq!(&magic, b"\x7fELF");
        assert!(Source::len(&source) > 0);
        drop(file);
        assert!(Source::read_at(&source, 0, &mut magic).is_err());
        assert_eq!(Source::len(&source), 0);
    }
}
