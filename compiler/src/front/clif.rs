//! Cranelift's intermediate representation, as text, to an ELF object and exact signatures.
//!
//! Invariant: text is hostile. It is scanned first, verified before it is compiled, and what
//! Cranelift's own assertions still catch becomes an error: compiling never panics.

mod abi;
mod error;
mod frames;
mod limits;
mod names;
mod scan;
mod target;
mod token;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::entities::AnyEntity;
use cranelift_codegen::ir::{self, Function, UserFuncName};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::isa::unwind::UnwindInfo;
use cranelift_codegen::verifier::VerifierErrors;
use cranelift_codegen::{CodegenError, Context, verify_function};
use cranelift_module::{
    FuncId, Linkage, Module, ModuleReloc, ModuleRelocTarget, default_libcall_names,
};
use cranelift_object::{ObjectBuilder, ObjectModule};
use cranelift_reader::{Details, ParseOptions, parse_test};
use jitcast_runtime::signature::Signature;

pub use error::{ClifError, ClifFault, Place};
pub use target::{Target, TargetError};

use crate::threads::Threads;
use abi::listed;
use names::{Defined, Symbols};

/// How much text is compiled unless said otherwise, in bytes.
pub const DEFAULT_MAX_TEXT_BYTES: usize = 16 << 20;

/// How much text makes up for starting a thread, bytes: several times as long as that takes.
const BYTES_FOR_A_THREAD: usize = 4 << 10;

/// What CLIF text became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClifObject {
    /// A relocatable ELF object in [the front end's dialect](jitcast_linker::Dialect::Cranelift).
    pub object: Vec<u8>,
    /// The functions that it defines and their signatures, in the order of the text.
    pub signatures: Vec<(String, Signature)>,
    /// The functions that it defines whose signatures have no [`Signature`] (several results, vectors, `i128`,
    /// structures), with their CLIF signatures. Published code can call them, hosts cannot.
    pub unlisted: Vec<(String, String)>,
    /// The functions that it calls or takes the address of, as it declares them, if they have a
    /// [`Signature`]: sorted, a name once for each signature.
    pub imports: Vec<(String, Signature)>,
}

/// Compiles the functions of `text`; messages call it `name`.
///
/// Functions are exported by their names, `%score` as `score`. A name that the text does not define is an
/// import. Limits the text to [`DEFAULT_MAX_TEXT_BYTES`].
///
/// # Errors
///
/// The first thing that is wrong, and where.
pub fn compile(name: &str, text: &str, target: &Target) -> Result<ClifObject, ClifError> {
    let (limit, threads) = (DEFAULT_MAX_TEXT_BYTES, Threads::default());
    compile_limited(name, text, target, limit, &threads)
}

/// [`compile`], for text of at most `limit` bytes, in so many threads at once. How many does not change what comes out.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_limited(
    name: &str,
    text: &str,
    target: &Target,
    limit: usize,
    threads: &Threads,
) -> Result<ClifObject, ClifError> {
    let file = File { name };
    if text.len() > limit {
        return Err(file.fail(
            None,
            ClifFault::TooLong {
                bytes: text.len(),
                limit,
            },
        ));
    }
    let at = |(at, fault): scan::Finding| file.fail(Some(Place::of_byte(text, at.start)), fault);
    let (body, start) = scan::without_header(text).map_err(at)?;
    scan::check(text, start).map_err(at)?;
    let parsed = file.parse(&body)?;
    let (functions, details): (Vec<_>, Vec<_>) = parsed.into_iter().unzip();
    let unit = Unit::declare(file, &body, target, &functions, details)?;
    let worth = body.len() / BYTES_FOR_A_THREAD;
    let functions = threads.map(worth, functions, |index, func| unit.compile(index, func));
    unit.assemble(functions?)
}

/// The name that messages call the text by.
#[derive(Clone, Copy)]
struct File<'a> {
    name: &'a str,
}

impl File<'_> {
    fn fail(self, place: Option<Place>, fault: ClifFault) -> ClifError {
        ClifError {
            file: self.name.to_owned(),
            place,
            fault: Box::new(fault),
        }
    }

    /// Runs a piece of Cranelift, whose assertions are no reason for the compiler process to end.
    fn guarded<T>(self, stage: &str, run: impl FnOnce() -> T) -> Result<T, ClifError> {
        // Nothing that `run` can leave half done outlives this call: it owns what it changes, and the shared
        // target is immutable.
        catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
            let message = panic.downcast_ref::<String>().cloned();
            let message = message.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let message = message.unwrap_or_else(|| "a panic without a message".to_owned());
            self.fail(
                None,
                ClifFault::Internal {
                    stage: stage.to_owned(),
                    message,
                },
            )
        })
    }

    /// Parses `body`, the text without its header.
    fn parse(self, body: &str) -> Result<Vec<(Function, Details<'_>)>, ClifError> {
        let parsed = self.guarded("reading", || parse(body))?;
        let functions = parsed.map_err(|(line, message)| {
            let place = Place::of_line(body, line, |split| {
                match catch_unwind(AssertUnwindSafe(|| parse(split))) {
                    Ok(Err((line, same))) if same == message => Some(line),
                    _ => None,
                }
            });
            self.fail(Some(place), ClifFault::Syntax(message))
        })?;
        if functions.is_empty() {
            Err(self.fail(None, ClifFault::Empty))
        } else {
            Ok(functions)
        }
    }
}

/// The functions of `text`, or the line and the message of the first error.
fn parse(text: &str) -> Result<Vec<(Function, Details<'_>)>, (usize, String)> {
    let options = ParseOptions {
        default_calling_convention: CallConv::SystemV,
        ..ParseOptions::default()
    };
    match parse_test(text, options) {
        Ok(file) => Ok(file.functions),
        Err(error) => Err((error.location.line_number, error.message)),
    }
}

/// A file whose functions are known, while they are compiled.
struct Unit<'a> {
    file: File<'a>,
    body: &'a str,
    target: &'a Target,
    /// The functions' names, in the order of the text.
    names: Vec<String>,
    /// Where the functions' parts are in the text, in the same order.
    details: Vec<Details<'a>>,
    defined: Defined,
}

/// A function's code, and what it refers to.
struct Code {
    bytes: Vec<u8>,
    align_bytes: u64,
    /// With [`Symbols`]' indices in place of the module's.
    relocations: Vec<ModuleReloc>,
    symbols: Symbols,
    imports: Vec<(String, ir::Signature)>,
    /// How to unwind through it.
    frame: Option<UnwindInfo>,
}

impl<'a> Unit<'a> {
    fn declare(
        file: File<'a>,
        body: &'a str,
        target: &'a Target,
        functions: &[Function],
        details: Vec<Details<'a>>,
    ) -> Result<Self, ClifError> {
        let mut unit = Self {
            file,
            body,
            target,
            names: Vec::new(),
            details,
            defined: Defined::new(),
        };
        for (index, func) in functions.iter().enumerate() {
            let fail = |fault| file.fail(Some(Place::of_function(body, index)), fault);
            let name = match &func.name {
                UserFuncName::Testcase(name) => String::from_utf8_lossy(name.raw()).into_owned(),
                UserFuncName::User(name) => {
                    return Err(fail(ClifFault::NumberedName(name.to_string())));
                }
            };
            if unit
                .defined
                .insert(name.clone(), func.signature.clone())
                .is_some()
            {
                let first = unit
                    .names
                    .iter()
                    .position(|other| *other == name)
                    .unwrap_or_default();
                let first_line = Place::of_function(body, first).line;
                return Err(fail(ClifFault::Duplicate { name, first_line }));
            }
            unit.names.push(name);
        }
        Ok(unit)
    }

    /// Verifies function number `index` and compiles it.
    fn compile(&self, index: usize, mut func: Function) -> Result<Code, ClifError> {
        let isa = self.target.isa();
        let name = &self.names[index];
        let stage = format!("verifying `{name}`");
        let verified = self.file.guarded(&stage, || verify_function(&func, isa))?;
        verified.map_err(|errors| self.invalid(index, errors))?;
        if func.layout.entry_block().is_none() {
            let (function, message) = (name.clone(), "the function has no block".to_owned());
            let fault = ClifFault::Invalid {
                function,
                message,
                more: 0,
            };
            return Err(self.fail_at(index, AnyEntity::Function, fault));
        }
        abi::check(&func)
            .and_then(|()| limits::check(&func))
            .map_err(|(entity, fault)| self.fail_at(index, entity, fault))?;
        self.check_offsets(index, &func)?;
        let libcalls = default_libcall_names();
        let imports = names::imports(&func, &self.defined, &*libcalls)
            .map_err(|found| self.fail_at(index, found.func_ref.into(), found.fault))?;
        let symbols = names::assign(&mut func, &self.defined, &*libcalls);
        let mut context = Context::for_function(func);
        let compiled = self.file.guarded(&format!("compiling `{name}`"), || {
            let compiled = context.compile(isa, &mut ControlPlane::default());
            let code = compiled.map_err(|error| error.inner)?;
            let bytes = code.buffer.data().to_vec();
            let align_bytes = u64::from(code.buffer.alignment);
            Ok((bytes, align_bytes, code.create_unwind_info(isa)?))
        })?;
        let (bytes, align_bytes, frame) =
            compiled.map_err(|error| self.uncompiled(index, error))?;
        // The function's own number in the module is put in by `assemble`.
        let own = FuncId::from_u32(0);
        let relocations = context
            .compiled_code()
            .map_or(&[][..], |code| code.buffer.relocs())
            .iter();
        let relocations = relocations
            .map(|r| ModuleReloc::from_mach_reloc(r, &context.func, own))
            .collect();
        Ok(Code {
            bytes,
            align_bytes,
            relocations,
            symbols,
            imports,
            frame,
        })
    }

    /// Offsets from symbols become 32-bit immediates.
    fn check_offsets(&self, index: usize, func: &Function) -> Result<(), ClifError> {
        for (global, data) in &func.global_values {
            if let ir::GlobalValueData::Symbol { name, offset, .. } = data
                && i32::try_from(offset.bits()).is_err()
            {
                let name = name.display(None).to_string();
                let fault = ClifFault::Offset {
                    name,
                    offset: offset.bits(),
                };
                return Err(self.fail_at(index, global.into(), fault));
            }
        }
        Ok(())
    }

    /// An error where `entity` of function number `index` is defined, else at the function's name.
    fn fail_at(&self, index: usize, entity: AnyEntity, fault: ClifFault) -> ClifError {
        let place = match (entity, self.details[index].map.location(entity)) {
            (AnyEntity::Inst(_) | AnyEntity::Block(_) | AnyEntity::Value(_), Some(location)) => {
                Place::of_line(self.body, location.line_number, |split| {
                    let functions = catch_unwind(AssertUnwindSafe(|| parse(split))).ok()?.ok()?;
                    let location = functions.get(index)?.1.map.location(entity);
                    location.map(|location| location.line_number)
                })
            }
            // The parser's lines of declarations are sometimes those of what follows.
            (AnyEntity::Function, _) => Place::of_function(self.body, index),
            _ => Place::of_declaration(self.body, index, &entity.to_string()),
        };
        self.file.fail(Some(place), fault)
    }

    fn invalid(&self, index: usize, errors: VerifierErrors) -> ClifError {
        let more = errors.0.len().saturating_sub(1);
        let (entity, message) = match errors.0.into_iter().next() {
            Some(error) => (error.location, error.message),
            None => (AnyEntity::Function, "not valid".to_owned()),
        };
        let fault = ClifFault::Invalid {
            function: self.names[index].clone(),
            message,
            more,
        };
        self.fail_at(index, entity, fault)
    }

    fn uncompiled(&self, index: usize, error: CodegenError) -> ClifError {
        match error {
            CodegenError::Verifier(errors) => self.invalid(index, errors),
            error => {
                let (function, message) = (self.names[index].clone(), error.to_string());
                let fault = ClifFault::Codegen { function, message };
                self.fail_at(index, AnyEntity::Function, fault)
            }
        }
    }

    /// Puts the functions' code together.
    fn assemble(&self, functions: Vec<Code>) -> Result<ClifObject, ClifError> {
        let internal = |message: String| {
            self.file.fail(
                None,
                ClifFault::Internal {
                    stage: "writing the object".into(),
                    message,
                },
            )
        };
        let builder = ObjectBuilder::new(
            self.target.owned_isa(),
            self.file.name,
            default_libcall_names(),
        );
        let mut module = ObjectModule::new(builder.map_err(|error| internal(error.to_string()))?);
        let mut ids: HashMap<&str, FuncId> = HashMap::new();
        for name in &self.names {
            let id = module.declare_function(name, Linkage::Export, &self.defined[name]);
            ids.insert(name, id.map_err(|error| internal(error.to_string()))?);
        }
        // What is imported is a name only: its signature has been checked where it matters.
        let unknown = ir::Signature::new(CallConv::SystemV);
        let mut imports = BTreeSet::new();
        for (code, own) in functions.iter().zip(&self.names) {
            let mut relocations = code.relocations.clone();
            for relocation in &mut relocations {
                relocation.name = match relocation.name {
                    ModuleRelocTarget::User { index, .. } => {
                        let name = code.symbols.name(index).unwrap_or_default();
                        let id = match ids.get(name) {
                            Some(id) => *id,
                            None => {
                                let id = module.declare_function(name, Linkage::Import, &unknown);
                                let id = id.map_err(|error| internal(error.to_string()))?;
                                ids.insert(name, id);
                                id
                            }
                        };
                        id.into()
                    }
                    ModuleRelocTarget::FunctionOffset(_, offset) => {
                        ModuleRelocTarget::FunctionOffset(ids[own.as_str()], offset)
                    }
                    ref known => known.clone(),
                };
            }
            let defined = module.define_function_bytes(
                ids[own.as_str()],
                code.align_bytes,
                &code.bytes,
                &relocations,
            );
            defined.map_err(|error| internal(error.to_string()))?;
            imports.extend(code.imports.iter().filter_map(|(name, signature)| {
                Some((name.clone(), listed(signature)?.to_string()))
            }));
        }
        let object = self.file.guarded("writing the object", || {
            let mut product = module.finish();
            let frames = functions.iter().zip(&self.names);
            let frames = frames.filter_map(|(code, name)| {
                Some((
                    product.function_symbol(ids[name.as_str()]),
                    code.frame.as_ref()?,
                ))
            });
            let frames: Vec<_> = frames.collect();
            frames::write(&mut product.object, self.target.isa(), &frames)?;
            product.emit().map_err(|error| error.to_string())
        })?;
        let mut unit = ClifObject {
            object: object.map_err(internal)?,
            signatures: Vec::new(),
            unlisted: Vec::new(),
            imports: Vec::new(),
        };
        for name in &self.names {
            match listed(&self.defined[name]) {
                Some(signature) => unit.signatures.push((name.clone(), signature)),
                None => unit
                    .unlisted
                    .push((name.clone(), self.defined[name].to_string())),
            }
        }
        let imports = imports.into_iter();
        unit.imports = imports
            .filter_map(|(name, text)| Some((name, text.parse().ok()?)))
            .collect();
        Ok(unit)
    }
}
