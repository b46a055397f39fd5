//! Handles follow their names through whatever is published: each leads to what a fresh lookup finds, though only those whose
//! names have changed are looked up again.

mod common;
#[path = "publish/units.rs"]
mod units;

use std::collections::BTreeMap;

use common::host::Host;
use common::require;
use jitcast::worker::{Function, HostTable, LookupError, Worker};
use proptest::prelude::*;
use units::{Code, adders, attach, attach_with, c, publish, signed};

const NAMES: [&str; 12] = [
    "f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11",
];

extern "C" fn instead(_: i64) -> i64 {
    -1
}

#[derive(Clone, Debug)]
enum Step {
    /// A unit of these functions, which replaces what had their names.
    Publish(Vec<usize>),
    Remove(usize),
    Quarantine(usize),
    Restore(usize),
    /// So many replacements of one function, which the ring alone tells.
    Replace(usize, usize),
    /// A thread enters, and stays inside until the next such step.
    Stay,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    prop_oneof![
        4 => prop::collection::btree_set(name.clone(), 1..4).prop_map(|names| Step::Publish(names.into_iter().collect())),
        2 => name.clone().prop_map(Step::Remove),
        1 => name.clone().prop_map(Step::Quarantine),
        1 => name.clone().prop_map(Step::Restore),
        2 => (name, prop_oneof![Just(1usize), Just(3), Just(70)]).prop_map(|(name, times)| Step::Replace(name, times)),
        1 => Just(Step::Stay),
    ]
}

struct Known {
    host: Host,
    version: i32,
    /// The unit that has each published name.
    homes: BTreeMap<usize, String>,
}

impl Known {
    fn new() -> Self {
        Self {
            host: Host::sealed(),
            version: 0,
            homes: BTreeMap::new(),
        }
    }

    fn publish(&mut self, names: &[usize]) {
        self.version += 1;
        for name in names {
            // A name is defined once.
            self.remove(*name);
        }
        let unit = format!("u{}", self.version);
        let functions: Vec<_> = names
            .iter()
            .map(|name| (NAMES[*name], self.version))
            .collect();
        publish(&self.host, &[signed(adders(&unit, &functions), &NAMES)]);
        self.homes
            .extend(names.iter().map(|name| (*name, unit.clone())));
    }

    fn remove(&mut self, name: usize) {
        let Some(unit) = self.homes.get(&name).cloned() else {
            return;
        };
        self.homes.retain(|_, home| *home != unit);
        self.host.compiler.remove(&[unit]).unwrap();
    }

    fn replace(&mut self, name: usize) {
        let Some(unit) = self.homes.get(&name).cloned() else {
            return;
        };
        self.version += 1;
        let names = self.homes.iter().filter(|(_, home)| **home == unit);
        let functions: Vec<_> = names
            .map(|(name, _)| (NAMES[*name], self.version))
            .collect();
        publish(&self.host, &[signed(adders(&unit, &functions), &NAMES)]);
    }

    fn change(&mut self, step: &Step) {
        let of = |name: &usize| [NAMES[*name].to_owned()];
        let is_published = |name: &usize| self.homes.contains_key(name);
        match step {
            Step::Publish(names) => self.publish(names),
            Step::Remove(name) => self.remove(*name),
            Step::Quarantine(name) if is_published(name) => {
                // It may be already.
                let _ = self.host.compiler.quarantine(&of(name));
            }
            Step::Restore(name) if is_published(name) => {
                // It may not be quarantined.
                let _ = self.host.compiler.restore(&of(name));
            }
            Step::Replace(name, times) => (0..*times).for_each(|_| self.replace(*name)),
            Step::Quarantine(_) | Step::Restore(_) | Step::Stay => {}
        }
    }
}

fn handle(worker: &Worker, name: &str) -> Function<Code> {
    let guard = worker.enter().unwrap();
    worker.function_or(&guard, name, instead as Code).unwrap()
}

/// Each of the handles calls what a new one calls.
fn all_follow(worker: &Worker, handles: &[Function<Code>]) {
    let guard = worker.enter().unwrap();
    for old in handles {
        let new = worker
            .function_or(&guard, old.name(), instead as Code)
            .unwrap();
        let (old_calls, new_calls) = (old.call(&guard, 0), new.call(&guard, 0));
        assert_eq!(
            old_calls,
            new_calls,
            "{} at {}",
            old.name(),
            guard.generation()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn each_handle_leads_to_what_a_lookup_finds(steps in prop::collection::vec(step(), 1..40)) {
        let mut known = Known::new();
        let worker = attach(&known.host);
        let mut handles: Vec<_> = NAMES.iter().map(|name| handle(&worker, name)).collect();
        std::thread::scope(|scope| {
            let mut leave: Option<std::sync::mpsc::Sender<()>> = None;
            for (number, step) in steps.iter().enumerate() {
                known.change(step);
                if matches!(step, Step::Stay) {
                    let (tell, told) = std::sync::mpsc::channel::<()>();
                    let (enter, entered) = std::sync::mpsc::channel();
                    let worker = &worker;
                    scope.spawn(move || {
                        let _guard = worker.enter().unwrap();
                        enter.send(()).unwrap();
                        let _ = told.recv();
                    });
                    entered.recv().unwrap();
                    leave = Some(tell);
                }
                // Several changes may be applied at once; and some handles are new, some are dropped.
                if number % 3 != 1 {
                    all_follow(&worker, &handles);
                }
                if number % 7 == 6 {
                    let name = NAMES[number % NAMES.len()];
                    handles.remove(0);
                    handles.push(handle(&worker, name));
                }
            }
            all_follow(&worker, &handles);
            drop(leave);
        });
        all_follow(&worker, &handles);
    }
}

#[test]
fn a_handle_follows_what_its_function_needs_though_its_own_name_stays_the_same() {
    if !require::cc() {
        return;
    }
    let known = Known::new();
    let host = &known.host;
    let callee = |needs: &str| {
        let source = format!("long {needs}(long); long callee(long x) {{ return {needs}(x); }}");
        signed(c("callee", &source), &["callee"])
    };
    let caller = "long callee(long); long caller(long x) { return callee(x) + 1; }";
    publish(
        host,
        &[
            callee("jitcast_test_there"),
            signed(c("caller", caller), &["caller"]),
        ],
    );
    extern "C" fn there(x: i64) -> i64 {
        x
    }
    let mut table = HostTable::default();
    // SAFETY: the unit takes it for such a function.
    unsafe { table.define_address("jitcast_test_there", there as *const std::ffi::c_void) };
    let worker = attach_with(host, table);
    let caller = handle(&worker, "caller");
    let calls = || caller.call(&worker.enter().unwrap(), 1);
    for _ in 0..2 {
        assert_eq!(calls(), 2);
        // Only `callee` changes, and a host symbol is missing from now on.
        publish(host, &[callee("jitcast_test_missing")]);
        assert_eq!(calls(), -1);
        let looked = worker.function::<Code>(&worker.enter().unwrap(), "caller");
        assert!(matches!(looked, Err(LookupError::MissingImport { .. })));
        publish(host, &[callee("jitcast_test_there")]);
    }
}
