//! The rewritten instructions that are accepted, each for a reason: what stood there, what may stand there
//! now, and where that leads.
//!
//! Invariant: a rule accepts a site only after it has decoded what is there now and seen that it leads where the
//! old instruction led. It names every byte that it lets differ.

use core::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use crate::site::Site;
use crate::usage::{START, Usage, is_relative, is_wide};

/// A way in which a site may differ from the plain formula.
#[derive(Debug)]
pub struct Rule {
    /// What reports call it.
    pub name: &'static str,
    /// Why it is right.
    pub reason: &'static str,
    /// The bytes of the section that may differ, if the rule holds for the site.
    pub(crate) holds: fn(&Site<'_>) -> Option<Range<usize>>,
}

/// All rules, the first that holds is taken.
pub const RULES: &[Rule] = &[
    Rule {
        name: "call *entry -> call",
        reason: "psABI x86-64 1.0, appendix B.2: the symbol is near, so no entry is needed",
        holds: direct_call,
    },
    Rule {
        name: "jmp *entry -> jmp",
        reason: "psABI x86-64 1.0, appendix B.2: the symbol is near, so no entry is needed",
        holds: direct_jump,
    },
    Rule {
        name: "mov entry -> lea",
        reason: "psABI x86-64 1.0, appendix B.2: the symbol is near, so its address is computed",
        holds: load_to_lea,
    },
    Rule {
        name: "entry -> immediate",
        reason: "psABI x86-64 1.0, appendix B.2: the address is known at link and fits 32 bits",
        holds: entry_to_immediate,
    },
    Rule {
        name: "lea -> mov entry",
        reason: "the symbol is not near in every process: its address is loaded from its cell",
        holds: lea_to_load,
    },
    Rule {
        name: "movabs -> lea",
        reason: "text holds no address of a process; the symbol is near, so the address is computed",
        holds: immediate_to_lea,
    },
    Rule {
        name: "movabs -> mov entry",
        reason: "text holds no address of a process; the symbol's is loaded from its cell",
        holds: immediate_to_load,
    },
    Rule {
        name: "movabs memory -> mov",
        reason: "text holds no address of a process; the datum is near, so it is reached from here",
        holds: offset_to_operand,
    },
    Rule {
        name: "thunk",
        reason: "what the cell's address takes is longer than the instruction, so it is done elsewhere",
        holds: through_thunk,
    },
    Rule {
        name: "linkage",
        reason: "a call leads to an entry of the procedure linkage table that jumps to the symbol",
        holds: through_linkage,
    },
    Rule {
        name: "dynamic",
        reason: "the dynamic linker stores the address, since a library defines the symbol",
        holds: left_to_the_dynamic_linker,
    },
    Rule {
        name: "merged",
        reason: "SHF_MERGE: equal contents are kept once, so the address is that of a copy",
        holds: merged,
    },
];

/// `call *entry(%rip)`: `addr32 call`, or `call` and a `nop` on either side.
fn direct_call(site: &Site<'_>) -> Option<Range<usize>> {
    if site.usage != Usage::EntryCall {
        return None;
    }
    let start = site.at.checked_sub(2)?;
    let range = start..site.at + 4;
    let end = match *site.now(range.clone())? {
        [0x67 | 0x90, 0xe8, ..] => range.end,
        [0xe8, .., 0x90] => range.end - 1,
        _ => return None,
    };
    site.leads(end - 4, end, site.answer.direct?)
        .then_some(range)
}

/// `jmp *entry(%rip)`: `jmp` and a `nop`.
fn direct_jump(site: &Site<'_>) -> Option<Range<usize>> {
    if site.usage != Usage::EntryJump {
        return None;
    }
    let range = site.at.checked_sub(2)?..site.at + 4;
    let [0xe9, .., 0x90] = *site.now(range.clone())? else {
        return None;
    };
    site.leads(site.at - 1, site.at + 3, site.answer.direct?)
        .then_some(range)
}

/// One byte of the opcode became another; ModRM, prefix and field stay where they are.
fn opcode_only(site: &Site<'_>, new: u8) -> Option<Range<usize>> {
    let opcode = site.at.checked_sub(2)?;
    (*site.now(opcode..opcode + 1)? == [new]).then_some(opcode..site.at + 4)
}

fn load_to_lea(site: &Site<'_>) -> Option<Range<usize>> {
    let range = opcode_only(site, 0x8d)?;
    let [0x8b, modrm] = *site.was(range.start..site.at)? else {
        return None;
    };
    // Of an entry loaded into 32 bits, too: the address's lower half either way.
    let loads = matches!(site.usage, Usage::Entry | Usage::EntryLoad)
        && site.addend == START
        && is_relative(modrm);
    (loads && site.leads(site.at, site.at + 4, site.answer.direct?)).then_some(range)
}

fn lea_to_load(site: &Site<'_>) -> Option<Range<usize>> {
    let range = opcode_only(site, 0x8b).filter(|_| site.usage == Usage::Lea)?;
    site.is_entry(site.reached(site.at, site.at + 4)?)
        .then_some(range)
}

/// `mov`, `test` and the arithmetic with an entry: the same with an immediate, which is sign-extended.
fn entry_to_immediate(site: &Site<'_>) -> Option<Range<usize>> {
    if site.addend != START || !matches!(site.usage, Usage::Entry | Usage::EntryLoad) {
        return None;
    }
    let [rex, opcode, modrm] = *site.was(site.at.checked_sub(3)?..site.at)? else {
        return None;
    };
    let register = modrm >> 3 & 7;
    let (new, fixed) = match opcode {
        0x8b => (0xc7, 0xc0),
        0x85 => (0xf7, 0xc0),
        _ if opcode & 0xc7 == 0x03 => (0x81, 0xc0 | opcode & 0x38),
        _ => return None,
    };
    // What REX.R extended, REX.B extends now.
    let extended = rex & !4 | (rex & 4) >> 2;
    let immediate = site.word_32(site.at)?;
    let opcodes = *site.now(site.at - 2..site.at)? == [new, fixed | register];
    let prefix = site.now(site.at - 3..site.at - 2)?[0];
    let holds = is_relative(modrm)
        && opcodes
        && (prefix == extended || rex & 0xf0 != 0x40 && prefix == rex)
        && immediate as u64 == site.answer.direct?;
    holds.then_some(site.at - 3..site.at + 4)
}

/// The register that a `movabs` of an immediate fills.
fn movabs_register(site: &Site<'_>) -> Option<u8> {
    let [rex, opcode @ 0xb8..=0xbf] = *site.was(site.at.checked_sub(2)?..site.at)? else {
        return None;
    };
    let is_movabs = site.usage == Usage::Word && site.in_text && is_wide(rex);
    is_movabs.then_some(opcode & 7 | (rex & 1) << 3)
}

/// Ten bytes of `movabs` became seven of `opcode` with the same register, and a `nop` of three.
fn seven_and_nop(site: &Site<'_>, opcode: u8) -> Option<Range<usize>> {
    let register = movabs_register(site)?;
    let range = site.at - 2..site.at + 8;
    let new = [
        0x48 | (register >> 3) << 2,
        opcode,
        0x05 | (register & 7) << 3,
    ];
    let now = site.now(range.clone())?;
    (now.starts_with(&new) && now.ends_with(&[0x0f, 0x1f, 0x00])).then_some(range)
}

fn immediate_to_lea(site: &Site<'_>) -> Option<Range<usize>> {
    let range = seven_and_nop(site, 0x8d)?;
    let meant = site.answer.direct?.wrapping_add_signed(site.addend);
    (site.reached(site.at + 1, site.at + 5)? == meant).then_some(range)
}

fn immediate_to_load(site: &Site<'_>) -> Option<Range<usize>> {
    let range = seven_and_nop(site, 0x8b).filter(|_| site.addend == 0)?;
    site.is_entry(site.reached(site.at + 1, site.at + 5)?)
        .then_some(range)
}

/// `movabs x, %rax` and its kin, 8 bytes of offset after one opcode.
fn offset_to_operand(site: &Site<'_>) -> Option<Range<usize>> {
    let [opcode @ 0xa0..=0xa3] = *site.was(site.at.checked_sub(1)?..site.at)? else {
        return None;
    };
    if site.usage != Usage::Word || !site.in_text {
        return None;
    }
    // a0 and a1 load bytes and words, a2 and a3 store them; so do 8a and 8b, 88 and 89.
    let new = match opcode {
        0xa0 => 0x8a,
        0xa1 => 0x8b,
        0xa2 => 0x88,
        _ => 0x89,
    };
    let range = site.at - 1..site.at + 8;
    let now = site.now(range.clone())?;
    let meant = site.answer.direct?.wrapping_add_signed(site.addend);
    let holds = now.starts_with(&[new, 0x05])
        && now.ends_with(&[0x0f, 0x1f, 0x00])
        && site.reached(site.at + 1, site.at + 5)? == meant;
    holds.then_some(range)
}

fn decode(bytes: &[u8], address: u64) -> Instruction {
    Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode()
}

/// The 64-bit register that a 32- or 64-bit one is a part of.
fn whole(register: Register) -> Option<Register> {
    let number = register as usize;
    let narrow = (Register::EAX as usize..=Register::R15D as usize).contains(&number);
    let wide = (Register::RAX as usize..=Register::R15 as usize).contains(&number);
    match (narrow, wide) {
        (true, _) => Some(Register::RAX + (number - Register::EAX as usize) as u32),
        (_, true) => Some(register),
        _ => None,
    }
}

/// The instruction became a jump to a thunk: `mov entry(%rip), %r`, the instruction with `%r` as its base, a
/// jump back. No other register, no flag and no stack may be touched, so `%r` is what the instruction fills.
fn through_thunk(site: &Site<'_>) -> Option<Range<usize>> {
    if !matches!(site.usage, Usage::Operand | Usage::Lea | Usage::Word) || !site.in_text {
        return None;
    }
    // Cheaper than to decode a function: is there a jump at all?
    let near = site.at.saturating_sub(5)..site.at;
    if !site.now(near)?.contains(&0xe9) {
        return None;
    }
    let (start, old) = site.instruction()?;
    let end = start + old.len();
    let displacement = if site.usage == Usage::Word {
        site.addend
    } else {
        // The field has to be the last of the instruction.
        (end == site.at + 4).then(|| site.addend.checked_add(4))??
    };
    let now = site.now(start..end)?;
    let jump = decode(now, site.address(start));
    if jump.code() != Code::Jmp_rel32_64 || now[5..].iter().any(|&byte| byte != 0x90) {
        return None;
    }
    let thunk = jump.near_branch_target();
    let bytes = site.image().read_some(thunk, 48);
    let mut decoder = Decoder::with_ip(64, bytes, thunk, DecoderOptions::NONE);
    let (cell, access, back) = (decoder.decode(), decoder.decode(), decoder.decode());
    let scratch = cell.op0_register();
    let loads = cell.code() == Code::Mov_r64_rm64
        && cell.is_ip_rel_memory_operand()
        && site.is_entry(cell.ip_rel_memory_address());
    // `movabs $x, %r` becomes `lea x(%r), %r`; everything else stays what it is.
    let same = if old.op1_kind() == OpKind::Immediate64 {
        access.code() == Code::Lea_r64_m
    } else {
        access.mnemonic() == old.mnemonic() && access.memory_size() == old.memory_size()
    };
    let holds = loads
        && same
        && access.op0_register() == old.op0_register()
        && whole(old.op0_register()) == Some(scratch)
        && access.memory_base() == scratch
        && access.memory_index() == Register::None
        && access.segment_prefix() == Register::None
        && access.memory_displacement64().cast_signed() == displacement
        && back.mnemonic() == Mnemonic::Jmp
        && back.op0_kind() == OpKind::NearBranch64
        && back.near_branch_target() == site.address(end);
    holds.then_some(start..end)
}

/// The field is right, for another place: one that jumps through an entry.
fn through_linkage(site: &Site<'_>) -> Option<Range<usize>> {
    let calls = matches!(
        site.usage,
        Usage::Branch
            | Usage::LinkageDistance
            | Usage::LinkageTableDistance
            | Usage::Lea
            | Usage::Distance
            | Usage::Word
            | Usage::Value
    );
    if !calls || !site.answer.linkage {
        return None;
    }
    let mut place = site.solved()?;
    for _ in 0..3 {
        let instruction = decode(site.image().read_some(place, 16), place);
        match instruction.mnemonic() {
            Mnemonic::Endbr64 | Mnemonic::Nop => place = instruction.next_ip(),
            Mnemonic::Jmp if instruction.is_ip_rel_memory_operand() => {
                let entry = instruction.ip_rel_memory_address();
                return site.is_entry(entry).then(|| site.field_range());
            }
            _ => return None,
        }
    }
    None
}

fn left_to_the_dynamic_linker(site: &Site<'_>) -> Option<Range<usize>> {
    let stored = site.usage == Usage::Word && site.is_dynamic(site.address(site.at));
    stored.then(|| site.field_range())
}

/// What is reached has the contents that the object has there.
fn merged(site: &Site<'_>) -> Option<Range<usize>> {
    let ahead = match site.usage {
        Usage::Operand | Usage::Lea => 4,
        Usage::Word | Usage::Distance | Usage::Value => 0,
        _ => return None,
    };
    let (contents, whole) = site.mergeable(ahead)?;
    let reached = site
        .solved()?
        .wrapping_add_signed(site.addend.checked_add(ahead)?);
    let now = site.image().read(reached, contents.len())?;
    (!contents.is_empty() && whole && now == contents).then(|| site.field_range())
}
