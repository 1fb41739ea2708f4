//! The variables that a function uses, from its instructions.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

/// The most operands read. The functions of interest have a few hundred.
const MAX_OPERANDS: usize = 4096;

/// A memory operand addressed relative to the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operand {
    /// Its address.
    pub(super) address: u64,
    /// The constant that the instruction stores there, if it does.
    pub(super) stored: Option<u64>,
}

/// Returns the operands of a function, in the order of its instructions. Invalid code has none.
pub(super) fn operands(code: &[u8], entry: u64) -> Vec<Operand> {
    let decoder = Decoder::with_ip(64, code, entry, DecoderOptions::NONE);
    decoder.into_iter().filter_map(|i| operand(&i)).take(MAX_OPERANDS).collect()
}

fn operand(i: &Instruction) -> Option<Operand> {
    if !i.is_ip_rel_memory_operand() {
        return None;
    }
    let is_store = i.mnemonic() == Mnemonic::Mov
        && i.op0_kind() == OpKind::Memory
        && matches!(i.op1_kind(), OpKind::Immediate32 | OpKind::Immediate32to64);
    let stored = is_store.then(|| i.immediate(1));
    Some(Operand { address: i.ip_rel_memory_address(), stored })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn operands_are_addresses_and_stored_numbers() {
        // mov dword [rip+0x100], 10000; lea rax, [rip+0x10]; mov rax, [rsp+8]; mov rcx, [rip]; ret
        let code = [
            0xc7, 0x05, 0x00, 0x01, 0x00, 0x00, 0x10, 0x27, 0x00, 0x00, 0x48, 0x8d, 0x05, 0x10, 0x00, 0x00,
            0x00, 0x48, 0x8b, 0x44, 0x24, 0x08, 0x48, 0x8b, 0x0d, 0x00, 0x00, 0x00, 0x00, 0xc3,
        ];
        let found: Vec<_> = operands(&code, 0x1000).iter().map(|o| (o.address, o.stored)).collect();
        assert_eq!(found, [(0x110a, Some(10000)), (0x1021, None), (0x101d, None)]);
    }

    proptest! {
        #[test]
        fn any_bytes_have_few_operands(code in prop::collection::vec(any::<u8>(), 0..400), entry in any::<u64>()) {
            prop_assert!(operands(&code, entry).len() <= code.len());
        }
    }
}
