//! Gives every symbol that a function refers to the name by which the linker knows what is meant: `f` to
//! call it, `f@addr` for its address.
//!
//! Cranelift loads both through the GOT (position-independent code has no `call *slot(%rip)`), and the two
//! read different cells: a callee changes when `f` is replaced, an address is `f`'s for good. Afterwards
//! every name is a [`UserExternalName`] whose index counts [`Symbols`].

use std::collections::HashMap;

use cranelift_codegen::entity::EntityRef;
use cranelift_codegen::ir::{
    self, ExternalName, FuncRef, Function, GlobalValueData, InstructionData, LibCall,
    UserExternalName,
};

use super::error::ClifFault;

/// What a taken address adds to the symbol's name.
pub(super) const ADDRESS_SUFFIX: &str = "@addr";

/// The symbols that a function refers to.
#[derive(Default)]
pub(super) struct Symbols {
    names: Vec<String>,
    indices: HashMap<String, u32>,
}

impl Symbols {
    /// The name of symbol number `index`.
    pub(super) fn name(&self, index: u32) -> Option<&str> {
        self.names.get(index as usize).map(String::as_str)
    }

    fn refer(&mut self, func: &mut Function, name: String) -> ExternalName {
        let index = match self.indices.get(&name) {
            Some(index) => *index,
            None => {
                // Bounded by the number of names in the text.
                let index = self.names.len() as u32;
                self.names.push(name.clone());
                self.indices.insert(name, index);
                index
            }
        };
        ExternalName::user(func.declare_imported_user_function(UserExternalName::new(0, index)))
    }
}

/// A function that is declared otherwise than the file defines it.
pub(super) struct Misdeclared {
    pub(super) func_ref: FuncRef,
    pub(super) fault: ClifFault,
}

/// The functions that a file defines, and how.
pub(super) type Defined = HashMap<String, ir::Signature>;

/// The symbol that `name` means: a function of this file, else what Cranelift's library call of that
/// name is in libc and libm, else the name itself.
fn symbol(name: &ExternalName, defined: &Defined, libcalls: &dyn Fn(LibCall) -> String) -> String {
    let text = name.display(None).to_string();
    let text = text.strip_prefix('%').unwrap_or(&text);
    match name {
        ExternalName::LibCall(libcall) if !defined.contains_key(text) => libcalls(*libcall),
        _ => text.to_owned(),
    }
}

/// The function references that instructions use, and whether for calls and for addresses.
fn uses(func: &Function) -> Vec<(FuncRef, bool, bool)> {
    let mut uses: Vec<(bool, bool)> = vec![(false, false); func.dfg.ext_funcs.len()];
    for block in func.layout.blocks() {
        for inst in func.layout.block_insts(block) {
            let (func_ref, address) = match func.dfg.insts[inst] {
                InstructionData::Call { func_ref, .. } => (func_ref, false),
                InstructionData::FuncAddr { func_ref, .. } => (func_ref, true),
                _ => continue,
            };
            if let Some(used) = uses.get_mut(func_ref.index()) {
                used.0 |= !address;
                used.1 |= address;
            }
        }
    }
    let used = uses
        .into_iter()
        .enumerate()
        .filter(|(_, (call, address))| *call || *address);
    used.map(|(index, (call, address))| (FuncRef::new(index), call, address))
        .collect()
}

/// The functions that `func` refers to and their signatures as it declares them, without those of this file.
pub(super) fn imports(
    func: &Function,
    defined: &Defined,
    libcalls: &dyn Fn(LibCall) -> String,
) -> Result<Vec<(String, ir::Signature)>, Misdeclared> {
    let mut imports = Vec::new();
    for (func_ref, ..) in uses(func) {
        let data = &func.dfg.ext_funcs[func_ref];
        let name = symbol(&data.name, defined, libcalls);
        let declared = &func.dfg.signatures[data.signature];
        match defined.get(&name) {
            Some(signature) if signature == declared => {}
            Some(signature) => {
                let fault = ClifFault::Declared {
                    name,
                    declared: declared.to_string(),
                    defined: signature.to_string(),
                };
                return Err(Misdeclared { func_ref, fault });
            }
            None => imports.push((name, declared.clone())),
        }
    }
    Ok(imports)
}

/// Names what `func` calls `f` and what it takes the address of `f@addr`.
///
/// A function of this file is called directly, whatever the text says of `colocated`; its address is the one
/// by which everybody knows it, also here.
pub(super) fn assign(
    func: &mut Function,
    defined: &Defined,
    libcalls: &dyn Fn(LibCall) -> String,
) -> Symbols {
    let mut symbols = Symbols::default();
    let mut addresses: HashMap<FuncRef, FuncRef> = HashMap::new();
    for (func_ref, called, address) in uses(func) {
        let data = func.dfg.ext_funcs[func_ref].clone();
        let name = symbol(&data.name, defined, libcalls);
        if address {
            let mut data = data.clone();
            data.name = symbols.refer(func, format!("{name}{ADDRESS_SUFFIX}"));
            data.colocated = false;
            addresses.insert(func_ref, func.import_function(data));
        }
        if called {
            let own = defined.contains_key(&name);
            let name = symbols.refer(func, name);
            let data = &mut func.dfg.ext_funcs[func_ref];
            data.name = name;
            data.colocated = own;
        }
    }
    let blocks: Vec<_> = func.layout.blocks().collect();
    for block in blocks {
        let mut next = func.layout.first_inst(block);
        while let Some(inst) = next {
            if let InstructionData::FuncAddr { func_ref, .. } = &mut func.dfg.insts[inst]
                && let Some(address) = addresses.get(func_ref)
            {
                *func_ref = *address;
            }
            next = func.layout.next_inst(inst);
        }
    }
    for global in func.global_values.keys().collect::<Vec<_>>() {
        if let GlobalValueData::Symbol { name, .. } = &func.global_values[global] {
            let name = symbol(name, defined, libcalls);
            let address = symbols.refer(func, format!("{name}{ADDRESS_SUFFIX}"));
            if let GlobalValueData::Symbol {
                name, colocated, ..
            } = &mut func.global_values[global]
            {
                *name = address;
                *colocated = false;
            }
        }
    }
    symbols
}
