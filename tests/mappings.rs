//! What workers' address spaces look like: bases of their own, shared views, nothing writable and executable.

mod common;

use std::collections::BTreeSet;

use common::child::fork;
use common::host::Host;
use common::object::Maker;
use common::remote::{self, Remote};
use common::{role, smaps};
use jitcast::runtime::{Area, geometry::GRANULE_BYTES};
use rustix::process::{Signal, WaitOptions, waitpid};

const COUNT: usize = 4;

/// The role of a process that forks workers.
const FORKS: &str = "forks workers";

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(remote::ROLE, remote::play), (FORKS, fork_workers)]);
}

/// Forks workers without exec; each reports its base and its faults, and stays until the test is done.
fn fork_workers(socket: &str) {
    let workers: Vec<_> = (0..COUNT)
        .map(|_| {
            fork(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
                let worker = remote::attach(socket);
                assert_eq!(remote::call(&worker, "f", 1), Ok(2));
                let faults = smaps::faults(&worker).join("; ");
                role::report(format_args!("{} {faults}", worker.stats().base.get()));
                loop {
                    std::thread::park();
                }
            })
        })
        .collect();
    while role::next_line().is_some() {}
    for worker in workers {
        rustix::process::kill_process(worker, Signal::KILL).unwrap();
        waitpid(Some(worker), WaitOptions::empty()).unwrap();
    }
}

/// A host with something to run and something in every area.
fn host() -> Host {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    host.fill_every_area();
    host
}

#[test]
fn workers_by_fork_and_by_exec_all_have_bases_of_their_own() {
    let host = host();
    let mut forks = role::start(FORKS, &host.socket);
    let mut bases = BTreeSet::new();
    for _ in 0..COUNT {
        let report = role::next_report(&mut forks);
        let (base, faults) = report.split_once(' ').unwrap();
        assert_eq!(faults, "");
        bases.insert(base.parse::<u64>().unwrap());
    }
    let workers: Vec<_> = (0..COUNT).map(|_| Remote::start(&host.socket)).collect();
    bases.extend(workers.iter().map(Remote::base));
    assert_eq!(bases.len(), 2 * COUNT, "{bases:x?}");
    assert_eq!(host.compiler.worker_count(), 2 * COUNT);
    drop(workers);
    forks.finish().succeeded();
}

#[test]
fn shared_views_are_shared_and_cannot_be_written_in_every_worker() {
    let host = host();
    for _ in 0..COUNT {
        let mut worker = Remote::start(&host.socket);
        assert_eq!(worker.call("f", 1), "2");
        assert_eq!(worker.ask("smaps"), "");
    }
}

/// The compiler's mappings are this process's own here, and those of a worker beside it.
#[test]
fn nothing_in_the_compiler_is_writable_and_executable() {
    let host = host();
    let worker = remote::attach(&host.socket);
    assert_eq!(remote::call(&worker, "f", 1), Ok(2));
    assert_eq!(smaps::faults(&worker), Vec::<String>::new());
    // Some policies forbid such a page altogether; where it can be had, the query has to find it.
    if let Ok(page) = region::alloc(4096, region::Protection::READ_WRITE_EXECUTE) {
        assert_eq!(smaps::writable_and_executable().len(), 1);
        drop(page);
    }
    assert_eq!(smaps::writable_and_executable(), Vec::<String>::new());
}

/// An area becomes accessible by granules of 16 pages of memory; those are a worker's own that published cells lie in.
#[test]
fn slots_have_memory_as_far_as_they_are_published() {
    let host = Host::sealed();
    for functions in [1_u64, 4_000] {
        let object = (0..functions).fold(Maker::new(), |object, number| {
            object.function(&format!("f{functions}_{number}"), &[0xc3])
        });
        let unit = format!("unit of {functions}");
        host.publish_object(&unit, object.finish());
        let worker = remote::attach(&host.socket);
        let mapping = smaps::of_area(&worker, Area::CallCells);
        // One more for the traps; what was published before lies in between.
        let pages = ((functions + 1) * 8).div_ceil(4096) + 1;
        let granule = u64::from(GRANULE_BYTES);
        assert_eq!((mapping.end - mapping.start) % granule, 0);
        assert!(
            mapping.anonymous_kib <= pages * 4,
            "{unit}: {} KiB for {pages} pages",
            mapping.anonymous_kib
        );
    }
}

#[test]
fn the_number_of_mappings_does_not_depend_on_what_is_published() {
    let host = host();
    let mut worker = Remote::start(&host.socket);
    assert_eq!(worker.call("f", 1), "2");
    let before = worker.ask("mappings");
    let used = |area: Area| host.compiler.status().areas[area.index()].used_bytes;
    for unit in 0..20 {
        let functions = (0..50).map(|index| {
            let name = format!("f{unit}_{index}");
            common::scratch::adds(&name, index)
        });
        let text: String = functions.collect();
        host.publish(&format!("unit{unit}"), &text).unwrap();
        let code = [0x90; 8 << 10];
        let object = Maker::new()
            .function(&format!("nops{unit}"), &code)
            .read_only(&format!("datum{unit}"), &code);
        host.publish_object(&format!("bulk{unit}"), object.finish());
    }
    assert_eq!(worker.call("f19_49", 1), "50");
    for area in [Area::Text, Area::ReadOnly] {
        let (name, used) = (area.name(), used(area));
        assert!(
            used > u64::from(GRANULE_BYTES),
            "{name} has grown: {used} bytes"
        );
    }
    assert_eq!(worker.ask("mappings"), before);
    let late = Remote::start(&host.socket).ask("mappings");
    assert_eq!(late, before, "a late worker has as many");
    // Two for each area: what is accessible, and what is not yet.
    assert!(
        before.parse::<usize>().unwrap() <= 2 * Area::COUNT,
        "{before}"
    );
}
