//! A function is replaced again and again under workers of every kind: callers with two threads each, one that forks, one that
//! is idle, one that is stopped for a while. Memory does not grow.
//!
//! The environment variable JITCAST_SWAPS says how often; what was seen is printed.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::time::Instant;

use common::child::{self, succeeded};
use common::host::Host;
use common::process::{Process, await_some};
use common::{remote, role};
use jitcast::compiler::CompilerOptions;
use jitcast::worker::{EnterError, Function, Worker};
use rustix::process::Signal;
use units::{Code, adders, handle, held_bytes, publish};

const CALLER: &str = "calls from two threads";
const FORKER: &str = "forks";
const IDLER: &str = "looks once";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(CALLER, call), (FORKER, fork), (IDLER, idle)]);
}

/// What the last version returns.
const END: i32 = -1;

/// Calls until the last version comes: how many versions it saw, and the newest. Each has to be of its guard's generation.
fn call_to_the_end(worker: &Worker, f: &Function<Code>, most: u64) -> (u64, i64) {
    let (mut distinct, mut newest) = (0, 0);
    let mut first = None;
    for calls in 0.. {
        let guard = worker.enter().unwrap();
        let number = f.call(&guard, 0);
        if number == i64::from(END) || calls == most {
            break;
        }
        let first = *first.get_or_insert(guard.generation().cast_signed() - number);
        assert_eq!(number, guard.generation().cast_signed() - first);
        assert!(number >= newest, "{number} after {newest}");
        distinct += u64::from(number > newest);
        newest = number;
    }
    (distinct, newest)
}

fn call(socket: &str) {
    let worker = remote::attach(socket);
    let f = handle(&worker, "f");
    role::report("calls");
    let report = |(distinct, newest)| role::report(format_args!("{distinct} {newest}"));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| call_to_the_end(&worker, &f, u64::MAX));
        report(call_to_the_end(&worker, &f, u64::MAX));
        report(other.join().unwrap());
    });
}

/// Every child calls a little.
fn fork(socket: &str) {
    let worker = remote::attach(socket);
    let f = handle(&worker, "f");
    role::report("forks");
    let mut children = 0;
    loop {
        if f.call(&worker.enter().unwrap(), 0) == i64::from(END) {
            role::report(children);
            return;
        }
        succeeded(child::fork(|| {
            // Nothing is ready for a child if the compiler process is too slow.
            if !matches!(worker.enter(), Err(EnterError::Forked)) {
                call_to_the_end(&worker, &f, 100);
            }
        }));
        children += 1;
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn idle(socket: &str) {
    let worker = remote::attach(socket);
    worker.poll().unwrap();
    role::report("idle");
    role::next_line();
}

/// The private memory of a process, bytes.
fn private_bytes(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() * 1024
}

/// What everybody takes, bytes: used and not retired memory of the segment, backed memory of it, and private memory.
#[derive(Clone, Debug)]
struct Memory {
    held: u64,
    backed: u64,
    processes: Vec<u64>,
}

fn memory(host: &Host, processes: &[Process]) -> Memory {
    let status = host.compiler.status();
    let own = std::process::id().cast_signed();
    let pids = processes.iter().map(Process::pid);
    Memory {
        held: held_bytes(&status),
        backed: status.backed_bytes,
        processes: pids.chain([own]).map(private_bytes).collect(),
    }
}

#[test]
fn memory_does_not_grow_however_often_a_function_is_replaced() {
    let swaps: i32 = std::env::var("JITCAST_SWAPS").map_or(5_000, |text| text.parse().unwrap());
    let begin = Instant::now();
    let host = Host::with(CompilerOptions {
        reclaim_above_bytes: 64 << 10,
        ..CompilerOptions::default()
    });
    let swap = |number| drop(publish(&host, &[adders("f", &[("f", number)])]));
    swap(1);
    let roles = [CALLER, CALLER, CALLER, CALLER, FORKER, IDLER];
    let mut processes = roles.map(|role| {
        let mut process = role::start(role, &host.socket);
        role::next_report(&mut process);
        process
    });
    // Everybody, stopped or not, has applied what is published.
    let catch_up = || {
        let newest = host.compiler.status().generation;
        let callers: Vec<_> = processes[..4].iter().map(Process::pid).collect();
        await_some("every caller at the newest version", || {
            let known = host.compiler.status().workers;
            let has = |pid| {
                known
                    .iter()
                    .any(|worker| worker.pid == pid && worker.applied >= newest)
            };
            callers.iter().all(|pid| has(*pid)).then_some(())
        });
    };
    let (stop, go_on) = (swaps / 4, swaps / 4 + 1000);
    let mut early = None;
    for number in 2..=swaps {
        swap(number);
        if number == 1000 {
            catch_up();
            early = Some(memory(&host, &processes));
        } else if number == stop {
            processes[3].signal(Signal::STOP);
        } else if number == go_on {
            processes[3].signal(Signal::CONT);
        } else if number % (swaps / 400).max(64) == 0 && !(stop..go_on).contains(&number) {
            // So that everybody sees many versions.
            catch_up();
        }
    }
    catch_up();
    // What the one that was stopped had held is free once it is looked for.
    for number in swaps + 1..swaps + 1000 {
        swap(number);
    }
    catch_up();
    let (early, late) = (
        early.expect("more than 1,000 swaps"),
        memory(&host, &processes),
    );
    // The directory's depth grows with the numbers of units, by a node for each factor of 32.
    assert!(late.held <= early.held + 256, "{early:?} and {late:?}");
    // A page of the directory more or less, what the allocators of processes do, and what the stopped one held.
    assert!(
        late.backed <= early.backed + (4 << 20),
        "{early:?} and {late:?}"
    );
    for (early, late) in early.processes.iter().zip(&late.processes) {
        assert!(*late <= early + (4 << 20), "{early} and {late} bytes");
    }
    swap(END);
    let mut seen = Vec::new();
    for caller in &mut processes[..4] {
        seen.extend([(); 2].map(|()| role::next_report(caller)));
    }
    for counts in &seen {
        let (distinct, newest) = counts.split_once(' ').unwrap();
        assert!(distinct.parse::<i32>().unwrap() >= swaps / 100, "{seen:?}");
        assert!(
            newest.parse::<i64>().unwrap() >= i64::from(swaps),
            "{seen:?}"
        );
    }
    let children = role::next_report(&mut processes[4]);
    assert!(children.parse::<u32>().unwrap() > 10, "{children}");
    println!(
        "{swaps} swaps in {:.1} s, {children} children; seen by each thread (distinct, newest): {}",
        begin.elapsed().as_secs_f64(),
        seen.join(", ")
    );
    println!("after 1,000 {early:?}\nat the end  {late:?}");
}
