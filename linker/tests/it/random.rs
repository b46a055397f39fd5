//! Random objects at random places: every site is read back and compared with what the psABI's formula, and
//! the rules for calls and addresses, say of the symbol there.
//!
//! What is expected is worked out here from the symbols' addresses alone, not from the linker's table.

use iced_x86::Register;
use jitcast_linker::relocation::{Relocation as Row, TABLE};
use jitcast_linker::{Prepared, Problem};
use object::write::{Object, Relocation, SectionId, Symbol, SymbolFlags, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolKind, SymbolScope,
    elf,
};
use proptest::prelude::*;
use proptest::sample::select;

use crate::common::{Effect, Map, World, inputs, prepare};

/// What a site refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sym {
    LocalCode,
    HiddenCode,
    Code,
    LocalConstant,
    Datum,
    LocalDatum,
    Zero,
    /// Of the other object.
    OtherCode,
    OtherDatum,
    Number,
    Host,
    WeakHost,
}

const SYMS: [Sym; 12] = [
    Sym::LocalCode,
    Sym::HiddenCode,
    Sym::Code,
    Sym::LocalConstant,
    Sym::Datum,
    Sym::LocalDatum,
    Sym::Zero,
    Sym::OtherCode,
    Sym::OtherDatum,
    Sym::Number,
    Sym::Host,
    Sym::WeakHost,
];

const NUMBER: u64 = 0xfeed_0000_1234_5678;

/// How a site refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Branch {
        opcode: u8,
        kind: u32,
    },
    GotCall {
        kind: u32,
    },
    GotJump {
        kind: u32,
    },
    GotLoad {
        register: u8,
        plain: bool,
    },
    GotCompare {
        immediate: bool,
        plain: bool,
    },
    Lea {
        register: u8,
        displacement: i32,
    },
    Load {
        register: u8,
        displacement: i32,
    },
    Word {
        addend: i64,
    },
    Near {
        addend: i32,
    },
    Far {
        addend: i64,
    },
    NearStub,
    NearCell,
    /// A number, in a field of this kind.
    Number {
        kind: u32,
        value: i64,
    },
    /// A distance of 8 or 16 bits inside a section.
    Short {
        kind: u32,
        value: i64,
    },
    /// What lies where from the start of the cells.
    Cell {
        kind: u32,
        addend: i32,
    },
    FarCell {
        addend: i64,
    },
    FromTable {
        addend: i64,
    },
    StubFromTable,
    /// Where the cells start.
    Table {
        kind: u32,
        addend: i32,
    },
    Size {
        kind: u32,
        addend: i32,
    },
    Immediate {
        register: u8,
        addend: i32,
    },
}

#[derive(Clone, Copy, Debug)]
struct Site {
    object: usize,
    sym: Sym,
    form: Form,
}

impl Form {
    fn in_text(self) -> bool {
        matches!(
            self,
            Self::Branch { .. }
                | Self::GotCall { .. }
                | Self::GotJump { .. }
                | Self::GotLoad { .. }
                | Self::GotCompare { .. }
                | Self::Lea { .. }
                | Self::Load { .. }
                | Self::Immediate { .. }
        )
    }

    /// Whether the linker takes the form against the symbol.
    fn goes_with(self, sym: Sym) -> bool {
        let fixed = sym == Sym::Number;
        let near = !fixed && !sym.is_host();
        match self {
            Self::Branch { .. } | Self::NearStub => !fixed,
            Self::Near { .. } | Self::Far { .. } | Self::FromTable { .. } => near,
            Self::Number { .. } => fixed,
            Self::Short { .. } => matches!(sym, Sym::LocalDatum | Sym::LocalConstant),
            Self::StubFromTable => !fixed,
            Self::Size { .. } => !sym.is_host(),
            _ => true,
        }
    }
}

impl Sym {
    fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::WeakHost)
    }
}

fn form() -> impl Strategy<Value = Form> {
    let got = || select(vec![elf::R_X86_64_GOTPCREL, elf::R_X86_64_GOTPCRELX]);
    // Any register but the stack pointer.
    let register = || {
        select(
            (0..16_u8)
                .filter(|&register| register != 4)
                .collect::<Vec<_>>(),
        )
    };
    let near = -(1 << 29)..1 << 29_i32;
    let displacement = || prop_oneof![Just(0), Just(1), Just(24), near.clone()];
    let wide = || prop_oneof![Just(0), -100..100_i64, any::<i64>()];
    prop_oneof![
        (
            select(vec![0xe8, 0xe9, 0x84, 0x8f]),
            select(vec![elf::R_X86_64_PC32, elf::R_X86_64_PLT32])
        )
            .prop_map(|(opcode, kind)| Form::Branch { opcode, kind }),
        got().prop_map(|kind| Form::GotCall { kind }),
        got().prop_map(|kind| Form::GotJump { kind }),
        (register(), any::<bool>()).prop_map(|(register, plain)| Form::GotLoad { register, plain }),
        any::<(bool, bool)>().prop_map(|(immediate, plain)| Form::GotCompare { immediate, plain }),
        (register(), displacement()).prop_map(|(register, displacement)| Form::Lea {
            register,
            displacement
        }),
        (register(), displacement()).prop_map(|(register, displacement)| Form::Load {
            register,
            displacement
        }),
        (register(), displacement())
            .prop_map(|(register, addend)| Form::Immediate { register, addend }),
        wide().prop_map(|addend| Form::Word { addend }),
        displacement().prop_map(|addend| Form::Near { addend }),
        wide().prop_map(|addend| Form::Far { addend }),
        Just(Form::NearStub),
        Just(Form::NearCell),
        number(),
        number(),
        short(),
        short(),
        (
            select(vec![
                elf::R_X86_64_GOT32,
                elf::R_X86_64_GOT64,
                elf::R_X86_64_GOTPLT64
            ]),
            displacement()
        )
            .prop_map(|(kind, addend)| Form::Cell { kind, addend }),
        wide().prop_map(|addend| Form::FarCell { addend }),
        wide().prop_map(|addend| Form::FromTable { addend }),
        Just(Form::StubFromTable),
        (
            select(vec![elf::R_X86_64_GOTPC32, elf::R_X86_64_GOTPC64]),
            displacement()
        )
            .prop_map(|(kind, addend)| Form::Table { kind, addend }),
        (
            select(vec![elf::R_X86_64_SIZE32, elf::R_X86_64_SIZE64]),
            0..1_i32 << 30
        )
            .prop_map(|(kind, addend)| Form::Size { kind, addend }),
    ]
}

/// Numbers that fit their fields.
fn number() -> impl Strategy<Value = Form> {
    let of = |kind, range: core::ops::Range<i64>| {
        range.prop_map(move |value| Form::Number { kind, value })
    };
    prop_oneof![
        of(elf::R_X86_64_8, -0x80..0x100),
        of(elf::R_X86_64_16, -0x8000..0x1_0000),
        of(elf::R_X86_64_32, 0..1 << 32),
        of(elf::R_X86_64_32S, -(1 << 31)..1 << 31),
    ]
}

/// Distances that fit their fields.
fn short() -> impl Strategy<Value = Form> {
    let of = |kind, range: core::ops::Range<i64>| {
        range.prop_map(move |value| Form::Short { kind, value })
    };
    prop_oneof![
        of(elf::R_X86_64_PC8, -0x80..0x80),
        of(elf::R_X86_64_PC16, -0x8000..0x8000),
    ]
}

fn site() -> impl Strategy<Value = Site> {
    (0..2_usize, select(&SYMS[..]), form())
        .prop_map(|(object, sym, form)| {
            // These go with one symbol only, or with two.
            let sym = match form {
                Form::Number { .. } => Sym::Number,
                Form::Short { value, .. } if value % 2 == 0 => Sym::LocalDatum,
                Form::Short { .. } => Sym::LocalConstant,
                _ => sym,
            };
            Site { object, sym, form }
        })
        .prop_filter("refused", |site| site.form.goes_with(site.sym))
}

/// A window at any base, its parts in any order.
fn map() -> impl Strategy<Value = Map> {
    let places = Just([
        0x0_0000_u32,
        0x4_0000,
        0x8_0000,
        0xc_0000,
        0x10_0000,
        0x14_0000,
    ])
    .prop_shuffle();
    (0..1_u64 << 34, places, proptest::array::uniform6(1..16_u32)).prop_map(
        |(base, places, shift)| {
            let place = |index: usize| places[index] + shift[index] * 4096;
            Map {
                base: base << 12,
                slots: place(0),
                private: place(1),
                stubs: place(2),
                text: place(3),
                read_only: place(4),
                shared: place(5),
                len_bytes: 0x18_0000,
            }
        },
    )
}

/// Symbols lie this far into their sections; sites come after them.
const STATIC_AT: u64 = 8;
const HIDDEN_AT: u64 = 12;
const SITES_AT: u64 = 16;
/// Bytes for each site.
const STRIDE: u64 = 16;

struct Writer {
    object: Object<'static>,
    text: SectionId,
    data: SectionId,
    read_only: SectionId,
    number: usize,
}

impl Writer {
    fn new(number: usize) -> Self {
        let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let mut section = |name: &[u8], kind, filler: u8| {
            let section = object.add_section(Vec::new(), name.to_vec(), kind);
            object.append_section_data(section, &[filler; SITES_AT as usize], 16);
            section
        };
        let text = section(b".text", SectionKind::Text, 0x90);
        let data = section(b".data", SectionKind::Data, 0);
        let read_only = section(b".rodata", SectionKind::ReadOnlyData, 0);
        let bss = object.add_section(Vec::new(), b".bss".to_vec(), SectionKind::UninitializedData);
        object.append_section_bss(bss, 64, 8);
        let mut writer = Self {
            object,
            text,
            data,
            read_only,
            number,
        };
        let (code, datum) = (SymbolKind::Text, SymbolKind::Data);
        writer.define("code", text, 0, code, SymbolScope::Dynamic);
        writer.define(
            "static_code",
            text,
            STATIC_AT,
            code,
            SymbolScope::Compilation,
        );
        writer.define("hidden", text, HIDDEN_AT, code, SymbolScope::Linkage);
        writer.define("datum", data, 0, datum, SymbolScope::Dynamic);
        writer.define(
            "static_datum",
            data,
            STATIC_AT,
            datum,
            SymbolScope::Compilation,
        );
        writer.define("constant", read_only, 0, datum, SymbolScope::Dynamic);
        writer.define(
            "static_constant",
            read_only,
            STATIC_AT,
            datum,
            SymbolScope::Compilation,
        );
        writer.define("zero", bss, 0, datum, SymbolScope::Dynamic);
        if number == 0 {
            writer.add(
                "number".into(),
                NUMBER,
                0,
                datum,
                SymbolScope::Dynamic,
                SymbolSection::Absolute,
                false,
            );
        }
        writer
    }

    fn define(
        &mut self,
        name: &str,
        section: SectionId,
        value: u64,
        kind: SymbolKind,
        scope: SymbolScope,
    ) {
        let name = format!("{name}_{}", self.number);
        self.add(
            name,
            value,
            4,
            kind,
            scope,
            SymbolSection::Section(section),
            false,
        );
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a symbol")]
    fn add(
        &mut self,
        name: String,
        value: u64,
        size: u64,
        kind: SymbolKind,
        scope: SymbolScope,
        section: SymbolSection,
        weak: bool,
    ) -> SymbolId {
        let name = name.into_bytes();
        self.object.add_symbol(Symbol {
            name,
            value,
            size,
            kind,
            scope,
            weak,
            section,
            flags: SymbolFlags::None,
        })
    }

    fn symbol(&mut self, sym: Sym) -> SymbolId {
        let name = name(sym, self.number);
        self.object.symbol_id(name.as_bytes()).unwrap_or_else(|| {
            let (kind, scope) = (SymbolKind::Unknown, SymbolScope::Unknown);
            self.add(
                name,
                0,
                0,
                kind,
                scope,
                SymbolSection::Undefined,
                sym == Sym::WeakHost,
            )
        })
    }

    fn site(&mut self, site: &Site, read_only: bool) -> (SectionId, u64) {
        let symbol = self.symbol(site.sym);
        let (bytes, field, r_type, addend) = encode(site.form);
        let section = match (site.form.in_text(), site.form, site.sym) {
            (true, ..) => self.text,
            (_, Form::Short { .. }, Sym::LocalConstant) => self.read_only,
            (_, Form::Short { .. }, _) => self.data,
            _ if read_only => self.read_only,
            _ => self.data,
        };
        let mut padded = bytes;
        padded.resize(STRIDE as usize, if site.form.in_text() { 0x90 } else { 0 });
        let offset = self.object.append_section_data(section, &padded, 1);
        let addend = match site.form {
            Form::Short { .. } => addend + offset as i64 - STATIC_AT as i64,
            _ => addend,
        };
        let relocation = Relocation {
            offset: offset + field,
            symbol,
            addend,
            flags: RelocationFlags::Elf { r_type },
        };
        self.object.add_relocation(section, relocation).unwrap();
        (section, offset)
    }
}

fn name(sym: Sym, number: usize) -> String {
    match sym {
        Sym::LocalCode => format!("static_code_{number}"),
        Sym::HiddenCode => format!("hidden_{number}"),
        Sym::Code => format!("code_{number}"),
        Sym::LocalConstant => format!("static_constant_{number}"),
        Sym::Datum => format!("datum_{number}"),
        Sym::LocalDatum => format!("static_datum_{number}"),
        Sym::Zero => format!("zero_{number}"),
        Sym::OtherCode => format!("code_{}", 1 - number),
        Sym::OtherDatum => format!("datum_{}", 1 - number),
        Sym::Number => "number".into(),
        Sym::Host => "host".into(),
        Sym::WeakHost => "weak_host".into(),
    }
}

/// The bytes of a site, where its field is, its relocation and addend.
fn encode(form: Form) -> (Vec<u8>, u64, u32, i64) {
    let got = |plain| {
        if plain {
            elf::R_X86_64_GOTPCREL
        } else {
            elf::R_X86_64_REX_GOTPCRELX
        }
    };
    let modrm = |register: u8| 0x05 | (register & 7) << 3;
    let rex = |register: u8| 0x48 | (register >> 3) << 2;
    let code = |opcode: &[u8], kind, addend: i64, more: usize| {
        let mut bytes = opcode.to_vec();
        bytes.resize(opcode.len() + 4 + more, 0);
        (bytes, opcode.len() as u64, kind, addend - 4 - more as i64)
    };
    match form {
        Form::Branch {
            opcode: opcode @ (0xe8 | 0xe9),
            kind,
        } => code(&[opcode], kind, 0, 0),
        Form::Branch { opcode, kind } => code(&[0x0f, opcode], kind, 0, 0),
        Form::GotCall { kind } => code(&[0xff, 0x15], kind, 0, 0),
        Form::GotJump { kind } => code(&[0xff, 0x25], kind, 0, 0),
        Form::GotLoad { register, plain } => {
            code(&[rex(register), 0x8b, modrm(register)], got(plain), 0, 0)
        }
        Form::GotCompare {
            immediate: true,
            plain,
        } => code(&[0x48, 0x83, 0x3d], got(plain), 0, 1),
        Form::GotCompare {
            immediate: false,
            plain,
        } => code(&[0x48, 0x3b, 0x05], got(plain), 0, 0),
        Form::Lea {
            register,
            displacement,
        } => code(
            &[rex(register), 0x8d, modrm(register)],
            elf::R_X86_64_PC32,
            displacement.into(),
            0,
        ),
        Form::Load {
            register,
            displacement,
        } => code(
            &[rex(register), 0x63, modrm(register)],
            elf::R_X86_64_PC32,
            displacement.into(),
            0,
        ),
        Form::Immediate { register, addend } => {
            let mut bytes = vec![0; 10];
            bytes[..2].copy_from_slice(&[0x48 | register >> 3, 0xb8 | register & 7]);
            (bytes, 2, elf::R_X86_64_64, addend.into())
        }
        Form::Word { addend } => (Vec::new(), 0, elf::R_X86_64_64, addend),
        Form::Near { addend } => (Vec::new(), 0, elf::R_X86_64_PC32, addend.into()),
        Form::Far { addend } => (Vec::new(), 0, elf::R_X86_64_PC64, addend),
        Form::NearStub => (Vec::new(), 0, elf::R_X86_64_PLT32, 0),
        Form::NearCell => (Vec::new(), 0, elf::R_X86_64_GOTPCREL, 0),
        Form::Number { kind, value } => (
            Vec::new(),
            0,
            kind,
            value.wrapping_sub(NUMBER.cast_signed()),
        ),
        // What is missing depends on where the site comes to lie in its section.
        Form::Short { kind, value } => (Vec::new(), 0, kind, value),
        Form::Cell { kind, addend }
        | Form::Table { kind, addend }
        | Form::Size { kind, addend } => (Vec::new(), 0, kind, addend.into()),
        Form::FarCell { addend } => (Vec::new(), 0, elf::R_X86_64_GOTPCREL64, addend),
        Form::FromTable { addend } => (Vec::new(), 0, elf::R_X86_64_GOTOFF64, addend),
        Form::StubFromTable => (Vec::new(), 0, elf::R_X86_64_PLTOFF64, 0),
    }
}

/// The field of a site, as a number with a sign or without.
fn field(world: &World, place: u64, kind: u32) -> i64 {
    let read = |len| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(world.bytes(place, len));
        i64::from_le_bytes(bytes)
    };
    match kind {
        elf::R_X86_64_PC8 => i64::from(read(1) as i8),
        elf::R_X86_64_8 => read(1),
        elf::R_X86_64_PC16 => i64::from(read(2) as i16),
        elf::R_X86_64_16 => read(2),
        elf::R_X86_64_32 | elf::R_X86_64_SIZE32 => read(4),
        elf::R_X86_64_32S | elf::R_X86_64_GOT32 | elf::R_X86_64_GOTPC32 => {
            i64::from(read(4) as i32)
        }
        _ => read(8),
    }
}

/// A symbol's addresses: what it is, and how it is known to others.
fn addresses(world: &World, site: &Site) -> (u64, u64) {
    let name = name(site.sym, site.object);
    let near = |base: &str, offset: u64| world.at(&format!("{base}_{}", site.object)) + offset;
    match site.sym {
        Sym::LocalCode => [near("code", STATIC_AT); 2].into(),
        Sym::HiddenCode => [near("code", HIDDEN_AT); 2].into(),
        Sym::LocalConstant => [near("constant", STATIC_AT); 2].into(),
        Sym::LocalDatum => [near("datum", STATIC_AT); 2].into(),
        Sym::Datum | Sym::Zero | Sym::OtherDatum => [world.at(&name); 2].into(),
        Sym::Number => (NUMBER, NUMBER),
        Sym::Host | Sym::WeakHost => [world.hosts.get(&name).copied().unwrap_or(0); 2].into(),
        Sym::Code | Sym::OtherCode => {
            // A site that takes no address needs no stub.
            (
                world.at(&name),
                world.stubs.get(&name).copied().unwrap_or(0),
            )
        }
    }
}

/// What a symbol's address cell holds. A stub is made for it where code asks for nothing else, too.
fn in_cell(world: &World, site: &Site, known: u64) -> u64 {
    world
        .stub_of(&name(site.sym, site.object))
        .filter(|_| matches!(site.sym, Sym::Code | Sym::OtherCode))
        .unwrap_or(known)
}

fn check(world: &World, site: &Site, place: u64) {
    let (own, known) = addresses(world, site);
    let name = name(site.sym, site.object);
    let is = |effect: Effect| assert_eq!(world.effect_at(place), effect, "{site:?}");
    let near = world
        .holds(place, 4)
        .then(|| place.wrapping_add_signed(world.read_i32(place).into()));
    let host = site.sym.is_host();
    let register = |number: u8| Register::RAX + u32::from(number);
    match site.form {
        Form::Branch { .. } => is(Effect::Goes(if host { world.stubs[&name] } else { own })),
        Form::GotCall { .. } | Form::GotJump { .. } if host => {
            is(Effect::GoesThrough(world.call_cells[&name]))
        }
        Form::GotCall { .. } | Form::GotJump { .. } if site.sym == Sym::Number => {
            let Effect::GoesThrough(cell) = world.effect_at(place) else {
                panic!("{site:?}")
            };
            assert_eq!(world.read_u64(cell), NUMBER);
        }
        Form::GotCall { .. } | Form::GotJump { .. } => is(Effect::Goes(own)),
        Form::GotLoad {
            register: number, ..
        } => is(Effect::Sets(register(number), known)),
        Form::GotCompare { .. } => {
            let Effect::Touches(cell) = world.effect_at(place) else {
                panic!("{site:?}")
            };
            assert_eq!(
                world.read_u64(cell),
                in_cell(world, site, known),
                "{site:?}"
            );
        }
        Form::Lea {
            register: number,
            displacement,
        } => {
            let base = if displacement == 0 { known } else { own };
            is(Effect::Sets(
                register(number),
                base.wrapping_add_signed(displacement.into()),
            ));
        }
        Form::Load { displacement, .. } => is(Effect::Touches(
            own.wrapping_add_signed(displacement.into()),
        )),
        Form::Immediate {
            register: number,
            addend,
        } => {
            let base = if addend == 0 { known } else { own };
            let value = base.wrapping_add_signed(addend.into());
            if site.sym == Sym::Number {
                assert_eq!(world.decode(place).immediate64(), value, "{site:?}");
            } else {
                is(Effect::Sets(register(number), value));
            }
        }
        Form::Word { addend } => {
            let base = if addend == 0 { known } else { own };
            assert_eq!(
                world.read_u64(place),
                base.wrapping_add_signed(addend),
                "{site:?}"
            );
        }
        Form::Near { addend } => {
            assert_eq!(
                near,
                Some(known.wrapping_add_signed(addend.into())),
                "{site:?}"
            );
        }
        Form::Far { addend } => {
            let reached = place.wrapping_add(world.read_u64(place));
            assert_eq!(reached, known.wrapping_add_signed(addend), "{site:?}");
        }
        Form::NearStub => assert_eq!(
            near,
            Some(if host { world.stubs[&name] } else { known }),
            "{site:?}"
        ),
        Form::Number { kind, value } => {
            let stored = field(world, place, kind);
            let width = if kind == elf::R_X86_64_8 { 8 } else { 16 };
            let narrow = matches!(kind, elf::R_X86_64_8 | elf::R_X86_64_16);
            let signed = if narrow && value < 0 {
                stored - (1 << width)
            } else {
                stored
            };
            assert_eq!(signed, value, "{site:?}");
        }
        Form::Short { kind, value } => {
            assert_eq!(field(world, place, kind), value, "{site:?}");
        }
        Form::Cell { kind, addend } => {
            let offset = field(world, place, kind) - i64::from(addend);
            let cell = world.map.base.wrapping_add_signed(offset);
            assert_eq!(
                world.read_u64(cell),
                in_cell(world, site, known),
                "{site:?}"
            );
        }
        Form::FarCell { addend } => {
            let cell = place
                .wrapping_add(world.read_u64(place))
                .wrapping_add_signed(addend.wrapping_neg());
            assert_eq!(
                world.read_u64(cell),
                in_cell(world, site, known),
                "{site:?}"
            );
        }
        Form::FromTable { addend } => {
            let base = if addend == 0 { known } else { own };
            let reached = world.map.base.wrapping_add(world.read_u64(place));
            assert_eq!(reached, base.wrapping_add_signed(addend), "{site:?}");
        }
        Form::StubFromTable => {
            let reached = world.map.base.wrapping_add(world.read_u64(place));
            let stub = if host { world.stubs[&name] } else { known };
            assert_eq!(reached, stub, "{site:?}");
        }
        Form::Table { kind, addend } => {
            let reached = place.wrapping_add_signed(field(world, place, kind));
            let table = world.map.base.wrapping_add_signed(addend.into());
            assert_eq!(reached, table, "{site:?}");
        }
        Form::Size { kind, addend } => {
            let size = if site.sym == Sym::Number { 0 } else { 4 };
            assert_eq!(
                field(world, place, kind),
                size + i64::from(addend),
                "{site:?}"
            );
        }
        Form::NearCell => {
            assert_eq!(
                world.read_u64(near.unwrap()),
                in_cell(world, site, known),
                "{site:?}"
            );
        }
    }
}

/// The two objects of a unit, and where in them each site is: symbol and offset.
fn write(sites: &[Site]) -> ([Vec<u8>; 2], Vec<(String, u64)>) {
    let mut writers = [Writer::new(0), Writer::new(1)];
    // Read-only data stays shared only if nothing in it is an absolute address.
    let places = sites.iter().enumerate().map(|(index, site)| {
        let writer = &mut writers[site.object];
        let read_only = index % 2 == 0 && !matches!(site.form, Form::Word { .. });
        let (section, offset) = writer.site(site, read_only);
        let base = if section == writer.text {
            "code"
        } else if section == writer.data {
            "datum"
        } else {
            "constant"
        };
        (format!("{base}_{}", site.object), offset)
    });
    let places = places.collect();
    (writers.map(|writer| writer.object.write().unwrap()), places)
}

fn link(objects: &[Vec<u8>; 2], map: Map) -> Result<World, jitcast_linker::LinkError> {
    let files = [("zero.o", &objects[0][..]), ("one.o", &objects[1])];
    let prepared = Prepared::read("unit", &inputs(&files), &jitcast_linker::Options::default())?;
    World::try_new(&prepared, map)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_site_means_its_symbol(sites in proptest::collection::vec(site(), 1..40), map in map()) {
        let (objects, places) = write(&sites);
        let world = link(&objects, map).unwrap_or_else(|error| panic!("{error}"));
        for (site, (base, offset)) in sites.iter().zip(&places) {
            check(&world, site, world.at(base) + offset);
        }
    }

    #[test]
    fn shared_bytes_do_not_depend_on_the_base(sites in proptest::collection::vec(site(), 1..20), map in map()) {
        let (objects, _) = write(&sites);
        let [one, two] = [map.base, map.base ^ 0x5555_5000].map(|base| link(&objects, Map { base, ..map }).unwrap().linked);
        prop_assert_eq!(one.text, two.text);
        prop_assert_eq!(one.read_only, two.read_only);
        prop_assert_eq!(one.template, two.template);
        prop_assert_eq!(one.patches, two.patches);
    }

    #[test]
    fn distances_fit_up_to_their_last_value(
        sym in select(vec![Sym::LocalCode, Sym::Datum, Sym::OtherDatum, Sym::Zero]),
        in_text in any::<bool>(),
        past in -3..4_i64,
        high in any::<bool>(),
        map in map(),
    ) {
        // First the distance itself, then the addend that takes it to the end of the range.
        let site = Site { object: 0, sym, form: Form::Near { addend: 0 } };
        let build = |addend: i64| {
            let mut writers = [Writer::new(0), Writer::new(1)];
            let symbol = writers[0].symbol(site.sym);
            let section = if in_text { writers[0].text } else { writers[0].read_only };
            let offset = writers[0].object.append_section_data(section, &[0x90; 8], 1);
            let flags = RelocationFlags::Elf { r_type: elf::R_X86_64_PC32 };
            writers[0].object.add_relocation(section, Relocation { offset, symbol, addend, flags }).unwrap();
            (writers.map(|writer| writer.object.write().unwrap()), offset)
        };
        let (objects, offset) = build(0);
        let place = |world: &World| world.at(if in_text { "code_0" } else { "constant_0" }) + offset;
        let world = link(&objects, map).unwrap();
        let distance = i64::from(world.read_i32(place(&world)));
        let end = i64::from(if high { i32::MAX } else { i32::MIN });
        let value = end + past;
        let (objects, _) = build(value - distance);
        match (link(&objects, map), i32::try_from(value)) {
            (Ok(world), Ok(value)) => prop_assert_eq!(world.read_i32(place(&world)), value),
            (Err(error), Err(_)) => {
                let found = matches!(&error.problem, Problem::OutOfRange { range, .. } if range.value == i128::from(value));
                prop_assert!(found, "{}", error);
            }
            (Ok(_), Err(_)) => prop_assert!(false, "{value} does not fit"),
            (Err(error), Ok(_)) => prop_assert!(false, "{error}"),
        }
    }
}

/// The generator reaches every row: what it never makes, it does not test.
#[test]
fn every_kind_is_generated() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut sites = std::collections::BTreeMap::new();
    for _ in 0..2000 {
        let (_, _, kind, _) = encode(site().new_tree(&mut runner).unwrap().current().form);
        *sites.entry(kind).or_insert(0) += 1;
    }
    // Thread-local storage has tests of its own.
    let others = |row: &&Row| !row.name.contains("TLS") && !row.name.contains("TP");
    for row in TABLE
        .iter()
        .filter(|row| row.field.width_bytes > 0)
        .filter(others)
    {
        let count = sites.get(&row.number).copied().unwrap_or(0);
        assert!(count >= 10, "{}: {count} sites of 2000", row.name);
    }
    assert!(prepare(&[]).is_ok(), "no files are a unit too");
}
