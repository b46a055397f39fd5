//! Which definition a name means, and who needs what.

use jitcast_linker::{Needs, SymbolKind};

use crate::common::{Effect, World, assemble, compile, prepare, refusal_of};

/// `call` of a name, at a symbol that is called after it.
fn caller(name: &str) -> Vec<u8> {
    assemble(&format!(
        ".text\n.globl call_{name}\ncall_{name}: call {name}@PLT\n"
    ))
}

fn function(binding: &str, name: &str, body: &str) -> Vec<u8> {
    assemble(&format!(
        ".text\n.{binding} {name}\n.type {name}, @function\n{name}: {body}\n"
    ))
}

#[test]
fn strong_beats_weak_and_the_first_weak_beats_the_next() {
    let (call, strong) = (caller("f"), function("globl", "f", "nop; ret"));
    let (weak, weaker) = (function("weak", "f", "ret"), function("weak", "f", "int3"));
    let files = [
        ("call.o", &call[..]),
        ("weak.o", &weak),
        ("weaker.o", &weaker),
        ("strong.o", &strong),
    ];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(world.bytes(world.at("f"), 1), [0x90]);
    assert_eq!(world.effect("call_f"), Effect::Goes(world.at("f")));
    assert!(
        !prepared
            .definitions()
            .iter()
            .find(|found| found.name == "f")
            .unwrap()
            .weak
    );
    let files = &files[..3];
    let prepared = prepare(files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(world.bytes(world.at("f"), 1), [0xc3]);
    assert!(
        prepared
            .definitions()
            .iter()
            .find(|found| found.name == "f")
            .unwrap()
            .weak
    );
}

#[test]
fn two_strong_definitions_are_refused_naming_both_files() {
    let (one, two) = (function("globl", "f", "ret"), function("globl", "f", "ret"));
    let message = refusal_of(&[("one.o", &one), ("two.o", &two)]);
    let expected = "two.o: duplicate symbol `f`, defined in one.o too\n  help: remove one, or make `f` static or weak";
    assert_eq!(message, expected);
}

#[test]
fn hidden_symbols_stay_inside() {
    let object = assemble(
        ".text\n.globl hidden, seen, guarded\n.hidden hidden, guarded\n.protected guarded\n\
         .type hidden, @function\nhidden: ret\nseen: ret\n\
         .globl call_hidden\ncall_hidden: call hidden\n",
    );
    let files = [("hidden.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let names: Vec<&str> = prepared
        .definitions()
        .iter()
        .map(|found| found.name)
        .collect();
    assert_eq!(names, ["seen", "call_hidden"]);
    assert!(prepared.references().is_empty());
    World::new(&prepared);
}

#[test]
fn a_hidden_symbol_that_nobody_defines_is_refused_unless_weak() {
    let strong = assemble(".text\n.hidden h\n.type f, @function\nf: call h\n.size f, .-f\n");
    let message = refusal_of(&[("x.o", &strong)]);
    assert_eq!(
        message,
        "x.o: .text+0x1 in `f`: `h` is hidden, and no file of the unit defines it\n  \
         help: add the file that defines it to the unit"
    );
    let weak = assemble(".text\n.hidden h\n.weak h\n.globl f\nf: mov h@GOTPCREL(%rip), %rax\n");
    let files = [("x.o", &weak[..])];
    let prepared = prepare(&files).unwrap();
    assert!(prepared.references().is_empty());
    assert!(matches!(
        World::new(&prepared).effect("f"),
        Effect::Sets(_, 0)
    ));
}

#[test]
fn references_are_weak_if_all_of_them_are() {
    let weak = assemble(".text\n.weak w, s\ncall w@PLT\ncall s@PLT\n");
    let strong = assemble(".text\ncall s@PLT\n");
    let files = [("weak.o", &weak[..]), ("strong.o", &strong)];
    let prepared = prepare(&files).unwrap();
    let references: Vec<(&str, bool)> = prepared
        .references()
        .iter()
        .map(|found| (found.name, found.weak))
        .collect();
    assert_eq!(references, [("w", true), ("s", false)]);
}

#[test]
fn only_what_is_referred_to_is_a_reference() {
    let object = assemble(".text\n.globl unused\n.extern unused\nnop\n");
    let files = [("x.o", &object[..])];
    assert!(prepare(&files).unwrap().references().is_empty());
}

#[test]
fn kinds_of_definition() {
    let object = assemble(
        ".text\n.globl f, label, table, d, n\n.type f, @function\nf: ret\nlabel: ret\n\
         .type table, @object\ntable: .quad 0\n.data\nd: .quad 0\n.set n, 5\n",
    );
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let kinds: Vec<_> = prepared
        .definitions()
        .iter()
        .map(|found| (found.name, found.kind))
        .collect();
    let expected = [
        ("f", SymbolKind::Function),
        ("label", SymbolKind::Function),
        ("table", SymbolKind::Data),
        ("d", SymbolKind::Data),
        ("n", SymbolKind::Absolute),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(World::new(&prepared).at("n"), 5);
}

const GROUP: &str = r#"
    .section .text.inline,"axG",@progbits,inline,comdat
    .weak inline
    .type inline, @function
inline: .byte BYTE
    ret
.Llocal:
    .text
    .globl CALLER
CALLER: call inline@PLT
"#;

fn group(caller: &str, byte: &str, more: &str) -> Vec<u8> {
    assemble(&(GROUP.replace("CALLER", caller).replace("BYTE", byte) + more))
}

#[test]
fn of_equal_groups_the_first_is_kept() {
    let (one, two) = (group("one", "0x90", ""), group("two", "0xcc", ""));
    let files = [("one.o", &one[..]), ("two.o", &two)];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(world.bytes(world.at("inline"), 1), [0x90]);
    assert_eq!(world.effect("one"), Effect::Goes(world.at("inline")));
    assert_eq!(world.effect("two"), Effect::Goes(world.at("inline")));
    assert_eq!(prepared.extents().text.len_bytes, 2 + 5 + 5, "one copy");
}

#[test]
fn a_local_symbol_of_a_discarded_group_is_refused() {
    let (one, two) = (
        group("one", "0x90", ""),
        group("two", "0xcc", "call .Llocal\n"),
    );
    let message = refusal_of(&[("one.o", &one), ("two.o", &two)]);
    let expected = "two.o: .text+0x6: `.text.inline` is defined only in a section that its COMDAT group discarded";
    assert_eq!(message, expected);
}

#[test]
fn templates_of_two_files_are_one() {
    let source = |name: &str| {
        format!(
            "template<class T> struct S {{ virtual T get(T x) {{ return x + 1; }} }};\n\
             extern \"C\" int {name}(int x) {{ S<int> s; S<int> *p = &s; return p->get(x); }}"
        )
    };
    let flags = ["-O0", "-fPIC", "-fno-gnu-unique"];
    let (one, two) = (
        compile("c++", &source("one"), &flags),
        compile("c++", &source("two"), &flags),
    );
    let files = [("one.o", &one[..]), ("two.o", &two)];
    let prepared = prepare(&files).unwrap();
    let names = prepared
        .definitions()
        .iter()
        .filter(|found| found.name == "_ZTV1SIiE")
        .count();
    assert_eq!(names, 1, "one table of virtual functions");
    let world = World::new(&prepared);
    let get = world.read_u64(world.at("_ZTV1SIiE") + 16);
    assert_eq!(get, world.stubs["_ZN1SIiE3getEi"]);
}

#[test]
fn needs_lead_to_what_a_function_lacks() {
    let object = compile(
        "c",
        r#"
        int missing_a(int), missing_b(int), missing_c(int);
        static __attribute__((noinline)) int hidden_away(int x) { return missing_a(x) + 1; }
        int needs_a(int x) { return hidden_away(x) * 2; }
        int needs_b(int x) { return missing_b(x) + 3; }
        int needs_nothing(int x) { return x + 1; }
        int needs_both(int x) { return needs_a(x) + needs_b(x); }
        static int (*const table[])(int) = { missing_c, needs_nothing };
        int needs_c(int x) { return table[x & 1](x); }
        int needs_switch(int x) {
            switch (x) { case 0: return 9; case 1: return missing_b(x); case 2: return 4; case 3: return 88;
                         case 4: return -1; case 5: return 1234; }
            return 0;
        }
        "#,
        &["-O1", "-fPIC", "-fno-inline", "-fno-ipa-icf"],
    );
    let files = [("needs.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let needs = |name: &str| {
        let index = prepared
            .definitions()
            .iter()
            .position(|found| found.name == name)
            .unwrap();
        let node = world.linked.symbols[index].node;
        let references = world.linked.needs.references_of(node);
        references
            .into_iter()
            .map(|index| prepared.references()[index].name)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        needs("needs_a"),
        ["missing_a"],
        "through a function without relocations to it"
    );
    assert_eq!(needs("needs_b"), ["missing_b"]);
    assert_eq!(needs("needs_nothing"), [""; 0]);
    assert_eq!(needs("needs_both"), ["missing_a", "missing_b"]);
    assert_eq!(needs("needs_c"), ["missing_c"]);
    assert_eq!(needs("needs_switch"), ["missing_b"]);
}

/// What needs what is asked where something may be lacking, and nowhere else.
#[test]
fn who_lacks_nothing_has_no_graph() {
    let (one, two) = ("one: call two@PLT; ret", "two: call one@PLT; ret");
    for (three, asked) in [("ret", false), ("call elsewhere@PLT; ret", true)] {
        let object = assemble(&format!(
            ".text\n.globl one, two, three\n.type one, @function\n.type two, @function\n\
             .type three, @function\n{one}\n{two}\nthree: {three}\n"
        ));
        let files = [("all.o", &object[..])];
        let prepared = prepare(&files).unwrap();
        assert_eq!(prepared.references().is_empty(), !asked);
        let linked = World::new(&prepared).linked;
        assert_eq!(linked.symbols.len(), 3);
        let mut nodes = linked.symbols.iter().map(|symbol| symbol.node);
        assert!(nodes.all(|node| (node != 0) == asked), "{three}");
        assert_eq!(*linked.needs != Needs::default(), asked, "{three}");
    }
}
