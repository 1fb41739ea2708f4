//! The registers of the target at the hit.

use aya_ebpf::{bindings::pt_regs, programs::ProbeContext};
use monitor_ebpf::{ANY_SITE, FINISH_SITES, Given, MAX_SHAPES, MESSAGE_SITES, Register};

use super::{
    maps::{RECIPE, field, recipe},
    memory::word,
};

/// What a hit may mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A call starts.
    Start,
    /// A call finishes.
    Finish,
    /// A message has gone through a stream, or has failed to.
    Message,
    /// A message is about to go through a stream.
    Entered,
}

/// What the recipe needs of the registers at a hit.
pub(crate) struct Hit {
    /// Number of the shape that the site selects.
    pub(crate) shape: usize,
    /// Type word of the object; the call's key, where sites select shapes.
    pub(crate) type_word: u64,
    /// Address of the object.
    pub(crate) object: u64,
    /// All saved registers, to read some of them later: as values they would take stack, which is nearly full.
    registers: *const pt_regs,
    /// Type word of the error at a finish, or at the return of a message function.
    pub(crate) error: u64,
    /// Data word of the error; the second argument, where sites select shapes.
    pub(crate) error_data: u64,
    /// Direction of a message: 0 if it is sent, 1 if it is received.
    pub(crate) direction: u32,
    /// The processor's flags.
    pub(crate) flags: u64,
}

impl Hit {
    /// Picks the registers that the recipe names.
    #[inline(always)]
    pub(crate) fn read(ctx: &ProbeContext, moment: Moment) -> Self {
        let registers = Registers::copy(ctx);
        if recipe!(by_site) != 0 {
            return Self::at_site(ctx, &registers, moment);
        }
        Self {
            shape: MAX_SHAPES,
            type_word: registers.get(recipe!(object_type)),
            object: registers.get(recipe!(object)),
            registers: ctx.regs,
            error: registers.get(recipe!(error)),
            error_data: registers.get(recipe!(error_data)),
            direction: 0,
            flags: registers.flags,
        }
    }

    /// Picks the registers needed by the shape that the site selects.
    #[inline(always)]
    fn at_site(ctx: &ProbeContext, registers: &Registers, moment: Moment) -> Self {
        let mut hit = Self {
            shape: MAX_SHAPES,
            type_word: 0,
            object: 0,
            registers: ctx.regs,
            error: 0,
            error_data: 0,
            direction: 0,
            flags: registers.flags,
        };
        if moment == Moment::Message {
            // The function's only result, of two words.
            hit.error = registers.get(Register::Rax as u8);
            return hit;
        }
        for index in 0..MAX_SHAPES {
            if index >= usize::from(recipe!(shape_count)) {
                break;
            }
            if moment == Moment::Start && is_at(registers.place, recipe!(shapes[index].sited.start)) {
                hit.shape = index;
                hit.type_word = registers.get(recipe!(shapes[index].sited.start_key));
                hit.object = registers.get(recipe!(shapes[index].sited.start_object));
                hit.error_data = registers.get(recipe!(shapes[index].sited.start_argument));
                break;
            }
            if moment == Moment::Finish && finishes(index, registers.place) {
                hit.shape = index;
                hit.type_word = registers.get(recipe!(shapes[index].sited.finish_key));
                hit.object = registers.get(recipe!(shapes[index].sited.finish_object));
                hit.error = registers.get(recipe!(shapes[index].sited.finish_error));
                hit.error_data = registers.get(recipe!(shapes[index].sited.finish_argument));
                let kept_at = recipe!(shapes[index].sited.kept_at);
                if kept_at != 0 {
                    hit.object = word(hit.stack().wrapping_add(u64::from(kept_at)));
                    hit.type_word = hit.object;
                }
                break;
            }
            let given: *const Given = &raw const RECIPE.shapes[index].sited.given;
            if moment == Moment::Finish && registers.place == field!(given, place) {
                hit.shape = index;
                hit.object = word(hit.stack().wrapping_add(u64::from(field!(given, kept_at))));
                hit.type_word = hit.object;
                hit.error = registers.get(field!(given, error));
                break;
            }
            let entered = if moment == Moment::Entered { entered(index, registers.place) } else { None };
            if let Some(direction) = entered {
                hit.shape = index;
                hit.direction = direction;
                // The function's receiver.
                hit.object = registers.get(Register::Rax as u8);
                break;
            }
        }
        hit
    }

    /// Returns the address of the current goroutine, which Go keeps in a register (`ABIInternal`, Go 1.17).
    #[inline(always)]
    pub(crate) fn goroutine(&self) -> u64 {
        // SAFETY: the kernel passes a valid pointer to the saved registers.
        unsafe { (*self.registers).r14 }
    }

    /// Returns the stack pointer: at a function's entry, the return address is there.
    #[inline(always)]
    pub(crate) fn stack(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.registers).rsp }
    }

    /// Returns the address of the instruction under the probe.
    #[inline(always)]
    pub(crate) fn place(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.registers).rip }
    }

    /// Returns the frame pointer: at a function's entry, that of the caller.
    #[inline(always)]
    pub(crate) fn frame(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (*self.registers).rbp }
    }

    /// Returns whether the hit is not an entry of the function. See [`monitor_ebpf::Recipe::start_skip_flags`].
    #[inline(always)]
    pub(crate) fn is_skipped(&self, flags: u8) -> bool {
        self.flags & u64::from(flags) != 0
    }
}

/// Returns whether calls of a shape finish at this place.
#[inline(always)]
fn finishes(shape: usize, place: u64) -> bool {
    (0..FINISH_SITES).any(|site| is_at(place, recipe!(shapes[shape].sited.finishes[site])))
}

/// Returns the direction of messages of a shape's streams that enter this place.
#[inline(always)]
fn entered(shape: usize, place: u64) -> Option<u32> {
    let enters = |way: &usize| place == recipe!(shapes[shape].sited.messages.entered[*way]);
    (0..MESSAGE_SITES).find(enters).map(|way| way as u32)
}

/// Returns whether a place is this site, or the site may be any.
#[inline(always)]
fn is_at(place: u64, site: u64) -> bool {
    place == site || site == ANY_SITE
}

/// A copy of the registers that a recipe can name, so that one can be selected by number: the verifier
/// requires a fixed offset for every access to the saved registers themselves.
struct Registers {
    values: [u64; 10],
    flags: u64,
    /// Address of the instruction under the probe.
    place: u64,
}

impl Registers {
    /// Copies the registers in the order of [`monitor_ebpf::Register`].
    #[inline(always)]
    fn copy(ctx: &ProbeContext) -> Self {
        // SAFETY: the kernel passes a valid pointer to the saved registers.
        let saved = unsafe { &*ctx.regs };
        Self {
            values: [
                saved.rax, saved.rbx, saved.rcx, saved.rdi, saved.rsi, saved.r8, saved.r9, saved.r10,
                saved.r11, saved.r14,
            ],
            flags: saved.eflags,
            place: saved.rip,
        }
    }

    /// Returns the register that the recipe names.
    #[inline(always)]
    fn get(&self, register: u8) -> u64 {
        // SAFETY: the agent writes numbers of `monitor_ebpf::Register` only; the verifier knows the number
        // and refuses an access outside the array.
        unsafe { *self.values.get_unchecked(usize::from(register)) }
    }
}
