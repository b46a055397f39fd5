//! Files and bytes of every kind through the front ends.

use super::*;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn options() -> Options {
    Options::default()
}

fn is_object(bytes: &[u8]) -> bool {
    object::read::elf::ElfFile64::<object::Endianness>::parse(bytes).is_ok()
}

#[track_caller]
fn refused(result: Result<Compiled, FrontError>, start: &str) -> String {
    let error = result
        .map(|compiled| compiled.name)
        .expect_err(start)
        .to_string();
    assert!(error.starts_with(start), "{error}");
    assert!(error.contains("\n  help: "), "{error}");
    error
}

#[test]
fn files_of_every_kind() {
    let clif = compile_file(&examples().join("score.clif"), &options()).unwrap();
    assert_eq!((clif.kind, clif.dialect), (Kind::Clif, Dialect::Cranelift));
    assert_eq!(clif.signatures[0].1.to_string(), "(i64) -> i64");
    assert!(is_object(&clif.bytes) && clif.name.ends_with("examples/score.clif"));

    let c = compile_file(&examples().join("norm.c"), &options()).unwrap();
    assert_eq!((c.kind, c.dialect), (Kind::C, Dialect::Elf));
    assert_eq!(
        format!("{}{}", c.signatures[0].0, c.signatures[0].1),
        "norm(f64, f64) -> f64"
    );
    assert!(
        is_object(&c.bytes) && c.messages.is_empty(),
        "{}",
        c.messages
    );

    // Objects and archives go on as they are, whatever they are called.
    for name in ["x.o", "x", "x.clif"] {
        let object = compile_bytes(name, c.bytes.clone(), &options()).unwrap();
        assert_eq!((object.kind, object.dialect), (Kind::Object, Dialect::Elf));
        assert_eq!(object.bytes, c.bytes);
    }
    for (name, bytes) in [("x.a", "!<arch>\n"), ("x", "!<thin>\n"), ("x.a", "hostile")] {
        let archive = compile_bytes(name, bytes.into(), &options()).unwrap();
        assert_eq!((archive.kind, archive.bytes), (Kind::Archive, bytes.into()));
    }
    // What an object is worth is for the linker to say.
    assert_eq!(
        compile_bytes("x.o", b"hostile".into(), &options())
            .unwrap()
            .kind,
        Kind::Object
    );
}

#[test]
fn text_in_memory() {
    let text = std::fs::read(examples().join("score2.clif")).unwrap();
    let unit = compile_bytes(
        "score.clif",
        text,
        &Options {
            cpu: Cpu::Baseline,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(unit.signatures.len(), 2);
    let text = b"long twice(long n) { return 2 * n; }".to_vec();
    assert!(is_object(
        &compile_bytes("twice.c", text.clone(), &options())
            .unwrap()
            .bytes
    ));
    assert!(is_object(
        &compile_bytes("a/-b/../-twice.c", text, &options())
            .unwrap()
            .bytes
    ));
}

#[test]
fn equal_texts_make_equal_objects() {
    let text = b"long twice(long n) { return 2 * n; }".to_vec();
    let [first, second] =
        [(); 2].map(|()| compile_bytes("twice.c", text.clone(), &options()).unwrap());
    assert_eq!(first.bytes, second.bytes);
    let here = std::env::current_dir().unwrap();
    let here = here.as_os_str().as_encoded_bytes();
    let says_where = first.bytes.windows(here.len()).any(|bytes| bytes == here);
    assert!(!says_where, "an object says where it was compiled");
}

#[test]
fn the_flags_of_c() {
    let plt = |options: &Options| {
        let text = b"void g(void); void f(void) { g(); g(); }".to_vec();
        let unit = compile_bytes("f.c", text, options).unwrap();
        let file = object::read::elf::ElfFile64::<object::Endianness>::parse(&*unit.bytes).unwrap();
        use object::{Object, ObjectSection, RelocationFlags, elf};
        let text = file.section_by_name(".text").unwrap();
        let flags = |flags| {
            matches!(
                flags,
                RelocationFlags::Elf {
                    r_type: elf::R_X86_64_PLT32
                }
            )
        };
        text.relocations()
            .any(|(_, relocation)| flags(relocation.flags()))
    };
    assert!(!plt(&options()));
    let mut with = options();
    with.cflags.push("-fplt".into());
    assert!(plt(&with));
    with.cflags = vec!["-O0".into(), "-fPIC".into()];
    assert!(plt(&with));
}

#[test]
fn refused_c() {
    let missing = Options {
        cc: "jitcast-no-such-cc".into(),
        ..options()
    };
    let error = refused(
        compile_file(&examples().join("score.c"), &missing),
        &examples().join("score.c").display().to_string(),
    );
    assert!(
        error.contains("no C compiler: `jitcast-no-such-cc` is not on PATH"),
        "{error}"
    );
    assert!(
        error.ends_with("help: install gcc or clang, or name one with --cc"),
        "{error}"
    );

    let wrong = compile_bytes("wrong.c", b"int f(void) { return x; }".into(), &options());
    let error = refused(wrong, "wrong.c: `cc` failed (exit status: 1)\n  | ");
    assert!(
        error.contains("wrong.c:1:22: error: ")
            && error.contains("cc -O2 -g -fno-var-tracking -fPIC"),
        "{error}"
    );

    let nothing = Options {
        cc: "true".into(),
        ..options()
    };
    refused(
        compile_bytes("f.c", b"".into(), &nothing),
        "f.c: `true` left no object: No such file",
    );
    let directory = Options {
        cc: "/".into(),
        ..options()
    };
    refused(
        compile_bytes("f.c", b"".into(), &directory),
        "f.c: the C compiler `/` cannot be run: ",
    );

    let warned = b"int f(int x) { int unused; return x; }".to_vec();
    let mut all = options();
    all.cflags.push("-Wall".into());
    let unit = compile_bytes("warned.c", warned, &all).unwrap();
    assert!(unit.messages.contains("warned.c:1:") && unit.messages.contains("unused"));
}

#[test]
fn refused_files() {
    let missing = refused(
        compile_file(Path::new("no/such.clif"), &options()),
        "no/such.clif: cannot",
    );
    assert!(
        missing.contains("No such file or directory (os error 2)\n"),
        "{missing}"
    );
    refused(
        compile_file(&examples(), &options()),
        &examples().display().to_string(),
    );
    refused(
        compile_file(Path::new("/dev/zero"), &options()),
        "/dev/zero: not a regular file",
    );
    refused(
        compile_bytes("x.rs", b"fn f() {}".into(), &options()),
        "x.rs: neither its name nor",
    );
    refused(
        compile_bytes("x", b"".into(), &options()),
        "x: neither its name nor",
    );
    refused(
        compile_bytes("x.clif", b"; \xff".into(), &options()),
        "x.clif: byte 2 is not UTF-8",
    );
    let short = Options {
        max_text_bytes: 4,
        ..options()
    };
    refused(
        compile_bytes("x.clif", b"; long".into(), &short),
        "x.clif: 6 bytes of text, the limit",
    );
}

#[test]
fn units_are_named_by_their_first_file() {
    let name = |path: &str| unit_name(Path::new(path));
    assert_eq!(name("examples/score.clif"), "score");
    assert_eq!(name("/usr/lib/liblua5.4.a"), "liblua5.4");
    assert_eq!(name(".."), "unit");
}

#[test]
fn threads_compile_c_at_once() {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|index| {
                scope.spawn(move || {
                    let text = format!("long f{index}(long n) {{ return n + {index}; }}");
                    compile_bytes("f.c", text.into_bytes(), &options())
                        .unwrap()
                        .bytes
                })
            })
            .collect();
        let objects: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(objects.iter().all(|object| is_object(object)));
        assert_ne!(objects[0], objects[1]);
    });
}
