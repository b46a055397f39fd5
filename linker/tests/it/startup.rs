//! What is collected from many objects: constructors, destructors, sections by name; whole archives.

use jitcast_linker::{Area, Options, Prepared};

use crate::common::{World, archive, assemble, compile, inputs, prepare, refusal_of};

fn options() -> Options {
    Options {
        runs_startup: true,
        ..Options::default()
    }
}

/// The functions of a list of slots, by name.
fn names(world: &World, slots: &[jitcast_runtime::SegmentOffset]) -> Vec<String> {
    let name = |slot: &jitcast_runtime::SegmentOffset| {
        let function = world.read_u64(world.map.base + u64::from(slot.get()));
        let is = |(_, stub): &(&String, &u64)| **stub == function;
        let found = world.stubs.iter().find(is).map(|(name, _)| name.clone());
        found.unwrap_or_else(|| panic!("{function:#x} is no function"))
    };
    slots.iter().map(name).collect()
}

#[test]
fn constructors_run_by_priority_and_destructors_the_other_way() {
    let source = |unit: &str| {
        format!(
            "#define F(kind, n) __attribute__((kind)) void n##_{unit}(void) {{}}\n\
             F(constructor, c) F(constructor(200), c200) F(constructor(101), c101)\n\
             F(destructor, d) F(destructor(200), d200) F(destructor(101), d101)"
        )
    };
    let (a, b) = (
        compile("c", &source("a"), &["-fPIC"]),
        compile("c", &source("b"), &["-fPIC"]),
    );
    let files = [("a.o", &a[..]), ("b.o", &b)];
    let files = inputs(&files);
    let prepared = Prepared::read("unit", &files, &options()).unwrap();
    let world = World::new(&prepared);
    let init = names(&world, &world.linked.init);
    assert_eq!(init, ["c101_a", "c101_b", "c200_a", "c200_b", "c_a", "c_b"]);
    let fini = names(&world, &world.linked.fini);
    assert_eq!(fini, ["d_b", "d_a", "d200_b", "d200_a", "d101_b", "d101_a"]);
    let error = Prepared::read("unit", &files, &Options::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("nobody would run its constructors"),
        "{error}"
    );
}

#[test]
fn old_lists_run_backwards() {
    let object = assemble(
        ".text\n.globl a, b, c, d, e\n.type a, @function\n.type b, @function\n.type c, @function\n\
         .type d, @function\n.type e, @function\na: ret\nb: ret\nc: ret\nd: ret\ne: ret\n\
         .section .ctors,\"aw\"\n.quad -1, a, b, 0\n.section .ctors.65434,\"aw\"\n.quad c\n\
         .section .init_array.50,\"aw\",@init_array\n.quad d\n.section .dtors,\"aw\"\n.quad a, b\n\
         .section .fini_array,\"aw\",@fini_array\n.quad e\n",
    );
    let files = [("x.o", &object[..])];
    let prepared = Prepared::read("unit", &inputs(&files), &options()).unwrap();
    let world = World::new(&prepared);
    assert_eq!(names(&world, &world.linked.init), ["d", "c", "b", "a"]);
    assert_eq!(names(&world, &world.linked.fini), ["e", "a", "b"]);
}

#[test]
fn lists_hold_functions_only() {
    let expected =
        "x.o: section .init_array is refused: it holds an entry that is no address of a function";
    for entries in [
        ".quad 1",
        ".quad f\n.long 0",
        ".long f-.\n.long 0",
        ".byte 0\n.quad f\n.skip 7",
        ".quad f\n.reloc .-4, R_X86_64_PC32, f",
        ".skip 16",
    ] {
        let object = assemble(&format!(
            ".text\nf: ret\n.section .init_array,\"aw\",@init_array\n{entries}\n"
        ));
        let files = [("x.o", &object[..])];
        let read = Prepared::read("unit", &inputs(&files), &options());
        match entries {
            // Zeros end a list, and are no function.
            ".skip 16" => assert!(World::new(&read.unwrap()).linked.init.is_empty()),
            _ => assert_eq!(read.unwrap_err().to_string(), expected, "{entries}"),
        }
    }
}

const THINGS: &str = "\
    .section things,FLAGS\n.balign 8\n.quad VALUE\n\
    .text\n.globl start_NAME, stop_NAME\n\
    start_NAME: lea __start_things(%rip), %rax\nstop_NAME: lea __stop_things(%rip), %rax\n";

fn things(name: &str, flags: &str, value: &str) -> Vec<u8> {
    let source = THINGS.replace("NAME", name).replace("FLAGS", flags);
    assemble(&source.replace("VALUE", value))
}

#[test]
fn sections_have_a_start_and_an_end() {
    use crate::common::Effect;
    use iced_x86::Register;
    // Other sections of the same kind and alignment lie around.
    let other =
        ".section other,\"aw\"\n.balign 8\n.quad 99\n.section more,\"a\"\n.balign 8\n.quad 98\n";
    let other = assemble(other);
    let (a, b, c) = (
        things("a", "\"a\"", "1"),
        things("b", "\"a\"", "2"),
        things("c", "\"a\"", "3"),
    );
    let patched = things("c", "\"a\"", "start_c");
    let writable = things("c", "\"aw\"", "3");
    for (last, area) in [
        (&c, Area::ReadOnly),
        (&patched, Area::Private),
        (&writable, Area::Private),
    ] {
        let files = [
            ("a.o", &a[..]),
            ("o.o", &other),
            ("b.o", &b),
            ("p.o", &other),
            ("c.o", last),
        ];
        let prepared = prepare(&files).unwrap();
        let world = World::new(&prepared);
        let reached = |site: &str| match world.effect(site) {
            Effect::Sets(Register::RAX, address) => address,
            other => panic!("{other:?}"),
        };
        let (start, stop) = (reached("start_a"), reached("stop_c"));
        assert_eq!((reached("start_c"), reached("stop_a")), (start, stop));
        assert_eq!(stop - start, 24);
        assert_eq!((world.read_u64(start), world.read_u64(start + 8)), (1, 2));
        let third = world.read_u64(start + 16);
        assert!(third == 3 || third == world.stub_of("start_c").unwrap());
        let base = world.map.base
            + u64::from(if area == Area::ReadOnly {
                world.map.read_only
            } else {
                world.map.private
            });
        assert!((base..base + 0x1_0000).contains(&start), "{area:?}");
    }
    let hidden = assemble(".hidden __start_none\n.text\nlea __start_none(%rip), %rax\n");
    assert!(
        refusal_of(&[("x.o", &hidden)]).contains("is hidden, and no file of the unit defines it")
    );
}

#[test]
fn whole_archives() {
    let member = |name: &str| assemble(&format!(".text\n.globl {name}\n{name}: ret\n"));
    let (a, b) = (member("a"), member("b"));
    let library = archive(
        "rc",
        &[("a.o", &a), ("lib.rmeta", b"metadata"), ("b.o", &b)],
    );
    let files = [("lib.a", &library[..])];
    let whole = Options {
        whole_archive: true,
        ..Options::default()
    };
    let files = inputs(&files);
    let defined = |options: &Options| {
        let prepared = Prepared::read("unit", &files, options).unwrap();
        prepared
            .definitions()
            .iter()
            .map(|found| found.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(defined(&whole), ["a", "b"]);
    assert!(defined(&Options::default()).is_empty());
    let library = archive("rc", &[("README", b"text".as_slice())]);
    let files = [("lib.a", &library[..])];
    let error = Prepared::read("unit", &inputs(&files), &whole).unwrap_err();
    assert_eq!(
        error.to_string(),
        "lib.a(README): is not an ELF object or archive"
    );
}
