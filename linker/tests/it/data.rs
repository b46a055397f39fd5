//! Fields of data, and where sections go.

use jitcast_linker::{Area, Options, Prepared};

use crate::common::{World, assemble, compile, inputs, prepare, refusal};

#[test]
fn absolute_addresses_are_patched_in_private_data() {
    let object = assemble(
        r#"
        .text
        .globl f
        .type f, @function
    f:  ret
        .type static, @function
    static: ret
        .data
        .globl datum, own, inside, local, host_word, beyond, before, data_word, absolute
    datum: .quad 7
    own: .quad f
    inside: .quad f+1
    local: .quad static
    host_word: .quad host+16
    beyond: .quad datum+0x4000000000000000
    before: .quad datum-0x123456789
    data_word: .quad datum
    absolute: .quad number-1
        .globl number
        .set number, 0x8000000000000001
        "#,
    );
    let files = [("data.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let word = |name: &str| world.read_u64(world.at(name));
    assert_eq!(
        word("own"),
        world.stubs["f"],
        "a pointer to a function is that to its stub"
    );
    assert_eq!(word("inside"), world.at("f") + 1);
    assert_eq!(word("local"), world.at("f") + 1);
    assert_eq!(word("host_word"), world.hosts["host"] + 16);
    assert_eq!(
        word("beyond"),
        world.at("datum") + 0x4000_0000_0000_0000,
        "the addend stays apart"
    );
    assert_eq!(word("before"), world.at("datum") - 0x1_2345_6789);
    assert_eq!(word("data_word"), world.at("datum"));
    assert_eq!(word("absolute"), 0x8000_0000_0000_0000);
    assert_eq!(world.linked.patches.len(), 7, "a number needs no patch");
    assert!(world.linked.patches.is_sorted_by_key(|patch| patch.site));
    let host = prepared
        .references()
        .iter()
        .find(|reference| reference.name == "host")
        .unwrap();
    assert!(host.address && !host.stub && !host.address_cell);
}

#[test]
fn distances_are_the_same_in_every_process() {
    let object = assemble(
        r#"
        .text
        .globl f
        .type f, @function
    f:  ret
        .type static, @function
    static: ret
        .section .rodata
        .globl table, far, stub, host_stub, cell, to_data
    table: .long static-.
        .long f-.
    far: .quad static-.+0x7000000000000000
    stub: .long f@PLT
    host_stub: .long host@PLT
    cell: .long other@GOTPCREL
    to_data: .long datum-.
        .data
        .globl datum, to_constant
    datum: .quad 0
    to_constant: .long table-.
        "#,
    );
    let files = [("distance.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let near = |name: &str, offset: u64| {
        let place = world.at(name) + offset;
        place.wrapping_add_signed(world.read_i32(place).into())
    };
    assert_eq!(near("table", 0), world.at("f") + 1);
    assert_eq!(near("table", 4), world.stubs["f"]);
    assert_eq!(near("stub", 0), world.stubs["f"]);
    assert_eq!(near("host_stub", 0), world.stubs["host"]);
    assert_eq!(near("cell", 0), world.address_cells["other"]);
    assert_eq!(near("to_data", 0), world.at("datum"));
    assert_eq!(near("to_constant", 0), world.at("table"));
    let far = world.at("far");
    let value = world.read_i64(far) - 0x7000_0000_0000_0000;
    assert_eq!(far.wrapping_add_signed(value), world.at("f") + 1);
    assert_eq!(
        world.area(&prepared, "table"),
        Area::ReadOnly,
        "no absolute address, so it is shared"
    );
}

#[test]
fn placement_follows_from_relocations() {
    let object = compile(
        "c",
        r#"
        int function(int x) { return x; }
        const int constant[4] = { 1, 2, 3, 4 };
        const char *const names[] = { "a", "b" };
        int writable = 5;
        int zero[1000];
        "#,
        &["-O2", "-fPIC"],
    );
    let files = [("placement.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let area = |name: &str| world.area(&prepared, name);
    assert_eq!(area("function"), Area::Text);
    assert_eq!(area("constant"), Area::ReadOnly);
    assert_eq!(area("names"), Area::Private);
    assert_eq!(area("writable"), Area::Private);
    assert_eq!(area("zero"), Area::Private);
    assert_eq!(world.bytes(world.at("constant"), 4), [1, 0, 0, 0]);
    assert_eq!(
        world.bytes(world.read_u64(world.at("names") + 8), 2),
        *b"b\0"
    );
    let private = prepared.extents().private;
    assert!(
        private.len_bytes >= 4000 && world.linked.template.len() < 100,
        "zeros are not in the template"
    );
    assert_eq!(private.align_bytes, 32);
}

#[test]
fn debug_information_is_left_out() {
    let source = "int g(int); static int s; int f(int x) { return g(x) + s++; }";
    let plain = compile("c", source, &["-O2", "-fPIC"]);
    let debug = compile("c", source, &["-O2", "-fPIC", "-g3"]);
    let (plain, debug) = ([("x.o", &plain[..])], [("x.o", &debug[..])]);
    let (plain, debug) = (prepare(&plain).unwrap(), prepare(&debug).unwrap());
    assert_eq!(plain.extents(), debug.extents());
    assert_eq!(
        World::new(&plain).linked.text,
        World::new(&debug).linked.text
    );
}

#[test]
fn common_symbols_are_zero_and_merged() {
    let one = compile("c", "int shared; char big[10];", &["-fcommon", "-fPIC"]);
    let two = compile(
        "c",
        "int shared; char big[100]; int *where(void) { return &shared; }",
        &["-fcommon", "-fPIC"],
    );
    let three = compile("c", "int shared = 3;", &["-fPIC"]);
    let files = [
        ("one.o", &one[..]),
        ("two.o", &two[..]),
        ("three.o", &three[..]),
    ];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let size = |name: &str| {
        prepared
            .definitions()
            .iter()
            .find(|found| found.name == name)
            .unwrap()
            .size
    };
    assert_eq!(size("big"), 100);
    assert_eq!(world.at("big") % 32, 0, "the strictest alignment");
    assert_eq!(
        world.bytes(world.at("shared"), 4),
        [3, 0, 0, 0],
        "a definition beats common ones"
    );
    assert_eq!(prepared.extents().private.len_bytes, 132);
}

#[test]
fn a_unit_has_a_longest_length() {
    let object = assemble(".bss\n.globl x\nx: .skip 5000\n");
    let files = [("bss.o", &object[..])];
    let options = Options {
        max_len_bytes: 5000,
        ..Options::default()
    };
    assert!(Prepared::read("unit", &inputs(&files), &options).is_ok());
    let error = Prepared::read(
        "unit",
        &inputs(&files),
        &Options {
            max_len_bytes: 4999,
            ..Options::default()
        },
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "unit: the length of the unit is 5000, more than 4999"
    );
    let huge = assemble(".bss\n.globl x\nx: .skip 0x80000001\n");
    assert_eq!(
        refusal(&huge),
        "x.o: the length of a section is 2147483649, more than 2147483648"
    );
    let two =
        assemble(".bss\n.skip 0x7fffffff\n .section .more,\"aw\",@nobits\n.skip 0x7fffffff\n");
    assert!(
        refusal(&two).contains("the length of the unit is"),
        "{}",
        refusal(&two)
    );
}
