//! Host symbols: which of them a unit means, which worker has them, and what happens where they are missing.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::ffi::c_void;

use common::host::{Host, clif_unit};
use common::scratch::{Scratch, adds};
use common::{remote, require, role};
use jitcast::worker::{HostTable, LookupError};
use units::{
    HOLDER, Holder, attach, attach_with, c, c_with, call, call_raw, calls, function, hold, publish,
    try_call,
};

/// A name that no process has.
const MISSING: &str = "jitcast_test_missing";

/// The role of a worker that ends while it is attached.
const ENDS: &str = "ends";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(HOLDER, hold), (ENDS, end)]);
}

extern "C" fn add_seven(x: i64) -> i64 {
    x + 7
}

/// A table in which `name` is [`add_seven`].
fn with_seven(mut table: HostTable, name: &str) -> HostTable {
    // SAFETY: the units of these tests take `name` for a function of a long that returns a long.
    unsafe { table.define_address(name, add_seven as *const c_void) };
    table
}

#[track_caller]
fn lacks(result: Result<i64, LookupError>, function: &str, lacked: &str) {
    let Err(LookupError::MissingImport { name, import, pid }) = &result else {
        panic!("{result:?}");
    };
    assert_eq!((name.as_str(), import.as_str()), (function, lacked));
    assert_eq!(*pid, std::process::id());
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains("which is missing in this worker (pid "),
        "{text}"
    );
}

#[test]
fn the_explicit_table_comes_before_the_process() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(
        &host,
        &[c(
            "u",
            "long labs(long); long (*volatile pointer)(long) = labs;
        long f(long x) { return pointer(x); }",
        )],
    );
    assert_eq!(call(&attach(&host), "f", -5), 5);
    let worker = attach_with(&host, with_seven(HostTable::default(), "labs"));
    assert_eq!(call(&worker, "f", -5), 2);
}

#[test]
fn a_strict_table_gives_nothing_else() {
    let host = Host::sealed();
    publish(
        &host,
        &[clif_unit(
            "u",
            &(calls("f", "labs", 0) + &calls("g", "llabs", 0)),
        )],
    );
    let worker = attach_with(&host, with_seven(HostTable::strict(), "labs"));
    assert_eq!(call(&worker, "f", -5), 2);
    lacks(try_call(&worker, "g", 1), "g", "llabs");
    assert_eq!(worker.stats().missing, 1);
}

#[test]
fn a_missing_symbol_disables_only_the_functions_that_need_it() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let worker = attach(&host);
    let source = format!(
        "long {MISSING}(long); extern long {MISSING}_datum;
        static __attribute__((noinline)) long step(long x) {{ return {MISSING}(x) + 1; }}
        long needs(long x) {{ return {MISSING}(x) * 2; }}
        long needs_inside(long x) {{ return step(x) * 2; }}
        long needs_datum(long x) {{ return {MISSING}_datum + x; }}
        long does_not(long x) {{ return x * 2; }}
        long (*const table[])(long) = {{ needs, does_not }};
        long through_table(long x) {{ return table[x](x); }}"
    );
    let published = publish(&host, &[c("u", &source)]);
    assert_eq!(published.imports.len(), 2);
    for needy in ["needs", "needs_inside", "through_table"] {
        lacks(try_call(&worker, needy, 1), needy, MISSING);
    }
    lacks(
        try_call(&worker, "needs_datum", 1),
        "needs_datum",
        &format!("{MISSING}_datum"),
    );
    assert_eq!(call(&worker, "does_not", 4), 8);
    publish(&host, &[clif_unit("other", &calls("other", "does_not", 1))]);
    assert_eq!(call(&worker, "other", 4), 9);
    // Through another unit, and through two.
    publish(
        &host,
        &[clif_unit(
            "near",
            &(calls("near", "needs", 1) + &adds("free", 1)),
        )],
    );
    publish(&host, &[clif_unit("far", &calls("far", "near", 1))]);
    lacks(try_call(&worker, "near", 1), "near", MISSING);
    lacks(try_call(&worker, "far", 1), "far", MISSING);
    assert_eq!(call(&worker, "free", 1), 2);
    // Who has it, calls it.
    let has_it = attach_with(&host, with_seven(HostTable::default(), MISSING));
    assert_eq!(
        ["needs", "needs_inside", "far"].map(|name| call(&has_it, name, 1)),
        [16, 18, 18]
    );
    lacks(
        try_call(&has_it, "needs_datum", 1),
        "needs_datum",
        &format!("{MISSING}_datum"),
    );
    // A version that does without it is callable everywhere.
    publish(
        &host,
        &[clif_unit("near", &(adds("near", 10) + &adds("free", 1)))],
    );
    assert_eq!(call(&worker, "far", 1), 12);
}

#[test]
fn a_handle_comes_and_goes_with_what_its_function_needs() {
    let host = Host::sealed();
    let worker = attach(&host);
    publish(&host, &[clif_unit("leaf", &adds("leaf", 1))]);
    publish(&host, &[clif_unit("f", &calls("f", "leaf", 10))]);
    let handle = {
        let guard = worker.enter().unwrap();
        function(&worker, &guard, "f").unwrap()
    };
    for round in 0..5 {
        publish(&host, &[clif_unit("leaf", &calls("leaf", MISSING, 1))]);
        lacks(try_call(&worker, "f", 1), "f", MISSING);
        publish(&host, &[clif_unit("leaf", &adds("leaf", round))]);
        let guard = worker.enter().unwrap();
        assert_eq!(handle.call(&guard, 0), 10 + round);
    }
}

#[test]
fn a_call_of_what_is_missing_ends_the_process_and_names_it() {
    let host = Host::sealed();
    publish(&host, &[clif_unit("f", &adds("f", 1))]);
    let [mut by_handle, mut by_stub] = [(); 2].map(|()| Holder::start(&host, "f"));
    assert_eq!([by_handle.call("handle"), by_stub.call("stub")], ["2", "2"]);
    publish(&host, &[clif_unit("f", &calls("f", MISSING, 1))]);
    let message = format!("published code called the host symbol `{MISSING}`, which is missing");
    by_handle.aborts("handle", &[&message]);
    by_stub.aborts("stub", &[&message]);
}

#[test]
fn a_weak_symbol_that_nobody_has_is_null() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = format!(
        "__attribute__((weak)) long {MISSING}(long); __attribute__((weak)) extern long {MISSING}_datum;
        long (*volatile pointer)(long) = {MISSING};
        long calls(long x) {{ return {MISSING} ? {MISSING}(x) : -1; }}
        long reads(long x) {{ return &{MISSING}_datum ? {MISSING}_datum + x : -1; }}
        long points(long x) {{ return pointer ? pointer(x) : -1; }}"
    );
    for flags in [&["-O2", "-fPIC", "-fno-plt"][..], &["-O2", "-fPIC"]] {
        publish(&host, &[c_with("u", &source, flags)]);
        let worker = attach(&host);
        assert_eq!(
            ["calls", "reads", "points"].map(|name| call(&worker, name, 1)),
            [-1; 3]
        );
        assert_eq!(worker.stats().missing, 0);
        let has_it = attach_with(&host, with_seven(HostTable::default(), MISSING));
        assert_eq!(
            ["calls", "reads", "points"].map(|name| call(&has_it, name, 1)),
            [8, -1, 8]
        );
    }
}

/// The story: a name first referred to weakly kept its null cells when somebody needed it, and the call
/// jumped to null.
#[test]
fn a_weak_reference_is_null_where_a_strong_one_leads_to_a_trap() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let weak = format!(
        "__attribute__((weak)) long {MISSING}(long);
        long calls(long x) {{ return {MISSING} ? {MISSING}(x) : -1; }}"
    );
    let weak = || c_with("weak", &weak, &["-O2", "-fPIC"]);
    let strong = format!("long {MISSING}(long); long f(long x) {{ return {MISSING}(x) + 1; }}");
    let strong = || c_with("f", &strong, &["-O2", "-fPIC"]);
    publish(&host, &[weak()]);
    // The cells of `f` are to be far from those of the missing symbol.
    let many: String = (0..200).map(|n| adds(&format!("f{n}"), 1)).collect();
    publish(&host, &[clif_unit("many", &many)]);
    publish(&host, &[clif_unit("f", &adds("f", 1))]);
    let mut holder = Holder::start(&host, "f");
    let worker = attach(&host);
    assert_eq!(call(&worker, "calls", 1), -1);
    assert_eq!(holder.call("stub"), "2");
    publish(&host, &[strong()]);
    lacks(try_call(&worker, "f", 1), "f", MISSING);
    assert_eq!(call(&worker, "calls", 1), -1);
    holder.aborts("stub", &[&format!("the host symbol `{MISSING}`")]);
    // In one batch too, whatever the order.
    for batch in [[strong(), weak()], [weak(), strong()]] {
        publish(&host, &batch);
        for worker in [&worker, &attach(&host)] {
            lacks(try_call(worker, "f", 1), "f", MISSING);
            assert_eq!(call(worker, "calls", 1), -1);
        }
    }
    let has_it = attach_with(&host, with_seven(HostTable::default(), MISSING));
    assert_eq!([call(&has_it, "calls", 1), call(&has_it, "f", 1)], [8, 9]);
}

#[test]
fn a_symbol_that_was_the_hosts_stays_the_hosts_until_its_users_are_published_again() {
    let host = Host::sealed();
    let worker = attach(&host);
    publish(&host, &[clif_unit("user", &calls("f", "labs", 0))]);
    assert_eq!(call(&worker, "f", -5), 5);
    publish(&host, &[clif_unit("ours", &adds("labs", 1000))]);
    assert_eq!(
        [call(&worker, "labs", -5), call(&worker, "f", -5)],
        [995, 5]
    );
    // Somebody who comes later means the same as those who were there.
    publish(&host, &[clif_unit("later", &calls("g", "labs", 0))]);
    assert_eq!(call(&worker, "g", -5), 5);
    publish(
        &host,
        &[
            clif_unit("later", &calls("g", "labs", 0)),
            clif_unit("user", &calls("f", "labs", 0)),
        ],
    );
    assert_eq!(["f", "g"].map(|name| call(&worker, name, -5)), [995; 2]);
    let late = attach(&host);
    assert_eq!(["f", "g"].map(|name| call(&late, name, -5)), [995; 2]);
}

#[test]
fn published_in_one_batch_with_its_user_a_symbol_is_the_segments() {
    let host = Host::sealed();
    publish(
        &host,
        &[
            clif_unit("user", &calls("f", "labs", 0)),
            clif_unit("ours", &adds("labs", 1000)),
        ],
    );
    assert_eq!(call(&attach(&host), "f", -5), 995);
}

/// The role: registers handlers through published code, lets go of the worker, and ends.
fn end(target: &str) {
    let worker = remote::attach(target);
    assert_eq!(worker.stats().missing, 0);
    role::report(call(&worker, "registers", 1));
    role::report(call(&worker, "computes", 27));
    // The handlers' code has to be there all the same.
    drop(worker);
    std::process::exit(0);
}

#[test]
fn what_dlsym_does_not_know_is_there_and_so_is_libm() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "#include <stdlib.h>
        #include <math.h>
        #include <unistd.h>
        extern void *__dso_handle; int __cxa_atexit(void (*)(void *), void *, void *);
        int pthread_atfork(void (*)(void), void (*)(void), void (*)(void));
        static void nothing(void) {} static void last(void) { write(2, \"last\\n\", 5); }
        static void first(void *text) { write(2, text, 6); }
        long registers(long x) { return atexit(last) + at_quick_exit(nothing)
            + __cxa_atexit(first, \"first\\n\", &__dso_handle) + pthread_atfork(nothing, nothing, nothing); }
        long computes(long x) { return lround(pow(cbrt(x), 3) + sin(0) + fma(x, 2, 1)); }";
    publish(&host, &[c("u", source)]);
    let mut process = role::start(ENDS, &host.socket);
    assert_eq!(
        [(); 2].map(|()| role::next_report(&mut process)),
        ["0", "82"]
    );
    assert_eq!(process.finish().succeeded().stderr, "first\nlast\n");
}

#[test]
fn a_library_that_was_loaded_gives_its_symbols() {
    if !require::cc() {
        return;
    }
    let scratch = Scratch::new();
    let name = "jitcast_test_of_a_library";
    let source = format!("long {name}(long x) {{ return x + 70; }}");
    let path = scratch.compile("libseventy.so", &source, &["-shared", "-fPIC"]);
    let host = Host::sealed();
    publish(&host, &[clif_unit("u", &calls("f", name, 0))]);
    lacks(try_call(&attach(&host), "f", 1), "f", name);
    let mut table = HostTable::default();
    table.load(&path).unwrap();
    assert_eq!(call(&attach_with(&host, table), "f", 1), 71);
}

/// A function of the host as published code sees it is the host's own, also in comparisons.
#[test]
fn addresses_of_the_hosts_functions_are_the_hosts() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let name = "jitcast_test_seven";
    let source = format!(
        "long {name}(long); long (*pointer)(long) = {name};
        long address(long x) {{ return (long){name}; }}
        long same(long x) {{ return pointer == {name} && x == (long)pointer; }}"
    );
    publish(
        &host,
        &[
            c("cells", &source),
            c_with(
                "pie",
                &source
                    .replace("address", "pie")
                    .replace("same", "pie_same")
                    .replace("pointer", "other"),
                &["-O2", "-fPIE"],
            ),
        ],
    );
    let worker = attach_with(&host, with_seven(HostTable::default(), name));
    let own = add_seven as *const c_void as i64;
    assert_eq!(["address", "pie"].map(|of| call(&worker, of, 0)), [own; 2]);
    assert_eq!(
        ["same", "pie_same"].map(|of| call(&worker, of, own)),
        [1; 2]
    );
    let guard = worker.enter().unwrap();
    let address = call(&worker, "address", 0).cast_unsigned();
    assert_eq!(call_raw(&guard, address, 1), 8);
}

#[test]
fn a_version_that_is_asked_for_is_the_one_that_is_bound() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "asm(\".symver old_memcpy, memcpy@GLIBC_2.2.5\"); asm(\".symver lost, memcpy@GLIBC_9.9\");
        void *old_memcpy(void *, const void *, unsigned long); void *lost(void *, const void *, unsigned long);
        long f(long x) { long y; old_memcpy(&y, &x, sizeof x); return y; }
        long g(long x) { return (long)old_memcpy; }";
    let without = source.replace("asm(\".symver lost, memcpy@GLIBC_9.9\");", "");
    publish(&host, &[c("u", &without)]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "f", 9), 9);
    // SAFETY: C strings.
    let old = unsafe {
        libc::dlvsym(
            libc::RTLD_DEFAULT,
            c"memcpy".as_ptr(),
            c"GLIBC_2.2.5".as_ptr(),
        )
    };
    assert_eq!(call(&worker, "g", 0), old.addr() as i64);
    let lost = source
        .replace(
            "old_memcpy, memcpy@GLIBC_2.2.5",
            "old_memcpy, memcpy@GLIBC_9.9",
        )
        .replace("asm(\".symver lost, memcpy@GLIBC_9.9\");", "");
    publish(&host, &[c("u", &lost)]);
    lacks(try_call(&attach(&host), "f", 9), "f", "memcpy@GLIBC_9.9");
}

#[test]
fn what_is_published_is_not_copied_as_the_hosts() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[c("owner", "long datum = 4;")]);
    let mut user = c_with(
        "user",
        "extern long datum; long f(long x) { return datum + x; }",
        &["-O2", "-fPIE"],
    );
    user.link.copies.push(("datum".to_owned(), 8));
    let error = units::refused(&host, &[user]).to_string();
    assert!(
        error.contains("`datum` is published, and only data of the host are copied"),
        "{error}"
    );
}

/// The story: a function asked for in a version went past the wrapper that pins its threads.
#[test]
fn versions_of_what_is_wrapped_are_wrapped_too() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source =
        "#include <pthread.h>\nasm(\".symver pthread_create, pthread_create@GLIBC_2.2.5\");
        static volatile long go_on = 1; static pthread_t thread;
        static void *run(void *nothing) { while (go_on) {} return nothing; }
        long starts(long x) { return pthread_create(&thread, 0, run, 0); }
        long ends(long x) { go_on = 0; return pthread_join(thread, 0); }";
    publish(&host, &[c("u", source)]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "starts", 0), 0);
    assert!(host.compiler.status().workers[0].pinned.is_some());
    assert_eq!(call(&worker, "ends", 0), 0);
}

/// The story: a weak definition gave way to a published one, and its unit's pointers led to the host, which has none,
/// because an older unit still took the name for the host's.
#[test]
fn a_weak_definition_that_gives_way_means_the_published_one() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let refers = "extern long hook(long) __attribute__((weak)); long a(long x) { return hook ? hook(x) : -1; }";
    publish(&host, &[c("a", refers)]);
    publish(&host, &[c("b", "long hook(long x) { return x + 1; }")]);
    let weak = "__attribute__((weak, noinline)) long hook(long x) { return x + 100; }
        long (*volatile pointer)(long) = hook; long by_pointer(long x) { return pointer(x); }";
    publish(&host, &[c("c", weak)]);
    let worker = attach(&host);
    assert_eq!(
        call(&worker, "a", 1),
        -1,
        "decided when it was first referred to"
    );
    assert_eq!(call(&worker, "by_pointer", 1), 2);
}
