//! Sites: where a probe goes, and how that place is chosen in a function.

use std::sync::Arc;

use super::Refusal;
use crate::image::{
    CodeError, CostClass, Function, GoImage, Image, SiteChoice, SiteKind, TestedCall, WantedError,
    first_instruction, go_entry_site, go_return_sites, tested_call,
};

/// What a hit of a site means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A call starts.
    Start,
    /// A call finishes.
    Finish,
    /// A message may have been sent on a stream.
    Sent,
    /// A message may have been received.
    Received,
    /// A message is about to be sent or received. The program notes which stream it belongs to.
    Entered,
}

impl Role {
    /// The name of the role. All sites that count messages have the same name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Finish => "finish",
            Self::Sent | Self::Received => "count",
            Self::Entered => "enter",
        }
    }
}

/// One place for one probe.
#[derive(Clone, Debug)]
pub struct Site {
    /// The meaning of a hit.
    pub role: Role,
    /// The function's name in the function or symbol table.
    pub symbol: String,
    /// Link-time address of the instruction.
    pub address: u64,
    /// The offset of the instruction in the file, which the kernel attaches to.
    pub file_offset: u64,
    /// The instruction, for people.
    pub instruction: String,
    /// Link-time address of the function.
    pub entry: u64,
    /// The code of the whole function.
    pub code: Arc<[u8]>,
    /// The cost of a hit.
    pub cost: CostClass,
    /// What kind of place in the function it is.
    pub kind: SiteKind,
    /// Why this instruction was chosen.
    pub why: String,
}

/// Carry and zero flag: a branch "below or equal" is taken if one of them is set.
const CARRY_OR_ZERO: u8 = 1 << 0 | 1 << 6;

impl Site {
    /// The processor flags that mark a hit which is not an entry: the branch of a stack check is about to be taken,
    /// and the function will be entered again. `None` if any value will do. A test of an error for zero leaves these
    /// flags clear unless there is no error, and they stay so after it.
    #[must_use]
    pub fn skip_flags(&self) -> Option<u8> {
        match self.kind {
            SiteKind::StackCheckBranch => Some(CARRY_OR_ZERO),
            SiteKind::Tested | SiteKind::Failed => None,
            SiteKind::AfterStackCheck | SiteKind::Entry | SiteKind::Return => Some(0),
        }
    }

    /// Whether calls pass the site only on failure. The cost of a hit then does not represent the cost of a call.
    #[must_use]
    pub fn is_rare(&self) -> bool {
        self.kind == SiteKind::Failed
    }

    /// Moves the site to the first instruction of its function.
    pub(super) fn choose_first_instruction(&mut self) {
        // The whole function has been decoded before, so this does not fail.
        let Ok(first) = first_instruction(&self.code, self.entry) else { return };
        self.file_offset = self.file_offset.wrapping_sub(self.address.wrapping_sub(self.entry));
        self.address = self.entry;
        SiteChoice { instruction: self.instruction, cost: self.cost, kind: self.kind, why: self.why, .. } =
            first;
    }
}

/// How sites are chosen in functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SiteChoosing {
    /// Where each call causes one hit, at the least cost.
    #[default]
    Best,
    /// At the first instruction of each function, as in other tools; for Kitex only. For comparison: a call can hit
    /// such a site twice, and then counts twice.
    Naive,
}

/// The name of a cost class in `inspect` and the metrics.
#[must_use]
pub fn cost_name(cost: CostClass) -> &'static str {
    match cost {
        CostClass::Emulated => "emulated",
        CostClass::SingleStepped => "single-stepped",
        CostClass::Returned => "return-probe",
    }
}

/// Returns the site in the only function with this symbol.
pub(super) fn find_site(
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
    find_site_of(role, function, image, go)
}

/// Refuses a function that is inlined anywhere: calls through the inlined copy hit no probe.
pub(super) fn check_not_inlined(function: &Function, go: &GoImage<'_>) -> Result<(), Refusal> {
    match go.inlined_into(function)? {
        Some(caller) => Err(Refusal::Inlined { symbol: function.name.clone(), caller }),
        None => Ok(()),
    }
}

/// Returns a function's arguments. They must begin with the expected ones. If the executable does not describe them,
/// none may be expected.
pub(super) fn check_arguments(
    function: &Function,
    expected: &str,
    go: &GoImage<'_>,
) -> Result<String, Refusal> {
    match go.arguments(function)? {
        Some(found) if !found.starts_with(expected) => {
            Err(Refusal::wrong_arguments(&function.name, found, expected))
        }
        None if !expected.is_empty() => Err(Refusal::ArgumentsUntold(function.name.clone())),
        found => Ok(found.unwrap_or_default()),
    }
}

/// The sites found in an executable so far.
pub(super) struct Sites<'a> {
    pub(super) image: &'a Image,
    pub(super) go: &'a GoImage<'a>,
    pub(super) found: Vec<Site>,
}

impl<'a> Sites<'a> {
    /// Creates an empty collection.
    pub(super) fn new(image: &'a Image, go: &'a GoImage<'a>) -> Self {
        Self { image, go, found: Vec::new() }
    }

    /// Returns the address of the site at a function's entry. Each role has its own site there.
    pub(super) fn at_entry(&mut self, role: Role, function: &Function) -> Result<u64, Refusal> {
        let is_same =
            |site: &&Site| site.role == role && site.entry == function.entry && site.kind.is_at_entry();
        if let Some(site) = self.found.iter().find(is_same) {
            return Ok(site.address);
        }
        let site = find_site_of(role, function, self.image, self.go)?;
        let address = site.address;
        self.found.push(site);
        Ok(address)
    }

    /// Returns the addresses of the sites at which a function returns, which finishes a call.
    pub(super) fn at_returns(&mut self, function: &Function) -> Result<Vec<u64>, Refusal> {
        let sites = return_sites_of(Role::Finish, function, self.image, self.go)?;
        let addresses = sites.iter().map(|site| site.address).collect();
        self.found.extend(sites);
        Ok(addresses)
    }

    /// Returns the address of the site at which a function has the error from its only call of `giver`,
    /// which finishes a call. Also returns the offset of the function's own argument from the stack
    /// pointer there, in bytes.
    pub(super) fn at_tested_call(
        &mut self,
        function: &Function,
        giver: &Function,
        wanted: WantedError,
    ) -> Result<(u64, u16), Refusal> {
        check_not_inlined(function, self.go)?;
        check_not_inlined(giver, self.go)?;
        let code = self.go.code(function)?;
        let tested = tested_call(&code, function.entry, giver.entry, wanted);
        let TestedCall { site: choice, kept_at } = tested.map_err(|error| no_site(&function.name, &error))?;
        let site = site(Role::Finish, (&function.name, function.entry), &code.into(), choice, self.image)?;
        let address = site.address;
        self.found.push(site);
        Ok((address, kept_at))
    }
}

/// Refuses sites of one role whose hits need different processor flags: the programs have one set of flags per role.
pub(super) fn same_kinds(sites: &[Site]) -> Result<(), Refusal> {
    for role in [Role::Start, Role::Finish, Role::Entered] {
        let mut flags = sites.iter().filter(|site| site.role == role).filter_map(Site::skip_flags);
        let first = flags.next();
        if flags.any(|other| Some(other) != first) {
            return Err(Refusal::TooMuch("kinds of sites"));
        }
    }
    Ok(())
}

/// Returns the site at a function's entry.
pub(super) fn find_site_of(
    role: Role,
    function: &Function,
    image: &Image,
    go: &GoImage<'_>,
) -> Result<Site, Refusal> {
    check_not_inlined(function, go)?;
    let code = go.code(function)?;
    let choice = go_entry_site(&code, function.entry).map_err(|error| no_site(&function.name, &error))?;
    site(role, (&function.name, function.entry), &code.into(), choice, image)
}

/// Returns the sites at which a function returns.
pub(super) fn return_sites_of(
    role: Role,
    function: &Function,
    image: &Image,
    go: &GoImage<'_>,
) -> Result<Vec<Site>, Refusal> {
    check_not_inlined(function, go)?;
    let code = go.code(function)?;
    let choices = go_return_sites(&code, function.entry).map_err(|error| no_site(&function.name, &error))?;
    let code = code.into();
    let site = |choice| site(role, (&function.name, function.entry), &code, choice, image);
    choices.into_iter().map(site).collect()
}

pub(super) fn no_site(symbol: &str, error: &CodeError) -> Refusal {
    Refusal::NoSite { symbol: symbol.to_owned(), why: error.to_string() }
}

/// Creates the site for a choice in the function with this name and address.
pub(super) fn site(
    role: Role,
    (symbol, entry): (&str, u64),
    code: &Arc<[u8]>,
    choice: SiteChoice,
    image: &Image,
) -> Result<Site, Refusal> {
    let address = entry.wrapping_add(choice.offset);
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
        entry,
        code: Arc::clone(code),
        cost: choice.cost,
        kind: choice.kind,
        why: choice.why,
    })
}
