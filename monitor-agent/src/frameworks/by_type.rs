//! Reads the files of frameworks whose calls are identified by the type of their object.

use toml::Spanned;

use super::{
    parts::{alternatives, below, equal, few, field, metrics, no_user_words, symbol, way},
    spec::{
        Condition, ErrorSpec, Framework, Function, Home, Key, MessageSpec, Pair, ProtocolSpec, Question,
        RecordedSpec, Route, ShapeSpec, Untold, Way,
    },
    written::{
        WrittenByType, WrittenCondition, WrittenErrors, WrittenHome, WrittenKey, WrittenMessages,
        WrittenProtocols, WrittenQuestion, WrittenShape, WrittenUntold,
    },
};
use crate::specs::{
    self, ALTERNATIVES_MAX, OPERATIONS_MAX,
    go::entry,
    names,
    read::{Wrong, check, short, wrong},
    steps_of,
    written::WrittenEntry,
};

/// The maximum number of entries in a table of names.
const NAMES_MAX: usize = 64;

pub(super) fn framework(written: WrittenByType) -> Result<Framework, Wrong> {
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
        untold: untold(&written.untold)?,
    })
}

/// Returns the homes, the name that they give to the object, and the argument words of the object and the error.
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

/// Reads a function that has one pointer and no key.
fn function(written: &Spanned<WrittenEntry>) -> Result<specs::Entry, Wrong> {
    no_user_words(written, entry(written, false, true)?)
}

/// Returns the name and the words of a function's only pointer, which must be an interface.
fn interface(written: &Spanned<WrittenEntry>, entry: &specs::Entry) -> Result<(String, Pair), Wrong> {
    let [(name, word)] = &entry.words.pointers[..] else {
        return wrong(written, "say where the object is, and nothing else, in pointers");
    };
    if !names::words(&entry.arguments).get(*word).is_some_and(|(_, first)| *first) {
        return wrong(written, "the object is an interface, as in {ww}: give the number of its first word");
    }
    Ok((name.clone(), pair(*word)))
}

/// Returns the words of an interface whose type word has this number.
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
        carrier: symbol(&written.carrier)?,
        carries: field(&written.carries)?,
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
    let arguments = written.arguments.get_ref();
    check(&written.arguments, names::arguments(arguments))?;
    let function = |name: &Spanned<String>| {
        Ok::<_, Wrong>(Function { name: symbol(name)?, arguments: arguments.clone() })
    };
    let routes = written.handlers.get_ref().iter().map(|handlers| {
        Ok(Route {
            way: way(&handlers.way, handlers.way.get_ref())?,
            sent: field(&handlers.sent)?,
            received: field(&handlers.received)?,
        })
    });
    Ok(MessageSpec {
        sent: function(&written.sent)?,
        received: function(&written.received)?,
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

fn untold(written: &Spanned<Vec<WrittenUntold>>) -> Result<Vec<Untold>, Wrong> {
    few(written, NAMES_MAX)?;
    let untold = |written: &WrittenUntold| {
        Ok(Untold { since: written.since, before: written.before, note: short(&written.note)? })
    };
    written.get_ref().iter().map(untold).collect()
}
