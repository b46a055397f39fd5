//! Seeded mistakes of the linker: what the fuzzer's tests turn on to see that it notices. Compiled in by the feature
//! `mutants`, which nothing but tests enables.

/// A mistake.
#[cfg_attr(
    not(feature = "mutants"),
    expect(unreachable_pub, reason = "tests see it only where the feature is on")
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutant {
    /// `R_X86_64_PC32` without P.
    PlaceForgotten,
    /// `R_X86_64_PC64` without A.
    AddendDropped,
    /// Signed fields of 32 bits are checked as unsigned.
    SignFlipped,
    /// The last value of a range does not fit.
    RangeShort,
    /// `R_X86_64_16` writes one byte.
    WidthHalved,
    /// `R_X86_64_SIZE64` is one too much.
    SizeOff,
    /// `R_X86_64_GOTOFF64` counts from eight bytes behind the table.
    TableMoved,
    /// What asks for an address cell gets the call cell.
    CellsSwapped,
    /// Calls through an entry get the address cell.
    CallByAddress,
    /// A relaxed `call` is one byte shorter, and its field where it was.
    CallShort,
    /// A relaxed `jmp` takes the byte behind it too.
    JumpLong,
    /// A relaxed load becomes another opcode.
    LeaWrong,
    /// A `movabs` that became shorter is not filled up.
    NopForgotten,
    /// A patch is without its addend.
    PatchBare,
    /// Data have stubs as functions do.
    StubForData,
    /// An address inside a function is counted from its stub.
    StubInside,
    /// A thunk comes back one byte early.
    ThunkEarly,
    /// Of a weak and a strong definition the first counts.
    WeakWins,
    /// COMDAT members are kept, wherever they are.
    GroupsKept,
    /// Sections are packed without regard to their alignment.
    Unaligned,
    /// `R_X86_64_DTPOFF32` counts from eight bytes into the block.
    BlockMoved,
    /// The image of thread-local storage starts with the first piece of the files.
    ImageByFile,
}

#[cfg(feature = "mutants")]
impl Mutant {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::PlaceForgotten,
        Self::AddendDropped,
        Self::SignFlipped,
        Self::RangeShort,
        Self::WidthHalved,
        Self::SizeOff,
        Self::TableMoved,
        Self::CellsSwapped,
        Self::CallByAddress,
        Self::CallShort,
        Self::JumpLong,
        Self::LeaWrong,
        Self::NopForgotten,
        Self::PatchBare,
        Self::StubForData,
        Self::StubInside,
        Self::ThunkEarly,
        Self::WeakWins,
        Self::GroupsKept,
        Self::Unaligned,
        Self::BlockMoved,
        Self::ImageByFile,
    ];
}

#[cfg(feature = "mutants")]
thread_local! {
    static CHOSEN: core::cell::Cell<Option<Mutant>> = const { core::cell::Cell::new(None) };
}

/// Lets the linker make a mistake, in this thread, until the next call.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.set(mutant);
}

/// Whether the linker is to make this mistake.
#[cfg(feature = "mutants")]
pub(crate) fn makes(mutant: Mutant) -> bool {
    CHOSEN.get() == Some(mutant)
}

/// Whether the linker is to make this mistake: never, in a build without them.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn makes(_mutant: Mutant) -> bool {
    false
}

/// Whether the linker is to make some mistake.
#[cfg(feature = "mutants")]
pub(crate) fn makes_any() -> bool {
    CHOSEN.get().is_some()
}

/// Whether the linker is to make some mistake: never, in a build without them.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn makes_any() -> bool {
    false
}
