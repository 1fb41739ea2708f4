//! Writes `docs/compatibility.md` from the results of the cells.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{Cell, Framework, Matrix, Racy, watch::Verdict};

const HEAD: &str = "# Compatibility

Written by `cargo xtask matrix` from its results; do not edit. Each row below is one executable. The agent watches it
while it makes every kind of call that its release of the framework has, as client and server: one kind after the other,
then at the same time all kinds that bear company. *Supported* means that the agent counted the same as a tracer inside
the process: every call under the same labels (type, caller, callee, method, status, retry, error class), the same
bytes, and the same messages of streams. For gRPC-Go interceptors count inside: calls started and handled, and messages
received and sent, under the same labels (type, service, method, code). A difference of one makes the row a failure. If
the agent says that it watches one side only, clients or servers, the other side has no numbers, and there is a note
below.

The agent finds what it needs in each executable, or refuses it. It depends on a release for two things only: how
combined protocols are written, and notes of what no layout shows (`monitor-agent/frameworks/kitex.toml`). So releases
between the listed ones are likely to work. `monitor-agent inspect` checks a given executable without touching it.
";

const TAIL: &str = "
## Specs that come with the agent

| spec | tested with | how |
|---|---|---|
| `net-http` | `net/http` of Go 1.18 to 1.27, stripped, HTTP/2 over TLS: the oldest, the newest and another one in turn; of Go 1.26 also as built by default and position independent, HTTP/2 without TLS | every method, status and version compared with the counts of a handler inside: `tests/tests/specs.rs`; `MONITOR_ALL_GO=1` tries all releases |
| `hertz` | Hertz v0.10.4, stripped, over netpoll and over its standard transport, and one of v0.9.2, v0.9.7 and v0.10.3 in turn. v0.3.1 is refused: it has a different function there | every method, route and status compared with the counts of a middleware inside, on connections kept and closed: the same file; `MONITOR_ALL_HERTZ=1` tries all releases |

## To see it yourself

```
cargo xtask matrix            # everything, and this file; an hour on two processors with empty caches
cargo xtask matrix grpc       # all rows of gRPC-Go, and that part of this file; likewise kitex
cargo xtask matrix v0.13      # the rows whose name (release-goRELEASE-build) contains this; this file stays unchanged
```

The rows are in `tests/matrix.json`. The programs are `tests/targets/calls` and `tests/targets/grpc`, with their modules
for each release in `mods`. Other releases of Go come through the Go module proxy. `cargo xtask test` tries the newest
and the oldest row, and others in turn.
";

/// Returns the document. The parts about frameworks with results are new, the others are as in `before`.
#[must_use]
pub fn document(matrix: &Matrix, results: &[(&Cell, Verdict)], before: &str) -> String {
    let mut text = HEAD.to_owned();
    for framework in [Framework::Kitex, Framework::Grpc] {
        let of_framework = results.iter().filter(|(cell, _)| cell.framework == framework).collect::<Vec<_>>();
        if of_framework.is_empty() {
            text.push_str(part(before, framework));
        } else {
            framework_part(&mut text, matrix, framework, &of_framework);
        }
    }
    text.push_str(TAIL);
    text
}

/// Returns the part of a document about one framework: from its heading to the next heading of the same level.
fn part(document: &str, framework: Framework) -> &str {
    let Some(start) = document.find(&format!("\n## {}\n", framework.title())) else { return "" };
    let rest = document.get(start..).unwrap_or_default();
    let end = rest.get(1..).and_then(|rest| rest.find("\n## ")).map_or(rest.len(), |end| end + 1);
    rest.get(..end).unwrap_or_default()
}

fn framework_part(text: &mut String, matrix: &Matrix, framework: Framework, results: &[&(&Cell, Verdict)]) {
    let title = framework.title();
    let _ = writeln!(text, "\n## {title}\n\n### Releases and builds, {title}\n");
    let _ = writeln!(text, "| {title} | Go | build | result | calls | messages |\n|---|---|---|---|---|---|");
    for (cell, verdict) in results {
        let _ = writeln!(text, "{} {} |", row(matrix, cell, verdict), messages(verdict));
    }
    let _ = writeln!(text, "\n### Kinds of calls, {title}\n");
    scenarios(text, results);
    let _ = writeln!(text, "\n### What cannot be told, {title}\n");
    notes(text, results);
    if framework == Framework::Kitex {
        racy(text, matrix);
    }
}

fn row(matrix: &Matrix, cell: &Cell, verdict: &Verdict) -> String {
    let about = matrix.builds.get(&cell.build).map_or("", |build| build.about.as_str());
    let Cell { release, go, build, .. } = cell;
    format!("| {release} | {go} | {build}: {about} | {} |", outcome(verdict))
}

fn messages(verdict: &Verdict) -> String {
    if let Verdict::Supported(report) = verdict { report.messages.to_string() } else { String::new() }
}

fn outcome(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Supported(report) => match report.only {
            Some(side) => format!("supported, {side}s only | {}", report.calls),
            None => format!("supported | {}", report.calls),
        },
        Verdict::Refused(reason) => format!("refused: {} | ", one_line(reason)),
        Verdict::NotBuildable(reason) => format!("not buildable: {} | ", one_line(reason)),
        Verdict::Failed(reason) => format!("**fails**: {} | ", one_line(reason)),
    }
}

/// Writes the table of the kinds of calls by release, for the default build.
fn scenarios(text: &mut String, results: &[&(&Cell, Verdict)]) {
    let mut reports = Vec::new();
    for (cell, verdict) in results {
        if let (Verdict::Supported(report), "default") = (verdict, cell.build.as_str()) {
            reports.push((cell, report));
        }
    }
    text.push_str("`ok` is a kind of call that was made and counted exactly.\n\n| |");
    for (cell, _) in &reports {
        let _ = write!(text, " {}, Go {} |", cell.release, cell.go);
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(reports.len()));
    let names = reports.iter().flat_map(|(_, report)| report.scenarios.keys()).collect::<BTreeSet<_>>();
    let mut reasons = Vec::new();
    for name in names {
        let _ = write!(text, "| {name} |");
        for (_, report) in &reports {
            let reason = report.scenarios.get(name).and_then(Option::as_ref);
            let shown =
                reason.map_or("ok".to_owned(), |reason| format!("[{}]", number(&mut reasons, reason)));
            let _ = write!(text, " {shown} |");
        }
        text.push('\n');
    }
    text.push('\n');
    for (index, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "- [{}] {reason}", index + 1);
    }
}

fn number<'a>(reasons: &mut Vec<&'a str>, reason: &'a str) -> usize {
    let known = reasons.iter().position(|known| *known == reason);
    known.unwrap_or_else(|| {
        reasons.push(reason);
        reasons.len() - 1
    }) + 1
}

/// Writes the notes about what the agent cannot distinguish, each with the rows that have it.
fn notes(text: &mut String, results: &[&(&Cell, Verdict)]) {
    text.push_str("The notes are those of `inspect`. [inspect.md](inspect.md) has a rule for each that says what is counted.\n\n");
    let mut of_note = BTreeMap::<_, Vec<_>>::new();
    let mut supported = 0;
    for (cell, verdict) in results {
        let Verdict::Supported(report) = verdict else { continue };
        supported += 1;
        for note in &report.notes {
            of_note.entry(one_line(note)).or_default().push(cell.to_string());
        }
    }
    if of_note.is_empty() {
        text.push_str("Nothing: `inspect` has no notes.\n");
    }
    for (note, cells) in of_note {
        let cells = if cells.len() == supported { "all rows".to_owned() } else { cells.join(", ") };
        let _ = writeln!(text, "- {note}. In {cells}.");
    }
}

/// Writes the list of numbers that are not compared.
fn racy(text: &mut String, matrix: &Matrix) {
    text.push_str("\n### What is not compared\n\n");
    for Racy { callee, side, number, why } in &matrix.racy {
        let _ = writeln!(text, "- `{number}` of {callee} on the {side}: {why}");
    }
}

fn one_line(text: &str) -> String {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    first.trim().replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::watch::Report;

    #[test]
    fn a_row_for_each_cell_and_a_reason_once() {
        let matrix = Matrix::read().unwrap();
        let scenarios = BTreeMap::from([
            ("framed".to_owned(), None),
            ("inline".to_owned(), Some("not yet".to_owned())),
            ("local".to_owned(), Some("not yet".to_owned())),
        ]);
        let report =
            Report { calls: 12, messages: 3, only: None, scenarios, notes: vec!["no oneway".to_owned()] };
        let [first, second, ..] = matrix.cells.as_slice() else { panic!("too few cells") };
        let results = [
            (first, Verdict::Supported(report)),
            (second, Verdict::Refused("because | of it\nand more".to_owned())),
        ];
        let text = document(&matrix, &results, "");
        assert!(
            text.contains("supported | 12 | 3 |") && text.contains("refused: because \\| of it |"),
            "{text}"
        );
        assert!(text.contains("| inline | [1] |\n| local | [1] |"), "{text}");
        assert_eq!(text.matches("not yet").count(), 1, "{text}");
        assert!(text.contains("- no oneway. In all rows.\n"), "{text}");
        // Parts without new results stay.
        let grpc = matrix.cells.iter().find(|cell| cell.framework == Framework::Grpc).unwrap();
        let later = document(&matrix, &[(grpc, Verdict::Refused("no".to_owned()))], &text);
        assert_eq!(part(&later, Framework::Kitex), part(&text, Framework::Kitex));
        assert!(
            later.starts_with(HEAD) && later.ends_with(TAIL) && later.contains("refused: no |"),
            "{later}"
        );
    }
}
