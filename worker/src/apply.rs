//! Applying publications: bringing the private area from one generation to another.
//!
//! Invariant: what a thread inside a guard can reach does not change. New units and names are bound first, where nobody is
//! led yet; then what was replaced moves: at once if nobody is inside, else by selectors ([`crate::transition`]). A thread may
//! read what a root reaches if the root was the latest one after the thread was pinned, or if it is of the generation that the
//! thread is pinned at, or newer. A ring record needs no pin, since it is validated after it was copied.

use std::sync::atomic::Ordering;
use std::sync::{PoisonError, TryLockError};

use jitcast_runtime::directory::{INLINE_OPS, record_flags, record_root, unpack_op};
use jitcast_runtime::geometry::Area;
use jitcast_runtime::index;
use jitcast_runtime::mailbox::{PIN_EVERYTHING, ThreadWord, Word};
use jitcast_runtime::memory::{prefetch, prefetch_to_store};
use jitcast_runtime::pin;
use jitcast_runtime::records::Root;
use jitcast_runtime::ring::Record;
use jitcast_runtime::{Corrupt, SegmentOffset, sys};

use crate::canary::Canaries;
use crate::cells::NewPage;
use crate::debug::{DebugOptions, Tools};
use crate::error::UpdateError;
use crate::fault::{Fault, seeded};
use crate::life::{ALIVE, MOVING};
use crate::pin_slot::PinSlot;
use crate::renew::{Stage, announced};
use crate::startup::Fresh;
use crate::transition::Step;
use crate::unwind::register::Registered;
use crate::unwind::windows::MAX_GENERATIONS;
use crate::unwind::{Unwinding, hook, text_at};
use crate::worker::{Inner, State};

/// How often a thread looks whether the others have left before it leads cells through selectors.
const PATIENCE: u32 = 64;

/// A worker further behind than this reads the directory at once.
const RING_STEPS: u64 = 64;

/// Who is inside while a publication is applied.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// The record of the thread that applies.
    thread: u32,
    /// Whether what is applied is still there, so that others may stay at it.
    may_stay: bool,
    /// The generations that others are inside at, or may enter at, ascending; none: nobody is inside.
    pins: Vec<u64>,
}

impl Others {
    /// The generations that others are inside at.
    pub(crate) fn pins(&self) -> &[u64] {
        &self.pins
    }
}

impl Inner {
    /// Binds everything that is published, when the worker attaches.
    pub(crate) fn bind_everything(
        &self,
        unwinding: Unwinding,
        debug: &DebugOptions,
    ) -> Result<(), UpdateError> {
        let mut state = self.state().lock().unwrap_or_else(PoisonError::into_inner);
        state.tools = Tools::new(debug, &mut state.events);
        self.bind_traps()?;
        state.registered = self.start_registering(unwinding);
        let tid = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        let thread = self.mailbox().claim(tid.into()).ok_or(Corrupt {
            what: "a mailbox without free records",
            at: SegmentOffset::NONE,
        })?;
        let word = self.mailbox().thread(thread, ThreadWord::Pin);
        pin::enter(word, PIN_EVERYTHING, self.head(), true);
        let mut others = Others {
            thread,
            ..Others::default()
        };
        let result = self.resync(&mut state, &mut others);
        self.finish(&mut state, &others, &result);
        self.release_thread(thread);
        result.map(|_| ())
    }

    /// Starts registering what is bound with the unwinder, if that is how it is to know it.
    fn start_registering(&self, unwinding: Unwinding) -> Option<Registered> {
        let wanted = match unwinding {
            Unwinding::Auto => !hook::is_active(self.window()),
            Unwinding::Register => true,
            Unwinding::Off => false,
        };
        wanted.then(|| Registered::new(self.window()))?
    }

    /// Applies what is new, and leaves the calling thread (whose pin is 0) inside at the generation that is applied then; or,
    /// if another thread is at it, at the one that was applied before. The host is told what came of it.
    pub(crate) fn catch_up(&self, thread: u32) -> Result<(), UpdateError> {
        let control = self.control();
        // It is in the publisher's cache; the barriers that follow take as long as to fetch it.
        let head = control.head_word().load(Ordering::Relaxed);
        prefetch(control.ring().address(head));
        // The compiler process has looked at it since.
        let applied = self.mailbox().word(Word::Applied);
        prefetch_to_store(core::ptr::from_ref(applied).addr());
        let word = self.mailbox().thread(thread, ThreadWord::Pin);
        let gate = self.life().gate();
        let mut state = match self.state().try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => {
                if gate.stay(word, self.control().floor()).is_some() {
                    return Ok(());
                }
                // It stores cells, while nobody is inside: that does not take long.
                self.state().lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        self.enter_held(&mut state, thread)?;
        // From here on this thread is inside, and so may whoever is told.
        let events = core::mem::take(&mut state.events);
        drop(state);
        self.log().tell(&events);
        Ok(())
    }

    /// The same, by who holds the state.
    pub(crate) fn enter_held(&self, state: &mut State, thread: u32) -> Result<(), UpdateError> {
        let word = self.mailbox().thread(thread, ThreadWord::Pin);
        if self.life().gate().enter(word, self.head()).is_some() {
            // Another thread has applied it.
            self.admit(thread);
            return Ok(());
        }
        let result = loop {
            let before = state.applied;
            let mut others = self.close(state, thread);
            let result = self.apply(state, &mut others);
            self.finish(state, &others, &result);
            let goes_on = match state.renewal {
                // What follows is in the object that is mapped then.
                Some(renewal) => renewal.stage == Stage::Announced && self.move_on(state, thread),
                // Only a renewal ends what is applied at once before the head.
                None => state.applied > before && self.is_behind(state),
            };
            if result.is_err() || !goes_on {
                break result;
            }
        };
        match result {
            Ok(generation) => {
                word.store(generation, Ordering::Release);
                self.admit(thread);
                Ok(())
            }
            Err(error) => {
                pin::leave(word, 0);
                Err(error)
            }
        }
    }

    /// Closes the gate, and sees who is inside. Until [`Inner::finish`] opens it, nobody enters but at what is applied.
    pub(crate) fn close(&self, state: &State, thread: u32) -> Others {
        // Pinned at what is applied before the gate is closed, which takes a full barrier: the compiler process sees this pin, or
        // this thread sees the floor that it announced before it reused anything.
        let word = self.mailbox().thread(thread, ThreadWord::Pin);
        word.store(state.applied, Ordering::Relaxed);
        self.close_gate();
        let may_stay = self.control().floor().load(Ordering::Acquire) <= state.applied;
        let pins = self.look(state, thread, may_stay);
        Others {
            thread,
            may_stay,
            pins,
        }
    }

    /// Sees who is inside, but for the thread of record `thread`, which has just shut the gate, hence executed a full barrier; lets them,
    /// and others, stay if they `may_stay` and do not leave soon. Returns [`Others::pins`].
    ///
    /// One that only looks, and will wait for the lock, has a pin for a moment too. So somebody's being inside does not prove
    /// that the generation's memory is still there; the floor does.
    fn look(&self, state: &State, thread: u32, may_stay: bool) -> Vec<u64> {
        // A thread that is new counts itself before it enters, and executes a full barrier in between: one that is not seen to be
        // there sees the gate.
        if self.mailbox().word(Word::Threads).load(Ordering::Relaxed) <= 1 {
            return Vec::new();
        }
        self.barriers().all_threads();
        let mut looks = 0;
        let mut pins = loop {
            let pins = self.mailbox().others(thread);
            if pins.is_empty() {
                return pins;
            }
            looks += 1;
            if looks < PATIENCE {
                std::hint::spin_loop();
            } else if may_stay {
                break pins;
            } else {
                std::thread::yield_now();
            }
        };
        if let Err(place) = pins.binary_search(&state.applied) {
            pins.insert(place, state.applied);
        }
        if self.pin_slot().is_some() {
            self.life().gate().let_stay(state.applied);
        }
        pins
    }

    /// Lets threads in again, at what is applied now.
    pub(crate) fn finish(
        &self,
        state: &mut State,
        others: &Others,
        result: &Result<u64, UpdateError>,
    ) {
        let Ok(generation) = result else {
            // Every guard tries again.
            state.handles.unsettle();
            self.life().gate().shut();
            return;
        };
        if *generation != state.applied {
            let updates = self.mailbox().word(Word::Updates);
            // By who holds the state.
            let number = updates.load(Ordering::Relaxed);
            updates.store(number.wrapping_add(1), Ordering::Relaxed);
            // What was published before it attached has waited for nobody.
            if state.applied != 0 {
                self.count_applied(number, state.root_at);
            }
            state.applied = *generation;
        }
        self.listing()
            .set_newest(*generation, state.root_at, &others.pins);
        self.show_moving(state);
        if self.awaits_seat(state) {
            self.life().gate().shut();
        } else {
            self.open_gate(*generation);
        }
        let applied = self.mailbox().word(Word::Applied);
        // Release: pairs with the acquire in the compiler process's `Workers::oldest_user`, which executes a barrier between this and a
        // look at pins: either it sees the pin of who stays at what was applied before, or who is about to, after the fence in
        // `Gate::stay`, that nobody may any more.
        applied.store(*generation, Ordering::Release);
    }

    /// Counts how long ago the directory at `root_at`, which is applied, was published; `number` were applied before. To look there
    /// takes as long as all else that is to be done for a function: of many, one of some stands for all.
    fn count_applied(&self, number: u64, root_at: SegmentOffset) {
        /// So many are looked at one by one.
        const FIRST: u64 = 64;
        /// Of those that follow, one of so many.
        const EACH: u64 = 16;
        let count = if number < FIRST { 1 } else { EACH };
        if !number.is_multiple_of(count) {
            return;
        }
        let at = root_at.checked_add(core::mem::offset_of!(Root, published_ns) as u64);
        let published = at.and_then(|at| self.window().control().load(at).ok());
        if let Some(published_ns) = published {
            let after_ns = sys::monotonic_ns().saturating_sub(published_ns);
            self.mailbox().count_applied(after_ns, count);
        }
    }

    /// Tells threads that leave whether somebody waits for that.
    pub(crate) fn show_moving(&self, state: &State) {
        let settled = state.transitions.is_empty()
            && !state.ending
            && state
                .renewal
                .is_none_or(|renewal| renewal.stage == Stage::Abandoned);
        let newest = match &state.renewal {
            // The offer comes at any moment: everybody who leaves looks for it.
            Some(renewal) if renewal.stage == Stage::Announced => u64::MAX,
            _ => state.transitions.newest().max(state.applied),
        };
        self.life().moving().store(newest, Ordering::Relaxed);
        let alive = if settled { ALIVE } else { MOVING };
        self.set_alive(alive);
    }

    /// If no thread but that of record `thread`, which is about to leave, is inside at a generation before the newest: every cell
    /// leads straight to its last version, and what has been retired ends.
    #[cold]
    pub(crate) fn settle(&self, thread: u32) {
        let Ok(mut state) = self.state().try_lock() else {
            return;
        };
        if state
            .renewal
            .is_some_and(|renewal| renewal.stage != Stage::Abandoned)
            && self.move_on(&mut state, thread)
        {
            // Nobody's pin has held the directory of what is applied in the object that is mapped now: what is newer there is
            // applied before anybody looks.
            return;
        }
        let oldest = || self.mailbox().others(thread).first().copied();
        let newest = self.life().moving().load(Ordering::Relaxed);
        let stay = |oldest: Option<u64>| oldest.is_some_and(|oldest| oldest < newest);
        if stay(oldest()) {
            return;
        }
        // Who is about to enter at an older generation has its pin seen, or sees that the gate is open at the newest.
        self.barriers().all_threads();
        let oldest = oldest();
        if stay(oldest) {
            return;
        }
        let next = state.applied + 1;
        state
            .transitions
            .settle(self.window(), oldest.unwrap_or(u64::MAX), next);
        if state.ending {
            // An error means a corrupt directory, which whoever applies something meets again.
            let _ = self.retire_units(&mut state);
        }
        self.listing().set_newest(state.applied, state.root_at, &[]);
        self.show_settled(&mut state);
        self.show_moving(&state);
    }

    fn apply(&self, state: &mut State, others: &mut Others) -> Result<u64, UpdateError> {
        if !self.can_move(others) {
            return Ok(state.applied);
        }
        // The root is committed before the head moves, so what was read from the root may be ahead of it.
        let mut head = self.head().load(Ordering::Acquire).max(state.applied);
        let ring = self.control().ring();
        let newest = ring.read(head);
        if let Some((renewal, before)) = announced(newest.as_ref()) {
            if before <= state.applied && head > state.applied {
                // It changes nothing; and nothing follows here.
                state.renewal = Some(renewal);
                if others.pins.is_empty() {
                    self.settle_all(state)?;
                }
                return Ok(head);
            }
            head = before.max(state.applied);
            if state.renewal.is_some() && head == state.applied {
                // Whatever else is to change, does so in the object that follows.
                if others.pins.is_empty() {
                    self.settle_all(state)?;
                }
                return Ok(head);
            }
        }
        let behind = head - state.applied;
        let lacks_something = !state.imports.missing().is_empty();
        // Texts that are registered with the unwinder may be in the way of new ones, which only the directory tells.
        let registers = state.registered.is_some() && !others.pins.is_empty();
        let is_far = behind > RING_STEPS && !seeded(Fault::LapUnnoticed);
        if is_far || lacks_something || registers || self.has_other_seat(state) {
            return self.resync(state, others);
        }
        // Whoever is at what is applied can read its directory, as long as that may be entered at all.
        let before = others.may_stay.then_some(state.root_at);
        let mut root_at = state.root_at;
        let moves = behind as usize * INLINE_OPS;
        if !self.reserve(state, others, moves) {
            return Ok(state.applied);
        }
        let (mut serialise, mut names, mut asked) = (0, false, false);
        for generation in state.applied + 1..=head {
            let is_newest = newest.as_ref().is_some_and(|it| it[0] == generation);
            // Where it was put when it was read: a copy would wait for what has just been stored.
            let record = if is_newest {
                &newest
            } else {
                &ring.read(generation)
            };
            match record {
                Some(record) if record[1] & record_flags::RESYNC == 0 => {
                    self.apply_record(state, others, head, record)?;
                    root_at = record_root(record);
                    names |= record[1] & record_flags::NAMES != 0;
                    asked |= record[1] & record_flags::ASKED != 0;
                    if record[1] & record_flags::SERIALISE != 0 {
                        serialise = generation;
                    }
                }
                None if seeded(Fault::LapUnnoticed) => {}
                _ => return self.resync(state, others),
            }
        }
        state.root_at = root_at;
        if state.registered.is_some() {
            let root = self.window().control().read(state.root_at)?;
            self.register(state, others.pins.is_empty(), &root)?;
        }
        if self.shows(state) {
            let root = self.window().control().read(state.root_at)?;
            self.show(state, others.pins.is_empty(), &root);
        }
        let gone = asked && self.forget_asked(state)?;
        if names || gone {
            let before = before.filter(|_| !gone);
            self.look_up_handles(state, &self.step(&others.pins, head), before)?;
        }
        if serialise != 0 {
            self.serialise(serialise);
        }
        if others.pins.is_empty() {
            self.settle_all(state)?;
        }
        Ok(head)
    }

    /// What is applied from generation `since` on, as cells see it, while threads are inside at the older generations `pins`.
    pub(crate) fn step<'a>(&'a self, pins: &'a [u64], since: u64) -> Step<'a> {
        Step {
            window: self.window(),
            from_thread: self.pin_slot().map_or(0, PinSlot::distance),
            since,
            pins,
        }
    }

    /// Whether cells can tell apart the threads that are inside. If not, nothing is applied until some of them have left.
    fn can_move(&self, others: &Others) -> bool {
        let can = self.pin_slot().is_some() && others.pins.len() < MAX_GENERATIONS;
        others.pins.is_empty() || can
    }

    /// Makes sure that there are selectors for `moves` cells and all handles.
    fn reserve(&self, state: &mut State, others: &Others, moves: usize) -> bool {
        let Some(&oldest) = others.pins.first() else {
            return true;
        };
        let count = (moves + state.handles.prune()) * others.pins.len();
        state.transitions.reserve(self.window(), count, oldest)
    }

    fn apply_record(
        &self,
        state: &mut State,
        others: &Others,
        since: u64,
        record: &Record,
    ) -> Result<(), UpdateError> {
        if record[1] & record_flags::EXTENTS != 0 {
            self.open_extents()?;
        }
        let count = (record[1] & 0xff) as usize;
        let step = self.step(&others.pins, since);
        for op in record[2..].iter().take(count) {
            let (cell, value) = unpack_op(*op);
            let address = self.cell_address(state, value);
            // The text, which is going to be called, is in the publisher's cache too.
            prefetch(address.get() as usize);
            self.lead_cell(state, &step, cell, address)?;
            state
                .handles
                .cell_changed(&mut state.transitions, &step, cell, address);
        }
        Ok(())
    }

    /// Brings everything to the latest root.
    fn resync(&self, state: &mut State, others: &mut Others) -> Result<u64, UpdateError> {
        let root_at = self.control().root();
        self.open_extents()?;
        let view = self.window().control();
        let root: Root = view.read(root_at)?;
        let applied = state.applied;
        if root.generation < applied {
            return Err(Corrupt {
                what: "root older than what is applied",
                at: root_at,
            }
            .into());
        }
        let extends = match &state.registered {
            Some(registered) => registered.can_extend(self.window(), &root)?,
            None => true,
        };
        let nobody = others.pins.is_empty();
        let seat = self.seat(state);
        let canaries = self.canaries_with_cells(&root, seat)?;
        // At one generation threads cannot be told apart.
        let moves = root.generation == applied && !canaries.are_those_of(&state.canaries);
        let pages = self.new_pages(&root, applied)?;
        if !nobody && (!extends || moves)
            || !self.reserve_for(state, others, &root, (&pages, &canaries))?
        {
            return Ok(applied);
        }
        self.forget_failed(state, root.units, &canaries)?;
        // From here on what is bound can be unwound through; what was before, too.
        let mut older = others.pins.clone();
        if older.is_empty() {
            older.push(applied);
        }
        self.listing().set_newest(root.generation, root_at, &older);
        index::walk(view, root.imports, applied, &mut |at| {
            self.resolve_import(state, at)
        })?;
        let mut fresh = Vec::new();
        index::walk(view, root.units, applied, &mut |at| {
            let number = self.unit_number(at)?;
            let skip = canaries.leaves_out(number) || canaries.runs(number);
            if !skip && !state.units.is_candidate(number) {
                fresh.push(self.bind_unit(state, at)?);
            }
            Ok::<_, UpdateError>(())
        })?;
        // Last, since they may keep data of those that they replace.
        state.units.have(&fresh);
        let candidates = self.unbound_candidates(state, &root, &canaries)?;
        for (_, at) in &candidates {
            fresh.push(self.bind_unit(state, *at)?);
        }
        // Others may enter while constructors run, at what is applied.
        let starts = fresh.iter().any(Fresh::starts);
        let may_stay = nobody && extends && !moves && others.may_stay;
        let lets_stay = starts && may_stay && self.pin_slot().is_some();
        self.register(state, nobody && !lets_stay, &root)?;
        self.show(state, nobody && !lets_stay, &root);
        for unit in fresh.iter().filter(|unit| unit.ends()) {
            if let Some((_, text)) = text_at(view, root_at, unit.text())? {
                self.listing().leave(text);
            }
        }
        if root.reused_text > applied {
            self.serialise(root.reused_text);
        }
        self.populate(&pages);
        if starts {
            // Names that are new lead to the new units before their constructors run; others move after.
            for page in &pages {
                self.bind_new(state, &canaries, page.at)?;
            }
            self.bind_new_cells(state, canaries.cells())?;
            if lets_stay {
                self.life().gate().let_stay(applied);
            }
            self.start_units(state, root.generation, &mut fresh);
            if lets_stay {
                self.look_again(state, others, &root, (&pages, &canaries))?;
            }
        }
        self.remember_units(state, fresh);
        let bound = candidates.into_iter().map(|(number, _)| number);
        state.units.bound_candidates(bound);
        let step = self.step(&others.pins, root.generation);
        for page in &pages {
            self.bind_page(state, &step, &canaries, page.at)?;
        }
        let uncovered = self.uncovered_cells(state, &root, &canaries)?;
        for (cell, value) in canaries.cells().chain(uncovered) {
            let address = self.cell_address(state, value);
            self.lead_cell(state, &step, cell, address)?;
        }
        // As in `apply`.
        let before = others.may_stay.then_some(state.root_at);
        state.root_at = root_at;
        state.canaries = canaries;
        state
            .seats
            .set(root.generation, seat, others.pins.is_empty());
        if seeded(Fault::BoundEverywhere) {
            self.bind_all_asked(state, &root)?;
        }
        let gone = self.forget_asked(state)?;
        self.look_up_handles(state, &step, before.filter(|_| !gone))?;
        state.ending = true;
        if others.pins.is_empty() {
            self.settle_all(state)?;
        }
        self.tell(state);
        Ok(root.generation)
    }

    /// The number of the unit whose record is at `at`.
    fn unit_number(&self, at: SegmentOffset) -> Result<u32, Corrupt> {
        let number = self.window().control().load(at)?;
        let what = "number of a unit";
        u32::try_from(number).map_err(|_| Corrupt { what, at })
    }

    /// Nobody is inside: nothing is on its way any more, and what has been retired ends.
    fn settle_all(&self, state: &mut State) -> Result<(), UpdateError> {
        let next = state.applied + 1;
        state.transitions.settle(self.window(), u64::MAX, next);
        if state.ending {
            self.retire_units(state)?;
        }
        self.show_settled(state);
        Ok(())
    }

    /// Sees who has entered while units started. There is no way back: if they are too many, some have to leave.
    fn look_again(
        &self,
        state: &mut State,
        others: &mut Others,
        root: &Root,
        new: (&[NewPage], &Canaries),
    ) -> Result<(), UpdateError> {
        loop {
            self.life().gate().shut();
            others.pins = self.look(state, others.thread, others.may_stay);
            let fits = others.pins.len() < MAX_GENERATIONS;
            if fits && self.reserve_for(state, others, root, new)? {
                return Ok(());
            }
            std::thread::yield_now();
        }
    }

    /// Makes sure that there are selectors for all that `root` replaces, by new pages of cells and by canaries.
    fn reserve_for(
        &self,
        state: &mut State,
        others: &Others,
        root: &Root,
        (pages, canaries): (&[NewPage], &Canaries),
    ) -> Result<bool, UpdateError> {
        let mut moves = 0;
        if !others.pins.is_empty() {
            for page in pages {
                moves += self.count_moves(state, canaries, page.at)?;
            }
            let uncovered = self.uncovered_cells(state, root, canaries)?;
            moves += self.count_moving(state, canaries.cells().chain(uncovered));
        }
        Ok(self.reserve(state, others, moves))
    }

    /// Registers what is new in `root` with the unwinder, if that is how it knows published code; if `nobody` is inside, what
    /// is gone is taken out.
    fn register(&self, state: &mut State, nobody: bool, root: &Root) -> Result<(), Corrupt> {
        match &mut state.registered {
            Some(registered) if nobody => registered.update(self.window(), root),
            Some(registered) => registered.extend(self.window(), root),
            None => Ok(()),
        }
    }

    /// Tells the compiler process what this worker lacks.
    fn tell(&self, state: &State) {
        let failed = state.units.failed().count() as u64;
        let missing = state.imports.missing().len() as u64;
        let mailbox = self.mailbox();
        mailbox.word(Word::Failed).store(failed, Ordering::Relaxed);
        mailbox
            .word(Word::Missing)
            .store(missing, Ordering::Relaxed);
        mailbox.word(Word::Resyncs).fetch_add(1, Ordering::Relaxed);
    }

    fn serialise(&self, generation: u64) {
        self.barriers().serialise_all();
        self.life()
            .reused_text()
            .store(generation, Ordering::Relaxed);
    }

    pub(crate) fn open_extents(&self) -> Result<(), UpdateError> {
        let (control, window) = (self.control(), self.window());
        for area in Area::ALL {
            let end = control.extent(area);
            // Most often nothing has grown.
            if end > window.end(area) {
                window.open(area, end, || self.link().segment())?;
            }
        }
        Ok(())
    }
}
