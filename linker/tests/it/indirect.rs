//! What even its own unit reaches through cells only: indirect functions, and what is unique in the process.

use iced_x86::Register;
use jitcast_linker::{Options, Prepared, SymbolKind};

use crate::common::{Effect, World, assemble, compile, inputs};

#[test]
fn indirect_functions_are_reached_through_cells() {
    let options = Options {
        runs_resolvers: true,
        ..Options::default()
    };
    let object = assemble(
        ".text\n.globl f, direct, through, taken, near\n.type f, @gnu_indirect_function\nf: lea other(%rip), %rax\nret\n\
         other: ret\ndirect: call f@PLT\nthrough: call *f@GOTPCREL(%rip)\ntaken: mov f@GOTPCREL(%rip), %rax\n\
         near: lea f(%rip), %rdx\n.data\n.globl word\nword: .quad f\n",
    );
    let files = [("x.o", &object[..])];
    let files = inputs(&files);
    let prepared = Prepared::read("unit", &files, &options).unwrap();
    let found = prepared
        .definitions()
        .iter()
        .find(|found| found.name == "f")
        .unwrap();
    assert_eq!(found.kind, SymbolKind::IndirectFunction);
    let world = World::new(&prepared);
    assert_eq!(world.effect("direct"), Effect::Goes(world.stubs["f"]));
    assert_eq!(
        world.effect("through"),
        Effect::GoesThrough(world.call_cells["f"])
    );
    let cell = |site: &str| world.decode(world.at(site)).ip_rel_memory_address();
    assert_eq!(cell("taken"), world.address_cells["f"]);
    assert_eq!(cell("near"), world.address_cells["f"]);
    assert_eq!(
        world.read_u64(world.at("word")),
        world.stub_of("f").unwrap()
    );
    assert!(Prepared::read("unit", &files, &Options::default()).is_err());
    for hidden in [".local f\n", ".globl f\n.hidden f\n"] {
        let object = assemble(&format!(
            ".text\n{hidden}.type f, @gnu_indirect_function\nf: ret\n"
        ));
        let files = [("x.o", &object[..])];
        let error = Prepared::read("unit", &inputs(&files), &options).unwrap_err();
        assert!(
            error.to_string().contains("`f` is an indirect function"),
            "{error}"
        );
    }
    let user = assemble(".hidden f\n.text\ncall f\n");
    let object = assemble(".text\n.globl f\n.type f, @gnu_indirect_function\nf: ret\n");
    let files = [("user.o", &user[..]), ("x.o", &object)];
    let error = Prepared::read("unit", &inputs(&files), &options).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`f` is hidden, so there is no cell"),
        "{error}"
    );
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
