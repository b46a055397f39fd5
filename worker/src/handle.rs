//! Handles: typed functions that follow updates.
//!
//! A handle is a cell of this process's heap that obeys the rules of slots: it changes only while a
//! publication is applied. Invariant: a handle's cell leads to code of the signature that the handle was made
//! for, to the host's fallback, which has it, or to a trap.

use core::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jitcast_runtime::signature::Signature;
use jitcast_runtime::{SegmentOffset, WorkerAddr, pin};

use crate::asked::Lease;
use crate::cells::{failed_trap, removed_trap};
use crate::error::{EnterError, LookupError};
use crate::function_type::FunctionType;
use crate::guard::Guard;
use crate::transition::Place;
use crate::trap::quarantined_trap;
use crate::worker::{Inner, State, Worker};

/// A published function of type `F`, an `extern "C" fn` or `extern "C-unwind" fn`. Follows updates; calling it takes
/// a guard.
///
/// ```
/// # use jitcast_worker::{Function, Worker};
/// struct Host {
///     worker: Worker,
///     score: Function<extern "C" fn(i64) -> i64>, // looked up once
/// }
///
/// impl Host {
///     fn scores(&self, inputs: &[i64]) -> Result<Vec<i64>, jitcast_worker::EnterError> {
///         let guard = self.worker.enter()?;
///         Ok(inputs.iter().map(|input| self.score.call(&guard, *input)).collect())
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Function<F> {
    pub(crate) cell: Arc<HandleCell>,
    pub(crate) _type: PhantomData<F>,
}

impl<F> Clone for Function<F> {
    fn clone(&self) -> Self {
        Self {
            cell: Arc::clone(&self.cell),
            _type: PhantomData,
        }
    }
}

impl HandleCell {
    /// A cell that leads to `fallback`, of a worker that has not attached yet.
    pub(crate) fn early(name: &str, signature: Option<Signature>, fallback: WorkerAddr) -> Self {
        Self {
            target: AtomicU64::new(fallback.get()),
            worker: AtomicU64::new(0),
            name: name.to_owned(),
            signature,
            fallback: Some(fallback),
            unit: None,
        }
    }

    /// What calls load.
    pub(crate) fn target(&self) -> &AtomicU64 {
        &self.target
    }
}

/// What calls load comes first: hosts in C are given its address.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct HandleCell {
    target: AtomicU64,
    /// [`Inner::id`] of the worker that the target belongs to; 0: of one that has not attached yet.
    worker: AtomicU64,
    name: String,
    /// The signature asked for; `None`: the caller vouched for it.
    signature: Option<Signature>,
    /// The host's function that serves while there is none to call.
    fallback: Option<WorkerAddr>,
    /// The asked-for unit that it belongs to, which stays as long as its handles; `None`: the name is a published one.
    unit: Option<Arc<Lease>>,
}

const _: () = assert!(core::mem::offset_of!(HandleCell, target) == 0);

/// What a handle is to be of.
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    /// `None`: the caller vouches for it.
    pub(crate) signature: Option<Signature>,
    pub(crate) fallback: Option<WorkerAddr>,
    /// The asked-for unit that has it.
    pub(crate) unit: Option<Arc<Lease>>,
}

impl Inner {
    /// What a handle leads to by the directory at `root_at`, and the slot that leads there too, if there is one.
    pub(crate) fn find(
        &self,
        state: &State,
        root_at: SegmentOffset,
        handle: &HandleCell,
    ) -> Result<(Option<SegmentOffset>, WorkerAddr), LookupError> {
        let name = &handle.name;
        let (slot, code, signature) = match &handle.unit {
            // What it leads to never changes.
            Some(unit) => {
                let (code, signature) = self.look_up_asked(state, root_at, unit.number(), name)?;
                (None, code, signature)
            }
            None => {
                let symbol = self.look_up(state, root_at, name)?;
                (Some(symbol.call_cell), symbol.code, symbol.signature)
            }
        };
        if let Some(asked) = &handle.signature {
            check_signature(name, signature.as_deref(), asked)?;
        }
        Ok((slot, code))
    }
}

impl Worker {
    /// Calls the current version of `function` under a guard of its own: for those who make one call at a time. Calls that
    /// belong together are made under one guard ([`Worker::enter`], [`Function::call`]).
    ///
    /// # Errors
    /// [`EnterError`]; nothing was called then.
    ///
    /// ```
    /// # use jitcast_worker::{Function, Worker};
    /// fn score_or_zero(worker: &Worker, score: &Function<extern "C" fn(i64) -> i64>) -> i64 {
    ///     worker.call(score, (21,)).unwrap_or(0)
    /// }
    /// ```
    #[inline(always)]
    pub fn call<F: FunctionType>(
        &self,
        function: &Function<F>,
        args: F::Args,
    ) -> Result<F::Output, EnterError> {
        let guard = self.enter()?;
        Ok(F::call_published(function, &guard, args))
    }

    /// The function `name`, whose recorded signature must be that of `F`.
    ///
    /// # Errors
    /// [`LookupError`].
    ///
    /// ```
    /// # use jitcast_worker::{Function, Worker};
    /// fn score(worker: &Worker) -> Result<Function<extern "C" fn(i64) -> i64>, Box<dyn std::error::Error>> {
    ///     let guard = worker.enter()?;
    ///     Ok(worker.function(&guard, "score")?)
    /// }
    /// ```
    pub fn function<F: FunctionType>(
        &self,
        guard: &Guard<'_>,
        name: &str,
    ) -> Result<Function<F>, LookupError> {
        let signature = Some(F::signature());
        self.handle(
            guard,
            Wanted {
                name,
                signature,
                fallback: None,
                unit: None,
            },
        )
    }

    /// The function `name`, whatever signature was recorded.
    ///
    /// # Errors
    /// [`LookupError`].
    ///
    /// # Safety
    /// `name` is, in every version that will be published, a function of type `F`.
    ///
    /// ```
    /// # use jitcast_worker::{Function, Guard, LookupError, Worker};
    /// type Hash = extern "C" fn(*const u8, usize) -> u64;
    ///
    /// fn hash(worker: &Worker, guard: &Guard<'_>) -> Result<Function<Hash>, LookupError> {
    ///     // SAFETY: every version of `hash` that is published here is one of these.
    ///     unsafe { worker.function_unchecked(guard, "hash") }
    /// }
    /// ```
    pub unsafe fn function_unchecked<F: FunctionType>(
        &self,
        guard: &Guard<'_>,
        name: &str,
    ) -> Result<Function<F>, LookupError> {
        self.handle(
            guard,
            Wanted {
                name,
                signature: None,
                fallback: None,
                unit: None,
            },
        )
    }

    /// The function `name`, whose recorded signature must be that of `F`; or `fallback`, while it is quarantined, not
    /// published (yet), or cannot be called in this worker, since its unit failed or lacks a host symbol. The handle
    /// follows: at the next guard after a publication it leads to what serves then.
    ///
    /// # Errors
    /// [`LookupError`], if the name is something else.
    ///
    /// ```
    /// # use jitcast_worker::Worker;
    /// extern "C" fn own_score(value: i64) -> i64 {
    ///     2 * value
    /// }
    ///
    /// fn score(worker: &Worker) -> Result<i64, Box<dyn std::error::Error>> {
    ///     let guard = worker.enter()?;
    ///     let score = worker.function_or(&guard, "score", own_score as extern "C" fn(i64) -> i64)?;
    ///     Ok(score.call(&guard, 21)) // of what is published, or else 42
    /// }
    /// ```
    pub fn function_or<F: FunctionType>(
        &self,
        guard: &Guard<'_>,
        name: &str,
        fallback: F,
    ) -> Result<Function<F>, LookupError> {
        let (signature, fallback) = (Some(F::signature()), Some(fallback.address()));
        self.handle(
            guard,
            Wanted {
                name,
                signature,
                fallback,
                unit: None,
            },
        )
    }

    /// As [`Worker::function_or`], whatever signature was recorded.
    ///
    /// # Errors
    /// [`LookupError`], if the name is no function.
    ///
    /// # Safety
    /// `name` is, in every version that will be published, a function of type `F`.
    pub unsafe fn function_or_unchecked<F: FunctionType>(
        &self,
        guard: &Guard<'_>,
        name: &str,
        fallback: F,
    ) -> Result<Function<F>, LookupError> {
        let fallback = Some(fallback.address());
        self.handle(
            guard,
            Wanted {
                name,
                signature: None,
                fallback,
                unit: None,
            },
        )
    }

    pub(crate) fn handle<F>(
        &self,
        guard: &Guard<'_>,
        wanted: Wanted<'_>,
    ) -> Result<Function<F>, LookupError> {
        assert!(core::ptr::eq(guard.worker().inner(), self.inner()));
        let inner = self.inner();
        let mut state = inner.lock_state()?;
        let fallback = wanted.fallback;
        let cell = HandleCell {
            target: AtomicU64::new(0),
            worker: AtomicU64::new(inner.id()),
            name: wanted.name.to_owned(),
            signature: wanted.signature,
            fallback,
            unit: wanted.unit,
        };
        let directory = inner.directory(&state, guard);
        let found = match (inner.find(&state, directory, &cell), fallback) {
            (Ok(found), _) => found,
            (Err(error), Some(fallback)) if error.is_for_now() => (None, fallback),
            (Err(error), _) => return Err(error),
        };
        let cell = Arc::new(cell);
        inner.divide_handle(&mut state, guard.generation(), &cell, found)?;
        Ok(Function {
            cell,
            _type: PhantomData,
        })
    }
}

impl Worker {
    /// Lets a handle that was made before this worker attached follow its name, while nobody calls it: what there is to say if that
    /// is something else than it was taken for.
    pub(crate) fn adopt_handle(
        &self,
        guard: &Guard<'_>,
        cell: &Arc<HandleCell>,
    ) -> Result<(), LookupError> {
        let inner = self.inner();
        let mut state = inner.lock_state()?;
        cell.worker.store(inner.id(), Ordering::Relaxed);
        let directory = inner.directory(&state, guard);
        let found = inner.find(&state, directory, cell);
        let (found, why) = match found {
            Ok(found) => (found, None),
            Err(why) => ((None, instead(&state, cell, &why)), Some(why)),
        };
        inner.divide_handle(&mut state, guard.generation(), cell, found)?;
        let unfit = why.filter(|why| !why.is_for_now());
        unfit.map_or(Ok(()), Err)
    }
}

impl Inner {
    /// Gives a new handle, which a thread inside at `generation` found to be `found`, its versions: threads may be inside at
    /// other generations, and use it too.
    fn divide_handle(
        &self,
        state: &mut State,
        generation: u64,
        cell: &Arc<HandleCell>,
        found: (Option<SegmentOffset>, WorkerAddr),
    ) -> Result<(), LookupError> {
        let mut versions = vec![(generation, found.1)];
        let mut slot = found.0;
        for (known, root_at) in self.listing().all() {
            if known < generation {
                let older = self.find(state, root_at, cell).map(|found| found.1);
                if let Some(code) = older.ok().or(cell.fallback) {
                    versions.push((known, code));
                }
            } else if known > generation {
                let newer = self.find(state, root_at, cell);
                let code = newer
                    .as_ref()
                    .map_or_else(|why| instead(state, cell, why), |found| found.1);
                slot = newer.ok().and_then(|found| found.0);
                versions.push((known, code));
            }
        }
        pin::before_validation();
        // Somebody is inside at those still, so what was read there was what it is taken for. Of the others only the newest counts,
        // and the thread's own.
        let pins = self.mailbox().generations();
        let counts =
            |known: u64| known == generation || known == state.applied || pins.contains(&known);
        versions.retain(|(known, _)| counts(*known));
        versions.sort_unstable_by_key(|(known, _)| *known);
        let count = versions.len() * pins.len();
        let oldest = pins.first().copied().unwrap_or(u64::MAX);
        if versions.len() > 1 && !state.transitions.reserve(self.window(), count, oldest) {
            return Err(LookupError::Outdated { generation });
        }
        for (index, (since, code)) in versions.into_iter().enumerate() {
            if index == 0 {
                cell.target.store(code.get(), Ordering::Relaxed);
            } else {
                let older: Vec<u64> = pins.iter().copied().filter(|pin| *pin < since).collect();
                let step = self.step(&older, since);
                let place = Place::Handle(Arc::downgrade(cell));
                state.transitions.lead(&step, place, code.get());
            }
        }
        self.show_moving(state);
        let name = self.name_of_handles(&cell.name);
        state.handles.add(name, slot, cell);
        Ok(())
    }
}

/// Where a handle leads whose name leads nowhere: to its fallback, or else to a trap.
pub(crate) fn instead(state: &State, handle: &HandleCell, why: &LookupError) -> WorkerAddr {
    match why {
        _ if let Some(fallback) = handle.fallback => fallback,
        LookupError::MissingImport { import, .. } | LookupError::ImportSignature { import, .. } => {
            let mut lacking = state.imports.lacking();
            let lacking = lacking.find(|known| known.name == *import);
            lacking.map_or_else(removed_trap, |import| import.trap)
        }
        LookupError::UnitFailed { .. } => failed_trap(),
        LookupError::Quarantined { .. } => quarantined_trap(),
        _ => removed_trap(),
    }
}

fn check_signature(
    name: &str,
    recorded: Option<&str>,
    asked: &Signature,
) -> Result<(), LookupError> {
    let Some(text) = recorded else {
        return Err(LookupError::UnknownSignature {
            name: name.to_owned(),
        });
    };
    if text
        .parse::<Signature>()
        .is_ok_and(|recorded| recorded.compatible(asked))
    {
        return Ok(());
    }
    Err(LookupError::Signature {
        name: name.to_owned(),
        recorded: text.to_owned(),
        asked: asked.to_string(),
    })
}

impl<F> Function<F> {
    /// The entry point of the current version, for the guard's worker.
    #[inline(always)]
    pub(crate) fn target(&self, guard: &Guard<'_>) -> *const () {
        assert!(
            self.cell.worker.load(Ordering::Relaxed) == guard.worker().inner().id(),
            "a handle is called with a guard of its own worker"
        );
        // Acquire: pairs with the release in `Place::store` (transition.rs): what was bound is there.
        core::ptr::with_exposed_provenance(self.cell.target.load(Ordering::Acquire) as usize)
    }

    /// The name that the handle follows.
    pub fn name(&self) -> &str {
        &self.cell.name
    }
}
