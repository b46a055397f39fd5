//! Asked-for units: bound by their number, in this worker alone, when the reply has come.
//!
//! Invariant: a unit's private data are filled once in a worker, before anything leads into it, and the compiler process knows
//! that this worker has it for as long as a handle of it lives. A unit that is gone all the same (what it refers to was taken
//! away) is noticed by every guard like any publication: its handles then lead to their fallbacks, or to a trap.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use jitcast_runtime::records::trailing_text;
use jitcast_runtime::records::{AskedFunction, AskedImport, AskedRecord, Root, walk_texts};
use jitcast_runtime::signature::Signature;
use jitcast_runtime::wire::FrameKind;
use jitcast_runtime::{Corrupt, ImportId, SegmentOffset, WorkerAddr, index};

use crate::cells::note_missing;
use crate::error::{LookupError, RequestError, UpdateError};
use crate::function_type::FunctionType;
use crate::guard::Guard;
use crate::handle::{Function, Wanted};
use crate::link::Talk;
use crate::worker::{Inner, State, Worker};

/// A unit that this worker has asked for, and that is there for it as long as this, a clone, or a function of it is kept.
///
/// ```
/// # use jitcast_worker::{AskedUnit, Function, LookupError, Worker};
/// fn still_there(worker: &Worker, unit: &AskedUnit) -> bool {
///     // What it refers to may have been removed: then it is asked for again.
///     worker.enter().is_ok_and(|guard| unit.check(&guard).is_ok())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct AskedUnit {
    worker: Worker,
    lease: Arc<Lease>,
    name: Arc<str>,
}

/// What keeps a unit: its handles have one together. When it is dropped, the compiler process is told.
#[derive(Debug)]
pub(crate) struct Lease {
    number: u32,
    /// How many replies brought the unit, which the compiler process counts too; 0: it has been told.
    grants: Arc<AtomicU32>,
    worker: Weak<Inner>,
}

impl Lease {
    /// The unit's number.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// One more reply brought it.
    pub(crate) fn add_grant(&self) {
        self.grants.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Whoever is at the connection now may be who drops this. Then the next look finds it.
        if let Some(worker) = self.worker.upgrade()
            && let Ok(mut talk) = worker.link().try_talk()
        {
            worker.release(&mut talk, self.number, &self.grants);
        }
    }
}

/// A unit that is bound in this worker.
#[derive(Debug)]
pub(crate) struct Bound {
    lease: Weak<Lease>,
    grants: Arc<AtomicU32>,
    imports: Vec<ImportId>,
}

impl AskedUnit {
    pub(crate) fn new(worker: &Worker, lease: Arc<Lease>, name: String) -> Self {
        Self {
            worker: worker.clone(),
            lease,
            name: name.into(),
        }
    }

    /// What it is called: `sha256:` and the hash of what was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is there at the generation of `guard`.
    ///
    /// # Errors
    /// [`LookupError::Gone`]: it is not, and is to be asked for again; else why nobody can tell.
    pub fn check(&self, guard: &Guard<'_>) -> Result<(), LookupError> {
        let inner = self.worker.inner();
        assert!(core::ptr::eq(guard.worker().inner(), inner));
        let state = inner.lock_state()?;
        let directory = inner.directory(&state, guard);
        let found = inner.asked_record(directory, self.lease.number())?;
        let name = self.name.to_string();
        found.map(|_| ()).ok_or(LookupError::Gone { name })
    }

    /// Its function `name`, whose signature must be that of `F`.
    ///
    /// # Errors
    /// [`LookupError`].
    pub fn function<F: FunctionType>(
        &self,
        guard: &Guard<'_>,
        name: &str,
    ) -> Result<Function<F>, LookupError> {
        self.handle(guard, name, None)
    }

    /// Its function `name`, whose signature must be that of `F`; or `fallback`, once the unit is gone.
    ///
    /// # Errors
    /// [`LookupError`], if there is no such function in it.
    pub fn function_or<F: FunctionType>(
        &self,
        guard: &Guard<'_>,
        name: &str,
        fallback: F,
    ) -> Result<Function<F>, LookupError> {
        self.handle(guard, name, Some(fallback.address()))
    }

    fn handle<F: FunctionType>(
        &self,
        guard: &Guard<'_>,
        name: &str,
        fallback: Option<WorkerAddr>,
    ) -> Result<Function<F>, LookupError> {
        self.find(guard, name, Some(F::signature()), fallback)
    }

    /// Its function `name`, of `signature`.
    pub(crate) fn find<F>(
        &self,
        guard: &Guard<'_>,
        name: &str,
        signature: Option<Signature>,
        fallback: Option<WorkerAddr>,
    ) -> Result<Function<F>, LookupError> {
        let wanted = Wanted {
            name,
            signature,
            fallback,
            unit: Some(Arc::clone(&self.lease)),
        };
        self.worker.handle(guard, wanted)
    }
}

impl Inner {
    /// Where the record of asked-for unit `number` is, in the directory at `root_at`.
    fn asked_record(
        &self,
        root_at: SegmentOffset,
        number: u32,
    ) -> Result<Option<SegmentOffset>, Corrupt> {
        let view = self.window().control();
        let root: Root = view.read(root_at)?;
        index::get(view, root.asked, number.into())
    }

    /// Binds unit `number`, unless it is bound, for the calling thread, which is inside `guard`: what keeps it, and its name.
    pub(crate) fn bind_asked(
        self: &Arc<Self>,
        state: &mut State,
        guard: &Guard<'_>,
        number: u32,
    ) -> Result<(Arc<Lease>, String), RequestError> {
        let corrupt = |corrupt: Corrupt| RequestError::Update(corrupt.to_string());
        // The newest: a thread that stays at an older one may see less than others do.
        let root_at = self.directory(state, guard);
        let found = self.asked_record(root_at, number).map_err(corrupt)?;
        let at = found.ok_or(RequestError::Gone)?;
        // At what is applied it may be gone, and its memory another unit's by the time that this thread leaves.
        let applied = self.asked_record(state.root_at, number).map_err(corrupt)?;
        applied.ok_or(RequestError::Gone)?;
        let view = self.window().control();
        let record: AskedRecord = view.read(at).map_err(corrupt)?;
        let name = trailing_text::<AskedRecord>(view, at, 0, record.name_len).map_err(corrupt)?;
        if !state.asked.contains_key(&number) {
            let bound = self.fill_asked(state, at, &record);
            let bound = bound.map_err(|error| RequestError::Update(error.to_string()))?;
            state.asked.insert(number, bound);
        }
        let bound = state.asked.get_mut(&number).expect("just put there");
        if let Some(lease) = bound.lease.upgrade() {
            return Ok((lease, name));
        }
        // The grants of one that was dropped are that one's.
        bound.grants = Arc::default();
        let lease = Arc::new(Lease {
            number,
            grants: Arc::clone(&bound.grants),
            worker: Arc::downgrade(self),
        });
        bound.lease = Arc::downgrade(&lease);
        Ok((lease, name))
    }

    fn fill_asked(
        &self,
        state: &mut State,
        at: SegmentOffset,
        record: &AskedRecord,
    ) -> Result<Bound, UpdateError> {
        let view = self.window().control();
        let mut imports = Vec::new();
        walk_texts(
            view,
            record.imports,
            &mut |import: AskedImport, [name, _]| {
                let found = self.find_import(name, import.weak == 1, import.trap);
                let number = ImportId::new(import.number);
                note_missing(state, &found);
                state.imports.insert(number, found);
                imports.push(number);
                Ok::<_, UpdateError>(())
            },
        )?;
        let mut resolvers = Vec::new();
        let data = [record.private, record.template, record.patches];
        self.fill_unit(state, at, data, &mut resolvers)?;
        if !resolvers.is_empty() {
            let what = "resolver in an asked-for unit";
            return Err(Corrupt { what, at }.into());
        }
        if let Some(registered) = &mut state.registered {
            registered.add_later(SegmentOffset::new(record.text.start));
        }
        Ok(Bound {
            lease: Weak::new(),
            grants: Arc::default(),
            imports,
        })
    }

    /// A fault: binds what others have asked for.
    pub(crate) fn bind_all_asked(&self, state: &mut State, root: &Root) -> Result<(), UpdateError> {
        let view = self.window().control();
        index::walk(view, root.asked, state.applied, &mut |at| {
            let record: AskedRecord = view.read(at)?;
            let bound = self.fill_asked(state, at, &record)?;
            state.asked.insert(record.key as u32, bound);
            Ok::<_, UpdateError>(())
        })
    }

    /// What the directory at `root_at` says of function `name` of unit `number`, which is bound here: its code, and its signature.
    pub(crate) fn look_up_asked(
        &self,
        state: &State,
        root_at: SegmentOffset,
        number: u32,
        name: &str,
    ) -> Result<(WorkerAddr, Option<String>), LookupError> {
        let gone = || LookupError::Gone {
            name: name.to_owned(),
        };
        let at = self.asked_record(root_at, number)?.ok_or_else(gone)?;
        let view = self.window().control();
        let record: AskedRecord = view.read(at)?;
        let mut found = None;
        walk_texts(
            view,
            record.functions,
            &mut |function: AskedFunction, [known, signature]| {
                if known == name {
                    found = Some((function, signature));
                }
                Ok::<_, Corrupt>(())
            },
        )?;
        let (function, signature) = found.ok_or_else(|| LookupError::NotFound {
            name: name.to_owned(),
        })?;
        let root: Root = view.read(root_at)?;
        let canaries = self.canaries_at(state, &root)?;
        self.check_needs(state, (&root, &canaries), name, (number, function.node))?;
        let code = self.window().addr_of(function.place);
        Ok((code, (!signature.is_empty()).then_some(signature)))
    }

    /// Forgets the units that are in the applied directory no longer: whether there were any.
    pub(crate) fn forget_asked(&self, state: &mut State) -> Result<bool, UpdateError> {
        let mut gone = Vec::new();
        for &number in state.asked.keys() {
            if self.asked_record(state.root_at, number)?.is_none() {
                gone.push(number);
            }
        }
        for number in &gone {
            if let Some(bound) = state.asked.remove(number) {
                bound
                    .imports
                    .iter()
                    .for_each(|import| state.imports.remove(*import));
            }
        }
        Ok(!gone.is_empty())
    }

    /// Tells the compiler process that unit `number` is not needed any more. Where it has not been told yet what this worker has
    /// from before, the unit is just not named then.
    fn release(&self, talk: &mut Talk, number: u32, grants: &AtomicU32) {
        if talk.is_stated() {
            let count = grants.swap(0, Ordering::Relaxed);
            if count > 0 {
                self.link().release(talk, number, count);
            }
        }
    }

    /// Tells the compiler process what it has not been told: what this worker has, on a new connection, and what it needs no
    /// longer. By who holds the state.
    pub(crate) fn tell_asked(&self, state: &State, talk: &mut Talk) {
        if !talk.state_once() {
            for (number, bound) in &state.asked {
                if bound.lease.strong_count() == 0 {
                    self.release(talk, *number, &bound.grants);
                }
            }
            return;
        }
        let live = state
            .asked
            .iter()
            .filter(|(_, bound)| bound.lease.strong_count() > 0);
        let live: HashSet<u32> = live.map(|(number, _)| *number).collect();
        for (number, bound) in &state.asked {
            bound
                .grants
                .store(live.contains(number).into(), Ordering::Relaxed);
        }
        let payload: Vec<u8> = live
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        self.link().send(talk, FrameKind::Hold, &payload);
    }

    /// Tells the compiler process what it has not been told, if nobody else is at the state.
    pub(crate) fn tend_asked(&self, talk: &mut Talk) {
        if let Ok(state) = self.state().try_lock()
            && (!talk.is_stated() || !state.asked.is_empty())
        {
            self.tell_asked(&state, talk);
        }
    }
}
