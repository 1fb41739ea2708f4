//! Recipes: a plan's numbers as the programs take them, for one process and what is wanted of its calls.

use monitor_ebpf::{Recipe, Register, Shape, by_site, event};

use super::{Calls, Plan, Refusal, Role, Site, native::NativePlan};

/// What the programs are asked for beside the calls and their names. Each costs the target some reads per call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one choice of the user's")]
pub struct Wanted {
    /// How often a call was retried.
    pub retries: bool,
    /// The class of its error.
    pub errors: bool,
    /// Bytes sent and received for it.
    pub sizes: bool,
    /// Messages of streams of Kitex, at the message sites.
    pub messages: bool,
    /// The same of gRPC-Go.
    pub grpc_messages: bool,
    /// Each finished call by itself, with its goroutine, the class of its error and its bytes.
    pub events: bool,
    /// Each start, too.
    pub starts: bool,
    /// The peer's address in each finish. The first thing to be left out where not everything can be read at once.
    pub peers: bool,
    /// The protocol that a call went over.
    pub protocol: bool,
    /// Whether the target's code panicked in it.
    pub panics: bool,
    /// When it started, as it has recorded itself, if that was not seen. Left out where not everything can be read.
    pub recorded: bool,
}

impl Wanted {
    /// Everything but peers and recorded starts.
    pub const ALL: Self = Self {
        retries: true,
        errors: true,
        sizes: true,
        messages: true,
        grpc_messages: true,
        events: true,
        starts: true,
        peers: false,
        protocol: true,
        panics: true,
        recorded: false,
    };

    /// The class of an error is read.
    fn reads_errors(self) -> bool {
        self.errors || self.events
    }

    /// The bytes are read.
    pub(super) fn reads_sizes(self) -> bool {
        self.sizes || self.events
    }

    /// Bits of [`event`].
    fn events(self) -> u8 {
        let starts = if self.starts { event::STARTS } else { 0 };
        let peers = if self.peers { event::PEERS } else { 0 };
        if self.events { event::FINISHES | starts | peers } else { 0 }
    }
}

impl Plan {
    /// Where the messages of streams are counted, if they are wanted.
    #[must_use]
    pub fn wanted_message_sites(&self, wanted: Wanted) -> &[Site] {
        if self.wants_messages(wanted) { &self.message_sites } else { &[] }
    }

    /// Whether the messages of its framework's streams are wanted.
    #[must_use]
    pub fn wants_messages(&self, wanted: Wanted) -> bool {
        match self.calls {
            Calls::ByType(_) => wanted.messages,
            Calls::BySite(_) => wanted.grpc_messages,
            // Operations of specs have none.
            Calls::Described(_) | Calls::Native(_) => false,
        }
    }

    /// The recipe for a process in which the executable lies `bias` bytes above its link-time addresses.
    pub fn recipe(&self, bias: u64, wanted: Wanted) -> Result<Recipe, Refusal> {
        let mut recipe = Recipe {
            read_errors: u8::from(wanted.reads_errors()),
            events: wanted.events(),
            image: self.image.start.wrapping_add(bias),
            image_length: self.image.end - self.image.start,
            literals: self.literals.start.wrapping_add(bias),
            literals_length: self.literals.end - self.literals.start,
            ..Recipe::EMPTY
        };
        for site in self.sites.iter().chain(&self.message_sites) {
            let flags = match site.role {
                Role::Start => &mut recipe.start_skip_flags,
                Role::Finish => &mut recipe.finish_skip_flags,
                Role::Sent => &mut recipe.sent_skip_flags,
                Role::Received => &mut recipe.received_skip_flags,
                Role::Entered => &mut recipe.entered_skip_flags,
            };
            *flags = site.skip_flags().unwrap_or(*flags);
        }
        match &self.calls {
            Calls::ByType(calls) => calls.put(&mut recipe, bias, wanted)?,
            Calls::BySite(calls) => {
                put_shapes(&mut recipe, calls, |call| call.to_shape(bias, wanted))?;
                recipe.by_site = by_site::PATH;
            }
            Calls::Described(operations) => {
                put_shapes(&mut recipe, operations, |operation| operation.to_shape(bias))?;
                recipe.by_site = by_site::NAMES;
                // Its names are known when it finishes, and it has no peer.
                recipe.events &= event::FINISHES;
            }
            Calls::Native(NativePlan(native)) => {
                recipe.native = *native;
                recipe.by_site = by_site::NAMES;
                recipe.events &= event::FINISHES;
            }
        }
        Ok(recipe)
    }
}

/// Writes a shape for each of these into a recipe.
pub(super) fn put_shapes<T>(
    recipe: &mut Recipe,
    calls: &[T],
    to_shape: impl Fn(&T) -> Result<Shape, Refusal>,
) -> Result<(), Refusal> {
    for (place, call) in recipe.shapes.iter_mut().zip(calls) {
        *place = to_shape(call)?;
        recipe.shape_count += 1;
    }
    Ok(())
}

/// Where a link-time address is in a process whose executable lies `bias` bytes above it. 0 stands for none, and stays.
pub(super) fn moved(address: u64, bias: u64) -> u64 {
    if address == 0 { 0 } else { address.wrapping_add(bias) }
}

/// The register of a Go function's integer argument.
///
/// Go's `src/cmd/compile/abi-internal.md`, amd64 architecture; the same since Go 1.17.
pub(super) fn argument(index: usize) -> Result<Register, Refusal> {
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
