//! Every row of the table at the ends of its range.

use jitcast_linker::relocation::{Field, Relocation, TABLE};
use object::elf;

use crate::common::{Map, World, assemble, prepare, refusal_of};

/// Read-only data with one field of a kind. The field is eight bytes long, whatever its kind fills.
fn with_field(row: &Relocation, addend: i128) -> Vec<u8> {
    let symbol = match row.number {
        elf::R_X86_64_8 | elf::R_X86_64_16 | elf::R_X86_64_32 | elf::R_X86_64_32S => "number",
        elf::R_X86_64_PLT32 | elf::R_X86_64_PLTOFF64 => "host",
        elf::R_X86_64_GOTTPOFF => "foreign",
        elf::R_X86_64_TLSGD
        | elf::R_X86_64_TLSLD
        | elf::R_X86_64_DTPOFF32
        | elf::R_X86_64_DTPOFF64 => "own",
        _ => "static",
    };
    assemble(&format!(
        ".type foreign, @tls_object\n.section .tbss,\"awT\",@nobits\n.type own, @tls_object\nown: .quad 0\n\
         .section .rodata\n.globl field\n.type static, @object\n.size static, 8\n\
         field: static:\n.reloc ., {}, {symbol}{addend:+}\n.quad -0x5555555555555556\n",
        row.name
    ))
}

/// What the field holds, the bytes after it untouched.
fn value(world: &World, field: &Field) -> i128 {
    let bytes = world.bytes(world.at("field"), 8);
    let width = usize::from(field.width_bytes);
    assert!(bytes[width..].iter().all(|&byte| byte == 0xaa));
    let mut wide = [0; 16];
    wide[..width].copy_from_slice(&bytes[..width]);
    let unsigned = i128::from_le_bytes(wide);
    let signed = field.range.is_none_or(|(min, max)| -min > max);
    let sign_bit = 1_i128 << (8 * width - 1);
    if signed && unsigned & sign_bit != 0 {
        unsigned - 2 * sign_bit
    } else {
        unsigned
    }
}

#[test]
fn values_at_the_end_of_their_range() {
    let number = assemble(".globl number\n.set number, 7\n");
    for row in TABLE.iter().filter(|row| row.field.width_bytes > 0) {
        let build = |addend| {
            let object = with_field(row, addend);
            let files = [("x.o", &object[..]), ("number.o", &number)];
            let prepared = prepare(&files).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            World::try_new(&prepared, Map::default()).map(|world| value(&world, &row.field))
        };
        let Some((min, max)) = row.field.range else {
            continue;
        };
        // First what the field holds without an addend, then the addends that take it to the ends.
        let base = build(0).unwrap_or_else(|error| panic!("{}: {error}", row.name));
        for value in [min, min + 1, -1, 0, max - 1, max] {
            if value < min {
                continue;
            }
            let width = u32::from(row.field.width_bytes) * 8;
            let stored =
                build(value - base).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            assert_eq!((stored - value) % (1 << width), 0, "{}: {value}", row.name);
        }
        for value in [min - 1, max + 1] {
            let object = with_field(row, value - base);
            let message = refusal_of(&[("x.o", &object), ("number.o", &number)]);
            let expected = format!("is out of range: {value} is not in {min}..={max}");
            assert!(message.contains(row.name), "{message}");
            assert!(message.contains(&expected), "{message}");
            assert!(message.starts_with("x.o: .rodata+0x0"), "{message}");
        }
    }
}

#[test]
fn whole_words_are_taken_modulo_their_width() {
    let number = assemble(".globl number\n.set number, 7\n");
    for row in TABLE.iter().filter(|row| row.field.range.is_none()) {
        let build = |addend| {
            let object = with_field(row, addend);
            let files = [("x.o", &object[..]), ("number.o", &number)];
            let prepared = prepare(&files).unwrap_or_else(|error| panic!("{}: {error}", row.name));
            let world = World::new(&prepared);
            world.read_u64(world.at("field"))
        };
        if row.field.width_bytes == 0 || row.number == elf::R_X86_64_PLTOFF64 {
            // Nothing to hold, or nothing but the start of a function to mean.
            continue;
        }
        let base = build(0);
        for addend in [i64::MIN, -1, 1, i64::MAX] {
            assert_eq!(
                build(addend.into()),
                base.wrapping_add_signed(addend),
                "{}",
                row.name
            );
        }
    }
}

/// A kernel's addresses are numbers below zero to a field that is sign-extended.
#[test]
fn numbers_at_the_top_of_the_address_space_have_a_sign() {
    let number = assemble(".globl number\n.set number, 0xffffffff80000000\n");
    let object = assemble(
        ".section .rodata\n.globl field\nfield: .long number\n.reloc field, R_X86_64_32S, number\n.text\n.globl f\nf: mov $number, %rax\n",
    );
    let message = refusal_of(&[("x.o", &object), ("number.o", &number)]);
    assert!(
        message.contains(
            "R_X86_64_32 against `number` is out of range: -2147483648 is not in 0..=4294967295"
        ),
        "{message}"
    );
    let object = assemble(".text\n.globl f\nf: mov $number, %rax\n");
    let files = [("x.o", &object[..]), ("number.o", &number)];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(world.read_i32(world.at("f") + 3), i32::MIN);
}
