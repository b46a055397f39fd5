//! A worker: one process's attachment to a segment.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

use jitcast_runtime::header::{Control, Header};
use jitcast_runtime::mailbox::{Mailbox, Word};
use jitcast_runtime::records::{ImportRecord, Root, trailing_text};
use jitcast_runtime::window::Window;
use jitcast_runtime::{Area, Geometry, ImportId, SegmentOffset, WorkerAddr};
use jitcast_runtime::{index, module, sys};
use rustix::thread::futex;

use crate::asked::Bound;
use crate::attach::{self, Attachment, Endpoint};
use crate::barrier::Barriers;
use crate::canary::{Canaries, Seats};
use crate::crash::{self, CrashReports};
use crate::debug::{DebugOptions, Tools};
use crate::error::{AttachError, LookupError};
use crate::fault::{Fault, seeded};
use crate::fork;
use crate::handles::Handles;
use crate::host::HostTable;
use crate::imports::Imports;
use crate::life::LifePage;
use crate::link::Link;
use crate::log::{Event, Log};
use crate::pin_slot::PinSlot;
use crate::renew::Renewal;
use crate::startup::{FailedUnit, Starting, Units};
use crate::thread_record;
use crate::transition::Transitions;
use crate::trap;
use crate::unwind::Unwinding;
use crate::unwind::register::Registered;
use crate::unwind::windows::Listing;

/// A process's attachment to a segment. Cheap to clone; the window is unmapped with the last clone.
///
/// ```no_run
/// # use std::path::Path;
/// use jitcast_worker::{Endpoint, Worker, WorkerOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let endpoint = Endpoint::Path(Path::new("/run/jitcast.sock"));
/// let worker = Worker::attach(endpoint, WorkerOptions::default())?;
/// let guard = worker.enter()?;
/// let score = worker.function::<extern "C" fn(i64) -> i64>(&guard, "score")?;
/// println!("{}", score.call(&guard, 21));
/// drop(guard);
/// println!("{}", worker.call(&score, (21,))?); // a guard for one call
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Worker(Arc<Inner>);

/// How to attach.
///
/// ```
/// use jitcast_worker::{Log, WorkerOptions};
///
/// let options = WorkerOptions {
///     label: "blue".to_owned(), // for `publish --canary-label blue`
///     log: Log::new(|event| eprintln!("{event}")),
///     ..WorkerOptions::default()
/// };
/// ```
#[derive(Debug, Default)]
pub struct WorkerOptions {
    /// A label that `status` shows, and that canaries may be for; at most 63 bytes.
    pub label: String,
    /// The host symbols that published code may import.
    pub host: HostTable,
    /// Uids, besides this process's own and root, whose compiler process is trusted.
    pub trusted_uids: Vec<u32>,
    /// How exceptions and backtraces find their way through published code.
    pub unwinding: Unwinding,
    /// Who is told of what the host may want to write down.
    pub log: Log,
    /// Where crashes in published code are reported; nothing is said: as the environment variable `JITCAST_CRASH` says.
    pub crash_reports: CrashReports,
    /// What debuggers and profilers are shown.
    pub debug: DebugOptions,
}

/// What a worker is made with.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) label: String,
    pub(crate) trusted_uids: Vec<u32>,
    pub(crate) barriers: Barriers,
    pub(crate) log: Log,
    host: Arc<HostTable>,
    unwinding: Unwinding,
    crash_reports: CrashReports,
    debug: DebugOptions,
}

impl Setup {
    /// Registers this process for barriers, too.
    pub(crate) fn new(options: WorkerOptions) -> Self {
        Self {
            label: options.label,
            trusted_uids: options.trusted_uids,
            barriers: Barriers::register(),
            log: options.log,
            host: Arc::new(options.host),
            unwinding: options.unwinding,
            crash_reports: options.crash_reports.or_as_the_environment_says(),
            debug: options.debug,
        }
    }
}

/// With a fault seeded: shared data of this worker's own.
fn apart(geometry: &Geometry) -> Result<Option<OwnedFd>, AttachError> {
    let len_bytes = geometry.region(Area::SharedData).len_bytes;
    let own = seeded(Fault::SharedDataApart).then(|| sys::memfd("apart", len_bytes.into()));
    own.transpose().map_err(|cause| AttachError::System {
        step: "a seeded fault",
        cause,
    })
}

/// How often waits look whether the compiler process is there.
const LOOK: Duration = Duration::from_millis(500);

/// The same, when it is about to offer something.
const LOOK_SOON: Duration = Duration::from_millis(1);

/// What a worker can say about itself.
///
/// ```
/// # use jitcast_worker::Worker;
/// fn report(worker: &Worker) -> String {
///     let stats = worker.stats();
///     format!("worker {}: generation {}, {} host symbols missing", stats.number, stats.applied, stats.missing)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The number by which the compiler process knows it.
    pub number: u64,
    /// The base of its window.
    pub base: WorkerAddr,
    /// The generation that it has applied.
    pub applied: u64,
    /// Publications applied.
    pub updates: u64,
    /// Times that it read the directory instead of the ring.
    pub resyncs: u64,
    /// Host symbols that it lacks.
    pub missing: u64,
    /// Units that failed in it ([`Worker::failed_units`]).
    pub failed: u64,
}

#[derive(Debug)]
pub(crate) struct Inner {
    /// Different from that of every other worker that this process has had.
    id: u64,
    window: Arc<Window>,
    listing: Listing,
    mailbox: Mailbox,
    life: LifePage,
    /// When a wait looked whether the compiler process is there, ns of the monotonic clock.
    looked_ns: AtomicU64,
    barriers: Barriers,
    fenced: bool,
    hash_seed: u64,
    label: String,
    number: AtomicU64,
    /// The object that is mapped.
    object: AtomicU64,
    host: Arc<HostTable>,
    log: Log,
    state: Mutex<State>,
    starting: Starting,
    pin_slot: Option<PinSlot>,
    link: Link,
}

/// What changes when a publication is applied.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The applied generation (also where `life` says 0 meanwhile).
    pub(crate) applied: u64,
    /// The directory of that generation. Whoever is pinned at it can read all of it.
    pub(crate) root_at: SegmentOffset,
    /// The canaries of that directory.
    pub(crate) canaries: Canaries,
    /// By what it is told which of them it runs.
    pub(crate) seats: Seats,
    /// Host symbols looked up so far.
    pub(crate) imports: Imports,
    pub(crate) handles: Handles,
    pub(crate) units: Units,
    /// The asked-for units that are bound here, by number.
    pub(crate) asked: HashMap<u32, Bound>,
    /// What leads to different versions for different threads.
    pub(crate) transitions: Transitions,
    /// Whether units may have been retired that have not ended.
    pub(crate) ending: bool,
    /// The segment goes on in another object, which has been announced, but is not mapped yet.
    pub(crate) renewal: Option<Renewal>,
    /// What is registered with the unwinder, where that is how it gets to know published code.
    pub(crate) registered: Option<Registered>,
    /// What debuggers and profilers are shown.
    pub(crate) tools: Tools,
    /// What the host has not been told.
    pub(crate) events: Vec<Event>,
}

impl Worker {
    /// Attaches this process: maps the segment at a base of its own and binds what is published.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is left behind then.
    pub fn attach(endpoint: Endpoint<'_>, options: WorkerOptions) -> Result<Self, AttachError> {
        let setup = Setup::new(options);
        Self::begin(attach::attach(endpoint, &setup)?, &setup)
    }

    /// Maps what the handshake yielded, and binds what is published.
    pub(crate) fn begin(attachment: Attachment, setup: &Setup) -> Result<Self, AttachError> {
        let barriers = setup.barriers;
        let link = &attachment.link;
        let window = match apart(&attachment.geometry)? {
            None => Window::map(&attachment.geometry, &link.segment, &link.shared_data),
            Some(own) => Window::map(&attachment.geometry, &link.segment, &own),
        };
        let window = Arc::new(window?);
        let link = Link::new(attachment.link).map_err(|cause| AttachError::System {
            step: "fstat of the connection",
            cause,
        })?;
        let Header {
            hash_seed, object, ..
        } = attachment.header;
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let inner = Arc::new(Inner {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            listing: Listing::new(&window),
            window,
            mailbox: attachment.mailbox,
            life: attachment.life,
            looked_ns: AtomicU64::new(0),
            barriers,
            fenced: barriers.incomplete() || attachment.fenced,
            hash_seed,
            label: attach::stated(&setup.label).to_owned(),
            number: AtomicU64::new(attachment.number),
            object: AtomicU64::new(object),
            host: Arc::clone(&setup.host),
            log: setup.log.clone(),
            state: Mutex::new(State::default()),
            starting: Starting::default(),
            pin_slot: PinSlot::claim(),
            link,
        });
        if let Some(slot) = &inner.pin_slot {
            inner.listing.set_pins(slot.distance());
        }
        trap::register(inner.window.base(), Arc::downgrade(&inner));
        inner
            .mailbox
            .word(Word::Fenced)
            .store(inner.fenced.into(), Ordering::Release);
        inner
            .mailbox
            .word(Word::Base)
            .store(inner.window.base().get(), Ordering::Relaxed);
        if let Some(reporter) = setup.crash_reports.reporter(&inner.mailbox, &inner.label) {
            inner.listing.report(reporter);
            crash::install();
        }
        inner.bind_everything(setup.unwinding, &setup.debug)?;
        let events = core::mem::take(&mut inner.lock_always().events);
        inner.log.tell(&events);
        fork::prepare();
        Ok(Self(inner))
    }

    /// Waits until something newer than generation `seen` is published, or `timeout` passes: whether there
    /// is something new.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use jitcast_worker::{EnterError, Worker};
    /// fn follow(worker: &Worker) -> Result<(), EnterError> {
    ///     let mut seen = worker.poll()?.generation();
    ///     while worker.wait(seen, Some(Duration::from_secs(60))) {
    ///         seen = worker.poll()?.generation();
    ///         println!("generation {seen} serves");
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn wait(&self, seen: u64, timeout: Option<Duration>) -> bool {
        let head = self.0.head();
        // One that cannot be represented never comes.
        let deadline = timeout.and_then(|timeout| std::time::Instant::now().checked_add(timeout));
        loop {
            if head.load(Ordering::Acquire) != seen {
                return true;
            }
            let left = deadline
                .map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let look = self.look_and_how_soon_again();
            let timeout = Some(left.map_or(look, |left| left.min(look)));
            let timeout = timeout.map(|left| futex::Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            // Interrupted, timed out, changed meanwhile, or the compiler process is gone: the loop looks again.
            let _ = futex::wait(
                low_half(head),
                futex::Flags::empty(),
                seen as u32,
                timeout.as_ref(),
            );
        }
    }

    /// Tends the worker, if nobody has for a while: what is done before a sleep is done before all others run who are woken on this
    /// processor. Returns when it is to be done next: not soon, as a rule, since a timer that is the next one of its processor has to be
    /// set there and reset when somebody wakes, before he runs.
    fn look_and_how_soon_again(&self) -> Duration {
        // What is announced to be another object is about to come, and nothing wakes whoever waits here.
        let announced = self.0.life.moving().load(Ordering::Relaxed) == u64::MAX;
        let often = if announced { LOOK_SOON } else { LOOK };
        let now_ns = sys::monotonic_ns();
        let looked_ns = self.0.looked_ns.load(Ordering::Relaxed);
        let since = Duration::from_nanos(now_ns.saturating_sub(looked_ns));
        match often.checked_sub(since) {
            Some(left) if !left.is_zero() => left,
            _ => {
                self.0.looked_ns.store(now_ns, Ordering::Relaxed);
                self.tend();
                often
            }
        }
    }

    /// The descriptor of the connection to the compiler process. When it hangs up, that process has ended: [`Worker::tend`] looks
    /// for another. The number stays the same then, but leads to another file: epoll(7) has to be told of it again.
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.0.link.descriptor()
    }

    /// What the worker can say about itself.
    pub fn stats(&self) -> WorkerStats {
        let mailbox = &self.0.mailbox;
        let word = |word| mailbox.word(word).load(Ordering::Relaxed);
        WorkerStats {
            number: self.0.number.load(Ordering::Relaxed),
            base: self.0.window.base(),
            applied: word(Word::Applied),
            updates: word(Word::Updates),
            resyncs: word(Word::Resyncs),
            missing: word(Word::Missing),
            failed: word(Word::Failed),
        }
    }

    /// The units whose constructors failed in this worker, and why. Their functions cannot be called.
    ///
    /// ```
    /// # use jitcast_worker::Worker;
    /// fn report(worker: &Worker) {
    ///     for failed in worker.failed_units() {
    ///         eprintln!("warning: {failed}");
    ///     }
    /// }
    /// ```
    pub fn failed_units(&self) -> Vec<FailedUnit> {
        if self.0.starting.here().is_some() {
            return Vec::new();
        }
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.units.failed().cloned().collect()
    }

    /// The layout of the window.
    pub fn geometry(&self) -> &Geometry {
        self.0.window.geometry()
    }

    /// The window, for those who look at their own mappings.
    pub fn window(&self) -> &Window {
        &self.0.window
    }

    #[inline(always)]
    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(crate) fn shared(&self) -> &Arc<Inner> {
        &self.0
    }

    pub(crate) fn of(inner: Arc<Inner>) -> Self {
        Self(inner)
    }

    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.0)
    }
}

/// The connection ([`Worker::connection`]), for event loops: when it is readable or has hung up, [`Worker::tend`] is to be called.
/// Publications do not show there: guards find them, and [`Worker::wait`].
impl AsFd for Worker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection()
    }
}

impl Inner {
    #[inline(always)]
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    #[inline(always)]
    pub(crate) fn life(&self) -> &LifePage {
        &self.life
    }

    #[inline(always)]
    pub(crate) fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    #[inline(always)]
    pub(crate) fn fenced(&self) -> bool {
        self.fenced
    }

    /// The word that every guard looks at.
    #[inline(always)]
    pub(crate) fn head(&self) -> &AtomicU64 {
        Control::head_in(self.window.control())
            .expect("the fixed part is opened when the window is mapped")
    }

    pub(crate) fn control(&self) -> Control<'_> {
        Control::new(self.window.control())
            .expect("the fixed part is opened when the window is mapped")
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    pub(crate) fn listing(&self) -> &Listing {
        &self.listing
    }

    /// Where selectors find threads' pins; `None`: this process has too many workers.
    pub(crate) fn pin_slot(&self) -> Option<&PinSlot> {
        self.pin_slot.as_ref()
    }

    /// Lets selectors find the calling thread's pin, or that it has none.
    pub(crate) fn find_pin(&self, pin: Option<&AtomicU64>) {
        if let Some(slot) = &self.pin_slot {
            slot.set(pin);
        }
    }

    pub(crate) fn state(&self) -> &Mutex<State> {
        &self.state
    }

    /// The state, for a thread that runs nothing published.
    pub(crate) fn lock_always(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is told what happens.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// The state, for a thread that is inside. A thread that runs constructors or destructors, or that published code
    /// started, does not wait for them: they may be waiting for it.
    pub(crate) fn lock_state(&self) -> Result<MutexGuard<'_, State>, LookupError> {
        if self.starting.here().is_none() && !thread_record::is_started_by_published_code(self) {
            return Ok(self.lock_always());
        }
        loop {
            match self.state.try_lock() {
                Ok(state) => return Ok(state),
                Err(TryLockError::Poisoned(state)) => return Ok(state.into_inner()),
                Err(TryLockError::WouldBlock) if self.starting.anywhere() => {
                    return Err(LookupError::WhileStarting);
                }
                // Whoever has it runs nothing that is published, so that it does not take long.
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// In a child: the number by which the compiler process knows it.
    pub(crate) fn set_number(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
    }

    /// The number of the object that is mapped. Changed under the state's lock.
    pub(crate) fn object(&self) -> &AtomicU64 {
        &self.object
    }

    pub(crate) fn starting(&self) -> &Starting {
        &self.starting
    }

    pub(crate) fn barriers(&self) -> Barriers {
        self.barriers
    }

    /// The label that it gave.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    pub(crate) fn host(&self) -> &HostTable {
        &self.host
    }

    /// Whether this is the process that attached, and not a forked child of it.
    #[inline(always)]
    pub(crate) fn is_attached_here(&self) -> bool {
        self.life.alive().load(Ordering::Relaxed) != 0
    }

    /// The name of a host symbol, for the message of a trap.
    pub(crate) fn import_name(&self, import: ImportId) -> Option<String> {
        // Whoever runs constructors holds the state, and may be the one who meets the trap.
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let view = self.window.control();
                let root = self.control().root();
                let root: Root = view.read(root).ok()?;
                let at = index::get(view, root.imports, import.get().into()).ok()??;
                let record: ImportRecord = view.read(at).ok()?;
                return trailing_text::<ImportRecord>(view, at, 0, record.name_len).ok();
            }
        };
        state.imports.get(import).map(|import| import.name.clone())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state =
            core::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.end_units(&mut state);
        let mut bound = state.imports.values();
        if bound.any(|import| import.address.is_some() && module::registers_for_good(&import.name))
        {
            // It may be called again; the window stays.
            self.listing.keep();
            core::mem::forget(state.registered.take());
        }
        if self.is_attached_here() {
            // Release: pairs with the acquire load in the compiler process. Nobody holds a guard any more.
            self.mailbox
                .word(Word::Detached)
                .store(1, Ordering::Release);
        }
    }
}

/// The half of the head that changes with every publication: what a futex compares.
fn low_half(head: &AtomicU64) -> &AtomicU32 {
    // SAFETY: the first four bytes of an aligned eight, little-endian; both are accessed atomically only.
    unsafe { AtomicU32::from_ptr(head.as_ptr().cast()) }
}
