//! Constructors, destructors, exit handlers, resolvers: what a worker runs by itself, and how it lives with
//! their failures.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::host::Host;
use common::process::await_some;
use common::{remote, require, role};
use jitcast::compiler::{Reclaim, UnitSource};
use jitcast::runtime::geometry::SLOT_BYTES;
use jitcast::runtime::{Area, WorkerAddr};
use jitcast::worker::{EnterError, Guard, HostTable, LookupError, Worker};
use units::{adders, attach, attach_with, c, call, handle, publish, try_call};

/// The role of a worker that says what it is told to call, and ends in order.
const ENDS: &str = "ends in order";
/// The role of a worker that does so by exit, still attached.
const EXITS: &str = "exits while it is attached";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(ENDS, end_in_order), (EXITS, exit_attached)]);
}

fn follow(socket: &str) -> Worker {
    let worker = remote::attach(socket);
    role::report("attached");
    while let Some(line) = role::next_line() {
        if line == "end" {
            break;
        }
        role::report(call(&worker, &line, 1));
    }
    worker
}

fn end_in_order(socket: &str) {
    drop(follow(socket));
    role::report("detached");
}

fn exit_attached(socket: &str) {
    let _worker = std::mem::ManuallyDrop::new(follow(socket));
    std::process::exit(0);
}

/// A unit that writes a letter for all that is run of it.
fn letters(unit: &str, mark: &str) -> UnitSource {
    c(
        unit,
        &format!(
            "#include <stdlib.h>\n#include <unistd.h>\n
            static void say(const char *what) {{ write(2, what, 3); }}
            static void at_exit(void) {{ say(\"x{mark} \"); }}
            __attribute__((constructor)) static void last(void) {{ say(\"c{mark} \"); atexit(at_exit); }}
            __attribute__((constructor(200))) static void first(void) {{ say(\"b{mark} \"); }}
            __attribute__((destructor)) static void gone(void) {{ say(\"d{mark} \"); }}
            __attribute__((destructor(200))) static void gone_last(void) {{ say(\"e{mark} \"); }}
            long {unit}(long x) {{ return x + 1; }}"
        ),
    )
}

/// What a process wrote, told by its role and the units published while it runs.
fn written(role: &str, before: &[UnitSource], while_it_runs: &[&[UnitSource]]) -> String {
    let host = Host::sealed();
    publish(&host, before);
    let mut process = role::start(role, &host.socket);
    assert_eq!(role::next_report(&mut process), "attached");
    for batch in while_it_runs {
        publish(&host, batch);
        process.send("call");
        assert_eq!(role::next_report(&mut process), "2");
    }
    process.send("end");
    if role == ENDS {
        assert_eq!(role::next_report(&mut process), "detached");
    }
    process.finish().succeeded().stderr.trim_end().to_owned()
}

#[test]
fn constructors_run_at_attach_destructors_at_detach_or_exit() {
    if !require::cc() {
        return;
    }
    let call = adders("call", &[("call", 1)]);
    for role in [ENDS, EXITS] {
        let units = [letters("one", "1"), letters("two", "2"), call.clone()];
        assert_eq!(written(role, &units[..1], &[]), "b1 c1 x1 d1 e1", "{role}");
        let said = written(role, &units, &[]);
        let expected = if role == ENDS {
            "b1 c1 b2 c2 x2 d2 e2 x1 d1 e1"
        } else {
            // The C library runs all handlers first, the newest of them first.
            "b1 c1 b2 c2 x2 x1 d2 e2 d1 e1"
        };
        assert_eq!(said, expected, "{role}");
    }
}

#[test]
fn a_replaced_unit_ends_after_the_new_one_has_begun() {
    if !require::cc() {
        return;
    }
    let call = adders("call", &[("call", 1)]);
    let first = [letters("one", "1"), call];
    let second = [letters("one", "2")];
    let third = [adders("one", &[("one", 1)])];
    let said = written(ENDS, &first, &[&second, &third]);
    assert_eq!(said, "b1 c1 b2 c2 x1 d1 e1 x2 d2 e2");
}

#[test]
fn a_constructor_finds_its_own_unit_whole_and_old_names_unmoved() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(
        &host,
        &[
            adders("old", &[("version", 1)]),
            adders("one", &[("unit", 1)]),
        ],
    );
    let worker = attach(&host);
    assert_eq!(call(&worker, "version", 0), 1);
    // In one publication: a new version of `version`, and a unit that looks at it from its constructor, by a
    // cell; and at its own new name, whose stub works already.
    let looks = c(
        "looks",
        "long version(long); long own(long x) { return x + 10; }
        long (*volatile own_pointer)(long) = own; static long seen, seen_own, argc = -1;
        __attribute__((constructor)) static void look(int count) {
            seen = version(0); seen_own = own_pointer(0); argc = count; }
        long saw(long x) { return seen * 100 + seen_own + argc; }",
    );
    publish(&host, &[adders("old", &[("version", 2)]), looks]);
    assert_eq!(call(&worker, "version", 0), 2);
    assert_eq!(
        call(&worker, "saw", 0),
        110,
        "the old version, and its own new name"
    );
    // A late worker runs it once too, where the new version is all there is.
    assert_eq!(call(&attach(&host), "saw", 0), 210);
}

#[test]
fn a_unit_that_fails_is_trapped_in_that_worker_alone() {
    if !require::cc() {
        return;
    }
    let crash = "*(volatile int *)0 = 1;";
    for (fails, why) in [
        (crash, "constructor 2 of 2 crashed (SIGSEGV)"),
        (
            "asm volatile(\"ud2\");",
            "constructor 2 of 2 crashed (SIGILL)",
        ),
        (
            "volatile int zero = 0; zero = 100 / zero;",
            "constructor 2 of 2 crashed (SIGFPE)",
        ),
        (
            "jitcast_test_missing(1);",
            "the host symbol `jitcast_test_missing(i64) -> i64`",
        ),
    ] {
        let host = Host::sealed();
        publish(
            &host,
            &[adders("good", &[("good", 1)]), adders("f", &[("f", 1)])],
        );
        let worker = attach(&host);
        let follows = handle(&worker, "f");
        let unit = c(
            "f",
            &format!(
                "#include <stdlib.h>\nlong jitcast_test_missing(long); static volatile int fine_ran;
                __attribute__((constructor(101))) static void fine(void) {{ fine_ran++; }}
                __attribute__((constructor)) static void fails(void) {{ if (!getenv(\"NO\")) {{ {fails} }} }}
                long f(long x) {{ return x + 2; }} long g(long x) {{ return f(x); }}"
            ),
        );
        publish(&host, &[unit]);
        let error = try_call(&worker, "f", 1).expect_err(why);
        let LookupError::UnitFailed { name, failed } = &error else {
            panic!("{error}");
        };
        assert_eq!((name.as_str(), failed.unit.as_str()), ("f", "f"));
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(worker.failed_units(), std::slice::from_ref(failed));
        assert_eq!(host.compiler.status().workers[0].failed, 1);
        assert_eq!(call(&worker, "good", 1), 2, "the others go on");
        // What replaces it is whole again, and handles follow.
        publish(&host, &[adders("f", &[("f", 3)])]);
        assert_eq!(call(&worker, "f", 1), 4);
        assert_eq!(follows.call(&worker.enter().unwrap(), 1), 4);
        assert_eq!(worker.failed_units(), []);
    }
}

/// How many of a worker's call cells lead into its window.
fn led_inside(worker: &Worker) -> usize {
    let window = worker.window();
    let cells = worker.geometry().region(Area::CallCells);
    let slots = window.slots(cells.offset(), cells.len_bytes / SLOT_BYTES);
    let leads = |slot: &&AtomicU64| {
        let address = WorkerAddr::new(slot.load(Ordering::Relaxed));
        window.offset_of(address).is_some()
    };
    slots.iter().filter(leads).count()
}

#[test]
fn no_cell_leads_into_a_unit_that_failed() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let names: Vec<_> = (0..300).map(|number| format!("good_{number}")).collect();
    let functions: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    publish(&host, &[adders("good", &functions)]);
    let early = attach(&host);
    let good = led_inside(&early);
    assert!(good >= functions.len());
    let bad: String = (0..300)
        .map(|number| format!("long bad_{number}(long x) {{ return x; }}\n"))
        .collect();
    let fails =
        "__attribute__((constructor)) static void fails(void) { *(volatile int *)8 = 1; }\n";
    publish(&host, &[c("bad", &format!("{fails}{bad}"))]);
    assert_eq!(call(&early, "good_299", 1), 2);
    // Whoever attaches stores everything.
    for worker in [early, attach(&host)] {
        assert_eq!(worker.failed_units().len(), 1);
        assert_eq!(led_inside(&worker), good);
    }
}

#[test]
fn a_constructor_may_call_a_host_that_enters_guards_and_is_told_not_to_look_up() {
    static SAW: std::sync::Mutex<Option<(bool, bool)>> = std::sync::Mutex::new(None);
    static WORKER: std::sync::Mutex<Option<Worker>> = std::sync::Mutex::new(None);
    extern "C" fn back() {
        let worker = WORKER.lock().unwrap().clone().expect("attached before");
        let guard: Result<_, EnterError> = worker.enter();
        let guard = guard.unwrap();
        let looked = worker.symbol(&guard, "good");
        let refused = matches!(looked, Err(LookupError::WhileStarting));
        let nested = worker.enter().is_ok();
        *SAW.lock().unwrap() = Some((refused, nested));
    }
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[adders("good", &[("good", 1)])]);
    let mut table = HostTable::default();
    // SAFETY: the unit takes it for such a function.
    unsafe { table.define_address("back", back as *const std::ffi::c_void) };
    let worker = attach_with(&host, table);
    *WORKER.lock().unwrap() = Some(worker.clone());
    let source = "void back(void); __attribute__((constructor)) static void calls(void) { back(); }
        long f(long x) { return x + 5; }";
    publish(&host, &[c("u", source)]);
    assert_eq!(call(&worker, "f", 1), 6);
    assert_eq!(*SAW.lock().unwrap(), Some((true, true)));
    WORKER.lock().unwrap().take();
}

#[test]
fn a_host_thread_that_looks_up_waits_for_constructors_and_destructors() {
    static RUNS: AtomicBool = AtomicBool::new(false);
    static LOOKS: AtomicBool = AtomicBool::new(false);
    /// Lasts until the other thread looks up, and a little longer.
    extern "C" fn takes_long() {
        RUNS.store(true, Ordering::SeqCst);
        await_some("a look", || {
            LOOKS.swap(false, Ordering::SeqCst).then_some(())
        });
        std::thread::sleep(Duration::from_millis(50));
    }
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[adders("good", &[("good", 1)])]);
    let mut table = HostTable::default();
    // SAFETY: the unit takes it for such a function.
    unsafe { table.define_address("takes_long", takes_long as *const std::ffi::c_void) };
    let worker = attach_with(&host, table);
    let source = "void takes_long(void); __attribute__((constructor)) static void begins(void) { takes_long(); }
        __attribute__((destructor)) static void ends(void) { takes_long(); } long f(long x) { return x + 5; }";
    let look_up_while_it_runs = |guard: &Guard<'_>| {
        await_some("what it waits for", || {
            RUNS.swap(false, Ordering::SeqCst).then_some(())
        });
        LOOKS.store(true, Ordering::SeqCst);
        let good = units::function(&worker, guard, "good").unwrap();
        assert_eq!(good.call(guard, 1), 2);
    };
    std::thread::scope(|scope| {
        // Inside from before: another thread's application lets it stay, and runs the constructor there.
        let guard = worker.enter().unwrap();
        publish(&host, &[c("u", source)]);
        let applies = scope.spawn(|| drop(worker.enter().unwrap()));
        look_up_while_it_runs(&guard);
        applies.join().unwrap();
    });
    assert_eq!(call(&worker, "f", 1), 6);
    let (told, told_to_leave) = mpsc::channel();
    let (tell, inside) = mpsc::channel();
    std::thread::scope(|scope| {
        let leaves_last = scope.spawn(|| {
            let guard = worker.enter().unwrap();
            tell.send(()).unwrap();
            told_to_leave.into_iter().next().unwrap();
            drop(guard);
        });
        inside.recv().unwrap();
        publish(&host, &[adders("u", &[("f", 5)])]);
        // Applied here; the destructor runs in the other thread, when it leaves.
        let guard = worker.enter().unwrap();
        told.send(()).unwrap();
        look_up_while_it_runs(&guard);
        leaves_last.join().unwrap();
    });
}

#[test]
fn a_thread_that_a_constructor_started_and_waits_for_is_told_not_to_look_up() {
    static SAW: std::sync::Mutex<Option<bool>> = std::sync::Mutex::new(None);
    static WORKER: std::sync::Mutex<Option<Worker>> = std::sync::Mutex::new(None);
    extern "C" fn back() {
        let worker = WORKER.lock().unwrap().clone().expect("attached before");
        let guard = worker.enter().unwrap();
        let looked = worker.symbol(&guard, "good");
        *SAW.lock().unwrap() = Some(matches!(looked, Err(LookupError::WhileStarting)));
    }
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[adders("good", &[("good", 1)])]);
    let mut table = HostTable::default();
    // SAFETY: the unit takes it for such a function.
    unsafe { table.define_address("back", back as *const std::ffi::c_void) };
    let worker = attach_with(&host, table);
    *WORKER.lock().unwrap() = Some(worker.clone());
    let source = "#include <pthread.h>\nvoid back(void);
        static void *body(void *x) { back(); return x; }
        __attribute__((constructor)) static void waits(void) {
            pthread_t thread; pthread_create(&thread, 0, body, 0); pthread_join(thread, 0);
        }
        long f(long x) { return x + 5; }";
    publish(&host, &[c("u", source)]);
    assert_eq!(call(&worker, "f", 1), 6);
    assert_eq!(*SAW.lock().unwrap(), Some(true));
    WORKER.lock().unwrap().take();
}

#[test]
fn an_indirect_function_is_what_its_resolver_chooses_in_each_worker() {
    if !require::cc() {
        return;
    }
    let source = |hidden: &str| {
        format!(
        "#include <stdlib.h>\n
        static long plain(long x) {{ return x + 1; }} static long chosen(long x) {{ return x + 2; }}
        static long calls; typedef long code(long);
        static code *choose(void) {{ calls++; return getenv(\"JITCAST_TEST_CHOOSE\") ? chosen : plain; }}
        {hidden} long f(long) __attribute__((ifunc(\"choose\")));
        long through(long x) {{ return f(x); }} code *volatile pointer = f;
        long by_pointer(long x) {{ return pointer == f ? pointer(x) : -1; }}
        long resolved(long x) {{ return calls; }}"
    )
    };
    for hidden in ["", "static", "__attribute__((visibility(\"hidden\")))"] {
        let host = Host::sealed();
        publish(&host, &[c("u", &source(hidden))]);
        let worker = attach(&host);
        let names: &[&str] = if hidden.is_empty() {
            &["f", "through", "by_pointer"]
        } else {
            &["through", "by_pointer"]
        };
        for name in names {
            assert_eq!(call(&worker, name, 1), 2, "{hidden} {name}");
        }
        assert_eq!(call(&worker, "resolved", 0), 1, "{hidden}: once");
        // Another unit reaches it by its cell; a new version is resolved anew.
        if hidden.is_empty() {
            publish(
                &host,
                &[c(
                    "other",
                    "long f(long); long other(long x) { return f(x); }",
                )],
            );
            assert_eq!(call(&worker, "other", 1), 2);
            publish(&host, &[c("u", &source(hidden).replace("x + 1", "x + 7"))]);
            assert_eq!(call(&worker, "other", 1), 8);
        }
    }
    let host = Host::sealed();
    publish(
        &host,
        &[c(
            "u",
            "typedef long code(long); static code *choose(void) { return *(code *volatile *)8; }
        long f(long) __attribute__((ifunc(\"choose\"))); long g(long x) { return x; }",
        )],
    );
    let error = try_call(&attach(&host), "f", 1).unwrap_err().to_string();
    assert!(
        error.contains("the resolver of an indirect function crashed (SIGSEGV)"),
        "{error}"
    );
}

#[test]
fn the_processors_model_is_there_for_resolvers_that_ask_for_it() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source =
        "long f(long x) { __builtin_cpu_init(); return __builtin_cpu_supports(\"sse2\") ? x : -1; }
        __attribute__((target_clones(\"default\", \"avx2\"))) long g(long x) { return x * 3; }";
    publish(&host, &[c("u", source)]);
    let worker = attach(&host);
    assert_eq!([call(&worker, "f", 4), call(&worker, "g", 4)], [4, 12]);
}

/// The story: what a constructor had registered before the next one failed was called when the process ended, long after
/// the window was gone.
#[test]
fn what_a_failed_unit_registered_ends_with_its_failure() {
    if !require::cc() {
        return;
    }
    let source = "#include <stdlib.h>\n#include <unistd.h>\n
        static void gone(void) { write(2, \"x \", 2); }
        __attribute__((constructor(101))) static void first(void) { atexit(gone); }
        __attribute__((constructor)) static void fails(void) { *(volatile int *)8 = 1; }
        long f(long x) { return x; }";
    let call = adders("call", &[("call", 1)]);
    for role in [ENDS, EXITS] {
        assert_eq!(
            written(role, &[c("u", source), call.clone()], &[]),
            "x",
            "{role}"
        );
    }
}

/// The story: a thread that a constructor started was pinned at the new generation, while cells still led it to what that
/// generation had retired.
#[test]
fn a_constructors_thread_holds_what_old_names_lead_to() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[adders("old", &[("version", 1)])]);
    let worker = attach(&host);
    let applied = worker.poll().unwrap().generation();
    let source = "#include <pthread.h>\n
        static volatile long go_on = 1; static pthread_t thread;
        static void *run(void *nothing) { while (go_on) {} return nothing; }
        __attribute__((constructor)) static void starts(void) { pthread_create(&thread, 0, run, 0); }
        long ends(long x) { go_on = 0; return pthread_join(thread, 0); }";
    publish(&host, &[adders("old", &[("version", 2)]), c("u", source)]);
    assert_eq!(call(&worker, "version", 0), 2);
    assert_eq!(host.compiler.status().workers[0].pinned, Some(applied));
    assert_eq!(call(&worker, "ends", 0), 0);
}

/// The story: a unit with a constructor that fails was remembered by where its text lay, and what came there later
/// was trapped too.
#[test]
fn what_lies_where_a_failed_unit_lay_is_not_taken_for_it() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let worker = attach(&host);
    let fails = c(
        "f",
        "__attribute__((constructor)) static void fails(void) { *(volatile int *)8 = 1; } long f(long x) { return x; }",
    );
    for _ in 0..3 {
        publish(
            &host,
            &[UnitSource {
                reclaim: Reclaim::Yes,
                ..fails.clone()
            }],
        );
        assert!(matches!(
            try_call(&worker, "f", 1),
            Err(LookupError::UnitFailed { .. })
        ));
        // Many small ones, so that some lie where it lay; applied one by one, and all at once.
        for number in 1..200 {
            publish(&host, &[adders("f", &[("f", number)])]);
            if number % 7 != 0 {
                assert_eq!(call(&worker, "f", 1), 1 + i64::from(number));
            }
        }
        assert_eq!(worker.failed_units(), []);
    }
}

/// The story: a handler that a constructor installed was overwritten with the one before when the constructors were done.
#[test]
fn a_handler_that_a_constructor_installs_stays() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "#include <signal.h>\nstatic void handle(int signal) { (void)signal; }
        __attribute__((constructor)) static void installs(void) { signal(SIGFPE, handle); }
        long f(long x) { struct sigaction now; sigaction(SIGFPE, 0, &now); return now.sa_handler == handle; }";
    publish(&host, &[c("u", source)]);
    assert_eq!(call(&attach(&host), "f", 0), 1);
}

#[test]
fn what_may_be_called_after_its_time_is_kept_whatever_was_asked_for() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    for (source, keeps) in [
        ("long f(long x) { return x; }", false),
        (
            "__thread long own; long f(long x) { return own += x; }",
            false,
        ),
        (
            "__attribute__((constructor)) static void begins(void) { asm(\"\"); } long f(long x) { return x; }",
            false,
        ),
        (
            "__attribute__((destructor)) static void ends(void) { asm(\"\"); } long f(long x) { return x; }",
            true,
        ),
        (
            "#include <stdlib.h>\nlong f(long x) { return atexit(abort); }",
            true,
        ),
        (
            "int __cxa_thread_atexit(void (*)(void *), void *, void *); extern char __dso_handle;
          long f(long x) { return __cxa_thread_atexit(0, 0, &__dso_handle); }",
            true,
        ),
        (
            "#include <pthread.h>\nlong f(long x) { pthread_key_t key; return pthread_key_create(&key, 0); }",
            true,
        ),
    ] {
        publish(
            &host,
            &[UnitSource {
                reclaim: Reclaim::Yes,
                ..c("u", source)
            }],
        );
        assert_eq!(host.compiler.status().units[0].keeps, keeps, "{source}");
    }
}
