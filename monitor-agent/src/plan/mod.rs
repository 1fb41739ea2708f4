//! Plans: a framework's names, found and proven in one executable.
//!
//! A plan is all that the kernel side will ever see of a framework: sites, and a recipe made of registers,
//! offsets and type words. It carries the evidence for every number in it. `inspect` prints a plan, `run`
//! attaches one; nothing else lies between knowing and doing.

mod layout;
mod refusal;
mod resolve;
mod site;

use std::ops::Range;

use monitor_ebpf::{KeyKind, MAX_SHAPES, Recipe, Register, TagMap, side};
use serde::Serialize;

pub use layout::ShapePlan;
pub use refusal::Refusal;
pub use site::{Role, Site, cost_name};

use crate::{
    frameworks::{FRAMEWORKS, Framework, Key, Side},
    image::{BuildInfo, Function, GoImage, Image, ImageError, go_entry_site},
};

/// A number of a plan, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offset {
    /// What it is the offset of: `type.field`, or the itab of a pair of types.
    pub name: String,
    /// The number.
    pub value: u64,
    /// What proves it.
    pub evidence: String,
}

/// What the programs are to read of a call beside names and outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
pub struct Wanted {
    /// How often it was retried.
    pub retries: bool,
    /// The class of its error.
    pub errors: bool,
    /// Its bytes.
    pub sizes: bool,
    /// The messages of streams.
    pub messages: bool,
}

/// What one framework in one executable needs to be watched.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the probes go, finish sites first: the order of attaching.
    pub sites: Vec<Site>,
    /// Where the messages of streams go through; for those who ask.
    pub message_sites: Vec<Site>,
    /// The types that calls come as.
    pub shapes: Vec<ShapePlan>,
    /// Every number found, with its evidence.
    pub offsets: Vec<Offset>,
    /// What can't be told in this executable, in words.
    pub notes: Vec<String>,
    object: (Register, Register),
    error: Register,
    tag_map: TagMap,
    /// Link-time addresses of read-only data.
    literals: Range<u64>,
}

/// One framework found in an executable.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: &'static str,
    /// module
    pub module: String,
    /// Its version, as the build info has it.
    pub version: String,
    /// Its plan, or why there is none.
    pub plan: Result<Plan, Refusal>,
}

/// Everything that can be said about an executable.
#[derive(Debug)]
pub struct Inspection {
    /// Build id of the file, if it has one.
    pub build_id: Option<String>,
    /// The Go release it was built with.
    pub go_version: String,
    /// Frameworks found in it.
    pub frameworks: Vec<Found>,
}

impl Inspection {
    /// Looks for every framework in an executable and plans those that are there.
    pub fn of(image: &Image) -> Result<Self, ImageError> {
        let info = image.build_info()?;
        let go = image.go()?;
        let frameworks = FRAMEWORKS
            .iter()
            .filter_map(|framework| {
                let version = module_version(&info, framework.module)?;
                let plan = Plan::make(framework, image, &go);
                Some(Found { name: framework.name, module: framework.module.to_owned(), version, plan })
            })
            .collect();
        let build_id = image.build_id().map(str::to_owned);
        Ok(Self { build_id, go_version: info.go_version.clone(), frameworks })
    }

    /// The plans there are, with the name and version of their framework.
    pub fn plans(&self) -> impl Iterator<Item = (&Found, &Plan)> {
        self.frameworks.iter().filter_map(|found| Some((found, found.plan.as_ref().ok()?)))
    }
}

/// Version of a module that is linked in, the main module included.
fn module_version(info: &BuildInfo, path: &str) -> Option<String> {
    let module = info.main.iter().chain(&info.deps).find(|module| module.path == path)?;
    let module = module.replace.as_deref().unwrap_or(module);
    Some(module.version.clone())
}

impl Plan {
    /// Finds and proves everything that `framework` names.
    pub fn make(framework: &Framework, image: &Image, go: &GoImage<'_>) -> Result<Self, Refusal> {
        let start_symbol = format!("{}/{}", framework.module, framework.start);
        let finish_symbol = format!("{}/{}", framework.module, framework.finish);
        let functions = go.functions_named(&|name| name == start_symbol || name == finish_symbol)?;
        let sites = vec![
            find_site(Role::Finish, &finish_symbol, &functions, image, go)?,
            find_site(Role::Start, &start_symbol, &functions, image, go)?,
        ];

        let mut resolver = resolve::Resolver::new(framework.module, image, go)?;
        let mut shapes = Vec::new();
        for spec in framework.shapes {
            shapes.extend(ShapePlan::make(spec, &mut resolver)?);
        }
        if shapes.is_empty() {
            return Err(Refusal::NoShape);
        }
        if shapes.len() > MAX_SHAPES {
            return Err(Refusal::TooMuch("types of calls"));
        }
        let tag_map = shapes.iter().find_map(|shape| shape.tag_map).unwrap_or(TagMap::None);
        let mut notes: Vec<_> = shapes.iter().flat_map(|shape| shape.notes.iter().cloned()).collect();
        if tag_map == TagMap::None {
            notes.push("retry: the layout of Go maps isn't known here, so retries can't be told".to_owned());
        }
        Ok(Self {
            sites,
            message_sites: Vec::new(),
            shapes,
            offsets: resolver.into_offsets(),
            notes,
            object: (argument(framework.object.type_word)?, argument(framework.object.data)?),
            error: argument(framework.error.type_word)?,
            tag_map,
            literals: literals(image),
        })
    }

    /// class
    pub fn error_class(&self, _image: &Image, _address: u64) -> &'static str {
        "other"
    }

    /// The labels that can be told.
    #[must_use]
    pub fn labels(&self) -> Vec<&'static str> {
        let mut labels = vec!["type", "caller", "callee", "method", "status"];
        if self.tag_map != TagMap::None {
            labels.push("retry");
        }
        labels
    }

    /// The recipe for a process in which the executable lies `bias` bytes above its link-time addresses.
    ///
    /// With `retries` the programs also read how often a call was retried.
    pub fn recipe(&self, bias: u64, wanted: Wanted) -> Result<Recipe, Refusal> {
        let mut recipe = Recipe {
            object_type: self.object.0 as u8,
            object: self.object.1 as u8,
            goroutine: Register::R14 as u8,
            error: self.error as u8,
            tag_map: if wanted.retries { self.tag_map } else { TagMap::None } as u8,
            literals: self.literals.start.wrapping_add(bias),
            literals_length: self.literals.end - self.literals.start,
            ..Recipe::EMPTY
        };
        for site in &self.sites {
            match site.role {
                Role::Start => recipe.start_skip_flags = site.skip_flags(),
                Role::Finish => recipe.finish_skip_flags = site.skip_flags(),
                Role::Sent | Role::Received => {}
            }
        }
        for (place, shape) in recipe.shapes.iter_mut().zip(&self.shapes) {
            *place = shape.program(bias);
            recipe.shape_count += 1;
        }
        Ok(recipe)
    }
}

/// The register of a Go function's integer argument.
///
/// Go's `src/cmd/compile/abi-internal.md`, amd64 architecture; the same since Go 1.17.
fn argument(index: usize) -> Result<Register, Refusal> {
    const INTEGER_ARGUMENTS: [Register; 9] = [
        Register::Rax,
        Register::Rbx,
        Register::Rcx,
        Register::Rdi,
        Register::Rsi,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
    ];
    INTEGER_ARGUMENTS.get(index).copied().ok_or(Refusal::TooMuch("arguments in registers"))
}

/// The largest segment that is never written nor executed: string literals lie there, and so do not change.
fn literals(image: &Image) -> Range<u64> {
    let constant = image.segments().iter().filter(|segment| !segment.writable && !segment.executable);
    // What lies past the file's part is not what the file has.
    let largest = constant.max_by_key(|segment| segment.file_size);
    largest.map_or(0..0, |segment| segment.address..segment.address.saturating_add(segment.file_size))
}

fn find_site(
    role: Role,
    symbol: &str,
    functions: &[Function],
    image: &Image,
    go: &GoImage<'_>,
) -> Result<Site, Refusal> {
    let mut these = functions.iter().filter(|function| function.name == symbol);
    let Some(function) = these.next() else {
        return Err(Refusal::FunctionMissing(symbol.to_owned()));
    };
    if these.next().is_some() {
        return Err(Refusal::FunctionTwice(symbol.to_owned()));
    }
    let code = go.code(function)?;
    let choice = go_entry_site(&code, function.entry)
        .map_err(|error| Refusal::NoSite { symbol: symbol.to_owned(), why: error.to_string() })?;
    let address = function.entry.wrapping_add(choice.offset);
    let file_offset = image.file_offset(address).ok_or_else(|| Refusal::NoSite {
        symbol: symbol.to_owned(),
        why: "its code is in no segment".into(),
    })?;
    Ok(Site {
        role,
        symbol: symbol.to_owned(),
        address,
        file_offset,
        instruction: choice.instruction,
        bytes: choice.bytes,
        cost: choice.cost,
        kind: choice.kind,
        why: choice.why,
    })
}

impl Side {
    fn code(self) -> u8 {
        match self {
            Self::Client => side::CLIENT,
            Self::Server => side::SERVER,
        }
    }
}

impl Key {
    fn code(self) -> KeyKind {
        match self {
            Self::Object => KeyKind::Object,
            Self::GoroutineUnlessStreaming => KeyKind::GoroutineUnlessStreaming,
        }
    }
}
