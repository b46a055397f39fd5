//! A worker in about twenty lines: call the current version, whatever it is by now.

use std::path::Path;
use std::time::Duration;

use jitcast::worker::{Endpoint, Worker, WorkerOptions};

jitcast::worker::embed!(); // exceptions and backtraces pass published code

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = Endpoint::Path(Path::new("/tmp/score.sock"));
    let worker = Worker::attach(endpoint, WorkerOptions::default())?;
    let guard = worker.enter()?;
    let score = worker.function::<extern "C" fn(i64) -> i64>(&guard, "score")?;
    drop(guard);
    loop {
        let guard = worker.enter()?; // the poll: what is new is applied first
        println!(
            "score(21) = {} in generation {}",
            score.call(&guard, 21),
            guard.generation()
        );
        let seen = guard.generation();
        drop(guard);
        if !worker.wait(seen, Some(Duration::from_secs(60))) {
            return Ok(());
        }
    }
}
