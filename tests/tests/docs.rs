//! The documents are true: `docs/metrics.md` against real scrapes, flags and file names against what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    process::Process,
    scrape::{Kind, Sample, Scrape},
    targets::{Flavour, Program},
};

/// A row of a table in `docs/metrics.md`.
#[derive(Debug)]
struct Documented {
    kind: Kind,
    presence: Presence,
    always: BTreeSet<String>,
    /// Labels in brackets.
    asked_for: BTreeSet<String>,
    row: String,
}

/// When a metric is served, as its type cell says after a comma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Always,
    /// Behind a flag.
    OnRequest,
    /// Only once there is something to count.
    IfAny,
    /// With `--metrics otel`.
    WithOtel,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

/// The rows whose first cell is a metric: other tables name something else there, or no type beside it.
fn documented() -> Result<BTreeMap<String, Documented>> {
    let mut metrics = BTreeMap::new();
    for row in read("docs/metrics.md")?.lines() {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let ["", name, kind, labels, ..] = cells[..] else { continue };
        let (kind, presence) = kind.split_once(", ").unwrap_or((kind, ""));
        let presence = match presence {
            "on request" => Presence::OnRequest,
            "if any" => Presence::IfAny,
            "with otel" => Presence::WithOtel,
            _ => Presence::Always,
        };
        let kind = match kind {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "histogram" => Kind::Histogram,
            "summary" => Kind::Summary,
            _ => continue,
        };
        let name = name.trim_matches('`').to_owned();
        let (asked_for, always): (Vec<_>, _) =
            labels.split_whitespace().partition(|label| label.starts_with('['));
        let names = |labels: Vec<&str>| {
            labels.iter().map(|label| label.trim_matches(['[', ']', '`']).to_owned()).collect()
        };
        let row = row.to_owned();
        let metric = Documented { kind, presence, always: names(always), asked_for: names(asked_for), row };
        ensure!(metrics.insert(name.clone(), metric).is_none(), "docs/metrics.md has {name} twice");
    }
    Ok(metrics)
}

fn labels_of(sample: &Sample) -> BTreeSet<String> {
    sample.labels.keys().filter(|name| !matches!(name.as_str(), "le" | "quantile")).cloned().collect()
}

/// Labels whose values are a fixed list, which the row of their metric must name.
fn is_enumerated(label: &str) -> bool {
    matches!(label, "reason" | "outcome" | "kind" | "role")
}

fn check(scrape: &Scrape, metrics: &BTreeMap<String, Documented>, with_asked_for: bool) -> Result<()> {
    let scraped: BTreeSet<_> = scrape.families.keys().collect();
    let missing: Vec<_> = scraped.iter().filter(|name| !metrics.contains_key(**name)).collect();
    let is_due = |metric: &Documented| match metric.presence {
        Presence::Always => true,
        Presence::OnRequest => with_asked_for,
        Presence::IfAny | Presence::WithOtel => false,
    };
    let due = metrics.iter().filter(|(_, metric)| is_due(metric)).map(|(name, _)| name);
    let absent: Vec<_> = due.filter(|name| !scraped.contains(name)).collect();
    ensure!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    ensure!(absent.is_empty(), "in docs/metrics.md, but not in a scrape: {absent:?}");
    for (name, family) in &scrape.families {
        let metric = &metrics[name];
        ensure!(family.kind == metric.kind, "{name} is a {:?}, not a {:?}", family.kind, metric.kind);
        let mut expected = metric.always.clone();
        if with_asked_for {
            expected.extend(metric.asked_for.iter().cloned());
        }
        for sample in &family.samples {
            let labels = labels_of(sample);
            ensure!(labels == expected, "{name} has the labels {labels:?}, documented are {expected:?}");
            for (label, value) in sample.labels.iter().filter(|(label, _)| is_enumerated(label)) {
                ensure!(
                    metric.row.contains(&format!("`{value}`")),
                    "{name}: {label}=\"{value}\" is not explained"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_served() -> Result<()> {
    let metrics = documented()?;
    let server = Process::kitex(&["server"])?;
    let relay =
        Process::kitex(&["relay", "--connect", server.addr()?, "--service", "gate", "--caller", "gate"])?;
    let mut client = Process::kitex(&["client", "--connect", relay.addr()?, "--callee", "gate"])?;

    // The relay is a server and a client, so one target has everything.
    let everything = ["--go.metrics", "all"];
    let agent = Agent::attach(&[relay.pid()], &everything)?;
    client.command("load 500 4 1")?;
    check(&agent.scrape_settled()?, &metrics, false)?;
    agent.terminate()?;

    let kitex = metrics.iter().filter(|(name, _)| name.ends_with("_throughput"));
    let labels: BTreeSet<_> =
        kitex.flat_map(|(_, metric)| metric.always.iter().chain(&metric.asked_for)).collect();
    let labels: Vec<_> = labels.into_iter().filter(|label| *label != "target").map(String::as_str).collect();
    let labels = labels.join(",");
    let socket = concat!(env!("CARGO_TARGET_TMPDIR"), "/docs.sock");
    let flags = [
        "--kitex.bytes",
        "--kitex.stream-messages",
        "--grpc.messages",
        "--kitex.labels",
        &labels,
        "--go.metrics",
        "all",
    ];
    let flags = [&flags[..], &["--events.socket", socket]].concat();
    let mut grpc = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[relay.pid(), server.pid(), grpc.pid()], &flags)?;
    client.command("load 500 4 2")?;
    grpc.command("run all 1")?;
    grpc.command("hang 1")?;
    let scrape = agent.scrape_settled()?;
    check(&scrape, &metrics, true)?;
    for name in metrics.keys().filter(|name| name.starts_with("grpc_")) {
        ensure!(scrape.families.contains_key(name), "in docs/metrics.md, but not in a scrape: {name}");
    }
    agent.terminate()?;
    Ok(())
}

#[test]
fn every_metric_of_opentelemetry_is_documented_and_served() -> Result<()> {
    let mut metrics = documented()?;
    metrics.retain(|_, metric| metric.presence == Presence::WithOtel);
    let server = Process::kitex(&["server"])?;
    let relay =
        Process::kitex(&["relay", "--connect", server.addr()?, "--service", "gate", "--caller", "gate"])?;
    let mut client = Process::kitex(&["client", "--connect", relay.addr()?, "--callee", "gate"])?;
    let flags = ["--metrics", "otel", "--otel.go", "both"];
    let mut grpc = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let conventions = [("OTEL_SEMCONV_STABILITY_OPT_IN", "rpc/dup")];
    let agent = Agent::attach_with(&conventions, &[relay.pid(), grpc.pid()], &flags)?;
    client.command("load 500 4 1")?;
    grpc.command("codes 16")?;
    let scrape = agent.scrape_settled()?;
    agent.terminate()?;
    // There is no limit to show.
    let absent: Vec<_> = metrics.keys().filter(|name| !scrape.families.contains_key(*name)).collect();
    ensure!(absent == ["go_memory_limit_bytes"], "in docs/metrics.md, but not in a scrape: {absent:?}");
    for (name, family) in scrape.families.iter().filter(|(name, _)| !name.starts_with("monitor_")) {
        let metric = metrics.get(name).with_context(|| format!("not in docs/metrics.md: {name}"))?;
        ensure!(family.kind == metric.kind, "{name} is a {:?}, not a {:?}", family.kind, metric.kind);
        for sample in &family.samples {
            let labels = labels_of(sample);
            let more: BTreeSet<_> = labels.difference(&metric.always).collect();
            ensure!(labels.is_superset(&metric.always), "{name} lacks labels: {labels:?}");
            ensure!(more.iter().all(|label| metric.asked_for.contains(*label)), "{name} has {more:?}");
        }
    }
    // Those that only some calls have.
    for name in ["rpc_client_call_duration_seconds", "rpc_server_call_duration_seconds"] {
        let seen: BTreeSet<_> = scrape.families[name].samples.iter().flat_map(labels_of).collect();
        for label in ["rpc_response_status_code", "error_type"] {
            ensure!(seen.contains(label), "{name} has no {label}: {seen:?}");
        }
    }
    Ok(())
}

/// Every document of the repository, as a path from its root.
fn documents() -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for directory in ["", "docs", "tests"] {
        for entry in fs::read_dir(root().join(directory))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
                documents.push(Path::new(directory).join(name).to_string_lossy().into_owned());
            }
        }
    }
    Ok(documents)
}

#[test]
fn links_and_file_names_lead_somewhere() -> Result<()> {
    let mut broken = Vec::new();
    for document in documents()? {
        let text = read(&document)?;
        let directory = root().join(&document).parent().context("a directory")?.to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            let file = link.split('#').next().unwrap_or_default();
            if !link.contains("://") && !file.is_empty() && !directory.join(file).exists() {
                broken.push(format!("{document}: {link}"));
            }
        }
        // Rust files and documents in backticks, by their path from the root or inside the agent.
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path = quoted.contains('/') && !quoted.contains(char::is_whitespace);
            let is_file = is_path && [".rs", ".md"].iter().any(|end| quoted.ends_with(end));
            if is_file
                && !["", "monitor-agent/src"].iter().any(|from| root().join(from).join(quoted).exists())
            {
                broken.push(format!("{document}: `{quoted}`"));
            }
        }
    }
    ensure!(broken.is_empty(), "these lead nowhere:\n{}", broken.join("\n"));
    Ok(())
}

/// What `docs/compatibility.md` says of executables, in the words of `inspect`.
fn notes_of_the_matrix(compatibility: &str) -> Vec<&str> {
    let parts = compatibility.split("\n### What cannot be told, ").skip(1);
    let parts = parts.map(|part| part.split("\n#").next().unwrap_or_default());
    parts.flat_map(str::lines).filter_map(|line| line.strip_prefix("- ")).collect()
}

/// Adds what is in the files of a directory, and of those in it.
fn add_files(text: &mut String, directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            add_files(text, &path)?;
        } else {
            text.push_str(&fs::read_to_string(path)?);
        }
    }
    Ok(())
}

#[test]
fn every_note_has_a_rule_that_says_what_is_counted() -> Result<()> {
    let (inspect, compatibility) = (read("docs/inspect.md")?, read("docs/compatibility.md")?);
    let (_, rules) =
        inspect.split_once("\n## What a release lacks\n").context("no rules in docs/inspect.md")?;
    let rules: Vec<_> =
        rules.lines().filter_map(|row| Some(row.strip_prefix("| `")?.split_once("` |")?.0)).collect();
    let notes = notes_of_the_matrix(&compatibility);
    ensure!(!rules.is_empty() && !notes.is_empty(), "{} rules, {} notes", rules.len(), notes.len());
    let bare: Vec<_> = notes.iter().filter(|note| !rules.iter().any(|rule| note.contains(*rule))).collect();
    ensure!(bare.is_empty(), "docs/inspect.md has no rule for {bare:?}");
    // And no rule is for a note that nobody writes any more.
    let mut sources = String::new();
    for directory in ["monitor-agent/src/plan", "monitor-agent/frameworks"] {
        add_files(&mut sources, &root().join(directory))?;
    }
    let stale: Vec<_> = rules.iter().filter(|rule| !sources.contains(**rule)).collect();
    ensure!(stale.is_empty(), "docs/inspect.md has rules for notes that there are not: {stale:?}");
    Ok(())
}

#[test]
fn flags_in_examples_exist() -> Result<()> {
    let mut unknown = Vec::new();
    let mut seen = 0;
    for command in ["run", "events", "inspect", "spec check"] {
        let help = run_to_end(
            &[command.split(' ').collect::<Vec<_>>(), vec!["--help"]].concat(),
            Duration::from_secs(5),
        )?
        .stdout;
        let known: BTreeSet<_> = flags(&help).collect();
        for document in documents()? {
            for line in
                read(&document)?.lines().filter(|line| line.contains(&format!("monitor-agent {command} ")))
            {
                let (_, arguments) = line.split_once("monitor-agent ").unwrap_or_default();
                seen += 1;
                unknown.extend(
                    flags(arguments)
                        .filter(|flag| !known.contains(flag))
                        .map(|flag| format!("{document}: {command} {flag}")),
                );
            }
        }
    }
    ensure!(unknown.is_empty(), "there are no such flags:\n{}", unknown.join("\n"));
    ensure!(seen > 0, "no document shows how to run the agent");
    Ok(())
}

fn flags(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.')));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(|word| word.trim_end_matches('.'))
}
