//! A table of one process's calls, as counted by the agent and by the process itself, and the verdict.

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use anyhow::Result;
use monitor_tests::{
    durations,
    scrape::{Histogram, Labels, Scrape},
    tally::{DEFAULT_LABELS, Row, Tally},
};

/// The labels, in the order of their columns. The other columns are numbers.
const LABELS: [&str; 5] = ["caller", "callee", "method", "type", "status"];
const NUMBERS: [&str; 5] = ["calls", "calls/s", "p50 µs", "p99 µs", "own count"];
const GAP: &str = "  ";
/// Number of differences that the verdict lists.
const NAMED: usize = 4;

/// The calls at one process.
pub(super) struct Side {
    role: &'static str,
    pid: u32,
    /// How long calls were made.
    seconds: f64,
    /// All label sets of the agent and of the process.
    rows: Vec<Row>,
    latencies: BTreeMap<Labels, Histogram>,
}

impl Side {
    /// Combines a process's own counts with those of a scrape of several targets.
    pub(super) fn new(
        role: &'static str,
        pid: u32,
        seconds: f64,
        own: &Tally,
        scrape: &Scrape,
    ) -> Result<Self> {
        let agent = Tally::of_agent(scrape, &DEFAULT_LABELS, Some(pid))?;
        let mut rows = own.compared_with(&agent).rows;
        // Successes before failures.
        rows.sort_by_key(|row| {
            let [others @ .., status] = LABELS.map(|name| label(row, name).to_owned());
            (others, Reverse(status))
        });
        Ok(Self { role, pid, seconds, rows, latencies: durations::of_agent(scrape, Some(pid)) })
    }

    /// Returns the total number of calls, as counted by the agent and by the process.
    fn totals(&self) -> (u64, u64) {
        self.rows.iter().fold((0, 0), |(agent, own), row| (agent + row.agent, own + row.target))
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let latency = self.latencies.get(&row.labels);
        let quantile = |q| {
            let us = latency.and_then(|latency| latency.quantile(q));
            us.map_or("-".to_owned(), |us| format!("{us:.0}"))
        };
        let mut cells = LABELS.map(|name| label(row, name).to_owned()).to_vec();
        cells.extend([row.agent.to_string(), self.rate(row.agent), quantile(0.5), quantile(0.99)]);
        cells.extend([row.target.to_string(), mark(row.agent, row.target)]);
        cells
    }

    fn last_row(&self) -> Vec<String> {
        let (agent, own) = self.totals();
        let mut cells = vec![String::new(); LABELS.len()];
        "all".clone_into(&mut cells[0]);
        cells.extend([agent.to_string(), self.rate(agent), String::new(), String::new()]);
        cells.push(own.to_string());
        cells
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2⁵³")]
    fn rate(&self, calls: u64) -> String {
        format!("{:.1}", calls as f64 / self.seconds)
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![LABELS.iter().chain(&NUMBERS).copied().map(str::to_owned).collect::<Vec<_>>()];
        lines.extend(self.rows.iter().map(|row| self.cells(row)));
        lines.push(self.last_row());
        let columns = LABELS.len() + NUMBERS.len();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths = (0..columns).map(width).collect::<Vec<_>>();
        let rule = widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>();
        lines.insert(lines.len() - 1, rule.clone());
        lines.insert(1, rule);

        writeln!(f, "The {} (pid {})", self.role, self.pid)?;
        for cells in &lines {
            writeln!(f, "{}", aligned(cells, &widths).trim_end())?;
        }
        Ok(())
    }
}

/// Formats a row: labels left-aligned, numbers right-aligned, then cells without a width.
fn aligned(cells: &[String], widths: &[usize]) -> String {
    let pad = |(column, cell): (usize, &String)| match widths.get(column) {
        Some(width) if column < LABELS.len() => format!("{cell:width$}"),
        Some(width) => format!("{cell:>width$}"),
        None => cell.clone(),
    };
    cells.iter().enumerate().map(pad).collect::<Vec<_>>().join(GAP)
}

fn mark(agent: u64, own: u64) -> String {
    match i128::from(agent) - i128::from(own) {
        0 => "equal".to_owned(),
        more => format!("DIFFERS {more:+}"),
    }
}

fn label<'a>(row: &'a Row, name: &str) -> &'a str {
    row.labels.get(name).map_or("", String::as_str)
}

/// Returns a sentence saying whether all counts agree, or which do not.
pub(super) fn verdict(sides: &[Side]) -> Result<String, String> {
    let all = || sides.iter().flat_map(|side| side.rows.iter().map(move |row| (side, row)));
    let different = all().filter(|(_, row)| row.agent != row.target).collect::<Vec<_>>();
    if let Some(side) = sides.iter().find(|side| side.totals() == (0, 0)) {
        return Err(format!("NOT equal: nothing was counted of the {}", side.role));
    }
    if !different.is_empty() {
        return Err(differences(&different, all().count()));
    }
    let calls = sides.iter().map(|side| side.totals().0).sum::<u64>();
    let each = sides.iter().map(|side| format!("{} {}", side.role, side.totals().0)).collect::<Vec<_>>();
    Ok(format!("equal: {calls} calls ({}), every label set", each.join(", ")))
}

fn differences(different: &[(&Side, &Row)], of: usize) -> String {
    let name = |(side, row): &(&Side, &Row)| {
        let labels = LABELS.map(|name| label(row, name)).join(" ");
        format!("{} {labels} (agent {}, itself {})", side.role, row.agent, row.target)
    };
    let mut named = different.iter().take(NAMED).map(name).collect::<Vec<_>>();
    if let more @ 1.. = different.len().saturating_sub(NAMED) {
        named.push(format!("and {more} more"));
    }
    format!("NOT equal: {} of {of} label sets differ: {}", different.len(), named.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PID: u32 = 4711;

    /// Returns a target's own counts for calls of these methods. Only calls of "Store" fail.
    fn own(calls: &[(&str, u64)]) -> Tally {
        let row = |(method, count): &(&str, u64)| {
            let status = if *method == "Store" { "error" } else { "succeed" };
            json!({
                "side": "server", "type": "pingpong", "caller": "shop", "callee": "stock",
                "method": method, "status": status, "count": count,
            })
        };
        let rows = calls.iter().map(row).collect::<Vec<_>>();
        Tally::of_target(&json!({ "counts": rows }), &DEFAULT_LABELS).unwrap()
    }

    /// Returns the agent's scrape for the same calls, each between 20 and 30 µs.
    fn scrape(calls: &[(&str, u64)]) -> Scrape {
        let series = |(method, calls): &(&str, u64)| {
            let status = if *method == "Store" { "error" } else { "succeed" };
            let labels = format!(
                r#"callee="stock",caller="shop",method="{method}",status="{status}",target="{PID}",type="pingpong""#
            );
            let latency = format!(
                "kitex_server_latency_us_bucket{{{labels},le=\"20\"}} 0\n\
                 kitex_server_latency_us_bucket{{{labels},le=\"30\"}} {calls}\n\
                 kitex_server_latency_us_bucket{{{labels},le=\"+Inf\"}} {calls}\n\
                 kitex_server_latency_us_sum{{{labels}}} 1\n\
                 kitex_server_latency_us_count{{{labels}}} {calls}\n"
            );
            (latency, format!("kitex_server_throughput{{{labels}}} {calls}\n"))
        };
        let (latencies, counters): (String, String) = calls.iter().map(series).unzip();
        let text = format!(
            "# HELP kitex_server_latency_us H\n# TYPE kitex_server_latency_us histogram\n{latencies}\
             # HELP kitex_server_throughput H\n# TYPE kitex_server_throughput counter\n{counters}"
        );
        Scrape::parse(&text).unwrap()
    }

    fn side(own_calls: &[(&str, u64)], agents: &[(&str, u64)]) -> Side {
        Side::new("server", PID, 5.0, &own(own_calls), &scrape(agents)).unwrap()
    }

    #[test]
    fn equal_counts() {
        let calls = [("Echo", 123_456), ("Store", 8)];
        let side = side(&calls, &calls);
        assert_eq!(
            side.to_string(),
            "\
The server (pid 4711)
caller  callee  method  type      status    calls  calls/s  p50 µs  p99 µs  own count
------  ------  ------  --------  -------  ------  -------  ------  ------  ---------
shop    stock   Echo    pingpong  succeed  123456  24691.2      25      30     123456  equal
shop    stock   Store   pingpong  error         8      1.6      25      30          8  equal
------  ------  ------  --------  -------  ------  -------  ------  ------  ---------
all                                        123464  24692.8                     123464
"
        );
        assert_eq!(verdict(&[side]), Ok("equal: 123464 calls (server 123464), every label set".to_owned()));
    }

    #[test]
    fn a_call_too_few_and_a_call_too_many() {
        // The totals are equal, but the verdict must notice.
        let side = side(&[("Echo", 10), ("Store", 5)], &[("Echo", 9), ("Store", 6)]);
        let text = side.to_string();
        assert!(
            text.contains("        10  DIFFERS -1\n") && text.contains("         5  DIFFERS +1\n"),
            "{text}"
        );
        assert_eq!(
            verdict(&[side]).unwrap_err(),
            "NOT equal: 2 of 2 label sets differ: server shop stock Echo pingpong succeed (agent 9, itself 10); \
             server shop stock Store pingpong error (agent 6, itself 5)"
        );
    }

    #[test]
    fn missing_and_surplus_rows() {
        let side = side(&[("Echo", 10), ("Store", 5)], &[("Echo", 10), ("Lookup", 7)]);
        let text = side.to_string();
        let line = |method| text.lines().find(|line| line.contains(method)).unwrap();
        assert!(line("Lookup").ends_with("0  DIFFERS +7"), "{text}");
        assert!(line("Store").ends_with("0      0.0       -       -          5  DIFFERS -5"), "{text}");
        let verdict = verdict(&[side]).unwrap_err();
        assert!(verdict.contains("2 of 3") && !verdict.contains("Echo"), "{verdict}");
    }

    #[test]
    fn one_side_that_differs_is_enough() {
        let fine = || side(&[("Echo", 10)], &[("Echo", 10)]);
        assert!(verdict(&[fine(), fine()]).is_ok());
        assert!(verdict(&[fine(), side(&[("Echo", 10)], &[("Echo", 11)])]).is_err());
        assert!(verdict(&[side(&[("Echo", 10)], &[("Echo", 11)]), fine()]).is_err());
    }

    #[test]
    fn nothing_counted_is_not_equal() {
        let nothing = Side::new("client", PID, 5.0, &Tally::default(), &Scrape::default()).unwrap();
        assert_eq!(verdict(&[nothing]).unwrap_err(), "NOT equal: nothing was counted of the client");
    }

    #[test]
    fn many_differences_are_not_all_named() {
        let calls = |calls| ["A", "B", "C", "D", "E", "F"].map(|method| (method, calls));
        let verdict = verdict(&[side(&calls(1), &calls(2))]).unwrap_err();
        assert!(verdict.contains("6 of 6") && verdict.ends_with("; and 2 more"), "{verdict}");
    }
}
