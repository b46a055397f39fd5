//! Everything that is refused, with its message.

use object::elf;

use crate::common::{assemble, compile, refusal, refusal_of, run};

/// An object with the bytes at `at` replaced.
fn patched(object: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut object = object.to_vec();
    object[at..at + bytes.len()].copy_from_slice(bytes);
    object
}

fn source(text: &str) -> String {
    refusal(&assemble(text))
}

#[test]
fn files_that_are_no_objects() {
    let object = assemble("nop\n");
    assert_eq!(
        refusal(b"int main;"),
        "x.o: is not an ELF object or archive"
    );
    assert_eq!(refusal(b""), "x.o: is not an ELF object or archive");
    assert_eq!(
        refusal(b"BC\xc0\xde...."),
        "x.o: is LLVM bitcode, not machine code\n  help: compile x.o without -flto, or with -ffat-lto-objects"
    );
    assert!(refusal(&object[..40]).starts_with("x.o: is corrupt or truncated: "));
    assert_eq!(
        refusal(&patched(&object, 4, &[1])),
        "x.o: is a 32-bit ELF file, not a 64-bit one\n  help: compile x.o with -m64"
    );
    assert_eq!(
        refusal(&patched(&object, 5, &[2])),
        "x.o: is a big-endian ELF file"
    );
    assert_eq!(
        refusal(&patched(&object, 18, &[183, 0])),
        "x.o: is for ELF machine 183, not for x86-64 (62)"
    );
    assert_eq!(
        refusal(&patched(&object, 16, &[2, 0])),
        "x.o: is an executable, not a relocatable object\n  help: compile x.o with -c"
    );
    assert_eq!(
        refusal(&patched(&object, 16, &[3, 0])),
        "x.o: is a shared library or executable, not a relocatable object\n  \
         help: compile x.o with -c, or load it in every worker as a library (--lib)"
    );
    assert_eq!(
        refusal(&patched(&object, 16, &[4, 0])),
        "x.o: has ELF type 4, not that of a relocatable object (1)"
    );
}

#[test]
fn link_time_optimisation() {
    let message = refusal(&compile(
        "c",
        "int f(void) { return 1; }",
        &["-O2", "-flto", "-fno-fat-lto-objects"],
    ));
    assert_eq!(
        message,
        "x.o: holds link-time optimisation code only, no machine code\n  \
         help: compile x.o without -flto, or with -ffat-lto-objects"
    );
    let fat = compile(
        "c",
        "int f(void) { return 1; }",
        &["-O2", "-flto", "-ffat-lto-objects"],
    );
    assert!(crate::common::prepare(&[("fat.o", &fat[..])]).is_ok());
}

#[test]
fn sections() {
    let refused = |section: &str, why: &str| format!("x.o: section {section} is refused: {why}");
    let cases = [
        (
            r#".section .init_array,"aw",@init_array
            .quad f"#,
            refused(".init_array", "nobody would run its constructors"),
        ),
        (
            r#".section .ctors.00001,"aw"
            .quad f"#,
            refused(".ctors.00001", "nobody would run its constructors"),
        ),
        (
            r#".section .init,"ax"
            nop"#,
            refused(".init", "nobody would run its constructors"),
        ),
        (
            r#".section .fini_array,"aw",@fini_array
            .quad f"#,
            refused(".fini_array", "nobody would run its destructors"),
        ),
        (
            r#".section .fixed,"aT",@progbits
            .quad 1"#,
            refused(
                ".fixed",
                "thread-local storage is data that can be written to",
            ),
        ),
        (
            r#".section .both,"awx"
            nop"#,
            refused(".both", "no page is both writable and executable"),
        ),
        (
            r#".section .odd,"a",@0x6000000
            .quad 1"#,
            refused(".odd", "its type 0x6000000 is not supported"),
        ),
    ];
    for (text, message) in cases {
        assert_eq!(source(&format!("{text}\n")), message);
    }
    let stack = source(".section .note.GNU-stack,\"x\",@progbits\n");
    assert!(
        stack.starts_with(&refused(
            ".note.GNU-stack",
            "workers have no executable stack"
        )),
        "{stack}"
    );
    assert_eq!(
        source(".p2align 13\nnop\n"),
        "x.o: an alignment is 8192, more than 4096"
    );
    // Empty ones do no harm.
    assert!(
        crate::common::prepare(&[(
            "x.o",
            &assemble(".section .init,\"ax\"\n.section .ctors,\"aw\"\n")[..]
        )])
        .is_ok()
    );
}

#[test]
fn symbols() {
    assert_eq!(
        source(".globl f\n.type f, @gnu_indirect_function\nf: ret\n"),
        "x.o: `f` is an indirect function (STT_GNU_IFUNC), whose resolver nobody would run"
    );
    assert_eq!(
        source(".data\n.globl u\n.type u, @gnu_unique_object\nu: .quad 1\n"),
        "x.o: `u` is unique in the process (STB_GNU_UNIQUE), where nobody keeps one copy\n  help: compile x.o with -fno-gnu-unique"
    );
    assert_eq!(
        source(".globl old\n.symver old, f@V1\nold: ret\n"),
        "x.o: `f@V1` defines a version that is not the default one, which is not supported"
    );
    assert_eq!(
        source(".symver one, f@V1\n.symver two, f@V2\ncall one@PLT\ncall two@PLT\n"),
        "x.o: `f@V2` is asked for in two versions, of which a unit can have one"
    );
    let data = assemble(".section things,\"aw\"\n.quad 1\n.text\nlea __start_things(%rip), %rax\n");
    let code = assemble(".section things,\"ax\"\nnop\n");
    assert_eq!(
        refusal_of(&[("data.o", &data), ("code.o", &code)]),
        "code.o: section things is refused: its parts cannot lie together, and something asks where it starts or ends"
    );
    assert_eq!(
        source(".section .excluded,\"ae\"\nd: .quad 1\n.text\nlea d(%rip), %rax\n"),
        "x.o: .text+0x3: `.excluded` lies in a section that is not loaded"
    );
    assert_eq!(
        source(".section .debug_x,\"\"\nd: .quad 1\n.text\nlea d(%rip), %rax\n"),
        "x.o: .text+0x3: `.debug_x` lies in a section that is not loaded"
    );
}

#[test]
fn relocations() {
    let text = ".text\n.type main, @function\nmain: nop\n mov $table, %eax\n .size main, .-main\n";
    assert_eq!(
        source(text),
        "x.o: .text+0x2 in `main`: R_X86_64_32 against `table` needs an absolute address\n  \
         a worker's base is known only at attach, and the field is too narrow to hold S + A\n  \
         help: compile x.o with -fPIC"
    );
    assert_eq!(
        source("nop\n.quad table\n"),
        "x.o: .text+0x1: R_X86_64_64 against `table` stores an absolute address in text, and not as the immediate of a `movabs`\n  \
         a worker's base is known only at attach, and text is shared by all workers\n  \
         help: compile x.o with -fPIC"
    );
    assert_eq!(
        source(".data\n.long host-.\n"),
        "x.o: .data+0x0: R_X86_64_PC32 against `host` needs the distance to a symbol that the unit does not define\n  \
         where the symbol is differs between workers, and this data cannot go through a cell\n  \
         help: compile x.o with -fPIC"
    );
    assert_eq!(
        source("call host+4\n").lines().next().unwrap(),
        "x.o: .text+0x1: R_X86_64_PC32 against `host` branches into the middle of a function that the unit does not define"
    );
    let number = assemble(".globl number\n.set number, 5\n");
    let call = assemble("call number@PLT\n");
    assert_eq!(
        refusal_of(&[("x.o", &call), ("number.o", &number)])
            .lines()
            .next()
            .unwrap(),
        "x.o: .text+0x1: R_X86_64_PLT32 against `number` needs the distance to a fixed address"
    );
    let cases = [
        (
            "mov $x, %al\n",
            "R_X86_64_8 against `x` needs an absolute address",
        ),
        (
            ".data\n.byte x-.\n",
            "R_X86_64_PC8 against `x` needs the distance to a symbol that the unit does not define",
        ),
        (
            "jmp x\n.reloc 1, R_X86_64_PC8, x-1\n",
            "R_X86_64_PC8 against `x` needs the distance to a symbol that the unit does not define",
        ),
        (
            ".data\nx: .long x\n",
            "R_X86_64_32 against `.data` needs an absolute address",
        ),
        (
            "mov $x, %rax\n",
            "R_X86_64_32S against `x` needs an absolute address",
        ),
        (
            ".data\n.word x\n",
            "R_X86_64_16 against `x` needs an absolute address",
        ),
        (
            "lea y@tlsld(%rip), %rdi\n",
            "R_X86_64_TLSLD against `y` needs a place in the unit's own block",
        ),
        (
            "movabs $x@GOTOFF, %rax\n",
            "R_X86_64_GOTOFF64 against `x` needs the distance to a symbol that the unit does not define",
        ),
        (
            "movabs $x@PLTOFF+1, %rax\n",
            "R_X86_64_PLTOFF64 against `x` branches into the middle of a function",
        ),
        (
            "movabs $_GLOBAL_OFFSET_TABLE_@GOT, %rax\n",
            "R_X86_64_GOT64 against `_GLOBAL_OFFSET_TABLE_` asks for the entry of the global offset table in itself",
        ),
        (
            ".data\n.quad x@SIZE\n",
            "R_X86_64_SIZE64 against `x` asks for the size of a symbol that the unit does not define",
        ),
    ];
    for (text, expected) in cases {
        assert!(source(text).contains(expected), "{}", source(text));
    }
}

/// Where the only entry of the object's only relocation table of `.data` is, in the file.
fn entry(object: &[u8]) -> usize {
    use object::read::elf::{FileHeader, SectionHeader};
    let header = elf::FileHeader64::<object::LittleEndian>::parse(object).unwrap();
    let sections = header.sections(object::LittleEndian, object).unwrap();
    let (_, section) = sections
        .section_by_name(object::LittleEndian, b".rela.data")
        .unwrap();
    section.sh_offset(object::LittleEndian) as usize
}

#[test]
fn damaged_relocations() {
    let object = assemble(".data\n.globl x\nx: .quad x, 0\n");
    let entry = entry(&object);
    let unknown = patched(&object, entry + 8, &[200, 0, 0, 0]);
    assert_eq!(
        refusal(&unknown),
        "x.o: .data+0x0 in `x`: unknown relocation 200".replace(" in `x`", "")
    );
    let last = patched(&object, entry, &8_u64.to_le_bytes());
    assert!(crate::common::prepare(&[("x.o", &last[..])]).is_ok());
    for offset in [9, 16, u64::MAX - 3, u64::MAX] {
        let outside = patched(&object, entry, &offset.to_le_bytes());
        let expected = format!(
            "x.o: .data+{offset:#x}: R_X86_64_64 writes 8 bytes past the end of a section of 16"
        );
        assert_eq!(refusal(&outside), expected);
    }
    let nobody = patched(&object, entry + 12, &[99, 0, 0, 0]);
    assert!(refusal(&nobody).contains("relocation against a symbol that does not exist"));
}

#[test]
fn the_field_at_the_end_of_its_section_for_every_row() {
    let object = assemble(".data\n.globl x\nx: .quad x, 0\n");
    let entry = entry(&object);
    for row in &jitcast_linker::relocation::TABLE {
        let width = u64::from(row.field.width_bytes);
        for (offset, fits) in [
            (16 - width, true),
            (17 - width, width == 0),
            (17, width == 0),
        ] {
            let mut moved = patched(&object, entry, &offset.to_le_bytes());
            moved[entry + 8..entry + 12].copy_from_slice(&row.number.to_le_bytes());
            let failed = crate::common::prepare(&[("x.o", &moved[..])]).err();
            let outside = failed.is_some_and(|error| {
                matches!(error.problem, jitcast_linker::Problem::FieldOutside { .. })
            });
            assert_eq!(!outside, fits, "{} at {offset}", row.name);
        }
    }
}

#[test]
fn other_forms_of_relocation_table() {
    let object = assemble(".data\n.globl x\nx: .quad x\n");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.o");
    std::fs::write(&path, &object).unwrap();
    run(std::process::Command::new("objcopy")
        .arg("--strip-debug")
        .arg(&path));
    let object = std::fs::read(path).unwrap();
    use object::read::elf::{FileHeader, SectionHeader};
    let header = elf::FileHeader64::<object::LittleEndian>::parse(&object[..]).unwrap();
    let sections = header.sections(object::LittleEndian, &object[..]).unwrap();
    let headers = header.e_shoff(object::LittleEndian) as usize;
    for (kind, form) in [
        (elf::SHT_REL, "SHT_REL"),
        (elf::SHT_RELR, "SHT_RELR"),
        (elf::SHT_CREL, "SHT_CREL"),
    ] {
        let rela = sections
            .iter()
            .position(|section| section.sh_type(object::LittleEndian) == elf::SHT_RELA);
        let changed = patched(
            &object,
            headers + rela.unwrap() * 64 + 4,
            &kind.to_le_bytes(),
        );
        let message = refusal(&changed);
        let expected =
            format!("x.o: section .data has its relocations in a {form} table, not supported yet");
        assert!(message.starts_with(&expected), "{message}");
    }
}
