//! Requests: CLIF that the compiler process compiles for this worker.
//!
//! A request is a frame over the worker's connection; its reply is found by a number. Nothing here waits but what says so.
//! Invariant: what a reply grants is either bound or given back.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use jitcast_runtime::wire::{AskRequest, FrameKind};
use zerocopy::IntoBytes;

use crate::asked::{AskedUnit, Lease};
use crate::error::RequestError;
use crate::guard::Guard;
use crate::link::{Answer, readable_within};
use crate::worker::Worker;

/// How long a wait goes on before it looks whether the compiler process is there.
const LOOK: Duration = Duration::from_millis(100);

/// A request that is under way. Dropped, it is given up.
///
/// ```
/// # use jitcast_worker::Worker;
/// fn twice(worker: &Worker) -> Result<i64, Box<dyn std::error::Error>> {
///     let mut pending = worker.request(
///         "function %twice(i64) -> i64 {
///          block0(v0: i64):
///              v1 = iadd v0, v0
///              return v1
///          }",
///     )?;
///     pending.wait(None); // or look now and then
///     let guard = worker.enter()?;
///     let unit = pending.unit(&guard)?;
///     let twice = unit.function::<extern "C" fn(i64) -> i64>(&guard, "twice")?;
///     Ok(twice.call(&guard, 21))
/// }
/// ```
#[derive(Debug)]
pub struct Pending {
    worker: Worker,
    id: u64,
    given_up: Arc<AtomicBool>,
    bound: Option<(Arc<Lease>, String)>,
}

impl Worker {
    /// Asks the compiler process to compile `clif` for this worker: functions that may call published functions and host
    /// symbols, but have no names for anybody else. Equal texts of many workers are compiled once. Does not wait: [`Worker::connection`] can be read from when something has
    /// come.
    ///
    /// # Errors
    /// [`RequestError::NotConnected`], [`RequestError::Unread`], [`RequestError::WhileStarting`]; what the compiler process says
    /// comes with [`Pending::unit`].
    pub fn request(&self, clif: &str) -> Result<Pending, RequestError> {
        let inner = self.inner();
        if inner.starting().here().is_some() {
            return Err(RequestError::WhileStarting);
        }
        self.tend();
        let state = inner
            .lock_state()
            .map_err(|_| RequestError::WhileStarting)?;
        let mut talk = inner.link().talk();
        if !talk.is_attached() {
            return Err(RequestError::NotConnected);
        }
        if talk.has_unsent() {
            return Err(RequestError::Unread);
        }
        inner.tell_asked(&state, &mut talk);
        drop(state);
        let given_up = Arc::<AtomicBool>::default();
        let id = talk.begin_request(&given_up);
        let mut payload = AskRequest { id }.as_bytes().to_vec();
        payload.extend_from_slice(clif.as_bytes());
        inner.link().send(&mut talk, FrameKind::Ask, &payload);
        Ok(Pending {
            worker: self.clone(),
            id,
            given_up,
            bound: None,
        })
    }
}

impl Pending {
    /// Whose request it is.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Whether the answer is there: a unit, or why there is none. Never waits.
    pub fn is_ready(&self) -> bool {
        if self.bound.is_some() {
            return true;
        }
        self.worker.tend();
        let talk = self.worker.inner().link().try_talk();
        talk.is_ok_and(|talk| talk.answer(self.id) != Some(Answer::None))
    }

    /// Waits for the answer, in any executor. Nothing here runs by itself, so this is woken by whoever looks after the worker:
    /// [`Worker::tend`], called when the connection ([`AsFd`](std::os::fd::AsFd)) is readable or has hung up, and guards, now and
    /// then.
    pub fn ready(&self) -> impl Future<Output = ()> + '_ {
        poll_fn(|context| self.poll_ready(context))
    }

    fn poll_ready(&self, context: &Context<'_>) -> Poll<()> {
        if self.is_ready() {
            return Poll::Ready(());
        }
        let Ok(mut talk) = self.worker.inner().link().try_talk() else {
            // Somebody is at the connection, for a moment.
            context.waker().wake_by_ref();
            return Poll::Pending;
        };
        if talk.await_answer(self.id, context.waker()) {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Waits for the answer, or until `timeout` passes: whether it is there.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // One that cannot be represented never comes.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if self.is_ready() {
                return true;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let patience = left.map_or(LOOK, |left| left.min(LOOK));
            if !readable_within(self.worker.connection(), patience) {
                // It may have hung up, which is seen at once.
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The unit, bound in this worker: to be asked inside a guard, which sees what was published for the request.
    ///
    /// # Errors
    /// [`RequestError`]. After [`RequestError::NotReady`] and [`RequestError::Outdated`] the answer can still be had.
    pub fn unit(&mut self, guard: &Guard<'_>) -> Result<AskedUnit, RequestError> {
        let inner = self.worker.shared();
        assert!(core::ptr::eq(guard.worker().inner(), self.worker.inner()));
        if let Some((lease, name)) = &self.bound {
            return Ok(AskedUnit::new(
                &self.worker,
                Arc::clone(lease),
                name.clone(),
            ));
        }
        if inner.starting().here().is_some() {
            return Err(RequestError::WhileStarting);
        }
        let answer = inner.link().talk().answer(self.id);
        let (number, needed) = match answer {
            None => return Err(RequestError::Forked),
            Some(Answer::None) => return Err(RequestError::NotReady),
            Some(Answer::Failed(error)) => return Err(error),
            Some(Answer::Ready { unit, generation }) => (unit, generation),
        };
        let generation = guard.generation();
        if generation < needed {
            return Err(RequestError::Outdated { generation, needed });
        }
        let mut state = inner
            .lock_state()
            .map_err(|_| RequestError::WhileStarting)?;
        let (lease, name) = inner.bind_asked(&mut state, guard, number)?;
        // The state is held, so that nobody states or releases in between.
        let granted = inner.link().talk().take_grant(self.id, &lease);
        drop(state);
        if !granted {
            return Err(RequestError::Lost);
        }
        self.bound = Some((Arc::clone(&lease), name.clone()));
        Ok(AskedUnit::new(&self.worker, lease, name))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        // If somebody else is at the connection, whoever is there next sees to it.
        let link = self.worker.inner().link();
        if let Ok(mut talk) = link.try_talk() {
            link.tidy(&mut talk);
        }
    }
}
