//! Data: each worker has its own, every version starts fresh, and nothing moves under its users.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit, object_unit};
use common::object::Maker;
use common::scratch::adds;
use common::{remote, require, role};
use jitcast::compiler::front::{self, compile_bytes};
use jitcast::compiler::{Compiler, CompilerOptions, Policy, PublishError, Server, UnitSource};
use units::{attach, c, c_with, call, call_raw, calls, publish, refused};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play)]);
}

/// Defines `counter`, which starts at `start`.
fn owner(start: i64) -> UnitSource {
    c(
        "owner",
        &format!("long counter = {start}; long own(long x) {{ return counter += x; }}"),
    )
}

fn user(name: &str) -> UnitSource {
    c(
        name,
        &format!("extern long counter; long {name}(long x) {{ return counter += x; }}"),
    )
}

#[test]
fn a_datum_does_not_move_under_its_users() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let worker = attach(&host);
    publish(&host, &[owner(10)]);
    publish(&host, &[user("use"), user("also_use")]);
    assert_eq!([call(&worker, "use", 1), call(&worker, "own", 1)], [11, 12]);
    let error = refused(&host, &[owner(50)]);
    assert!(
        matches!(&error, PublishError::DataMoves { symbol, unit, users }
            if symbol == "counter" && unit == "owner" && users == &["also_use", "use"]),
        "{error}"
    );
    let error = refused(&host, &[owner(50), user("use")]);
    assert!(matches!(&error, PublishError::DataMoves { users, .. } if users == &["also_use"]));
    let gone = c("owner", "long own(long x) { return x; }");
    let error = refused(&host, &[gone]);
    assert!(
        error
            .to_string()
            .contains("does not define `counter`, which is a datum used by `also_use`, `use`")
    );
    assert_eq!(call(&worker, "use", 1), 13);
    publish(&host, &[user("use"), owner(50), user("also_use")]);
    let names = ["use", "own", "also_use"];
    assert_eq!(names.map(|name| call(&worker, name, 1)), [51, 52, 53]);
    // Users alone can be replaced as they like.
    publish(&host, &[user("use")]);
    assert_eq!(call(&worker, "use", 1), 54);
}

#[test]
fn workers_do_not_see_one_anothers_data() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    publish(&host, &[owner(10), user("use")]);
    let [first, second] = [(); 2].map(|()| attach(&host));
    for round in 1..10 {
        assert_eq!(call(&first, "use", 100), 10 + round * 100);
        assert_eq!(call(&second, "own", 1), 10 + round);
    }
    assert_eq!(call(&attach(&host), "use", 0), 10);
}

#[test]
fn a_fresh_version_starts_with_fresh_data() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let [worker, other] = [(); 2].map(|()| attach(&host));
    let source = "static long calls; static long from[3] = { 5, 6, 7 };
        long count(long x) { return ++calls * 1000 + from[x]++; }";
    publish(&host, &[c("count", source)]);
    assert_eq!(
        [0, 0, 1].map(|x| call(&worker, "count", x)),
        [1005, 2006, 3006]
    );
    // Other publications do not touch it.
    host.publish_adds("unrelated", 1);
    assert_eq!(
        [call(&worker, "count", 2), call(&other, "count", 0)],
        [4007, 1005]
    );
    publish(&host, &[c("count", source)]);
    assert_eq!(
        [call(&worker, "count", 0), call(&other, "count", 1)],
        [1005, 1006]
    );
}

#[test]
fn a_common_symbol_is_one_zeroed_datum_of_each_worker() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let flags = ["-O2", "-fPIC", "-fno-plt", "-fcommon"];
    let files = [
        "long shared[100]; long first(long x) { return shared[99] += x; }",
        "long shared[50]; long second(long x) { return shared[99] += x + shared[0]; }",
    ];
    let options = front::Options {
        cflags: flags.map(str::to_owned).to_vec(),
        ..front::Options::default()
    };
    let compiled = files.map(|source| compile_bytes("common.c", source.into(), &options).unwrap());
    publish(&host, &[UnitSource::new("common", compiled)]);
    let user = "extern long shared[]; long outside(long x) { return shared[99] += x; }";
    publish(&host, &[c("outside", user)]);
    let [worker, other] = [(); 2].map(|()| attach(&host));
    assert_eq!(call(&worker, "first", 1), 1);
    assert_eq!(
        [call(&worker, "second", 1), call(&worker, "outside", 1)],
        [2, 3]
    );
    assert_eq!(call(&other, "outside", 0), 0);
}

#[test]
fn pointers_in_data_are_relocated_in_each_worker() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "static long cells[4] = { 1, 2, 3, 4 };
        static long *chain[4] = { &cells[3], &cells[2] + 0, cells + 1, cells };
        long **start = chain + 1;
        struct node { long value; struct node *next; } a, b = { 2, &a }, a = { 1, &b };
        const char *const names[2] = { \"one\", \"three\" };
        long follow(long x) { return *start[x] * 10 + b.next->next->next->value; }
        long letter(long x) { return names[x][x]; }
        long where(long x) { return (long)chain[x]; }
        long spoil(long x) { start[0] = &cells[x]; return cells[x]; }";
    publish(&host, &[c("pointers", source)]);
    let [first, second] = [(); 2].map(|()| attach(&host));
    let place = |worker, x| call(worker, "where", x);
    assert_eq!(
        place(&first, 0) - place(&second, 0),
        place(&first, 3) - place(&second, 3)
    );
    assert_ne!(place(&first, 0), place(&second, 0));
    assert_eq!(call(&first, "spoil", 0), 1);
    assert_eq!(
        [call(&first, "follow", 0), call(&second, "follow", 0)],
        [11, 31]
    );
    assert_eq!([-1, 1, 2].map(|x| call(&second, "follow", x)), [41, 21, 11]);
    assert_eq!([0, 1].map(|x| call(&second, "letter", x)), [111, 104]);
}

/// A table of functions as C++ makes them, and one of another unit's.
#[test]
fn tables_of_functions_lead_to_the_current_versions() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let shapes = |factor: i64| {
        let source = format!(
            "static long area(long x) {{ return x * {factor}; }}
            long edge(long x) {{ return x + {factor}; }}
            struct table {{ long offset; void *type; long (*ops[2])(long); }};
            const struct table shapes = {{ 0, 0, {{ area, edge }} }};"
        );
        c("shapes", &source)
    };
    let user = "struct table { long offset; void *type; long (*ops[2])(long); };
        extern const struct table shapes; long edge(long);
        static const struct table own = { 1, 0, { edge, edge } };
        struct object { const struct table *table; } object = { &shapes }, plain = { &own };
        long first(long x) { return object.table->ops[0](x); }
        long second(long x) { return object.table->ops[1](x) + plain.table->ops[1](x); }";
    publish(&host, &[shapes(3), c("user", user)]);
    let worker = attach(&host);
    assert_eq!(
        [call(&worker, "first", 5), call(&worker, "second", 5)],
        [15, 16]
    );
    refused(&host, &[shapes(4)]);
    publish(&host, &[shapes(4), c("user", user)]);
    assert_eq!(
        [call(&worker, "first", 5), call(&worker, "second", 5)],
        [20, 18]
    );
}

#[test]
fn a_large_zeroed_array_takes_no_room_in_the_shared_object() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let control = |host: &Host| host.compiler.status().areas[3].used_bytes;
    let before = control(&host);
    let source = "static char big[1 << 20]; long big_at(long x) {
        long sum = 0; for (int i = 0; i < sizeof big; i += 4096) sum += big[i];
        return sum + ++big[x]; }";
    let unit = || c("big", source);
    publish(&host, &[unit()]);
    assert!(control(&host) - before < 4096);
    let status = host.compiler.status();
    assert_eq!(status.units[0].private_bytes >> 20, 1);
    let worker = attach(&host);
    let last = (1 << 20) - 4096;
    assert_eq!(
        [0, last, last].map(|x| call(&worker, "big_at", x)),
        [1, 2, 4]
    );
    let error = refused(
        &host,
        &[UnitSource {
            name: "more".into(),
            ..c("more", "char more[1 << 20];")
        }],
    );
    assert!(error.to_string().contains("segment full: "), "{error}");
    assert_eq!(call(&worker, "big_at", 0), 5);
}

/// The story: memory of a reclaimed version held what its data had been set to.
#[test]
fn reused_private_memory_is_fresh_again() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let worker = attach(&host);
    for round in 0..40 {
        let source = format!(
            "static char big[200000]; static long set = {round};
            long fill(long x) {{ long sum = set; for (int i = 0; i < sizeof big; i++) {{
                sum += big[i]; big[i] = x; }} return sum; }}"
        );
        let mut unit = c("fill", &source);
        unit.reclaim = jitcast::compiler::Reclaim::Yes;
        publish(&host, &[unit]);
        assert_eq!(call(&worker, "fill", 1), round);
        assert_eq!(call(&worker, "fill", 0), round + 200_000);
    }
}

#[test]
fn a_unit_without_anything_in_it_is_published_and_replaced() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let empty = || object_unit("empty", Maker::new().finish());
    assert_eq!(
        publish(&host, &[empty(), c("blank", "")]).functions.len(),
        0
    );
    publish(&host, &[empty()]);
    let units = host.compiler.status().units;
    assert_eq!(
        units
            .iter()
            .map(|unit| unit.name.as_str())
            .collect::<Vec<_>>(),
        ["blank", "empty"]
    );
    publish(&host, &[clif_unit("empty", &adds("f", 1))]);
    publish(&host, &[clif_unit("user", &calls("g", "f", 1))]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "g", 1), 3);
    assert!(matches!(
        refused(&host, &[empty()]),
        PublishError::StillUsed { .. }
    ));
}

#[test]
fn a_unit_of_three_thousand_functions_is_published_and_replaced() {
    const FUNCTIONS: i64 = 3000;
    let scratch = common::scratch::Scratch::new();
    let socket = scratch.path("socket");
    let options = CompilerOptions {
        socket: socket.clone(),
        ..CompilerOptions::default()
    };
    let compiler = std::sync::Arc::new(Compiler::create(&options).unwrap());
    let server = Server::bind(&socket, Policy::default(), front::Options::default()).unwrap();
    let stop = server.stopper().unwrap();
    let serving = {
        let compiler = std::sync::Arc::clone(&compiler);
        std::thread::spawn(move || server.run(compiler))
    };
    let early = remote::attach(&socket);
    for version in 1..3 {
        let functions = (0..FUNCTIONS).map(|number| {
            // mov $number, %eax; add %edi, %eax; ret
            let [a, b, c, d] = (number as u32 * version).to_le_bytes();
            (format!("f{number}"), [0xb8, a, b, c, d, 0x01, 0xf8, 0xc3])
        });
        let object = functions.fold(Maker::new(), |object, (name, code)| {
            object.function(&name, &code)
        });
        let published = compiler
            .publish(&[object_unit("many", object.finish())])
            .unwrap();
        assert_eq!(published.functions.len() as i64, FUNCTIONS);
        let late = remote::attach(&socket);
        for worker in [&early, &late] {
            let guard = worker.enter().unwrap();
            for number in 0..FUNCTIONS {
                let symbol = worker.symbol(&guard, &format!("f{number}")).unwrap();
                let expected = number * i64::from(version) + 1;
                assert_eq!(call_raw(&guard, symbol.stub.get(), 1), expected);
                assert_eq!(call_raw(&guard, symbol.code.get(), 1), expected);
            }
        }
    }
    stop.stop();
    serving.join().unwrap().unwrap();
}

#[test]
fn data_of_an_executables_object_is_its_own() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let source = "long datum = 4; static long hidden[2] = { 1, 2 }; long *pointer = &hidden[1];
        long pie(long x) { return (datum += x) + *pointer + hidden[0]; }";
    publish(&host, &[c_with("pie", source, &["-O2", "-fPIE"])]);
    let worker = attach(&host);
    assert_eq!([call(&worker, "pie", 0), call(&worker, "pie", 5)], [7, 12]);
    publish(&host, &[c_with("pie", source, &["-O2", "-fPIE"])]);
    assert_eq!(call(&worker, "pie", 0), 7);
}

/// Common symbols are merged inside a unit; once one is published, nobody makes it grow.
#[test]
fn a_common_symbol_does_not_grow_once_it_is_published() {
    if !require::cc() {
        return;
    }
    let host = Host::sealed();
    let common = |unit: &str, len: usize| {
        let source = format!(
            "long shared[{len}]; long {unit}(long x) {{ return sizeof shared + (shared[x] += x); }}"
        );
        c_with(unit, &source, &["-O2", "-fPIC", "-fcommon"])
    };
    publish(&host, &[common("one", 10)]);
    let worker = attach(&host);
    assert_eq!(call(&worker, "one", 3), 83);
    for len in [5, 10, 20] {
        let error = refused(&host, &[common("two", len)]).to_string();
        assert!(
            error.contains(
                "`shared` is defined by the unit `two` and by the unit `one`, which is published"
            ),
            "{error}"
        );
    }
    assert_eq!(call(&worker, "one", 3), 86);
}
