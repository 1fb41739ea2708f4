//! Go releases.

use std::fmt;

/// A Go release, ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoVersion {
    /// Always 1 in the releases so far.
    pub major: u32,
    /// The release that decides formats: 26 in `go1.26.8`.
    pub minor: u32,
    /// The bug-fix release. 0 also for betas, release candidates and development builds.
    pub patch: u32,
}

impl GoVersion {
    /// Parses the version in the build info: `go1.26.8`, `go1.21rc2`, `devel go1.22-4d3bd1`, `go1.20.3 X:boringcrypto`.
    /// Ignores anything after the numbers. `None` if there are none.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("devel ").unwrap_or(text);
        let (major, rest) = number(text.strip_prefix("go")?)?;
        let (minor, rest) = number(rest.strip_prefix('.')?)?;
        let patch = rest.strip_prefix('.').and_then(number).map_or(0, |(patch, _)| patch);
        Some(Self { major, minor, patch })
    }
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        write!(f, "go{major}.{minor}")?;
        // Since Go 1.21 the first release of a series is called go1.N.0.
        if *patch > 0 || (*major, *minor) >= (1, 21) { write!(f, ".{patch}") } else { Ok(()) }
    }
}

fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(u32, u32, u32)> {
        GoVersion::parse(text).map(|v| (v.major, v.minor, v.patch))
    }

    #[test]
    fn all_spellings_of_a_release_are_read() {
        assert_eq!(parsed("go1.26.8"), Some((1, 26, 8)));
        assert_eq!(parsed("go1.17"), Some((1, 17, 0)));
        assert_eq!(parsed("go1.21rc2"), Some((1, 21, 0)));
        assert_eq!(parsed("go1.20.3 X:boringcrypto"), Some((1, 20, 3)));
        assert_eq!(parsed("go1.22.5-bigcorp"), Some((1, 22, 5)));
        assert_eq!(parsed("devel go1.22-4d3bd1 Thu Aug 3"), Some((1, 22, 0)));
        assert_eq!(parsed("go1.28-devel_3a4b5c6"), Some((1, 28, 0)));
    }

    #[test]
    fn other_text_is_no_release() {
        for text in ["", "unknown", "go", "go1", "go1.", "devel +abc", "go1.x", "1.26.8", "go99999999999.1"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn a_release_is_written_as_go_writes_it() {
        for text in ["go1.17", "go1.20.14", "go1.21.0", "go1.26.8"] {
            assert_eq!(GoVersion::parse(text).map(|v| v.to_string()).as_deref(), Some(text));
        }
    }
}
