//! From a framework's file to what it says, or to what is wrong in it and where. What users' specs say too is written and
//! read as there.

use std::collections::BTreeMap;

use monitor_ebpf::{FINISH_SITES, GATES};
use serde::Deserialize;
use toml::Spanned;

use super::spec::{
    Alternatives, CallSpec, Condition, Entry, ErrorSpec, Family, Framework, Function, Home, Key, KindSpec,
    Known, MessageSpec, Metrics, ObjectOf, Pair, ProtocolSpec, Question, RecordedSpec, Route, ShapeSpec,
    SitedFramework, SitedMessages, StatusSpec, Way,
};
use crate::specs::{
    self, ALTERNATIVES_MAX, Comparison, OPERATIONS_MAX, SpecError, names,
    read::{WrittenEntry, WrittenSide, Wrong, check, comparison, entry, of_text, short, wrong},
    steps_of,
};

/// Entries of a table of names.
const NAMES_MAX: usize = 64;
/// Longest text that the programs compare.
const COMPARED_MAX: usize = 8;

/// Keys of a file and of its operations that users' specs do not have.
pub const FRAMEWORK_KEYS: [&str; 27] = [
    "also_finish",
    "errors",
    "home",
    "key_at",
    "messages",
    "metrics",
    "oneway",
    "only_if",
    "open_interfaces",
    "over",
    "panicked",
    "peer",
    "protocol",
    "protocols",
    "received_bytes",
    "recorded",
    "retries",
    "sent_bytes",
    "starts_as",
    "status",
    "stream",
    "streaming",
    "streams",
    "title",
    "told_by",
    "unary",
    "when",
];

/// Reads a framework's file. `file` is what errors call it.
pub fn read(file: &str, text: &str) -> Result<Known, SpecError> {
    let head: Head = of_text(file, text, Ok)?;
    match head.told_by {
        ToldBy::Type => of_text(file, text, by_type).map(Box::new).map(Known::ByType),
        ToldBy::Function => {
            let framework = of_text(file, text, |written| by_function(&written))?;
            Ok(Known::ByFunction(Box::new(framework)))
        }
    }
}

/// What the rest of a file depends on.
#[derive(Deserialize)]
struct Head {
    told_by: ToldBy,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ToldBy {
    Type,
    Function,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenByType {
    name: Spanned<String>,
    title: Spanned<String>,
    module: Spanned<String>,
    #[serde(rename = "told_by")]
    _told_by: ToldBy,
    metrics: WrittenMetrics,
    home: Spanned<Vec<Spanned<WrittenHome>>>,
    operation: Spanned<Vec<Spanned<WrittenShape>>>,
    errors: WrittenErrors,
    messages: WrittenMessages,
    protocols: WrittenProtocols,
    open_interfaces: BTreeMap<String, Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenByFunction {
    name: Spanned<String>,
    title: Spanned<String>,
    module: Spanned<String>,
    #[serde(rename = "told_by")]
    _told_by: ToldBy,
    metrics: WrittenMetrics,
    operation: Spanned<Vec<Spanned<WrittenCall>>>,
    status: WrittenStatus,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMetrics {
    family: WrittenFamily,
    labels: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenFamily {
    Kitex,
    Grpc,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHome {
    start: Spanned<WrittenEntry>,
    finish: Spanned<WrittenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenShape {
    name: Spanned<String>,
    side: WrittenSide,
    key: WrittenKey,
    types: Spanned<BTreeMap<String, Spanned<String>>>,
    labels: WrittenNames,
    when: Option<WrittenCondition>,
    streaming: WrittenQuestion,
    oneway: WrittenQuestion,
    stream: Spanned<String>,
    sent_bytes: Spanned<String>,
    received_bytes: Spanned<String>,
    peer: Option<WrittenPeer>,
    retries: Option<Spanned<String>>,
    protocol: Spanned<String>,
    panicked: Spanned<String>,
    recorded: WrittenRecorded,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum WrittenKey {
    Pointer,
    GoroutineUnlessStreaming,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenNames {
    caller: Spanned<String>,
    callee: Spanned<String>,
    method: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCondition {
    field: Spanned<String>,
    holds: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenQuestion {
    number: Spanned<Choices>,
    is: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPeer {
    address: Spanned<String>,
    port: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRecorded {
    events: Spanned<String>,
    index: u8,
    state: Spanned<String>,
    bit: u32,
    time: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenErrors {
    class: Spanned<String>,
    message: Spanned<String>,
    wrapped: Spanned<String>,
    points: Spanned<String>,
    messages: Spanned<BTreeMap<String, Spanned<String>>>,
    types: Spanned<BTreeMap<String, Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMessages {
    sent: Spanned<String>,
    received: Spanned<String>,
    error: Spanned<String>,
    handlers: Spanned<Vec<WrittenHandlers>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHandlers {
    #[serde(rename = "in")]
    way: Spanned<String>,
    sent: Spanned<String>,
    received: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenProtocols {
    none: Spanned<String>,
    bits: Spanned<Vec<(u16, Spanned<String>)>>,
    joined_since: (u32, u32),
    combinations: Spanned<Vec<(u16, Spanned<String>)>>,
    other: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenCall {
    name: Spanned<String>,
    side: WrittenSide,
    #[serde(rename = "key")]
    _key: PointerKey,
    key_at: Option<Spanned<String>>,
    policy: Option<CallPolicy>,
    starts_as: Option<Spanned<String>>,
    types: BTreeMap<String, Spanned<Choices>>,
    labels: WrittenMethod,
    unary: Option<Spanned<bool>>,
    streams: Option<WrittenStreams>,
    over: Option<WrittenQuestion>,
    #[serde(default)]
    only_if: Vec<WrittenQuestion>,
    start: Option<Spanned<Vec<Spanned<WrittenEntry>>>>,
    finish: Spanned<Vec<Spanned<WrittenEntry>>>,
    also_finish: Option<Spanned<Vec<Spanned<WrittenEntry>>>>,
    messages: Option<Spanned<Vec<WrittenMethods>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMethods {
    #[serde(rename = "in")]
    way: Spanned<Choices>,
    sent: Spanned<String>,
    received: Spanned<String>,
    arguments: Spanned<String>,
    pointer: Option<Spanned<String>>,
    interface: Option<WrittenInterface>,
    streams: WrittenStreams,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenInterface {
    field: Spanned<String>,
    holds: Spanned<String>,
    no_call: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum PointerKey {
    Pointer,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CallPolicy {
    Overwrite,
    First,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMethod {
    method: Spanned<Choices>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStreams {
    client: Spanned<String>,
    server: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStatus {
    error: Spanned<String>,
    from_error: Spanned<String>,
    message: Spanned<String>,
    code: Spanned<String>,
    well: WrittenWell,
    wrap: WrittenWrap,
    codes: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWell {
    error: Spanned<String>,
    text: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWrap {
    error: Spanned<String>,
    field: Spanned<String>,
}

/// One, or several to choose from over releases.
#[derive(Deserialize)]
#[serde(untagged, expecting = "one text, or a list of texts to choose from")]
enum Choices {
    One(String),
    Several(Vec<String>),
}

impl Choices {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
        }
    }
}

fn by_type(written: WrittenByType) -> Result<Framework, Wrong> {
    let (homes, root, [object, error]) = homes(&written.home)?;
    few(&written.operation, OPERATIONS_MAX)?;
    let shapes = written.operation.get_ref().iter().map(|operation| shape(operation, &root));
    let interfaces = written.open_interfaces.into_iter();
    Ok(Framework {
        name: short(&written.name)?,
        title: short(&written.title)?,
        metrics: metrics(&written.metrics)?,
        module: short(&written.module)?,
        homes,
        object,
        error,
        shapes: shapes.collect::<Result<_, _>>()?,
        errors: errors(&written.errors)?,
        messages: messages(&written.messages)?,
        protocols: protocols(&written.protocols)?,
        open_interfaces: interfaces
            .map(|(name, what)| {
                check(&what, names::symbol(&name, "type"))?;
                Ok((name, short(&what)?))
            })
            .collect::<Result<_, _>>()?,
    })
}

fn metrics(written: &WrittenMetrics) -> Result<Metrics, Wrong> {
    few(&written.labels, specs::LABELS_MAX)?;
    let labels = written.labels.get_ref().iter().map(|label| {
        check(label, names::label(label.get_ref()))?;
        Ok(label.get_ref().clone())
    });
    let family = match written.family {
        WrittenFamily::Kitex => Family::Kitex,
        WrittenFamily::Grpc => Family::Grpc,
    };
    Ok(Metrics { family, labels: labels.collect::<Result<_, _>>()? })
}

/// The homes, what they call the object, and where all of them get it and the error.
fn homes(written: &Spanned<Vec<Spanned<WrittenHome>>>) -> Result<(Vec<Home>, String, [Pair; 2]), Wrong> {
    few(written, ALTERNATIVES_MAX)?;
    let mut homes = Vec::new();
    let mut found: Option<(String, [Pair; 2])> = None;
    for home in written.get_ref() {
        let (start, finish) = (function(&home.get_ref().start)?, function(&home.get_ref().finish)?);
        let start_object = interface(&home.get_ref().start, &start)?;
        let (root, object) = interface(&home.get_ref().finish, &finish)?;
        let Some(error) = finish.words.error.filter(|_| start.words.error.is_none()) else {
            return wrong(home, "the finish, and only that, gets an error");
        };
        let this = (root.clone(), [object, pair(error)]);
        if start_object != (root, object) || found.as_ref().is_some_and(|found| *found != this) {
            return wrong(home, "all functions get the object, and the error, in the same words");
        }
        found = Some(this);
        let [start, finish] =
            [start, finish].map(|entry| Function { name: entry.function, arguments: entry.arguments });
        homes.push(Home { start, finish });
    }
    let Some((root, words)) = found else { return wrong(written, "there is no home") };
    Ok((homes, root, words))
}

/// A function of which one pointer's place is said, and not the key's.
fn function(written: &Spanned<WrittenEntry>) -> Result<specs::Entry, Wrong> {
    no_user_words(written, entry(written, false, true)?)
}

/// Refuses what only users' specs can say of a function.
fn no_user_words(written: &Spanned<WrittenEntry>, entry: specs::Entry) -> Result<specs::Entry, Wrong> {
    if entry.at_most.is_some() || entry.words.number.is_some() {
        return wrong(written, "a framework's functions have names, not patterns, and give no numbers");
    }
    Ok(entry)
}

/// The only pointer of a function, which is an interface.
fn interface(written: &Spanned<WrittenEntry>, entry: &specs::Entry) -> Result<(String, Pair), Wrong> {
    let [(name, word)] = &entry.words.pointers[..] else {
        return wrong(written, "say where the object is, and nothing else, in pointers");
    };
    if !names::words(&entry.arguments).get(*word).is_some_and(|(_, first)| *first) {
        return wrong(written, "the object is an interface, as in {ww}: give the number of its first word");
    }
    Ok((name.clone(), pair(*word)))
}

/// An interface that begins with a word.
fn pair(type_word: usize) -> Pair {
    Pair { type_word, data: type_word + 1 }
}

fn shape(spanned: &Spanned<WrittenShape>, root: &str) -> Result<ShapeSpec, Wrong> {
    let written = spanned.get_ref();
    let Some((_, object)) = written.types.get_ref().iter().find(|(name, _)| *name == root) else {
        return wrong(&written.types, format!("say of which type {root} is"));
    };
    let Way { interface, concrete, fields } = way(object, object.get_ref())?;
    if written.types.get_ref().len() > 1 || !fields.is_empty() {
        return wrong(&written.types, format!("give an interface and a type in it, of {root} only"));
    }
    let path = |text: &Spanned<String>| below(text, text.get_ref(), root);
    Ok(ShapeSpec {
        name: short(&written.name)?,
        side: written.side.into(),
        interface,
        concrete,
        when: written.when.as_ref().map(|when| condition(when, root)).transpose()?,
        key: match written.key {
            WrittenKey::Pointer => Key::Object,
            WrittenKey::GoroutineUnlessStreaming => Key::GoroutineUnlessStreaming,
        },
        caller: path(&written.labels.caller)?,
        callee: path(&written.labels.callee)?,
        method: path(&written.labels.method)?,
        streaming: question(&written.streaming, root)?,
        oneway: question(&written.oneway, root)?,
        stream: path(&written.stream)?,
        sizes: [path(&written.sent_bytes)?, path(&written.received_bytes)?],
        peer: written.peer.as_ref().map(|peer| Ok([path(&peer.address)?, path(&peer.port)?])).transpose()?,
        tags: written.retries.as_ref().map(path).transpose()?,
        protocol: path(&written.protocol)?,
        recorded: RecordedSpec {
            events: path(&written.recorded.events)?,
            index: written.recorded.index,
            state: (field(&written.recorded.state)?, written.recorded.bit),
            time: field(&written.recorded.time)?,
        },
        panicked: path(&written.panicked)?,
    })
}

fn condition(written: &WrittenCondition, root: &str) -> Result<Condition, Wrong> {
    let Way { interface, concrete, fields } = way(&written.holds, written.holds.get_ref())?;
    let field = below(&written.field, written.field.get_ref(), root)?;
    if !fields.is_empty() || steps_of(&field).count() > 1 {
        return wrong(&written.field, format!("give a field of {root}, and an interface and a type in it"));
    }
    Ok(Condition { field, interface, holds: concrete })
}

fn question(written: &WrittenQuestion, root: &str) -> Result<Question, Wrong> {
    let paths = alternatives(&written.number, root)?;
    let bits = written.is.get_ref().strip_prefix("& ").map(str::parse);
    match bits {
        Some(Ok(bits)) => Ok(Question::AnyBit(paths, bits)),
        Some(Err(_)) => wrong(&written.is, "write the sum of the bits, as in \"& 6\""),
        None => Ok(Question::Equals(paths, equal(&written.is)?)),
    }
}

/// A question that can only be whether a number equals another.
fn equals(written: &WrittenQuestion, root: &str) -> Result<(Alternatives, u32), Wrong> {
    Ok((alternatives(&written.number, root)?, equal(&written.is)?))
}

fn equal(written: &Spanned<String>) -> Result<u32, Wrong> {
    match comparison(written, 0..=u32::MAX.into())? {
        Comparison::Equal(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        _ => wrong(written, "only == can be asked here"),
    }
}

fn errors(written: &WrittenErrors) -> Result<ErrorSpec, Wrong> {
    few(&written.messages, NAMES_MAX)?;
    few(&written.types, NAMES_MAX)?;
    let named = |(key, name): (&String, &Spanned<String>)| Ok((key.clone(), short(name)?));
    let types = written.types.get_ref().iter();
    Ok(ErrorSpec {
        class: symbol(&written.class)?,
        message: field(&written.message)?,
        wrapped: symbol(&written.wrapped)?,
        points: field(&written.points)?,
        names: written.messages.get_ref().iter().map(named).collect::<Result<_, _>>()?,
        types: types
            .map(|(name, class)| {
                check(class, names::symbol(name, "type"))?;
                named((name, class))
            })
            .collect::<Result<_, _>>()?,
    })
}

fn messages(written: &WrittenMessages) -> Result<MessageSpec, Wrong> {
    few(&written.handlers, ALTERNATIVES_MAX)?;
    let routes = written.handlers.get_ref().iter().map(|handlers| {
        Ok(Route {
            way: way(&handlers.way, handlers.way.get_ref())?,
            sent: field(&handlers.sent)?,
            received: field(&handlers.received)?,
        })
    });
    Ok(MessageSpec {
        sent: symbol(&written.sent)?,
        received: symbol(&written.received)?,
        error: field(&written.error)?,
        routes: routes.collect::<Result<_, _>>()?,
    })
}

fn protocols(written: &WrittenProtocols) -> Result<ProtocolSpec, Wrong> {
    let names = |names: &Spanned<Vec<(u16, Spanned<String>)>>| {
        few(names, NAMES_MAX)?;
        let names = names.get_ref().iter().map(|(number, name)| Ok((*number, short(name)?)));
        names.collect::<Result<_, Wrong>>()
    };
    Ok(ProtocolSpec {
        none: short(&written.none)?,
        bits: names(&written.bits)?,
        joined_since: written.joined_since,
        combinations: names(&written.combinations)?,
        other: short(&written.other)?,
    })
}

fn by_function(written: &WrittenByFunction) -> Result<SitedFramework, Wrong> {
    few(&written.operation, OPERATIONS_MAX)?;
    let mut calls: Vec<CallSpec> = Vec::new();
    for operation in written.operation.get_ref() {
        let call = call(operation)?;
        let starts_as = operation.get_ref().starts_as.as_ref();
        if let Some(of) = starts_as.filter(|of| !calls.iter().any(|call| call.name == *of.get_ref())) {
            return wrong(of, "there is no operation of this name before this one");
        }
        calls.push(call);
    }
    Ok(SitedFramework {
        name: short(&written.name)?,
        title: short(&written.title)?,
        metrics: metrics(&written.metrics)?,
        module: short(&written.module)?,
        calls,
        status: status(&written.status)?,
    })
}

fn call(spanned: &Spanned<WrittenCall>) -> Result<CallSpec, Wrong> {
    let written = spanned.get_ref();
    if written.start.is_some() == written.starts_as.is_some() {
        return wrong(spanned, "an operation starts where it says with one of start and starts_as");
    }
    let (start, started) = match &written.start {
        Some(start) => ends(start, false)?,
        None => (Vec::new(), None),
    };
    let (finish, root) = ends(&written.finish, true)?;
    let mut finishes = vec![finish];
    let mut roots = vec![started, root.clone()];
    if let Some(also) = &written.also_finish {
        let (also, root) = ends(also, true)?;
        finishes.push(also);
        roots.push(root);
    }
    let Some(root) = root.filter(|root| roots.iter().flatten().all(|other| other == root)) else {
        return wrong(spanned, "the key is one pointer, of one name at start and finish");
    };
    if finishes.len() > FINISH_SITES || written.only_if.len() > GATES {
        return wrong(spanned, format!("there are at most {FINISH_SITES} ends and {GATES} conditions"));
    }
    let policy = written.policy.unwrap_or(CallPolicy::Overwrite);
    let is_first = matches!(policy, CallPolicy::First);
    let path = |text: &Spanned<String>| below(text, text.get_ref(), &root);
    let conditions = written.only_if.iter().map(|condition| equals(condition, &root));
    Ok(CallSpec {
        name: short(&written.name)?,
        side: written.side.into(),
        start,
        finishes,
        variant_of: written.starts_as.as_ref().map(short).transpose()?,
        object: ways(written, &root, spanned)?,
        key: written.key_at.as_ref().map(path).transpose()?,
        method: alternatives(&written.labels.method, &root)?,
        kind: kind(spanned, &root)?,
        first_start: is_first,
        first_finish: is_first,
        over: written.over.as_ref().map(|over| equals(over, &root)).transpose()?,
        only_if: conditions.collect::<Result<_, _>>()?,
        messages: written.messages.as_ref().map(methods).transpose()?.unwrap_or_default(),
    })
}

/// The methods that messages go through.
fn methods(written: &Spanned<Vec<WrittenMethods>>) -> Result<Vec<SitedMessages>, Wrong> {
    few(written, ALTERNATIVES_MAX)?;
    let methods = written.get_ref().iter().map(|methods| {
        check(&methods.arguments, names::arguments(methods.arguments.get_ref()))?;
        let object = match (&methods.pointer, &methods.interface) {
            (None, None) => ObjectOf::Itself,
            (Some(pointer), None) => ObjectOf::Pointer(field(pointer)?),
            (None, Some(interface)) => ObjectOf::Interface {
                field: field(&interface.field)?,
                holds: symbol(&interface.holds)?,
                no_call: symbol(&interface.no_call)?,
            },
            (Some(pointer), Some(_)) => {
                return wrong(pointer, "the call is behind a pointer or an interface");
            }
        };
        Ok(SitedMessages {
            sent: symbol(&methods.sent)?,
            received: symbol(&methods.received)?,
            arguments: methods.arguments.get_ref().clone(),
            receiver: few_choices(&methods.way)?
                .iter()
                .map(|text| way(&methods.way, text))
                .collect::<Result<_, _>>()?,
            object,
            description: description(&methods.streams)?,
        })
    });
    methods.collect()
}

/// A field with the description of a call, and two fields of that.
fn description(written: &WrittenStreams) -> Result<[String; 3], Wrong> {
    let parts = |path: &Spanned<String>| {
        let (name, rest) = path.get_ref().split_once('.').unwrap_or_default();
        let parts = names::field(name).and_then(|()| names::field(rest));
        check(path, parts)?;
        Ok((name.to_owned(), rest.to_owned()))
    };
    let ((name, client), (other, server)) = (parts(&written.client)?, parts(&written.server)?);
    if name != other {
        return wrong(&written.server, "both fields are in one description");
    }
    Ok([name, client, server])
}

/// Functions to choose from, and what all of them call the pointer that is the key.
fn ends(
    written: &Spanned<Vec<Spanned<WrittenEntry>>>,
    is_finish: bool,
) -> Result<(Vec<Entry>, Option<String>), Wrong> {
    few(written, ALTERNATIVES_MAX)?;
    let mut entries = Vec::new();
    let mut root: Option<String> = None;
    for spanned in written.get_ref() {
        let found = no_user_words(spanned, entry(spanned, true, true)?)?;
        let words = &found.words;
        let is_key = |(_, word): &&(String, usize)| words.key == Some(*word);
        let Some((name, object)) = words.pointers.iter().find(is_key) else {
            return wrong(spanned, "the key is one of the pointers");
        };
        if root.get_or_insert_with(|| name.clone()) != name {
            return wrong(spanned, "the pointer that is the key has one name");
        }
        let other = words.pointers.iter().find(|pointer| !is_key(pointer)).map(|(_, word)| *word);
        let second = match (other, words.error) {
            (None, Some(error)) if is_finish => error + 1,
            (Some(status), None) => status,
            (None, None) if !is_finish => *object,
            _ => return wrong(spanned, "a finish gets a status or an error, a start neither"),
        };
        entries.push(Entry {
            object: *object,
            second,
            error: words.error,
            function: found.function,
            arguments: found.arguments,
        });
    }
    Ok((entries, root))
}

fn kind(spanned: &Spanned<WrittenCall>, root: &str) -> Result<KindSpec, Wrong> {
    let written = spanned.get_ref();
    let is_unary = written.unary.as_ref().is_some_and(|unary| *unary.get_ref());
    let Some(WrittenStreams { client, server }) = &written.streams else {
        return match (is_unary, &written.starts_as) {
            (true, None) => Ok(KindSpec::Unary),
            (false, Some(_)) => Ok(KindSpec::AsStarted),
            _ => wrong(
                spanned,
                "say which streams it has, or that it is unary; its start says so for starts_as",
            ),
        };
    };
    if is_unary || written.starts_as.is_some() {
        return wrong(client, "what is unary, or told by the start, has no streams here");
    }
    let of = client.get_ref().split('.').next().unwrap_or_default();
    let (client, server) = (below(client, client.get_ref(), of)?, below(server, server.get_ref(), of)?);
    if of == root {
        return Ok(KindSpec::Object(client, server));
    }
    Ok(KindSpec::Second(ways(written, of, spanned)?, client, server))
}

/// Ways to the type of a pointer.
fn ways(written: &WrittenCall, pointer: &str, spanned: &Spanned<WrittenCall>) -> Result<Vec<Way>, Wrong> {
    let Some(ways) = written.types.get(pointer) else {
        return wrong(spanned, format!("say of which type {pointer} is"));
    };
    few_choices(ways)?.iter().map(|text| way(ways, text)).collect()
}

fn status(written: &WrittenStatus) -> Result<StatusSpec, Wrong> {
    few(&written.codes, NAMES_MAX)?;
    if written.well.text.get_ref().len() > COMPARED_MAX {
        return wrong(&written.well.text, format!("at most {COMPARED_MAX} bytes are compared"));
    }
    Ok(StatusSpec {
        error: symbol(&written.error)?,
        from_error: field(&written.from_error)?,
        message: field(&written.message)?,
        code: field(&written.code)?,
        well: (symbol(&written.well.error)?, short(&written.well.text)?),
        wrap: (symbol(&written.wrap.error)?, field(&written.wrap.field)?),
        codes: written.codes.get_ref().iter().map(short).collect::<Result<_, _>>()?,
    })
}

/// Something of which there is at least one, and no more than this.
trait Counted {
    fn count(&self) -> usize;
}

impl<T> Counted for Vec<T> {
    fn count(&self) -> usize {
        self.len()
    }
}

impl<K, V> Counted for BTreeMap<K, V> {
    fn count(&self) -> usize {
        self.len()
    }
}

fn few<T: Counted>(written: &Spanned<T>, limit: usize) -> Result<(), Wrong> {
    if (1..=limit).contains(&written.get_ref().count()) {
        return Ok(());
    }
    wrong(written, format!("there are from 1 to {limit} of these"))
}

fn few_choices(written: &Spanned<Choices>) -> Result<&[String], Wrong> {
    let choices = written.get_ref().as_slice();
    if (1..=ALTERNATIVES_MAX).contains(&choices.len()) {
        return Ok(choices);
    }
    wrong(written, format!("give from 1 to {ALTERNATIVES_MAX} to choose from"))
}

/// What follows the name of a pointer in paths.
fn alternatives(written: &Spanned<Choices>, root: &str) -> Result<Alternatives, Wrong> {
    few_choices(written)?.iter().map(|path| below(written, path, root)).collect()
}

/// What follows the name of a pointer in a path.
fn below<T>(written: &Spanned<T>, path: &str, root: &str) -> Result<String, Wrong> {
    check(written, names::path(path))?;
    match path.strip_prefix(root).and_then(|rest| rest.strip_prefix('.')) {
        Some(rest) => Ok(rest.to_owned()),
        None => wrong(written, format!("`{}` does not begin with {root}", path.escape_default())),
    }
}

/// The way to a type: `(INTERFACE).(*TYPE)`, and then fields.
fn way<T>(written: &Spanned<T>, text: &str) -> Result<Way, Wrong> {
    let inside = |step: Option<&str>, open: &str| {
        step.and_then(|step| step.strip_prefix(open)?.strip_suffix(')')).map(str::to_owned)
    };
    let mut steps = steps_of(text);
    let (interface, concrete) = (inside(steps.next(), "("), inside(steps.next(), "(*"));
    let (Some(interface), Some(concrete)) = (interface, concrete) else {
        let text = text.escape_default();
        return wrong(
            written,
            format!("`{text}` is no way to a type: write (INTERFACE).(*TYPE), and fields"),
        );
    };
    check(written, names::symbol(&interface, "type"))?;
    check(written, names::symbol(&concrete, "type"))?;
    let fields: Vec<_> = steps.map(str::to_owned).collect();
    for step in fields.iter().filter(|step| *step != "()") {
        check(written, names::field(step))?;
    }
    if fields.len() > specs::STEPS_MAX {
        return wrong(written, format!("a way has at most {} steps", specs::STEPS_MAX));
    }
    Ok(Way { interface, concrete, fields })
}

fn symbol(written: &Spanned<String>) -> Result<String, Wrong> {
    check(written, names::symbol(written.get_ref(), "type"))?;
    Ok(written.get_ref().clone())
}

fn field(written: &Spanned<String>) -> Result<String, Wrong> {
    check(written, names::field(written.get_ref()))?;
    Ok(written.get_ref().clone())
}
