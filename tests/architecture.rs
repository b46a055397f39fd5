//! The rules of the architecture, as tests whose messages say how to mend the fault.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the project, by its path from the root.
fn sources() -> Vec<(String, String)> {
    let mut pending: Vec<PathBuf> = [
        "src", "runtime", "linker", "worker", "compiler", "fuzz", "tests", "benches", "examples",
    ]
    .map(|name| root().join(name))
    .into();
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            found.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The crates of the workspace that `folder`'s crate depends on, tests aside.
fn dependencies(folder: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let section = manifest
        .split("\n[dependencies]\n")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("jitcast-"))
        .map(|line| line.split(['.', ' ', '=']).next().unwrap().to_owned())
        .collect()
}

#[test]
fn crates_depend_on_one_another_in_one_direction() {
    let allowed: [(&str, &[&str]); 7] = [
        ("runtime", &[]),
        ("linker", &["runtime"]),
        ("worker", &["runtime"]),
        ("worker/capi", &["worker"]),
        ("compiler", &["linker", "runtime"]),
        ("fuzz", &["linker", "oracle", "runtime"]),
        ("fuzz/oracle", &[]),
    ];
    for (folder, allowed) in allowed {
        let allowed: BTreeSet<String> = allowed.iter().map(ToString::to_string).collect();
        assert_eq!(
            dependencies(folder),
            allowed,
            "{folder}/Cargo.toml: a worker must not carry the linker, nor the runtime anybody; move the code \
             to the crate that may know both, or change ARCHITECTURE.md and this test together"
        );
    }
}

/// The files that may contain unsafe code outside tests.
const UNSAFE: &[&str] = &[
    "compiler/src/compiler.rs",
    "compiler/src/requests/spawn.rs",
    "compiler/src/server/connection.rs",
    "examples/async_worker.rs",
    "examples/filter/compare.rs",
    "examples/prefork.rs",
    "runtime/src/gate.rs",
    "runtime/src/memory.rs",
    "runtime/src/mailbox.rs",
    "runtime/src/observer.rs",
    "runtime/src/patch.rs",
    "runtime/src/header.rs",
    "runtime/src/records.rs",
    "runtime/src/segment/create.rs",
    "runtime/src/segment/named.rs",
    "runtime/src/sys.rs",
    "runtime/src/tsan.rs",
    "runtime/src/window.rs",
    "src/cli/memory.rs",
    "src/cli/service.rs",
    "src/cli/worker.rs",
    "worker/capi/src/attach.rs",
    "worker/capi/src/function.rs",
    "worker/capi/src/guard.rs",
    "worker/capi/src/log.rs",
    "worker/capi/src/options.rs",
    "worker/capi/src/request.rs",
    "worker/capi/src/symbolize.rs",
    "worker/capi/src/watch.rs",
    "worker/src/bind.rs",
    "worker/src/crash.rs",
    "worker/src/debug/gdb.rs",
    "worker/src/foreign.rs",
    "worker/src/fork.rs",
    "worker/src/function_type.rs",
    "worker/src/guard.rs",
    "worker/src/handle.rs",
    "worker/src/host.rs",
    "worker/src/invoke.rs",
    "worker/src/life.rs",
    "worker/src/pin_slot.rs",
    "worker/src/renew.rs",
    "worker/src/spawn.rs",
    "worker/src/startup/mod.rs",
    "worker/src/startup/protect.rs",
    "worker/src/thread_local.rs",
    "worker/src/thread_record.rs",
    "worker/src/thread_words.rs",
    "worker/src/unwind/hook.rs",
    "worker/src/unwind/register.rs",
    "worker/src/unwind/windows.rs",
    "worker/src/watched.rs",
    "worker/src/worker.rs",
];

#[test]
fn unsafe_code_is_where_it_is_expected() {
    let is_unsafe = |text: &str| {
        text.lines()
            .map(str::trim_start)
            .filter(|line| !line.starts_with("//"))
            .any(|line| {
                [
                    "unsafe {",
                    "unsafe fn",
                    "unsafe impl",
                    "unsafe trait",
                    "unsafe extern",
                ]
                .iter()
                .any(|form| line.contains(form))
            })
    };
    let is_test = |name: &str| {
        name.starts_with("tests/") || name.starts_with("benches/") || name.contains("/tests")
    };
    let found: BTreeSet<String> = sources()
        .into_iter()
        .filter(|(name, text)| !is_test(name) && is_unsafe(text))
        .map(|(name, _)| name)
        .collect();
    let expected: BTreeSet<String> = UNSAFE.iter().map(ToString::to_string).collect();
    assert_eq!(
        found, expected,
        "unsafe code belongs into few files: move it to one of them, or add (or remove) the file here \
         with an argument in ARCHITECTURE.md"
    );
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    for folder in ["linker", "fuzz", "fuzz/oracle"] {
        let text = fs::read_to_string(root().join(folder).join("src/lib.rs")).unwrap();
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{folder}/src/lib.rs: this crate needs no unsafe code"
        );
    }
}

#[test]
fn the_oracle_shares_nothing_with_the_linker() {
    let manifest = fs::read_to_string(root().join("fuzz/oracle/Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
    for forbidden in ["object", "jitcast-linker", "jitcast-runtime"] {
        let found = dependencies.lines().any(|line| line.starts_with(forbidden));
        assert!(
            !found,
            "fuzz/oracle/Cargo.toml: a judge that stands on `{forbidden}` shares its mistakes"
        );
    }
}

#[test]
fn the_examples_in_readme_are_the_examples() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for name in ["compiler", "worker"] {
        let text = fs::read_to_string(root().join(format!("examples/{name}.rs"))).unwrap();
        let code = text[text.find("use ").unwrap()..].trim_end();
        assert!(
            readme.contains(code),
            "README.md: copy the code of examples/{name}.rs into it"
        );
        let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
        assert!(
            lines <= 25,
            "examples/{name}.rs has {lines} lines; an example is short"
        );
    }
}

#[test]
fn there_is_one_version_of_object() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let versions = lock
        .split("[[package]]")
        .filter(|package| package.contains("name = \"object\"\n"));
    assert_eq!(
        versions.count(),
        1,
        "Cargo.lock: use the version of `object` that Cranelift brings"
    );
}

#[test]
fn architecture_names_every_dependency() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest
        .split("\n[workspace.dependencies]\n")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    for line in section
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with("jitcast-"))
    {
        let name = line.split([' ', '=']).next().unwrap();
        let known = text.contains(&format!("`{name}`"))
            || (name.starts_with("cranelift") && text.contains("`cranelift-*`"));
        assert!(
            known,
            "ARCHITECTURE.md: say why the project depends on `{name}`"
        );
    }
}

#[test]
fn crates_that_are_published_say_what_they_are() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace
        .lines()
        .find(|line| line.starts_with("members = "));
    let members = members.unwrap().split('"').skip(1).step_by(2);
    for folder in members.chain(["."]) {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        if manifest.contains("\npublish = false\n") {
            continue;
        }
        for key in [
            "description = ",
            "documentation = \"https://docs.rs/jitcast",
            "readme = ",
            "rust-version.",
            "license.",
            "repository.",
            "categories.",
            "keywords.",
            "[package.metadata.docs.rs]",
            "targets = [\"x86_64-unknown-linux-gnu\"]",
        ] {
            assert!(
                manifest.contains(&format!("\n{key}")),
                "{folder}/Cargo.toml: add `{key}`, or `publish = false`"
            );
        }
    }
}

#[test]
fn the_readme_shows_what_a_worker_depends_on() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let command = "tree -p jitcast-worker -e normal,no-proc-macro --format {lib}";
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    let cargo = cargo
        .current_dir(root())
        .args(command.split(' '))
        .arg("--locked");
    let tree = String::from_utf8(cargo.output().unwrap().stdout).unwrap();
    assert!(tree.starts_with("jitcast_worker\n"), "{tree}");
    assert!(
        readme.contains(&format!("\n```\n{tree}```\n")),
        "README.md: a worker depends on as little as can be; if on this, say so there:\n{tree}"
    );
}

#[test]
fn elsewhere_one_message_says_where_it_runs() {
    let folder = root().join("runtime/src");
    let text = fs::read_to_string(folder.join("lib.rs")).unwrap();
    for (here, elsewhere) in [("x86_64", "aarch64"), ("linux", "macos")] {
        // As if this machine were another: modules are where they were.
        let text = text.replace(&format!("\"{here}\""), &format!("\"{elsewhere}\""));
        let text = text.replace(
            "pub mod ",
            &format!("#[path = \"{}/\"] pub mod ", folder.display()),
        );
        let text = ["atomic", "gate", "pin", "ring"]
            .iter()
            .fold(text, |text, name| {
                text.replace(
                    &format!("/\"] pub mod {name};"),
                    &format!("/{name}.rs\"] pub mod {name};"),
                )
            });
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
        let arguments = [
            "--edition",
            "2024",
            "--crate-type",
            "lib",
            "--emit",
            "metadata=/dev/null",
            "-",
        ];
        let mut rustc = rustc
            .args(arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        rustc
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let said = String::from_utf8(rustc.wait_with_output().unwrap().stderr).unwrap();
        let errors: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with("error"))
            .collect();
        assert!(
            matches!(errors[..], [first, last] if first.contains("runs on Linux on x86-64 only") && last.contains("1 previous error")),
            "runtime/src/lib.rs: what is not for this machine goes below `unless_modelled`:\n{said}"
        );
    }
}
