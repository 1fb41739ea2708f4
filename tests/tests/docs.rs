//! The documents are true: compares `docs/metrics.md` with real scrapes, and flags and file names with those that
//! exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, run_to_end},
    process::Process,
    scrape::{Family, Kind, Labels, Sample, Scrape, whole},
    targets::{Flavour, Program},
    usage::cpu_time,
};
use serde_json::Value;

/// How long a report may take, and metrics that appear only after a while.
const PATIENCE: Duration = Duration::from_secs(20);

/// A row of a table in `docs/metrics.md`.
#[derive(Debug)]
struct Documented {
    kind: Kind,
    presence: Presence,
    always: BTreeSet<String>,
    /// Labels in brackets: only on request.
    asked_for: BTreeSet<String>,
    row: String,
}

/// When a metric is served, from the text after the comma in its type cell.
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

/// Returns the rows whose first cell is a metric. Other tables have something else there, or no type next to it.
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

/// Whether a label has a fixed list of values. The row of its metric must name them.
fn is_enumerated(label: &str) -> bool {
    matches!(label, "reason" | "outcome" | "kind" | "role" | "direction" | "source" | "cost_class")
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
        check_row(name, family, &metrics[name], with_asked_for)?;
    }
    Ok(())
}

/// Fails unless a family has the type and the labels of its row, and the row names its values.
fn check_row(name: &str, family: &Family, metric: &Documented, with_asked_for: bool) -> Result<()> {
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
    Ok(())
}

/// Returns an agent's first scrape, and checks metrics of the agent that can be measured from outside.
fn first_scrape(agent: &Agent) -> Result<Scrape> {
    let before = cpu_time(agent.pid())?.as_secs_f64();
    let scrape = agent.scrape_settled()?;
    let after = cpu_time(agent.pid())?.as_secs_f64();
    let cpu = scrape.value("monitor_agent_cpu_seconds_total", &[]).context("no CPU time")?;
    // User and system time are each in whole hundredths of a second, and may lack the last moments of running threads.
    ensure!((before - 0.05..=after).contains(&cpu), "{cpu} s of CPU time, not {before} to {after}");
    let build = scrape.value("monitor_build_info", &[("version", env!("CARGO_PKG_VERSION"))]);
    ensure!(build == Some(1.0), "{:?}", scrape.families["monitor_build_info"]);
    // Requests for readiness do not count as scrapes.
    let scrapes = scrape.value("monitor_scrapes_total", &[]);
    ensure!(scrapes == Some(1.0), "{scrapes:?} scrapes, not 1");
    Ok(scrape)
}

/// Returns the report of `inspect --json` about the executable of a process.
fn inspected(pid: u32) -> Result<Value> {
    let exe = fs::read_link(format!("/proc/{pid}/exe"))?;
    let exe = exe.to_str().context("no UTF-8")?;
    let ended = run_to_end(&["inspect", "--json", "--exe", exe], PATIENCE)?;
    ensure!(ended.code == Some(0), "{ended:#?}");
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Builds a label set from these values, which must be strings.
fn series<const N: usize>(labels: [(&str, &Value); N]) -> Result<Labels> {
    let mut series = Labels::new();
    for (name, value) in labels {
        let value = value.as_str().with_context(|| format!("{name} is {value}"))?;
        series.insert(name.to_owned(), value.to_owned());
    }
    Ok(series)
}

/// Fails unless the agent's metrics of a target match the report of `inspect` about its executable. Each framework may
/// have `label_sets` label sets.
fn check_target(scrape: &Scrape, pid: u32, with_asked_for: bool, label_sets: u64) -> Result<()> {
    let report = inspected(pid)?;
    let pid = pid.to_string();
    let target = Value::from(pid.as_str());
    let frameworks = report["frameworks"].as_array().context("no frameworks")?;
    let (mut infos, mut probes) = (BTreeMap::new(), BTreeMap::new());
    for framework in frameworks {
        let info = series([
            ("target", &target),
            ("exe", &report["exe"]),
            ("build_id", &report["build_id"]),
            ("framework", &framework["name"]),
            ("framework_version", &framework["version"]),
            ("go_version", &report["go_version"]),
        ])?;
        infos.insert(info, 1_u64);
        let sites = framework["sites"].as_array().context("no sites")?;
        for site in sites.iter().filter(|site| with_asked_for || site["on_request"] == false) {
            let probe = series([
                ("target", &target),
                ("role", &site["role"]),
                ("symbol", &site["symbol"]),
                ("instruction", &site["instruction"]),
                ("cost_class", &site["cost_class"]),
            ])?;
            probes.insert(probe, 1_u64);
        }
    }
    for (name, expected) in [("monitor_target_info", infos), ("monitor_probe_site_info", probes)] {
        let of_target = scrape.samples(name).filter(|sample| sample.labels["target"] == pid);
        let told: BTreeMap<_, _> =
            of_target.map(|sample| (sample.labels.clone(), whole(sample.value))).collect();
        ensure!(!told.is_empty() && told == expected, "{name}: {told:?}, by inspect {expected:?}");
    }
    let limit = scrape.value("monitor_label_sets_limit", &[("target", &pid)]).map(whole);
    let expected = label_sets * frameworks.len() as u64;
    ensure!(limit == Some(expected), "the limit on label sets is {limit:?}, not {expected}");
    Ok(())
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_served() -> Result<()> {
    let metrics = documented()?;
    let server = Process::kitex(&["server"])?;
    let relay =
        Process::kitex(&["relay", "--connect", server.addr()?, "--service", "gate", "--caller", "gate"])?;
    let mut client = Process::kitex(&["client", "--connect", relay.addr()?, "--callee", "gate"])?;

    // The relay is both server and client, so one target has all metrics.
    let everything = ["--go.metrics", "all"];
    let begin = Instant::now();
    let agent = Agent::attach(&[relay.pid()], &everything)?;
    let within = begin.elapsed().as_secs_f64();
    client.command("load 500 4 1")?;
    let scrape = first_scrape(&agent)?;
    check(&scrape, &metrics, false)?;
    check_target(&scrape, relay.pid(), false, 4_096)?;
    let took = scrape.sum("monitor_attach_seconds", &[]);
    ensure!((0.001..within).contains(&took), "attaching took {took} s, of {within} until it was ready");
    // Scrapes of one target count as scrapes, too.
    let of_target = agent.scrape_path(&format!("/targets/{}/metrics", relay.pid()))?;
    let scrapes = of_target.value("monitor_scrapes_total", &[]);
    ensure!(scrapes == Some(2.0), "{scrapes:?} scrapes, not 2");
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
        "--max-label-sets",
        "1000",
    ];
    let flags = [&flags[..], &["--events.socket", socket]].concat();
    let mut grpc = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let agent = Agent::attach(&[relay.pid(), server.pid(), grpc.pid()], &flags)?;
    client.command("load 500 4 2")?;
    grpc.command("run all 1")?;
    grpc.command("hang 1")?;
    let scrape = agent.scrape_settled()?;
    check(&scrape, &metrics, true)?;
    for pid in [relay.pid(), grpc.pid()] {
        check_target(&scrape, pid, true, 1_000)?;
    }
    for name in metrics.keys().filter(|name| name.starts_with("grpc_")) {
        ensure!(scrape.families.contains_key(name), "in docs/metrics.md, but not in a scrape: {name}");
    }
    agent.terminate()?;
    Ok(())
}

/// Scrapes until all these families are present.
fn scrape_with(agent: &Agent, names: &[&str]) -> Result<Scrape> {
    let begin = Instant::now();
    loop {
        let scrape = agent.scrape_settled()?;
        let absent: Vec<_> = names.iter().filter(|name| !scrape.families.contains_key(**name)).collect();
        if absent.is_empty() {
            return Ok(scrape);
        }
        ensure!(begin.elapsed() < PATIENCE, "in docs/metrics.md, but not in a scrape: {absent:?}");
    }
}

/// With everything that makes the agent serve more metrics of itself: a budget, pushes, and calls of an unexpected
/// type.
#[test]
fn every_metric_of_opentelemetry_is_documented_and_served() -> Result<()> {
    let (metrics, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        documented()?.into_iter().partition(|(_, metric)| metric.presence == Presence::WithOtel);
    let about = others.iter().filter(|(name, _)| name.starts_with("monitor_"));
    let if_any = about.filter(|(_, metric)| metric.presence == Presence::IfAny);
    let if_any: Vec<_> = if_any.map(|(name, _)| name.as_str()).collect();
    ensure!(!if_any.is_empty(), "docs/metrics.md has nothing that the agent tells of itself if there is any");
    let server = Process::kitex(&["server"])?;
    let relay =
        Process::kitex(&["relay", "--connect", server.addr()?, "--service", "gate", "--caller", "gate"])?;
    let mut client = Process::kitex(&["client", "--connect", relay.addr()?, "--callee", "gate"])?;
    let flags = ["--metrics", "otel", "--otel.go", "both", "--otlp", "--overhead-budget", "100%"];
    let mut grpc = Process::start(Program::Grpc, Flavour::Default, &[])?;
    let mut strange = Process::start(Program::Strange, Flavour::Default, &[])?;
    // Nothing listens at the endpoint.
    let variables =
        [("OTEL_SEMCONV_STABILITY_OPT_IN", "rpc/dup"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")];
    // The run time of programs is sampled right after they are attached, so calls must be made by then.
    client.command("flow 4 500")?;
    let agent = Agent::attach_with(&variables, &[relay.pid(), grpc.pid(), strange.pid()], &flags)?;
    grpc.command("codes 16")?;
    strange.command("call 1 my-rpcinfo")?;
    let scrape = scrape_with(&agent, &if_any)?;
    client.command("pause")?;
    agent.terminate()?;
    for (name, family) in scrape.families.iter().filter(|(name, _)| name.starts_with("monitor_")) {
        let metric = others.get(name).with_context(|| format!("not in docs/metrics.md: {name}"))?;
        check_row(name, family, metric, false)?;
    }
    // The target has no memory limit.
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
    // Labels that only some calls have.
    for name in ["rpc_client_call_duration_seconds", "rpc_server_call_duration_seconds"] {
        let seen: BTreeSet<_> = scrape.families[name].samples.iter().flat_map(labels_of).collect();
        for label in ["rpc_response_status_code", "error_type"] {
            ensure!(seen.contains(label), "{name} has no {label}: {seen:?}");
        }
    }
    Ok(())
}

/// Returns every document of the repository, as a path from its root.
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
        // Paths in backticks of Rust files and documents, from the root or inside the agent.
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

/// Returns the notes of `inspect` that `docs/compatibility.md` lists.
fn notes_of_the_matrix(compatibility: &str) -> Vec<&str> {
    let parts = compatibility.split("\n### What cannot be told, ").skip(1);
    let parts = parts.map(|part| part.split("\n#").next().unwrap_or_default());
    parts.flat_map(str::lines).filter_map(|line| line.strip_prefix("- ")).collect()
}

/// Appends the contents of all files below a directory.
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
    // No rule may be about a note that no longer exists.
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
