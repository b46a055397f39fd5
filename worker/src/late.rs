//! A worker whose compiler process may not be there yet: the host's own functions serve until it is.
//!
//! Invariant: nothing here waits but what says so. A connection is made without waiting, the answer is taken once it is there,
//! and whoever looks meanwhile goes on with the host's functions. Once the worker is attached it stays so. A fork waits for who is
//! attaching, so a child finds it done or not begun.

use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use crate::attach::{self, Asking, Endpoint, Home};
use crate::error::{AttachError, LookupError};
use crate::fork;
use crate::function_type::FunctionType;
use crate::guard::Guard;
use crate::handle::{Function, HandleCell};
use crate::link::{ANSWER, FIRST_BACKOFF, LAST_BACKOFF, readable_within};
use crate::log::Event;
use crate::worker::{Setup, Worker, WorkerOptions};

/// How long [`LateWorker::join`] sleeps between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// A worker that attaches as soon as its compiler process is there. Cheap to clone.
///
/// ```
/// # use std::path::Path;
/// use jitcast_worker::{Endpoint, LateWorker, WorkerOptions};
///
/// extern "C" fn own_score(value: i64) -> i64 {
///     2 * value
/// }
///
/// let endpoint = Endpoint::Path(Path::new("/run/nobody-listens-here.sock"));
/// let worker = LateWorker::attach(endpoint, WorkerOptions::default());
/// let score = worker.function_or("score", own_score as extern "C" fn(i64) -> i64);
/// assert_eq!(worker.call(&score, (21,)), 42); // its own
/// ```
#[derive(Clone, Debug)]
pub struct LateWorker(Arc<Late>);

#[derive(Debug)]
pub(crate) struct Late {
    setup: Setup,
    joined: OnceLock<Worker>,
    joining: Mutex<Joining>,
    /// Handles that were made meanwhile.
    early: Mutex<Vec<Weak<HandleCell>>>,
}

/// The workers of this process that attach later.
pub(crate) type List = Vec<Weak<Late>>;

static WORKERS: Mutex<List> = Mutex::new(Vec::new());

thread_local! {
    /// What this thread is attaching: a constructor that runs meanwhile may fork.
    static ATTACHING: Cell<*const Late> = const { Cell::new(core::ptr::null()) };
}

/// Keeps the list of workers as it is, for a fork.
pub(crate) fn lock_list() -> MutexGuard<'static, List> {
    WORKERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The workers of this process that attach later.
pub(crate) fn workers() -> Vec<Arc<Late>> {
    lock_list().iter().filter_map(Weak::upgrade).collect()
}

/// Keeps a worker as it is, for a fork.
pub(crate) struct Held<'a> {
    _early: MutexGuard<'a, Vec<Weak<HandleCell>>>,
    _joining: MutexGuard<'a, Joining>,
}

/// How far attaching has come.
#[derive(Debug)]
pub(crate) struct Joining {
    /// Where the compiler process is looked for; `None`: nowhere, the connection was handed over.
    home: Option<Home>,
    step: Step,
    /// Why the last try came to nothing.
    why_not: Option<AttachError>,
    backoff: Duration,
}

#[derive(Debug)]
enum Step {
    /// It is looked for from then on.
    Look(Instant),
    /// A connection was handed over.
    Given(OwnedFd),
    /// It is there, and has been asked, by the process of this number: a forked child has no part in that.
    Asked {
        asking: Asking,
        until: Instant,
        pid: u32,
    },
    /// There is nobody to ask.
    Never,
}

/// A function that a [`LateWorker`] finds once it is attached. Until then, and whenever the published one does not serve, the
/// host's own does.
///
/// ```
/// # use jitcast_worker::{LateFunction, LateWorker};
/// type Score = extern "C" fn(i64) -> i64;
///
/// fn difference(worker: &LateWorker, low: &LateFunction<Score>, high: &LateFunction<Score>) -> i64 {
///     let guard = worker.enter(); // `None`, while it has not attached: then both are the host's own
///     high.call(guard.as_ref(), (21,)) - low.call(guard.as_ref(), (21,))
/// }
/// ```
pub struct LateFunction<F> {
    name: String,
    fallback: F,
    handle: OnceLock<Function<F>>,
    /// The generation at which the name was found to be something else.
    failed: AtomicU64,
}

impl LateWorker {
    /// Attaches once the compiler process is there, which is looked for whenever a guard is entered or [`LateWorker::tend`] is
    /// called, less and less often, every five seconds in the end. Returns at once.
    pub fn attach(endpoint: Endpoint<'_>, options: WorkerOptions) -> Self {
        let home = Home::of(&endpoint);
        let step = match endpoint {
            Endpoint::Fd(socket) => Step::Given(socket),
            _ => Step::Look(Instant::now()),
        };
        let late = Self(Arc::new(Late {
            setup: Setup::new(options),
            joined: OnceLock::new(),
            joining: Mutex::new(Joining {
                home,
                step,
                why_not: None,
                backoff: FIRST_BACKOFF,
            }),
            early: Mutex::default(),
        }));
        fork::prepare();
        let mut workers = lock_list();
        workers.retain(|worker| worker.strong_count() > 0);
        workers.push(Arc::downgrade(&late.0));
        drop(workers);
        late.tend();
        late
    }

    /// The worker, once it is attached.
    pub fn worker(&self) -> Option<&Worker> {
        self.0.joined.get()
    }

    /// Enters a guard of the worker. `None`: it is not attached yet, or cannot be entered; then the host's functions serve
    /// ([`LateFunction::call`]).
    #[inline]
    pub fn enter(&self) -> Option<Guard<'_>> {
        if self.worker().is_none() {
            self.tend();
        }
        self.worker()?.enter().ok()
    }

    /// The function `name`, or `fallback` until it is there and whenever it does not serve ([`Worker::function_or`]).
    pub fn function_or<F: FunctionType>(&self, name: &str, fallback: F) -> LateFunction<F> {
        LateFunction {
            name: name.to_owned(),
            fallback,
            handle: OnceLock::new(),
            failed: AtomicU64::new(0),
        }
    }

    /// Calls what serves as `function` now, under a guard of its own.
    #[inline]
    pub fn call<F: FunctionType>(&self, function: &LateFunction<F>, args: F::Args) -> F::Output {
        let guard = self.enter();
        function.call(guard.as_ref(), args)
    }

    /// Looks for the compiler process, or, once attached, does what [`Worker::tend`] does. Never waits.
    pub fn tend(&self) {
        if let Some(worker) = self.worker() {
            return worker.tend();
        }
        let mut joining = match self.0.joining.try_lock() {
            Ok(joining) => joining,
            Err(TryLockError::Poisoned(joining)) => joining.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // Another thread may have come first.
        if self.worker().is_some() {
            return;
        }
        let outer = ATTACHING.replace(Arc::as_ptr(&self.0));
        let mut events = Vec::new();
        if let Some(worker) = joining.go_on(&self.0.setup, &mut events) {
            events.extend(self.join_with(worker));
        }
        ATTACHING.set(outer);
        drop(joining);
        self.0.setup.log.tell(&events);
    }

    /// Is attached from now on, and so are handles that were made before. Nobody can be inside yet, so nobody sees them change.
    fn join_with(&self, worker: Worker) -> Vec<Event> {
        let mut events = Vec::new();
        let mut early = self.0.lock_early();
        if let Ok(guard) = worker.enter() {
            for cell in early.iter().filter_map(Weak::upgrade) {
                if let Err(why) = worker.adopt_handle(&guard, &cell) {
                    let why = why.to_string();
                    events.push(Event::Unfit { why });
                }
            }
        }
        early.clear();
        let _ = self.0.joined.set(worker);
        events
    }

    /// Keeps a handle until it can follow: whether the worker has not attached by now.
    pub(crate) fn keep_early(&self, cell: &Arc<HandleCell>) -> bool {
        let mut early = self.0.lock_early();
        let waits = self.worker().is_none();
        if waits {
            early.retain(|known| known.strong_count() > 0);
            early.push(Arc::downgrade(cell));
        }
        waits
    }

    /// Waits until the worker is attached, or `timeout` passes.
    ///
    /// ```
    /// # use std::path::Path;
    /// # use std::time::Duration;
    /// # use jitcast_worker::{Endpoint, LateWorker, WorkerOptions};
    /// let endpoint = Endpoint::Path(Path::new("/run/nobody-listens-here.sock"));
    /// let worker = LateWorker::attach(endpoint, WorkerOptions::default());
    /// assert!(worker.join(Some(Duration::from_millis(1))).is_none());
    /// println!("{}", worker.why_not().unwrap());
    /// ```
    pub fn join(&self, timeout: Option<Duration>) -> Option<&Worker> {
        // One that cannot be represented never comes.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            self.tend();
            let late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            if late || self.worker().is_some() {
                return self.worker();
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Why the last try to attach came to nothing; `None`: there was none, or it has not.
    pub fn why_not(&self) -> Option<String> {
        let joining = self.0.joining.lock();
        let joining = joining.unwrap_or_else(PoisonError::into_inner);
        joining.why_not.as_ref().map(AttachError::to_string)
    }
}

impl Late {
    /// Waits for who is attaching. `None`: that is this thread, which goes on in the child, too.
    pub(crate) fn hold(&self) -> Option<Held<'_>> {
        let attaching = ATTACHING.try_with(Cell::get);
        if attaching.is_ok_and(|attaching| core::ptr::eq(attaching, self)) {
            return None;
        }
        let joining = self.joining.lock();
        Some(Held {
            _joining: joining.unwrap_or_else(PoisonError::into_inner),
            _early: self.lock_early(),
        })
    }

    fn lock_early(&self) -> MutexGuard<'_, Vec<Weak<HandleCell>>> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Joining {
    /// Does what can be done without waiting: the worker, if that was all. Adds what there is to tell.
    fn go_on(&mut self, setup: &Setup, events: &mut Vec<Event>) -> Option<Worker> {
        let now = Instant::now();
        let result = match core::mem::replace(&mut self.step, Step::Never) {
            Step::Look(next) if next > now => {
                self.step = Step::Look(next);
                return None;
            }
            Step::Never => return None,
            Step::Look(_) => self
                .connect()
                .and_then(|socket| self.ask(setup, socket, now)),
            Step::Given(socket) => self.ask(setup, socket, now),
            // The parent's.
            Step::Asked { pid, .. } if pid != std::process::id() => {
                self.step = self.again(now);
                return None;
            }
            Step::Asked { asking, until, pid } => self.answer(setup, (asking, until, pid), now),
        };
        match result {
            Ok(worker) => worker,
            Err(why) => {
                events.push(Event::NotAttached {
                    why: why.to_string(),
                });
                self.why_not = Some(why);
                self.step = self.again(now);
                None
            }
        }
    }

    fn connect(&self) -> Result<OwnedFd, AttachError> {
        let home = self.home.as_ref().expect("only who has one looks");
        attach::connect_now(home)
    }

    fn ask(
        &mut self,
        setup: &Setup,
        socket: OwnedFd,
        now: Instant,
    ) -> Result<Option<Worker>, AttachError> {
        // In a forked child it is not registered, whatever its parent was.
        setup.barriers.register_again();
        self.step = Step::Asked {
            asking: Asking::begin(socket, setup)?,
            until: now + ANSWER,
            pid: std::process::id(),
        };
        Ok(None)
    }

    fn answer(
        &mut self,
        setup: &Setup,
        (asking, until, pid): (Asking, Instant, u32),
        now: Instant,
    ) -> Result<Option<Worker>, AttachError> {
        if !readable_within(asking.socket().as_fd(), Duration::ZERO) {
            if until < now {
                return Err(AttachError::Protocol {
                    cause: std::io::ErrorKind::TimedOut.into(),
                });
            }
            self.step = Step::Asked { asking, until, pid };
            return Ok(None);
        }
        let attachment = asking.finish(self.home.clone(), setup)?;
        Worker::begin(attachment, setup).map(Some)
    }

    /// The next look, not before twice as long has passed as last time.
    fn again(&mut self, now: Instant) -> Step {
        let next = now + self.backoff;
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
        match self.home {
            Some(_) => Step::Look(next),
            None => Step::Never,
        }
    }
}

impl<F: FunctionType> LateFunction<F> {
    /// Calls what serves now: the published function under `guard`, or the host's.
    #[inline]
    pub fn call(&self, guard: Option<&Guard<'_>>, args: F::Args) -> F::Output {
        let found = guard.and_then(|guard| Some((self.handle(guard)?, guard)));
        match found {
            Some((handle, guard)) => F::call_published(handle, guard, args),
            None => self.fallback.call(args),
        }
    }

    #[inline]
    fn handle(&self, guard: &Guard<'_>) -> Option<&Function<F>> {
        self.handle.get().or_else(|| self.find_once(guard))
    }

    /// The handle, looked for once in each generation.
    #[cold]
    fn find_once(&self, guard: &Guard<'_>) -> Option<&Function<F>> {
        let is_new = self.failed.load(Ordering::Relaxed) != guard.generation();
        is_new.then(|| self.find(guard).ok()).flatten()
    }

    /// The handle, under a guard of the worker that is attached by now.
    ///
    /// # Errors
    /// [`LookupError`], if the name is something else; then the host's function serves.
    pub fn find(&self, guard: &Guard<'_>) -> Result<&Function<F>, LookupError> {
        if let Some(handle) = self.handle.get() {
            return Ok(handle);
        }
        let found = guard.worker().function_or(guard, &self.name, self.fallback);
        if found.is_err() {
            self.failed.store(guard.generation(), Ordering::Relaxed);
        }
        found.map(|handle| self.handle.get_or_init(|| handle))
    }
}

impl<F> fmt::Debug for LateFunction<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LateFunction");
        shown.field("name", &self.name).finish_non_exhaustive()
    }
}
