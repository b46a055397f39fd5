//! The C library: programs in C and C++, built as a host would against what `make install` lays out, and run against
//! real compiler processes.

mod common;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use common::name::Name;
use common::process::{Process, Stream, await_some, finish};
use common::require;
use common::scratch::{Scratch, example};
use common::serve::Serve;
use rustix::process::Signal;

const PREFIX: &str = "/opt/jitcast";

/// How a program is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    C,
    StaticC,
    Cxx,
    StaticCxx,
    Sanitized,
}

const BUILDS: [Build; 5] = [
    Build::C,
    Build::StaticC,
    Build::Cxx,
    Build::StaticCxx,
    Build::Sanitized,
];

impl Build {
    fn is_static(self) -> bool {
        matches!(self, Self::StaticC | Self::StaticCxx)
    }

    fn compiler(self) -> &'static [&'static str] {
        match self {
            Self::C | Self::StaticC => &["cc", "-std=c11", "-O2"],
            Self::Cxx | Self::StaticCxx => &["g++", "-x", "c++", "-std=c++17", "-O2"],
            Self::Sanitized => &[
                "cc",
                "-std=c11",
                "-O1",
                "-g",
                "-DJITCAST_CHECKED",
                "-fsanitize=address,undefined",
                "-fno-sanitize-recover=all",
            ],
        }
    }
}

/// What `make install` laid out, and the programs that were built against it.
struct Installed {
    scratch: Scratch,
    drivers: [OnceLock<String>; BUILDS.len()],
}

/// The installed library; `None`: something that it takes is not there, which is said.
fn installed() -> Option<&'static Installed> {
    static INSTALLED: OnceLock<Installed> = OnceLock::new();
    if !(require::cxx() && require::readelf() && require::make()) {
        return None;
    }
    Some(INSTALLED.get_or_init(|| {
        let scratch = Scratch::new();
        common::library::install(&scratch.path("root"), PREFIX);
        Installed {
            scratch,
            drivers: Default::default(),
        }
    }))
}

impl Installed {
    fn library(&self, name: &str) -> String {
        self.scratch.path(&format!("root{PREFIX}/lib/{name}"))
    }

    /// What pkg-config says.
    fn flags(&self, what: &[&str]) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command
            .args(what)
            .arg("jitcast")
            .env("PKG_CONFIG_PATH", self.library("pkgconfig"))
            .env("PKG_CONFIG_SYSROOT_DIR", self.scratch.path("root"));
        let said = finish(&mut command).succeeded().stdout;
        said.split_whitespace().map(str::to_owned).collect()
    }

    /// Builds `source` to `program`.
    fn build(&self, build: Build, source: &str, program: &str) -> String {
        let path = self.scratch.path(program);
        let (compiler, flags) = build.compiler().split_first().unwrap();
        let mut command = Command::new(compiler);
        command
            .args(flags)
            .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-pthread"])
            .args(self.flags(&["--cflags"]))
            .args(["-o", &path, source, "-x", "none"]);
        if build.is_static() {
            // The archive by its path, since a linker prefers the shared library beside it.
            let others = self.flags(&["--static", "--libs"]);
            command.arg(self.library("libjitcast_worker.a"));
            command.args(others.iter().filter(|flag| *flag != "-ljitcast_worker"));
        } else {
            command.args(self.flags(&["--libs"]));
        }
        finish(&mut command).succeeded();
        path
    }

    /// The driver, built so.
    fn driver(&self, build: Build) -> &str {
        self.drivers[build as usize].get_or_init(|| {
            let source = format!("{}/tests/capi/driver.c", env!("CARGO_MANIFEST_DIR"));
            self.build(build, &source, &format!("driver-{build:?}"))
        })
    }

    fn run(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env(
            "LD_LIBRARY_PATH",
            self.scratch.path(&format!("root{PREFIX}/lib")),
        );
        command
    }
}

/// A worker in C that is told what to do.
struct Driver(Process);

impl Driver {
    #[track_caller]
    fn start(build: Build, how: &str, whither: &str, mode: &str) -> Option<Self> {
        Self::start_with(build, [how, whither, mode], &[])
    }

    #[track_caller]
    fn start_with(build: Build, args: [&str; 3], env: &[(&str, &str)]) -> Option<Self> {
        let installed = installed()?;
        let mut command = installed.run(installed.driver(build));
        command.args(args).envs(env.iter().copied());
        let mut driver = Self(Process::start_listening(&mut command));
        assert_eq!(driver.line(), "status 0", "{build:?}");
        Some(driver)
    }

    #[track_caller]
    fn attach(build: Build, serve: &Serve) -> Option<Self> {
        Self::start(build, "path", &serve.socket, "all")
    }

    #[track_caller]
    fn line(&mut self) -> String {
        self.0.await_line(Stream::Out, "an answer", |_| true)
    }

    #[track_caller]
    fn ask(&mut self, line: &str) -> String {
        self.0.send(line);
        self.line()
    }

    #[track_caller]
    fn says(&mut self, line: &str, answer: &str) {
        assert_eq!(self.ask(line), answer, "{line}");
    }

    /// What it gets for a line that calls, and at which generation.
    #[track_caller]
    fn calls(&mut self, line: &str) -> (i64, u64) {
        let answer = self.ask(line);
        let parsed = answer.strip_prefix("result ").and_then(|rest| {
            let (result, generation) = rest.split_once(" at ")?;
            Some((result.parse().ok()?, generation.parse().ok()?))
        });
        parsed.unwrap_or_else(|| panic!("{line}: {answer}"))
    }

    /// Detaches and ends.
    #[track_caller]
    fn end(self) {
        let ended = self.0.finish().succeeded();
        assert_eq!(ended.stderr, "", "sanitizers have nothing to say");
    }
}

#[test]
fn what_is_published_while_it_is_called_comes_with_the_next_guard() {
    let serve = Serve::start(&[]);
    for build in BUILDS {
        serve.publish_adds("f", 1);
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        driver.says("find f (i64) -> i64", "status 0");
        let (result, first) = driver.calls("call 1");
        assert_eq!(result, 2);
        assert_eq!(driver.calls("exported 1"), (2, first));
        driver.says(&format!("wait {first}"), "status 2");

        // What is inside stays at its generation.
        driver.says("enter", "status 0");
        serve.publish_adds("f", 10);
        assert_eq!(driver.calls("inside 1"), (2, first), "{build:?}");
        assert_eq!(
            driver.calls("call 1"),
            (2, first),
            "nested, so still inside"
        );
        driver.says("leave", "status 0");
        let (result, second) = driver.calls("call 1");
        assert!(
            result == 11 && second > first,
            "{build:?}: {result} at {second}"
        );
        driver.says(&format!("news {first}"), "status 0");
        assert_eq!(driver.calls("exported 1"), (11, second));
        driver.says("stub f", "result 11");

        driver.says("mixed", "mixed");
        driver.says("fork 1", "child 11");
        assert_eq!(driver.calls("call 1"), (11, second));
        let stats = driver.ask("stats");
        let expected = format!(" at {second} lacks 0");
        assert!(stats.ends_with(&expected), "{stats}");
        assert!(
            serve
                .status()
                .workers
                .iter()
                .any(|worker| worker.label == "driver")
        );
        driver.end();
    }
}

#[test]
fn threads_see_one_version_in_a_guard_and_then_the_newest() {
    const LAST: i64 = 30;
    for build in [Build::C, Build::StaticCxx, Build::Sanitized] {
        let serve = Serve::start(&[]);
        serve.publish_adds("f", 0);
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        driver.says("find f (i64) -> i64", "status 0");
        driver.says(&format!("await {LAST}"), "awaited");
        driver.0.send("threads 4");
        for bonus in 1..=LAST {
            serve.publish_adds("f", bonus);
        }
        assert_eq!(driver.line(), format!("threads saw {LAST}"));
        driver.end();
    }
}

/// Where membarrier(2) is forbidden: guards are entered out of line.
#[test]
fn guards_that_execute_fences_are_no_different() {
    const LAST: i64 = 10;
    for build in [Build::C, Build::StaticCxx, Build::Sanitized] {
        let serve = Serve::start(&[]);
        serve.publish_adds("f", 0);
        let args = ["path", &serve.socket, "all"];
        let forbidden = [("JITCAST_NO_MEMBARRIER", "1")];
        let Some(mut driver) = Driver::start_with(build, args, &forbidden) else {
            return;
        };
        driver.says("fenced", "fenced 1");
        driver.says("find f (i64) -> i64", "status 0");
        driver.says("mixed", "mixed");
        driver.says(&format!("await {LAST}"), "awaited");
        driver.0.send("threads 4");
        for bonus in 1..=LAST {
            serve.publish_adds("f", bonus);
        }
        assert_eq!(driver.line(), format!("threads saw {LAST}"));
        driver.says("fork 1", &format!("child {}", LAST + 1));
        driver.end();
    }
}

#[test]
fn a_fallback_serves_until_the_function_is_there_and_while_it_is_quarantined() {
    let serve = Serve::start(&[]);
    for build in [Build::C, Build::StaticCxx, Build::Sanitized] {
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        let missing = driver.ask("find late (i64) -> i64");
        assert!(
            missing.starts_with("status 30: `late` is not published|  help: "),
            "{missing}"
        );
        driver.says("find-or late (i64) -> i64", "status 0");
        assert_eq!(driver.calls("call 5").0, -5);
        serve.publish_adds("late", 1);
        assert_eq!(driver.calls("call 5").0, 6);
        serve.command("quarantine", &["late"]).succeeded();
        assert_eq!(driver.calls("call 5").0, -5);
        serve.command("restore", &["late"]).succeeded();
        assert_eq!(driver.calls("exported 5").0, 6);

        let other = driver.ask("find-or late (f64) -> i64");
        assert!(
            other.starts_with("status 32: `late` has the signature (i64) -> i64, not "),
            "{other}"
        );
        driver.says("find late -", "status 0");
        assert_eq!(driver.calls("call 5").0, 6);
        driver.end();
        serve.command("remove", &["late"]).succeeded();
    }
}

#[test]
fn a_worker_attaches_once_its_compiler_process_is_there() {
    for build in [Build::C, Build::StaticCxx, Build::Sanitized] {
        let scratch = Scratch::open_to_all();
        let socket = scratch.path("socket");
        let Some(mut driver) = Driver::start(build, "path", &socket, "late") else {
            return;
        };
        let mut mistaken = Driver::start(build, "path", &socket, "late").unwrap();
        driver.says("without", "nothing");
        let early = driver.ask("find f (i64) -> i64");
        let expected = "status 28: the worker has not attached yet (JITCAST_LATE)|  help: ";
        assert!(early.starts_with(expected), "{early}");
        driver.says("find-or f (i64) -> i64", "status 0");
        assert!(driver.ask("call 5").starts_with(expected));
        let told = driver.ask("events");
        assert!(told.starts_with("told 6 not attached yet: "), "{told}");
        mistaken.says("find-or f (f64) -> i64", "status 0");

        let process = Serve::start_at(&socket, &[]);
        let serve = Serve::adopt_running(process, socket, scratch);
        serve.publish_adds("f", 1);
        // Nobody does more than call.
        await_some("the worker to attach", || {
            driver
                .ask("call 5")
                .starts_with("result 6 at ")
                .then_some(())
        });
        serve.publish_adds("f", 10);
        assert_eq!(driver.calls("exported 5").0, 15);
        driver.says("fork 1", "child 11");
        serve.command("quarantine", &["f"]).succeeded();
        assert_eq!(driver.calls("call 5").0, -5);
        serve.command("restore", &["f"]).succeeded();
        driver.end();

        mistaken.says("news 0", "status 0");
        assert_eq!(mistaken.calls("call 5").0, -5);
        let told = mistaken.ask("events");
        let unfit = " 7 the host's own function serves: `f` has the signature (i64) -> i64, not ";
        assert!(told.contains(unfit), "{told}");
        mistaken.end();

        // One that is there is waited for.
        let mut driver = Driver::start(build, "path", &serve.socket, "late").unwrap();
        driver.says("find f (i64) -> i64", "status 0");
        assert_eq!(driver.calls("call 5").0, 15);
        driver.end();
    }
}

/// A function that calls an import of the host.
fn calls_host(name: &str, import: &str) -> String {
    format!(
        "function %{name}(i64) -> i64 {{\n    fn0 = %{import}(i64) -> i64\nblock0(v0: i64):\n    v1 = call fn0(v0)\n    return v1\n}}\n"
    )
}

#[test]
fn imports_come_from_the_table_and_strictly_from_nowhere_else() {
    let serve = Serve::start(&[]);
    for (name, import) in [("thrice", "triple"), ("absolute", "labs")] {
        let file = serve
            .scratch
            .write(&format!("{name}.clif"), calls_host(name, import));
        serve.publish(&[&file]).succeeded();
    }
    let clif = calls_host("mistaken", "triple").replace("i64", "f64");
    let file = serve.scratch.write("mistaken.clif", clif);
    serve.publish(&[&file]).succeeded();
    for build in [Build::C, Build::StaticC, Build::Sanitized] {
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        let mistaken = driver.ask("find mistaken (f64) -> f64");
        let expected = "status 34: `mistaken` calls the host symbol `triple` as (f64) -> f64, ";
        assert!(mistaken.starts_with(expected), "{mistaken}");
        for (name, result) in [("thrice", -12), ("absolute", 4)] {
            driver.says(&format!("find {name} (i64) -> i64"), "status 0");
            assert_eq!(driver.calls("call -4").0, result);
        }
        driver.end();
        let Some(mut driver) = Driver::start(build, "path", &serve.socket, "strict") else {
            return;
        };
        driver.says("find thrice (i64) -> i64", "status 0");
        assert_eq!(driver.calls("call 4").0, 12);
        let missing = driver.ask("find absolute (i64) -> i64");
        let expected = "status 34: `absolute` needs the host symbol `labs`, which is missing";
        assert!(missing.starts_with(expected), "{missing}");
        assert!(driver.ask("stats").ends_with("lacks 2"));
        let told = driver.ask("events");
        let expected = " 5 the host symbol `labs` is missing in this worker|  help: define it";
        assert!(told.contains(expected), "{told}");
        driver.end();
    }
}

#[test]
fn backtraces_pass_published_code_and_name_it() {
    let serve = Serve::start(&[]);
    let walks = calls_host("walks", "walk") + &calls_host("outer", "walks");
    let file = serve.scratch.write("walks.clif", walks);
    serve.publish(&[&file]).succeeded();
    for build in [Build::C, Build::StaticC, Build::Sanitized] {
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        driver.says("find outer (i64) -> i64", "status 0");
        assert_eq!(driver.calls("call 5").0, 5);
        let walked = driver.ask("walked");
        let names: Vec<&str> = walked.split(' ').skip(1).collect();
        assert_eq!(names.len(), 4, "{walked}");
        assert!(
            names[0].starts_with("walks+0x") && names[2].starts_with("outer+0x"),
            "{walked}"
        );
        assert_eq!((names[1], names[3]), ("(walks)", "(walks)"));
        driver.says("cut outer", "cut outer+0");
        driver.end();
    }
}

#[test]
fn what_was_asked_for_follows_what_it_calls_and_ends_at_its_fallback() {
    let serve = Serve::start(&[]);
    let clif = calls_host("again", "f");
    let asked = serve.scratch.write("asked.clif", &clif);
    let broken = serve
        .scratch
        .write("broken.clif", "function %again(i65) {}");
    for build in BUILDS {
        serve.publish_adds("f", 1);
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        driver.says(&format!("ask {asked}"), "status 0");
        driver.says("take again", "status 0");
        assert_eq!(driver.calls("call 5").0, 6);
        serve.publish_adds("f", 10);
        assert_eq!(driver.calls("exported 5").0, 15);
        serve.command("remove", &["f"]).succeeded();
        assert_eq!(driver.calls("call 5").0, -5, "{build:?}");

        driver.says(&format!("ask {broken}"), "status 0");
        let refused = driver.ask("take again");
        assert!(refused.starts_with("status 12: "), "{refused}");
        driver.says(&format!("ask {asked}"), "status 0");
        driver.says("take other", "status 0");
        assert_eq!(driver.calls("call 5").0, -5, "there is no such function");
        driver.end();
    }
}

#[test]
fn who_jumps_out_of_published_code_unwinds_its_guards() {
    let serve = Serve::start(&[]);
    let file = serve.scratch.write("leap.clif", calls_host("leap", "bail"));
    serve.publish(&[&file]).succeeded();
    for build in [Build::C, Build::StaticCxx, Build::Sanitized] {
        serve.publish_adds("f", 1);
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        driver.says("find leap (i64) -> i64", "status 0");
        driver.says("jump", "jumped 7");
        driver.says("find f (i64) -> i64", "status 0");
        assert_eq!(driver.calls("call 1").0, 2);
        serve.publish_adds("f", 5);
        assert_eq!(driver.calls("call 1").0, 6, "it is outside, so it polls");
        driver.end();
    }
}

#[test]
fn a_worker_goes_on_without_the_compiler_process_and_with_the_next_one() {
    for build in [Build::C, Build::StaticC, Build::Sanitized] {
        let scratch = Scratch::open_to_all();
        let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
        let process = Serve::start_at(&socket, &["--journal", &journal]);
        let serve = Serve::adopt_running(process, socket, scratch);
        serve.publish_adds("f", 1);
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        driver.says("find f (i64) -> i64", "status 0");
        let (result, generation) = driver.calls("call 1");
        assert_eq!(result, 2);
        driver.0.send("hang-up");
        let (process, socket, scratch) = (serve.process, serve.socket, serve.scratch);
        process.signal(Signal::KILL);
        assert_eq!(process.finish().signal, Some(libc::SIGKILL));
        assert_eq!(driver.line(), "hung up 0x10", "POLLHUP");
        let told = driver.ask("events");
        assert!(
            told.starts_with("told 1 the compiler process is gone; "),
            "{told}"
        );
        assert_eq!(driver.calls("call 1"), (2, generation));

        let process = Serve::start_at(&socket, &["--journal", &journal]);
        let serve = Serve::adopt_running(process, socket, scratch);
        driver.says("reconnect", "connected");
        let told = driver.ask("events");
        assert!(told.starts_with("told 2 goes on as worker "), "{told}");
        driver.says("events", "told");
        serve.publish_adds("f", 2);
        driver.says(&format!("news {generation}"), "status 0");
        assert_eq!(driver.calls("call 1").0, 3);
        driver.end();
    }
}

#[test]
fn an_event_loop_notices_the_loss_of_the_next_compiler_process_too() {
    for build in [Build::C, Build::StaticCxx, Build::Sanitized] {
        let scratch = Scratch::open_to_all();
        let (socket, journal) = (scratch.path("socket"), scratch.path("journal"));
        let mut process = Serve::start_at(&socket, &["--journal", &journal]);
        let Some(mut driver) = Driver::start(build, "path", &socket, "all") else {
            return;
        };
        driver.0.send("loop");
        for last in [false, true] {
            process.signal(Signal::KILL);
            process.finish();
            assert_eq!(driver.line(), "lost", "{build:?}");
            process = Serve::start_at(&socket, &["--journal", &journal]);
            if !last {
                assert_eq!(driver.line(), "found", "{build:?}");
            }
        }
        driver.end();
    }
}

#[test]
fn a_worker_attaches_by_abstract_socket_by_descriptor_and_by_name() {
    let name = Name::new("capi");
    let scratch = Scratch::open_to_all();
    let socket = format!("@{}", name.0);
    let process = Serve::start_at(&socket, &["--name", &name.0]);
    let serve = Serve::adopt_running(process, socket, scratch);
    serve.publish_adds("f", 1);
    for build in [Build::C, Build::StaticC, Build::Sanitized] {
        for (how, whither) in [("path", &serve.socket), ("name", &name.0), ("fd", &name.0)] {
            // Made last: who connects and says nothing for a while is not waited for.
            let connected = (how == "fd").then(|| connect(&serve.socket));
            let fd = connected.as_ref().map(|fd| fd.as_raw_fd().to_string());
            let whither = fd.as_ref().unwrap_or(whither);
            let Some(mut driver) = Driver::start(build, how, whither, "all") else {
                return;
            };
            driver.says("find f (i64) -> i64", "status 0");
            assert_eq!(driver.calls("call 1").0, 2, "{build:?} {how}");
            driver.end();
        }
    }
    await_some("the end of all workers, which have detached", || {
        serve.status().workers.is_empty().then_some(())
    });
}

/// A connection that children inherit.
fn connect(socket: &str) -> std::os::fd::OwnedFd {
    use rustix::io::{FdFlags, fcntl_setfd};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixStream};
    let address = SocketAddr::from_abstract_name(&socket[1..]).unwrap();
    let connected = UnixStream::connect_addr(&address).unwrap();
    fcntl_setfd(&connected, FdFlags::empty()).unwrap();
    connected.into()
}

#[test]
fn wrong_arguments_are_refused_with_a_text() {
    let serve = Serve::start(&[]);
    for build in [Build::C, Build::StaticCxx, Build::Sanitized] {
        let Some(mut driver) = Driver::attach(build, &serve) else {
            return;
        };
        driver.says("wrong", "refused");
        let nonsense = driver.ask("find f (i64, i65) -> i64");
        assert!(
            nonsense.starts_with("status 1: the signature `(i64, i65) -> i64`: "),
            "{nonsense}"
        );
        driver.end();
    }
}

#[test]
fn the_shared_library_exports_nothing_else_and_has_the_version_of_its_abi() {
    let Some(installed) = installed() else {
        return;
    };
    let library = installed.library("libjitcast_worker.so");
    let tool = |args: &[&str]| {
        let mut command = Command::new("readelf");
        finish(command.args(args).arg(&library)).succeeded().stdout
    };
    let symbols = tool(&["--dyn-syms", "--wide"]);
    let exported: Vec<&str> = symbols
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() == 8 && words[4] != "LOCAL" && words[6] != "UND")
        .map(|words| words[7])
        .filter(|name| *name != "Name")
        .collect();
    assert!(exported.contains(&"jitcast_enter"), "{symbols}");
    let header = installed
        .scratch
        .path(&format!("root{PREFIX}/include/jitcast.h"));
    let header = std::fs::read_to_string(header).unwrap();
    for name in exported {
        assert!(
            header.contains(&format!(" {name}(")) || header.contains(&format!("*{name}(")),
            "`{name}` is exported and not in the header"
        );
        assert!(name.starts_with("jitcast_"), "`{name}` is exported");
    }
    let dynamic = tool(&["--dynamic", "--wide"]);
    let abi = header
        .lines()
        .find_map(|line| line.strip_prefix("#define JITCAST_ABI_VERSION "));
    let soname = format!("libjitcast_worker.so.{}", abi.unwrap());
    assert!(
        dynamic.contains(&format!("soname: [{soname}]")),
        "{dynamic}"
    );
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
    assert!(Path::new(&installed.library(&soname)).exists());
}

/// The story: two archives that come from Rust both define what is in its standard library.
#[test]
fn the_archive_goes_with_another_one_from_rust_and_shows_its_own_names_only() {
    let Some(installed) = installed() else {
        return;
    };
    let archive = installed.library("libjitcast_worker.a");
    let mut nm = Command::new("nm");
    let shown = finish(nm.args([
        "--extern-only",
        "--defined-only",
        "--format=posix",
        &archive,
    ]));
    let shown = shown.succeeded().stdout;
    let names: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| !name.ends_with(':'))
        .map(|(name, _)| name)
        .collect();
    assert!(names.contains(&"jitcast_enter"), "{shown}");
    let other = names.iter().find(|name| !name.starts_with("jitcast_"));
    assert_eq!(other, None, "the archive shows it");

    let scratch = &installed.scratch;
    let second = scratch.write("second.rs", SECOND_LIBRARY);
    let second_archive = scratch.path("libsecond.a");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "--crate-type=staticlib", "-o"]);
    finish(rustc.args([&second_archive, &second])).succeeded();
    let host = scratch.write("two_libraries.c", HOST_OF_TWO_LIBRARIES);
    let program = scratch.path("two_libraries");
    let mut cc = Command::new("cc");
    cc.args(["-o", &program, &host])
        .args(installed.flags(&["--cflags"]))
        .args(["-Wl,--whole-archive", &archive, &second_archive])
        .args(["-Wl,--no-whole-archive", "-pthread"]);
    let others = installed.flags(&["--static", "--libs"]);
    cc.args(others.iter().filter(|flag| *flag != "-ljitcast_worker"));
    finish(&mut cc).succeeded();
    // Each of them throws and catches for itself.
    let serve = Serve::start(&[]);
    serve.publish_adds("f", 1);
    let said = finish(Command::new(&program).arg(&serve.socket)).succeeded();
    assert_eq!(said.stdout, "42 6\n");
}

/// A library whose functions allocate, panic, and catch that.
const SECOND_LIBRARY: &str = r#"
#[unsafe(no_mangle)]
pub extern "C" fn second(count: i64) -> i64 {
    let texts: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    let caught = std::panic::catch_unwind(|| assert!(count < 3, "as was asked for"));
    texts.len() as i64 + i64::from(caught.is_err())
}
"#;

const HOST_OF_TWO_LIBRARIES: &str = r#"
#include <inttypes.h>
#include <stdio.h>
#include <jitcast.h>

int64_t second(int64_t count);

int main(int count, char **args)
{
    jitcast_worker *worker;
    jitcast_handle *f;
    (void)count;
    if (jitcast_attach_path(args[1], NULL, &worker) || jitcast_function(worker, "f", "(i64) -> i64", NULL, &f)
        || jitcast_enter(worker, NULL)) {
        fprintf(stderr, "%s\n", jitcast_last_error());
        return 1;
    }
    printf("%" PRId64 " %" PRId64 "\n", ((int64_t (*)(int64_t))jitcast_address(f))(41), second(5));
    jitcast_leave(worker);
    return jitcast_detach(worker);
}
"#;

#[test]
fn the_example_in_c_is_built_as_it_says_and_follows() {
    for build in [Build::C, Build::Sanitized] {
        example_follows(build);
    }
}

fn example_follows(build: Build) {
    let serve = Serve::start(&[]);
    let Some(installed) = installed() else {
        return;
    };
    let name = format!("example-{build:?}");
    let program = installed.build(build, &example("c/worker.c"), &name);
    serve.publish(&[&example("score.clif")]).succeeded();
    let mut worker = Process::start(installed.run(&program).arg(&serve.socket));
    let seen = |line: &str| line.starts_with("score(21) = 42 in generation ");
    worker.await_line(Stream::Out, "the first version", seen);
    let file = serve
        .scratch
        .write("score.clif", std::fs::read(example("score2.clif")).unwrap());
    serve.publish(&[&file]).succeeded();
    let seen =
        |line: &str| line.starts_with("score(21) = ") && !line.starts_with("score(21) = 42 ");
    worker.await_line(Stream::Out, "the second version", seen);
    worker.signal(Signal::KILL);
    let said = worker.finish().stderr;
    assert_eq!(said, "", "sanitizers have nothing to say");

    let nowhere = serve.scratch.path("nowhere");
    let refused = finish(installed.run(&program).arg(&nowhere));
    assert_eq!(refused.code, Some(1));
    assert!(
        refused
            .stderr
            .contains("help: start it with `jitcast serve"),
        "{refused:?}"
    );
}

#[cfg(feature = "seeded-faults")]
#[test]
fn a_head_that_is_not_looked_at_and_guards_that_are_only_counted_are_noticed() {
    if installed().is_none() {
        return;
    }
    for (fault, test) in [
        (
            "head-mistaken",
            "what_is_published_while_it_is_called_comes_with_the_next_guard",
        ),
        (
            "pin-counted",
            "who_jumps_out_of_published_code_unwinds_its_guards",
        ),
    ] {
        common::fault::is_noticed(("JITCAST_FAULT", fault), test);
    }
}

#[test]
fn crashes_are_reported_to_hosts_in_c_that_ask_for_it() {
    let Some(installed) = installed() else {
        return;
    };
    let source = format!("{}/tests/capi/crash.c", env!("CARGO_MANIFEST_DIR"));
    let serve = Serve::start(&[]);
    let crashes = "function %crash(i64) -> i64 {\nblock0(v0: i64):\n    trap user1\n}\n";
    let file = serve.scratch.write("crash.clif", crashes);
    serve.publish(&[&file]).succeeded();
    for (build, program) in [(Build::C, "crash"), (Build::StaticC, "crash_static")] {
        let program = installed.build(build, &source, program);
        let folder = serve.scratch.path(&format!("{build:?}"));
        std::fs::create_dir(&folder).unwrap();
        let ended = finish(installed.run(&program).args([&serve.socket, &folder]));
        assert_eq!(ended.stdout, "0 named\n", "a folder alone is refused");
        assert_eq!(ended.code, Some(50 + libc::SIGILL), "{ended:#?}");
        let report = ended.stderr.strip_suffix("own handler\n").unwrap();
        assert!(
            report.starts_with("jitcast: SIGILL in published code: process "),
            "{report}"
        );
        assert!(report.contains(", label c\n  at crash+0x"), "{report}");
        let files: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
        assert_eq!(std::fs::read_to_string(files[0].path()).unwrap(), report);
    }
}
