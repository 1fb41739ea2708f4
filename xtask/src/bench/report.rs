//! Turns numbers into text: medians, ratios, tables.

use serde::{Deserialize, Serialize};

use super::{MB, MIB};

/// The median and the extremes of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// One eighth of the numbers are lower: this is the minimum of a few, and one rank higher for every eight.
    low: f64,
}

impl Spread {
    /// Returns the spread of at least one number.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted = numbers.into_iter().collect::<Vec<_>>();
        sorted.sort_by(f64::total_cmp);
        let (middle, last) = (sorted.len() / 2, sorted.len() - 1);
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, min: sorted[0], max: sorted[last], low: sorted[sorted.len() / 8] }
    }

    /// Converts shares to percent.
    pub(super) fn percent(self) -> Self {
        let Self { median, min, max, low } = self;
        Self { median: median * 100.0, min: min * 100.0, max: max * 100.0, low: low * 100.0 }
    }

    pub(super) fn show(self, digits: usize) -> String {
        let Self { median, min, max, .. } = self;
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// Returns the ratio of two medians; `None` if it is indistinguishable from noise, because more than an eighth of
/// either's numbers are not above zero. If only noise were measured, that would hold in all but one of three hundred
/// cases with twelve rounds, and in all but one of eight with three.
pub(super) fn ratio(of: Spread, to: Spread) -> Option<f64> {
    (of.low > 0.0 && to.low > 0.0).then(|| of.median / to.median)
}

/// Formats a ratio.
pub(super) fn show_ratio(ratio: Option<f64>) -> String {
    ratio.map_or("(not to be told from noise)".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Returns whether a number meets its aim, as text.
pub(super) fn verdict(number: f64, aim: f64) -> &'static str {
    if number <= aim { "met" } else { "not met" }
}

/// Returns an aim, and whether a number meets it, as text.
pub(super) fn at_most(number: f64, aim: f64, unit: &str) -> String {
    format!("≤ {aim}{unit}: {}", verdict(number, aim))
}

/// Formats an aim in MB, of a million bytes each, and in MiB, the unit for memory here.
pub(super) fn megabytes(aim: f64) -> String {
    format!("{aim} MB ({:.2} MiB)", aim * MB / MIB)
}

/// Returns whether an amount in MiB meets an aim in MB, as text.
pub(super) fn verdict_of_memory(mib: f64, aim_mb: f64) -> &'static str {
    verdict(mib * MIB, aim_mb * MB)
}

/// Formats a table in Markdown with aligned columns. The first row is its head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths = (0..columns).map(|column| width(column).unwrap_or(0)).collect::<Vec<_>>();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        line(&mut text, row, &widths, ' ');
        if number == 0 {
            line(&mut text, &[], &widths, '-');
        }
    }
    text
}

/// Returns a row of a table.
pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn line(text: &mut String, cells: &[String], widths: &[usize], fill: char) {
    for (column, width) in widths.iter().enumerate() {
        let cell = cells.get(column).map_or("", String::as_str);
        let padding = width.saturating_sub(cell.chars().count());
        text.push_str("| ");
        text.push_str(cell);
        text.extend(std::iter::repeat_n(fill, padding));
        text.push(' ');
    }
    text.push_str("|\n");
}

/// Converts a count, exact up to 2⁵³.
#[allow(clippy::cast_precision_loss, reason = "nothing here comes near 2⁵³")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let told = |spread: Spread| (spread.median, spread.min, spread.max);
        assert_eq!(told(Spread::of([3.0, -1.0, 2.0])), (2.0, -1.0, 3.0));
        assert_eq!(told(Spread::of([4.0, 1.0, 2.0, 8.0])), (3.0, 1.0, 8.0));
        assert_eq!(told(Spread::of([7.0])), (7.0, 7.0, 7.0));
        assert_eq!(Spread::of([2.0, -1.0, 3.25]).show(1), "2.0 (-1.0 to 3.2)");
    }

    #[test]
    fn a_ratio_of_what_may_be_nothing_is_none() {
        let some = |median| Spread::of([0.1, median, 9.0]);
        assert_eq!(ratio(some(3.0), some(2.0)), Some(1.5));
        let noise = Spread::of([0.28, -0.14, 2.33]);
        // One round of many may be disturbed.
        let many = |below: usize| Spread::of([-1.0; 12].into_iter().take(below).chain([2.0; 12]).take(12));
        assert_eq!(ratio(some(3.0), many(1)), Some(1.5));
        assert_eq!(ratio(some(3.0), many(2)), None);
        assert_eq!(ratio(some(1.74), noise), None);
        assert_eq!(ratio(noise, some(1.74)), None);
        assert_eq!(show_ratio(ratio(noise, noise)), "(not to be told from noise)");
    }

    #[test]
    fn what_was_aimed_at_in_megabytes_is_less_in_mebibytes() {
        assert_eq!(megabytes(8.0), "8 MB (7.63 MiB)");
        assert_eq!([7.62, 7.64].map(|mib| verdict_of_memory(mib, 8.0)), ["met", "not met"]);
        assert_eq!(at_most(0.51, 0.5, " µs"), "≤ 0.5 µs: not met");
    }

    #[test]
    fn columns_of_a_table_are_as_wide_as_they_need_to_be() {
        let text = table(&[row(["a", "long head"]), row(["µs of time", "1"])]);
        assert_eq!(
            text,
            "| a          | long head |\n| ---------- | --------- |\n| µs of time | 1         |\n"
        );
    }
}
