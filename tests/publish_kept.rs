//! Replaced units of C are kept, since a host may hold addresses of their locals: what these reach is kept too.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit};
use common::process::Process;
use common::scratch::adds;
use common::{remote, require, role};
use jitcast::compiler::{Reclaim, UnitSource};
use units::{adders, c, call, call_raw, publish};

/// The role of a host that keeps the address of a static function.
const CALLBACK: &str = "keeps a callback";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(CALLBACK, keep_a_callback)]);
}

/// The role: asks `get` once, then calls what it gave.
fn keep_a_callback(target: &str) {
    let worker = remote::attach(target);
    let callback = call(&worker, "get", 0).cast_unsigned();
    role::report("keeps it");
    while role::next_line().is_some() {
        let guard = worker.enter().unwrap();
        role::report(call_raw(&guard, callback, 1));
    }
}

fn start(host: &Host) -> Process {
    let mut process = role::start(CALLBACK, &host.socket);
    assert_eq!(role::next_report(&mut process), "keeps it");
    process
}

fn ask(process: &mut Process) -> String {
    process.send("call");
    role::next_report(process)
}

/// Publishes so much that whatever was retired is reused.
fn reuse_everything(host: &Host) {
    for round in 0..3 {
        let names: Vec<_> = (0..300)
            .map(|index| format!("other{round}_{index}"))
            .collect();
        let others: Vec<_> = names.iter().map(|name| (name.as_str(), -5)).collect();
        publish(host, &[adders(&format!("others{round}"), &others)]);
        let users: String = others
            .iter()
            .map(|(name, _)| format!("long {name}(long);"))
            .collect();
        let taken: Vec<_> = others.iter().map(|(name, _)| *name).collect();
        let table = format!(
            "{users} long (*volatile taken{round})(long); void take{round}(long x) {{ {} }}",
            taken
                .iter()
                .map(|name| format!("taken{round} = {name};"))
                .collect::<String>()
        );
        publish(host, &[c(&format!("takers{round}"), &table)]);
        // What does not fit has everything freed that nobody can be inside.
        let large = common::host::object_unit(
            "large",
            common::object::Maker::new()
                .function("large", &vec![0xcc; 3 << 20])
                .finish(),
        );
        host.compiler.publish(&[large]).unwrap_err();
    }
}

#[test]
fn a_kept_callback_that_calls_a_removed_function_ends_with_a_message() {
    if !require::cc() {
        return;
    }
    for flags in [&["-O2", "-fPIC", "-fno-plt"][..], &["-O2", "-fPIC"]] {
        let host = Host::sealed();
        publish(&host, &[clif_unit("g", &adds("g", 100))]);
        let source = "long g(long); static long callback(long x) { return g(x) + 1; }
            long get(long x) { return (long)callback + x; }";
        publish(&host, &[units::c_with("u", source, flags)]);
        let mut process = start(&host);
        assert_eq!(ask(&mut process), "102");
        publish(&host, &[c("u", "long get(long x) { return x; }")]);
        publish(&host, &[clif_unit("g", &adds("g", 200))]);
        assert_eq!(ask(&mut process), "202", "kept code follows its callees");
        publish(&host, &[clif_unit("g", &adds("h", 1))]);
        reuse_everything(&host);
        process.send("call");
        let finished = process.finish();
        assert_eq!(finished.signal, Some(libc::SIGABRT), "{finished:#?}");
        assert!(
            finished.stderr.contains("is not published any more"),
            "{finished:#?}"
        );
    }
}

/// The story: memory of a unit that may be reclaimed was reused under kept code that read its data.
#[test]
fn a_kept_callback_reads_the_data_that_it_was_linked_against() {
    if !require::cc() {
        return;
    }
    for reclaim in [Reclaim::Auto, Reclaim::Yes] {
        let host = Host::sealed();
        let data = |value: i64| UnitSource {
            reclaim,
            ..c("data", &format!("long datum = {value};"))
        };
        let source = "extern long datum; static long callback(long x) { return datum += x; }
            long get(long x) { return (long)callback + x; }";
        publish(&host, &[data(10), c("u", source)]);
        let mut process = start(&host);
        assert_eq!(ask(&mut process), "11");
        publish(&host, &[data(500), c("u", source)]);
        assert_eq!(ask(&mut process), "12");
        reuse_everything(&host);
        assert_eq!(ask(&mut process), "13");
        let kept = host.compiler.status().kept;
        assert!(kept.iter().any(|kept| kept.unit == "data"), "{kept:?}");
    }
}
