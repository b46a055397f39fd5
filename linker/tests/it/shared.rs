//! Shared data: sections by name, one image for all workers, and no address in it.

use iced_x86::Register;
use jitcast_linker::relocation::Resolved;
use jitcast_linker::{Area, Done, Options, Prepared};

use crate::common::{Effect, Map, World, assemble, compile, inputs, prepare, refusal, refusal_of};

/// Data of each kind, and code that reaches them directly and by way of cells.
const SOURCE: &str = r#"
    .section .jitcast.shared,"aw"
    .globl plain
    .p2align 3
    plain: .quad 7
    distance: .quad near - plain
    .long f - .
    .quad number
    .section .jitcast.shared.zeros,"aw",@nobits
    .globl zeros
    .p2align 6
    zeros: .skip 1000
    .section .jitcast.shared.near,"aw"
    .globl near
    near: .long plain - .
    .data
    .globl pointer
    pointer: .quad plain
    .globl number
    number = 0x1234
    .text
    .globl f
    f: ret
    .globl load
    load: mov plain(%rip), %rax
    .globl taken
    taken: lea zeros(%rip), %rcx
    .globl by_cell
    by_cell: mov plain@GOTPCREL(%rip), %rdx
"#;

#[test]
fn shared_data_have_an_area_of_their_own_and_one_image() {
    let object = assemble(SOURCE);
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let extent = prepared.extents().shared;
    assert_eq!(extent.align_bytes, 64);
    let world = World::new(&prepared);
    for name in ["plain", "zeros", "near"] {
        assert_eq!(world.area(&prepared, name), Area::SharedData, "{name}");
    }
    let shared = world.map.base + u64::from(world.map.shared);
    let end = shared + extent.len_bytes;
    let image_end = shared + world.linked.shared.len() as u64;
    assert!(world.at("zeros") >= image_end && world.at("zeros") + 1000 <= end);
    assert!(
        world.linked.shared.len() < 64,
        "zeros are not in the template"
    );
    let (plain, near) = (world.at("plain"), world.at("near"));
    assert_eq!(world.read_u64(plain), 7);
    assert_eq!(world.read_u64(plain + 8), near.wrapping_sub(plain));
    let to_f = i64::from(world.read_i32(plain + 16));
    assert_eq!((plain + 16).wrapping_add_signed(to_f), world.stubs["f"]);
    assert_eq!(world.read_u64(plain + 20), 0x1234);
    let back = i64::from(world.read_i32(near));
    assert_eq!(near.wrapping_add_signed(back), plain);
    // Loaded directly; taken directly; and the load of a cell became a `lea`.
    assert_eq!(world.effect("load"), Effect::Sets(Register::RAX, 7));
    let taken = Effect::Sets(Register::RCX, world.at("zeros"));
    assert_eq!(world.effect("taken"), taken);
    assert_eq!(world.effect("by_cell"), Effect::Sets(Register::RDX, plain));
    assert_eq!(world.read_u64(world.at("pointer")), plain);
    // Nothing that a worker stores lies there.
    let region = world.map.shared..world.map.shared + extent.len_bytes as u32;
    let patches = world.linked.patches.iter();
    assert!(patches.clone().count() > 0);
    let mut sites = patches.map(|patch| patch.site.get());
    assert!(!sites.any(|site| region.contains(&site)));
}

/// The same bytes wherever the window lies: that is what makes one copy serve all.
#[test]
fn the_image_does_not_depend_on_the_base() {
    let object = assemble(SOURCE);
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let images = [0x1000_0000_0000, 0x7f00_0020_0000].map(|base| {
        let map = Map {
            base,
            ..Map::default()
        };
        World::try_new(&prepared, map).unwrap().linked.shared
    });
    assert_eq!(images[0], images[1]);
    let definitions = prepared.definitions().iter();
    let shared: Vec<_> = definitions
        .filter(|definition| definition.shared)
        .map(|definition| (definition.name, definition.writable))
        .collect();
    // Without a size there is nothing to keep.
    assert_eq!(
        shared,
        [("plain", false), ("near", false), ("zeros", false)]
    );
}

#[test]
fn what_compilers_make_of_the_attribute() {
    let source = r#"
        #define SHARED __attribute__((section(".jitcast.shared")))
        SHARED _Atomic long counter;
        SHARED static int lock = 1;
        __attribute__((section(".jitcast.shared.table"))) struct { int of[100]; } table;
        static long own;
        long f(void) { return counter++ + lock + table.of[3] + own++; }
    "#;
    for flags in [
        &["-O2", "-fPIC"][..],
        &["-O0", "-fPIE"],
        &["-O2", "-fPIC", "-fdata-sections", "-ffunction-sections"],
        &["-O2", "-fPIC", "-mcmodel=large"],
    ] {
        let object = compile("c", source, flags);
        let files = [("x.o", &object[..])];
        // What nothing refers to is dropped like any section.
        let options = Options {
            roots: Some(vec!["f".into()]),
            ..Options::default()
        };
        let prepared = Prepared::read("unit", &inputs(&files), &options).unwrap();
        let world = World::new(&prepared);
        for name in ["counter", "table"] {
            assert_eq!(world.area(&prepared, name), Area::SharedData, "{flags:?}");
        }
        let definitions = prepared.definitions().iter();
        let kept = definitions.filter(|found| found.shared && found.writable);
        assert_eq!(kept.count(), 2, "both can outlive a version");
        assert!(prepared.extents().private.len_bytes < 100);
    }
    let unused = assemble(
        ".section .jitcast.shared.a,\"aw\"\n.globl a\na: .quad 1\n.text\n.globl f\nf: ret\n",
    );
    let files = [("x.o", &unused[..])];
    let options = Options {
        roots: Some(vec!["f".into()]),
        ..Options::default()
    };
    let prepared = Prepared::read("unit", &inputs(&files), &options).unwrap();
    assert_eq!(prepared.extents().shared.len_bytes, 0);
}

#[test]
fn an_address_in_shared_data_is_refused_with_a_remedy() {
    let message = refusal(&compile(
        "c",
        r#"extern int there;
        __attribute__((section(".jitcast.shared"))) struct { long count; int *to; } shared = { 1, &there };"#,
        &["-O2", "-fPIC"],
    ));
    assert_eq!(
        message,
        "x.o: .jitcast.shared+0x8 in `shared`: R_X86_64_64 against `there` stores an absolute address in shared data\n  \
         all workers see the same bytes there, and each has the symbol at another address\n  \
         help: keep the address of `there` in data of each worker, and an index or a distance in what x.o shares"
    );
    for (what, text) in [
        ("its own datum", ".quad own\n"),
        ("its own section", ".quad .jitcast.shared\n"),
        ("code", ".quad f\n"),
        ("shared data", ".quad other\n"),
        ("somebody else's", ".quad elsewhere\n"),
    ] {
        let object = assemble(&format!(
            ".section .jitcast.shared.other,\"aw\"\nother: .quad 1\n.data\nown: .quad 1\n.text\nf: ret\n\
             .section .jitcast.shared,\"aw\"\n{text}"
        ));
        let message = refusal_of(&[("x.o", &object)]);
        assert!(
            message.contains("stores an absolute address in shared data"),
            "{what}: {message}"
        );
    }
    // A number is none, and a place in the symbol's own shared data can be had by its distance.
    let fine = assemble(
        ".globl n\nn = 5\n.section .jitcast.shared,\"aw\"\na: .quad n\n.quad a - .\n.weak gone\n.hidden gone\n.quad gone\n",
    );
    let files = [("x.o", &fine[..])];
    let world = World::new(&prepare(&files).unwrap());
    assert_eq!(world.linked.shared[..8], 5_u64.to_le_bytes());
    assert!(world.linked.patches.is_empty());
}

#[test]
fn other_sections_of_such_names_are_refused() {
    let flags = "shared data are plain data that can be written to: neither constants nor code nor thread-local\n  \
        help: leave `const` and `__thread` out of what x.o puts there, and flags other than \"aw\"";
    for (section, what) in [
        (".jitcast.shared,\"a\"", "a constant"),
        (".jitcast.shared,\"ax\"", "code"),
        (".jitcast.shared,\"awx\"", "both"),
        (".jitcast.shared.t,\"awT\",@progbits", "thread-local"),
        (".jitcast.shared.z,\"awT\",@nobits", "thread-local zeros"),
        (".jitcast.shared,\"aw\",@init_array", "constructors"),
        (".jitcast.shared,\"aw\",@note", "a note"),
        (".jitcast.shared", "not loaded"),
    ] {
        let name = section.split(',').next().unwrap();
        let message = refusal(&assemble(&format!(".section {section}\n.quad 0\n")));
        assert_eq!(
            message,
            format!("x.o: section {name} is refused: {flags}"),
            "{what}"
        );
    }
    for name in [".jitcast.sharedlock", ".jitcast.shared_", ".jitcast.share"] {
        let message = refusal(&assemble(&format!(".section {name},\"aw\"\n.quad 0\n")));
        assert_eq!(
            message,
            format!(
                "x.o: section {name} is refused: no section of this name means anything to jitcast\n  \
                 help: shared data lie in .jitcast.shared or .jitcast.shared.NAME; rename the section of x.o"
            )
        );
    }
    let constant = compile(
        "c",
        "__attribute__((section(\".jitcast.shared\"))) const int x = 1;",
        &["-O2"],
    );
    assert!(refusal(&constant).contains("leave `const`"));
}

#[test]
fn one_in_each_process_is_not_one_in_all() {
    let object = assemble(
        ".section .jitcast.shared,\"aw\"\n.globl u\n.type u, @gnu_unique_object\n.size u, 8\nu: .quad 1\n",
    );
    let files = [("x.o", &object[..])];
    let options = Options {
        keeps_unique: true,
        ..Options::default()
    };
    let error = Prepared::read("unit", &inputs(&files), &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.o: `u` is unique in each process (STB_GNU_UNIQUE), but lies in shared data, which are one for all processes\n  \
         help: compile x.o with -fno-gnu-unique"
    );
}

/// Of a group that several objects have, one is taken; it is the unit's own, and not a process's.
#[test]
fn members_of_groups_are_taken_once() {
    let object = assemble(
        ".section .jitcast.shared.g,\"awG\",@progbits,g,comdat\n.weak g\n.type g, @object\n.size g, 8\ng: .quad 9\n\
         .text\nmov g(%rip), %rax\n",
    );
    let files = [("a.o", &object[..]), ("b.o", &object[..])];
    let options = Options {
        keeps_unique: true,
        ..Options::default()
    };
    let prepared = Prepared::read("unit", &inputs(&files), &options).unwrap();
    assert_eq!(prepared.extents().shared.len_bytes, 8);
    let definition = prepared.definitions()[0];
    assert!(definition.shared && definition.writable && !definition.unique);
}

#[test]
fn explanations_and_maps_say_where_shared_data_lie() {
    let object = assemble(SOURCE);
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let told = prepared.explain();
    let inside: Vec<_> = told
        .iter()
        .filter(|told| told.section.starts_with(".jitcast.shared"))
        .collect();
    assert!(inside.len() >= 3, "{inside:?}");
    for told in inside {
        assert_eq!((told.resolved, told.done), (Resolved::AtLink, Done::Stored));
    }
    let load = told
        .iter()
        .find(|told| told.symbol == "plain" && told.section == ".text");
    let load = load.unwrap();
    assert_eq!(load.target, "x.o:.jitcast.shared+0x0 in shared data");
    let at = jitcast_linker::Placement {
        text: jitcast_runtime::SegmentOffset::new(0x5_0000),
        read_only: jitcast_runtime::SegmentOffset::new(0xa_0000),
        private: jitcast_runtime::SegmentOffset::new(0x1_0000),
        shared: jitcast_runtime::SegmentOffset::new(0xf_0000),
        number: 1,
    };
    let pieces = prepared.map(&at);
    let shared: Vec<_> = pieces
        .iter()
        .filter(|piece| piece.area == Area::SharedData)
        .map(|piece| piece.what.as_str())
        .collect();
    assert_eq!(
        shared,
        [
            "x.o:.jitcast.shared",
            "x.o:.jitcast.shared.near",
            "x.o:.jitcast.shared.zeros"
        ]
    );
    assert_eq!(Area::SharedData.name(), "shared data");
}
