//! What the variables `OTEL_…` of the agent's environment say about OTLP.
//!
//! Names, meanings and defaults are those of the specification: `protocol/exporter.md`,
//! `metrics/sdk_exporters/otlp.md` and `configuration/sdk-environment-variables.md` @ v1.50.0.

use std::{path::PathBuf, time::Duration};

use hyper::Uri;
use thiserror::Error;

use crate::metrics::otel::pairs;

/// How, where and how often metrics are pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How messages go.
    pub protocol: Protocol,
    /// Where to.
    pub endpoint: Uri,
    /// Headers, or metadata, of each request.
    pub headers: Vec<(String, String)>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Whether messages are compressed, by gzip.
    pub compressed: bool,
    /// Files with what proves the collector's identity and one's own.
    pub tls: TlsFiles,
    /// Since when values are counted.
    pub temporality: Temporality,
    /// How often to send.
    pub interval: Duration,
    /// How long sending may take, with all attempts.
    pub export_timeout: Duration,
}

/// How messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
}

/// Since when values are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Temporality {
    /// Since the start.
    Cumulative,
    /// Since the last ones that were sent, where values only rise.
    Delta,
    /// Likewise, but for those that are only looked at, for which the last ones would have to be remembered.
    LowMemory,
}

/// PEM files for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that are trusted, instead of the system's.
    pub authorities: Option<PathBuf>,
    /// The agent's own certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with the variables.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{name}={value}: {why}")]
pub struct SettingsError {
    name: String,
    value: String,
    why: &'static str,
}

/// The part of the names that stands for all signals.
const ALL: &str = "OTEL_EXPORTER_OTLP_";
/// That for metrics, which comes first.
const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_";
/// Said of an address that may have a password in it.
const WITHOUT_USER: &str = "must be an address such as http://HOST:PORT, without user and password: what proves who \
                            one is goes into OTEL_EXPORTER_OTLP_HEADERS";

impl Settings {
    /// The settings that variables give; those that are empty are as if they were not there.
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

    /// Whether `OTEL_METRICS_EXPORTER`, a list, has OTLP in it. Unlike an SDK the agent does not push unless told.
    #[must_use]
    pub fn chosen_by(exporters: &str) -> bool {
        exporters.split(',').any(|name| name.trim() == "otlp")
    }
}

/// A variable that is set: its name and its value.
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

    /// An address for all signals is where those of HTTP begin.
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
                // A password may stand there, so the value is not shown.
                wrong((name, "…".to_owned()), WITHOUT_USER)
            } else {
                wrong((name, value), "must be an address such as http://HOST:PORT")
            }
        })
    }

    /// Another value than these would have to mean false, and end in pushes that the collector doesn't understand.
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

/// Whether an address names a host, and has nothing else but a port beside it. A port that is none would be passed over, and
/// the headers go to whoever listens at the scheme's own.
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
            // The push would go to the port 80 or 443.
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
