//! Answers that are awaited, by any executor: nothing of the worker runs by itself, so who looks after it wakes who waits.

#[path = "requests/asking.rs"]
mod asking;
mod common;
#[allow(dead_code, reason = "its program is another one")]
#[path = "../examples/async_worker.rs"]
mod example;
#[path = "publish/units.rs"]
mod units;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use asking::host;
use common::process::{PATIENCE, await_some};
use common::remote;
use common::scratch::{Scratch, adds};
use common::serve::Serve;
use jitcast::worker::{RequestError, Worker};
use units::{Code, attach};

/// Counts how often it was woken, and uses the worker meanwhile.
struct Woken {
    worker: Worker,
    times: AtomicU32,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        // This waits for ever while somebody has a hold of the connection.
        self.worker.is_connected();
        self.times.fetch_add(1, Ordering::Relaxed);
    }
}

fn waking(worker: &Worker) -> (Arc<Woken>, Waker) {
    let woken = Arc::new(Woken {
        worker: worker.clone(),
        times: AtomicU32::new(0),
    });
    (Arc::clone(&woken), Waker::from(woken))
}

#[test]
fn whoever_looks_after_the_worker_wakes_who_awaits_an_answer() {
    let host = host();
    let worker = attach(&host);
    let mut pending = worker.request(&adds("one", 1)).unwrap();
    let (woken, waker) = waking(&worker);
    {
        let mut ready = pin!(pending.ready());
        let mut context = Context::from_waker(&waker);
        if ready.as_mut().poll(&mut context).is_pending() {
            await_some("to be woken", || {
                worker.tend();
                (woken.times.load(Ordering::Relaxed) > 0).then_some(())
            });
        }
        assert_eq!(ready.as_mut().poll(&mut context), Poll::Ready(()));
    }
    let guard = worker.enter().unwrap();
    let unit = pending.unit(&guard).unwrap();
    let one = unit.function::<Code>(&guard, "one").unwrap();
    assert_eq!(one.call(&guard, 5), 6);
}

#[test]
fn who_awaits_an_answer_that_cannot_come_is_woken_too() {
    let host = host();
    let worker = attach(&host);
    let mut pending = worker.request(&adds("one", 1)).unwrap();
    let (woken, waker) = waking(&worker);
    {
        let mut ready = pin!(pending.ready());
        let mut context = Context::from_waker(&waker);
        let waits = ready.as_mut().poll(&mut context).is_pending();
        drop(host);
        if waits {
            await_some("to be woken", || {
                worker.tend();
                (woken.times.load(Ordering::Relaxed) > 0).then_some(())
            });
        }
        assert_eq!(ready.as_mut().poll(&mut context), Poll::Ready(()));
    }
    let guard = worker.enter().unwrap();
    // The answer may have been faster than the end.
    assert!(matches!(
        pending.unit(&guard),
        Ok(_) | Err(RequestError::Lost | RequestError::NotConnected)
    ));
}

/// A host on tokio, as in the example.
#[tokio::test]
async fn a_runtime_watches_the_connection_across_compiler_processes() {
    let (scratch, journal) = (Scratch::new(), Scratch::new());
    let socket = scratch.path("socket");
    let options = ["--journal", &journal.path("journal")];
    let serve = Serve::start_at(&socket, &options);
    let worker = remote::attach(&socket);
    let watching = tokio::spawn(example::look_after(worker.clone()));
    assert_eq!(answer(&worker, "one", 1).await, 6);
    drop(serve);
    let patience = tokio::time::timeout(PATIENCE, async {
        while worker.is_connected() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    patience.await.expect("the loss is noticed");
    let _serve = Serve::start_at(&socket, &options);
    let patience = tokio::time::timeout(PATIENCE, async {
        while !worker.is_connected() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    patience.await.expect("the next one is found");
    assert_eq!(answer(&worker, "two", 2).await, 7);
    assert!(!watching.is_finished());
}

/// Asks for a function that adds `bonus`, and calls it with 5.
async fn answer(worker: &Worker, name: &str, bonus: i64) -> i64 {
    let mut pending = worker.request(&adds(name, bonus)).unwrap();
    // First, since whoever wakes also sees what nobody else would have been woken for.
    tokio::select! {
        biased;
        () = tokio::time::sleep(PATIENCE) => panic!("nobody was woken for an answer"),
        () = pending.ready() => {}
    }
    let guard = worker.enter().unwrap();
    let unit = pending.unit(&guard).unwrap();
    let function = unit.function::<Code>(&guard, name).unwrap();
    function.call(&guard, 5)
}
