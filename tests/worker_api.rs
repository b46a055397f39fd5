//! What a host in Rust says to a worker: calls without a guard in sight.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::Host;
use jitcast::worker::Polled;
use units::{attach, function};

#[test]
fn a_call_is_made_without_a_guard_in_sight_and_follows_updates() {
    let host = Host::sealed();
    host.publish_adds("score", 1);
    let worker = attach(&host);
    let guard = worker.enter().unwrap();
    let score = function(&worker, &guard, "score").unwrap();
    drop(guard);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 22);
    let generation = host.publish_adds("score", 2);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 23);
    // No guard is left behind.
    assert_eq!(worker.poll().unwrap(), Polled::Current { generation });
    // Inside another guard it is of that one's generation.
    let guard = worker.enter().unwrap();
    host.publish_adds("score", 3);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 23);
    drop(guard);
    assert_eq!(worker.call(&score, (21,)).unwrap(), 24);
}
