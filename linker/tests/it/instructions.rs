//! What each form of instruction becomes: calls, addresses, GOT entries, and the direct references of
//! position-independent executables.

use crate::common::{Effect, World, assemble, assemble_plain, prepare, refusal};
use iced_x86::Register;
use jitcast_linker::{Done, Explanation};

/// One instruction a symbol, against the unit's own symbols and the host's.
const GOT: &str = r#"
    .text
    .globl f, call_own, jump_own, load_own, compare_own, narrow_own
    .globl call_host, jump_host, load_host, compare_host, load_hidden, call_hidden, compare_hidden
    .globl load_static, load_datum, compare_datum, load_absolute, compare_absolute, load_static_datum
    .hidden hidden
    .type f, @function
f:  ret
    .globl hidden
    .type hidden, @function
hidden: ret
    .type static, @function
static: ret
call_own:       call *f@GOTPCREL(%rip)
jump_own:       jmp *f@GOTPCREL(%rip)
load_own:       mov f@GOTPCREL(%rip), %r9
compare_own:    cmp f@GOTPCREL(%rip), %rax
narrow_own:     mov f@GOTPCREL(%rip), %eax
call_hidden:    call *hidden@GOTPCREL(%rip)
load_hidden:    mov hidden@GOTPCREL(%rip), %rax
compare_hidden: cmpq $1, hidden@GOTPCREL(%rip)
load_static:    mov static@GOTPCREL(%rip), %rbx
load_datum:     mov datum@GOTPCREL(%rip), %rcx
compare_datum:  cmp datum@GOTPCREL(%rip), %rcx
load_static_datum: mov static_datum@GOTPCREL(%rip), %rcx
load_absolute:  mov number@GOTPCREL(%rip), %rdx
compare_absolute: cmp number@GOTPCREL(%rip), %rdx
call_host:      call *host@GOTPCREL(%rip)
jump_host:      jmp *host@GOTPCREL(%rip)
load_host:      mov host@GOTPCREL(%rip), %rsi
compare_host:   cmp host@GOTPCREL(%rip), %rsi
    .data
    .globl datum
datum: .quad 1
static_datum: .quad 2
"#;

/// A number, in a file of its own, since assemblers allow no GOT entry for one that they know.
const NUMBER: &str = ".globl number\n.set number, 0x123456789abcdef0\n";

/// Every use of the same symbols thrice: two in turn with all others, the third right after the second.
#[test]
fn what_is_asked_again_gets_the_same_answer() {
    let uses = [
        "lea {}(%rip), %r12",
        // Not its stub, but into it.
        "lea f+8(%rip), %r12",
        "call {}@PLT",
        "jmp {}@PLT",
        "jne {}@PLT",
        "call *{}@GOTPCREL(%rip)",
        "jmp *{}@GOTPCREL(%rip)",
        "mov {}@GOTPCREL(%rip), %r9",
        "mov {}@GOTPCREL(%rip), %rdi",
        "mov {}@GOTPCREL(%rip), %eax",
        "cmp {}@GOTPCREL(%rip), %rax",
        "lea {}(%rip), %rbx",
    ];
    let symbols = ["f", "hidden", "static", "host"];
    let all = || {
        symbols
            .iter()
            .flat_map(|symbol| uses.map(|form| form.replace("{}", symbol)))
    };
    let mut text = String::from(
        ".text\n.globl f, hidden\n.hidden hidden\n.type f, @function\n.type hidden, @function\n\
         .type static, @function\nf: ret\nhidden: ret\nstatic: ret\n",
    );
    let mut label = |name: String, instruction: &str| {
        text += &format!(".globl {name}\n{name}: {instruction}\nnop\n");
    };
    for (index, instruction) in all().enumerate() {
        label(format!("first_{index}"), &instruction);
    }
    for (index, instruction) in all().enumerate() {
        label(format!("second_{index}"), &instruction);
        label(format!("third_{index}"), &instruction);
    }
    // Answers are shared where there are more relocations than symbols.
    for instruction in all().chain(all()).chain(all()).chain(all()) {
        text += &format!("{instruction}\nnop\n");
    }
    for object in [assemble(&text), assemble_plain(&text)] {
        let files = [("uses.o", &object[..])];
        let prepared = prepare(&files).unwrap();
        let explained = prepared.explain();
        let jumps = |explanation: &&Explanation| explanation.done == Done::DirectJump;
        assert_eq!(
            explained.iter().filter(jumps).count(),
            3 * 7,
            "each is told of"
        );
        let world = World::new(&prepared);
        for (index, instruction) in all().enumerate() {
            let effect = |time| world.effect(&format!("{time}_{index}"));
            let first = effect("first");
            assert_eq!(effect("second"), first, "{instruction}");
            assert_eq!(effect("third"), first, "{instruction}");
        }
        // And what that is.
        let (own, stub) = (world.at("f"), world.stubs["f"]);
        for time in ["first", "second", "third"] {
            assert_eq!(world.effect(&format!("{time}_2")), Effect::Goes(own));
            assert_eq!(world.effect(&format!("{time}_6")), Effect::Goes(own));
            let inside = Effect::Sets(Register::R12, own + 8);
            assert_eq!(world.effect(&format!("{time}_1")), inside);
            assert_eq!(
                world.effect(&format!("{time}_7")),
                Effect::Sets(Register::R9, stub)
            );
            assert_eq!(
                world.effect(&format!("{time}_8")),
                Effect::Sets(Register::RDI, stub)
            );
        }
    }
}

#[test]
fn got_entries_are_relaxed_or_get_cells() {
    let number = assemble(NUMBER);
    for object in [assemble(GOT), assemble_plain(GOT)] {
        let files = [("got.o", &object[..]), ("number.o", &number)];
        let prepared = prepare(&files).unwrap();
        let world = World::new(&prepared);
        let (own, stub) = (world.at("f"), world.stubs["f"]);
        assert_eq!(
            world.effect("call_own"),
            Effect::Goes(own),
            "called directly"
        );
        assert_eq!(world.effect("jump_own"), Effect::Goes(own));
        assert_eq!(
            world.effect("load_own"),
            Effect::Sets(Register::R9, stub),
            "the canonical address"
        );
        assert_eq!(
            world.effect("compare_own"),
            Effect::Touches(world.address_cells["f"])
        );
        assert_eq!(
            world.effect("narrow_own"),
            Effect::Sets(Register::EAX, stub),
            "of a cell, 32 bits"
        );
        let Effect::Goes(hidden) = world.effect("call_hidden") else {
            panic!()
        };
        assert_eq!(
            world.effect("load_hidden"),
            Effect::Sets(Register::RAX, hidden),
            "its own place"
        );
        let Effect::Touches(cell) = world.effect("compare_hidden") else {
            panic!()
        };
        assert_eq!(world.read_u64(cell), hidden);
        assert!(
            matches!(world.effect("load_static"), Effect::Sets(Register::RBX, place) if place == hidden + 1)
        );
        let datum = world.at("datum");
        assert_eq!(
            world.effect("load_datum"),
            Effect::Sets(Register::RCX, datum)
        );
        assert_eq!(
            world.effect("compare_datum"),
            Effect::Touches(world.address_cells["datum"])
        );
        assert_eq!(
            world.effect("load_static_datum"),
            Effect::Sets(Register::RCX, datum + 8)
        );
        assert_eq!(
            world.effect("load_absolute"),
            Effect::Sets(Register::RDX, 0x1234_5678_9abc_def0)
        );
        let Effect::Touches(constant) = world.effect("compare_absolute") else {
            panic!()
        };
        assert_eq!(world.read_u64(constant), 0x1234_5678_9abc_def0);
        assert_eq!(
            world.effect("call_host"),
            Effect::GoesThrough(world.call_cells["host"])
        );
        assert_eq!(
            world.effect("jump_host"),
            Effect::GoesThrough(world.call_cells["host"])
        );
        assert_eq!(
            world.effect("load_host"),
            Effect::Sets(Register::RSI, world.hosts["host"])
        );
        assert_eq!(
            world.effect("compare_host"),
            Effect::Touches(world.address_cells["host"])
        );
        assert!(world.linked.patches.len() == 1, "the cell of `hidden`");
    }
}

#[test]
fn relaxed_calls_and_jumps_are_as_long_as_before() {
    let (object, number) = (assemble(GOT), assemble(NUMBER));
    let files = [("got.o", &object[..]), ("number.o", &number)];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    assert_eq!(
        world.bytes(world.at("call_own"), 2),
        [0x67, 0xe8],
        "addr32 call"
    );
    assert_eq!(world.bytes(world.at("jump_own"), 1), [0xe9]);
    assert_eq!(world.bytes(world.at("jump_own") + 5, 1), [0x90]);
    assert_eq!(world.at("jump_own") - world.at("call_own"), 6);
    assert_eq!(world.at("load_own") - world.at("jump_own"), 6);
}

#[test]
fn direct_branches_and_addresses() {
    let object = assemble(
        r#"
        .text
        .globl f, call_own, jump_own, branch_own, lea_own, lea_inside, read_code
        .globl call_host, jump_host, branch_host, plt_host
        .type f, @function
    f:  nop; ret
    call_own:    call f@PLT
    jump_own:    jmp f
    branch_own:  je f
    lea_own:     lea f(%rip), %rdi
    lea_inside:  lea f+1(%rip), %rdi
    read_code:   cmpb $0x90, f(%rip)
    call_host:   call host
    plt_host:    call host@PLT
    jump_host:   jmp host@PLT
    branch_host: jne host
        "#,
    );
    let files = [("direct.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let own = world.at("f");
    for site in ["call_own", "jump_own", "branch_own"] {
        assert_eq!(world.effect(site), Effect::Goes(own), "{site}");
    }
    assert_eq!(
        world.effect("lea_own"),
        Effect::Sets(Register::RDI, world.stubs["f"])
    );
    assert_eq!(
        world.effect("lea_inside"),
        Effect::Sets(Register::RDI, own + 1)
    );
    assert_eq!(world.effect("read_code"), Effect::Touches(own));
    for site in ["call_host", "plt_host", "jump_host", "branch_host"] {
        assert_eq!(
            world.effect(site),
            Effect::Goes(world.stubs["host"]),
            "{site}"
        );
    }
    let host = prepared
        .references()
        .iter()
        .find(|reference| reference.name == "host")
        .unwrap();
    assert!(host.stub && !host.call_cell && !host.address_cell && host.own.is_none() && !host.weak);
}

#[test]
fn executables_reach_the_host_through_cells() {
    let object = assemble(
        r#"
        .text
        .globl lea, lea_12, field, load, load_32, load_12, load_field, sign, zero, far, after
        .type f, @function
    f:
    lea:        lea host(%rip), %rdi
    lea_12:     lea host(%rip), %r12
    field:      lea host+24(%rip), %rdi
    load:       mov host(%rip), %rax
    load_32:    mov host(%rip), %ebp
    load_12:    mov host(%rip), %r12
    load_field: mov host+1000(%rip), %r13d
    sign:       movslq host(%rip), %rcx
    zero:       movzbl host+3(%rip), %r8d
    far:        mov host-0x7ffffff0(%rip), %edx
    after:      mov 0x48(%rdi), %eax
                .globl ambiguous
    ambiguous:  mov host(%rip), %eax
                ret
                .size f, .-f
        "#,
    );
    let files = [("pie.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let host = world.hosts["host"];
    assert_eq!(world.effect("lea"), Effect::Sets(Register::RDI, host));
    assert_eq!(
        world.bytes(world.at("lea"), 3),
        [0x48, 0x8b, 0x3d],
        "in place"
    );
    assert_eq!(world.effect("lea_12"), Effect::Sets(Register::R12, host));
    assert_eq!(
        world.effect("field"),
        Effect::Sets(Register::RDI, host + 24)
    );
    for (site, displacement) in [
        ("load", 0),
        ("load_32", 0),
        ("load_12", 0),
        ("load_field", 1000),
        ("sign", 0),
        ("zero", 3),
        ("ambiguous", 0),
    ] {
        assert_eq!(
            world.effect(site),
            Effect::Touches(host + displacement),
            "{site}"
        );
    }
    assert_eq!(world.effect("far"), Effect::Touches(host - 0x7fff_fff0));
    // The byte before belongs to the instruction before.
    assert_eq!(world.bytes(world.at("after"), 4), [0x8b, 0x47, 0x48, 0xe9]);
}

#[test]
fn other_direct_references_to_the_host_are_refused() {
    for instruction in [
        "mov %eax, host(%rip)",
        "cmpl $1, host(%rip)",
        "addq host(%rip), %rax",
        "movb host(%rip), %al",
        "movw host(%rip), %ax",
        "movsd host(%rip), %xmm0",
        "push host(%rip)",
        "lea host(%rip), %eax",
        "vpermw host(%rip), %zmm1, %zmm0",
    ] {
        let object = assemble(&format!(
            ".text\n.type f, @function\nf: nop\n {instruction}\n.size f, .-f\n"
        ));
        let message = refusal(&object);
        assert!(
            message.starts_with("x.o: .text+0x"),
            "{instruction}: {message}"
        );
        assert!(
            message.contains(" in `f`: R_X86_64_PC32 against `host` reaches"),
            "{message}"
        );
        assert!(
            message.ends_with("\n  help: compile x.o with -fPIC"),
            "{message}"
        );
    }
    let object = assemble(".text\n .byte 0x06, 0x8b, 0x05\n .long host - .\n");
    assert!(
        refusal(&object).contains("in bytes that are no instruction"),
        "06 is no opcode"
    );
}

#[test]
fn cranelift_names_tell_calls_from_addresses() {
    use jitcast_linker::{Dialect, Input, Options, Prepared};
    let object = assemble_plain(
        r#"
        .text
        .globl own, callee, taken, own_callee, own_taken, local_taken
        .type own, @function
    own: ret
        .type local, @function
    local: ret
    callee:      mov host@GOTPCREL(%rip), %rax
    own_callee:  mov own@GOTPCREL(%rip), %rax
    taken:       mov address_host@GOTPCREL(%rip), %rax
    own_taken:   lea address_own(%rip), %rax
    local_taken: lea address_local(%rip), %rax
        "#,
    );
    let renamed =
        ["host", "own", "local"].map(|name| (format!("address_{name}"), format!("{name}@addr")));
    let object = crate::common::rename(&object, &renamed);
    let input = Input {
        name: "c.o",
        bytes: &object,
        dialect: Dialect::Cranelift,
    };
    let prepared = Prepared::read("unit", &[input], &Options::default()).unwrap();
    let world = World::new(&prepared);
    let host = prepared
        .references()
        .iter()
        .find(|reference| reference.name == "host")
        .unwrap();
    assert!(host.call_cell && host.address_cell);
    let loads = |site: &str| world.decode(world.at(site)).ip_rel_memory_address();
    assert_eq!(loads("callee"), world.call_cells["host"]);
    assert_eq!(loads("taken"), world.address_cells["host"]);
    assert_eq!(
        world.effect("own_callee"),
        Effect::Sets(Register::RAX, world.at("own"))
    );
    assert_eq!(
        world.effect("own_taken"),
        Effect::Sets(Register::RAX, world.stubs["own"])
    );
    assert_eq!(
        world.effect("local_taken"),
        Effect::Sets(Register::RAX, world.at("own") + 1)
    );
}
