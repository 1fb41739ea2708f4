//! A real Prometheus, and its answers to queries.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{http, paths};

const PATIENCE: Duration = Duration::from_secs(20);

/// A scrape target.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The value of the label `instance`.
    pub instance: &'static str,
    /// Host and port.
    pub address: String,
    /// Path.
    pub path: String,
}

/// A running Prometheus. It scrapes twice a second, so that the exact times of scrapes matter little for rates over
/// some ten seconds.
pub struct Prometheus {
    child: Child,
    address: String,
    directory: PathBuf,
}

/// The answer to a query: values by label set.
pub type Answer = BTreeMap<BTreeMap<String, String>, f64>;

impl Prometheus {
    /// Starts a Prometheus that scrapes these endpoints, and waits until it has scraped all of them.
    pub fn start(name: &str, endpoints: &[Endpoint]) -> Result<Self> {
        let directory = paths::target().join("tmp").join(format!("prometheus-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let mut configuration =
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs:\n".to_owned();
        for Endpoint { instance, address, path } in endpoints {
            write!(
                configuration,
                "  - job_name: {instance}\n    metrics_path: {path}\n    static_configs:\n      - targets: \
                 [\"{address}\"]\n        labels: {{instance: {instance}}}\n"
            )?;
        }
        fs::write(directory.join("prometheus.yml"), configuration)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let executable = executable();
        let child = Command::new(&executable)
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("log"))?)
            .spawn()
            .with_context(|| {
                format!("cannot start {}: `cargo xtask test` fetches it from Debian", executable.display())
            })?;
        let mut prometheus = Self { child, address, directory };
        prometheus.wait_for(endpoints.len())?;
        Ok(prometheus)
    }

    fn wait_for(&mut self, endpoints: usize) -> Result<()> {
        let begin = Instant::now();
        loop {
            let up: f64 = self.query("sum(up)", None).unwrap_or_default().values().sum();
            if format!("{up}") == endpoints.to_string() {
                return Ok(());
            }
            ensure!(self.child.try_wait()?.is_none(), "Prometheus has ended:\n{}", self.log());
            ensure!(begin.elapsed() < PATIENCE, "Prometheus sees {up} of {endpoints}:\n{}", self.log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Returns the answer to a query, at a time in seconds since 1970 if one is given.
    pub fn query(&self, query: &str, time: Option<f64>) -> Result<Answer> {
        let mut path = format!("/api/v1/query?query={}", encoded(query));
        if let Some(time) = time {
            write!(path, "&time={time:.3}")?;
        }
        let answer: Value = serde_json::from_str(&http::get(&self.address, &path)?.ok_body()?)?;
        let Some(result) = answer["data"]["result"].as_array() else { bail!("{query}: {answer}") };
        result.iter().map(series).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn series(series: &Value) -> Result<(BTreeMap<String, String>, f64)> {
    let labels = series["metric"].as_object().context("no labels")?.iter();
    let labels = labels.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
    let value = series["value"][1].as_str().context("no value")?;
    Ok((labels.collect(), value.parse()?))
}

/// Returns the path of the executable: `MONITOR_PROMETHEUS` if set, else the one that `cargo xtask test` has unpacked,
/// else `prometheus` on `PATH`.
fn executable() -> PathBuf {
    if let Some(path) = std::env::var_os("MONITOR_PROMETHEUS") {
        return path.into();
    }
    let unpacked = paths::target().join("tools/prometheus/usr/bin/prometheus");
    if unpacked.exists() { unpacked } else { Path::new("prometheus").to_owned() }
}

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
