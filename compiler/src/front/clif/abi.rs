//! CLIF signatures: which can be compiled, and which a host can call by.

use cranelift_codegen::ir::entities::AnyEntity;
use cranelift_codegen::ir::{self, ArgumentExtension, ArgumentPurpose, Function, types};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::packed_option::ReservedValue;
use jitcast_runtime::signature::{MAX_PARAMS, Signature, Type};

use super::error::ClifFault;

/// The signature as hosts know signatures, if they can: one result at most, and only integers, pointers and
/// floating-point numbers.
///
/// CLIF has no signs; an integer that is declared `uext` is given as unsigned.
pub(super) fn listed(signature: &ir::Signature) -> Option<Signature> {
    let ty = |param: &ir::AbiParam| {
        let unsigned = param.extension == ArgumentExtension::Uext;
        let ty = match param.value_type {
            types::I8 if unsigned => Type::U8,
            types::I8 => Type::I8,
            types::I16 if unsigned => Type::U16,
            types::I16 => Type::I16,
            types::I32 if unsigned => Type::U32,
            types::I32 => Type::I32,
            types::I64 if unsigned => Type::U64,
            types::I64 => Type::I64,
            types::F32 => Type::F32,
            types::F64 => Type::F64,
            _ => return None,
        };
        (param.purpose == ArgumentPurpose::Normal).then_some(ty)
    };
    let returns = match signature.returns.as_slice() {
        [] => None,
        [result] => Some(ty(result)?),
        _ => return None,
    };
    let params: Option<Vec<_>> = signature.params.iter().map(ty).collect();
    let params = params.filter(|params| params.len() <= MAX_PARAMS)?;
    Some(Signature { params, returns })
}

/// Refuses signatures, the function's own and those that it calls by, that Cranelift has no code for.
///
/// What is refused by its word alone ([`super::scan`]) is not looked for again, but for conventions: a
/// signature could have got one in another way.
pub(super) fn check(func: &Function) -> Result<(), (AnyEntity, ClifFault)> {
    one(&func.signature).map_err(|fault| (AnyEntity::Function, fault))?;
    for (func_ref, data) in &func.dfg.ext_funcs {
        // References that the text skips have no signature.
        if !data.signature.is_reserved_value()
            && let Some(signature) = func.dfg.signatures.get(data.signature)
        {
            one(signature).map_err(|fault| (func_ref.into(), fault))?;
        }
    }
    for (sig_ref, signature) in &func.dfg.signatures {
        one(signature).map_err(|fault| (sig_ref.into(), fault))?;
    }
    Ok(())
}

fn one(signature: &ir::Signature) -> Result<(), ClifFault> {
    let refuse = |what: String, why, help| Err(ClifFault::Unsupported { what, why, help });
    if signature.call_conv != CallConv::SystemV {
        return refuse(
            signature.call_conv.to_string(),
            "hosts and units call one another by the System V convention only",
            "write `system_v`, or nothing: it is the default",
        );
    }
    let all = signature.params.iter().chain(&signature.returns);
    match all
        .map(|param| param.value_type)
        .find(|ty| *ty == types::I128)
    {
        Some(_) => refuse(
            format!("{signature}"),
            "Cranelift does not pass or return `i128` by the System V convention",
            "pass it as two `i64`, or a pointer to it",
        ),
        None => Ok(()),
    }
}
