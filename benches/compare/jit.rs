//! Cranelift's own JIT, in each process for itself.

use std::collections::HashMap;
use std::sync::Arc;

use cranelift_codegen::ir::{ExternalName, Function, UserExternalName};
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module, default_libcall_names};

/// What compiles, made once in a process.
pub(crate) type Isa = Arc<dyn TargetIsa>;

/// As jitcast's front end has it.
pub(crate) fn isa() -> Isa {
    let mut flags = settings::builder();
    for (name, value) in [
        ("opt_level", "speed"),
        ("use_colocated_libcalls", "false"),
        ("is_pic", "false"),
    ] {
        flags.set(name, value).unwrap();
    }
    let builder = cranelift_native::builder().unwrap();
    builder.finish(settings::Flags::new(flags)).unwrap()
}

/// Code that can be called until this is dropped.
pub(crate) struct Jit {
    module: Option<JITModule>,
    ids: HashMap<String, FuncId>,
}

impl Jit {
    fn new(isa: &Isa) -> Self {
        let builder = JITBuilder::with_isa(Arc::clone(isa), default_libcall_names());
        Self {
            module: Some(JITModule::new(builder)),
            ids: HashMap::new(),
        }
    }

    fn module(&mut self) -> &mut JITModule {
        self.module.as_mut().expect("there until it is dropped")
    }

    /// Compiles CLIF.
    pub(crate) fn compile(isa: &Isa, text: &str) -> Self {
        let mut jit = Self::new(isa);
        let functions = cranelift_reader::parse_functions(text).unwrap();
        for function in &functions {
            let name = function.name.to_string();
            let name = name.trim_start_matches('%');
            let declared =
                jit.module()
                    .declare_function(name, Linkage::Export, &function.signature);
            jit.ids.insert(name.to_owned(), declared.unwrap());
        }
        let mut context = jit.module().make_context();
        for function in functions {
            let (function, id) = jit.bound(function);
            context.func = function;
            jit.module().define_function(id, &mut context).unwrap();
            context.clear();
        }
        jit.module().finalize_definitions().unwrap();
        jit
    }

    /// Takes code that is compiled already.
    pub(crate) fn load(isa: &Isa, name: &str, code: &[u8]) -> Self {
        let mut jit = Self::new(isa);
        let signature = jit.module().make_signature();
        let id = jit
            .module()
            .declare_function(name, Linkage::Export, &signature)
            .unwrap();
        jit.module()
            .define_function_bytes(id, 16, code, &[])
            .unwrap();
        jit.module().finalize_definitions().unwrap();
        jit.ids.insert(name.to_owned(), id);
        jit
    }

    /// Gives the functions that it calls the names by which the module knows them.
    fn bound(&self, mut function: Function) -> (Function, FuncId) {
        let id = |name: String| self.ids[name.trim_start_matches('%')];
        let callees: Vec<_> = function.dfg.ext_funcs.keys().collect();
        for callee in callees {
            let ExternalName::TestCase(name) = &function.dfg.ext_funcs[callee].name else {
                continue;
            };
            let user = UserExternalName::new(0, id(name.to_string()).as_u32());
            let user = function.declare_imported_user_function(user);
            function.dfg.ext_funcs[callee].name = ExternalName::user(user);
        }
        let own = id(function.name.to_string());
        (function, own)
    }

    /// Where a function is.
    pub(crate) fn address(&self, name: &str) -> *const () {
        let module = self.module.as_ref().expect("there until it is dropped");
        module.get_finalized_function(self.ids[name]).cast()
    }
}

impl Drop for Jit {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: nothing calls its functions any more.
            unsafe { module.free_memory() };
        }
    }
}
