//! The strategies: random cases, which shrink to few units, sections and sites.

use object::elf;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::case::{
    Case, Item, ObjectPlan, Placement, Places, SectionPlan, Sight, SitePlan, Style, SymbolPlan,
    UnitPlan,
};
use crate::form::{FIELDS, Form, narrow};

/// Random cases of up to three units.
pub fn case() -> impl Strategy<Value = Case> {
    (vec(unit(), 1..=3), places(), vec(base(), 2)).prop_map(|(units, window, bases)| Case {
        units,
        window,
        bases,
    })
}

/// Random cases of one unit in a short window, within reach of the host's symbols: what other linkers can be given
/// at the same addresses.
pub fn single() -> impl Strategy<Value = Case> {
    let base = (0..0x1_0000_u64).prop_map(|page| crate::window::HOST - 0x4000_0000 + (page << 12));
    (unit(), close_places(), base).prop_map(|(unit, window, base)| Case {
        units: vec![unit],
        window,
        bases: vec![base],
    })
}

/// A unit of up to three objects.
pub fn unit() -> impl Strategy<Value = UnitPlan> {
    vec(object(), 1..=3).prop_map(|objects| UnitPlan { objects })
}

/// An object of up to six sections.
pub fn object() -> impl Strategy<Value = ObjectPlan> {
    (vec(section(), 1..=6), any::<u8>(), any::<u64>()).prop_map(|(sections, commons, number)| {
        ObjectPlan {
            sections,
            commons,
            number,
        }
    })
}

fn section() -> impl Strategy<Value = SectionPlan> {
    prop_oneof![
        4 => Just(Placement::Text),
        2 => Just(Placement::ReadOnly),
        1 => Just(Placement::Relocated),
        2 => Just(Placement::Data),
        1 => Just(Placement::SharedData),
        1 => Just(Placement::Zero),
        1 => Just(Placement::LargeData),
        1 => Just(Placement::ThreadData),
        1 => Just(Placement::ThreadZero),
    ]
    .prop_flat_map(|placement| {
        let style = prop_oneof![
            3 => Just(Style::Plain),
            2 => Just(Style::Own),
            1 => (0..2_u8).prop_map(Style::Group),
        ];
        (
            Just(placement),
            style,
            0..=6_u8,
            vec(item(placement), 1..=12),
        )
    })
    .prop_map(|(placement, style, align, items)| SectionPlan {
        placement,
        style,
        align,
        items,
    })
}

fn item(placement: Placement) -> BoxedStrategy<Item> {
    let target = any::<u16>();
    let site = |form: BoxedStrategy<Form>| {
        (form, target).prop_map(|(form, target)| Item::Site(SitePlan { form, target }))
    };
    let fill = (1..=40_u8).prop_map(Item::Fill);
    let symbol = symbol().prop_map(Item::Symbol);
    match placement {
        Placement::Text => prop_oneof![
            1 => fill,
            2 => symbol,
            4 => site(instruction().boxed()),
            2 => site(field().boxed()),
        ]
        .boxed(),
        Placement::Zero | Placement::ThreadData | Placement::ThreadZero => {
            prop_oneof![fill, symbol].boxed()
        }
        Placement::SharedData => {
            let symbol = symbol_of_all().prop_map(Item::Symbol);
            prop_oneof![1 => fill, 2 => symbol, 5 => site(field_without_address().boxed())].boxed()
        }
        _ => prop_oneof![1 => fill, 2 => symbol, 5 => site(field().boxed())].boxed(),
    }
}

fn symbol() -> impl Strategy<Value = SymbolPlan> {
    let sight = prop_oneof![
        3 => Just(Sight::Local),
        4 => Just(Sight::Global),
        1 => Just(Sight::Protected),
        2 => Just(Sight::Hidden),
        1 => Just(Sight::Internal),
        1 => Just(Sight::Weak),
        1 => (0..3_u8).prop_map(Sight::Shared),
        1 => (0..3_u8).prop_map(Sight::SharedStrong),
        1 => (0..2_u8).prop_map(Sight::Unique),
        1 => Just(Sight::Indirect),
    ];
    (sight, any::<bool>(), any::<u8>()).prop_map(|(sight, typed, size)| SymbolPlan {
        sight,
        typed,
        size,
    })
}

/// A symbol that is not to be one in each process.
fn symbol_of_all() -> impl Strategy<Value = SymbolPlan> {
    symbol().prop_map(|symbol| match symbol.sight {
        Sight::Unique(_) => SymbolPlan {
            sight: Sight::Global,
            ..symbol
        },
        _ => symbol,
    })
}

/// How far addends go: with a window of less than 1 GiB no distance leaves its field.
const NEAR: i32 = 1 << 29;

fn displacement() -> impl Strategy<Value = i32> {
    prop_oneof![3 => Just(0), 1 => 1..64_i32, 1 => -NEAR..NEAR]
}

/// An instruction around a field.
pub fn instruction() -> impl Strategy<Value = Form> {
    let register = || 0..16_u8;
    let branch = select(vec![0xe8, 0xe8, 0xe9, 0x80, 0x84, 0x85, 0x8f]);
    let inside = prop_oneof![4 => Just(0), 1 => any::<i8>()];
    let which = || any::<u8>();
    let storage = select(vec![
        elf::R_X86_64_TLSGD,
        elf::R_X86_64_TLSLD,
        elf::R_X86_64_GOTTPOFF,
    ]);
    let flag = any::<bool>;
    prop_oneof![
        3 => (branch, flag(), inside)
            .prop_map(|(opcode, plt, inside)| Form::Branch { opcode, plt, inside }),
        2 => (flag(), flag(), flag())
            .prop_map(|(jump, notrack, plain)| Form::EntryBranch { jump, notrack, plain }),
        2 => (register(), flag()).prop_map(|(register, plain)| Form::EntryLoad { register, plain }),
        2 => (which(), flag()).prop_map(|(which, plain)| Form::EntryUse { which, plain }),
        2 => (register(), displacement())
            .prop_map(|(register, displacement)| Form::Lea { register, displacement }),
        2 => (which(), register(), displacement()).prop_map(|(which, register, displacement)| {
            Form::Load { which, register, displacement }
        }),
        1 => (which(), displacement())
            .prop_map(|(which, displacement)| Form::Operand { which, displacement }),
        1 => (register(), displacement())
            .prop_map(|(register, addend)| Form::Movabs { register, addend }),
        2 => (storage, flag()).prop_map(|(kind, add)| Form::Storage { kind, add }),
        1 => (0xa0..=0xa3_u8, flag(), displacement())
            .prop_map(|(opcode, wide, addend)| Form::Offset { opcode, wide, addend }),
    ]
}

/// A field that needs no instruction.
pub fn field() -> impl Strategy<Value = Form> {
    let addend = prop_oneof![3 => Just(0), 1 => -64..64_i64, 1 => any::<i64>()];
    (select(FIELDS.to_vec()), 0..16_u8, addend).prop_map(|(kind, register, addend)| Form::Field {
        kind,
        register,
        addend: fitting(kind, addend),
    })
}

/// A field that holds the same in every process.
fn field_without_address() -> impl Strategy<Value = Form> {
    field().prop_map(|form| match form {
        Form::Field {
            kind: elf::R_X86_64_64,
            register,
            addend,
        } => Form::Field {
            kind: elf::R_X86_64_PC64,
            register,
            addend,
        },
        form => form,
    })
}

/// An addend that a field of this kind can take.
fn fitting(kind: u32, addend: i64) -> i64 {
    match kind {
        // 64 bits take everything.
        elf::R_X86_64_NONE
        | elf::R_X86_64_64
        | elf::R_X86_64_PC64
        | elf::R_X86_64_GOTOFF64
        | elf::R_X86_64_GOT64
        | elf::R_X86_64_GOTPCREL64
        | elf::R_X86_64_GOTPC64
        | elf::R_X86_64_GOTPLT64
        | elf::R_X86_64_PLTOFF64
        | elf::R_X86_64_SIZE64
        | elf::R_X86_64_DTPOFF64 => addend,
        // Sizes have no sign.
        elf::R_X86_64_SIZE32 => addend.rem_euclid(NEAR.into()),
        // What becomes the value, see [`narrow`].
        _ if narrow(kind).is_some() => addend,
        _ => addend % i64::from(NEAR),
    }
}

/// The parts of a window in any order, with gaps of any length between them.
pub fn places() -> impl Strategy<Value = Places> {
    // A gap is at least 16 MiB, which no case fills, and the sum is less than 1 GiB.
    let order = Just([0_usize, 1, 2, 3, 4, 5]).prop_shuffle();
    let gaps = proptest::array::uniform6(prop_oneof![
        1 => Just(0_u32),
        1 => 0..0x8000_u32,
    ]);
    (order, gaps).prop_map(|(order, gaps)| {
        let mut places = [0; 6];
        let mut next = 0;
        for (part, gap) in order.into_iter().zip(gaps) {
            places[part] = next + gap * 4096;
            next = places[part] + (1 << 24);
        }
        let [slots, stubs, text, read_only, private, shared] = places;
        Places {
            slots,
            stubs,
            text,
            read_only,
            private,
            shared,
        }
    })
}

/// The parts of a window beside one another, so that a file that has them all stays short.
pub fn close_places() -> impl Strategy<Value = Places> {
    let order = Just([0_u32, 1, 2, 3, 4, 5]).prop_shuffle();
    (order, proptest::array::uniform6(0..16_u32)).prop_map(|(order, shifts)| {
        let place = |part: usize| (order[part] << 18) + shifts[part] * 4096;
        Places {
            slots: place(0),
            stubs: place(1),
            text: place(2),
            read_only: place(3),
            private: place(4),
            shared: place(5),
        }
    })
}

/// A page-aligned address at which a window can lie.
pub fn base() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0x7f12_3456_7000),
        4 => (1..1_u64 << 34).prop_map(|page| page << 12),
    ]
}
