//! Units that refer to one another: in one publication and across several, through calls, cells, stubs and
//! tables, before and after one of them is replaced.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit};
use common::require;
use common::scratch::adds;
use jitcast::compiler::front::cc;
use jitcast::compiler::{PublishError, UnitSource};
use jitcast::worker::Worker;
use units::{attach, c, c_with, call, call_raw, calls, publish, refused};

/// As compilers do it for shared libraries: calls through the linkage table.
const PLT: [&str; 2] = ["-O2", "-fPIC"];

/// As compilers do it for executables.
const PIE: [&str; 2] = ["-O2", "-fPIE"];

const EVERY_MODEL: [&[&str]; 3] = [&cc::DEFAULT_CFLAGS, &PLT, &PIE];

/// A unit whose `f` adds a number.
fn version(bonus: i64) -> UnitSource {
    c("f", &format!("long f(long x) {{ return x + {bonus}; }}"))
}

/// Whether the code of an object holds `call rel32`.
fn calls_directly(unit: &UnitSource) -> bool {
    unit.files[0].bytes.contains(&0xe8)
}

#[test]
fn functions_call_one_another_across_the_units_of_a_batch() {
    if !require::cc() {
        return;
    }
    for flags in EVERY_MODEL {
        let host = Host::sealed();
        let even = "long odd(long); long even(long n) { return n ? odd(n - 1) + 1 : 0; }";
        let odd = "long even(long); long odd(long n) { return n ? even(n - 1) + 1 : 0; }";
        let batch = [c_with("even", even, flags), c_with("odd", odd, flags)];
        let published = publish(&host, &batch);
        assert_eq!(published.functions, ["even", "odd"]);
        let worker = attach(&host);
        for n in [0, 1, 2, 101] {
            assert_eq!([call(&worker, "even", n), call(&worker, "odd", n)], [n, n]);
        }
    }
}

#[test]
fn data_and_tables_refer_to_one_another_across_the_units_of_a_batch() {
    if !require::cc() {
        return;
    }
    for flags in [&cc::DEFAULT_CFLAGS[..], &PLT] {
        let host = Host::sealed();
        let a = "extern long in_b, *to_a; long in_a = 3; long *to_b = &in_b;
            long down(long); long up(long x) { return x + 1; }
            long (*const ups[])(long) = { up, down, up };
            long a(long i) { return ups[i](*to_a * 100 + in_b); }";
        let b = "extern long in_a, *to_b; long in_b = 7; long *to_a = &in_a;
            long up(long); long down(long x) { return x - 1; }
            long (*const downs[])(long) = { down, up, down };
            long b(long i) { return downs[i](*to_b * 100 + in_a); }";
        publish(&host, &[c_with("a", a, flags), c_with("b", b, flags)]);
        let worker = attach(&host);
        assert_eq!([0, 1, 2].map(|i| call(&worker, "a", i)), [308, 306, 308]);
        assert_eq!([0, 1, 2].map(|i| call(&worker, "b", i)), [702, 704, 702]);
    }
}

#[test]
fn calls_follow_a_swap_however_they_are_compiled() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[version(1)]);
    let source = |name| format!("long f(long); long {name}(long x) {{ return f(x) * 2; }}");
    // The last one jumps: its call is the last thing it does.
    let jump = "long f(long); long jumps(long x) { return f(x + 1); }";
    let users = [
        c("through_cells", &source("through_cells")),
        c_with("through_plt", &source("through_plt"), &PLT),
        c_with("in_pie", &source("in_pie"), &PIE),
        c_with("jumps", jump, &PLT),
        clif_unit("clif", &calls("clif", "f", 0)),
    ];
    assert!(!calls_directly(&users[0]) && calls_directly(&users[1]) && calls_directly(&users[2]));
    publish(&host, &users);
    let worker = attach(&host);
    for bonus in [1, 10, 100] {
        publish(&host, &[version(bonus)]);
        let names = ["through_cells", "through_plt", "in_pie", "jumps", "clif"];
        assert_eq!(
            names.map(|name| call(&worker, name, 5)),
            [
                2 * (5 + bonus),
                2 * (5 + bonus),
                2 * (5 + bonus),
                6 + bonus,
                5 + bonus
            ]
        );
    }
}

/// Every way to say where `f` is, in a worker.
fn addresses(worker: &Worker) -> Vec<u64> {
    let names = ["own", "cells", "plt", "pie", "table", "constant", "clif"];
    let mut addresses: Vec<_> = names
        .iter()
        .map(|name| call(worker, &format!("from_{name}"), 0).cast_unsigned())
        .collect();
    let guard = worker.enter().unwrap();
    addresses.push(worker.symbol(&guard, "f").unwrap().stub.get());
    addresses
}

#[test]
fn the_address_of_a_function_is_one_in_all_units_and_stays() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let own = |bonus: i64| {
        let source = format!(
            "long f(long x) {{ return x + {bonus}; }}
            long from_own(long x) {{ return (long)f + x; }}"
        );
        c("f", &source)
    };
    let taker = |name: &str, flags: &[&str]| {
        let source = format!("long f(long); long {name}(long x) {{ return (long)f + x; }}");
        c_with(name, &source, flags)
    };
    let tables = "long f(long); long (*table[2])(long) = { f, f };
        static long (*const constant[2])(long) = { f, f };
        long from_table(long x) { return (long)table[x]; }
        long from_constant(long x) { return (long)constant[x + 1]; }";
    let clif = "function %from_clif(i64) -> i64 {\n    fn0 = %f(i64) -> i64\nblock0(v0: i64):\n    \
        v1 = func_addr.i64 fn0\n    v2 = iadd v0, v1\n    return v2\n}\n";
    publish(&host, &[own(1)]);
    publish(
        &host,
        &[
            taker("from_cells", &cc::DEFAULT_CFLAGS),
            taker("from_plt", &PLT),
            taker("from_pie", &PIE),
            c("tables", tables),
            clif_unit("clif", clif),
        ],
    );
    let [worker, other] = [(); 2].map(|()| attach(&host));
    let before = addresses(&worker);
    assert!(before.iter().all(|at| *at == before[0]), "{before:x?}");
    assert_ne!(before, addresses(&other), "each worker has its own base");
    for bonus in [10, 100] {
        publish(&host, &[own(bonus)]);
        assert_eq!(addresses(&worker), before);
        let guard = worker.enter().unwrap();
        assert_eq!(call_raw(&guard, before[0], 1), 1 + bonus);
    }
    // A late worker agrees with itself, too.
    let late = addresses(&attach(&host));
    assert!(late.iter().all(|at| *at == late[0]), "{late:x?}");
}

#[test]
fn a_chain_across_many_publications_follows_each_of_its_links() {
    const LINKS: usize = 40;
    let host = Host::sealed();
    let worker = attach(&host);
    host.publish_adds("f0", 1);
    let link = |number: usize, bonus| {
        let (name, callee) = (format!("f{number}"), format!("f{}", number - 1));
        clif_unit(&name, &calls(&name, &callee, bonus))
    };
    for number in 1..LINKS {
        publish(&host, &[link(number, 1)]);
    }
    let last = format!("f{}", LINKS - 1);
    assert_eq!(call(&worker, &last, 0), LINKS as i64);
    for number in (1..LINKS).step_by(3) {
        publish(&host, &[link(number, 101)]);
    }
    let changed = (1..LINKS).step_by(3).count() as i64;
    assert_eq!(call(&worker, &last, 0), LINKS as i64 + changed * 100);
    assert_eq!(call(&attach(&host), &last, 0), LINKS as i64 + changed * 100);
}

/// The story: the address of an absolute symbol of another unit was the base of the window.
#[test]
fn an_absolute_symbol_has_its_value_in_its_own_unit_and_is_refused_in_others() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let value = "__asm__(\".globl magic\\n.set magic, 42\\n\");";
    let own = "extern char magic[]; long own(long x) { return (long)magic + x; }";
    let mut unit = c("own", own);
    unit.files.extend(c("value", value).files);
    publish(&host, &[unit]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "own", 1), 43);
    let other = "extern char magic[]; long other(long x) { return (long)magic + x; }";
    let error = refused(&host, &[c("other", other)]);
    assert!(
        matches!(&error, PublishError::Absolute { symbol, unit, other }
            if (symbol.as_str(), unit.as_str(), other.as_str()) == ("magic", "other", "own")),
        "{error}"
    );
}

#[test]
fn units_of_every_front_end_call_one_another() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let c_code = "long from_clif(long); long from_c(long x) { return from_clif(x) + 1; }";
    publish(
        &host,
        &[
            clif_unit("clif", &adds("from_clif", 10)),
            c("c", c_code),
            clif_unit("top", &calls("top", "from_c", 100)),
        ],
    );
    let worker = attach(&host);
    assert_eq!(call(&worker, "top", 0), 111);
    publish(&host, &[clif_unit("clif", &adds("from_clif", 20))]);
    assert_eq!(call(&worker, "top", 0), 121);
}
