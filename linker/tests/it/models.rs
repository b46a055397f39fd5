//! The code models: what gcc emits for each reaches what it means.

use iced_x86::Register;

use crate::common::{Effect, World, assemble, compile, prepare, refusal};
use crate::machine::run;

const SOURCE: &str = r#"
    typedef int function(int);
    extern int host_data, host_array[]; extern function host;
    int own_data = 5, own_array[8] = { 1 }; static int local_data = 6;
    __attribute__((visibility("hidden"))) int hidden_data = 7;
    int big[20000] = { 1 };
    __attribute__((noinline)) int own(int x) { return x; }
    static __attribute__((noinline, noclone)) int local(int x) { local_data++; return x; }

    int *address_own(void) { return &own_data; }
    int *address_inside(void) { return &own_array[3]; }
    int *address_local(void) { return &local_data; }
    int *address_hidden(void) { return &hidden_data; }
    int *address_big(void) { return &big[2]; }
    int *address_host(void) { return &host_data; }
    int *address_host_inside(void) { return &host_array[5]; }
    function *take_own(void) { return own; }
    function *take_local(void) { return local; }
    function *take_host(void) { return host; }
    int call_own(int x) { return own(x) + 1; }
    int call_local(int x) { return local(x) + 1; }
    int call_host(int x) { return host(x) + 1; }
    int end_in_host(int x) { return host(x); }
    int read_own(void) { return own_data; }

    int **const pointers[] = { 0 };
    int *where_local(void) { return &local_data; }
"#;

/// Compiles and runs the source.
fn check(flags: &[&str]) {
    let object = compile("c", SOURCE, flags);
    let files = [("models.o", &object[..])];
    let prepared = prepare(&files).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
    let world = World::new(&prepared);
    let result = |name: &str| run(&world, name).result;
    let called = |name: &str| {
        let calls = run(&world, name).calls;
        assert_eq!(calls.len(), 1, "{flags:?}: {name}");
        calls[0]
    };
    let stub = |name: &str| world.stub_of(name);
    let is = |name: &str, expected: u64| {
        assert_eq!(result(name), expected, "{flags:?}: {name}");
    };
    is("address_own", world.at("own_data"));
    is("address_inside", world.at("own_array") + 12);
    is("address_big", world.at("big") + 8);
    is("address_host", world.hosts["host_data"]);
    is("address_host_inside", world.hosts["host_array"] + 20);
    is("take_own", stub("own").unwrap());
    is("take_host", world.hosts["host"]);
    assert_eq!(result("read_own") as u32, 5, "{flags:?}");
    let local_data = result("address_local");
    assert_eq!(world.bytes(local_data, 4), [6, 0, 0, 0], "{flags:?}");
    let hidden_data = result("address_hidden");
    assert_eq!(world.bytes(hidden_data, 4), [7, 0, 0, 0], "{flags:?}");
    let local = result("take_local");
    assert_eq!(called("call_local"), local, "{flags:?}");
    let own = called("call_own");
    assert!(
        own == world.at("own") || Some(own) == stub("own"),
        "{flags:?}"
    );
    for name in ["call_host", "end_in_host"] {
        let host = called(name);
        assert!(
            host == world.hosts["host"] || Some(host) == stub("host"),
            "{flags:?}: {name}"
        );
    }
}

#[test]
fn every_model_reaches_what_it_means() {
    let large_data = "-mlarge-data-threshold=64";
    let flags: [&[&str]; 9] = [
        &["-fPIC"],
        &["-fPIE"],
        &["-fPIC", "-fno-plt"],
        &["-fPIC", "-mcmodel=medium", large_data],
        &["-fPIE", "-mcmodel=medium", large_data],
        &["-fPIC", "-mcmodel=large"],
        &["-fPIE", "-mcmodel=large"],
        &["-fno-pie", "-mcmodel=large"],
        &[
            "-fno-pie",
            "-mcmodel=large",
            "-ffunction-sections",
            "-fdata-sections",
        ],
    ];
    for flags in flags {
        for level in ["-O0", "-O1", "-O2", "-Os"] {
            check(&[flags, &[level, "-g"]].concat());
        }
    }
}

#[test]
fn immediates_of_every_register() {
    let registers = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let mut source = String::from(
        ".data\n.globl datum\ndatum: .quad 1\n.text\n.globl f\n.type f, @function\nf: ret\n.size f, .-f\n",
    );
    for name in registers {
        for (site, symbol) in [
            ("own", "f"),
            ("inside", "f+1"),
            ("datum", "datum+3"),
            ("host", "host"),
            ("number", "number"),
            ("far", "host+64"),
        ] {
            // A stack pointer cannot go through a thunk.
            if (name, site) != ("rsp", "far") {
                source +=
                    &format!(".globl {site}_{name}\n{site}_{name}: movabs ${symbol}, %{name}\n");
            }
        }
    }
    for name in registers {
        // The assembler would make it a distance.
        source += &format!(
            ".globl table_{name}\ntable_{name}: movabs $0x1122334455667788, %{name}\n\
             .reloc table_{name}+2, R_X86_64_64, _GLOBAL_OFFSET_TABLE_+8\n"
        );
    }
    source += ".globl end\nend: ret\n";
    let number = assemble(".globl number\n.set number, 0x123456789abcdef0\n");
    let object = assemble(&source);
    let files = [("x.o", &object[..]), ("number.o", &number)];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    for (index, name) in (0..).zip(registers) {
        let register = Register::RAX + index;
        let is = |site: &str, value: u64| {
            let symbol = format!("{site}_{name}");
            assert_eq!(
                world.effect(&symbol),
                Effect::Sets(register, value),
                "{symbol}"
            );
            // Whatever it became, the next instruction is where it was.
            let next = world.decode(world.at(&symbol)).next_ip();
            if site != "far" && site != "number" {
                assert_eq!(world.bytes(next, 3), [0x0f, 0x1f, 0x00], "{symbol}");
            }
        };
        is("own", world.stubs["f"]);
        is("inside", world.at("f") + 1);
        is("datum", world.at("datum") + 3);
        is("host", world.hosts["host"]);
        is("table", world.map.base + 8);
        let number = world.decode(world.at(&format!("number_{name}")));
        assert_eq!(number.immediate64(), 0x1234_5678_9abc_def0);
        assert_eq!(number.op0_register(), register);
        if name != "rsp" {
            is("far", world.hosts["host"] + 64);
        }
    }
    assert!(world.linked.patches.is_empty(), "no text is patched");
}

#[test]
fn memory_at_an_absolute_address() {
    let object = assemble(
        ".text\n.globl load, load_32, load_16, load_8, store, store_32, store_16, store_8, host_64, host_32\n\
         load: movabs x+8, %rax\nload_32: movabs x+8, %eax\nload_16: movabs x+8, %ax\nload_8: movabs x+8, %al\n\
         store: movabs %rax, x+8\nstore_32: movabs %eax, x+8\nstore_16: movabs %ax, x+8\nstore_8: movabs %al, x+8\n\
         host_64: movabs host+16, %rax\nhost_32: movabs host+16, %eax\n\
         .data\n.globl x\nx: .quad 1, 2\n",
    );
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let x = world.at("x") + 8;
    let registers = [Register::RAX, Register::EAX, Register::AX, Register::AL];
    for (width, register) in ["", "_32", "_16", "_8"].into_iter().zip(registers) {
        for (site, operand) in [("load", 0), ("store", 1)] {
            let symbol = format!("{site}{width}");
            let instruction = world.decode(world.at(&symbol));
            assert_eq!(instruction.op_register(operand), register, "{symbol}");
            assert_eq!(instruction.ip_rel_memory_address(), x, "{symbol}");
            assert_eq!(
                world.bytes(instruction.next_ip(), 3),
                [0x0f, 0x1f, 0x00],
                "{symbol}"
            );
        }
    }
    for site in ["host_64", "host_32"] {
        assert_eq!(
            world.effect(site),
            Effect::Touches(world.hosts["host"] + 16),
            "{site}"
        );
    }
}

#[test]
fn other_absolute_addresses_in_text_are_refused() {
    for (source, at) in [
        (".quad x\n", 0),
        ("movabs x, %al\n", 1),
        ("movabs x, %ax\n", 2),
        ("movabs %fs:x, %rax\n", 3),
        (".globl f\n.type f, @function\nf: movabs f, %rax\n", 2),
        ("movabs %eax, x\n", 1),
        // The first two bytes look like `movabs`, and are the end of another instruction.
        (".byte 0xb8, 0x00, 0x00, 0x48, 0xb8\n .quad x\n", 5),
        // A prefix makes it eleven bytes.
        (".byte 0x66, 0x48, 0xb8\n .quad x\n", 3),
        // `mov $imm32, %eax` and what follows.
        (".byte 0xb8\n .quad x\n", 1),
        ("movabs $host+1, %rsp\n", 2),
    ] {
        let message = refusal(&assemble(&format!(".text\n{source}")));
        let expected = format!("x.o: .text+{at:#x}: R_X86_64_64 against ");
        assert!(message.starts_with(&expected), "{source}: {message}");
        assert!(
            message.contains("stores an absolute address in text"),
            "{source}: {message}"
        );
    }
    let far = assemble(".text\nmovabs $host+0x80000000, %rax\n");
    assert!(
        refusal(&far).contains("R_X86_64_64 against `host` is out of range: 2147483648 is not in")
    );
    let far = assemble(".text\nmovabs $f+0x80000000, %rax\n.globl f\nf: ret\n");
    assert!(
        refusal(&far).contains("against `f` is out of range"),
        "{}",
        refusal(&far)
    );
    let near = assemble(
        ".text\n.globl f, g\nf: movabs $host+0x7fffffff, %rax\ng: movabs $host-0x80000000, %rax\n",
    );
    let files = [("x.o", &near[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let host = world.hosts["host"];
    assert_eq!(
        world.effect("f"),
        Effect::Sets(Register::RAX, host + 0x7fff_ffff)
    );
    assert_eq!(
        world.effect("g"),
        Effect::Sets(Register::RAX, host - 0x8000_0000)
    );
}
