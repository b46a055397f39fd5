//! C++: what is unique in a process, static objects, thread-local objects with destructors.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, object_unit};
use common::scratch::Scratch;
use common::{require, role};
use jitcast::compiler::{PublishError, UnitSource};
use jitcast::worker::{HostTable, Worker};
use units::{attach_with, call, publish, refused};

/// The role of a worker with the C++ library that calls functions by name and ends in order.
const CALLER: &str = "calls by name";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(CALLER, call_by_name)]);
}

fn table() -> HostTable {
    let mut table = HostTable::default();
    table.load("libstdc++.so.6").unwrap();
    table
}

fn call_by_name(socket: &str) {
    let options = jitcast::worker::WorkerOptions {
        host: table(),
        ..Default::default()
    };
    let worker = Worker::attach(jitcast::worker::Endpoint::Path(socket.as_ref()), options).unwrap();
    role::report("attached");
    while let Some(line) = role::next_line() {
        if line == "end" {
            break;
        }
        role::report(call(&worker, &line, 1));
    }
}

fn attach(host: &Host) -> Worker {
    attach_with(host, table())
}

/// A unit of one C++ file.
fn unit(name: &str, source: &str, compiler: &str, flags: &[&str]) -> UnitSource {
    object_unit(name, Scratch::new().cplusplus(source, compiler, flags))
}

const UNIQUE: &str = "
    template<class T> struct Counter { static long count; }; template<class T> long Counter<T>::count = 3;
    inline long &local() { static long made = Counter<int>::count * 10; return made; }
    inline long variable = 1000;
    extern \"C\" long NAME(long x) { Counter<int>::count += x; local() += x; variable += x;
        return Counter<int>::count + local() + variable; }
    extern \"C\" long NAME_at(long x) { return (long)&Counter<int>::count; }";

#[test]
fn what_is_unique_is_one_for_all_units_and_outlives_them() {
    for (compiler, there) in [("g++", require::gxx()), ("clang++", require::clang())] {
        if !there {
            continue;
        }
        for flags in [
            &["-O2", "-fPIC"][..],
            &["-O0", "-fPIC"],
            &["-O2", "-fPIC", "-fno-plt", "-fdata-sections"],
        ] {
            let source = |name: &str| UNIQUE.replace("NAME", name);
            let host = Host::sealed();
            publish(
                &host,
                &[
                    unit("one", &source("one"), compiler, flags),
                    unit("two", &source("two"), compiler, flags),
                ],
            );
            let worker = attach(&host);
            let one = call(&worker, "one", 1);
            assert_eq!(
                call(&worker, "two", 1),
                one + 3,
                "{compiler} {flags:?}: they share all three"
            );
            assert_eq!(call(&worker, "one_at", 0), call(&worker, "two_at", 0));
            let place = call(&worker, "one_at", 0);
            // Both are replaced, and the data stay where they are with what they hold.
            publish(&host, &[unit("one", &source("one"), compiler, flags)]);
            assert_eq!(call(&worker, "one", 1), one + 6);
            publish(&host, &[unit("two", &source("two"), compiler, flags)]);
            assert_eq!(call(&worker, "two", 1), one + 9);
            assert_eq!(call(&worker, "two_at", 0), place);
            // Of another length it would be another datum.
            let other = source("three")
                .replace("static long count", "static long count[2]")
                .replace(
                    "long Counter<T>::count = 3",
                    "long Counter<T>::count[2] = {3}",
                )
                .replace("Counter<int>::count", "Counter<int>::count[0]");
            let error = refused(&host, &[unit("three", &other, compiler, flags)]);
            assert!(
                matches!(error, PublishError::UniqueDiffers { .. }),
                "{error}"
            );
            assert!(
                error
                    .to_string()
                    .contains("`_ZN7CounterIiE5countE` is to be one in each process"),
                "{error}"
            );
        }
    }
}

#[test]
fn the_hosts_own_copy_wins_where_it_has_one() {
    if !require::gxx() {
        return;
    }
    let scratch = Scratch::new();
    let source = UNIQUE.replace("NAME", "library");
    let path = scratch.path("libunique.so");
    scratch.cplusplus_to(&path, &source, "g++", &["-O2", "-fPIC", "-shared"]);
    let host = Host::sealed();
    publish(
        &host,
        &[unit(
            "one",
            &UNIQUE.replace("NAME", "one"),
            "g++",
            &["-O2", "-fPIC"],
        )],
    );
    let without = attach(&host);
    let mut table = table();
    table.load(&path).unwrap();
    let library = table.resolve("library_at").unwrap();
    // SAFETY: what was compiled above.
    let library: extern "C" fn(i64) -> i64 = unsafe {
        std::mem::transmute(std::ptr::with_exposed_provenance::<()>(
            library.get() as usize
        ))
    };
    let with = attach_with(&host, table);
    assert_eq!(call(&with, "one_at", 0), library(0));
    assert_ne!(call(&without, "one_at", 0), library(0));
}

#[test]
fn static_objects_live_from_attach_to_detach() {
    if !require::gxx() {
        return;
    }
    let source = "#include <string>\n#include <map>\n#include <cstdio>\n#include <unistd.h>\n
        struct Loud { const char *name; Loud(const char *name) : name(name) { say('+'); } ~Loud() { say('-'); }
            void say(char sign) { char text[4] = {sign, name[0], ' ', 0}; if (write(2, text, 3)) {} } };
        static Loud first(\"a\"); static std::map<std::string, long> numbers{{\"one\", 1}, {\"two\", 2}}; static Loud last(\"b\");
        thread_local Loud each(\"t\"); Loud &lazy() { static Loud object(\"l\"); return object; }
        extern \"C\" long f(long x) { return numbers[\"two\"] + x; }
        extern \"C\" long g(long x) { lazy(); return each.name[0]; }";
    let host = Host::sealed();
    publish(&host, &[unit("u", source, "g++", &["-O2", "-fPIC"])]);
    let mut process = role::start(CALLER, &host.socket);
    assert_eq!(role::next_report(&mut process), "attached");
    process.send("f");
    assert_eq!(role::next_report(&mut process), "3");
    process.send("g");
    assert_eq!(role::next_report(&mut process), i64::from(b't').to_string());
    process.send("end");
    let said = process.finish().succeeded().stderr;
    let said: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(said[..4], ["+a", "+b", "+l", "+t"]);
    let mut ends = said[4..].to_vec();
    assert!(ends.contains(&"-t"), "{said:?}");
    ends.retain(|end| *end != "-t");
    assert_eq!(ends, ["-l", "-b", "-a"]);
}

#[test]
fn a_constructor_that_throws_disables_its_unit_alone() {
    if !require::gxx() {
        return;
    }
    let host = Host::sealed();
    let source = "#include <stdexcept>\nstruct Bad { Bad() { throw std::runtime_error(\"no\"); } };
        static Bad bad; extern \"C\" long f(long x) { return x; }";
    publish(&host, &[unit("bad", source, "g++", &["-O2", "-fPIC"])]);
    publish(
        &host,
        &[unit(
            "good",
            "extern \"C\" long g(long x) { return x; }",
            "g++",
            &["-O2", "-fPIC"],
        )],
    );
    let worker = attach(&host);
    assert_eq!(call(&worker, "g", 4), 4);
    let error = units::try_call(&worker, "f", 1).unwrap_err().to_string();
    assert!(
        error.contains("constructor 1 of 1 threw an exception"),
        "{error}"
    );
}

#[test]
fn a_thread_of_the_library_is_inside_too() {
    if !require::gxx() {
        return;
    }
    let host = Host::sealed();
    let source = "#include <thread>\n#include <future>\n#include <atomic>\n
        static std::atomic<long> go_on{1}, rounds; static std::thread thread; static thread_local long own = 3;
        extern \"C\" long starts(long x) { thread = std::thread([x] { while (go_on) rounds++; rounds = own + x; }); return 0; }
        extern \"C\" long count(long x) { return rounds; }
        extern \"C\" long ends(long x) { go_on = 0; thread.join(); return rounds; }
        extern \"C\" long asks(long x) { return std::async(std::launch::async, [x] { return x * 2; }).get(); }";
    publish(&host, &[unit("u", source, "g++", &["-O2", "-fPIC"])]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "asks", 21), 42);
    assert_eq!(host.compiler.status().workers[0].pinned, None);
    call(&worker, "starts", 4);
    while call(&worker, "count", 0) == 0 {
        std::thread::yield_now();
    }
    let generation = host.compiler.status().generation;
    assert_eq!(
        host.compiler.status().workers[0].pinned,
        Some(generation),
        "though nobody of the host is inside"
    );
    assert_eq!(call(&worker, "ends", 0), 7);
    assert_eq!(host.compiler.status().workers[0].pinned, None);
}
