//! The kinds of relocation that are refused, always or against some symbols: why, and the remedy.

use object::elf;

/// Why a kind is refused, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A narrow absolute address in the window or in the host.
    Absolute,
    /// The local-exec model of thread-local storage.
    LocalExec,
    /// The initial-exec model, against what the host does not have.
    InitialExec,
    /// Descriptors of thread-local storage.
    Descriptor,
    /// A place in another unit's block of thread-local storage.
    OtherBlock,
    /// The size of a symbol that somebody else defines.
    Size,
    /// The encodings of APX.
    Apx,
    /// A kind that occurs in linked files only.
    LinkedOnly,
}

impl Refusal {
    /// Why, in a phrase that follows a relocation's name.
    pub fn what(self) -> &'static str {
        match self {
            Self::Absolute => "needs an absolute address",
            Self::LocalExec => "is of the local-exec model of thread-local storage",
            Self::InitialExec => {
                "is of the initial-exec model of thread-local storage, and the host does not define it"
            }
            Self::Descriptor => "is of the descriptor dialect of thread-local storage",
            Self::OtherBlock => {
                "needs a place in the unit's own block of thread-local storage, where it is not"
            }
            Self::Size => "asks for the size of a symbol that the unit does not define",
            Self::Apx => "belongs to an APX instruction, not supported",
            Self::LinkedOnly => "occurs in linked files only",
        }
    }

    /// The reason, where the phrase does not hold it.
    pub fn why(self) -> Option<&'static str> {
        match self {
            Self::Absolute => Some(
                "a worker's base is known only at attach, and the field is too narrow to hold S + A",
            ),
            Self::LocalExec | Self::InitialExec => Some(
                "threads that are older than the unit have no room for it at a fixed distance from their thread pointer",
            ),
            _ => None,
        }
    }

    /// The remedy: what to compile the object with.
    pub fn compile_with(self) -> Option<&'static str> {
        match self {
            Self::Absolute => Some("-fPIC"),
            Self::Apx => Some("-mno-apxf"),
            Self::LocalExec | Self::InitialExec => Some("-fPIC -ftls-model=global-dynamic"),
            Self::Descriptor => Some("-mtls-dialect=gnu"),
            Self::OtherBlock | Self::Size | Self::LinkedOnly => None,
        }
    }
}

/// The kinds that the psABI names and that [`TABLE`](crate::relocation::TABLE) lacks.
pub(crate) static REFUSED: &[(u32, &str, Refusal)] = &[
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
    (
        elf::R_X86_64_DTPMOD64,
        "R_X86_64_DTPMOD64",
        Refusal::LinkedOnly,
    ),
    (
        elf::R_X86_64_TPOFF64,
        "R_X86_64_TPOFF64",
        Refusal::LocalExec,
    ),
    (
        elf::R_X86_64_TPOFF32,
        "R_X86_64_TPOFF32",
        Refusal::LocalExec,
    ),
    (
        elf::R_X86_64_GOTPC32_TLSDESC,
        "R_X86_64_GOTPC32_TLSDESC",
        Refusal::Descriptor,
    ),
    (
        elf::R_X86_64_TLSDESC_CALL,
        "R_X86_64_TLSDESC_CALL",
        Refusal::Descriptor,
    ),
    (
        elf::R_X86_64_TLSDESC,
        "R_X86_64_TLSDESC",
        Refusal::Descriptor,
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
