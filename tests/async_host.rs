//! Answers that are awaited, by any executor: nothing of the worker runs by itself, so who looks after it wakes who waits.

#[path = "requests/asking.rs"]
mod asking;
mod common;
#[path = "publish/units.rs"]
mod units;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use asking::host;
use common::process::await_some;
use common::scratch::adds;
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
