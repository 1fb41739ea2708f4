//! The mappings of one file in `/proc/PID/maps`, and the mappings that the kernel makes for probes.
//!
//! Parsed by hand: the text holds paths that the target chose. `procfs` 0.18 fails on a path that is not UTF-8 and
//! panics on a file called `/SYSV`.
//!
//! A process may have a million mappings of files with long names. So lines are read one by one, and what is kept is
//! bounded.

use std::io::{self, BufRead, BufReader, Read};

use super::FileId;

/// The most bytes that are read. A process with the most mappings that kernels allow by default, 65,530, has a tenth of
/// this. With four times as many it has half.
const MAX_TEXT: u64 = 64 << 20;
/// The most bytes kept of a line. No name that is compared is longer than a page (`do_proc_readlink` in
/// fs/proc/base.c), and the fields before it are short.
const MAX_LINE: u64 = 8 << 10;
/// The most mappings of one file. An executable has a handful, or some hundred where the process has changed the access
/// to parts of it.
const MAX_MAPPINGS: usize = 1 << 14;

/// The kernel's name for the code that it maps into a process for probes to call (`tramp_mapping` in
/// arch/x86/kernel/uprobes.c @ v6.18).
const PROBE_TRAMPOLINE: &[u8] = b"[uprobes-trampoline]";

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

/// Returns the mappings of `file`, or the mappings named `path` if no line has the file's device and inode. Fails if
/// there are more than a program has: with some left out, the program would seem to lie elsewhere.
pub(super) fn of_file(lines: impl Read, file: FileId, path: &str) -> io::Result<Vec<Mapping>> {
    let (mut by_number, mut by_name) = (Vec::new(), Vec::new());
    visit(lines, &mut |line| {
        if line.file == file {
            by_number.push(line.mapping);
        } else if line.file.ino != 0 && String::from_utf8_lossy(line.path) == path {
            by_name.push(line.mapping);
        }
        if by_number.len().max(by_name.len()) > MAX_MAPPINGS {
            return Err(io::Error::other(format!(
                "it has its executable mapped more than {MAX_MAPPINGS} times"
            )));
        }
        Ok(())
    })?;
    Ok(if by_number.is_empty() { by_name } else { by_number })
}

/// Returns the mappings of the kernel's code for probes: a page in each 4 GiB that has such a probe. A file of this
/// name does not match: it has an inode.
pub(super) fn probe_trampolines(lines: impl Read) -> io::Result<Vec<Mapping>> {
    let mut found = Vec::new();
    visit(lines, &mut |line| {
        if line.file.ino == 0 && line.path == PROBE_TRAMPOLINE {
            found.push(line.mapping);
        }
        Ok(())
    })?;
    Ok(found)
}

/// Visits the lines that can be parsed. Fails if the text has more than [`MAX_TEXT`] bytes.
fn visit(lines: impl Read, visitor: &mut dyn FnMut(Line<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut lines = BufReader::new(lines.take(MAX_TEXT));
    let mut text = Vec::new();
    while next_line(&mut lines, &mut text)? {
        if let Some(line) = parse(&text) {
            visitor(line)?;
        }
    }
    if lines.get_ref().limit() == 0 {
        return Err(io::Error::other(format!("it has more than {} MiB", MAX_TEXT >> 20)));
    }
    Ok(())
}

/// Reads a line and keeps its first [`MAX_LINE`] bytes. Returns false at the end.
fn next_line(lines: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<bool> {
    text.clear();
    let len = lines.by_ref().take(MAX_LINE).read_until(b'\n', text)?;
    if text.pop_if(|last| *last == b'\n').is_none() && len > 0 {
        lines.skip_until(b'\n')?;
    }
    Ok(len > 0)
}

/// Parses `start-end perms offset major:minor inode path`. All numbers except the inode are hexadecimal (proc(5)).
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
7f0000003000-7f0000004000 r-xp 00000000 00:05 9                          [uprobes-trampoline]
7f0000004000-7f0000005000 r-xp 00000000 00:00 0                          [uprobes-trampoline]
7fff00000000-7fff00001000 rw-p 00000000 00:00 0                          [stack]
7fff00002000-7fff00003000 rw-p 00000000 00:00 0 \n";

    fn of(file: FileId, link: &str) -> Vec<Mapping> {
        of_file(TEXT, file, link).expect("mappings")
    }

    #[test]
    fn device_and_inode_decide() {
        let found = of(FileId { dev: libc::makedev(0xfe, 1), ino: 1234 }, "/nowhere");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].start, found[0].end, found[0].offset), (0x40_0000, 0x40_1000, 0));
        assert_eq!((&found[0].perms, &found[1].perms), (b"r--p", b"r-xp"));
    }

    #[test]
    fn the_name_decides_where_the_numbers_are_of_no_use() {
        let elsewhere = FileId { dev: libc::makedev(0, 0x50), ino: 99 };
        let found = of(elsewhere, "/srv/other app (deleted)");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].perms[1], b'w');
        assert!(of(elsewhere, "/srv/other app").is_empty());
        assert!(of(elsewhere, "[stack]").is_empty());
        assert!(of(elsewhere, "").is_empty());
    }

    #[test]
    fn code_for_probes_is_the_kernels() {
        let found = probe_trampolines(TEXT).expect("mappings");
        assert_eq!(found.iter().map(|one| one.start).collect::<Vec<_>>(), [0x7f00_0000_4000]);
    }

    /// A reader that repeats a text without end.
    struct Again<'a> {
        text: &'a [u8],
        at: usize,
    }

    impl<'a> Again<'a> {
        fn of(text: &'a str) -> Self {
            Self { text: text.as_bytes(), at: 0 }
        }
    }

    impl Read for Again<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let left = &self.text[self.at..];
            let len = left.len().min(buf.len());
            buf[..len].copy_from_slice(&left[..len]);
            self.at = (self.at + len) % self.text.len();
            Ok(len)
        }
    }

    #[test]
    fn a_process_that_has_no_end_of_mappings_is_refused() {
        let error =
            |lines: &mut dyn Read, file| of_file(lines, file, "/srv/app").expect_err("too much").to_string();
        let (own, other) = (FileId { dev: 0, ino: 1 }, FileId { dev: 0, ino: 2 });
        // A line without end.
        assert_eq!(error(&mut io::repeat(b'x'), own), "it has more than 64 MiB");
        // Other files with long names.
        let long = format!("400000-401000 r--p 00000000 00:00 1 /{}\n", "x".repeat(100_000));
        assert_eq!(error(&mut Again::of(&long), other), "it has more than 64 MiB");
        // The file itself, by its number and by its name.
        let own_line = "400000-401000 r--p 00000000 00:00 1 /a\n";
        let named = "400000-401000 r--p 00000000 00:00 3 /srv/app\n";
        for (line, file) in [(own_line, own), (named, other)] {
            let said = error(&mut Again::of(line), file);
            assert_eq!(said, "it has its executable mapped more than 16384 times");
        }
    }

    #[test]
    fn a_line_may_be_long() {
        let name = "x".repeat(100_000);
        let text = format!(
            "400000-401000 r--p 00000000 00:00 1 /{name}\n500000-501000 r-xp 00000000 00:00 2 /srv/app\n"
        );
        let found = |ino| {
            let found = of_file(text.as_bytes(), FileId { dev: 0, ino }, "/nowhere").expect("mappings");
            found.iter().map(|mapping| mapping.start).collect::<Vec<_>>()
        };
        assert_eq!((found(1), found(2)), (vec![0x40_0000], vec![0x50_0000]));
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
