//! Pushes by OTLP to a real OpenTelemetry Collector: the received counts equal the calls, whatever happened to the
//! collector in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::{Agent, executable, run_command_to_end},
    collector::{Collector, Point, distributions, totals},
    process::Process,
    scrape::{Histogram, Labels, Scrape},
    side_by_side,
    targets::{Flavour, Program},
};

const PATIENCE: Duration = Duration::from_secs(10);
const SERVER: &str = "rpc.server.duration";
const CLIENT: &str = "rpc.client.duration";

/// Environment variables for an agent that pushes often.
fn variables<'a>(
    protocol: &'a str,
    endpoint: &'a str,
    more: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let mut variables = vec![
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "1000"),
    ];
    variables.extend(more);
    variables
}

const DELTA: (&str, &str) = ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta");

fn total(points: &[Point], metric: &str) -> i64 {
    totals(points, metric).values().sum()
}

/// Fails unless `/metrics`, under Kitex's names, and the received points have the same calls by method and outcome.
fn check_against(scrape: &Scrape, side: &str, points: &[Point]) -> Result<()> {
    let mut shown: BTreeMap<(String, bool), f64> = BTreeMap::new();
    for sample in scrape.samples(&format!("kitex_{side}_throughput")) {
        let key = (sample.labels["method"].clone(), sample.labels["status"] == "error");
        *shown.entry(key).or_default() += sample.value;
    }
    let mut received: BTreeMap<(String, bool), f64> = BTreeMap::new();
    for (attributes, count) in totals(points, &format!("rpc.{side}.duration")) {
        let key = (attributes["rpc.method"].clone(), attributes["status.code"] == "Error");
        *received.entry(key).or_default() += f64::from(i32::try_from(count)?);
    }
    ensure!(shown == received, "{side}: /metrics has {shown:?}, the collector {received:?}");
    check_durations(scrape, side, points)
}

/// Fails unless `/metrics` and the received points have the same buckets and sums for each series.
fn check_durations(scrape: &Scrape, side: &str, points: &[Point]) -> Result<()> {
    let without_scope = |(mut labels, histogram): (Labels, Histogram)| {
        labels.retain(|name, _| !name.starts_with("otel_scope_") && name != "target");
        (labels, histogram)
    };
    let shown = scrape.histograms(&format!("rpc_{side}_duration")).into_iter().map(without_scope);
    let shown: BTreeMap<Labels, Histogram> = shown.collect();
    let as_labels = |(attributes, histogram): (Labels, Histogram)| {
        let labels = attributes.into_iter().map(|(name, value)| (name.replace('.', "_"), value));
        (labels.collect::<Labels>(), histogram)
    };
    let received = distributions(points, &format!("rpc.{side}.duration"))?.into_iter().map(as_labels);
    let received: BTreeMap<Labels, Histogram> = received.collect();
    ensure!(!shown.is_empty() && shown.keys().eq(received.keys()), "{side}: {shown:?}, {received:?}");
    for (labels, shown) in shown {
        let received = &received[&labels];
        ensure!(shown.buckets == received.buckets, "{labels:?}: {shown:?}, {received:?}");
        // Differences of floats do not add up exactly.
        let off = (shown.sum - received.sum).abs();
        ensure!(off <= shown.sum * 1e-9, "{labels:?}: {shown:?}, {received:?}");
    }
    Ok(())
}

#[test]
fn a_collector_receives_what_is_shown() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let pids = [server.pid(), client.pid()];
    let mut instances = BTreeSet::new();
    for (protocol, more) in [
        (
            "grpc",
            [("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"), ("OTEL_RESOURCE_ATTRIBUTES", "team=red%20one")],
        ),
        ("http/protobuf", [DELTA, ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")]),
    ] {
        let mut collector = Collector::start()?;
        let [grpc, http] = collector.ports();
        let endpoint = format!("http://127.0.0.1:{}", if protocol == "grpc" { grpc } else { http });
        let agent = Agent::attach_with(&variables(protocol, &endpoint, &more), &pids, &["--otlp"])?;
        client.command("load 2000 4 1")?;
        collector
            .wait(PATIENCE, |points| [SERVER, CLIENT].iter().all(|metric| total(points, metric) >= 2000))
            .with_context(|| format!("{protocol}: {}", agent.log()))?;
        // Calls that are not yet pushed are in the last push.
        client.command("load 300 4 2")?;
        let last = agent.scrape_settled()?;
        let (status, _) = agent.terminate()?;
        ensure!(status.success(), "{status}");
        let points = collector.end()?;
        check_against(&last, "server", &points)?;
        check_against(&last, "client", &points)?;
        assert_eq!((total(&points, SERVER), total(&points, CLIENT)), (2300, 2300));
        assert_eq!(last.value("monitor_otlp_exports_total", &[("outcome", "failed")]), Some(0.0));
        instances.extend(check_resources(&points, protocol == "grpc")?);
        let mut infos = last.samples("target_info");
        ensure!(infos.all(|info| !info.labels.contains_key("service_instance_id")));
        check_times(&points)?;
        for metric in [SERVER, CLIENT, "go.memory.allocated"] {
            let mut of_metric = points.iter().filter(|point| point.metric == metric).peekable();
            ensure!(of_metric.peek().is_some(), "no {metric}");
            ensure!(of_metric.all(|point| point.is_delta == (protocol != "grpc")), "{protocol}: {metric}");
        }
        let gauges = points.iter().filter(|point| point.metric == "go.goroutine.count");
        ensure!(gauges.clone().count() > 0 && gauges.clone().all(|point| !point.is_delta && point.count > 1));
    }
    // One instance for each target, whichever agent pushes.
    assert_eq!(instances.len(), 2, "{instances:?}");
    Ok(())
}

/// Fails unless each target has its own resource. Returns the instance ids.
fn check_resources(points: &[Point], has_team: bool) -> Result<BTreeSet<String>> {
    let mut instances = BTreeSet::new();
    for (metric, service) in [(SERVER, "stock"), (CLIENT, "shop")] {
        let mut of_metric = points.iter().filter(|point| point.metric == metric).peekable();
        ensure!(of_metric.peek().is_some());
        for point in of_metric {
            assert_eq!(point.resource["service.name"], service);
            assert_eq!(point.resource.get("team").map(String::as_str), has_team.then_some("red one"));
            assert_eq!(point.attributes["service.name"], service);
            assert_eq!(point.attributes["request.protocol"], "TTHeader|Framed");
            assert_eq!(point.attributes.contains_key("peer.service"), metric == SERVER);
            instances.insert(point.resource["service.instance.id"].clone());
            ensure!(!point.attributes.contains_key("service.instance.id"), "{point:?}");
        }
    }
    assert_eq!(instances.len(), 2, "{instances:?}");
    Ok(instances)
}

/// Fails unless each delta begins where the previous one ended, and all cumulative points begin at the same time.
fn check_times(points: &[Point]) -> Result<()> {
    let mut before: BTreeMap<_, &Point> = BTreeMap::new();
    for point in points.iter().filter(|point| point.metric.starts_with("rpc.")) {
        ensure!(point.start < point.time, "{point:?}");
        if let Some(before) = before.insert((&point.metric, &point.attributes), point) {
            let expected = if point.is_delta { before.time } else { before.start };
            assert_eq!(point.start, expected, "{point:?}");
        }
    }
    Ok(())
}

#[test]
fn a_collector_that_was_away_lacks_nothing_afterwards() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let mut collector = Collector::start()?;
    let ports = collector.ports();
    let (grpc, http) = (format!("http://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
    // The server's calls are pushed as cumulative sums, the client's as deltas.
    let cumulative = Agent::attach_with(
        &variables("grpc", &grpc, &[]),
        &[server.pid()],
        &["--metrics", "otel", "--otlp"],
    )?;
    let delta = Agent::attach_with(
        &variables("http/protobuf", &http, &[DELTA]),
        &[client.pid()],
        &["--metrics", "otel", "--otlp"],
    )?;
    let all = |points: &[Point], calls| total(points, SERVER) >= calls && total(points, CLIENT) >= calls;
    client.command("load 1000 4 1")?;
    collector.wait(PATIENCE, |points| all(points, 1000))?;
    let mut received = collector.end()?;
    let memory = [&cumulative, &delta].map(resident);

    client.command("load 1000 4 2")?;
    for agent in [&cumulative, &delta] {
        agent.wait_for_log(PATIENCE, |line| line.contains("can't be sent").then_some(()))?;
        thread::sleep(Duration::from_secs(1));
        let begin = Instant::now();
        let scrape = agent.scrape_settled()?;
        ensure!(begin.elapsed() < Duration::from_secs(2), "a scrape took {:?}", begin.elapsed());
        ensure!(scrape.sum("monitor_otlp_exports_total", &[("outcome", "failed")]) > 0.0);
    }
    for (agent, before) in [&cumulative, &delta].into_iter().zip(memory) {
        let grown = resident(agent)? - before?;
        ensure!(grown < 16e6, "{grown} bytes more while nobody takes anything");
    }

    let mut collector = Collector::start_on(ports)?;
    collector.wait(PATIENCE, |points| all(points, 1000))?;
    // The cumulative sums include the calls made while the collector was away.
    assert_eq!(total(collector.points(), SERVER), 2000);
    assert_eq!(total(collector.points(), CLIENT), 1000);
    client.command("load 1000 4 3")?;
    for agent in [cumulative, delta] {
        agent.wait_for_log(PATIENCE, |line| line.contains(" again").then_some(()))?;
        let told = agent.log().lines().filter(|line| line.contains("can't be sent")).count();
        assert_eq!(told, 1, "{}", agent.log());
        agent.terminate()?;
    }
    received.extend(collector.end()?);
    assert_eq!((total(&received, SERVER), total(&received, CLIENT)), (3000, 3000));
    Ok(())
}

#[test]
fn a_target_that_has_ended_is_pushed_once_more() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    let ended = client.pid().to_string();
    let mut collector = Collector::start()?;
    let endpoint = format!("http://127.0.0.1:{}", collector.ports()[1]);
    let agent = Agent::attach_with(
        &variables("http/protobuf", &endpoint, &[]),
        &[server.pid(), client.pid()],
        &["--metrics", "otel", "--otlp"],
    )?;
    client.command("load 500 4 1")?;
    client.quit()?;
    let begin = Instant::now();
    while agent.scrape()?.value("monitor_target_up", &[("target", &ended)]) != Some(0.0) {
        ensure!(begin.elapsed() < PATIENCE, "{}", agent.log());
        thread::sleep(Duration::from_millis(20));
    }
    let down = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let later = down + 1_500_000_000;
    let is_later = |point: &Point| point.metric == SERVER && point.time > later;
    collector.wait(PATIENCE, |points| points.iter().any(is_later)).with_context(|| agent.log())?;
    agent.terminate()?;
    let points = collector.end()?;
    assert_eq!((total(&points, SERVER), total(&points, CLIENT)), (500, 500));
    let instance = points.iter().find(|point| point.metric == CLIENT).context("no calls of the client")?;
    let instance = &instance.resource["service.instance.id"];
    let of_ended = points.iter().filter(|point| &point.resource["service.instance.id"] == instance);
    let times: BTreeSet<_> = of_ended.map(|point| point.time).filter(|time| *time > down).collect();
    // The points of a push that had already begun, and of the last one.
    ensure!(times.len() <= 2, "{times:?} after {down}");
    Ok(())
}

#[test]
fn a_collector_must_prove_who_it_is() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("otlp-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let proof = rcgen::generate_simple_self_signed(names)?;
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    fs::write(&certificate, proof.cert.pem())?;
    fs::write(&key, proof.signing_key.serialize_pem())?;
    let server = Process::kitex(&["server"])?;
    let trusted = certificate.to_str().context("a path that is not UTF-8")?;
    side_by_side(["grpc", "http/protobuf"], |protocol| {
        let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
        let mut collector = Collector::start_tls(&certificate, &key)?;
        let [grpc, http] = collector.ports();
        let endpoint = format!("https://localhost:{}", if protocol == "grpc" { grpc } else { http });
        // Only the first attempt has the reason, and it may take long on a busy machine.
        let patient = [("OTEL_METRIC_EXPORT_TIMEOUT", "4000")];
        let stranger =
            Agent::attach_with(&variables(protocol, &endpoint, &patient), &[client.pid()], &["--otlp"])?;
        let told = stranger
            .wait_for_log(PATIENCE, |line| line.contains("can't be sent").then(|| line.to_owned()))?;
        ensure!(told.contains("UnknownIssuer"), "{told}");
        stranger.terminate()?;
        let more = [("OTEL_EXPORTER_OTLP_CERTIFICATE", trusted)];
        let friend =
            Agent::attach_with(&variables(protocol, &endpoint, &more), &[client.pid()], &["--otlp"])?;
        client.command("load 100 2 1")?;
        let received = collector.wait(PATIENCE, |points| total(points, CLIENT) == 100);
        received.with_context(|| friend.log())?;
        friend.terminate()?;
        Ok(())
    })?;
    fs::remove_dir_all(directory)?;
    Ok(())
}

/// Attributes of the maximum length that an environment allows, more attributes than anyone needs, and names that are
/// mapped to the same label or to one of the agent's.
#[test]
fn no_environment_of_a_target_spoils_a_scrape() -> Result<()> {
    let lengthy = "é".repeat(30_000);
    let many: Vec<_> = (0..100).map(|number| format!("number.{number}=x")).collect();
    let attributes = format!("a.b=1,a_b=2,process_pid=x,target=mine,{lengthy}={lengthy},{}", many.join(","));
    let mut command = Command::new(Program::Kitex.build(Flavour::Default)?);
    command.arg("server").env("OTEL_SERVICE_NAME", &lengthy).env("OTEL_RESOURCE_ATTRIBUTES", &attributes);
    let server = Process::start_command(&mut command)?;
    let mut client = Process::kitex(&["client", "--connect", server.addr()?])?;
    for pids in [&[server.pid(), client.pid()][..], &[server.pid()]] {
        let agent = Agent::attach(pids, &["--metrics", "otel"])?;
        client.command("load 100 2 1")?;
        // The parser is as strict as Prometheus: no label may occur twice.
        let scrape = agent.scrape_settled()?;
        let pid = server.pid().to_string();
        let own = |name| scrape.samples(name).find(|sample| sample.labels["service_name"].starts_with('é'));
        let info = &own("target_info").context("no target_info")?.labels;
        assert_eq!(info["a_b"], "1;2");
        assert_eq!(info["process_pid"], format!("{pid};x"));
        assert_eq!(info["target"], if pids.len() > 1 { &*pid } else { "mine" });
        let (name, value) = info.iter().max_by_key(|(_, value)| value.len()).context("no label")?;
        assert_eq!(value, &format!("{}…", "é".repeat(128)), "{name}");
        ensure!(info.len() < 75 && info.keys().all(|name| name.len() < 300), "{} labels", info.len());
        let calls = &own("rpc_server_duration").context("no calls of the server")?.labels;
        assert_eq!(calls["service_name"], format!("{}…", "é".repeat(32)));
        let log = agent.log();
        assert_eq!(log.matches("too many attributes, 41 are left out").count(), 1, "{log}");
        agent.terminate()?;
    }
    Ok(())
}

fn resident(agent: &Agent) -> Result<f64> {
    agent.scrape()?.value("monitor_agent_resident_memory_bytes", &[]).context("no resident memory")
}

/// Starts a server that gives each connection the same answer, or none. Returns its address.
fn bad_collector(answer: &'static [u8]) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        let mut open = Vec::new();
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { break };
            let _ = connection.set_read_timeout(Some(Duration::from_millis(200)));
            let _ = connection.read(&mut [0; 4096]);
            let _ = connection.write_all(answer);
            if answer.is_empty() {
                open.push(connection);
            }
        }
    });
    Ok(address.to_string())
}

#[test]
fn a_collector_that_is_none_harms_nobody() -> Result<()> {
    let mut server = Process::kitex(&["server"])?;
    let refused = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let silent = bad_collector(b"")?;
    let failing = bad_collector(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    let later = bad_collector(
        b"HTTP/1.1 503 No\r\nretry-after: 3600\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )?;
    let never = bad_collector(
        b"HTTP/1.1 503 No\r\nretry-after: 18446744073709551615\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )?;
    let nonsense = bad_collector(b"\x00\x01\x02 what?\r\n\r\n")?;
    let collectors = [
        (format!("http://{refused}"), "refused"),
        (format!("http://{silent}"), "no answer in time"),
        (format!("http://{failing}"), "500"),
        (format!("http://{later}"), "503"),
        (format!("http://{never}"), "503"),
        (format!("http://{nonsense}"), "HTTP"),
        (format!("https://{nonsense}"), "InvalidContentType"),
        ("http://nowhere.invalid:1".to_owned(), "lookup"),
    ];
    // A few at once, since most of the time they wait.
    for some in collectors.chunks(4) {
        let cases = some.iter().flat_map(|case| ["http/protobuf", "grpc"].map(|protocol| (case, protocol)));
        side_by_side(cases, |((endpoint, why), protocol)| {
            let variables = variables(protocol, endpoint, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "300")]);
            let agent = Agent::attach_with(&variables, &[server.pid()], &["--otlp"])?;
            let line = agent
                .wait_for_log(PATIENCE, |line| line.contains("can't be sent").then(|| line.to_owned()))?;
            ensure!(protocol == "grpc" || line.contains(why), "{endpoint}: {line}");
            thread::sleep(Duration::from_millis(700));
            let begin = Instant::now();
            agent.scrape()?;
            ensure!(begin.elapsed() < Duration::from_millis(500), "a scrape took {:?}", begin.elapsed());
            let told = agent.log().lines().filter(|line| line.contains("can't be sent")).count();
            assert_eq!(told, 1, "{endpoint}: {}", agent.log());
            let (status, took) = agent.terminate()?;
            ensure!(status.success() && took < Duration::from_secs(2), "{endpoint}: {status} after {took:?}");
            Ok(())
        })?;
    }
    ensure!(server.is_running()?);
    Ok(())
}

/// A collector can't distinguish the two agents' points.
#[test]
fn an_agent_warns_that_another_may_push_the_same() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let attach = |flags: &[&str]| Agent::attach(&[server.pid()], flags);
    let agents = [(attach(&["--otlp"])?, false), (attach(&["--otlp"])?, true), (attach(&[])?, false)];
    for (agent, warns) in agents {
        let log = agent.log();
        let told = log.lines().find(|line| line.contains("an agent that pushes too"));
        ensure!(told.is_some_and(|line| line.contains(" WARN ")) == warns, "{log}");
        agent.terminate()?;
    }
    Ok(())
}

/// OpenTelemetry has no counts of calls except those of its histograms.
#[test]
fn counts_that_are_not_those_of_all_calls_are_told_of() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    for (flags, level) in [
        (&["--otlp", "--latency", "economy"][..], Some(" WARN ")),
        (&["--metrics", "otel,kitex", "--overhead-budget", "50%"][..], Some(" INFO ")),
        (&["--metrics", "otel"][..], None),
        (&["--latency", "economy"][..], None),
    ] {
        let agent = Agent::attach(&[server.pid()], flags)?;
        let log = agent.log();
        let told = log.lines().find(|line| line.contains("their counts are not those of all calls"));
        ensure!(told.is_some() == level.is_some(), "{flags:?}: {log}");
        ensure!(told.zip(level).is_none_or(|(line, level)| line.contains(level)), "{flags:?}: {log}");
        agent.terminate()?;
    }
    Ok(())
}

#[test]
fn settings_that_make_no_sense_end_the_agent_at_once() -> Result<()> {
    let server = Process::kitex(&["server"])?;
    let pid = server.pid().to_string();
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:431800"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no list"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a header=x"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=red,one"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1s"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"),
    ] {
        let mut command = Command::new(executable()?);
        command
            .args(["run", "--otlp", "--web.listen-address", "127.0.0.1:0", "--pid", &pid])
            .env(name, value);
        let ended = run_command_to_end(&mut command, PATIENCE)?;
        assert_eq!(ended.code, Some(2), "{name}={value}: {}", ended.stderr);
        ensure!(!ended.stderr.contains("attached"), "{}", ended.stderr);
        let told = [name, value, "HEADERS"].iter().any(|word| ended.stderr.contains(word));
        ensure!(told, "{name}={value}: {}", ended.stderr);
    }
    Ok(())
}
