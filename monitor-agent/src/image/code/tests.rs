//! Functions as compilers made them, and some that no compiler makes.

use proptest::prelude::*;

use super::*;

pub(super) const ENTRY: u64 = 0x45_4000;

// What the Go compilers named made of these functions (padding cut):
//
//     func sum(p []byte) (n int) { for _, b := range p { n += int(b) }; return n }
//     func (t *T) small(a int, p []byte) int { return t.n + a + sum(p) }
//     func medium(p []byte) int { var x [512]byte; copy(x[:], p); return sum(x[:]) }
//     func huge(p []byte) int { var x [8192]byte; copy(x[:], p); return sum(x[:]) }
//     //go:nosplit
//     func nosplit(p *T) int { return p.n * leaf(3) }
//     func leaf(a int) int { return a * 3 }
//     func loop(a int) int { for { a = a*a + 1; if a&255 == 0 { return a } } }
const SMALL_1_17: &str = "493b661076454883ec2048896c2418488d6c241848894c2438488944242848895c24304889c84889fb4889f1\
    e8afffffff488b542430488b7424284803164801d0488b6c24184883c420c3488944240848895c241048894c241848897c2420488974\
    2428e85775ffff488b442408488b5c2410488b4c2418488b7c2420488b742428e979ffffff";
const SMALL_1_20_NO_OPTIMISATION: &str = "493b661076654883ec3048896c2428488d6c2428488944243848895c244048894c244848\
    897c2450488974245848c7442418000000004889c84889fb4889f190e81bffffff4889442420488b5424388402488b12480354244048\
    01d04889442418488b6c24284883c430c3488944240848895c241048894c241848897c24204889742428e8d76fffff488b442408488b\
    5c2410488b4c2418488b7c2420488b742428e959ffffff";
const SMALL_1_20_RACE: &str = "493b66100f868a0000004883ec3048896c2428488d6c2428488974245848897c245048894c2448488944\
    243848895c2440488b442430e8858fffff488b442448488b5c2450488b4c2458e8f1feffff4889442420488b4c243884014889c86690\
    e8bb79ffff488b4c2440488b54243848030a48894c2418e8848fffff488b4c2418488b542420488d040a488b6c24284883c430c34889\
    44240848895c241048894c241848897c24204889742428e8ae40ffff488b442408488b5c2410488b4c2418488b7c2420488b742428e9\
    30ffffff";
const SMALL_1_21: &str = "493b6610763b554889e54883ec1848894c2438488944242848895c24304889c84889fb4889f1e8b5ffffff48\
    8b542430488b7424284803164801d04883c4185dc3488944240848895c241048894c241848897c24204889742428e8a183ffff488b44\
    2408488b5c2410488b4c2418488b7c2420488b742428eb86";
const SMALL_1_26_NO_OPTIMISATION: &str = "493b6610765b554889e54883ec28488944243848895c244048894c244848897c24504889\
    74245848c7442418000000004889c84889fb4889f1e842ffffff4889442420488b5424388402488b1248035424404801d04889442418\
    4883c4285d90c3488944240848895c241048894c241848897c24204889742428e80122ffff488b442408488b5c2410488b4c2418488b\
    7c2420488b742428e963ffffff";
const SMALL_1_26_RACE: &str = "493b6610767b554889e54883ec2848897c245048894c2448488944243848895c24404889742458488b44\
    2430e84ffbfeff488b442448488b5c2450488b4c2458e8fbfeffff4889442420488b4424388400e8eae5feff488b4c2440488b542438\
    48030a48894c2418e853fbfeff488b4c2418488b542420488d040a4883c4285dc3488944240848895c241048894c241848897c242048\
    89742428e801b6feff488b442408488b5c2410488b4c2418488b7c2420488b742428e943ffffff";
const MEDIUM_1_20: &str = "4c8da42460feffff4d3b66100f86830000004881ec200200004889ac2418020000488dac2418020000488984\
    24280200004881fb00020000b900020000480f4ccb488d7c241848896c24f0488d6c24f0e82396ffff488b6d00488d54241866904839\
    d074104889c34889d0e8709dffff488d5424184889d0bb000200004889d9e8bbfeffff488bac24180200004881c420020000c3488944\
    240848895c241048894c2418e8976fffff488b442408488b5c2410488b4c2418e943ffffff";
const MEDIUM_1_26: &str = "4c8da42460feffff4d3b66100f867c000000554889e54881ec180200004889842428020000488d542418be08\
    000000440f113a440f117a10440f117a20440f117a304883c240ffce75e54881fb00020000b900020000480f4ccb488d542418904839\
    d074104889c34889d0e8b042ffff488d5424184889d0bb000200004889d9e8dbfeffff4881c4180200005dc3488944240848895c2410\
    48894c24180f1f00e8bb21ffff488b442408488b5c2410488b4c2418e947ffffff";
const HUGE_1_20: &str = "4989e44981eca01f0000727b4d3b661076754881ec202000004889ac2418200000488dac2418200000488984\
    24282000004881fb00200000ba00200000480f4cd3488d7c2418b9000400004889c331c0f348ab488d4424184839c3740d4889d1e8bb\
    9cffff488d442418bb002000004889d9e809feffff488bac24182000004881c420200000c3488944240848895c241048894c2418e8e5\
    6effff488b442408488b5c2410488b4c2418e951ffffff";
const HUGE_1_27: &str = "4989e44981eca01f000072674d3b66107661554889e54881ec182000004889842428200000488d7c2418b900\
    0400004889c231c0f348ab4881fb00200000b900200000480f4ccb488d4424184839c2740d4889d3e88796ffff488d442418bb002000\
    0089d9e836feffff4881c4182000005dc3488944240848895c241048894c2418e87976ffff488b442408488b5c2410488b4c2418e965\
    ffffff";
const NOSPLIT_1_20: &str = "4883ec1048896c2408488d6c24084889442418b803000000e823000000488b4c2418488b09480fafc1488b6c\
    24084883c410c3";
const NOSPLIT_1_26: &str =
    "554889e54883ec084889442418b803000000e829000000488b4c2418488b09480fafc14883c4085dc3";
const LEAF_1_26: &str = "488d0440c3";
const LOOP_1_26: &str = "480fafc048ffc00fb6c84885c975f1c3";

pub(super) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter_map(|c| char::from(c).to_digit(16)?.try_into().ok()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn site(hex: &str) -> SiteChoice {
    go_entry_site(&bytes(hex), ENTRY).expect("a site")
}

fn found(hex: &str) -> (u64, String, SiteKind, CostClass) {
    let site = site(hex);
    (site.offset, site.instruction, site.kind, site.cost)
}

fn push_at(offset: u64, kind: SiteKind) -> (u64, String, SiteKind, CostClass) {
    (offset, "push rbp".to_owned(), kind, CostClass::Emulated)
}

#[test]
fn since_go_1_21_the_site_is_the_push_behind_the_check() {
    assert_eq!(found(SMALL_1_21), push_at(6, SiteKind::AfterStackCheck));
    assert_eq!(found(MEDIUM_1_26), push_at(18, SiteKind::AfterStackCheck));
    assert_eq!(found(HUGE_1_27), push_at(18, SiteKind::AfterStackCheck));
    assert_eq!(found(SMALL_1_26_NO_OPTIMISATION), push_at(6, SiteKind::AfterStackCheck));
    assert_eq!(found(SMALL_1_26_RACE), push_at(6, SiteKind::AfterStackCheck));
    assert_eq!(site(SMALL_1_21).bytes, [0x55]);
}

#[test]
fn before_go_1_21_the_site_is_the_branch_of_the_check() {
    for (hex, offset) in
        [(SMALL_1_17, 4), (MEDIUM_1_20, 12), (SMALL_1_20_RACE, 4), (SMALL_1_20_NO_OPTIMISATION, 4)]
    {
        let site = site(hex);
        assert_eq!((site.offset, site.kind), (offset, SiteKind::StackCheckBranch));
        assert_eq!(site.cost, CostClass::Emulated);
        assert!(site.instruction.starts_with("jbe "), "{}", site.instruction);
    }
}

#[test]
fn a_check_with_two_branches_is_left_behind() {
    let expected = (18, "sub rsp, 0x2020".to_owned(), SiteKind::AfterStackCheck, CostClass::SingleStepped);
    assert_eq!(found(HUGE_1_20), expected);
}

#[test]
fn without_a_check_the_site_is_the_entry() {
    assert_eq!(found(NOSPLIT_1_26), push_at(0, SiteKind::Entry));
    assert_eq!((site(NOSPLIT_1_20).offset, site(NOSPLIT_1_20).cost), (0, CostClass::SingleStepped));
    assert_eq!((site(LEAF_1_26).offset, site(LEAF_1_26).cost), (0, CostClass::SingleStepped));
}

#[test]
fn the_first_instruction_is_the_check_which_is_single_stepped() {
    let first = first_instruction(&bytes(SMALL_1_21), ENTRY).expect("a site");
    assert_eq!((first.offset, first.kind, first.cost), (0, SiteKind::Entry, CostClass::SingleStepped));
    assert!(first.instruction.starts_with("cmp rsp,"), "{}", first.instruction);
}

#[test]
fn a_site_that_one_call_could_hit_twice_is_refused() {
    let refused = go_entry_site(&bytes(LOOP_1_26), ENTRY);
    assert_eq!(refused, Err(CodeError::Reentered { site: 0, from: 13, to: 0 }));
    // cmp rsp, [r14+0x10]; jbe out; push rbp; jmp ...; ret; out: call; jmp entry
    for (jump, to) in [("fd", 6), ("fb", 4), ("f7", 0)] {
        let code = bytes(&format!("493b6610 7604 55 eb{jump} c3 e800000000 ebef"));
        assert_eq!(go_entry_site(&code, ENTRY), Err(CodeError::Reentered { site: 6, from: 7, to }));
    }
}

#[test]
fn a_push_behind_a_changed_argument_is_not_used() {
    // mov rax, rbx; push rbp; pop rbp; ret
    let site = site("4889d8 55 5d c3");
    assert_eq!((site.offset, site.kind), (0, SiteKind::Entry));
    // A function in assembly loads the goroutine first: mov r14, fs:[-8]; cmp rsp, [r14+0x10]; jbe; push.
    let code = bytes("644c8b3425f8ffffff 493b6610 7603 55 5d c3 e800000000 ebe7");
    assert!(matches!(go_entry_site(&code, ENTRY), Err(CodeError::Reentered { site: 0, to: 0, .. })));
}

#[test]
fn a_branch_without_the_guard_is_no_stack_check() {
    // test rax, rax; jbe; push rbp; pop rbp; ret; call; jmp entry: a loop, entered again by itself.
    let refused = go_entry_site(&bytes("4885c0 7603 55 5d c3 e800000000 ebf1"), ENTRY);
    assert_eq!(refused, Err(CodeError::Reentered { site: 0, from: 13, to: 0 }));
}

#[test]
fn an_instruction_with_the_prefix_of_a_segment_is_refused() {
    for prefix in ["26", "2e", "36", "3e", "642e", "f33e"] {
        let refused = return_sites(&bytes(&format!("90 {prefix}c3")), ENTRY, None);
        assert_eq!(refused, Err(CodeError::Segmented { offset: 1 }), "{prefix}");
        // A nop.
        let refused = first_instruction(&bytes(&format!("{prefix}90 c3")), ENTRY);
        assert_eq!(refused, Err(CodeError::Segmented { offset: 0 }), "{prefix}");
    }
    // mov rax, fs:[-8]; ret
    let code = bytes("64488b0425f8ffffff c3");
    assert!(first_instruction(&code, ENTRY).is_ok_and(|site| site.offset == 0));
}

#[test]
fn bytes_that_are_no_function_are_refused() {
    assert_eq!(go_entry_site(&[], ENTRY), Err(CodeError::Empty));
    assert_eq!(go_entry_site(&[0x55, 0x06], ENTRY), Err(CodeError::Undecodable { offset: 1 }));
    let long = vec![0x90; MAX_CODE + 1];
    assert_eq!(go_entry_site(&long, ENTRY), Err(CodeError::TooLong { len: MAX_CODE + 1 }));
    // There is nothing but the compare, at the end of the address space.
    assert!(go_entry_site(&bytes("493b6610"), u64::MAX - 2).is_ok_and(|site| site.offset == 0));
}

#[test]
fn only_what_the_kernel_emulates_counts_as_cheap() {
    for (hex, expected) in [
        ("55", CostClass::Emulated),
        ("4154", CostClass::Emulated),
        ("90", CostClass::Emulated),
        ("7500", CostClass::Emulated),
        ("0f8500000000", CostClass::Emulated),
        ("e800000000", CostClass::Emulated),
        ("e900000000", CostClass::Emulated),
        ("6655", CostClass::SingleStepped),
        ("6690", CostClass::SingleStepped),
        ("0f1f00", CostClass::SingleStepped),
        ("e300", CostClass::SingleStepped),
        ("e200", CostClass::SingleStepped),
        ("4889e5", CostClass::SingleStepped),
        ("c3", CostClass::SingleStepped),
    ] {
        let code = bytes(hex);
        let instruction = Decoder::with_ip(64, &code, ENTRY, DecoderOptions::NONE).decode();
        assert_eq!(cost(&instruction), expected, "{}", text(&instruction));
    }
}

proptest! {
    #[test]
    fn any_bytes_give_a_whole_instruction_or_an_error(code in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&code)?;
    }

    #[test]
    fn damaged_functions_give_a_whole_instruction_or_an_error(
        which in 0_usize..5,
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut code = bytes([SMALL_1_17, MEDIUM_1_26, HUGE_1_20, HUGE_1_27, SMALL_1_26_RACE][which]);
        let at = at.index(code.len());
        code[at] = value;
        code.truncate(cut.index(code.len() * 2));
        check(&code)?;
    }
}

fn check(code: &[u8]) -> Result<(), TestCaseError> {
    let _ = (return_sites(code, ENTRY, Some(&Parts::default())), go_return_sites(code, ENTRY));
    let Ok(site) = go_entry_site(code, ENTRY) else {
        return Ok(());
    };
    let start = usize::try_from(site.offset).expect("a small offset");
    prop_assert_eq!(&code[start..start + site.bytes.len()], &*site.bytes);
    // The site is where an instruction starts when the code is read from the entry.
    let starts: Vec<u64> =
        Decoder::with_ip(64, code, 0, DecoderOptions::NONE).into_iter().map(|i| i.ip()).collect();
    prop_assert!(starts.contains(&site.offset));
    Ok(())
}
