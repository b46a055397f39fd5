//! Why an input is refused: as data, and as text of three parts (what and where; why; the remedy).
//!
//! Invariant: nothing is flattened into text before it is displayed.

use core::fmt;
use core::ops::Deref;

use thiserror::Error;

use crate::relocation::{OutOfRange, Refusal};

/// The failure of a link. Boxed, since it is rare and holds much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkError(Box<Failure>);

/// What failed, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The object, `score.o` or `libx.a(score.o)`, or the unit's name if no single object is at fault.
    pub file: String,
    /// Where in the object.
    pub site: Option<Site>,
    /// What is wrong.
    pub problem: Problem,
}

/// A place in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The section's name.
    pub section: String,
    /// Offset in the section, bytes.
    pub offset: u64,
    /// The function or object around it.
    pub function: Option<String>,
}

impl LinkError {
    pub(crate) fn new(file: impl Into<String>, problem: Problem) -> Self {
        Self(Box::new(Failure {
            file: file.into(),
            site: None,
            problem,
        }))
    }

    pub(crate) fn at(file: impl Into<String>, site: Site, problem: Problem) -> Self {
        Self(Box::new(Failure {
            file: file.into(),
            site: Some(site),
            problem,
        }))
    }
}

impl Deref for LinkError {
    type Target = Failure;

    fn deref(&self) -> &Failure {
        &self.0
    }
}

impl std::error::Error for LinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if let Some(site) = &self.site {
            write!(f, "{}+{:#x}", site.section, site.offset)?;
            if let Some(function) = &site.function {
                write!(f, " in `{function}`")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}", self.problem)?;
        if let Some(why) = self.problem.why() {
            write!(f, "\n  {why}")?;
        }
        if let Some(help) = self.help() {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl Failure {
    /// The remedy, if there is one.
    pub fn help(&self) -> Option<String> {
        self.problem.help(&self.file)
    }
}

/// What a section asks for that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionRefusal {
    /// `.jitcast.*`, and not `.jitcast.shared`.
    Reserved,
    /// `.jitcast.shared` with `SHF_EXECINSTR` or `SHF_TLS`, without `SHF_ALLOC` or `SHF_WRITE`, or of another type than data.
    SharedFlags,
    /// `SHF_TLS` without `SHF_WRITE`, or with `SHF_EXECINSTR`.
    ThreadLocal,
    /// `.init_array` and the like.
    Constructors,
    /// `.fini_array` and the like.
    Destructors,
    /// An entry of `.init_array` or the like that is no function's address.
    StartupEntry,
    /// Code and data, or bytes and zeros, under one name that something asks the bounds of.
    MixedBounds,
    /// Both `SHF_WRITE` and `SHF_EXECINSTR`.
    WritableText,
    /// `SHF_COMPRESSED` and `SHF_ALLOC`.
    Compressed,
    /// Another flag.
    Flags(u64),
    /// A type that is not placed.
    Type(u32),
    /// `.note.GNU-stack` with `SHF_EXECINSTR`.
    ExecutableStack,
    /// `SHT_NOBITS` with `SHF_EXECINSTR`.
    TextWithoutBytes,
    /// `.eh_frame` of a form that is not known.
    Frames(&'static str),
}

impl SectionRefusal {
    fn why(self) -> String {
        match self {
            Self::Reserved => "no section of this name means anything to jitcast".into(),
            Self::SharedFlags => {
                "shared data are plain data that can be written to: neither constants nor code nor thread-local".into()
            }
            Self::ThreadLocal => "thread-local storage is data that can be written to".into(),
            Self::Constructors => "nobody would run its constructors".into(),
            Self::Destructors => "nobody would run its destructors".into(),
            Self::StartupEntry => "it holds an entry that is no address of a function".into(),
            Self::MixedBounds => {
                "its parts cannot lie together, and something asks where it starts or ends".into()
            }
            Self::WritableText => "no page is both writable and executable".into(),
            Self::Compressed => "only sections that are not loaded may be compressed".into(),
            Self::Flags(flags) => format!("its flags {flags:#x} are not supported"),
            Self::Type(kind) => format!("its type {kind:#x} is not supported"),
            Self::ExecutableStack => "workers have no executable stack".into(),
            Self::TextWithoutBytes => "code has to have bytes".into(),
            Self::Frames(what) => what.into(),
        }
    }

    fn help(self, file: &str) -> Option<String> {
        match self {
            Self::Reserved => Some(format!(
                "shared data lie in .jitcast.shared or .jitcast.shared.NAME; rename the section of {file}"
            )),
            Self::SharedFlags => Some(format!(
                "leave `const` and `__thread` out of what {file} puts there, and flags other than \"aw\""
            )),
            Self::ExecutableStack => Some(format!(
                "take no address of a nested function in {file}, or mark its assembly with .note.GNU-stack"
            )),
            _ => None,
        }
    }
}

/// What a symbol is that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolRefusal {
    /// `STT_GNU_IFUNC`.
    IndirectFunction,
    /// `STB_GNU_UNIQUE`.
    Unique,
    /// `name@VERSION` in the Cranelift dialect.
    Versioned,
    /// `name@VERSION`, defined.
    OldVersion,
    /// `name@VERSION`, and another version elsewhere.
    TwoVersions,
    /// Hidden or internal, and nobody defines it.
    Hidden,
    /// Defined only in a COMDAT member that was discarded.
    Discarded,
    /// Defined in a section that is not placed.
    NotPlaced,
    /// To be copied from the host, and published.
    CopyOfPublished,
    /// Carried over from an earlier version, and reached by its section.
    CarriedBySection,
    /// Carried over from another place than what it is part of.
    CarriedApart,
    /// `STB_GNU_UNIQUE`, in shared data.
    SharedUnique,
}

impl SymbolRefusal {
    fn what(self) -> &'static str {
        match self {
            Self::IndirectFunction => {
                "is an indirect function (STT_GNU_IFUNC), whose resolver nobody would run"
            }
            Self::Unique => {
                "is unique in the process (STB_GNU_UNIQUE), where nobody keeps one copy"
            }
            Self::Versioned => "has a version, which this front end does not know",
            Self::OldVersion => {
                "defines a version that is not the default one, which is not supported"
            }
            Self::TwoVersions => "is asked for in two versions, of which a unit can have one",
            Self::Hidden => "is hidden, and no file of the unit defines it",
            Self::Discarded => "is defined only in a section that its COMDAT group discarded",
            Self::NotPlaced => "lies in a section that is not loaded",
            Self::CopyOfPublished => "is published, and only data of the host are copied",
            Self::CarriedBySection => {
                "is to keep its contents, but code may refer to it by its section, which it shares with other data"
            }
            Self::CarriedApart => {
                "is to keep its contents, but overlaps a datum that lay elsewhere before"
            }
            Self::SharedUnique => {
                "is unique in each process (STB_GNU_UNIQUE), but lies in shared data, which are one for all processes"
            }
        }
    }

    fn help(self, file: &str) -> Option<String> {
        match self {
            Self::Unique | Self::SharedUnique => {
                Some(format!("compile {file} with -fno-gnu-unique"))
            }
            Self::CarriedBySection => Some(format!("compile {file} with -fdata-sections")),
            Self::Hidden => Some("add the file that defines it to the unit".into()),
            _ => None,
        }
    }
}

/// What is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Problem {
    /// No ELF magic, no archive magic.
    #[error("is not an ELF object or archive")]
    NotElf,
    /// LLVM bitcode.
    #[error("is LLVM bitcode, not machine code")]
    Bitcode,
    /// A GCC object that holds only its intermediate language.
    #[error("holds link-time optimisation code only, no machine code")]
    LinkTimeOnly,
    /// ELF of the wrong word size.
    #[error("is a 32-bit ELF file, not a 64-bit one")]
    Class,
    /// Big-endian ELF.
    #[error("is a big-endian ELF file")]
    Endian,
    /// ELF for another machine.
    #[error("is for ELF machine {0}, not for x86-64 (62)")]
    Machine(u16),
    /// An executable.
    #[error("is an executable, not a relocatable object")]
    Executable,
    /// A shared library or position-independent executable.
    #[error("is a shared library or executable, not a relocatable object")]
    SharedObject,
    /// A core file or worse.
    #[error("has ELF type {0}, not that of a relocatable object (1)")]
    FileType(u16),
    /// Headers that contradict the file or each other.
    #[error("is corrupt or truncated: {0}")]
    Corrupt(String),
    /// More than is allowed.
    #[error("{what} is {value}, more than {limit}")]
    Limit {
        /// What is too much.
        what: &'static str,
        /// How much it is.
        value: u64,
        /// How much it may be.
        limit: u64,
    },
    /// An archive without its members' bytes.
    #[error("is a thin archive, which only names the files of its members")]
    ThinArchive,
    /// Two strong definitions.
    #[error("duplicate symbol `{symbol}`, defined in {first} too")]
    Duplicate {
        /// The symbol.
        symbol: String,
        /// The object that defined it first.
        first: String,
    },
    /// A root that no file of the unit defines.
    #[error("is to be kept, and no file of the unit defines it")]
    NoRoot,
    /// A section that is refused.
    #[error("section {section} is refused: {}", .refusal.why())]
    Section {
        /// The section.
        section: String,
        /// Why.
        refusal: SectionRefusal,
    },
    /// A symbol that is refused.
    #[error("`{symbol}` {}", .refusal.what())]
    Symbol {
        /// The symbol.
        symbol: String,
        /// Why.
        refusal: SymbolRefusal,
    },
    /// A table of relocations of another form.
    #[error("section {section} has its relocations in a {form} table, not supported yet")]
    TableForm {
        /// The section that is relocated.
        section: String,
        /// `SHT_REL`, `SHT_RELR` or `SHT_CREL`.
        form: &'static str,
    },
    /// A kind that nobody knows.
    #[error("unknown relocation {0}")]
    UnknownRelocation(u32),
    /// A kind that is refused.
    #[error("{kind} against `{symbol}` {}", .refusal.what())]
    Refused {
        /// The relocation's name.
        kind: &'static str,
        /// The symbol.
        symbol: String,
        /// Why.
        refusal: Refusal,
    },
    /// A kind that is known, against a symbol or in an instruction that it does not go with.
    #[error("{kind} against `{symbol}` {}", .misuse.what())]
    Misused {
        /// The relocation's name.
        kind: &'static str,
        /// The symbol.
        symbol: String,
        /// Why.
        misuse: Misuse,
    },
    /// A value that the field cannot hold.
    #[error("{kind} against `{symbol}` is out of range: {} is not in {}..={}", .range.value, .range.min, .range.max)]
    OutOfRange {
        /// The relocation's name.
        kind: &'static str,
        /// The symbol.
        symbol: String,
        /// The value, and what fits.
        range: OutOfRange,
    },
    /// A field beyond the section's end.
    #[error("{kind} writes {width_bytes} bytes past the end of a section of {len_bytes}")]
    FieldOutside {
        /// The relocation's name.
        kind: &'static str,
        /// The field's width, bytes.
        width_bytes: u8,
        /// The section's length, bytes.
        len_bytes: u64,
    },
    /// The caller's placement or bindings do not fit the unit.
    #[error("cannot be linked where it was placed: {0}")]
    Placement(&'static str),
}

/// Why a relocation does not go with its symbol or its instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// `R_X86_64_64` in text, in other bytes than a `movabs`.
    AbsoluteInText,
    /// A PC-relative field in data against what is not in the unit.
    RelativeOutside,
    /// An instruction that reaches another unit's or the host's datum directly.
    DirectOutside,
    /// No instruction was found around the field.
    NoInstruction,
    /// A distance to an absolute symbol.
    RelativeToAbsolute,
    /// A branch into the middle of somebody else's function.
    BranchInside,
    /// The table's entry for itself.
    TableEntry,
    /// A thread-local symbol, as if it had one address.
    ThreadLocal,
    /// Another symbol, as if each thread had its own.
    NotThreadLocal,
    /// An address in shared data.
    AddressInShared,
}

impl Misuse {
    fn what(self) -> &'static str {
        match self {
            Self::AbsoluteInText => {
                "stores an absolute address in text, and not as the immediate of a `movabs`"
            }
            Self::RelativeOutside => "needs the distance to a symbol that the unit does not define",
            Self::DirectOutside => {
                "reaches a symbol that the unit does not define, in an instruction that cannot be redirected"
            }
            Self::NoInstruction => {
                "reaches a symbol that the unit does not define, in bytes that are no instruction"
            }
            Self::RelativeToAbsolute => "needs the distance to a fixed address",
            Self::BranchInside => {
                "branches into the middle of a function that the unit does not define"
            }
            Self::TableEntry => "asks for the entry of the global offset table in itself",
            Self::ThreadLocal => "takes a thread-local symbol for one that has an address",
            Self::NotThreadLocal => "takes a symbol for a thread-local one, which it is not",
            Self::AddressInShared => "stores an absolute address in shared data",
        }
    }

    fn why(self) -> &'static str {
        match self {
            Self::AbsoluteInText => {
                "a worker's base is known only at attach, and text is shared by all workers"
            }
            Self::RelativeOutside => {
                "where the symbol is differs between workers, and this data cannot go through a cell"
            }
            Self::DirectOutside => {
                "only `lea` into a 64-bit register and loads into 32- and 64-bit general registers can go through its cell"
            }
            Self::NoInstruction => "the code before it was decoded from the start of its function",
            Self::RelativeToAbsolute => "it differs between workers, since each has its own base",
            Self::BranchInside => "only the start of a function has a stub",
            Self::TableEntry => "the table starts where the window does, which has no cell",
            Self::ThreadLocal | Self::NotThreadLocal => {
                "two files declare it differently, with and without `__thread`"
            }
            Self::AddressInShared => {
                "all workers see the same bytes there, and each has the symbol at another address"
            }
        }
    }

    fn compile_with(self) -> Option<&'static str> {
        match self {
            Self::AbsoluteInText => Some("-fPIC"),
            Self::RelativeOutside | Self::DirectOutside | Self::NoInstruction => Some("-fPIC"),
            Self::RelativeToAbsolute
            | Self::BranchInside
            | Self::TableEntry
            | Self::ThreadLocal
            | Self::NotThreadLocal
            | Self::AddressInShared => None,
        }
    }
}

impl Problem {
    /// Why, where the first line does not say it.
    pub fn why(&self) -> Option<&'static str> {
        match self {
            Self::Refused { refusal, .. } => refusal.why(),
            Self::Misused { misuse, .. } => Some(misuse.why()),
            _ => None,
        }
    }

    fn help(&self, file: &str) -> Option<String> {
        let compile = |flags: &str| Some(format!("compile {file} with {flags}"));
        match self {
            Self::Bitcode | Self::LinkTimeOnly => Some(format!(
                "compile {file} without -flto, or with -ffat-lto-objects"
            )),
            Self::Executable => compile("-c"),
            Self::SharedObject => Some(format!(
                "compile {file} with -c, or load it in every worker as a library (--lib)"
            )),
            Self::Class => compile("-m64"),
            Self::ThinArchive => Some(format!(
                "make {file} a regular archive: ar without `T` or --thin"
            )),
            Self::Duplicate { symbol, .. } => {
                Some(format!("remove one, or make `{symbol}` static or weak"))
            }
            Self::Section { refusal, .. } => refusal.help(file),
            Self::Symbol { refusal, .. } => refusal.help(file),
            Self::TableForm {
                form: "SHT_CREL", ..
            } => compile("-Wa,--no-crel"),
            Self::OutOfRange { kind, .. } => Some(format!(
                "use a wider field than {kind}'s, or check the addend: what assembled {file} chose both"
            )),
            Self::Refused { refusal, .. } => refusal.compile_with().and_then(compile),
            Self::Misused {
                symbol,
                misuse: Misuse::AddressInShared,
                ..
            } => Some(format!(
                "keep the address of `{symbol}` in data of each worker, and an index or a distance in what {file} shares"
            )),
            Self::Misused { misuse, .. } => misuse.compile_with().and_then(compile),
            _ => None,
        }
    }
}
