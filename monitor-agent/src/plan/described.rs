//! Operations that a user's spec describes, proven in an executable.

use std::{collections::BTreeSet, sync::Arc};

use monitor_ebpf::{
    ANY_SITE, FINISH_SITES, KeyKind, LABELS, NO_SCRATCH, Register, Shape, Sited, outcome, policy, stream,
    window_use,
};

use super::{
    Refusal, Role, Site,
    alternatives::{Alternatives, any_of, one_kind, passed_over},
    copies,
    layout::{Needs, Nodes, Place, ROOT, STATUS, as_program},
    recipe::argument,
    resolve::{Resolver, ends_in},
    shape::{Walk, side_code},
    site::{Sites, check_arguments},
};
use crate::{
    image::{A_WRAPPER, Dissolved, Function, GoImage, Image, StandIn},
    specs::{Entry, Finish, Key, Operation, Policy, Side, Source, Spec, Words, steps_of},
};

/// An operation: its sites, and where its values lie at a hit.
#[derive(Clone, Debug)]
pub(super) struct Described {
    /// Its index in the spec.
    number: usize,
    /// Separates its calls from those of other operations in the programs' table of calls in flight.
    apart: u8,
    spec: Arc<Spec>,
    /// The addresses of the sites, and the registers that hold the values there.
    starts: Vec<u64>,
    start_key: Register,
    finishes: Vec<u64>,
    end: Words,
    nodes: Nodes,
    /// The strings among its labels, in the order of the labels.
    texts: Vec<Place>,
    number_at: Option<(Place, u8)>,
}

/// The operations of a spec that an executable has, their sites with the finishes first, and notes about the others.
pub(super) struct Found {
    pub(super) operations: Vec<Described>,
    pub(super) sites: Vec<Site>,
    pub(super) notes: Vec<String>,
}

/// The names of the types on a spec's paths.
pub(super) fn types(spec: &Spec) -> Vec<&str> {
    spec.operations.iter().flat_map(types_of).collect()
}

fn types_of(operation: &Operation) -> Vec<&str> {
    let steps = operation.labels.iter().filter_map(Source::path).flat_map(steps_of);
    let held = steps.filter_map(|step| step.strip_prefix("(*")?.strip_suffix(')'));
    operation.types.values().map(String::as_str).chain(held).collect()
}

/// Finds and proves everything that a spec names. If it has several operations, a missing one becomes a note.
pub(super) fn find(
    spec: &Arc<Spec>,
    (image, go): (&Image, &GoImage<'_>),
    resolver: &mut Resolver<'_>,
) -> Result<Found, Refusal> {
    let entries = || spec.operations.iter().flat_map(Operation::entries);
    let is_named = |symbol: &str| {
        let names = names_of(symbol);
        entries().any(|entry| means(entry, &names))
    };
    let functions = go.functions_named(&|symbol| {
        let names = names_of(symbol);
        symbol == A_WRAPPER || entries().any(|entry| means(entry, &names) || lacks_path(entry, &names))
    })?;
    let (wrapper, dissolved) = (go.wrapper_id(&functions)?, go.dissolved(&is_named)?);
    let mut finder = Finder { functions, wrapper, dissolved, sites: Sites::new(image, go) };
    let Alternatives { found: operations, mut notes } = Alternatives::find(&spec.operations, |number, _| {
        finder.operation(spec, usize::from(number), resolver)
    })?;
    let is_elsewhere = |one: &Described, number: u8| {
        let other = resolver.forgetting(|resolver| finder.operation(spec, usize::from(number), resolver));
        other.is_ok_and(|other| one.has_not_all_of(&other))
    };
    notes.extend(passed_over(spec, &operations, |one| one.number, is_elsewhere));
    let mut found = Found { operations, sites: Vec::new(), notes };
    check_sites(&found.operations)?;
    set_apart(&mut found.operations);
    found.sites = finder.sites.found;
    let used = |site: &Site| found.operations.iter().any(|operation| operation.has(site));
    let is_used: Vec<_> = found.sites.iter().map(used).collect();
    let mut is_used = is_used.into_iter();
    found.sites.retain(|_| is_used.next().unwrap_or_default());
    found.sites.sort_by_key(|site| site.role == Role::Start);
    let place = spec.operations.first().and_then(|operation| operation.start.first());
    one_kind(&found.sites).map_err(|why| why.at(spec, place.map_or(0, |entry| entry.place)))?;
    Ok(found)
}

/// The names of a function: its symbol, as `go tool nm` prints it, and the symbol without escapes. They differ only
/// if the last part of the package's import path has a character such as the dot in `gopkg.in/yaml.v3`.
fn names_of(symbol: &str) -> [String; 2] {
    [symbol.to_owned(), copies::unescape(symbol)]
}

/// Whether an entry matches a function with these names.
fn means(entry: &Entry, names: &[String; 2]) -> bool {
    names.iter().any(|name| entry.is_like(name))
}

/// Whether the name in an entry only lacks the beginning of the package path of a function with these names.
fn lacks_path(entry: &Entry, names: &[String; 2]) -> bool {
    entry.at_most.is_none() && names.iter().any(|name| ends_in(name, &entry.function))
}

/// Refuses operations that the entered function can't distinguish. Each finish must belong to one operation only, and
/// operations that start at the same site must have the same key.
fn check_sites(operations: &[Described]) -> Result<(), Refusal> {
    for (index, one) in operations.iter().enumerate() {
        for other in operations.iter().take(index) {
            let finishes = one.finishes.iter().any(|site| other.finishes.contains(site));
            let starts = one.starts.iter().any(|site| other.starts.contains(site));
            if finishes || (starts && one.way_to_start() != other.way_to_start()) {
                let names = [one, other].map(|of| of.operation().map_or("", |found| &found.name).to_owned());
                let [name, other] = names;
                return Err(Refusal::NotApart(other, name).at(&one.spec, one.place(finishes)));
            }
        }
    }
    Ok(())
}

/// Numbers the operations for the table of calls in flight. Operations that start at the same site share a number,
/// because their calls are the same until they finish. All others have different numbers: one object, number or
/// goroutine may be in several of them at once, nested or one after the other.
fn set_apart(operations: &mut [Described]) {
    for index in 0..operations.len() {
        let Some((one, before)) = operations.get_mut(..=index).and_then(<[_]>::split_last_mut) else {
            return;
        };
        let same = before.iter().find(|other| one.starts.iter().any(|site| other.starts.contains(site)));
        one.apart = same.map_or_else(|| u8::try_from(index).unwrap_or_default(), |other| other.apart);
    }
}

/// Whether the compiler has generated a function from one of `functions`: from a part of it (a closure, the body of a
/// loop over a function, what `go` or `defer` calls), or to call it (a method value). Its calls are not calls of the
/// operation. Wrappers with ordinary names are found by [`GoImage::stand_in`].
fn is_made_of(name: &str, functions: &BTreeSet<&str>) -> bool {
    let is_one = |(at, _): (usize, &str)| name.get(..at).is_some_and(|of| functions.contains(of));
    let suffixes = [".func", "-range", ".gowrap", ".deferwrap", "-fm"];
    suffixes.into_iter().any(|suffix| name.match_indices(suffix).any(is_one))
}

struct Finder<'a> {
    /// The functions that an entry matches, or would match with the whole path of the package.
    functions: Vec<Function>,
    /// The function id that the runtime gives to compiler-generated wrappers.
    wrapper: Option<u8>,
    /// The matching functions that exist only inlined into others.
    dissolved: Vec<Dissolved>,
    sites: Sites<'a>,
}

impl Finder<'_> {
    fn operation(
        &mut self,
        spec: &Arc<Spec>,
        number: usize,
        resolver: &mut Resolver<'_>,
    ) -> Result<Described, Refusal> {
        let operation = spec.operations.get(number).ok_or(Refusal::NoShape)?;
        let (start, entered) = self.choose(&operation.start, spec)?;
        let mut starts = Vec::new();
        for function in &entered {
            let site = self.sites.at_entry(Role::Start, function);
            starts.push(site.map_err(|why| why.at(spec, start.place))?);
        }
        let (end, finishes) = match &operation.finish {
            Finish::Entered(entries) => {
                let (finish, left) = self.choose(entries, spec)?;
                let is_start = |function: &&Function| entered.iter().any(|one| one.entry == function.entry);
                // The order of two probes at one address is unknown. With different keys it does not matter.
                if start.words.key == finish.words.key
                    && let Some(function) = left.iter().find(is_start)
                {
                    return Err(Refusal::StartAndFinish(function.name.clone()).at(spec, finish.place));
                }
                let sites = left.iter().map(|function| self.sites.at_entry(Role::Finish, function));
                let sites = sites.collect::<Result<Vec<_>, _>>().map_err(|why| why.at(spec, finish.place))?;
                (finish.words.clone(), sites)
            }
            Finish::Returned(words) => {
                let mut finishes = Vec::new();
                for function in &entered {
                    let sites = self.sites.at_returns(function);
                    finishes.extend(sites.map_err(|why| why.at(spec, start.place))?);
                }
                (words.clone(), finishes)
            }
        };
        let several = starts.len() > 1 || finishes.len() > FINISH_SITES;
        if several && spec.operations.len() > 1 {
            return Err(Refusal::TooMuch("sites of one among several operations"));
        }
        let start_key = register(start.words.key)?;
        let described = Described {
            number,
            apart: 0,
            spec: Arc::clone(spec),
            starts,
            start_key,
            finishes,
            end,
            nodes: Nodes::with_arguments(),
            texts: Vec::new(),
            number_at: None,
        };
        described.with_labels(operation, resolver)
    }

    /// Returns the first entry that exists with its arguments, and the functions that it matches. Refuses it if a
    /// function that it or an earlier entry matches is inlined at every call, since those calls would be missed.
    fn choose<'b>(&self, entries: &'b [Entry], spec: &Spec) -> Result<(&'b Entry, Vec<Function>), Refusal> {
        let mut refusal = None;
        let mut hidden = None;
        for entry in entries {
            let is_meant = |name: &str| means(entry, &names_of(name));
            let meant = self.functions.iter().filter(|function| is_meant(&function.name));
            let meant: Vec<_> = meant.collect();
            let names: BTreeSet<_> = meant.iter().map(|function| function.name.as_str()).collect();
            let found = meant.iter().copied().filter(|function| !is_made_of(&function.name, &names));
            let (found, none) = self.written(found)?;
            let is_hidden = |name: &str| is_meant(name) && !is_made_of(name, &names);
            let dissolved = self.dissolved.iter().find(|function| is_hidden(&function.name));
            hidden = hidden.or_else(|| Some((entry, dissolved?)));
            if found.is_empty() {
                refusal = none.map(|why| why.at(spec, entry.place)).or(refusal);
                continue;
            }
            let limit = entry.at_most.unwrap_or(1);
            if found.len() > limit {
                let pattern = entry.function.clone();
                let why = Refusal::TooManyFunctions { pattern, found: found.len(), limit };
                return Err(why.at(spec, entry.place));
            }
            match found.iter().try_for_each(|function| self.check_arguments(function, entry)) {
                Ok(()) if hidden.is_none() => return Ok((entry, found)),
                Ok(()) => break,
                Err(why) if why.is_about_arguments() || matches!(why, Refusal::Generic(_)) => {
                    refusal = Some(why.at(spec, entry.place));
                }
                Err(why) => return Err(why),
            }
        }
        if let Some((entry, function)) = hidden {
            let caller = self.sites.go.dissolved_into(function)?;
            return Err(Refusal::Inlined { symbol: function.name.clone(), caller }.at(spec, entry.place));
        }
        Err(refusal.unwrap_or_else(|| self.missing(entries, spec)))
    }

    /// Why none of the entries exists. If a name only lacks the beginning of its package path, the
    /// refusal gives the full name.
    fn missing(&self, entries: &[Entry], spec: &Spec) -> Refusal {
        let longer = entries.iter().find_map(|entry| {
            let is_longer = |function: &&Function| lacks_path(entry, &names_of(&function.name));
            let mut candidates = self.functions.iter().filter(is_longer);
            // With several candidates, it is unknown which one was meant.
            let only = candidates.next().filter(|_| candidates.next().is_none())?;
            Some((entry, only.name.clone()))
        });
        if let Some((entry, full)) = longer {
            let name = entry.function.clone();
            return Refusal::FunctionElsewhere { name, full }.at(spec, entry.place);
        }
        let place = entries.first().map_or(0, |entry| entry.place);
        Refusal::FunctionMissing(any_of(entries.iter().map(|entry| entry.function.as_str()))).at(spec, place)
    }

    /// The functions that have Go code of their own, and a refusal for one of the others.
    fn written<'b>(
        &self,
        functions: impl Iterator<Item = &'b Function>,
    ) -> Result<(Vec<Function>, Option<Refusal>), Refusal> {
        let mut written = Vec::new();
        let mut other = None;
        for function in functions {
            let symbol = || function.name.clone();
            match self.sites.go.stand_in(function, self.wrapper)? {
                None => written.push(function.clone()),
                // The compiler generates a wrapper of the same name. The refusal must be about the function itself.
                Some(StandIn::Assembly) => other = Some(Refusal::Assembly(symbol())),
                Some(StandIn::Wrapper) => other = other.or_else(|| Some(Refusal::Wrapper(symbol()))),
            }
        }
        Ok((written, other))
    }

    fn check_arguments(&self, function: &Function, entry: &Entry) -> Result<(), Refusal> {
        // For a function with type arguments in its name, the executable leaves out the first argument, on the
        // assumption that it is the dictionary. But in methods the dictionary comes after the receiver, and closures
        // get none (`EmitArgInfo` in cmd/compile/internal/ssagen/ssa.go @ go1.18 to go1.27).
        if !entry.arguments.is_empty() && function.name.contains('[') {
            return Err(Refusal::Generic(function.name.clone()));
        }
        check_arguments(function, &entry.arguments, self.sites.go)?;
        Ok(())
    }
}

/// Returns the register of a word; `None` stands for the goroutine.
fn register(word: Option<usize>) -> Result<Register, Refusal> {
    word.map_or(Ok(Register::R14), argument)
}

impl Described {
    pub(super) fn operation(&self) -> Option<&Operation> {
        self.spec.operations.get(self.number)
    }

    /// Whether a site belongs to this operation.
    pub(super) fn has(&self, site: &Site) -> bool {
        let addresses = if site.role == Role::Start { &self.starts } else { &self.finishes };
        addresses.contains(&site.address)
    }

    /// Whether the other operation has a start or finish that this one lacks.
    fn has_not_all_of(&self, other: &Self) -> bool {
        let is_new = |own: &[u64], others: &[u64]| others.iter().any(|address| !own.contains(address));
        is_new(&self.starts, &other.starts) || is_new(&self.finishes, &other.finishes)
    }

    /// What a hit of its start site means. Operations that share the site must agree on it.
    fn way_to_start(&self) -> Option<(Register, Key, Policy, Side)> {
        let operation = self.operation()?;
        Some((self.start_key, operation.key, operation.policy, operation.side))
    }

    /// The byte in the file where its first start is, or its first finish if that is another function.
    fn place(&self, finish: bool) -> usize {
        let Some(operation) = self.operation() else { return 0 };
        let entry = operation.finishes().first().filter(|_| finish).or(operation.start.first());
        entry.map_or(0, |entry| entry.place)
    }

    /// Follows the paths of its labels. All types that it names must exist.
    fn with_labels(mut self, operation: &Operation, resolver: &mut Resolver<'_>) -> Result<Self, Refusal> {
        for (name, place) in operation.types.values().zip(&operation.type_places) {
            resolver.type_named(name).map_err(|why| why.at(&self.spec, *place))?;
        }
        let nodes = std::mem::replace(&mut self.nodes, Nodes::with_arguments());
        let mut walk = Walk { nodes, root: ROOT, object: 0, resolver };
        for (source, place) in operation.labels.iter().zip(&operation.label_places) {
            self.follow(source, operation, &mut walk).map_err(|why| why.at(&self.spec, *place))?;
        }
        self.nodes = walk.nodes;
        Ok(self)
    }

    /// Follows the path of a label, if it has one.
    fn follow(
        &mut self,
        source: &Source,
        operation: &Operation,
        walk: &mut Walk<'_, '_>,
    ) -> Result<(), Refusal> {
        let Some(path) = source.path() else { return Ok(()) };
        let (name, fields) = path.split_once('.').unwrap_or((path, ""));
        let index = self.end.pointers.iter().position(|(pointer, _)| pointer == name);
        walk.root = if index == Some(0) { ROOT } else { STATUS };
        let type_name = operation.types.get(name).map_or("", String::as_str);
        walk.object = walk.resolver.type_named(type_name)?;
        if matches!(source, Source::Name(_)) {
            self.texts.push(walk.text(fields)?);
        } else {
            let (place, width) = walk.shown_number(fields)?;
            if operation.signed && width < 4 {
                return Err(Refusal::wrong_type(
                    fields,
                    "a number of 1 byte",
                    "one of 4 or 8 bytes, as signed needs it",
                ));
            }
            self.number_at = Some((place, width));
        }
        Ok(())
    }

    /// Returns the shape for a process whose executable is loaded `bias` bytes above its link-time addresses.
    pub(super) fn to_shape(&self, bias: u64) -> Result<Shape, Refusal> {
        let Some(operation) = self.operation() else { return Err(Refusal::NoShape) };
        let first_label = operation.label_places.first().copied().unwrap_or_default();
        let too_much = |why: Refusal| why.at(&self.spec, first_label);
        let windows = self.needs().windows(None).map_err(too_much)?;
        let mut labels = [NO_SCRATCH; LABELS];
        for (label, place) in labels.iter_mut().zip(&self.texts) {
            *label = windows.at(*place);
        }
        let pointer = |index: usize| self.end.pointers.get(index).map(|(_, word)| *word);
        let told = self.end.error.or(self.end.number);
        let [start] = addresses(&self.starts, bias);
        let mut sited = Sited {
            start,
            finishes: addresses(&self.finishes, bias),
            start_key: self.start_key as u8,
            finish_key: register(self.end.key)? as u8,
            finish_object: register(pointer(0))? as u8,
            finish_argument: register(pointer(1))? as u8,
            finish_error: register(told)? as u8,
            outcome: match (self.end.error, self.end.number) {
                (Some(_), _) => outcome::ERROR,
                (None, Some(_)) => outcome::NUMBER,
                (None, None) => outcome::NONE,
            },
            kind: stream::FIRST_OPERATION + u8::try_from(self.number).unwrap_or_default(),
            policy: policy::KIND_AT_FINISH | policy(operation.policy),
            apart: self.apart,
            ..Sited::UNUSED
        };
        if let Some((place, width)) = self.number_at {
            sited.code_at = windows.at(place);
            sited.number_width = width;
        } else if self.end.number.is_some() {
            sited.number_width = self.end.number_width;
        }
        let key = match (operation.key, operation.policy) {
            // A call that a panic leaves must not pass its start on to another call. Such an operation is the only
            // one of its spec.
            _ if matches!(operation.finish, Finish::Returned(_)) => KeyKind::Frame,
            (_, Policy::Nested) => KeyKind::GoroutineUnlessStreaming,
            // A pointer may be nil, which the key of an object never is.
            (Key::Number | Key::Pointer, _) => KeyKind::Number,
            (Key::Goroutine | Key::Thread | Key::Int, _) => KeyKind::Object,
        };
        let windows = as_program(bias, [&windows]).map_err(too_much)?;
        Ok(Shape { side: side_code(operation.side), key: key as u8, labels, windows, sited, ..Shape::UNUSED })
    }

    fn needs(&self) -> Needs<'_> {
        let mut needs = Needs::new(&self.nodes);
        for place in &self.texts {
            needs.add(*place, 16, window_use::FINISH);
        }
        if let Some((place, width)) = self.number_at {
            needs.add(place, u64::from(width), window_use::FINISH);
        }
        needs
    }
}

/// The addresses of sites in the target. If there are more than fit, [`ANY_SITE`] in all places.
fn addresses<const N: usize>(sites: &[u64], bias: u64) -> [u64; N] {
    if sites.len() > N {
        return [ANY_SITE; N];
    }
    std::array::from_fn(|index| sites.get(index).map_or(0, |address| address.wrapping_add(bias)))
}

fn policy(policy: Policy) -> u8 {
    match policy {
        Policy::Overwrite | Policy::Nested => 0,
        Policy::FirstStart => policy::FIRST_START,
        Policy::FirstFinish => policy::FIRST_FINISH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::testing::GoFile,
        plan::{Inspection, Plan},
        specs::{Specs, read},
    };

    const START: &str = "github.com/cloudwego/kitex/pkg/rpcinfo.(*TraceController).DoStart";

    /// An operation with alternative start functions.
    fn operation<const N: usize>(name: &str, starts: [&str; N]) -> String {
        let finish = START.replace("Start", "Finish");
        let starts = starts.map(|start| format!("[[operation.start]]\nfunction = \"{start}\"\n")).concat();
        format!(
            "[[operation]]\nname = \"{name}\"\nkey = \"goroutine\"\n{starts}[[operation.finish]]\nfunction = \"{finish}\"\n"
        )
    }

    /// The notes on these operations in a program that has the function `dissolved` only inlined into another; or why
    /// there is no plan.
    fn planned(dissolved: &'static str, operations: &str) -> Result<String, String> {
        let dissolved = Some(dissolved);
        let file = GoFile { kitex: true, dissolved, ..GoFile::of_release(26) };
        planned_in(&file, operations).map(|plan| plan.notes.join("\n"))
    }

    fn planned_in(file: &GoFile, operations: &str) -> Result<Plan, String> {
        let (file, _) = file.build();
        let image = Image::parse(Box::new(file)).expect("an image");
        let text = format!("name = \"any\"\n{operations}");
        let spec = read("any.toml", &text).unwrap_or_else(|error| panic!("{error}"));
        let specs = Specs::of(vec![spec]).expect("one goes with itself");
        let found = Inspection::of_specs(&image, &specs).expect("a Go program").frameworks.remove(0);
        found.plan.map_err(|why| why.to_string())
    }

    #[test]
    fn a_function_of_which_nothing_is_left_is_not_taken_for_one_that_is_not_there() {
        let pattern = START.replace("DoStart", "DoS*");
        let pattern = operation("a", [&pattern]).replace("DoS*\"", "DoS*\"\nat_most = 2");
        for operations in [operation("a", [START]), operation("a", [START, "main.gone"]), pattern.clone()] {
            let notes = planned("main.gone", &operations).expect("a plan");
            assert!(!notes.contains("main.gone"), "{notes}");
        }
        let gone = operation("a", ["main.gone"]);
        for (dissolved, operations) in [
            // Otherwise only the other matches, or another instance of the same name, would be counted.
            ("github.com/cloudwego/kitex/pkg/rpcinfo.(*TraceController).DoStop", pattern),
            (START, operation("a", [START])),
            // Otherwise the existing function would pass for that of another release.
            ("main.gone", operation("a", ["main.gone", START])),
            ("main.gone", [gone.clone(), operation("a", [START])].concat()),
            ("main.gone", gone.clone()),
        ] {
            let why = planned(dissolved, &operations).expect_err("a refusal");
            assert!(why.contains(&format!("{dissolved} is inlined into example.com/pkg.leaf")), "{why}");
        }
        let notes = planned("main.gone", &[gone, operation("b", [START])].concat()).expect("a plan");
        assert!(notes.contains("a is not watched (function main.gone is inlined into"), "{notes}");
    }

    #[test]
    fn arguments_of_which_the_executable_says_nothing_are_not_those_of_a_description() {
        let file = GoFile { kitex: true, ..GoFile::of_release(26) };
        let plain = operation("a", [START]);
        let told = plain.replacen("DoStart\"", "DoStart\"\narguments = \"w\"", 1);
        let why = planned_in(&file, &told).expect_err("a refusal");
        assert!(why.contains(&format!("doesn't say which arguments function {START} has")), "{why}");
        // The other description of the operation names no arguments.
        assert!(planned_in(&file, &[told, plain].concat()).is_ok());
    }

    #[test]
    fn a_second_operation_of_a_name_is_told_of_where_it_starts_elsewhere() {
        let file = GoFile { kitex: true, ..GoFile::of_release(26) };
        let first = operation("a", [START]);
        let plan = planned_in(&file, &first.repeat(2)).expect("a plan");
        let told = "a is described a second time (any.toml:13:12)";
        let is_told = |plan: &Plan| plan.notes.iter().any(|note| note.starts_with(told));
        assert!(!is_told(&plan), "{:?}", plan.notes);
        let other = operation("a", ["example.com/pkg.(*T).Do"]);
        let plan = planned_in(&file, &[first, other].concat()).expect("a plan");
        assert!(is_told(&plan), "{:?}", plan.notes);
        assert!(plan.sites.iter().all(|site| !site.symbol.ends_with("Do")), "{:?}", plan.sites);
    }

    #[test]
    fn who_leaves_out_the_beginning_of_a_path_is_told_the_whole_name() {
        const CODE: &[u8] = &[0x55, 0x5d, 0xc3, 0xcc];
        let mut file = GoFile { kitex: true, ..GoFile::of_release(26) };
        let short = operation("a", ["main.gone", "pkg.(*T).Do"]);
        let why = planned_in(&file, &short).expect_err("a refusal");
        let whole =
            "any.toml:8:12: function pkg.(*T).Do is not in the executable, but example.com/pkg.(*T).Do is";
        assert!(why.contains(whole), "{why}");
        // Two functions match.
        file.more = vec![("example.net/pkg.(*T).Do", CODE)];
        let why = planned_in(&file, &short).expect_err("a refusal");
        let is_plain = why.contains("function main.gone (or pkg.(*T).Do) is not in the executable");
        assert!(is_plain && !why.contains(", but "), "{why}");
    }

    #[test]
    fn what_is_made_of_a_function_is_told_by_its_name() {
        let functions = BTreeSet::from(["main.run", "main.(*T).run"]);
        for made in [
            "main.run.func1",
            "main.run.func2.1",
            "main.run.func1.gowrap1",
            "main.run-range1",
            "main.run.gowrap1",
            "main.run.deferwrap2",
            "main.(*T).run-fm",
        ] {
            assert!(is_made_of(made, &functions), "{made}");
        }
        for other in ["main.run", "main.runAll", "main.run.Func", "main.walk.func1", ".func1"] {
            assert!(!is_made_of(other, &functions), "{other}");
        }
    }

    #[test]
    fn what_is_made_of_a_function_is_not_counted_with_it() {
        const CODE: &[u8] = &[0x55, 0x5d, 0xc3, 0xcc];
        let more = vec![
            ("example.com/pkg.(*T).Do.func1", CODE),
            ("example.com/pkg.(*T).Do.deferwrap1", CODE),
            ("example.com/pkg.(*T).Do-fm", CODE),
        ];
        let file = GoFile { kitex: true, more, ..GoFile::of_release(26) };
        let all = operation("a", ["example.com/pkg.(*T).*"]).replace("*\"", "*\"\nat_most = 1");
        let plan = planned_in(&file, &all).expect("a plan");
        let starts: Vec<_> = plan.sites.iter().filter(|site| site.role == Role::Start).collect();
        let is_do = matches!(starts.as_slice(), [site] if site.symbol == "example.com/pkg.(*T).Do");
        assert!(is_do, "{starts:?}");
        // If it is named itself, it is a function like any other.
        let one = operation("a", ["example.com/pkg.(*T).Do.func1"]);
        assert!(planned_in(&file, &one).is_ok());
    }

    #[test]
    fn functions_are_known_as_symbols_and_as_they_are_imported() {
        let is_meant = |function: &str, at_most: Option<usize>| {
            let (function, arguments, words) = (function.to_owned(), String::new(), Words::default());
            let entry = Entry { function, at_most, arguments, words, place: 0 };
            means(&entry, &names_of("gopkg.in/yaml%2ev3.(*Decoder).Decode"))
        };
        assert!(is_meant("gopkg.in/yaml%2ev3.(*Decoder).Decode", None));
        assert!(is_meant("gopkg.in/yaml.v3.(*Decoder).Decode", None));
        assert!(is_meant("gopkg.in/yaml%2ev3.(*Decoder).*", Some(9)));
        assert!(is_meant("gopkg.in/yaml.v3.(*Decoder).*", Some(9)));
        assert!(!is_meant("gopkg.in/yaml.v2.(*Decoder).Decode", None));
        assert!(!is_meant("gopkg.in/yaml%2ev2.*", Some(9)));
    }
}
