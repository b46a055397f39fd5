//! What even its own unit reaches through cells only: indirect functions, and what is unique in the process.

use iced_x86::Register;
use jitcast_linker::{Options, Prepared, SymbolKind};
use jitcast_runtime::{PatchKind, PatchTarget, SegmentOffset};

use crate::common::{Effect, World, assemble, compile, inputs};

#[test]
fn an_indirect_function_is_a_thunk_through_a_cell_that_its_resolver_fills() {
    let options = Options {
        runs_resolvers: true,
        ..Options::default()
    };
    for binding in [".globl f\n", ".local f\n", ".globl f\n.hidden f\n"] {
        let object = assemble(&format!(
            ".text\n.globl direct, through, taken, near\n{binding}.type f, @gnu_indirect_function\n\
             f: lea other(%rip), %rax\nret\nother: ret\ndirect: call f@PLT\n\
             through: call *f@GOTPCREL(%rip)\ntaken: mov f@GOTPCREL(%rip), %rax\n\
             near: lea f(%rip), %rdx\n.data\n.globl word\nword: .quad f\n"
        ));
        let files = [("x.o", &object[..])];
        let files = inputs(&files);
        let prepared = Prepared::read("unit", &files, &options).unwrap();
        let world = World::new(&prepared);
        let exported = prepared
            .definitions()
            .iter()
            .find(|found| found.name == "f");
        assert_eq!(exported.is_some(), binding == ".globl f\n");
        let Effect::Goes(thunk) = world.effect("direct") else {
            panic!("a call goes somewhere")
        };
        assert_eq!(world.bytes(thunk, 4), [0xf3, 0x0f, 0x1e, 0xfa], "endbr64");
        let Effect::GoesThrough(cell) = world.effect_at(thunk + 4) else {
            panic!("a thunk jumps through a cell")
        };
        let patch = world
            .linked
            .patches
            .iter()
            .find(|patch| world.map.base + u64::from(patch.site.get()) == cell);
        let patch = patch.expect("the cell is patched");
        assert_eq!(patch.kind(), Some(PatchKind::Resolver));
        let resolver = PatchTarget::Window(SegmentOffset::new(world.map.text));
        assert_eq!(
            patch.target(),
            Some(resolver),
            "f is the first thing in .text"
        );
        // Its address is that of its stub, if others see it.
        let address = match exported {
            Some(found) => {
                assert_eq!(found.kind, SymbolKind::Function);
                assert_eq!(world.at("f"), thunk);
                world.stub_of("f").unwrap()
            }
            None => thunk,
        };
        assert_eq!(world.effect("through"), Effect::Goes(thunk));
        assert_eq!(world.effect("taken"), Effect::Sets(Register::RAX, address));
        assert_eq!(world.effect("near"), Effect::Sets(Register::RDX, address));
        assert_eq!(world.read_u64(world.at("word")), address);
        let error = Prepared::read("unit", &files, &Options::default()).unwrap_err();
        assert!(
            error.to_string().contains("`f` is an indirect function"),
            "{error}"
        );
    }
}

#[test]
fn what_is_unique_is_reached_through_cells() {
    let options = Options {
        keeps_unique: true,
        ..Options::default()
    };
    let source = "template<class T> struct S { static int count; }; template<class T> int S<T>::count = 3;\n\
                  extern \"C\" int *NAME(void) { return &S<int>::count; }\n";
    let object = |name: &str| compile("c++", &source.replace("NAME", name), &["-O2", "-fPIC"]);
    let (one, two) = (object("one"), object("two"));
    let near = assemble(".text\n.globl near\nnear: lea _ZN1SIiE5countE(%rip), %rcx\n");
    let files = [("one.o", &one[..]), ("two.o", &two), ("near.o", &near)];
    let files = inputs(&files);
    let prepared = Prepared::read("unit", &files, &options).unwrap();
    let unique: Vec<_> = prepared
        .definitions()
        .iter()
        .filter(|found| found.unique)
        .map(|found| (found.name, found.kind, found.weak))
        .collect();
    assert_eq!(unique, [("_ZN1SIiE5countE", SymbolKind::Data, false)]);
    let world = World::new(&prepared);
    let cell = world.address_cells["_ZN1SIiE5countE"];
    assert_eq!(world.decode(world.at("near")).ip_rel_memory_address(), cell);
    for name in ["one", "two"] {
        let result = crate::machine::run(&world, name).result;
        assert_eq!(result, world.read_u64(cell), "{name}");
    }
    assert_eq!(
        world.effect("near"),
        Effect::Sets(Register::RCX, world.read_u64(cell))
    );
    let error = Prepared::read("unit", &files, &Options::default()).unwrap_err();
    assert!(
        error.to_string().contains("is unique in the process"),
        "{error}"
    );
}
