//! The OTLP settings in the `OTEL_…` variables of the agent's environment.
//!
//! Names, meanings and defaults follow the specification: `protocol/exporter.md`, `metrics/sdk_exporters/otlp.md` and
//! `configuration/sdk-environment-variables.md` @ v1.50.0.

use std::{path::PathBuf, time::Duration};

use hyper::Uri;
use thiserror::Error;

use crate::metrics::otel::pairs;

/// How, where and how often metrics are pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The protocol of messages.
    pub protocol: Protocol,
    /// The address of the collector.
    pub endpoint: Uri,
    /// Headers of each request, or its metadata in gRPC.
    pub headers: Vec<(String, String)>,
    /// The time limit of one request.
    pub timeout: Duration,
    /// Whether messages are compressed with gzip.
    pub compressed: bool,
    /// Certificates and keys for TLS.
    pub tls: TlsFiles,
    /// The period to which values refer.
    pub temporality: Temporality,
    /// The interval of rounds.
    pub interval: Duration,
    /// The time limit of a round, with all retries.
    pub export_timeout: Duration,
}

/// The protocol of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// The period to which values refer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temporality {
    /// From the start.
    Cumulative,
    /// From the last value sent, for values that only rise.
    Delta,
    /// As `Delta` for histograms, as `Cumulative` for observable sums, whose last values would have to be kept.
    LowMemory,
}

/// PEM files for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates to trust in place of the system's.
    pub authorities: Option<PathBuf>,
    /// The agent's own certificate, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// An invalid variable.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{name}={value}: {why}")]
pub struct SettingsError {
    name: String,
    value: String,
    why: &'static str,
}

/// Prefix of the variables for all signals.
const ALL: &str = "OTEL_EXPORTER_OTLP_";
/// Prefix of the variables for metrics, which take precedence.
const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_";
/// The error for an address that may contain a password.
const WITHOUT_USER: &str = "must be an address such as http://HOST:PORT, without user and password: what proves who \
                            one is goes into OTEL_EXPORTER_OTLP_HEADERS";

impl Settings {
    /// Reads the settings from variables. An empty variable counts as unset.
    pub fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let variables = Variables(variable);
        let protocol = match variables.either("PROTOCOL") {
            None => Protocol::Http,
            Some((_, value)) if value == "grpc" => Protocol::Grpc,
            Some((_, value)) if value == "http/protobuf" => Protocol::Http,
            Some(other) => return Err(wrong(other, "must be grpc or http/protobuf")),
        };
        let compressed = match variables.either("COMPRESSION") {
            None => false,
            Some((_, value)) if value == "none" => false,
            Some((_, value)) if value == "gzip" => true,
            Some(other) => return Err(wrong(other, "must be gzip or none")),
        };
        let temporality = match variables.one(&format!("{METRICS}TEMPORALITY_PREFERENCE")) {
            None => Temporality::Cumulative,
            Some((name, value)) => match value.to_ascii_lowercase().as_str() {
                "cumulative" => Temporality::Cumulative,
                "delta" => Temporality::Delta,
                "lowmemory" => Temporality::LowMemory,
                _ => return Err(wrong((name, value), "must be cumulative, delta or lowmemory")),
            },
        };
        let mut headers = Vec::new();
        for (name, value) in
            [variables.one(&format!("{ALL}HEADERS")), variables.one(&format!("{METRICS}HEADERS"))]
                .into_iter()
                .flatten()
        {
            let list = pairs(&value).collect::<Result<Vec<_>, _>>().unwrap_or_default();
            if list.is_empty() {
                // The value is not shown: it may be secret.
                return Err(wrong((name, "…".to_owned()), "must be a list such as key=value,other=value"));
            }
            headers.retain(|(name, _)| !list.iter().any(|(other, _)| other == name));
            headers.extend(list);
        }
        Ok(Self {
            protocol,
            endpoint: variables.endpoint(protocol)?,
            headers,
            timeout: Variables::milliseconds(variables.either("TIMEOUT"), 10_000)?,
            compressed,
            tls: variables.tls()?,
            temporality,
            interval: Variables::milliseconds(variables.one("OTEL_METRIC_EXPORT_INTERVAL"), 60_000)?,
            export_timeout: Variables::milliseconds(variables.one("OTEL_METRIC_EXPORT_TIMEOUT"), 30_000)?,
        })
    }

    /// Whether the list `OTEL_METRICS_EXPORTER` includes OTLP. Unlike an SDK, the agent does not push by default.
    #[must_use]
    pub fn chosen_by(exporters: &str) -> bool {
        exporters.split(',').any(|name| name.trim() == "otlp")
    }
}

/// The name and value of a variable that is set.
type Set = (String, String);

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn one(&self, name: &str) -> Option<Set> {
        let value = (self.0)(name)?.trim().to_owned();
        (!value.is_empty()).then(|| (name.to_owned(), value))
    }

    fn either(&self, name: &str) -> Option<Set> {
        self.one(&format!("{METRICS}{name}")).or_else(|| self.one(&format!("{ALL}{name}")))
    }

    fn milliseconds(set: Option<Set>, default: u64) -> Result<Duration, SettingsError> {
        let Some((name, value)) = set else { return Ok(Duration::from_millis(default)) };
        let number = value.parse().ok().filter(|number| (1..=86_400_000).contains(number));
        let number =
            number.ok_or_else(|| wrong((name, value), "must be milliseconds, from 1 to 86400000"))?;
        Ok(Duration::from_millis(number))
    }

    /// Returns the endpoint. Over HTTP, the path of metrics is appended to an address for all signals.
    fn endpoint(&self, protocol: Protocol) -> Result<Uri, SettingsError> {
        let (set, path) = match self.one(&format!("{METRICS}ENDPOINT")) {
            Some(set) => (Some(set), ""),
            None => (self.one(&format!("{ALL}ENDPOINT")), "/v1/metrics"),
        };
        let default = match protocol {
            Protocol::Grpc => "http://localhost:4317",
            Protocol::Http => "http://localhost:4318",
        };
        let (name, value) = set.unwrap_or_else(|| (String::new(), default.to_owned()));
        let text = match protocol {
            Protocol::Grpc if value.contains("://") => value.clone(),
            Protocol::Grpc if self.is_insecure()? => format!("http://{value}"),
            Protocol::Grpc => format!("https://{value}"),
            Protocol::Http => {
                format!("{}{path}", value.trim_end_matches(if path.is_empty() { '\0' } else { '/' }))
            }
        };
        let uri: Option<Uri> = text.parse().ok();
        let fits = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && is_host_and_port(uri);
        uri.filter(fits).ok_or_else(|| {
            if value.contains('@') {
                // The value may contain a password, so it is not shown.
                wrong((name, "…".to_owned()), WITHOUT_USER)
            } else {
                wrong((name, value), "must be an address such as http://HOST:PORT")
            }
        })
    }

    /// Whether an address without a scheme is without TLS. Any value except these would have to mean false, and the
    /// collector would not understand the pushes.
    fn is_insecure(&self) -> Result<bool, SettingsError> {
        let Some((name, value)) = self.either("INSECURE") else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(wrong((name, value), "must be true or false")),
        }
    }

    fn tls(&self) -> Result<TlsFiles, SettingsError> {
        let file = |name| self.either(name);
        let own = match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
            (None, None) => None,
            (Some((_, certificate)), Some((_, key))) => Some((certificate.into(), key.into())),
            (Some(one), None) | (None, Some(one)) => {
                return Err(wrong(
                    one,
                    "certificate and key go together: set CLIENT_CERTIFICATE and CLIENT_KEY",
                ));
            }
        };
        Ok(TlsFiles { authorities: file("CERTIFICATE").map(|(_, path)| path.into()), own })
    }
}

/// Whether an address is a host, with or without a port. An invalid port would be ignored, and the headers would go to
/// whatever listens on the scheme's default port.
fn is_host_and_port(uri: &Uri) -> bool {
    let Some(authority) = uri.authority() else { return false };
    let host = authority.host();
    let Some(behind) = authority.as_str().strip_prefix(host).filter(|_| !host.is_empty()) else {
        return false;
    };
    let port = behind.strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
    behind.is_empty() || port.is_some_and(|port| port != 0)
}

fn wrong((name, value): Set, why: &'static str) -> SettingsError {
    SettingsError { name, value, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let get = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::of(&get).map_err(|error| error.to_string())
    }

    fn endpoint(variables: &[(&str, &str)]) -> String {
        settings(variables).expect("settings").endpoint.to_string()
    }

    #[test]
    fn defaults_are_those_of_the_specification() {
        let default = settings(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "")]).expect("settings");
        assert_eq!((default.protocol, default.compressed), (Protocol::Http, false));
        assert_eq!(default.endpoint, "http://localhost:4318/v1/metrics");
        assert_eq!(default.timeout, Duration::from_secs(10));
        assert_eq!(
            (default.interval, default.export_timeout),
            (Duration::from_mins(1), Duration::from_secs(30))
        );
        assert_eq!(default.temporality, Temporality::Cumulative);
        assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), "http://localhost:4317/");
    }

    #[test]
    fn an_address_for_all_signals_gets_the_path_of_metrics() {
        let all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:1/base/");
        assert_eq!(endpoint(&[all]), "https://collector:1/base/v1/metrics");
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://other:2/here/");
        assert_eq!(endpoint(&[all, own]), "http://other:2/here/");
        let grpc = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc");
        assert_eq!(endpoint(&[grpc, ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:1")]), "https://collector:1/");
        let plain = ("OTEL_EXPORTER_OTLP_INSECURE", "true");
        assert_eq!(
            endpoint(&[grpc, plain, ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:1")]),
            "http://collector:1/"
        );
    }

    #[test]
    fn what_is_for_metrics_comes_first() {
        let both = settings(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=2%20x"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=3"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "7"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "8"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
        ])
        .expect("settings");
        let headers = [("b", "2 x"), ("a", "3")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(both.headers, headers);
        assert_eq!((both.timeout, both.temporality), (Duration::from_millis(8), Temporality::Delta));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://"),
            // The push would go to port 80 or 443.
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:431800"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:http"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:0"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1]4318"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "-1"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "alpha"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "key.pem"),
        ] {
            let error = settings(&[(name, value)]).expect_err("an error");
            assert!(error.starts_with(&format!("{name}={value}: ")), "{error}");
        }
        for value in ["authorization", "a=1,authorization", "=authorization"] {
            let error = settings(&[("OTEL_EXPORTER_OTLP_HEADERS", value)]).expect_err("an error");
            assert!(!error.contains("authorization"), "{error}");
        }
    }

    #[test]
    fn an_address_is_a_host_and_perhaps_a_port() {
        for address in
            ["http://collector/", "http://collector:65535/", "https://[::1]/", "http://[::1]:4318/a@b"]
        {
            assert_eq!(endpoint(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", address)]), address);
        }
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_shown() {
        for address in
            ["http://me:secret@collector:1", "https://me:se/cret@collector", "ftp://secret@collector"]
        {
            let error = settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", address)]).expect_err("an error");
            assert!(error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT=…: "), "{error}");
            assert!(error.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{error}");
            assert!(!error.contains("cret"), "{error}");
        }
    }

    #[test]
    fn an_address_of_grpc_has_tls_unless_told_in_plain_words() {
        let address = |insecure| {
            settings(&[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:1"),
                ("OTEL_EXPORTER_OTLP_INSECURE", insecure),
            ])
            .map(|settings| settings.endpoint.to_string())
        };
        assert_eq!(address("TRUE").as_deref(), Ok("http://collector:1/"));
        assert_eq!(address("False").as_deref(), Ok("https://collector:1/"));
        assert_eq!(address("1"), Err("OTEL_EXPORTER_OTLP_INSECURE=1: must be true or false".to_owned()));
    }

    #[test]
    fn nothing_is_pushed_unless_asked_for() {
        assert!(Settings::chosen_by("prometheus, otlp"));
        assert!(
            !Settings::chosen_by("") && !Settings::chosen_by("none") && !Settings::chosen_by("prometheus")
        );
    }
}
