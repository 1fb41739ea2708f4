//! The contents of a section of debug information: plain, or compressed in one of two ways.
//!
//! Go's linker compresses DWARF unless told not to. Nothing is held in memory here: contents are read and inflated on
//! demand.

use std::io::{BufReader, Read, Result as IoResult};

use flate2::read::ZlibDecoder;
use object::LittleEndian as LE;
use object::elf;
use object::pod::from_bytes;

use super::{ImageError, Source};

/// The largest inflated section. In a Kitex program of 30 MB, it has 8 MB.
const MAX_SIZE: u64 = 256 << 20;
/// The most bytes that one compressed byte may inflate to. Go's DWARF shrinks to a third; zlib can shrink data to a
/// thousandth.
const MAX_RATIO: u64 = 64;
const CHUNK: usize = 64 << 10;

/// How a section is stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// Not compressed.
    Plain,
    /// With the flag `SHF_COMPRESSED`: the data follows an ELF compression header.
    Compressed,
    /// With a name that starts with `.zdebug_`, as GNU tools and Go's linker up to 1.18 compressed: the data follows
    /// "ZLIB" and the size, most significant byte first.
    Old,
}

/// The contents of a section, read from start to end.
pub(super) struct Contents<'a> {
    reader: Box<dyn Read + 'a>,
    left: u64,
}

impl<'a> Contents<'a> {
    /// Opens the section that is stored in `size` bytes at `offset`.
    pub(super) fn open(
        source: &'a dyn Source,
        form: Form,
        offset: u64,
        size: u64,
    ) -> Result<Self, ImageError> {
        let stored = Stored::new(source, offset, size)?;
        match form {
            Form::Plain => Self::new(BufReader::with_capacity(CHUNK, stored), size),
            Form::Compressed => Self::compressed(stored),
            Form::Old => Self::old(stored),
        }
    }

    fn compressed(mut stored: Stored<'a>) -> Result<Self, ImageError> {
        const HEADER: usize = size_of::<elf::CompressionHeader64<LE>>();
        let header = stored.header::<HEADER>()?;
        let Ok((header, _)) = from_bytes::<elf::CompressionHeader64<LE>>(&header) else {
            return Err(ImageError::dwarf("it has no compression header"));
        };
        match header.ch_type.get(LE) {
            elf::ELFCOMPRESS_ZLIB => Self::inflated(stored, header.ch_size.get(LE)),
            elf::ELFCOMPRESS_ZSTD => Err(ImageError::dwarf("it is compressed with zstd, not with zlib")),
            other => Err(ImageError::dwarf(format!("it is compressed in the unknown way {}", other.0))),
        }
    }

    fn old(mut stored: Stored<'a>) -> Result<Self, ImageError> {
        let [magic @ .., b0, b1, b2, b3, b4, b5, b6, b7] = stored.header::<12>()?;
        if magic != *b"ZLIB" {
            return Err(ImageError::dwarf("a compressed section has no header"));
        }
        Self::inflated(stored, u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]))
    }

    /// Replaces the content of `buffer` with the next `len` bytes.
    pub(super) fn take_into(&mut self, buffer: &mut Vec<u8>, len: u64) -> Result<(), ImageError> {
        buffer.clear();
        self.append(buffer, len)
    }

    /// Appends the next `len` bytes. Allocates no memory for bytes that are missing.
    pub(super) fn append(&mut self, buffer: &mut Vec<u8>, len: u64) -> Result<(), ImageError> {
        if len > self.left {
            return Err(ImageError::dwarf("it ends too early"));
        }
        let failed = |error| ImageError::dwarf(format!("{error}"));
        let read = (&mut *self.reader).take(len).read_to_end(buffer).map_err(failed)?;
        if read as u64 != len {
            return Err(ImageError::dwarf("it ends too early"));
        }
        self.left -= len;
        Ok(())
    }

    /// The number of bytes left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    fn new(reader: impl Read + 'a, size: u64) -> Result<Self, ImageError> {
        if size > MAX_SIZE {
            return Err(ImageError::dwarf(format!("a section of {size} bytes is too large")));
        }
        Ok(Self { reader: Box::new(reader), left: size })
    }

    fn inflated(stored: Stored<'a>, size: u64) -> Result<Self, ImageError> {
        if size / MAX_RATIO > stored.left {
            let from = stored.left;
            return Err(ImageError::dwarf(format!("{from} bytes that claim to hold {size} are refused")));
        }
        Self::new(ZlibDecoder::new(stored), size)
    }
}

/// A range of the file.
struct Stored<'a> {
    source: &'a dyn Source,
    at: u64,
    left: u64,
}

impl<'a> Stored<'a> {
    fn new(source: &'a dyn Source, at: u64, left: u64) -> Result<Self, ImageError> {
        if at.checked_add(left).is_none_or(|end| end > source.len()) {
            return Err(ImageError::dwarf("the file ends before it"));
        }
        Ok(Self { source, at, left })
    }

    /// Reads the first bytes.
    fn header<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let mut header = [0; N];
        self.read_exact(&mut header).map_err(|_| ImageError::dwarf("a section is cut in its header"))?;
        Ok(header)
    }
}

impl Read for Stored<'_> {
    fn read(&mut self, buf: &mut [u8]) -> IoResult<usize> {
        let len = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
        let Some(buf) = buf.get_mut(..len) else { return Ok(0) };
        self.source.read_at(self.at, buf)?;
        self.at += len as u64;
        self.left -= len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"what a section holds, what a section holds, what a section holds";

    fn deflate(data: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).expect("memory");
        encoder.finish().expect("memory")
    }

    fn compressed(way: u32, size: u64, data: &[u8]) -> Vec<u8> {
        let mut section = [way.to_le_bytes(), [0; 4]].concat();
        section.extend([size.to_le_bytes(), 1_u64.to_le_bytes()].concat());
        section.extend(data);
        section
    }

    fn old(size: u64, data: &[u8]) -> Vec<u8> {
        [b"ZLIB", &size.to_be_bytes()[..], data].concat()
    }

    fn read_all(form: Form, section: &[u8]) -> Result<Vec<u8>, ImageError> {
        let section = section.to_vec();
        let mut contents = Contents::open(&section, form, 0, section.len() as u64)?;
        let mut data = Vec::new();
        contents.append(&mut data, contents.left())?;
        Ok(data)
    }

    fn refused(form: Form, section: &[u8]) -> String {
        read_all(form, section).expect_err("damaged").to_string()
    }

    #[test]
    fn contents_are_the_same_in_every_form() {
        let size = TEXT.len() as u64;
        for (form, section) in [
            (Form::Plain, TEXT.to_vec()),
            (Form::Compressed, compressed(1, size, &deflate(TEXT))),
            (Form::Old, old(size, &deflate(TEXT))),
        ] {
            assert_eq!(read_all(form, &section).expect("contents"), TEXT);
            let mut contents = Contents::open(&section, form, 0, section.len() as u64).expect("contents");
            let mut data = Vec::new();
            contents.take_into(&mut data, 6).expect("contents");
            contents.take_into(&mut data, 9).expect("contents");
            assert_eq!((&*data, contents.left()), (&TEXT[6..15], size - 15));
            assert!(contents.append(&mut data, size).is_err());
        }
    }

    #[test]
    fn sizes_that_are_lies_are_refused() {
        let packed = deflate(TEXT);
        let size = TEXT.len() as u64;
        let early = "ends too early";
        assert!(refused(Form::Compressed, &compressed(1, size + 1, &packed)).contains(early));
        assert!(refused(Form::Old, &old(size + 1, &packed)).contains(early));
        for size in [u64::MAX, 1 << 40, 1 << 20] {
            assert!(refused(Form::Compressed, &compressed(1, size, &packed)).contains("claim to hold"));
            assert!(refused(Form::Old, &old(size, &packed)).contains("claim to hold"));
        }
        let file = vec![0_u8; 16];
        for (at, len) in [(0, 17), (17, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(Contents::open(&file, Form::Plain, at, len).is_err(), "{at} {len}");
        }
    }

    #[test]
    fn a_bomb_is_not_inflated() {
        let bomb = deflate(&vec![0; 8 << 20]);
        let text = refused(Form::Compressed, &compressed(1, 8 << 20, &bomb));
        assert!(text.contains("claim to hold 8388608 are refused"), "{text}");
        // Data beyond the declared size is not inflated.
        assert_eq!(read_all(Form::Compressed, &compressed(1, 5, &bomb)).expect("contents"), [0; 5]);
    }

    #[test]
    fn other_ways_to_compress_are_named() {
        assert!(refused(Form::Compressed, &compressed(2, 5, b"")).contains("zstd"));
        assert!(refused(Form::Compressed, &compressed(9, 5, b"")).contains("unknown way 9"));
        assert!(refused(Form::Compressed, &[1, 0, 0]).contains("cut in its header"));
        assert!(refused(Form::Old, b"GZIPxxxxxxxxxxxx").contains("no header"));
        assert!(!refused(Form::Compressed, &compressed(1, 5, b"no zlib stream")).is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_give_contents_or_an_error(
            start in prop::sample::select(vec![old(60, &deflate(TEXT)), compressed(1, 60, &deflate(TEXT))]),
            kept in any::<prop::sample::Index>(),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let section = [&start[..kept.index(start.len() + 1)], &rest].concat();
            for form in [Form::Plain, Form::Compressed, Form::Old] {
                if let Ok(data) = read_all(form, &section) {
                    prop_assert!(data.len() <= 64 * (section.len() + 1));
                }
            }
        }
    }
}
