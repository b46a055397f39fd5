//! A worker in an asynchronous host, here on tokio: the connection is watched by the runtime, published functions are called
//! between awaits, and the answer to a request is awaited.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use jitcast::worker::{Endpoint, Worker, WorkerOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How often a compiler process that is gone is looked for.
const LOOK: Duration = Duration::from_millis(100);

const TWICE: &str = "function %twice(i64) -> i64 {
    fn0 = %score(i64) -> i64
block0(v0: i64):
    v1 = call fn0(v0)
    v2 = call fn0(v1)
    return v2
}";

/// Looks after the worker whenever its connection has something to say; that wakes whoever awaits an answer.
pub(crate) async fn look_after(worker: Worker) -> std::io::Result<()> {
    loop {
        // A descriptor of its own for each connection, since the next one is another file under the worker's number.
        let connection = worker.as_fd().try_clone_to_owned()?;
        // SAFETY: owned, so it stays open, and leads to the same file.
        let connection =
            unsafe { AsyncFd::register_with_interest(connection, Interest::READABLE) }?;
        while worker.is_connected() {
            let mut ready = connection.readable().await?;
            // First, so that what comes meanwhile counts as new.
            ready.clear_ready();
            worker.tend();
        }
        drop(connection);
        while !worker.is_connected() {
            tokio::time::sleep(LOOK).await;
            worker.tend();
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = Endpoint::Path(Path::new("/tmp/score.sock"));
    let worker = Worker::attach(endpoint, WorkerOptions::default())?;
    tokio::spawn(look_after(worker.clone()));
    let mut pending = worker.request(TWICE)?;
    pending.ready().await;
    // A guard is neither `Send` nor held across an await.
    let guard = worker.enter()?;
    let unit = pending.unit(&guard)?;
    let twice = unit.function::<extern "C" fn(i64) -> i64>(&guard, "twice")?;
    drop(guard);
    println!("twice(21) = {}", worker.call(&twice, (21,))?);
    Ok(())
}
