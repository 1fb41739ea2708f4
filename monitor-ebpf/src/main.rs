//! The uprobe programs: one at the start of an RPC, one at its finish, three that count the messages of streams on
//! request, three for operations of native functions, one that tests reading memory by page tables, and two that do
//! nothing, to measure the cost of a hit itself.
//!
//! The [recipe](monitor_ebpf::Recipe) says what they read. Since Linux 6.0 uprobe programs can be preempted,
//! and another program may then run on the same CPU in between. So memory that two runs share changes only by
//! atomic operations, or holds values that every reader checks.
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

/// Entry of a function that sends or receives a message on a stream.
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

/// Finish of such an operation, at an instruction.
#[uprobe]
pub(crate) fn native_finish(ctx: ProbeContext) -> u32 {
    programs::native::finish(ctx.regs);
    0
}

/// Finish of such an operation, behind a return probe.
#[uretprobe]
pub(crate) fn native_return(ctx: RetProbeContext) -> u32 {
    programs::native::finish(ctx.regs);
    0
}

/// Tests reading memory by page tables.
#[uprobe]
pub(crate) fn prove(ctx: ProbeContext) -> u32 {
    programs::prove(&ctx);
    0
}

/// Does nothing: its hit takes only the time that the kernel needs for any hit.
#[uprobe]
pub(crate) fn nothing(_ctx: ProbeContext) -> u32 {
    0
}

/// Does nothing behind a return probe.
#[uretprobe]
pub(crate) fn nothing_returned(_ctx: RetProbeContext) -> u32 {
    0
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier rejects a program that can reach this.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
