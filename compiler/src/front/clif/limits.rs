//! Valid CLIF that Cranelift 0.135 would compile wrongly or not survive, refused by name.

use cranelift_codegen::ir::entities::AnyEntity;
use cranelift_codegen::ir::{Function, Inst, InstructionData, Opcode, types};

use super::error::ClifFault;

/// The largest sum of a function's stack slots, in bytes: it runs on a thread of the host.
const MAX_STACK_BYTES: u64 = 1 << 20;

/// The alignment of the stack pointer in a call (psABI x86-64 1.0, section 3.2.2) as a power of two. Cranelift
/// aligns slots relative to it, and so no better.
const STACK_ALIGN_SHIFT: u8 = 4;

/// Refuses what is known to be beyond the code generator.
pub(super) fn check(func: &Function) -> Result<(), (AnyEntity, ClifFault)> {
    let refuse = |entity, what: &str, why, help| {
        Err((
            entity,
            ClifFault::Unsupported {
                what: what.to_owned(),
                why,
                help,
            },
        ))
    };
    let mut stack_bytes = 0_u64;
    for (slot, data) in &func.sized_stack_slots {
        stack_bytes += u64::from(data.size);
        if stack_bytes > MAX_STACK_BYTES {
            return refuse(
                slot.into(),
                &format!("explicit_slot {}", data.size),
                "a function's stack slots have at most 1 MiB together: it runs on a thread of the host",
                "allocate large buffers on the heap",
            );
        }
        if data.align_shift > STACK_ALIGN_SHIFT {
            return refuse(
                slot.into(),
                &format!("align = {}", 1_u64 << data.align_shift.min(63)),
                "the stack is aligned to 16 bytes",
                "make the slot larger, and align the address yourself",
            );
        }
    }
    for block in func.layout.blocks() {
        for inst in func.layout.block_insts(block) {
            if let Some((what, why, help)) = beyond(func, inst) {
                return refuse(inst.into(), what, why, help);
            }
        }
    }
    Ok(())
}

/// What an instruction is called, why it is refused, and what to do instead, if it is.
fn beyond(func: &Function, inst: Inst) -> Option<(&'static str, &'static str, &'static str)> {
    let narrow = || {
        let results = func.dfg.inst_results(inst);
        let ty = results
            .first()
            .map(|result| func.dfg.value_type(*result).lane_type());
        matches!(ty, Some(types::I8 | types::I16))
    };
    const CONVERSION: &str = "Cranelift has no x86-64 code for conversions to 8 and 16 bits";
    const CONVERT: &str = "convert to `i32`, and then use `ireduce`";
    match func.dfg.insts[inst] {
        InstructionData::StackAddr { offset, .. } if i32::from(offset) < 0 => Some((
            "stack_addr",
            "an address before its slot is another slot's",
            "use an offset from 0 on",
        )),
        InstructionData::Unary { opcode, .. } => match opcode {
            Opcode::FcvtToUint if narrow() => Some(("fcvt_to_uint", CONVERSION, CONVERT)),
            Opcode::FcvtToSint if narrow() => Some(("fcvt_to_sint", CONVERSION, CONVERT)),
            Opcode::FcvtToUintSat if narrow() => Some(("fcvt_to_uint_sat", CONVERSION, CONVERT)),
            Opcode::FcvtToSintSat if narrow() => Some(("fcvt_to_sint_sat", CONVERSION, CONVERT)),
            Opcode::ScalarToVector if narrow() => Some((
                "scalar_to_vector",
                "Cranelift has no x86-64 code for it with lanes of 8 and 16 bits",
                "use `insertlane` into a zero vector",
            )),
            _ => None,
        },
        _ => None,
    }
}
