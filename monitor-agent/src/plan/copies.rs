//! Copies of a framework in an executable: published, vendored, or forked under another import path.
//!
//! A copy is identified by the functions that every call enters, whatever modules the build info lists.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ptr,
};

use super::{Refusal, Role, site::check_arguments};
use crate::{
    frameworks::{self, Framework, Home, MessageSpec, SitedFramework},
    image::{BuildInfo, Function, GoImage, ImageError},
};

/// The maximum number of copies. A program merged from others has a few.
const MAX_COPIES: usize = 16;
/// The maximum number of functions in all copies, similar names of other packages included. A copy has a few dozen.
const MAX_FUNCTIONS: usize = 1 << 12;

/// One copy of a framework.
pub(super) struct FrameworkCopy {
    /// Its path: the framework's module path, or another one.
    pub(super) module: String,
    /// Its path as symbols write it.
    prefix: String,
    /// The pair of start and finish functions that it has.
    home: &'static Home,
    /// The functions of the framework's description that exist under this path.
    pub(super) functions: Vec<Function>,
}

/// The result of a search for one framework.
pub(super) struct Survey {
    /// The copies, the published path first.
    pub(super) copies: Vec<FrameworkCopy>,
    /// Whether any function of the published path exists.
    pub(super) linked: bool,
}

impl FrameworkCopy {
    /// The symbol of the function with this role, whether or not it exists.
    pub(super) fn symbol(&self, framework: &Framework, role: Role) -> String {
        let name = match role {
            Role::Start => &self.home.start.name,
            Role::Finish => &self.home.finish.name,
            Role::Sent => &framework.messages.sent.name,
            Role::Received | Role::Entered => &framework.messages.received.name,
        };
        format!("{}/{name}", self.prefix)
    }

    /// Whether it has only functions named like an earlier home, with other arguments. Other libraries, such as
    /// Hertz, have such functions.
    fn is_another_library(&self, framework: &Framework, go: &GoImage<'_>) -> bool {
        let is_earlier = framework.homes.first().is_none_or(|latest| !ptr::eq(latest, self.home));
        let is_elsewhere = is_earlier && self.module != framework.module;
        is_elsewhere && matches!(self.check_arguments(go), Err(Refusal::WrongArguments { .. }))
    }

    /// Refuses start and finish functions whose arguments differ from the framework's, if the
    /// executable describes them.
    pub(super) fn check_arguments(&self, go: &GoImage<'_>) -> Result<(), Refusal> {
        let Home { start, finish } = self.home;
        [start, finish].into_iter().try_for_each(|function| self.check_function(function, go))
    }

    /// Does the same as [`check_arguments`](Self::check_arguments) for the functions that
    /// messages of streams go through.
    pub(super) fn check_message_arguments(
        &self,
        framework: &Framework,
        go: &GoImage<'_>,
    ) -> Result<(), Refusal> {
        let MessageSpec { sent, received, .. } = &framework.messages;
        [sent, received].into_iter().try_for_each(|function| self.check_function(function, go))
    }

    fn check_function(
        &self,
        frameworks::Function { name, arguments }: &frameworks::Function,
        go: &GoImage<'_>,
    ) -> Result<(), Refusal> {
        for function in self.functions.iter().filter(|function| prefix_of(&function.name, name).is_some()) {
            match check_arguments(function, arguments, go) {
                // The type word still proves what the function gets.
                Ok(_) | Err(Refusal::ArgumentsUntold(_)) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

/// Looks for copies of `framework`. Reads the function table once.
pub(super) fn survey(framework: &'static Framework, go: &GoImage<'_>) -> Result<Survey, ImageError> {
    let names: Vec<&str> = framework
        .homes
        .iter()
        .flat_map(|home| [&*home.start.name, &*home.finish.name])
        .chain([&*framework.messages.sent.name, &*framework.messages.received.name])
        .collect();
    let linked = Cell::new(false);
    let functions = go.some_functions_named(MAX_FUNCTIONS, &|symbol| {
        if below(symbol, &framework.module).is_some() {
            linked.set(true);
        }
        names.iter().any(|name| prefix_of(symbol, name).is_some())
    })?;
    let mut by_prefix: BTreeMap<String, Vec<Function>> = BTreeMap::new();
    for function in functions {
        let Some(prefix) = names.iter().find_map(|name| prefix_of(&function.name, name)) else { continue };
        by_prefix.entry(prefix.to_owned()).or_default().push(function);
    }
    if by_prefix.len() > MAX_COPIES {
        let what = format!("it has more than {MAX_COPIES} copies of {}", framework.name);
        return Err(ImageError::Malformed { what });
    }
    let mut copies: Vec<_> =
        by_prefix.into_iter().filter_map(|(prefix, functions)| copy(framework, prefix, functions)).collect();
    copies.retain(|copy: &FrameworkCopy| !copy.is_another_library(framework, go));
    copies.sort_by_key(|copy| copy.module != framework.module);
    Ok(Survey { copies, linked: linked.get() })
}

/// The copy under one prefix, with the home of which the most functions exist; `None` if no
/// function of any home does.
fn copy(framework: &'static Framework, prefix: String, functions: Vec<Function>) -> Option<FrameworkCopy> {
    let present = |home: &Home| {
        let has = |name| functions.iter().any(|function| prefix_of(&function.name, name).is_some());
        usize::from(has(&home.start.name)) + usize::from(has(&home.finish.name))
    };
    // `max_by_key` returns the last of equals: the newest home.
    let home = framework.homes.iter().rev().max_by_key(|home| present(home))?;
    if present(home) == 0 {
        return None;
    }
    Some(FrameworkCopy { module: unescape(&prefix), prefix, home, functions })
}

/// One copy of a framework whose calls are identified by the function that they enter.
pub(super) struct SitedCopy {
    /// Its path.
    pub(super) module: String,
    /// The framework's functions under this path, each with its name in the description.
    functions: Vec<(&'static str, Function)>,
    /// The functions of [`CallSpec::not_within`](crate::frameworks::CallSpec), with their closures.
    interim: Vec<(&'static str, Function)>,
    /// The described functions that exist only inlined into others.
    inlined: Vec<Inlined>,
}

/// A function that is inlined at every call.
struct Inlined {
    name: &'static str,
    symbol: String,
    /// One of the functions that it is inlined into.
    caller: String,
}

impl SitedCopy {
    /// Returns the function of this name; `None` if the release lacks it. Refuses one that is inlined at every call.
    pub(super) fn function(&self, name: &str) -> Result<Option<&Function>, Refusal> {
        if let Some(Inlined { symbol, caller, .. }) = self.inlined.iter().find(|inlined| inlined.name == name)
        {
            return Err(Refusal::Inlined { symbol: symbol.clone(), caller: caller.clone() });
        }
        let mut these = self.functions.iter().filter(|(of, _)| *of == name).map(|(_, function)| function);
        let first = these.next();
        match these.next() {
            None => Ok(first),
            Some(function) => Err(Refusal::FunctionTwice(function.name.clone())),
        }
    }

    /// Returns the `not_within` function of this name, and its closures.
    pub(super) fn interim(&self, name: &str) -> impl Iterator<Item = &Function> {
        self.interim.iter().filter(move |(of, _)| *of == name).map(|(_, function)| function)
    }

    /// Its symbol, without escapes.
    pub(super) fn symbol(&self, name: &str) -> String {
        let slash = if name.starts_with('.') { "" } else { "/" };
        format!("{}{slash}{name}", self.module)
    }
}

/// Looks for copies of a framework whose calls are identified by the function that they enter: package paths that
/// have at least one start function.
pub(super) fn survey_sited(
    framework: &'static SitedFramework,
    go: &GoImage<'_>,
) -> Result<Vec<SitedCopy>, ImageError> {
    let starts = || framework.calls.iter().flat_map(|call| &call.start).map(|entry| &*entry.function);
    let finishes = framework.calls.iter().flat_map(|call| &call.finishes).flatten();
    let messages = framework.calls.iter().flat_map(|call| &call.messages);
    let messages = messages.flat_map(|messages| [&*messages.sent, &*messages.received]);
    let finishes = finishes.flat_map(|entry| entry.given_by.as_deref().into_iter().chain([&*entry.function]));
    let error_ends = framework.calls.iter().flat_map(|call| &call.error_ends);
    let error_ends = error_ends.flat_map(|end| [&*end.function, &*end.given_by]);
    let mut names: Vec<&'static str> = starts().chain(finishes).chain(error_ends).chain(messages).collect();
    names.sort_unstable();
    names.dedup();
    let mut interim_names: Vec<&'static str> =
        framework.calls.iter().flat_map(|call| &call.not_within).map(|name| &**name).collect();
    interim_names.sort_unstable();
    interim_names.dedup();
    let functions = go.some_functions_named(MAX_FUNCTIONS, &|symbol| {
        names.iter().any(|name| before(symbol, name).is_some())
            || interim_names.iter().any(|name| before_or_around(symbol, name).is_some())
    })?;
    let mut by_path: BTreeMap<String, Vec<(&'static str, Function)>> = BTreeMap::new();
    let mut interim_by_path: BTreeMap<String, Vec<(&'static str, Function)>> = BTreeMap::new();
    let mut known = BTreeSet::new();
    for function in functions {
        let around = |name: &&'static str| Some((*name, unescape(before_or_around(&function.name, name)?)));
        if let Some((name, path)) = interim_names.iter().find_map(around) {
            // If there are two, calls may go through either. (Closures have names of their own.)
            if before(&function.name, name).is_some() && !known.insert(function.name.clone()) {
                let what = format!("it has function {} more than once", function.name);
                return Err(ImageError::Malformed { what });
            }
            interim_by_path.entry(path).or_default().push((name, function.clone()));
        }
        let found = names.iter().find_map(|name| Some((*name, unescape(before(&function.name, name)?))));
        let Some((name, path)) = found else { continue };
        by_path.entry(path).or_default().push((name, function));
    }
    // This reads all inlined calls, so it is skipped for programs that have nothing else of the framework.
    let mut inlined_by_path =
        if by_path.is_empty() { BTreeMap::new() } else { inlined(&[names, interim_names].concat(), go)? };
    for path in inlined_by_path.keys() {
        by_path.entry(path.clone()).or_default();
    }
    let is_start = |name: &str| starts().any(|start| start == name);
    by_path.retain(|path, functions| {
        let inlined = inlined_by_path.get(path).into_iter().flatten().map(|inlined| inlined.name);
        functions.iter().map(|(name, _)| *name).chain(inlined).any(is_start)
    });
    if by_path.len() > MAX_COPIES {
        let what = format!("it has more than {MAX_COPIES} copies of {}", framework.name);
        return Err(ImageError::Malformed { what });
    }
    let copies = by_path.into_iter().map(|(module, functions)| {
        let interim = interim_by_path.remove(&module).unwrap_or_default();
        let inlined = inlined_by_path.remove(&module).unwrap_or_default();
        SitedCopy { module, functions, interim, inlined }
    });
    let mut copies: Vec<_> = copies.collect();
    copies.sort_by_key(|copy| copy.module != framework.module);
    Ok(copies)
}

/// Finds functions of these names that are inlined at every call, by their paths.
fn inlined(names: &[&'static str], go: &GoImage<'_>) -> Result<BTreeMap<String, Vec<Inlined>>, ImageError> {
    let parted = |symbol: &str| names.iter().find_map(|name| Some((*name, unescape(before(symbol, name)?))));
    let functions = go.dissolved(&|symbol| parted(symbol).is_some())?;
    if functions.len() > MAX_FUNCTIONS {
        let what = format!("more than {MAX_FUNCTIONS} functions inlined into others have such names");
        return Err(ImageError::Malformed { what });
    }
    let mut by_path: BTreeMap<String, Vec<Inlined>> = BTreeMap::new();
    for function in functions {
        let Some((name, path)) = parted(&function.name) else { continue };
        let caller = go.dissolved_into(&function)?;
        by_path.entry(path).or_default().push(Inlined { name, symbol: function.name, caller });
    }
    Ok(by_path)
}

/// The module path before a name in a symbol. A name in the topmost package begins with a dot.
fn before<'a>(symbol: &'a str, name: &str) -> Option<&'a str> {
    if name.starts_with('.') {
        return symbol.strip_suffix(name).filter(|path| !path.is_empty() && !path.contains(['(', '[']));
    }
    prefix_of(symbol, name)
}

/// Does the same for a function of this name and its closures (`NAME.func1`, `NAME.deferwrap1` and so on).
fn before_or_around<'a>(symbol: &'a str, name: &str) -> Option<&'a str> {
    let at = symbol.find(name)?;
    let (function, rest) = symbol.split_at_checked(at + name.len())?;
    (rest.is_empty() || rest.starts_with('.')).then(|| before(function, name)).flatten()
}

/// Why a framework in the build info has no copy; `None` if the build info does not list it.
pub(super) fn absence(framework: &'static Framework, info: &BuildInfo, linked: bool) -> Option<Refusal> {
    let mut modules = info.main.iter().chain(&info.deps);
    modules.find(|module| module.path == framework.module)?;
    let homes: Vec<_> = framework.homes.iter().map(|home| &*home.start.name).collect();
    Some(if linked {
        Refusal::FunctionsMissing { module: &framework.module, functions: homes.join(" nor ") }
    } else {
        Refusal::NamesMissing(&framework.module)
    })
}

/// The version of the module at this path, which may be the main module. `unknown` if the build info has none, as for
/// sources vendored without modules, or for a directory that replaces a module.
pub(super) fn version(info: &BuildInfo, path: &str) -> String {
    let module = info.main.iter().chain(&info.deps).find(|module| module.path == path);
    let module = module.map(|module| module.replace.as_deref().unwrap_or(module));
    let version = module.map(|module| module.version.as_str()).filter(|version| !version.is_empty());
    version.unwrap_or("unknown").to_owned()
}

/// The release of `framework` that a copy is of. `unknown` unless the published module itself was built: forks and
/// modules that replace another number their versions as they like.
pub(super) fn release(framework: &Framework, info: &BuildInfo, copy: &FrameworkCopy) -> String {
    let mut modules = info.main.iter().chain(&info.deps);
    let is_replaced = modules.any(|module| module.path == copy.module && module.replace.is_some());
    let is_published = copy.module == framework.module && !is_replaced;
    if is_published { version(info, &copy.module) } else { "unknown".to_owned() }
}

/// What comes before `/NAME` in a symbol; `None` if that is empty.
fn prefix_of<'a>(symbol: &'a str, name: &str) -> Option<&'a str> {
    symbol.strip_suffix(name)?.strip_suffix('/').filter(|prefix| !prefix.is_empty())
}

/// What follows `PATH/` or `PATH.` in a symbol.
fn below<'a>(symbol: &'a str, path: &str) -> Option<&'a str> {
    symbol.strip_prefix(path)?.strip_prefix(['/', '.'])
}

/// Decodes a package path from a symbol, in which the linker writes unusual bytes as `%xx` (`objabi.PathToPrefix`).
pub(super) fn unescape(prefix: &str) -> String {
    let mut bytes = Vec::with_capacity(prefix.len());
    let mut rest = prefix.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.split_at_checked(2).filter(|_| first == b'%').and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = escaped.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).unwrap_or_else(|_| prefix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frameworks::known,
        image::{Image, Module, testing::GoFile},
    };

    fn function(name: &str) -> Function {
        Function { name: name.to_owned(), entry: 0, end: 0, record: 0 }
    }

    fn copy_of(prefix: &str, names: &[&str]) -> Option<FrameworkCopy> {
        let functions = names.iter().map(|name| function(&format!("{prefix}/{name}"))).collect();
        copy(&known().by_type[0], prefix.to_owned(), functions)
    }

    #[test]
    fn a_symbol_is_matched_whole() {
        let name = "pkg/rpcinfo.(*TraceController).DoStart";
        let vendored =
            "example.com/app/vendor/github.com/cloudwego/kitex/pkg/rpcinfo.(*TraceController).DoStart";
        assert_eq!(prefix_of(vendored, name), Some("example.com/app/vendor/github.com/cloudwego/kitex"));
        for other in [
            "x/pkg/rpcinfo.(*TraceController).DoStart.deferwrap1",
            "x/pkg/rpcinfo.(*TraceController).DoStart-fm",
            "x/mypkg/rpcinfo.(*TraceController).DoStart2",
            "xpkg/rpcinfo.(*TraceController).DoStart",
            "/pkg/rpcinfo.(*TraceController).DoStart",
            "pkg/rpcinfo.(*TraceController).DoStart",
            "x/pkg/rpcinfo.(*TraceController[...]).DoStart",
        ] {
            assert_eq!(prefix_of(other, name), None, "{other}");
        }
    }

    #[test]
    fn the_home_is_the_one_with_both_functions() {
        let symbol = |copy: &FrameworkCopy| copy.symbol(&known().by_type[0], Role::Start);
        let old = ["internal/stats.(*Controller).DoStart", "internal/stats.(*Controller).DoFinish"];
        let new = ["pkg/rpcinfo.(*TraceController).DoStart", "pkg/rpcinfo.(*TraceController).DoFinish"];
        let found = copy_of("a.b/c", &old).expect("a copy");
        assert_eq!(symbol(&found), "a.b/c/internal/stats.(*Controller).DoStart");
        let found = copy_of("a.b/c", &[new[0], old[0], old[1]]).expect("a copy");
        assert_eq!(symbol(&found), "a.b/c/internal/stats.(*Controller).DoStart");
        let found = copy_of("a.b/c", &[old, new].concat()).expect("a copy");
        assert_eq!(symbol(&found), "a.b/c/pkg/rpcinfo.(*TraceController).DoStart");
        assert!(copy_of("a.b/c", &["pkg/rpcinfo.(*TraceController).HandleStreamSendEvent"]).is_none());
    }

    /// A copy of gRPC-Go in a program that has one of its functions, and another one only inlined.
    fn sited_copy(there: &str, inlined: &str) -> SitedCopy {
        const NAME: &str = "github.com/cloudwego/kitex/pkg/rpcinfo.(*TraceController).DoStart";
        let path = "p".repeat(NAME.len() - there.len());
        let dissolved = Some(&*format!("{path}{inlined}").leak());
        let (mut file, _) = GoFile { kitex: true, dissolved, ..GoFile::of_release(26) }.build();
        let at = file.windows(NAME.len()).position(|bytes| bytes == NAME.as_bytes()).expect("the name");
        file[at..at + NAME.len()].copy_from_slice(format!("{path}{there}").as_bytes());
        let image = Image::parse(Box::new(file)).expect("an image");
        let go = image.go().expect("a Go image");
        let mut copies = survey_sited(&known().sited[0], &go).expect("copies");
        assert_eq!(copies.len(), 1);
        copies.remove(0)
    }

    #[test]
    fn what_is_inlined_everywhere_is_not_what_a_release_does_not_have() {
        let (start, giver) = (".(*Server).processUnaryRPC", ".(*Server).sendResponse");
        for (there, gone) in [(start, giver), (giver, start)] {
            let copy = sited_copy(there, gone);
            assert!(copy.function(there).is_ok_and(|function| function.is_some()), "{there}");
            let why = copy.function(gone).expect_err("a refusal").to_string();
            assert!(why.contains(&format!("{gone} is inlined into example.com/pkg.leaf")), "{why}");
            assert!(copy.function(".(*Server).processRPC").is_ok_and(|function| function.is_none()));
        }
    }

    #[test]
    fn unusual_bytes_of_a_path_are_escaped_in_symbols() {
        assert_eq!(unescape("gopkg.in/a%2eb"), "gopkg.in/a.b");
        assert_eq!(unescape("a%c3%bc"), "aü");
        for same in ["github.com/cloudwego/kitex", "a%", "a%2", "a%zz", "a%ff"] {
            assert_eq!(unescape(same), same);
        }
    }

    #[test]
    fn a_version_is_that_of_what_was_built() {
        let module = |path: &str, version: &str| Module {
            path: path.to_owned(),
            version: version.to_owned(),
            replace: None,
        };
        let replaced =
            |path: &str, by: Module| Module { replace: Some(Box::new(by)), ..module(path, "v1.0.0") };
        let info = BuildInfo {
            main: Some(module("main", "(devel)")),
            deps: vec![
                module("plain", "v1.2.3"),
                replaced("forked", module("fork", "v9.9.9")),
                replaced("local", module("../local", "")),
            ],
            ..BuildInfo::default()
        };
        let versions = ["main", "plain", "forked", "fork", "local", "main/vendor/plain"]
            .map(|path| version(&info, path));
        assert_eq!(versions, ["(devel)", "v1.2.3", "v9.9.9", "unknown", "unknown", "unknown"]);
    }

    #[test]
    fn the_release_is_that_of_the_published_module_only() {
        let framework = &known().by_type[0];
        let names = ["pkg/rpcinfo.(*TraceController).DoStart", "pkg/rpcinfo.(*TraceController).DoFinish"];
        let release_of = |path: &str, replace: Option<(&str, &str)>| {
            let module = |path: &str, version: &str| Module {
                path: path.to_owned(),
                version: version.to_owned(),
                replace: None,
            };
            let by = replace.map(|(path, version)| Box::new(module(path, version)));
            let built = Module { replace: by, ..module(path, "v0.12.4") };
            let info = BuildInfo { deps: vec![built], ..BuildInfo::default() };
            release(framework, &info, &copy_of(path, &names).expect("a copy"))
        };
        assert_eq!(release_of(&framework.module, None), "v0.12.4");
        for by in
            [("corp.example/kitex", "v1.4.0"), ("corp.example/kitex", "v0.0.0-20260102030405-0123456789ab")]
        {
            assert_eq!(release_of(&framework.module, Some(by)), "unknown");
        }
        assert_eq!(release_of("corp.example/kitex", None), "unknown");
    }

    #[test]
    fn a_framework_that_is_only_named_is_refused_with_the_reason() {
        let framework = &known().by_type[0];
        let info = BuildInfo {
            deps: vec![Module { path: framework.module.clone(), ..Module::default() }],
            ..BuildInfo::default()
        };
        assert!(matches!(absence(framework, &info, true), Some(Refusal::FunctionsMissing { .. })));
        assert!(matches!(absence(framework, &info, false), Some(Refusal::NamesMissing(_))));
        assert!(absence(framework, &BuildInfo::default(), true).is_none());
    }
}
