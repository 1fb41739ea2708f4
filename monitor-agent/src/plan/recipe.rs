//! Recipes: a plan's numbers in the format of the programs, for one process and one request.

use monitor_ebpf::{Recipe, Register, Shape, by_site, event};

use super::{Calls, Plan, Refusal, Role, Site, native::NativePlan};

/// What the programs read in addition to the calls and their names. Each choice costs the target some reads per call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one choice of the user's")]
pub struct Wanted {
    /// How often a call was retried.
    pub retries: bool,
    /// The class of its error.
    pub errors: bool,
    /// The bytes sent and received for it.
    pub sizes: bool,
    /// The messages of Kitex streams, at the message sites.
    pub messages: bool,
    /// The messages of gRPC-Go streams, at the message sites.
    pub grpc_messages: bool,
    /// One event per finished call, with its goroutine, the class of its error and its bytes.
    pub events: bool,
    /// One event per start, too.
    pub starts: bool,
    /// The peer's address in each finish. Left out first if not everything can be read at once.
    pub peers: bool,
    /// The protocol of the call.
    pub protocol: bool,
    /// Whether the call panicked.
    pub panics: bool,
    /// The start that the call records itself, used if the start was not seen. Left out if
    /// not everything can be read.
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

    /// Whether the class of an error is read.
    fn reads_errors(self) -> bool {
        self.errors || self.events
    }

    /// Whether the bytes are read.
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
    /// The sites that count messages of streams, if they are wanted.
    #[must_use]
    pub fn wanted_message_sites(&self, wanted: Wanted) -> &[Site] {
        if self.wants_messages(wanted) { &self.message_sites } else { &[] }
    }

    /// Whether the messages of this framework's streams are wanted.
    #[must_use]
    pub fn wants_messages(&self, wanted: Wanted) -> bool {
        match self.calls {
            Calls::ByType(_) => wanted.messages,
            Calls::BySite(_) => wanted.grpc_messages,
            // Operations of specs have no messages.
            Calls::Described(_) | Calls::Native(_) => false,
        }
    }

    /// Returns the recipe for a process in which the executable is loaded `bias` bytes above its link-time addresses.
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
                // The names of an operation are known only when it finishes, and it has no peer.
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

/// Writes a shape for each call into a recipe.
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

/// Returns a link-time address as it is in a process whose executable is loaded `bias` bytes above its link-time
/// addresses. 0 stands for none and stays 0.
pub(super) fn moved(address: u64, bias: u64) -> u64 {
    if address == 0 { 0 } else { address.wrapping_add(bias) }
}

/// Returns the register of a Go function's integer argument, by its index.
///
/// See `src/cmd/compile/abi-internal.md` of Go, amd64 architecture; the same since Go 1.17.
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
