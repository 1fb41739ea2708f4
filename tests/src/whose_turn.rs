//! Selects one of many things to test, another one in each run.

use std::{
    process::Command,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::paths;

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// A number that increases: the number of commits, or else of days since 1970. It is printed once, so that it is known
/// later what was tested.
#[must_use]
pub(crate) fn whose_turn() -> usize {
    static TURN: LazyLock<usize> = LazyLock::new(|| {
        let is_shallow = git(&["rev-parse", "--is-shallow-repository"]);
        let counted = commits(is_shallow.as_deref(), git(&["rev-list", "--count", "HEAD"]).as_deref());
        let (turn, what) =
            counted.map_or_else(|| (days(), "days: git has not all commits"), |n| (n, "commits"));
        eprintln!("what is tried in turn is chosen by {turn} {what}");
        turn
    });
    *TURN
}

/// Returns the number of commits, if git has reported that the history is complete.
fn commits(is_shallow: Option<&str>, counted: Option<&str>) -> Option<usize> {
    if is_shallow? == "false" { counted?.parse().ok() } else { None }
}

/// Returns git's output about this repository, or `None` if git fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(paths::tests()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn days() -> usize {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    usize::try_from(since.as_secs() / DAY_SECONDS).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_counted_where_all_are_there() {
        assert_eq!(commits(Some("false"), Some("1200")), Some(1_200));
        // A shallow clone always has one.
        assert_eq!(commits(Some("true"), Some("1")), None);
        // No git, no repository, or one that git does not trust.
        assert_eq!(commits(None, None), None);
        // An old git does not know the option.
        assert_eq!(commits(Some("--is-shallow-repository"), Some("1200")), None);
        assert!(days() > 20_000);
    }
}
