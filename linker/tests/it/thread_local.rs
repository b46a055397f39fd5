//! Thread-local storage: what `__tls_get_addr` is given, offsets in the unit's block, and what is refused.

use jitcast_linker::{Place, Prepared};
use jitcast_runtime::{PatchKind, module};

use crate::common::{UNIT_NUMBER, World, assemble, compile, prepare, refusal, refusal_of};

/// The words of the unit's module, the first of which is patched.
fn module_of(world: &World) -> [u64; 5] {
    let at = world.map.base + u64::from(world.linked.module.unwrap().get());
    [0, 1, 2, 3, 4].map(|word| world.read_u64(at + word * 8))
}

/// The pair at an address.
fn pair(world: &World, at: u64) -> (u64, u64) {
    (world.read_u64(at), world.read_u64(at + 8))
}

fn operand(world: &World, symbol: &str, skip: u64) -> u64 {
    world
        .decode(world.at(symbol) + skip)
        .ip_rel_memory_address()
}

const SOURCE: &str = "
    .section .tdata,\"awT\",@progbits
    .globl first, second, zero
    .type first, @object
    .type second, @object
    .type zero, @object
    .align 4
first: .long 7
    .align 8
second: .quad first_byte
    .section .tbss,\"awT\",@nobits
    .align 64
zero: .zero 8
    .type mine, @object
mine: .zero 4
    .section .rodata
first_byte: .byte 1
    .text
    .globl general, local, offsets, wide, initial, foreign
general: data16 lea second@tlsgd(%rip), %rdi
    .value 0x6666
    rex64 call __tls_get_addr@PLT
local: lea mine@tlsld(%rip), %rdi
    call *__tls_get_addr@GOTPCREL(%rip)
offsets: lea mine@dtpoff(%rax), %rcx
wide: movabs $zero@dtpoff, %rcx
initial: mov other@gottpoff(%rip), %rax
foreign: data16 lea other@tlsgd(%rip), %rdi
";

#[test]
fn pairs_and_offsets_are_those_of_the_block() {
    let object = assemble(SOURCE);
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let [image, image_len, block_len, align, number] = module_of(&world);
    let rodata = world.map.base + u64::from(world.map.read_only);
    assert_eq!(world.bytes(image, 4), [7, 0, 0, 0]);
    assert_eq!(world.read_u64(image + 8), rodata, "the image is patched");
    assert_eq!(
        (image_len, block_len, align, number),
        (16, 64 + 12, 64, UNIT_NUMBER)
    );
    let module = world.map.base + u64::from(world.linked.module.unwrap().get());
    assert_eq!(pair(&world, operand(&world, "general", 0)), (module, 8));
    assert_eq!(pair(&world, operand(&world, "local", 0)), (module, 0));
    assert_eq!(
        world.decode(world.at("offsets")).memory_displacement64(),
        72
    );
    assert_eq!(world.decode(world.at("wide")).immediate64(), 64);
    for (name, expected) in [("first", 0), ("second", 8), ("zero", 64)] {
        let symbol = world
            .linked
            .symbols
            .iter()
            .find(|symbol| prepared.definitions()[symbol.definition].name == name);
        let Place::ThreadLocal { offset, module } = symbol.unwrap().place else {
            panic!("{name} is thread-local");
        };
        assert_eq!(
            (offset, Some(module)),
            (expected, world.linked.module),
            "{name}"
        );
    }
    // The zeros of every thread take no private memory of the process.
    assert!(prepared.extents().private.len_bytes < 16 + u64::from(module::BYTES) + 8 * 12);
}

#[test]
fn what_others_define_is_found_at_attach() {
    let object = assemble(SOURCE);
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let other = world.hosts["other"];
    let kind = |kind: PatchKind| other | (kind as u64) << 48;
    let cell = operand(&world, "initial", 0);
    assert_eq!(world.read_u64(cell), kind(PatchKind::ThreadOffset));
    let found = pair(&world, operand(&world, "foreign", 0));
    assert_eq!(
        found,
        (kind(PatchKind::TlsModule), kind(PatchKind::TlsOffset))
    );
}

/// All of its storage, of which no section says that there is any.
#[test]
fn a_common_symbol_may_be_thread_local() {
    let object = assemble(
        ".tls_common lonely, 8, 32
        .globl general
general: data16 lea lonely@tlsgd(%rip), %rdi
        .value 0x6666
        rex64 call __tls_get_addr@PLT",
    );
    let files = [("x.o", &object[..])];
    let world = World::new(&prepare(&files).unwrap());
    let [_, image_len, block_len, align, number] = module_of(&world);
    assert_eq!(
        (image_len, block_len, align, number),
        (0, 8, 32, UNIT_NUMBER)
    );
    let module = world.map.base + u64::from(world.linked.module.unwrap().get());
    assert_eq!(pair(&world, operand(&world, "general", 0)), (module, 0));
}

#[test]
fn compilers_output_links_in_every_model_that_shared_code_uses() {
    let source = "extern __thread int theirs; __thread int global = 3; static __thread long own[4] = {1, 2};\n\
                  static __thread char zeros[100]; int get(int i) { own[i]++; zeros[i]++;\n\
                  return global + own[i] + zeros[i] + theirs; } int *at(void) { return &global; }";
    for flags in [
        &["-fPIC", "-O2"][..],
        &["-fPIC", "-O0"],
        &["-fPIC", "-O2", "-fno-plt"],
        &["-fPIC", "-O2", "-mcmodel=large"],
        &["-fPIC", "-O2", "-fdata-sections", "-ffunction-sections"],
    ] {
        let object = compile("c", source, flags);
        let files = [("x.o", &object[..])];
        let prepared = prepare(&files).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
        let world = World::new(&prepared);
        let [_, image_len, block_len, ..] = module_of(&world);
        assert!(image_len >= 36 && block_len >= image_len + 100, "{flags:?}");
    }
}

#[test]
fn what_older_threads_have_no_room_for_is_refused_with_the_flag_that_avoids_it() {
    let object = |source| compile("c", source, &["-O2", "-fno-pic"]);
    for (source, kind) in [
        (
            "__thread int x; int f(void) { return x; }",
            "R_X86_64_TPOFF32",
        ),
        (
            "extern __thread int x; int f(void) { return x; } asm(\".section .tbss,\\\"awT\\\",@nobits\\n.globl x\\n.type x,@object\\nx: .zero 4\\n.text\");",
            "R_X86_64_GOTTPOFF",
        ),
    ] {
        let message = refusal(&object(source));
        assert!(message.contains(kind), "{message}");
        assert!(
            message.contains("threads that are older than the unit"),
            "{message}"
        );
        assert!(message.contains("-ftls-model=global-dynamic"), "{message}");
    }
    let descriptors = compile(
        "c",
        "extern __thread int x; int f(void) { return x; }",
        &["-O2", "-fPIC", "-mtls-dialect=gnu2"],
    );
    let message = refusal(&descriptors);
    assert!(message.contains("-mtls-dialect=gnu"), "{message}");
}

#[test]
fn a_symbol_is_thread_local_for_all_or_for_none() {
    let own = assemble(".section .tbss,\"awT\",@nobits\n.globl x\n.type x,@object\nx: .zero 4\n");
    let user = assemble(".data\n.quad x\n");
    let message = refusal_of(&[("own.o", &own), ("x.o", &user)]);
    assert!(
        message.contains("takes a thread-local symbol for one that has an address"),
        "{message}"
    );
    let own = assemble(".data\n.globl x\nx: .zero 4\n");
    let user = assemble("data16 lea x@tlsgd(%rip), %rdi\n");
    let message = refusal_of(&[("own.o", &own), ("x.o", &user)]);
    assert!(
        message.contains("takes a symbol for a thread-local one"),
        "{message}"
    );
}

#[test]
fn the_handle_of_exit_functions_is_the_units_own() {
    let object =
        assemble(".hidden __dso_handle\n.text\n.globl f\nf: lea __dso_handle(%rip), %rdx\nret\n");
    let files = [("x.o", &object[..])];
    let prepared: Prepared<'_> = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let module = world.map.base + u64::from(world.linked.module.unwrap().get());
    assert_eq!(operand(&world, "f", 0), module);
    assert!(prepared.references().is_empty());
}

/// The story: pieces are laid out by alignment, but the module named the piece that came first in the files as the start of
/// the image. With `__thread char c = 1` in one object and `__thread long x = 7` in the next, each thread's block began with
/// the wrong bytes.
#[test]
fn the_image_starts_with_the_piece_that_is_laid_out_first() {
    let narrow = assemble(
        ".section .tdata,\"awT\",@progbits\n.globl narrow\n.type narrow, @object\nnarrow: .byte 1\n\
         .section .tbss,\"awT\",@nobits\n.zero 1\n",
    );
    let wide = assemble(
        ".section .tdata,\"awT\",@progbits\n.align 8\n.globl wide\n.type wide, @object\nwide: .quad 7\n\
         .section .tbss,\"awT\",@nobits\n.align 32\n.zero 8\n",
    );
    let files = [("narrow.o", &narrow[..]), ("wide.o", &wide)];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let [image, image_len, ..] = module_of(&world);
    assert_eq!(image_len, 9);
    assert_eq!(world.read_u64(image), 7, "the strictest comes first");
    assert_eq!(world.bytes(image + 8, 1), [1]);
    assert_eq!(
        (world.at("wide"), world.at("narrow")),
        (0, 8),
        "offsets in the block"
    );
}
