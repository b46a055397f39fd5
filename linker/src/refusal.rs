//! The kinds of relocation that are refused: their names, why, and the remedy.

use object::elf;

/// Why a kind is refused, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A narrow absolute address.
    Absolute,
    /// Thread-local storage.
    ThreadLocal,
    /// A GOT-relative form of the medium and large code models.
    CodeModel,
    /// The size of a symbol.
    Size,
    /// The encodings of APX.
    Apx,
    /// A kind that occurs in linked files only.
    LinkedOnly,
    /// A PC-relative field of 8 or 16 bits.
    Narrow,
}

impl Refusal {
    /// Why, in a phrase that follows a relocation's name.
    pub fn what(self) -> &'static str {
        match self {
            Self::Absolute => "needs an absolute address",
            Self::ThreadLocal => "is for thread-local storage, which is not supported yet",
            Self::CodeModel => "belongs to the medium or large code model, not supported yet",
            Self::Size => "asks for a symbol's size, which is not supported yet",
            Self::Apx => "belongs to an APX instruction, not supported",
            Self::LinkedOnly => "occurs in linked files only",
            Self::Narrow => "has a narrow field, which is not supported yet",
        }
    }

    /// The reason, where the phrase does not hold it.
    pub fn why(self) -> Option<&'static str> {
        match self {
            Self::Absolute => Some(
                "a worker's base is known only at attach, and the field is too narrow to hold S + A",
            ),
            _ => None,
        }
    }

    /// The remedy: what to compile the object with.
    pub fn compile_with(self) -> Option<&'static str> {
        match self {
            Self::Absolute => Some("-fPIC"),
            Self::CodeModel => Some("-mcmodel=small"),
            Self::Apx => Some("-mno-apxf"),
            Self::ThreadLocal | Self::Size | Self::LinkedOnly | Self::Narrow => None,
        }
    }
}

/// The kinds that the psABI names and that [`TABLE`](crate::relocation::TABLE) lacks.
pub(crate) static REFUSED: &[(u32, &str, Refusal)] = &[
    (elf::R_X86_64_GOT32, "R_X86_64_GOT32", Refusal::CodeModel),
    (elf::R_X86_64_COPY, "R_X86_64_COPY", Refusal::LinkedOnly),
    (
        elf::R_X86_64_GLOB_DAT,
        "R_X86_64_GLOB_DAT",
        Refusal::LinkedOnly,
    ),
    (
        elf::R_X86_64_JUMP_SLOT,
        "R_X86_64_JUMP_SLOT",
        Refusal::LinkedOnly,
    ),
    (
        elf::R_X86_64_RELATIVE,
        "R_X86_64_RELATIVE",
        Refusal::LinkedOnly,
    ),
    (elf::R_X86_64_32, "R_X86_64_32", Refusal::Absolute),
    (elf::R_X86_64_32S, "R_X86_64_32S", Refusal::Absolute),
    (elf::R_X86_64_16, "R_X86_64_16", Refusal::Absolute),
    (elf::R_X86_64_PC16, "R_X86_64_PC16", Refusal::Narrow),
    (elf::R_X86_64_8, "R_X86_64_8", Refusal::Absolute),
    (elf::R_X86_64_PC8, "R_X86_64_PC8", Refusal::Narrow),
    (
        elf::R_X86_64_DTPMOD64,
        "R_X86_64_DTPMOD64",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_DTPOFF64,
        "R_X86_64_DTPOFF64",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_TPOFF64,
        "R_X86_64_TPOFF64",
        Refusal::ThreadLocal,
    ),
    (elf::R_X86_64_TLSGD, "R_X86_64_TLSGD", Refusal::ThreadLocal),
    (elf::R_X86_64_TLSLD, "R_X86_64_TLSLD", Refusal::ThreadLocal),
    (
        elf::R_X86_64_DTPOFF32,
        "R_X86_64_DTPOFF32",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_GOTTPOFF,
        "R_X86_64_GOTTPOFF",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_TPOFF32,
        "R_X86_64_TPOFF32",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_GOTOFF64,
        "R_X86_64_GOTOFF64",
        Refusal::CodeModel,
    ),
    (
        elf::R_X86_64_GOTPC32,
        "R_X86_64_GOTPC32",
        Refusal::CodeModel,
    ),
    (elf::R_X86_64_GOT64, "R_X86_64_GOT64", Refusal::CodeModel),
    (
        elf::R_X86_64_GOTPCREL64,
        "R_X86_64_GOTPCREL64",
        Refusal::CodeModel,
    ),
    (
        elf::R_X86_64_GOTPC64,
        "R_X86_64_GOTPC64",
        Refusal::CodeModel,
    ),
    (
        elf::R_X86_64_GOTPLT64,
        "R_X86_64_GOTPLT64",
        Refusal::CodeModel,
    ),
    (
        elf::R_X86_64_PLTOFF64,
        "R_X86_64_PLTOFF64",
        Refusal::CodeModel,
    ),
    (elf::R_X86_64_SIZE32, "R_X86_64_SIZE32", Refusal::Size),
    (elf::R_X86_64_SIZE64, "R_X86_64_SIZE64", Refusal::Size),
    (
        elf::R_X86_64_GOTPC32_TLSDESC,
        "R_X86_64_GOTPC32_TLSDESC",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_TLSDESC_CALL,
        "R_X86_64_TLSDESC_CALL",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_TLSDESC,
        "R_X86_64_TLSDESC",
        Refusal::ThreadLocal,
    ),
    (
        elf::R_X86_64_IRELATIVE,
        "R_X86_64_IRELATIVE",
        Refusal::LinkedOnly,
    ),
    (
        elf::R_X86_64_RELATIVE64,
        "R_X86_64_RELATIVE64",
        Refusal::LinkedOnly,
    ),
    (
        elf::R_X86_64_CODE_4_GOTPCRELX,
        "R_X86_64_CODE_4_GOTPCRELX",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_4_GOTTPOFF,
        "R_X86_64_CODE_4_GOTTPOFF",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_4_GOTPC32_TLSDESC,
        "R_X86_64_CODE_4_GOTPC32_TLSDESC",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_5_GOTPCRELX,
        "R_X86_64_CODE_5_GOTPCRELX",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_5_GOTTPOFF,
        "R_X86_64_CODE_5_GOTTPOFF",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_5_GOTPC32_TLSDESC,
        "R_X86_64_CODE_5_GOTPC32_TLSDESC",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_6_GOTPCRELX,
        "R_X86_64_CODE_6_GOTPCRELX",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_6_GOTTPOFF,
        "R_X86_64_CODE_6_GOTTPOFF",
        Refusal::Apx,
    ),
    (
        elf::R_X86_64_CODE_6_GOTPC32_TLSDESC,
        "R_X86_64_CODE_6_GOTPC32_TLSDESC",
        Refusal::Apx,
    ),
];

/// The name of a kind that is refused, and why; `None` if the psABI does not know the number.
pub fn refusal(number: u32) -> Option<(&'static str, Refusal)> {
    REFUSED
        .iter()
        .find(|row| row.0 == number)
        .map(|&(_, name, refusal)| (name, refusal))
}
