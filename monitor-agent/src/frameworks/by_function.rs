//! Reads the files of frameworks whose calls are identified by the function that they enter.

use monitor_ebpf::{FINISH_SITES, GATES};
use toml::Spanned;

use super::{
    parts::{alternatives, below, equals, few, few_choices, field, metrics, symbol, way},
    spec::{CallSpec, Entry, ErrorEnd, KindSpec, ObjectOf, SitedFramework, SitedMessages, StatusSpec, Way},
    written::{
        CallPolicy, WrittenByFunction, WrittenCall, WrittenErrorEnd, WrittenMethods, WrittenStatus,
        WrittenStreams,
    },
};
use crate::{
    image::REGISTER_WORDS,
    specs::{
        ALTERNATIVES_MAX, OPERATIONS_MAX,
        go::entry,
        names,
        read::{Wrong, check, short, wrong},
        written::WrittenEnd,
    },
};

/// The maximum number of codes that a status can have.
const CODES_MAX: usize = 64;
/// The maximum length, in bytes, of a text that the programs compare.
const COMPARED_MAX: usize = 8;
/// The result word that holds the error where a finish has `given_by`: see [`crate::image::TestedCall`].
const GIVEN_ERROR: usize = 1;

pub(super) fn framework(written: &WrittenByFunction) -> Result<SitedFramework, Wrong> {
    let operations = written.operation.get_ref();
    // An operation and its substitute count once, since only one of the two is planned.
    let substitutes = operations.iter().filter(|operation| operation.get_ref().in_place_of.is_some()).count();
    few(&written.operation, OPERATIONS_MAX + substitutes.min(OPERATIONS_MAX))?;
    let mut calls: Vec<CallSpec> = Vec::new();
    let codes = written.status.codes.get_ref().iter().map(|code| code.get_ref().as_str()).collect::<Vec<_>>();
    for operation in operations {
        let call = call(operation, &codes)?;
        let WrittenCall { starts_as, in_place_of, .. } = operation.get_ref();
        let is_unknown = |of: &&Spanned<String>| !calls.iter().any(|call| call.name == *of.get_ref());
        if let Some(of) = starts_as.iter().chain(in_place_of).find(is_unknown) {
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

fn call(spanned: &Spanned<WrittenCall>, codes: &[&str]) -> Result<CallSpec, Wrong> {
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
    let path = |text: &Spanned<String>| below(text, text.get_ref(), &root);
    let conditions = written.only_if.iter().map(|condition| equals(condition, &root));
    Ok(CallSpec {
        name: short(&written.name)?,
        side: written.side.into(),
        start,
        finishes,
        variant_of: written.starts_as.as_ref().map(short).transpose()?,
        in_place_of: written.in_place_of.as_ref().map(short).transpose()?,
        object: ways(written, &root, spanned)?,
        key: written.key_at.as_ref().map(path).transpose()?,
        method: alternatives(&written.labels.method, &root)?,
        kind: kind(spanned, &root)?,
        first_finish: matches!(policy, CallPolicy::FirstFinish),
        not_within: written.not_within.as_ref().map(symbols).transpose()?.unwrap_or_default(),
        ends_once: written.ends_once.as_ref().map(|text| way(text, text.get_ref())).transpose()?,
        begins_if: written.begins_if.as_ref().map(|asked| equals(asked, &root)).transpose()?,
        first_if: written.first_if.as_ref().map(|asked| equals(asked, &root)).transpose()?,
        only_if: conditions.collect::<Result<_, _>>()?,
        error_ends: written.error_finish.as_ref().map_or(Ok(Vec::new()), |ends| error_ends(ends, codes))?,
        messages: written.messages.as_ref().map(methods).transpose()?.unwrap_or_default(),
    })
}

/// Returns the ends that are visible only as an error passed between two functions.
fn error_ends(
    written: &Spanned<Vec<Spanned<WrittenErrorEnd>>>,
    codes: &[&str],
) -> Result<Vec<ErrorEnd>, Wrong> {
    few(written, ALTERNATIVES_MAX)?;
    let end = |spanned: &Spanned<WrittenErrorEnd>| {
        let written = spanned.get_ref();
        check(&written.arguments, names::arguments(written.arguments.get_ref()))?;
        let number = codes.iter().position(|code| code == written.code.get_ref());
        let Some(code) = number.and_then(|number| u8::try_from(number).ok()) else {
            return wrong(&written.code, "there is no code of this name");
        };
        if *written.key.get_ref() >= REGISTER_WORDS {
            return wrong(&written.key, "the key must be in a register");
        }
        Ok(ErrorEnd {
            function: symbol(&written.function)?,
            arguments: written.arguments.get_ref().clone(),
            given_by: symbol(&written.given_by)?,
            object: *written.key.get_ref(),
            error: symbol(&written.error)?,
            code,
        })
    };
    written.get_ref().iter().map(end).collect()
}

/// Checks a list of function names.
fn symbols(written: &Spanned<Vec<Spanned<String>>>) -> Result<Vec<String>, Wrong> {
    few(written, ALTERNATIVES_MAX)?;
    written.get_ref().iter().map(symbol).collect()
}

/// Returns the methods through which the messages of streams go.
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

/// Returns the field that holds a call's description, and the two fields of the description that say who streams.
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

/// Returns the alternative functions, and the name that all of them give to the pointer that is the key.
fn ends(
    written: &Spanned<Vec<Spanned<WrittenEnd>>>,
    is_finish: bool,
) -> Result<(Vec<Entry>, Option<String>), Wrong> {
    few(written, ALTERNATIVES_MAX)?;
    let mut entries = Vec::new();
    let mut root: Option<String> = None;
    for spanned in written.get_ref() {
        let (name, found) = end(spanned, is_finish)?;
        if *root.get_or_insert_with(|| name.clone()) != name {
            return wrong(spanned, "the pointer that is the key has one name");
        }
        entries.push(found);
    }
    Ok((entries, root))
}

/// Returns a function, and the name that it gives to the pointer that is the key.
fn end(spanned: &Spanned<WrittenEnd>, is_finish: bool) -> Result<(String, Entry), Wrong> {
    let written = spanned.get_ref();
    let found = entry(&Spanned::new(spanned.span(), written.entry()), true, true)?;
    let given_by = written.given_by.as_ref().map(symbol).transpose()?;
    let words = &found.words;
    let is_key = |(_, word): &&(String, usize)| words.key == Some(*word);
    let Some((name, object)) = words.pointers.iter().find(is_key) else {
        return wrong(spanned, "the key is one of the pointers");
    };
    let error = written.error.as_ref().map(|word| *word.get_ref());
    if given_by.is_some() && (!is_finish || *object != 0 || error != Some(GIVEN_ERROR)) {
        let what = "where an error is given the key is the first argument, and the error is behind one word";
        return wrong(spanned, what);
    }
    let other = words.pointers.iter().find(|pointer| !is_key(pointer)).map(|(_, word)| *word);
    let second = match (other, error) {
        (None, Some(error)) if is_finish => error + 1,
        (Some(status), None) => status,
        (None, None) if !is_finish => *object,
        _ => return wrong(spanned, "a finish gets a status or an error, a start neither"),
    };
    let (name, object) = (name.clone(), *object);
    Ok((
        name,
        Entry { object, second, error, given_by, function: found.function, arguments: found.arguments },
    ))
}

fn kind(spanned: &Spanned<WrittenCall>, root: &str) -> Result<KindSpec, Wrong> {
    let written = spanned.get_ref();
    let is_unary = written.unary.as_ref().is_some_and(|unary| *unary.get_ref());
    let Some(WrittenStreams { client, server }) = &written.streams else {
        if is_unary {
            return Ok(KindSpec::Unary);
        }
        return wrong(spanned, "say which streams it has, or that it is unary");
    };
    if is_unary {
        return wrong(client, "what is unary has no streams");
    }
    let of = client.get_ref().split('.').next().unwrap_or_default();
    if written.starts_as.is_some() && of != root {
        return wrong(client, "what starts as another has its streams behind its key");
    }
    let (client, server) = (below(client, client.get_ref(), of)?, below(server, server.get_ref(), of)?);
    if of == root {
        return Ok(KindSpec::Object(client, server));
    }
    Ok(KindSpec::Second(ways(written, of, spanned)?, client, server))
}

/// Returns the ways to the type of a pointer.
fn ways(written: &WrittenCall, pointer: &str, spanned: &Spanned<WrittenCall>) -> Result<Vec<Way>, Wrong> {
    let Some(ways) = written.types.get(pointer) else {
        return wrong(spanned, format!("say of which type {pointer} is"));
    };
    few_choices(ways)?.iter().map(|text| way(ways, text)).collect()
}

fn status(written: &WrittenStatus) -> Result<StatusSpec, Wrong> {
    few(&written.codes, CODES_MAX)?;
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
