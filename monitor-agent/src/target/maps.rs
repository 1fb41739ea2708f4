//! The mappings of one file in `/proc/PID/maps`.
//!
//! Read by hand: the text holds paths that the target chose, and `procfs` 0.18 fails on one that is not UTF-8 and
//! panics on a file called `/SYSV`.

use super::FileId;

/// A part of a file that is mapped into a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Where in the file the part begins, in bytes.
    pub offset: u64,
    /// Access, as the kernel writes it: `r-xp`.
    pub perms: [u8; 4],
}

struct Line<'a> {
    mapping: Mapping,
    file: FileId,
    path: &'a [u8],
}

/// The mappings of `file`, or where no line has its numbers, those under the name `link`.
pub(super) fn of_file(text: &[u8], file: FileId, link: &str) -> Vec<Mapping> {
    let lines: Vec<Line<'_>> = text.split(|&byte| byte == b'\n').filter_map(parse).collect();
    let of = |wanted: &dyn Fn(&Line<'_>) -> bool| -> Vec<Mapping> {
        lines.iter().filter(|line| wanted(line)).map(|line| line.mapping.clone()).collect()
    };
    let by_number = of(&|line| line.file == file);
    if !by_number.is_empty() {
        return by_number;
    }
    of(&|line| line.file.ino != 0 && String::from_utf8_lossy(line.path) == link)
}

/// `start-end perms offset major:minor inode path`, numbers hexadecimal but for the inode (proc(5)).
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (field, tail) = rest.split_at(end);
        rest = tail.get(1..).unwrap_or_default();
        field
    };
    let (start, end) = pair(field(), '-')?;
    let perms = field().try_into().ok()?;
    let offset = hex(str::from_utf8(field()).ok()?)?;
    let (major, minor) = pair(field(), ':')?;
    let ino = str::from_utf8(field()).ok()?.parse().ok()?;
    let dev = libc::makedev(u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    Some(Line {
        mapping: Mapping { start, end, offset, perms },
        file: FileId { dev, ino },
        path: rest.trim_ascii_start(),
    })
}

fn pair(field: &[u8], between: char) -> Option<(u64, u64)> {
    let (first, second) = str::from_utf8(field).ok()?.split_once(between)?;
    Some((hex(first)?, hex(second)?))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
00400000-00401000 r--p 00000000 fe:01 1234                               /srv/app
00401000-00500000 r-xp 00001000 fe:01 1234                               /srv/app
00500000-00600000 rw-p 00100000 00:2a 99                                 /srv/other app (deleted)
7f0000000000-7f0000001000 r--p 00000000 00:05 7                          /SYSV
7f0000001000-7f0000002000 r--p 00000000 00:05 8                          /bad \xff\xfe name
7fff00000000-7fff00001000 rw-p 00000000 00:00 0                          [stack]
7fff00002000-7fff00003000 rw-p 00000000 00:00 0 \n";

    #[test]
    fn device_and_inode_decide() {
        let found = of_file(TEXT, FileId { dev: libc::makedev(0xfe, 1), ino: 1234 }, "/nowhere");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].start, found[0].end, found[0].offset), (0x40_0000, 0x40_1000, 0));
        assert_eq!((&found[0].perms, &found[1].perms), (b"r--p", b"r-xp"));
    }

    #[test]
    fn the_name_decides_where_the_numbers_are_of_no_use() {
        let elsewhere = FileId { dev: libc::makedev(0, 0x50), ino: 99 };
        let found = of_file(TEXT, elsewhere, "/srv/other app (deleted)");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].perms[1], b'w');
        assert!(of_file(TEXT, elsewhere, "/srv/other app").is_empty());
        assert!(of_file(TEXT, elsewhere, "[stack]").is_empty());
        assert!(of_file(TEXT, elsewhere, "").is_empty());
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let junk: &[&[u8]] =
            &[b"", b" ", b"-", b"1-2", b"1-2 r", b"x-y r--p 0 0:0 1 /a", b"1-2 r--p 0 fffffffff:0 1 /a"];
        for line in junk {
            assert!(parse(line).is_none(), "{:?}", line.escape_ascii().to_string());
        }
    }
}
