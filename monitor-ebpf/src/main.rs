//! The uprobe programs: one at the function where an RPC starts, one where it finishes, three that count the messages of
//! streams where someone asks for that, three for operations of native functions, and one that does nothing, to measure
//! what a hit costs by itself.
//!
//! What they read comes from the [recipe](monitor_ebpf::Recipe). Since Linux 6.0 uprobe programs can be
//! preempted, and a program may then run on the same CPU in between: nothing here uses memory that two
//! runs on one CPU share, except by atomic additions.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::inline_always,
    reason = "a call costs stack, and the verifier forgets what it knew of constants"
)]
#![allow(clippy::cast_possible_truncation, reason = "values are bounded where they are cast")]
#![allow(clippy::cast_ptr_alignment, reason = "scratch memory and label sets are aligned to eight bytes")]
#![allow(clippy::needless_pass_by_value, reason = "the macro for programs passes the context so")]
#![allow(clippy::borrow_as_ptr, clippy::needless_borrows_for_generic_args, reason = "clearer at map calls")]

mod programs;

use aya_ebpf::{
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};

/// Start of an RPC.
#[uprobe]
#[inline(always)]
pub(crate) fn rpc_start(ctx: ProbeContext) -> u32 {
    programs::start(&ctx);
    0
}

/// Finish of an RPC.
#[uprobe]
#[inline(always)]
pub(crate) fn rpc_finish(ctx: ProbeContext) -> u32 {
    programs::finish(&ctx);
    0
}

/// A message sent on a stream.
#[uprobe]
pub(crate) fn stream_sent(ctx: ProbeContext) -> u32 {
    programs::sent(&ctx);
    0
}

/// A message received on a stream.
#[uprobe]
pub(crate) fn stream_received(ctx: ProbeContext) -> u32 {
    programs::received(&ctx);
    0
}

/// A message is about to be sent or received on a stream.
#[uprobe]
pub(crate) fn stream_entered(ctx: ProbeContext) -> u32 {
    programs::entered(&ctx);
    0
}

/// Start of an operation of native functions.
#[uprobe]
pub(crate) fn native_start(ctx: ProbeContext) -> u32 {
    programs::native::start(ctx.regs);
    0
}

/// Finish of one, at an instruction.
#[uprobe]
pub(crate) fn native_finish(ctx: ProbeContext) -> u32 {
    programs::native::finish(ctx.regs);
    0
}

/// Finish of one, behind a return probe.
#[uretprobe]
pub(crate) fn native_return(ctx: RetProbeContext) -> u32 {
    programs::native::finish(ctx.regs);
    0
}

/// Tries to read memory by page tables.
#[uprobe]
pub(crate) fn prove(ctx: ProbeContext) -> u32 {
    programs::prove(&ctx);
    0
}

/// Whatever a hit of this one takes, the kernel takes for any.
#[uprobe]
pub(crate) fn nothing(_ctx: ProbeContext) -> u32 {
    0
}

/// The same for a return probe.
#[uretprobe]
pub(crate) fn nothing_returned(_ctx: RetProbeContext) -> u32 {
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
