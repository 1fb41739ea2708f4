//! The resource that a target's metrics describe.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use monitor_ebpf::TEXT_BYTES;

use super::{AttributeValue, Attributes};
use crate::pipeline::{Framework, Labels, OTHER, Side, Snapshot, UNKNOWN, UNREADABLE};

/// The resource's attributes that Kitex's extension copies to each point (`tracing/metrics.go` @ v0.3.0).
const OF_POINTS: [&str; 10] = [
    "service.name",
    "service.namespace",
    "deployment.environment",
    "service.instance.id",
    "service.version",
    "telemetry.sdk.language",
    "telemetry.sdk.version",
    "process.pid",
    "host.name",
    "host.id",
];

/// The maximum number of attributes from one list. All of them are in each push and each scrape, some on every line.
const ATTRIBUTES_MAX: usize = 64;
/// The maximum length of an attribute's name and of its text, in bytes; `…` follows where something was cut.
const TEXT_MAX: usize = 256;
/// The maximum length of a text that is copied to each point, and so to some eighteen lines of a scrape: as much as is
/// kept of a name in a call.
const TEXT_OF_POINTS_MAX: usize = TEXT_BYTES;

/// A target's identity, as known from outside.
#[derive(Debug)]
pub struct Identity {
    /// All attributes; without the service's name, if only calls contain that.
    attributes: Attributes,
    /// The text that distinguishes the target from all others.
    instance: String,
    /// The service's name that an SDK uses by default.
    unnamed: String,
    /// The number of attributes past the limit.
    left_out: usize,
    /// The service's name, once found in calls: it must not change while the target lives.
    named: Mutex<Option<String>>,
}

impl Identity {
    /// Creates an identity from the pid in the target's own namespace, the text that distinguishes the target from all
    /// others, its host's name if known, its executable, the variables of its environment as far as they could be read
    /// (see [`Identity::VARIABLES`]), and attributes that apply unless the target sets them itself.
    #[must_use]
    pub fn new(
        pid: u32,
        instance: &str,
        host: Option<&str>,
        exe: &str,
        environment: &BTreeMap<String, String>,
        more: &[(String, String)],
    ) -> Self {
        let mut attributes: Attributes = host.map(|host| text("host.name", host)).into_iter().collect();
        let mut of_all = listed(more);
        // These identify a single service. In the agent's environment they are the agent's own.
        for of_one in [SERVICE_NAME, INSTANCE] {
            of_all.remove(of_one);
        }
        attributes.extend(of_all);
        attributes.extend([
            ("process.pid".to_owned(), AttributeValue::Number(pid.into())),
            text("telemetry.sdk.language", "go"),
            text("telemetry.sdk.name", env!("CARGO_PKG_NAME")),
            text("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ]);
        let own = environment.get("OTEL_RESOURCE_ATTRIBUTES").map_or("", String::as_str);
        // An SDK skips entries that are not pairs.
        let own: Vec<_> = pairs(own).flatten().collect();
        attributes.extend(listed(&own));
        let name = environment.get("OTEL_SERVICE_NAME").map(|name| name.trim());
        let name = name.filter(|name| !name.is_empty());
        attributes.extend(name.map(|name| text(SERVICE_NAME, name)));
        let left_out = [more.len(), own.len()].map(|length| length.saturating_sub(ATTRIBUTES_MAX));
        Self {
            attributes,
            instance: instance.to_owned(),
            unnamed: format!("unknown_service:{}", exe.rsplit('/').next().unwrap_or(exe)),
            left_out: left_out.iter().sum(),
            named: Mutex::default(),
        }
    }

    /// The environment variables that describe a resource.
    pub const VARIABLES: [&str; 2] = ["OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"];

    /// Returns the number of attributes that are left out because a list has too many.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Returns the resource as an SDK in the target would describe it.
    #[must_use]
    pub fn resource(&self, snapshot: &Snapshot) -> Resource {
        let (mut attributes, instance) = (self.attributes.clone(), self.instance.clone());
        if attributes.contains_key(SERVICE_NAME) {
            return Resource { attributes, instance, unnamed: None };
        }
        attributes.extend([text(SERVICE_NAME, &self.name(snapshot))]);
        Resource { attributes, instance, unnamed: Some(self.unnamed.clone()) }
    }

    /// Returns the service's name in its calls over Kitex: the name under which it is called, or else the name under
    /// which it calls. Before either is known, it is an SDK's default.
    fn name(&self, snapshot: &Snapshot) -> String {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = named.as_ref() {
            return name.clone();
        }
        let own = |side| {
            let calls = snapshot.series.iter().map(|series| &series.labels);
            calls.filter(|labels| labels.side == side).find_map(|labels| service(labels))
        };
        if let Some(name) = own(Side::Server).or_else(|| own(Side::Client)) {
            return named.insert(name.to_owned()).clone();
        }
        self.unnamed.clone()
    }
}

/// Converts a list of pairs to attributes.
fn listed(pairs: &[(String, String)]) -> Attributes {
    pairs.iter().take(ATTRIBUTES_MAX).map(|(name, value)| text(name, value)).collect()
}

const SERVICE_NAME: &str = "service.name";
/// The attribute that distinguishes resources of the same name.
const INSTANCE: &str = "service.instance.id";

/// Returns the target's name in a call. Only Kitex has one. For a server of gRPC-Go, the name is that of a service in
/// an IDL, or whatever a peer sends; for a spec, names can be anything.
fn service(labels: &Labels) -> Option<&str> {
    let name = match (labels.framework, labels.side) {
        (Framework::Kitex, Side::Client) => labels.caller.as_str(),
        (Framework::Kitex, Side::Server) => labels.callee.as_str(),
        _ => return None,
    };
    real_name(name)
}

/// Returns a name in a call, unless it is a placeholder.
pub(super) fn real_name(name: &str) -> Option<&str> {
    (![UNKNOWN, UNREADABLE, OTHER].contains(&name)).then_some(name)
}

/// The resource that metrics describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The resource's attributes.
    pub attributes: Attributes,
    /// The text that distinguishes the resource from all others.
    instance: String,
    /// The service's name for calls that do not contain it; `None` if the target has set its name itself. It is never a
    /// name found in other calls: a series must not be renamed while it exists.
    unnamed: Option<String>,
}

impl Resource {
    /// Returns the attributes, with the instance added, for use where nothing else identifies the target: replicas of a
    /// service that are each the first process of a container have all other attributes in common. At `/metrics` this
    /// is not needed: there is the label `target`, or the port, and each series has the labels that it has in-process.
    pub(crate) fn told_apart(&self) -> Attributes {
        let mut attributes = self.attributes.clone();
        let instance = || AttributeValue::Text(self.instance.clone());
        let told = attributes.entry(INSTANCE.to_owned()).or_insert_with(instance);
        if matches!(told, AttributeValue::Text(text) if text.is_empty()) {
            *told = instance();
        }
        attributes
    }

    /// Returns the attributes that a point of a call copies. If the target has not set its name, the name is the one in
    /// that call.
    pub(super) fn of_points(&self, labels: &Labels) -> Attributes {
        let copied = self.attributes.iter().filter(|(name, _)| OF_POINTS.contains(&name.as_str()));
        let mut attributes: Attributes =
            copied.map(|(name, value)| (name.clone(), shortened(value))).collect();
        if let Some(unnamed) = &self.unnamed {
            let name = service(labels).map_or_else(|| cut(unnamed, TEXT_OF_POINTS_MAX), str::to_owned);
            attributes.insert(SERVICE_NAME.to_owned(), AttributeValue::Text(name));
        }
        attributes
    }
}

fn text(name: &str, value: &str) -> (String, AttributeValue) {
    (cut(name, TEXT_MAX), AttributeValue::Text(cut(value, TEXT_MAX)))
}

/// Shortens a value for a point.
fn shortened(value: &AttributeValue) -> AttributeValue {
    match value {
        AttributeValue::Text(text) => AttributeValue::Text(cut(text, TEXT_OF_POINTS_MAX)),
        AttributeValue::Number(_) => value.clone(),
    }
}

/// Cuts a text to `most` bytes, without splitting a character.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let (kept, _) = text.split_at(text.floor_char_boundary(most));
    format!("{kept}…")
}

/// Splits a list such as `service.version=1.2,team=a%20b` into pairs, as Go's SDK does (`sdk/resource/env.go` @
/// v1.47.0). An entry that is not a pair is an error with its text.
pub fn pairs(list: &str) -> impl Iterator<Item = Result<(String, String), &str>> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| {
        let (name, value) = part.split_once('=').ok_or(part)?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() {
            return Err(part);
        }
        Ok((name.to_owned(), decoded(value).unwrap_or_else(|| value.to_owned())))
    })
}

/// Decodes percent-encoding such as `%20`; returns `None` if a `%` is not followed by two digits.
fn decoded(text: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use monitor_ebpf::LabelSet;

    use super::*;
    use crate::{
        export::text::encode,
        metrics::otel::{Conventions, GoNames, OtelView, buckets, families, telemetry},
        pipeline::{Extras, Histogram, Ladder, NoExecutable, Series},
    };

    fn identity(environment: &[(&str, &str)]) -> Identity {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let more = [(SERVICE_NAME.to_owned(), "agent".to_owned())];
        Identity::new(1, "boot:7:8", None, "/bin/shop", &environment, &more)
    }

    fn service_name(environment: &[(&str, &str)]) -> AttributeValue {
        identity(environment).resource(&Snapshot::default()).attributes[SERVICE_NAME].clone()
    }

    #[test]
    fn the_environment_names_the_service_as_for_an_sdk() {
        let name = |name: &str| AttributeValue::Text(name.to_owned());
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=one,team=a");
        assert_eq!(service_name(&[attributes]), name("one"));
        assert_eq!(service_name(&[attributes, ("OTEL_SERVICE_NAME", "two")]), name("two"));
        assert_eq!(service_name(&[attributes, ("OTEL_SERVICE_NAME", " two\n")]), name("two"));
        for none in ["", "  "] {
            assert_eq!(service_name(&[("OTEL_SERVICE_NAME", none)]), name("unknown_service:shop"));
        }
        // An invalid entry does not remove others.
        let some = ("OTEL_RESOURCE_ATTRIBUTES", "team,=b,service.name=one,c d");
        assert_eq!(service_name(&[some]), name("one"));
    }

    #[test]
    fn resources_are_told_apart_unless_the_target_does() {
        let given = |attributes| vec![("OTEL_RESOURCE_ATTRIBUTES", attributes)];
        for (environment, own, expected) in [
            (vec![], false, "boot:7:8"),
            (given("service.instance.id=mine"), true, "mine"),
            (given("service.instance.id="), true, "boot:7:8"),
        ] {
            let resource = identity(&environment).resource(&Snapshot::default());
            assert_eq!(resource.told_apart()[INSTANCE], AttributeValue::Text(expected.to_owned()));
            // Points and `/metrics` have the same attributes as in-process.
            assert_eq!(resource.attributes.contains_key(INSTANCE), own);
        }
    }

    #[test]
    fn the_agents_own_list_says_what_all_targets_have() {
        let more = [("host.name", "given"), (INSTANCE, "agent"), ("process.pid", "9"), ("team", "a")];
        let more = more.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let attributes = |own: &str| {
            let environment = BTreeMap::from([("OTEL_RESOURCE_ATTRIBUTES".to_owned(), own.to_owned())]);
            Identity::new(1, "boot:7:8", Some("kernel"), "/bin/shop", &environment, &more).attributes
        };
        let name = |name: &str| AttributeValue::Text(name.to_owned());
        let found = attributes("");
        assert_eq!([&found["host.name"], &found["team"]], [&name("given"), &name("a")]);
        assert_eq!((&found["process.pid"], found.get(INSTANCE)), (&AttributeValue::Number(1), None));
        let found = attributes("host.name=own,team=b");
        assert_eq!([&found["host.name"], &found["team"]], [&name("own"), &name("b")]);
    }

    /// Creates the labels of a call of a framework, with caller and callee.
    fn call(framework: Framework, side: Side, names: [&str; 2]) -> Labels {
        let [from, to] = names.map(str::to_owned);
        Labels {
            framework,
            side,
            caller: from,
            callee: to,
            ..Labels::decode(&LabelSet::EMPTY, &NoExecutable)
        }
    }

    /// Returns the name in the resource and in the points of each call, for a target that has made these calls.
    fn names_by(calls: &[Labels]) -> (AttributeValue, Vec<AttributeValue>) {
        let series = calls.iter().map(|labels| {
            let (labels, histogram) = (Arc::new(labels.clone()), Histogram::default());
            Arc::new(Series { labels, total: 1, histogram, extras: Extras::default() })
        });
        let resource = identity(&[]).resource(&Snapshot { series: series.collect(), ..Snapshot::default() });
        let of_points = calls.iter().map(|labels| resource.of_points(labels)[SERVICE_NAME].clone());
        (resource.attributes[SERVICE_NAME].clone(), of_points.collect())
    }

    #[test]
    fn calls_of_kitex_name_the_service_and_no_others() {
        let name = |name: &str| AttributeValue::Text(name.to_owned());
        let unnamed = || name("unknown_service:shop");
        let spec = Framework::Spec { spec: 0, operation: 0 };
        let others = [
            call(spec, Side::Server, ["GET", "/users/:id"]),
            call(spec, Side::Client, ["GET", "/users/:id"]),
            call(Framework::Grpc, Side::Server, ["unknown", "grpc.health.v1.Health"]),
        ];
        assert_eq!(names_by(&others), (unnamed(), vec![unnamed(); 3]));
        let calls = [&others[..], &[call(Framework::Kitex, Side::Client, ["shop", "stock"])]].concat();
        let of_points = vec![unnamed(), unnamed(), unnamed(), name("shop")];
        assert_eq!(names_by(&calls), (name("shop"), of_points));
    }

    #[test]
    fn what_stands_in_for_a_name_is_none() {
        let name = |name: &str| AttributeValue::Text(name.to_owned());
        let calls = ["unknown", "unreadable", "other", "stock"]
            .map(|callee| call(Framework::Kitex, Side::Server, ["shop", callee]));
        let (of_resource, of_points) = names_by(&calls);
        assert_eq!(of_resource, name("stock"));
        let unnamed = name("unknown_service:shop");
        assert_eq!(of_points, [unnamed.clone(), unnamed.clone(), unnamed, name("stock")]);
    }

    #[test]
    fn what_the_environment_says_has_limits() {
        let name = format!("x{}", "é".repeat(60_000));
        let list: Vec<_> = (0..100).map(|number| format!("{}{number}=y", "a".repeat(number * 10))).collect();
        let list = format!("b={name},{}", list.join(","));
        let identity = identity(&[("OTEL_SERVICE_NAME", &name), ("OTEL_RESOURCE_ATTRIBUTES", &list)]);
        assert_eq!(identity.left_out(), 37);
        let attributes = identity.resource(&Snapshot::default()).attributes;
        assert!(attributes.len() <= ATTRIBUTES_MAX + 5, "{}", attributes.len());
        // The limit splits a character.
        let kept = AttributeValue::Text(format!("x{}…", "é".repeat(127)));
        assert_eq!([&attributes[SERVICE_NAME], &attributes["b"]], [&kept, &kept]);
        assert_eq!(attributes.keys().map(String::len).max(), Some(TEXT_MAX + '…'.len_utf8()));
        // A point has a shorter text.
        let labels = call(Framework::Kitex, Side::Server, ["shop", "stock"]);
        let of_points = identity.resource(&Snapshot::default()).of_points(&labels);
        let kept = AttributeValue::Text(format!("x{}…", "é".repeat(31)));
        assert_eq!(of_points[SERVICE_NAME], kept);
    }

    /// A quote takes two bytes in a scrape.
    #[test]
    fn no_environment_makes_a_series_large() {
        let quotes = "\"".repeat(1_000);
        let list: Vec<_> = OF_POINTS.iter().map(|name| format!("{name}={quotes}")).collect();
        let identity = identity(&[("OTEL_RESOURCE_ATTRIBUTES", &list.join(","))]);
        let name = format!("{}…", &quotes[..TEXT_BYTES]);
        let labels = Labels { method: name.clone(), ..call(Framework::Kitex, Side::Server, [&name, &name]) };
        let ladder = Arc::new(Ladder::of(buckets()));
        let counts = vec![1; ladder.limits() + 1];
        let histogram = Histogram::of(ladder, counts, (1, 1_000));
        let series = Series { labels: Arc::new(labels), total: 1, histogram, extras: Extras::default() };
        let scraped = |series| {
            let snapshot = Snapshot { series, ..Snapshot::default() };
            let conventions = Conventions { old: true, new: false };
            let view = OtelView { conventions, go: GoNames::default() };
            encode(&families(&telemetry(&identity, &snapshot, None, view, 1)))
        };
        let [with, without] = [scraped(vec![Arc::new(series)]), scraped(Vec::new())];
        assert!(with.contains("rpc_server_duration_bucket"), "{with}");
        let bytes = with.len() - without.len();
        assert!(bytes < 48 << 10, "{bytes} bytes");
    }

    #[test]
    fn lists_are_decoded() {
        let read = |list| {
            let shown = |pair: Result<(String, String), &str>| match pair {
                Ok((name, value)) => format!("{name}:{value}"),
                Err(part) => format!("no pair: {part}"),
            };
            pairs(list).map(shown).collect::<Vec<_>>()
        };
        assert_eq!(read("a=b, c = d%20e%2C,"), ["a:b", "c:d e,"]);
        assert_eq!(read("a=b, c,=d, = e ,f=g"), ["a:b", "no pair: c", "no pair: =d", "no pair: = e", "f:g"]);
        assert!(read("").is_empty() && read(" , ").is_empty());
        assert_eq!(read("a=%ff%C3%A9="), ["a:\u{fffd}é="]);
        // An invalid value stays exactly as it is written.
        assert_eq!(read("a=d%20e%2,b=%20%zz,c=%+1"), ["a:d%20e%2", "b:%20%zz", "c:%+1"]);
    }
}
