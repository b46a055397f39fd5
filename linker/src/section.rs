//! Sections: what each becomes, told by its flags, its type and its name.

use object::LittleEndian as LE;
use object::elf::{self, SectionHeader64};
use object::read::elf::SectionHeader as _;

use crate::error::{Problem, SectionRefusal};
use crate::startup::Startup;

/// psABI x86-64 1.0, section 4.2.1.
const SHF_X86_64_LARGE: u64 = 0x1000_0000;

/// The widest alignment that a section may ask for: a page.
pub(crate) const MAX_ALIGN_BYTES: u16 = 4096;

/// What becomes of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Not loaded (`SHF_ALLOC` is not set): left alone, with its relocations.
    NotLoaded,
    /// Loaded elsewhere, without use here: notes, what is marked `SHF_EXCLUDE`.
    Dropped,
    /// `.eh_frame`: taken apart, and what describes placed code put together again (see [`crate::unwind`]).
    Frames,
    /// Code.
    Text,
    /// Data that nobody writes to.
    ReadOnly,
    /// Data.
    Writable,
    /// Data that all workers write.
    Shared,
    /// A member of a COMDAT group that another object has too.
    Discarded,
    /// Nothing that is wanted refers to it.
    Unreached,
}

impl Role {
    /// Whether the section's bytes are placed.
    pub(crate) fn is_placed(self) -> bool {
        matches!(
            self,
            Self::Text | Self::ReadOnly | Self::Writable | Self::Shared
        )
    }

    /// Whether the section is placed, and not code.
    pub(crate) fn is_data(self) -> bool {
        self.is_placed() && self != Self::Text
    }

    /// Whether the section's relocations are looked at.
    pub(crate) fn is_relocated(self) -> bool {
        self.is_placed() || self == Self::Frames
    }
}

/// A section's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    /// As they lie in the file.
    Bytes(&'a [u8]),
    /// Zeros, this many.
    Zero(u64),
}

impl Content<'_> {
    pub(crate) fn len_bytes(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zero(len_bytes) => len_bytes,
        }
    }
}

/// A section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: Role,
    pub(crate) content: Content<'a>,
    /// A page at most ([`MAX_ALIGN_BYTES`]).
    pub(crate) align_bytes: u16,
    /// `SHF_GNU_RETAIN`: wanted though nothing refers to it.
    pub(crate) retained: bool,
    /// It holds addresses of constructors or destructors.
    pub(crate) startup: Option<Startup>,
    /// `SHF_TLS`: each thread has its own copy.
    pub(crate) thread_local: bool,
    /// Member of a COMDAT group.
    pub(crate) comdat: bool,
}

impl Section<'_> {
    /// One of which nothing is asked but that.
    pub(crate) const NOT_LOADED: Self = Self {
        name: "",
        role: Role::NotLoaded,
        content: Content::Zero(0),
        align_bytes: 1,
        retained: false,
        startup: None,
        thread_local: false,
        comdat: false,
    };

    /// Whether what has a name here has to be one in the process, though others define it too: data that is
    /// written to and that the C++ ABI puts into a COMDAT group (static locals of inline functions, inline
    /// variables).
    pub(crate) fn is_shared_datum(&self) -> bool {
        self.comdat
            && self.role == Role::Writable
            && !self.thread_local
            && !self.name.starts_with(".data.rel.ro")
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.content.len_bytes()
    }
}

/// The refusal of a section.
pub(crate) fn refuse(section: &str, refusal: SectionRefusal) -> Problem {
    Problem::Section {
        section: section.into(),
        refusal,
    }
}

/// What the names of sections begin with that mean something here only.
const RESERVED: &str = ".jitcast.";

/// Whether the name of a section may say what it is for. Those of most code do not, of which there may be thousands.
#[inline]
pub(crate) fn tells(name: &str) -> bool {
    !name.starts_with(".text")
}

/// Whether a section holds shared data: `.jitcast.shared`, or that, a dot and anything.
pub(crate) fn is_shared(name: &str) -> bool {
    let rest = name.strip_prefix(".jitcast.shared");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What a section that is loaded becomes.
pub(crate) fn role(
    name: &str,
    header: &SectionHeader64<LE>,
    len_bytes: u64,
) -> Result<Role, Problem> {
    let flags = header.sh_flags(LE);
    let has = |flag: u32| flags & u64::from(flag) != 0;
    // What is meant for the linker alone, and no such thing that it knows.
    if has(elf::SHF_EXCLUDE) {
        return Ok(Role::Dropped);
    }
    // SHF_WRITE to SHF_LINK_ORDER, SHF_GROUP, SHF_GNU_RETAIN and SHF_X86_64_LARGE ask for nothing that the
    // window does not give to every section.
    const PLAIN: u64 = 0xff
        | elf::SHF_GROUP as u64
        | elf::SHF_TLS as u64
        | elf::SHF_GNU_RETAIN as u64
        | SHF_X86_64_LARGE;
    const PLAIN_TEXT: u64 =
        elf::SHF_ALLOC as u64 | elf::SHF_EXECINSTR as u64 | elf::SHF_GROUP as u64;
    if !tells(name)
        && flags & !PLAIN_TEXT == 0
        && has(elf::SHF_EXECINSTR)
        && header.sh_type(LE) == elf::SHT_PROGBITS
    {
        return Ok(Role::Text);
    }
    let shared = is_shared(name);
    let refusal = if name.starts_with(RESERVED) && !shared {
        Some(SectionRefusal::Reserved)
    } else if shared && (has(elf::SHF_TLS) || has(elf::SHF_EXECINSTR) || !has(elf::SHF_WRITE)) {
        Some(SectionRefusal::SharedFlags)
    } else if has(elf::SHF_TLS) && (has(elf::SHF_EXECINSTR) || !has(elf::SHF_WRITE)) {
        Some(SectionRefusal::ThreadLocal)
    } else if has(elf::SHF_COMPRESSED) {
        Some(SectionRefusal::Compressed)
    } else if has(elf::SHF_WRITE) && has(elf::SHF_EXECINSTR) {
        Some(SectionRefusal::WritableText)
    } else if flags & !PLAIN != 0 {
        Some(SectionRefusal::Flags(flags & !PLAIN))
    } else {
        startup(name, header.sh_type(LE)).filter(|_| len_bytes > 0)
    };
    if let Some(refusal) = refusal {
        return Err(refuse(name, refusal));
    }
    match header.sh_type(LE) {
        elf::SHT_PROGBITS | elf::SHT_NOBITS if shared => Ok(Role::Shared),
        _ if shared => Err(refuse(name, SectionRefusal::SharedFlags)),
        elf::SHT_NOTE => Ok(Role::Dropped),
        elf::SHT_PROGBITS | elf::SHT_X86_64_UNWIND if name == ".eh_frame" => Ok(Role::Frames),
        elf::SHT_NOBITS if has(elf::SHF_EXECINSTR) && len_bytes > 0 => {
            Err(refuse(name, SectionRefusal::TextWithoutBytes))
        }
        elf::SHT_PROGBITS
        | elf::SHT_NOBITS
        | elf::SHT_INIT_ARRAY
        | elf::SHT_FINI_ARRAY
        | elf::SHT_PREINIT_ARRAY => Ok(match (has(elf::SHF_EXECINSTR), has(elf::SHF_WRITE)) {
            (true, _) => Role::Text,
            (false, true) => Role::Writable,
            (false, false) => Role::ReadOnly,
        }),
        other => Err(refuse(name, SectionRefusal::Type(other))),
    }
}

/// Whether a section holds code that start files would have put together, or what runs before all libraries.
/// (Empty ones do no harm, and some assemblers always make them.)
fn startup(name: &str, kind: u32) -> Option<SectionRefusal> {
    match name {
        _ if kind == elf::SHT_PREINIT_ARRAY || name.starts_with(".preinit_array") => {
            Some(SectionRefusal::Constructors)
        }
        ".init" => Some(SectionRefusal::Constructors),
        ".fini" => Some(SectionRefusal::Destructors),
        _ => None,
    }
}

/// The alignment `claimed`, if it is one that can be given.
#[inline]
pub(crate) fn alignment(claimed: u64) -> Result<u16, Problem> {
    let align_bytes = claimed.max(1);
    if !align_bytes.is_power_of_two() {
        return Err(Problem::Corrupt(format!(
            "alignment {align_bytes} is not a power of two"
        )));
    }
    let fits = u16::try_from(align_bytes).ok();
    let fits = fits.filter(|&align_bytes| align_bytes <= MAX_ALIGN_BYTES);
    fits.ok_or_else(|| Problem::Limit {
        what: "an alignment",
        value: align_bytes,
        limit: MAX_ALIGN_BYTES.into(),
    })
}
