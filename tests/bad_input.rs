//! Bad input: each gives one clear error and a non-zero exit, and leaves what was published running.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::object::{ADDRESS_OF, Maker, PLUS_ONE};
use common::process::{NOBODY, Process, Stream, finish, jitcast, jitcast_as};
use common::remote::{self, Remote};
use common::require;
use common::role;
use common::scratch::{STUCK, Scratch, adds};
use common::serve::Serve;
use object::elf;

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// A compiler process with something published, and a worker that runs it.
struct Running {
    serve: Serve,
    worker: Remote,
}

impl Running {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(options: &[&str]) -> Self {
        let serve = Serve::start(options);
        serve.publish_adds("before", 1);
        let worker = Remote::start(&serve.socket);
        Self { serve, worker }
    }

    /// Asserts that `contents`, as the file `name`, is refused with one error of all these phrases.
    #[track_caller]
    fn refuses(&mut self, name: &str, contents: impl AsRef<[u8]>, phrases: &[&str]) {
        let file = self.serve.scratch.write(name, contents);
        self.refuses_args(&[&file], phrases);
    }

    /// Asserts that publishing with these arguments is refused, and that everything goes on.
    #[track_caller]
    fn refuses_args(&mut self, args: &[&str], phrases: &[&str]) {
        let generation = self.serve.status().generation;
        self.serve.publish(args).refused(phrases);
        self.goes_on();
        assert_eq!(
            self.serve.status().generation,
            generation,
            "nothing was published"
        );
    }

    /// Asserts that what was published before runs, in the old worker and in a new one.
    #[track_caller]
    fn goes_on(&mut self) {
        assert_eq!(self.worker.call("before", 1), "2");
        assert_eq!(self.serve.call("before(2)"), "3");
    }
}

/// A good object, to be spoilt.
fn good() -> Vec<u8> {
    Maker::new().function("f", &PLUS_ONE).finish()
}

/// A good object with `bytes` at `at`.
fn spoilt(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut object = good();
    object[at..at + bytes.len()].copy_from_slice(bytes);
    object
}

#[test]
fn what_is_no_elf_file_is_refused() {
    let mut running = Running::start();
    running.refuses(
        "text.o",
        "hello\n",
        &["text.o: is not an ELF object or archive"],
    );
    running.refuses("empty.o", "", &["empty.o: is not an ELF object or archive"]);
    running.refuses(
        "what.xyz",
        "hello\n",
        &["neither its name nor its first bytes tell what it is"],
    );
}

#[test]
fn truncated_and_corrupted_elf_is_refused() {
    let mut running = Running::start();
    let good = good();
    for len in [5, 40, 64, good.len() / 2, good.len() - 1] {
        let name = format!("cut{len}.o");
        running.refuses(&name, &good[..len], &[&name, "is corrupt or truncated"]);
    }
    // e_shoff
    running.refuses(
        "sections.o",
        spoilt(40, &[0xff; 8]),
        &["sections.o: is corrupt or truncated"],
    );
    // e_shstrndx
    running.refuses(
        "names.o",
        spoilt(62, &[0xfe, 0xfe]),
        &["names.o: is corrupt or truncated"],
    );
}

#[test]
fn elf_of_another_machine_or_class_is_refused() {
    let mut running = Running::start();
    running.refuses(
        "arm.o",
        spoilt(18, &[183, 0]),
        &["arm.o: is for ELF machine 183, not for x86-64"],
    );
    running.refuses(
        "class.o",
        spoilt(4, &[1]),
        &["class.o: is a 32-bit ELF file"],
    );
    running.refuses(
        "endian.o",
        spoilt(5, &[2]),
        &["endian.o: is a big-endian ELF file"],
    );
}

#[test]
fn executables_and_shared_libraries_are_refused() {
    let mut running = Running::start();
    let executable = spoilt(16, &[2, 0]);
    running.refuses(
        "exec.o",
        executable,
        &["exec.o: is an executable, not a relocatable", "with -c"],
    );
    let program = std::env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    running.refuses_args(&[program], &["is a shared library or executable", "--lib"]);
}

#[test]
fn a_relocation_that_nobody_knows_is_refused() {
    let mut running = Running::start();
    let object = Maker::new()
        .referring("f", &ADDRESS_OF, (3, "f", 200, -4))
        .finish();
    running.refuses(
        "unknown.o",
        object,
        &["unknown.o: .text+0x3 in `f`: unknown relocation 200"],
    );
}

#[test]
fn a_relocation_out_of_range_is_refused() {
    let mut running = Running::start();
    let far = (3, "f", elf::R_X86_64_PC32, 1 << 40);
    let object = Maker::new().referring("f", &ADDRESS_OF, far).finish();
    let phrases = [
        "far.o: .text+0x3 in `f`: R_X86_64_PC32 against `f`",
        "out of range",
    ];
    running.refuses("far.o", object, &phrases);
}

#[test]
fn an_absolute_relocation_of_32_bits_is_refused_with_the_remedy() {
    let mut running = Running::start();
    let absolute = (3, "f", elf::R_X86_64_32, 0);
    let object = Maker::new().referring("f", &ADDRESS_OF, absolute).finish();
    let phrases = [
        "abs.o: .text+0x3 in `f`: R_X86_64_32 against `f`",
        "help: compile",
        "-fPIC",
    ];
    running.refuses("abs.o", object, &phrases);
}

#[test]
fn duplicate_symbols_are_refused() {
    let mut running = Running::start();
    let scratch = &running.serve.scratch;
    let (one, two) = (
        scratch.write("one.o", good()),
        scratch.write("two.o", good()),
    );
    running.refuses_args(
        &[&one, &two],
        &["two.o: duplicate symbol `f`", "one.o", "help: "],
    );
    let rival = adds("before", 5);
    let phrases =
        ["`before` is defined by the unit `rival` and by the unit `before`, which is published"];
    running.refuses("rival.clif", rival, &phrases);
}

#[test]
fn a_replacement_without_a_symbol_that_others_use_is_refused() {
    let mut running = Running::start();
    let user = "function %user(i64) -> i64 {\n fn0 = %before(i64) -> i64\n\
                block0(v0: i64):\n v1 = call fn0(v0)\n return v1\n}\n";
    let user = running.serve.scratch.write("user.clif", user);
    running.serve.publish(&[&user]).succeeded();
    let phrases = ["the unit `before` does not define `before`, which is used by `user`"];
    running.refuses("before.clif", adds("after", 1), &phrases);
    assert_eq!(running.worker.call("user", 1), "2");
}

#[test]
fn a_missing_import_disables_only_what_needs_it() {
    let mut running = Running::start();
    let text = format!(
        "function %needs(i64) -> i64 {{\n fn0 = %nobody_has_this(i64) -> i64\n\
         block0(v0: i64):\n v1 = call fn0(v0)\n return v1\n}}\n{}",
        adds("whole", 1)
    );
    let file = running.serve.scratch.write("import.clif", text);
    running.serve.publish(&[&file]).succeeded();
    running.goes_on();
    assert_eq!(running.worker.call("whole", 1), "2");
    let error = running.worker.call("needs", 1);
    let pid = running.worker.pid();
    let expected = format!(
        "`needs` needs the host symbol `nobody_has_this`, which is missing in this worker (pid {pid})"
    );
    assert!(error.starts_with(&expected), "{error}");
    running
        .serve
        .command("worker", &["--call=needs(1)"])
        .failed(&[
            "`needs` needs the host symbol `nobody_has_this`",
            "(pid ",
            "help: ",
        ]);
}

#[test]
fn calls_that_do_not_fit_the_function_are_refused() {
    let mut running = Running::start();
    let wrong = [
        ("before()", "`before` takes 1 argument, the call has 0"),
        ("before(1, 2)", "`before` takes 1 argument, the call has 2"),
        (
            "before(1.5)",
            "argument 1 is `1.5`, f64, but parameter 1 of `before` is i64",
        ),
        (
            "before(1i32)",
            "argument 1 is `1i32`, i32, but parameter 1 of `before` is i64",
        ),
        ("before(1) -> f64", "-> f64"),
        ("behind(1)", "`behind` is not published"),
    ];
    for (call, phrase) in wrong {
        running
            .serve
            .command("worker", &["--call", call])
            .failed(&[phrase]);
    }
    let unparsable = running.serve.command("worker", &["--call", "before(1"]);
    assert_eq!(unparsable.code, Some(2), "{unparsable:#?}");
    running.goes_on();
}

#[test]
fn a_full_segment_says_how_full_it_is_and_how_to_enlarge_it() {
    let mut running = Running::start_with(&["--window", "8"]);
    let object = Maker::new().read_only("huge", &vec![1; 3 << 20]).finish();
    let phrases = [
        "segment full: 3145728 bytes of read-only data are needed, ",
        " of 1835008 are free",
        "help: start the compiler process with a larger --window",
    ];
    running.refuses("huge.o", &object, &phrases);
    let roomy = Serve::start(&["--window", "64"]);
    let file = roomy.scratch.write("huge.o", &object);
    roomy.publish(&[&file]).succeeded();
}

#[test]
fn windows_outside_the_limits_are_refused() {
    let scratch = Scratch::new();
    for window in ["7", "2048"] {
        finish(&mut jitcast(&[
            "serve",
            "--socket",
            &scratch.path("s"),
            "--window",
            window,
        ]))
        .refused(&["window of", "help: "]);
    }
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let mut running = Running::start();
    let nothing = running.serve.scratch.path("nothing.o");
    running.refuses_args(
        &[&nothing],
        &[
            &nothing,
            "No such file or directory",
            "help: check the path",
        ],
    );
    let folder = running.serve.scratch.path("folder.o");
    std::fs::create_dir(&folder).unwrap();
    running.refuses_args(&[&folder], &[&folder, "not a regular file", "help: "]);
}

#[test]
fn files_of_others_are_refused() {
    // Root reads everything, so the publisher is nobody then, who may publish.
    let is_root = rustix::process::geteuid().is_root();
    let mut running = Running::start_with(&["--allow-publish", "65534"]);
    let file = running.serve.scratch.write("secret.o", good());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    let args = ["publish", "--socket", &running.serve.socket, &file];
    let mut publish = if is_root {
        jitcast_as(NOBODY, &args)
    } else {
        jitcast(&args)
    };
    finish(&mut publish).refused(&["secret.o", "Permission denied", "help: "]);
    running.goes_on();
}

#[test]
fn c_without_a_compiler_is_refused() {
    let mut running = Running::start();
    let file = running
        .serve
        .scratch
        .write("f.c", "long f(void) { return 1; }\n");
    let publish = ["publish", "--socket", &running.serve.socket, &file];
    for (cc, options) in [("cc", &[][..]), ("nonesuch", &["--cc", "nonesuch"])] {
        let mut command = jitcast(&publish);
        let missing = format!("f.c: no C compiler: `{cc}` is not on PATH");
        finish(command.args(options).env("PATH", "/nowhere"))
            .refused(&[&missing, "help: install gcc or clang"]);
    }
    running.goes_on();
}

#[test]
fn c_and_clif_that_do_not_compile_are_refused_with_the_place() {
    let mut running = Running::start();
    let wrong = "function %f(i64) -> i64 {\nblock0(v0: i64):\n    return v9\n}\n";
    running.refuses("wrong.clif", wrong, &["wrong.clif", "v9"]);
    if require::cc() {
        running.refuses(
            "wrong.c",
            "long f(void) { return x; }\n",
            &["wrong.c", "`cc` failed", "x"],
        );
    }
}

#[test]
fn a_worker_killed_in_the_middle_of_a_call_disturbs_nobody() {
    let mut running = Running::start();
    let file = running.serve.scratch.write("stuck.clif", STUCK);
    running.serve.publish(&[&file]).succeeded();
    let args = [
        "worker",
        "--socket",
        &running.serve.socket,
        "--call=stuck()",
    ];
    let mut stuck = Process::start(&mut jitcast(&args));
    stuck.await_line(Stream::Out, "the letter", |line| line == "X");
    let inside = |running: &Running, pid| {
        let workers = running.serve.status().workers;
        let worker = workers.into_iter().find(|worker| worker.pid == pid);
        worker.map(|worker| worker.pinned)
    };
    let pid = stuck.pid();
    assert_eq!(
        inside(&running, pid),
        Some(Some(4)),
        "`status` shows who is inside"
    );
    stuck.signal(rustix::process::Signal::KILL);
    assert_eq!(stuck.finish().signal, Some(libc::SIGKILL));
    running.goes_on();
    common::process::await_some("the end of the killed worker in `status`", || {
        inside(&running, pid).is_none().then_some(())
    });
    running.serve.publish_adds("before", 1);
    running.goes_on();
}
