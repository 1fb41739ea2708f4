//! The clock of the programs.

use std::{fs, sync::OnceLock, time::Duration};

/// Clock offsets against the host, for the time namespace that a child of this process would be in.
const OFFSETS: &str = "/proc/self/timens_offsets";

/// Returns `CLOCK_MONOTONIC` as the programs read it: the host's, whatever time namespace the agent is in.
#[must_use]
pub fn monotonic() -> Duration {
    static AHEAD_NS: OnceLock<i64> = OnceLock::new();
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: only writes the timespec, and can't fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let own = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default());
    of_the_machine(own, *AHEAD_NS.get_or_init(ahead_ns))
}

fn of_the_machine(own: Duration, ahead_ns: i64) -> Duration {
    let apart = Duration::from_nanos(ahead_ns.unsigned_abs());
    if ahead_ns < 0 { own + apart } else { own.saturating_sub(apart) }
}

/// Returns by how many nanoseconds the agent's clock is ahead of the host's. A process never changes its time
/// namespace.
fn ahead_ns() -> i64 {
    let namespace = |link: &str| fs::read_link(format!("/proc/self/ns/{link}")).ok();
    if namespace("time") != namespace("time_for_children") {
        // On older kernels a program started by `unshare` without a fork is not in the new namespace.
        return 0;
    }
    // Before Linux 5.6 there are no time namespaces.
    fs::read_to_string(OFFSETS).ok().and_then(|text| monotonic_offset(&text)).unwrap_or_default()
}

/// Parses the offset, in nanoseconds: a line has the name of a clock, seconds and nanoseconds.
fn monotonic_offset(text: &str) -> Option<i64> {
    let numbers = text.lines().find_map(|line| line.strip_prefix("monotonic "))?;
    let mut numbers = numbers.split_ascii_whitespace().map(str::parse::<i64>);
    let (seconds, nanoseconds) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_time_namespace() {
        for (text, offset) in [
            ("monotonic           0         0\nboottime            0         0\n", Some(0)),
            ("monotonic      100000         0\nboottime           -7         5\n", Some(100_000_000_000_000)),
            // One second behind, less a nanosecond.
            ("boottime            3         0\nmonotonic          -1         1\n", Some(-999_999_999)),
            ("monotonic  9223372036         0\n", Some(9_223_372_036_000_000_000)),
            ("monotonic  9223372037         0\n", None),
            ("monotonic           1\n", None),
            ("boottime            1         0\n", None),
            ("", None),
        ] {
            assert_eq!(monotonic_offset(text), offset, "{text:?}");
        }
    }

    #[test]
    fn the_clock_of_the_programs_goes_on_behind_a_clock_that_is_ahead_of_it() {
        let own = Duration::from_secs(100);
        for (ahead_s, seconds) in [(0, 100), (60, 40), (-60, 160), (101, 0)] {
            let machine = of_the_machine(own, ahead_s * 1_000_000_000);
            assert_eq!(machine, Duration::from_secs(seconds), "{ahead_s} s ahead");
        }
    }
}
