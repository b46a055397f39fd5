//! What else objects hold: versions, aliases, many sections, sections of strings, sections that stay or go.

use object::write::{Object, Relocation, Symbol, SymbolFlags, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolKind, SymbolScope,
    elf,
};

use crate::common::{Effect, World, assemble, compile, prepare};

#[test]
fn versions_bind_to_the_name() {
    let asks = assemble(
        ".symver old, f@V1\n.symver host_old, memcpy@GLIBC_2.2.5\n.text\n.globl call_f, call_host\n\
         call_f: call old@PLT\ncall_host: call host_old@PLT\n",
    );
    let defines =
        assemble(".text\n.globl new\n.type new, @function\n.symver new, f@@V2\nnew: ret\n");
    let files = [("asks.o", &asks[..]), ("defines.o", &defines)];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(world.effect("call_f"), Effect::Goes(world.at("f")));
    assert_eq!(
        world.effect("call_host"),
        Effect::Goes(world.stubs["memcpy"])
    );
    let references: Vec<_> = prepared
        .references()
        .iter()
        .map(|reference| (reference.name, reference.version))
        .collect();
    assert_eq!(references, [("memcpy", Some("GLIBC_2.2.5"))]);
}

#[test]
fn aliases_are_one_place() {
    let object = compile(
        "c",
        "int f(int x) { return x; } int g(int) __attribute__((alias(\"f\")));\n\
         int d = 3; extern int e __attribute__((weak, alias(\"d\")));",
        &["-O1", "-fPIC"],
    );
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(world.at("f"), world.at("g"));
    assert_eq!(world.at("d"), world.at("e"));
}

#[test]
fn mergeable_strings_are_themselves() {
    let object = assemble(
        ".section .rodata.str1.1,\"aMS\",@progbits,1\n.string \"one\"\n.LC1: .string \"two\"\n\
         .section .rodata.cst8,\"aM\",@progbits,8\n.quad 1\n.LC2: .quad 2\n\
         .text\n.globl string, tail, constant\nstring: lea .LC1(%rip), %rdi\ntail: lea .LC1+1(%rip), %rdi\n\
         constant: cmp .LC2(%rip), %rax\n",
    );
    let files = [("one.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let reached = |site: &str| match world.effect(site) {
        Effect::Sets(_, address) | Effect::Touches(address) => address,
        other => panic!("{other:?}"),
    };
    assert_eq!(world.bytes(reached("string"), 4), *b"two\0");
    assert_eq!(world.bytes(reached("tail"), 3), *b"wo\0");
    assert_eq!(world.read_u64(reached("constant")), 2);
}

#[test]
fn excluded_sections_are_dropped_and_retained_ones_stay() {
    let object = assemble(
        ".section .lists,\"ae\",@progbits\n.quad nobody\n.section .kept,\"aR\",@progbits\n\
         .globl kept\nkept: .quad 7\n",
    );
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(world.linked.read_only, 7_u64.to_le_bytes());
    assert!(prepared.references().is_empty());
}

/// More sections than a symbol's own field can number.
#[test]
fn seventy_thousand_sections() {
    const COUNT: usize = 70_000;
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let mut last = None;
    for number in 0..COUNT {
        let name = format!(".text.f{number}").into_bytes();
        let section = object.add_section(Vec::new(), name, SectionKind::Text);
        let text = if last.is_none() {
            &[0xe8, 0, 0, 0, 0][..]
        } else {
            &[0xc3]
        };
        object.append_section_data(section, text, 1);
        if number % 10_000 == 0 || number == COUNT - 1 {
            let symbol = object.add_symbol(Symbol {
                name: format!("f{number}").into_bytes(),
                value: 0,
                size: 1,
                kind: SymbolKind::Text,
                scope: SymbolScope::Dynamic,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            });
            last = Some((last.map_or(section, |(first, _)| first), symbol));
        }
    }
    let (section, symbol) = last.unwrap();
    let flags = RelocationFlags::Elf {
        r_type: elf::R_X86_64_PLT32,
    };
    let call = Relocation {
        offset: 1,
        symbol,
        addend: -4,
        flags,
    };
    object.add_relocation(section, call).unwrap();
    let object = object.write().unwrap();
    let files = [("many.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(prepared.definitions().len(), 8);
    assert_eq!(world.effect("f0"), Effect::Goes(world.at("f69999")));
    assert_eq!(world.at("f69999") - world.at("f0"), 5 + 69_998);
}

#[test]
fn what_the_roots_do_not_reach_is_dropped() {
    use crate::common::inputs;
    use jitcast_linker::{Options, Prepared};
    let object = compile(
        "c",
        "int missing(void), host(int); static int table[100] = { 1 }; int unused_data[1000] = { 2 };\n\
         static __attribute__((noinline)) int helper(int x) { return host(x) + table[x]; }\n\
         int f(int x) { return helper(x) + 1; } int unused(void) { return missing() + unused_data[0]; }\n\
         __attribute__((retain, used)) int retained(int x) { return x; }\n\
         __attribute__((section(\"things\"))) int thing = 4; extern int __start_things[];\n\
         int *where(void) { return __start_things; }",
        &["-O1", "-fPIC", "-ffunction-sections", "-fdata-sections"],
    );
    let files = [("x.o", &object[..])];
    let files = inputs(&files);
    let options = |roots: &[&str]| Options {
        roots: Some(roots.iter().map(|&root| root.into()).collect()),
        ..Options::default()
    };
    let prepared = Prepared::read("unit", &files, &options(&["f"])).unwrap();
    let names: Vec<_> = prepared
        .definitions()
        .iter()
        .map(|found| found.name)
        .collect();
    assert_eq!(names, ["f", "retained", "thing"]);
    let references: Vec<_> = prepared
        .references()
        .iter()
        .map(|found| found.name)
        .collect();
    assert_eq!(references, ["host"], "what is dropped asks for nothing");
    let extents = prepared.extents();
    let data_len_bytes = extents.private.len_bytes + extents.read_only.len_bytes;
    assert!((400..1000).contains(&data_len_bytes), "{extents:?}");
    World::new(&prepared);
    let all = Prepared::read("unit", &files, &Options::default()).unwrap();
    assert_eq!(all.definitions().len(), 6);
    let error = Prepared::read("unit", &files, &options(&["f", "nobody"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "nobody: is to be kept, and no file of the unit defines it"
    );
}
