//! How a site refers to its target: an instruction around the field, or a field of data.

use object::elf;

/// What a target is to the linker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Code of the unit.
    Code,
    /// Data of the unit.
    Data,
    /// An absolute symbol, or a hidden weak one that nobody defines.
    Number,
    /// A function of the host or of another unit.
    Function,
    /// A datum of the host or of another unit.
    Datum,
    /// `_GLOBAL_OFFSET_TABLE_`.
    Table,
    /// A thread-local datum of the unit.
    Thread,
    /// A thread-local datum of another unit.
    OtherThread,
    /// A thread-local datum of the host.
    HostThread,
}

impl Class {
    /// Whether the unit has it.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Code | Self::Data)
    }

    /// Whether each thread has its own.
    pub fn is_thread(self) -> bool {
        matches!(self, Self::Thread | Self::OtherThread | Self::HostThread)
    }

    /// Whether the host or another unit has it.
    pub fn is_outside(self) -> bool {
        matches!(self, Self::Function | Self::Datum)
    }
}

/// How a site refers to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `call`, `jmp`, `jcc`: e8, e9, or the second byte after 0f.
    Branch {
        /// e8, e9, or 80 to 8f.
        opcode: u8,
        /// `R_X86_64_PLT32`, else `R_X86_64_PC32`.
        plt: bool,
        /// How far behind the target's start.
        inside: i8,
    },
    /// `call *target@GOTPCREL(%rip)`, or `jmp`.
    EntryBranch {
        /// `jmp`.
        jump: bool,
        /// With a `notrack` prefix, as switch tables have it under `-fcf-protection`.
        notrack: bool,
        /// `R_X86_64_GOTPCREL`, else `R_X86_64_GOTPCRELX`.
        plain: bool,
    },
    /// `mov target@GOTPCREL(%rip), %r`.
    EntryLoad {
        /// 0 to 15.
        register: u8,
        /// `R_X86_64_GOTPCREL`, else `R_X86_64_REX_GOTPCRELX`.
        plain: bool,
    },
    /// Another instruction of [`ENTRY_USES`].
    EntryUse {
        /// Its index.
        which: u8,
        /// `R_X86_64_GOTPCREL`, else the kind that the assembler chooses.
        plain: bool,
    },
    /// `lea target+displacement(%rip), %r`.
    Lea {
        /// 0 to 15.
        register: u8,
        /// Bytes.
        displacement: i32,
    },
    /// A load of [`LOADS`] from `target+displacement(%rip)`.
    Load {
        /// Its index.
        which: u8,
        /// 0 to 15.
        register: u8,
        /// Bytes.
        displacement: i32,
    },
    /// Another instruction of [`OPERANDS`] with `target+displacement(%rip)`.
    Operand {
        /// Its index.
        which: u8,
        /// Bytes.
        displacement: i32,
    },
    /// `movabs $target+addend, %r`.
    Movabs {
        /// 0 to 15.
        register: u8,
        /// Bytes.
        addend: i32,
    },
    /// `movabs target+addend, %rax` and its kin.
    Offset {
        /// a0 to a3.
        opcode: u8,
        /// With REX.W.
        wide: bool,
        /// Bytes.
        addend: i32,
    },
    /// `lea`, `mov` or `add` of a thread-local symbol's entry: `R_X86_64_TLSGD`, `TLSLD` or `GOTTPOFF`.
    Storage {
        /// `r_type`.
        kind: u32,
        /// `add` where there is a choice.
        add: bool,
    },
    /// A field of a kind that says all by itself: in data bare, in text an immediate.
    Field {
        /// `r_type`.
        kind: u32,
        /// 0 to 15: the register that the immediate goes to.
        register: u8,
        /// The addend, or a number that the value is made from where the range is narrow.
        addend: i64,
    },
}

/// Instructions with a GOT entry as an operand: opcode bytes before the field, bytes of immediate after it, and
/// whether there is a REX prefix.
pub const ENTRY_USES: [(&[u8], usize, bool); 9] = [
    (&[0x48, 0x83, 0x3d], 1, true),        // cmpq $imm8, x
    (&[0x48, 0x81, 0x3d], 4, true),        // cmpq $imm32, x
    (&[0x48, 0x3b, 0x05], 0, true),        // cmp x, %rax
    (&[0x4c, 0x39, 0x1d], 0, true),        // cmp %r11, x
    (&[0x48, 0x85, 0x0d], 0, true),        // test %rcx, x
    (&[0x48, 0x03, 0x15], 0, true),        // add x, %rdx
    (&[0xff, 0x35], 0, false),             // push x
    (&[0x8b, 0x0d], 0, false),             // mov x, %ecx
    (&[0xf3, 0x0f, 0x7e, 0x05], 0, false), // movq x, %xmm0
];

/// Loads of whole general registers: opcode, and whether they are 64 bits wide.
pub const LOADS: [(&[u8], bool); 8] = [
    (&[0x8b], false),
    (&[0x8b], true),
    (&[0x63], true),
    (&[0x0f, 0xb6], false),
    (&[0x0f, 0xb7], false),
    (&[0x0f, 0xbe], true),
    (&[0x0f, 0xbf], false),
    (&[0x0f, 0xb6], true),
];

/// Instructions that no thunk can stand for: bytes before the field, bytes of immediate after it.
pub const OPERANDS: [(&[u8], usize); 9] = [
    (&[0x89, 0x05], 0),             // mov %eax, x
    (&[0x48, 0x89, 0x3d], 0),       // mov %rdi, x
    (&[0xc7, 0x05], 4),             // movl $imm32, x
    (&[0xc6, 0x05], 1),             // movb $imm8, x
    (&[0x66, 0xc7, 0x05], 2),       // movw $imm16, x
    (&[0xf2, 0x0f, 0x10, 0x05], 0), // movsd x, %xmm0
    (&[0xff, 0x15], 0),             // call *x
    (&[0x80, 0x3d], 1),             // cmpb $imm8, x
    (&[0xc5, 0xfc, 0x28, 0x05], 0), // vmovaps x, %ymm0
];

/// The kinds of [`Form::Field`]: all that need no instruction.
pub const FIELDS: [u32; 25] = [
    elf::R_X86_64_DTPOFF32,
    elf::R_X86_64_DTPOFF64,
    elf::R_X86_64_NONE,
    elf::R_X86_64_64,
    elf::R_X86_64_PC32,
    elf::R_X86_64_GOT32,
    elf::R_X86_64_PLT32,
    elf::R_X86_64_GOTPCREL,
    elf::R_X86_64_32,
    elf::R_X86_64_32S,
    elf::R_X86_64_16,
    elf::R_X86_64_PC16,
    elf::R_X86_64_8,
    elf::R_X86_64_PC8,
    elf::R_X86_64_PC64,
    elf::R_X86_64_GOTOFF64,
    elf::R_X86_64_GOTPC32,
    elf::R_X86_64_GOT64,
    elf::R_X86_64_GOTPCREL64,
    elf::R_X86_64_GOTPC64,
    elf::R_X86_64_GOTPLT64,
    elf::R_X86_64_PLTOFF64,
    elf::R_X86_64_SIZE32,
    elf::R_X86_64_SIZE64,
    elf::R_X86_64_GOTPCRELX,
];

/// The stack pointer, which cannot go through a thunk.
const STACK_POINTER: u8 = 4;

impl Form {
    /// Whether our linker takes the form against such a target. Anything else it refuses by name.
    pub fn goes_with(self, class: Class, in_text: bool) -> bool {
        let number = class == Class::Number;
        let table = class == Class::Table;
        if class.is_thread() || self.asks_for_thread() {
            return match self.kind() {
                elf::R_X86_64_TLSGD => class.is_thread(),
                elf::R_X86_64_GOTTPOFF => class == Class::HostThread,
                _ => self.asks_for_thread() && class == Class::Thread,
            };
        }
        match self {
            Self::Branch { inside, .. } => {
                class == Class::Code || class == Class::Function && inside == 0
            }
            Self::EntryBranch { .. } | Self::EntryLoad { .. } | Self::EntryUse { .. } => !table,
            Self::Lea { .. } | Self::Load { .. } | Self::Movabs { .. } => true,
            Self::Operand { .. } => class.is_own() || table,
            Self::Offset { opcode, .. } => {
                class == Class::Data || number || table || class.is_outside() && opcode == 0xa1
            }
            Self::Storage { .. } => false,
            Self::Field { kind, .. } => match kind {
                elf::R_X86_64_8 | elf::R_X86_64_16 | elf::R_X86_64_32 | elf::R_X86_64_32S => number,
                elf::R_X86_64_PC8 | elf::R_X86_64_PC16 => class.is_own(),
                elf::R_X86_64_PC32 | elf::R_X86_64_PC64 | elf::R_X86_64_GOTOFF64 => {
                    class.is_own() || table
                }
                elf::R_X86_64_PLT32 => class.is_own() || class == Class::Function && !in_text,
                elf::R_X86_64_PLTOFF64 => class.is_own() || class == Class::Function,
                elf::R_X86_64_SIZE32 | elf::R_X86_64_SIZE64 => class.is_own(),
                elf::R_X86_64_GOT32
                | elf::R_X86_64_GOT64
                | elf::R_X86_64_GOTPLT64
                | elf::R_X86_64_GOTPCREL
                | elf::R_X86_64_GOTPCRELX
                | elf::R_X86_64_GOTPCREL64 => !table,
                _ => true,
            },
        }
    }

    /// Whether it is a use of a thread-local symbol.
    pub fn asks_for_thread(self) -> bool {
        matches!(
            self.kind(),
            elf::R_X86_64_TLSGD
                | elf::R_X86_64_TLSLD
                | elf::R_X86_64_GOTTPOFF
                | elf::R_X86_64_DTPOFF32
                | elf::R_X86_64_DTPOFF64
        )
    }

    /// The kind of relocation.
    pub fn kind(self) -> u32 {
        let entry = |plain, other| {
            if plain { elf::R_X86_64_GOTPCREL } else { other }
        };
        match self {
            Self::Branch { plt: true, .. } => elf::R_X86_64_PLT32,
            Self::Branch { .. } | Self::Lea { .. } | Self::Load { .. } | Self::Operand { .. } => {
                elf::R_X86_64_PC32
            }
            Self::EntryBranch { plain, .. } => entry(plain, elf::R_X86_64_GOTPCRELX),
            Self::EntryLoad { plain, .. } => entry(plain, elf::R_X86_64_REX_GOTPCRELX),
            Self::EntryUse { which, plain } => {
                match ENTRY_USES[usize::from(which) % ENTRY_USES.len()] {
                    (_, _, true) => entry(plain, elf::R_X86_64_REX_GOTPCRELX),
                    (_, _, false) => entry(plain, elf::R_X86_64_GOTPCRELX),
                }
            }
            Self::Movabs { .. } | Self::Offset { .. } => elf::R_X86_64_64,
            Self::Storage { kind, .. } | Self::Field { kind, .. } => kind,
        }
    }

    /// The bytes of the site. `class` matters where the linker has to redirect the instruction.
    pub fn encode(self, class: Class, in_text: bool) -> Code {
        let free = |register: u8| {
            let taken = register & 15 == STACK_POINTER && !class.is_own();
            if taken { 5 } else { register & 15 }
        };
        let rex = |register: u8| 0x48 | (register >> 3) << 2;
        let modrm = |register: u8| 0x05 | (register & 7) << 3;
        match self {
            Self::Branch {
                opcode: opcode @ (0xe8 | 0xe9),
                inside,
                ..
            } => Code::displaced(&[opcode], inside.into(), 0),
            Self::Branch { opcode, inside, .. } => {
                Code::displaced(&[0x0f, 0x80 | opcode & 15], inside.into(), 0)
            }
            Self::EntryBranch { jump, notrack, .. } => {
                let opcode = [0x3e, 0xff, if jump { 0x25 } else { 0x15 }];
                Code::displaced(&opcode[usize::from(!notrack)..], 0, 0)
            }
            Self::EntryLoad { register, .. } => {
                let register = register & 15;
                Code::displaced(&[rex(register), 0x8b, modrm(register)], 0, 0)
            }
            Self::EntryUse { which, .. } => {
                let (opcode, more, _) = ENTRY_USES[usize::from(which) % ENTRY_USES.len()];
                Code::displaced(opcode, 0, more)
            }
            Self::Lea {
                register,
                displacement,
            } => {
                let register = free(register);
                Code::displaced(
                    &[rex(register), 0x8d, modrm(register)],
                    displacement.into(),
                    0,
                )
            }
            Self::Load {
                which,
                register,
                displacement,
            } => {
                let (opcode, wide) = LOADS[usize::from(which) % LOADS.len()];
                let register = free(register);
                let prefix = rex(register) & if wide { 0xff } else { 0xf7 };
                let mut bytes = if prefix == 0x40 { vec![] } else { vec![prefix] };
                bytes.extend_from_slice(opcode);
                bytes.push(modrm(register));
                Code::displaced(&bytes, displacement.into(), 0)
            }
            Self::Operand {
                which,
                displacement,
            } => {
                let (opcode, more) = OPERANDS[usize::from(which) % OPERANDS.len()];
                Code::displaced(opcode, displacement.into(), more)
            }
            Self::Movabs { register, addend } => {
                let register = free(register);
                Code::wide(&[0x48 | register >> 3, 0xb8 | register & 7], addend.into())
            }
            Self::Offset {
                opcode,
                wide,
                addend,
            } => {
                let opcode = 0xa0 | opcode & 3;
                // Only %eax and %rax are whole registers.
                let prefix: &[u8] = if wide && opcode & 1 == 1 {
                    &[0x48]
                } else {
                    &[]
                };
                Code::wide(&[prefix, &[opcode]].concat(), addend.into())
            }
            Self::Storage { kind, add } => match kind {
                elf::R_X86_64_TLSGD => Code::displaced(&[0x66, 0x48, 0x8d, 0x3d], 0, 0),
                elf::R_X86_64_TLSLD => Code::displaced(&[0x48, 0x8d, 0x3d], 0, 0),
                _ if add => Code::displaced(&[0x48, 0x03, 0x05], 0, 0),
                _ => Code::displaced(&[0x48, 0x8b, 0x05], 0, 0),
            },
            Self::Field {
                kind,
                register,
                addend,
            } => field(kind, register & 15, addend, in_text),
        }
    }
}

/// A bare field, or an instruction that has it as an immediate.
fn field(kind: u32, register: u8, addend: i64, in_text: bool) -> Code {
    let width = match kind {
        elf::R_X86_64_NONE => 0,
        elf::R_X86_64_8 | elf::R_X86_64_PC8 => 1,
        elf::R_X86_64_16 | elf::R_X86_64_PC16 => 2,
        elf::R_X86_64_64
        | elf::R_X86_64_PC64
        | elf::R_X86_64_GOTOFF64
        | elf::R_X86_64_GOT64
        | elf::R_X86_64_GOTPCREL64
        | elf::R_X86_64_GOTPC64
        | elf::R_X86_64_GOTPLT64
        | elf::R_X86_64_PLTOFF64
        | elf::R_X86_64_SIZE64
        | elf::R_X86_64_DTPOFF64 => 8,
        _ => 4,
    };
    let low = register & 7;
    let before = match (width, in_text) {
        (_, false) => vec![],
        (0, _) => vec![0x90],
        (1, _) if kind == elf::R_X86_64_PC8 => vec![0xeb],
        (1, _) => vec![0xb0 | low],
        (2, _) => vec![0x66, 0xb8 | low],
        (8, _) => vec![0x48 | register >> 3, 0xb8 | low],
        _ if kind == elf::R_X86_64_32S => vec![0x48 | register >> 3, 0xc7, 0xc0 | low],
        // mov entry(%rbx), %r64
        _ if kind == elf::R_X86_64_GOT32 => vec![0x48, 0x8b, 0x83 | low << 3],
        // lea table(%rip), %r64
        _ if kind == elf::R_X86_64_GOTPC32 => vec![0x48, 0x8d, 0x05 | low << 3],
        _ => vec![0xb8 | low],
    };
    let at = before.len();
    let mut bytes = before;
    bytes.resize(at + width, 0);
    Code { bytes, at, addend }
}

/// The bytes of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// Where the field starts.
    pub at: usize,
    /// The addend.
    pub addend: i64,
}

impl Code {
    /// An opcode, a displacement, an immediate of `more` bytes.
    fn displaced(opcode: &[u8], displacement: i64, more: usize) -> Self {
        let mut bytes = opcode.to_vec();
        bytes.resize(opcode.len() + 4, 0);
        bytes.resize(opcode.len() + 4 + more, 0x11);
        let addend = displacement - 4 - more as i64;
        Self {
            bytes,
            at: opcode.len(),
            addend,
        }
    }

    /// An opcode and 64 bits.
    fn wide(opcode: &[u8], addend: i64) -> Self {
        let mut bytes = opcode.to_vec();
        bytes.resize(opcode.len() + 8, 0);
        Self {
            bytes,
            at: opcode.len(),
            addend,
        }
    }
}

/// The first and last value of a field that is too narrow to take any address, and whether it counts from the field.
pub fn narrow(kind: u32) -> Option<(i64, i64, bool)> {
    match kind {
        elf::R_X86_64_8 => Some((-0x80, 0xff, false)),
        elf::R_X86_64_16 => Some((-0x8000, 0xffff, false)),
        elf::R_X86_64_32 => Some((0, 0xffff_ffff, false)),
        elf::R_X86_64_32S => Some((-0x8000_0000, 0x7fff_ffff, false)),
        elf::R_X86_64_PC8 => Some((-0x80, 0x7f, true)),
        elf::R_X86_64_PC16 => Some((-0x8000, 0x7fff, true)),
        _ => None,
    }
}
