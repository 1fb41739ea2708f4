//! The queries in the documentation of in-process libraries, answered by a real Prometheus. For each query, the answer
//! from a process's own metrics is compared with the one from the agent's, in the same run.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use monitor_tests::{
    agent::Agent,
    process::Process,
    prometheus::{Answer, Endpoint, Prometheus},
    targets::{Flavour, Program},
};

/// How close two answers must be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Near {
    /// Equal.
    Equal,
    /// Within five percent.
    Percent5,
    /// Values change from moment to moment: only the labels must be equal, and both values positive.
    Labels,
}

use Near::{Equal, Labels, Percent5};

/// Queries as written in the documentation, and sums at rest.
const QUERIES: &[(&str, &str, Near)] = &[
    // https://github.com/kitex-contrib/monitor-prometheus, README @ v0.2.0.
    (
        "monitor-prometheus",
        "sum(rate(kitex_client_throughput{status=\"succeed\"}[1m])) by (callee,method)",
        Percent5,
    ),
    (
        "monitor-prometheus",
        "histogram_quantile(0.99, sum(rate(kitex_client_latency_us_bucket{status=\"succeed\"}[1m])) by \
         (caller,callee,method,le))",
        Percent5,
    ),
    (
        "monitor-prometheus",
        "sum(rate(kitex_server_throughput{status=\"succeed\"}[1m])) by (code,callee,method)",
        Percent5,
    ),
    (
        "monitor-prometheus",
        "histogram_quantile(0.99, sum(rate(kitex_server_latency_us_bucket{status=\"succeed\"}[5m])) by \
         (caller,callee,method,le))",
        Percent5,
    ),
    (
        "monitor-prometheus",
        "sum(rate(kitex_server_throughput{status=\"error\"}[1m])) by (status,callee,method)",
        Percent5,
    ),
    ("at rest", "kitex_client_throughput", Equal),
    ("at rest", "kitex_server_throughput", Equal),
    ("at rest", "kitex_client_latency_us_count", Equal),
    ("at rest", "kitex_server_latency_us_count", Equal),
    // https://github.com/kitex-contrib/obs-opentelemetry, README @ v0.3.0.
    (
        "obs-opentelemetry",
        "sum(rate(rpc_server_duration_count{}[5m])) by (service_name, rpc_method)",
        Percent5,
    ),
    (
        "obs-opentelemetry",
        "sum(rate(rpc_server_duration_count{status_code=\"Error\"}[5m])) by (service_name, rpc_method) / \
         sum(rate(rpc_server_duration_count{}[5m])) by (service_name, rpc_method)",
        Percent5,
    ),
    (
        "obs-opentelemetry",
        "histogram_quantile(0.99, sum(rate(rpc_server_duration_bucket{}[5m])) by (le, service_name, rpc_method))",
        Percent5,
    ),
    (
        "obs-opentelemetry",
        "sum(rate(rpc_server_duration_count{}[5m])) by (service_name, peer_service)",
        Percent5,
    ),
    // The agent is another SDK, and its labels say so.
    ("at rest", "sum(rpc_server_duration_count) without (telemetry_sdk_version)", Equal),
    ("at rest", "sum(rpc_client_duration_count) without (telemetry_sdk_version)", Equal),
    ("at rest", "sum(target_info) without (telemetry_sdk_name, telemetry_sdk_version)", Equal),
    (
        "at rest",
        "count({__name__=~\"rpc_.*_count|go_memory_.*|go_goroutine_.*|go_processor_.*|go_config_.*\"}) by \
         (__name__, otel_scope_name, otel_scope_version, otel_scope_schema_url)",
        Equal,
    ),
    ("OpenTelemetry", "go_processor_limit", Equal),
    ("OpenTelemetry", "go_config_gogc_percent", Equal),
    ("OpenTelemetry", "go_memory_used_bytes", Labels),
    ("OpenTelemetry", "go_memory_gc_goal_bytes", Labels),
    // The library reads its runtime only every fifteen seconds.
    ("OpenTelemetry", "rate(go_memory_allocated_bytes_total[1m])", Labels),
    ("OpenTelemetry", "rate(go_memory_allocations_total[1m])", Labels),
    // https://github.com/grpc-ecosystem/go-grpc-prometheus, README @ v1.2.0, for the job `grpc`.
    (
        "go-grpc-prometheus",
        "sum(rate(grpc_server_started_total{job=\"grpc\"}[1m])) by (grpc_service)",
        Percent5,
    ),
    (
        "go-grpc-prometheus",
        "sum(rate(grpc_server_handled_total{job=\"grpc\",grpc_type=\"unary\",grpc_code!=\"OK\"}[1m])) by (grpc_service)",
        Percent5,
    ),
    (
        "go-grpc-prometheus",
        "sum(rate(grpc_server_handled_total{job=\"grpc\",grpc_type=\"unary\",grpc_code!=\"OK\"}[1m])) by (grpc_service) / \
         sum(rate(grpc_server_started_total{job=\"grpc\",grpc_type=\"unary\"}[1m])) by (grpc_service) * 100.0",
        Percent5,
    ),
    (
        "go-grpc-prometheus",
        "sum(rate(grpc_server_msg_sent_total{job=\"grpc\",grpc_type=\"server_stream\"}[10m])) by (grpc_service) / \
         sum(rate(grpc_server_started_total{job=\"grpc\",grpc_type=\"server_stream\"}[10m])) by (grpc_service)",
        Percent5,
    ),
    (
        "go-grpc-prometheus",
        "histogram_quantile(0.99, sum(rate(grpc_server_handling_seconds_bucket{job=\"grpc\",grpc_type=\"unary\"}[5m])) \
         by (grpc_service,le))",
        Percent5,
    ),
    (
        "go-grpc-prometheus",
        "100.0 - (sum(rate(grpc_server_handling_seconds_bucket{job=\"grpc\",grpc_type=\"unary\",le=\"0.25\"}[5m])) by \
         (grpc_service) / sum(rate(grpc_server_handling_seconds_count{job=\"grpc\",grpc_type=\"unary\"}[5m])) by \
         (grpc_service)) * 100.0",
        Percent5,
    ),
    ("at rest", "grpc_server_started_total", Equal),
    ("at rest", "grpc_server_handled_total", Equal),
    ("at rest", "grpc_server_handling_seconds_count", Equal),
    ("at rest", "grpc_server_msg_sent_total", Equal),
    ("at rest", "grpc_client_handled_total", Equal),
    // Queries of dashboards for https://github.com/prometheus/client_golang.
    ("client_golang", "go_info", Equal),
    ("client_golang", "go_sched_gomaxprocs_threads", Equal),
    ("client_golang", "process_start_time_seconds", Percent5),
    ("client_golang", "go_goroutines", Labels),
    ("client_golang", "go_memstats_heap_inuse_bytes", Labels),
    ("client_golang", "go_gc_duration_seconds{quantile=\"1\"}", Labels),
    ("client_golang", "process_resident_memory_bytes", Labels),
    ("client_golang", "rate(go_memstats_alloc_bytes_total[1m])", Percent5),
    ("client_golang", "rate(go_memstats_mallocs_total[1m])", Percent5),
    ("client_golang", "rate(process_cpu_seconds_total[1m])", Percent5),
];

/// How long counters rest before and after the measurement: a few scrapes.
const REST: Duration = Duration::from_millis(2500);

/// Makes slow calls, calls of every code, streams from the server, and quick calls, with the given number of each. The
/// slow calls come first, so that series of unary calls have them from the beginning. They take half a second plus the
/// time to open as many streams: all are in the bucket up to one second, and above the 0.25 s that a query asks for.
fn grpc_calls(process: &mut Process, [slow, codes, streams, quick]: [u32; 4]) -> Result<()> {
    process.command(&format!("hang {slow}"))?;
    process.command("release")?;
    process.command(&format!("run every code {codes}"))?;
    process.command(&format!("run from the server {streams}"))?;
    process.command(&format!("load {quick} 8"))?;
    Ok(())
}

fn inside(args: &[&str]) -> Result<Process> {
    Process::start_command(Command::new(Program::Inside.build(Flavour::Default)?).args(args))
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

#[test]
fn queries_have_the_answers_that_they_have_inside() -> Result<()> {
    let server = inside(&["--service", "stock"])?;
    let mut client = inside(&["--service", "shop", "--connect", server.addr()?])?;
    let labels = "caller,callee,method,status,retry";
    let agent = Agent::attach(
        &[server.pid(), client.pid()],
        // This budget has its metrics, but nothing is given up for it.
        &["--metrics", "kitex,otel,go,process", "--kitex.labels", labels, "--overhead-budget", "100%"],
    )?;
    let mut grpc = Process::start(Program::GrpcReference, Flavour::Default, &[])?;
    // A separate agent, since that process has no OpenTelemetry metrics of its own.
    let grpc_agent = Agent::attach(&[grpc.pid()], &["--metrics", "grpc,go,process", "--grpc.messages"])?;
    let pids = [server.pid(), client.pid(), grpc.pid()].map(|pid| pid.to_string());
    let processes = [("server", &server, &agent), ("client", &client, &agent), ("grpc", &grpc, &grpc_agent)];
    let own = processes.map(|(instance, process, _)| {
        Ok(Endpoint { instance, address: process.metrics_address()?.to_owned(), path: "/metrics".to_owned() })
    });
    let outside = processes.map(|(instance, process, agent)| Endpoint {
        instance,
        address: agent.address().to_owned(),
        path: format!("/targets/{}/metrics", process.pid()),
    });
    let own = own.into_iter().collect::<Result<Vec<_>>>()?;
    let (own, outside) = thread::scope(|scope| {
        let own = scope.spawn(move || Prometheus::start("inside", &own));
        let outside = Prometheus::start("outside", &outside);
        (own.join().expect("the thread runs to its end"), outside)
    });
    let (own, outside) = (own?, outside?);

    // All series exist before the rates begin.
    grpc_calls(&mut grpc, [1, 1, 1, 8])?;
    client.command("load 300 8")?;
    thread::sleep(REST);
    // Of a hundred unary calls, about five fail, and three of those are slow.
    grpc_calls(&mut grpc, [300, 15, 60, 10_000])?;
    for _ in 0..6 {
        client.command("load 3000 8")?;
    }
    thread::sleep(REST);
    let time = now()?;
    let mut table = Table::default();
    for &(source, query, near) in QUERIES {
        let answers = (own.query(query, Some(time))?, outside.query(query, Some(time))?);
        table.add(source, query, near, &answers.0, &answers.1);
    }
    agent.terminate()?;
    grpc_agent.terminate()?;
    table.finish()?;
    check_monitoring(&outside, time, &pids)
}

/// Returns the queries about the monitoring itself from the documentation.
fn queries_about_monitoring() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs").join("metrics.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let blocks = text.split("```promql\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0));
    let lines = blocks.flat_map(str::lines).filter(|line| !line.starts_with('#'));
    Ok(lines.filter(|line| line.contains("monitor_")).map(str::to_owned).collect())
}

/// Fails unless the queries about the monitoring itself have answers for each target and show no problem. The last
/// target has no budget.
fn check_monitoring(prometheus: &Prometheus, time: f64, pids: &[String; 3]) -> Result<()> {
    let queries = queries_about_monitoring()?;
    ensure!(!queries.is_empty(), "docs/metrics.md has no queries about the monitoring itself");
    for query in &queries {
        // Queries that compare a value with a number only have an answer if there is a problem.
        let alarm = [" > ", " == "].into_iter().find_map(|sign| Some(query.rsplit_once(sign)?.0));
        let compared = alarm.unwrap_or(query);
        let answer = prometheus.query(compared, Some(time))?;
        let has_budget = ["monitor_shed_level", "monitor_budget_exhausted"].contains(&compared);
        let expected = if has_budget { &pids[..2] } else { &pids[..] };
        let told: BTreeSet<_> = answer.keys().filter_map(|labels| labels.get("target")).collect();
        ensure!(told == expected.iter().collect(), "{compared}: not of {expected:?}: {answer:?}");
        if alarm.is_some() {
            let raised = prometheus.query(query, Some(time))?;
            ensure!(raised.is_empty(), "{query}: {raised:?}");
            continue;
        }
        // Nothing is missing, but records may wait in a ring.
        let most = if compared.contains("monitor_ring_bytes") { 1.0 } else { 0.0 };
        ensure!(answer.values().all(|value| (0.0..=most).contains(value)), "{query}: {answer:?}");
    }
    Ok(())
}

/// The queries and their answers.
#[derive(Default)]
struct Table {
    rows: String,
    wrong: Vec<String>,
}

impl Table {
    fn add(&mut self, source: &str, query: &str, near: Near, own: &Answer, outside: &Answer) {
        let keys = |answer: &Answer| answer.keys().cloned().collect::<Vec<_>>();
        if own.is_empty() || keys(own) != keys(outside) {
            self.wrong.push(format!(
                "{query}\n  labels inside  {:?}\n  labels outside {:?}",
                keys(own),
                keys(outside)
            ));
        }
        let mut farthest: f64 = 0.0;
        for (key, own) in own {
            let Some(outside) = outside.get(key) else { continue };
            let apart = if own.to_bits() == outside.to_bits() { 0.0 } else { (outside / own - 1.0).abs() };
            farthest = farthest.max(if apart.is_nan() { f64::INFINITY } else { apart });
            let is_near = match near {
                Equal => apart == 0.0,
                Percent5 => apart <= 0.05,
                Labels => *own > 0.0 && *outside > 0.0,
            };
            if !is_near {
                self.wrong.push(format!("{query}\n  {key:?}: inside {own}, outside {outside}"));
            }
        }
        let demand = match near {
            Equal => "equal",
            Percent5 => "within 5 %",
            Labels => "labels equal",
        };
        let query = query.replace('|', "\\|");
        let (series, apart) = (own.len(), farthest * 100.0);
        let _ = writeln!(self.rows, "| {source} | `{query}` | {series} | {demand} | {apart:.2} % |");
    }

    /// Writes the table to `target/promql.md`.
    fn finish(self) -> Result<()> {
        let head = "| source | query | series | asked for | farthest apart |\n|---|---|---|---|---|\n";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("promql.md");
        fs::write(&path, format!("{head}{}", self.rows)).with_context(|| path.display().to_string())?;
        println!("{head}{}", self.rows);
        ensure!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        Ok(())
    }
}
