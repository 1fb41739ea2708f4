//! Differences between releases of a framework: the names of protocols, and notes that no layout shows.

use crate::frameworks::{ProtocolSpec, Untold};

/// The names that one copy of a framework uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProtocolNames {
    spec: &'static ProtocolSpec,
    /// Whether it writes combined bits as joined names.
    joined: bool,
}

impl ProtocolNames {
    /// Returns the names that a release uses. If the release is unknown, those of newer releases, with a note.
    pub(super) fn of(spec: &'static ProtocolSpec, version: &str) -> (Self, Option<String>) {
        let release = release(version);
        let joined = release.is_none_or(|release| release >= spec.joined_since);
        let note = || {
            let (major, minor) = spec.joined_since;
            format!("the release isn't known: combined protocols are named as since v{major}.{minor}")
        };
        (Self { spec, joined }, release.is_none().then(note))
    }

    /// The name of a protocol.
    pub(super) fn name(&self, number: u16) -> String {
        let Self { spec, joined } = self;
        if number == 0 {
            return spec.none.clone();
        }
        if *joined {
            let names = spec.bits.iter().filter(|(bit, _)| number & bit != 0).map(|(_, name)| name.as_str());
            let names = names.collect::<Vec<_>>().join("|");
            return if names.is_empty() { spec.none.clone() } else { names };
        }
        let mut known = spec.combinations.iter().chain(&spec.bits);
        known.find(|(value, _)| *value == number).map_or(&spec.other, |(_, name)| name).clone()
    }
}

/// The notes for a release. If the release is unknown, all notes.
pub(super) fn untold(all: &[Untold], version: &str) -> Vec<String> {
    let release = release(version);
    let note = |untold: &Untold| match release {
        None => Some(format!("the release isn't known: {}", untold.note)),
        Some(release) => (untold.since..untold.before).contains(&release).then(|| untold.note.clone()),
    };
    all.iter().filter_map(note).collect()
}

/// Major and minor version of a version such as `v0.13.1`. Go writes `v0.0.0-` and a time for a commit without a tag
/// before it.
fn release(version: &str) -> Option<(u32, u32)> {
    if version.starts_with("v0.0.0-") {
        return None;
    }
    let mut parts = version.strip_prefix('v')?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frameworks::known;

    /// The expected names are the output of Kitex's own `String`, before and after the change.
    #[test]
    fn names_are_those_of_the_release() {
        let kitex = known().by_type.iter().find(|framework| framework.name == "kitex").expect("Kitex");
        let names = |version: &str| {
            let (names, note) = ProtocolNames::of(&kitex.protocols, version);
            let texts = [0, 2, 4, 6, 16, 20, 64, 66, 256].map(|number| names.name(number));
            (texts.join(" "), note.is_some())
        };
        let before =
            "PurePayload TTHeader Framed TTHeaderFramed GRPC Unknown Unknown TTHeaderStreaming Unknown";
        let since = "PurePayload TTHeader Framed TTHeader|Framed GRPC Framed|GRPC TTHeaderStreaming \
                     TTHeader|TTHeaderStreaming PurePayload";
        assert_eq!(names("v0.12.4"), (before.to_owned(), false));
        assert_eq!(names("v0.13.1"), (since.to_owned(), false));
        for unknown in ["unknown", "v0.0.0-20260102030405-0123456789ab"] {
            assert_eq!(names(unknown), (since.to_owned(), true));
        }
    }

    #[test]
    fn what_no_layout_shows_is_noted_by_release() {
        let kitex = known().by_type.iter().find(|framework| framework.name == "kitex").expect("Kitex");
        let notes = |version: &str| untold(&kitex.untold, version);
        let streams = "servers of v0.12 don't mark streams over gRPC: they count as pingpong";
        let oneway = "clients up to v0.3 don't mark oneway calls: they count as pingpong";
        for version in ["v0.12.0", "v0.12.4"] {
            assert_eq!(notes(version), [streams], "{version}");
        }
        for version in ["v0.1.4", "v0.3.4"] {
            assert_eq!(notes(version), [oneway], "{version}");
        }
        for version in ["v0.4.0", "v0.11.3", "v0.13.0", "v0.16.3", "v1.12.0"] {
            assert!(notes(version).is_empty(), "{version}");
        }
        for unknown in ["unknown", "(devel)", "v0.0.0-20260102030405-0123456789ab"] {
            let all = [streams, oneway].map(|note| format!("the release isn't known: {note}"));
            assert_eq!(notes(unknown), all, "{unknown}");
        }
    }
}
