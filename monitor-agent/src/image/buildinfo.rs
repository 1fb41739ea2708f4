//! Go build info: what `go version -m` prints.
//!
//! Format: debug/buildinfo/buildinfo.go @ go1.26 and runtime/debug/mod.go @ go1.26.

use super::bytes::{u8_at, u64_at, varint_at};
use super::{Image, ImageError};

const MAGIC: &[u8] = b"\xff Go buildinf:";
const ALIGN: usize = 16;
const HEADER: usize = 32;
/// The strings follow the header. Before Go 1.18, the header points to them.
const FLAG_INLINE: u8 = 2;
/// The most bytes of one text. Modules and settings of a very large program take a hundred kilobytes.
const MAX_TEXT: usize = 1 << 20;
/// The longest version names experiments and a commit. It is shown at each scrape.
const MAX_VERSION: usize = 256;
/// The length of the two marks around the module text.
const MARK: usize = 16;

/// What the Go linker recorded about a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildInfo {
    /// The release that built the program, in its own spelling: `go1.26.8`.
    pub go_version: String,
    /// Import path of the main package; empty if unknown.
    pub path: String,
    /// The module of the main package.
    pub main: Option<Module>,
    /// The modules linked into the program, in the order of the file.
    pub deps: Vec<Module>,
    /// Build settings by name: `-ldflags`, `GOAMD64`, `CGO_ENABLED` and others.
    pub settings: Vec<(String, String)>,
}

/// A Go module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Module {
    /// Module path.
    pub path: String,
    /// Version, or `(devel)`; empty if unknown.
    pub version: String,
    /// The module that was built in its place.
    pub replace: Option<Box<Module>>,
}

/// Reads the build info of `image`.
pub(super) fn read(image: &Image) -> Result<BuildInfo, ImageError> {
    let at = find(image)?.ok_or(ImageError::NotGo)?;
    let header = image.read(at, HEADER).map_err(|_| ImageError::NotGo)?;
    let (version, modules) = if u8_at(&header, 15).is_some_and(|flags| flags & FLAG_INLINE != 0) {
        inline_texts(image, at)?
    } else {
        pointed_texts(image, &header)?
    };
    if version.len() > MAX_VERSION {
        return Err(damaged());
    }
    let mut info = parse(strip_marks(&modules));
    info.go_version = String::from_utf8_lossy(&version).into_owned();
    Ok(info)
}

/// Returns where the build info starts: in its own section, or else in a writable segment.
fn find(image: &Image) -> Result<Option<u64>, ImageError> {
    let mut visit = |at: u64, piece: &[u8]| {
        let found = piece.chunks(ALIGN).position(|chunk| chunk.starts_with(MAGIC))?;
        Some(at + (found * ALIGN) as u64)
    };
    match image.section(&[".go.buildinfo"]) {
        Some((address, size)) => image.scan(address, size, &mut visit),
        None => image.scan_segments(&|s| s.writable, ALIGN as u64, &mut visit),
    }
}

/// Since Go 1.18: two texts follow the header, each preceded by its length.
fn inline_texts(image: &Image, at: u64) -> Result<(Vec<u8>, Vec<u8>), ImageError> {
    let mut next = at + HEADER as u64;
    let mut text = || -> Result<Vec<u8>, ImageError> {
        let (len, width) = varint_at(&image.read_up_to(next, 5)?, 0).ok_or_else(damaged)?;
        let start = next + width as u64;
        let len = checked_len(u64::from(len))?;
        next = start.saturating_add(len as u64);
        if len == 0 { Ok(Vec::new()) } else { image.read(start, len) }
    };
    Ok((text()?, text()?))
}

/// Up to Go 1.17: the header has pointers to two Go strings.
fn pointed_texts(image: &Image, header: &[u8]) -> Result<(Vec<u8>, Vec<u8>), ImageError> {
    let text = |pointer_at: usize| -> Result<Vec<u8>, ImageError> {
        let pointer = u64_at(header, pointer_at).ok_or_else(damaged)?;
        if pointer == 0 {
            return Ok(Vec::new());
        }
        let string = image.read(pointer, 16)?;
        let (start, len) = u64_at(&string, 0).zip(u64_at(&string, 8)).ok_or_else(damaged)?;
        let len = checked_len(len)?;
        if len == 0 { Ok(Vec::new()) } else { image.read(start, len) }
    };
    Ok((text(16)?, text(24)?))
}

fn checked_len(len: u64) -> Result<usize, ImageError> {
    usize::try_from(len).ok().filter(|&len| len <= MAX_TEXT).ok_or_else(damaged)
}

fn damaged() -> ImageError {
    ImageError::malformed("its Go build information is damaged")
}

/// Returns the text between the marks, or nothing if there are none.
fn strip_marks(text: &[u8]) -> &[u8] {
    let inner = text.len().checked_sub(MARK).and_then(|end| text.get(MARK..end));
    inner.filter(|inner| inner.ends_with(b"\n")).unwrap_or_default()
}

fn parse(text: &[u8]) -> BuildInfo {
    let mut info = BuildInfo::default();
    for line in String::from_utf8_lossy(text).lines() {
        match line.split_once('\t') {
            Some(("path", path)) => path.clone_into(&mut info.path),
            Some(("mod", rest)) => info.main = Some(module(rest)),
            Some(("dep", rest)) => info.deps.push(module(rest)),
            Some(("=>", rest)) => {
                // Replaces the module of the line before it.
                if let Some(replaced) = info.deps.last_mut().or(info.main.as_mut()) {
                    replaced.replace = Some(Box::new(module(rest)));
                }
            }
            Some(("build", rest)) => info.settings.extend(setting(rest)),
            _ => {}
        }
    }
    info
}

/// Parses path and version. A text longer than any version is dropped. A path is only compared, so it has no limit.
fn module(line: &str) -> Module {
    let mut parts = line.split('\t');
    let path = parts.next().unwrap_or_default().to_owned();
    let version = parts.next().filter(|version| version.len() <= MAX_VERSION).unwrap_or_default().to_owned();
    Module { path, version, replace: None }
}

/// Parses `name=value`. Either may be quoted as in Go source.
fn setting(line: &str) -> Option<(String, String)> {
    let (name, rest) = if line.starts_with(['"', '`']) { unquote(line)? } else { (None, line) };
    let (plain, value) = rest.split_once('=')?;
    let name = name.unwrap_or_else(|| plain.to_owned());
    let value = match unquote(value) {
        Some((Some(text), _)) => text,
        _ => value.to_owned(),
    };
    Some((name, value))
}

/// Parses a Go string literal at the start of `text`. Returns it and the rest.
fn unquote(text: &str) -> Option<(Option<String>, &str)> {
    if let Some(rest) = text.strip_prefix('`') {
        let (inner, rest) = rest.split_once('`')?;
        return Some((Some(inner.to_owned()), rest));
    }
    let mut inner = String::new();
    let mut chars = text.strip_prefix('"')?.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((Some(inner), text.get(at + 2..)?)),
            '\\' => inner.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            other => inner.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_text_is_read_as_go_writes_it() {
        let info = parse(
            b"path\texample.com/shop/cmd/cart\nmod\texample.com/shop\t(devel)\t\n\
              dep\tgithub.com/cloudwego/kitex\tv0.16.3\th1:abc=\n\
              dep\tgithub.com/cloudwego/netpoll\tv0.7.2\n=>\texample.com/netpoll\tv0.7.3\th1:def=\n\
              build\t-compiler=gc\nbuild\t-ldflags=\"-s -w -X main.a=\\\"b\\\"\"\nbuild\tCGO_LDFLAGS=\n",
        );
        assert_eq!(info.path, "example.com/shop/cmd/cart");
        assert_eq!(
            info.main.as_ref().map(|m| (&*m.path, &*m.version)),
            Some(("example.com/shop", "(devel)"))
        );
        assert_eq!(info.deps.len(), 2);
        assert_eq!((&*info.deps[0].version, &info.deps[0].replace), ("v0.16.3", &None));
        let replaced = info.deps[1].replace.as_deref().map(|m| (&*m.path, &*m.version));
        assert_eq!(replaced, Some(("example.com/netpoll", "v0.7.3")));
        let pairs: Vec<_> = info.settings.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(pairs, [("-compiler", "gc"), ("-ldflags", "-s -w -X main.a=\"b\""), ("CGO_LDFLAGS", "")]);
    }

    #[test]
    fn the_main_module_can_be_replaced() {
        let info = parse(b"mod\texample.com/a\tv1.0.0\n=>\t../a\t\n");
        assert_eq!(info.main.and_then(|m| m.replace).map(|m| m.path).as_deref(), Some("../a"));
    }

    #[test]
    fn what_is_longer_than_any_version_is_none() {
        let kept = |length: usize| {
            let version = "v".repeat(length);
            let text = format!("dep\tx\t{version}\th1:abc=\ndep\ty\tv1\n=>\tz\t{version}\n");
            let deps = parse(text.as_bytes()).deps;
            let [x, y] = &deps[..] else { panic!("two modules") };
            [x, y.replace.as_deref().expect("z")].map(|module| module.version.len())
        };
        assert_eq!(kept(MAX_VERSION), [MAX_VERSION; 2]);
        assert_eq!(kept(MAX_VERSION + 1), [0; 2]);
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        assert_eq!(parse(b"=>\tx\ty\nbuild\tnothing\nbuild\t\"open\n\xff\xfe\n\n"), BuildInfo::default());
    }

    #[test]
    fn text_without_marks_is_none() {
        assert_eq!(strip_marks(b"path\tx\n"), b"");
        assert_eq!(strip_marks(b"0123456789abcdefpath\tx\n0123456789abcdef"), b"path\tx\n");
    }
}
