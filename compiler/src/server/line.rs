//! Requests that take a while, from their arrival to their answer: which go first, and which are one.
//!
//! Two requests are *ordered* if they came over one connection, or if both publish, remove or update the same name. Of such
//! two the one that came first is committed and answered first. Others are as soon as they are ready, so one that takes long
//! delays nobody who has nothing to do with it.
//!
//! *Twins* are publications of the same contents, in the same words, that wait at the same time. They are linked once, if nothing
//! that is ordered with the later one came between.
//!
//! Invariant: a request waits only for such as came before it. So the first one waits for nobody, and nobody waits for ever.

use std::collections::{HashSet, VecDeque};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::fault::{Fault, seeded};
use crate::history::ContentHash;
use crate::request::PublishRequest;

/// The number of a request, in the order of arrival.
pub(super) type Ticket = u64;

/// How much publishers may have under way together: more is answered "busy".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishLimits {
    /// How many requests.
    pub requests: usize,
    /// How long they may be together, bytes; a single one may exceed that.
    pub bytes: u64,
}

impl Default for PublishLimits {
    fn default() -> Self {
        Self {
            requests: 64,
            bytes: 1 << 30,
        }
    }
}

/// The server is about to end: nothing more is committed.
#[derive(Debug)]
pub(super) struct Closed;

/// What a publication is about.
#[derive(Debug, Default)]
pub(super) struct Names {
    units: HashSet<String>,
    symbols: HashSet<String>,
}

impl Names {
    pub(super) fn of(request: &PublishRequest) -> Self {
        let units = request.units.iter().map(|unit| &unit.name);
        let symbols = request.updates.iter().map(|update| update.symbol());
        Self {
            units: units.chain(&request.removals).cloned().collect(),
            symbols: symbols.map(str::to_owned).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.units.is_empty() && self.symbols.is_empty()
    }

    fn overlaps(&self, other: &Self) -> bool {
        !self.units.is_disjoint(&other.units) || !self.symbols.is_disjoint(&other.symbols)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is read, compiled, or waits for its turn.
    Waiting,
    /// It is being committed.
    Begun,
    /// It is the twin of this one, and gets its answer.
    Twin(Ticket),
}

#[derive(Debug)]
struct Request {
    ticket: Ticket,
    connection: u64,
    len_bytes: u64,
    /// What it is about; `None`: it has not been read.
    names: Option<Names>,
    /// The hash of all that determines what comes of it, if it is a publication.
    content: Option<ContentHash>,
    stage: Stage,
}

impl Request {
    /// Whether this one goes before `later`, which came after it.
    fn goes_before(&self, later: &Self) -> bool {
        let ordered = match (&self.names, &later.names) {
            (Some(names), Some(later)) => names.overlaps(later),
            // It may be about anything.
            (None, Some(later)) => !later.is_empty(),
            (_, None) => false,
        };
        ordered || self.connection == later.connection
    }
}

/// The requests that are under way.
#[derive(Debug)]
pub(super) struct Line {
    limits: PublishLimits,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of arrival.
    requests: VecDeque<Request>,
    next: Ticket,
    closed: bool,
}

impl State {
    fn position(&self, ticket: Ticket) -> usize {
        let found = self
            .requests
            .binary_search_by_key(&ticket, |request| request.ticket);
        found.expect("a request stays in line until it is answered")
    }

    fn earlier(&self, position: usize) -> impl DoubleEndedIterator<Item = &Request> {
        self.requests.range(..position)
    }

    /// Whether everything is done that goes before the request there.
    fn is_first(&self, position: usize) -> bool {
        let request = &self.requests[position];
        !self
            .earlier(position)
            .any(|earlier| earlier.goes_before(request))
    }

    /// The request whose answer is that of the one there, too.
    fn twin(&self, position: usize) -> Option<Ticket> {
        let request = &self.requests[position];
        let content = request.content?;
        let is_twin = |twin: &&Request| {
            let same = twin.content == Some(content) && twin.stage == Stage::Waiting;
            // What goes before the later one has to go before the other one too.
            same && self.earlier(position).all(|other| {
                let is_one = other.ticket == twin.ticket || other.stage == Stage::Twin(twin.ticket);
                let goes_before_both = other.ticket < twin.ticket && other.goes_before(twin);
                is_one || goes_before_both || !other.goes_before(request)
            })
        };
        let twin = self.earlier(position).rev().find(is_twin)?;
        Some(twin.ticket)
    }
}

impl Line {
    pub(super) fn new(limits: PublishLimits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Lets a request of `len_bytes` in, unless too much is under way already: then why.
    pub(super) fn enter(&self, connection: u64, len_bytes: u64) -> Result<Ticket, String> {
        let mut state = self.state.lock();
        let PublishLimits { requests, bytes } = self.limits;
        if state.requests.len() >= requests {
            return Err("busy: too many requests wait already\n  help: try again later".to_owned());
        }
        let waiting: u64 = state.requests.iter().map(|request| request.len_bytes).sum();
        if waiting > 0 && waiting.saturating_add(len_bytes) > bytes {
            return Err(format!(
                "busy: requests of {waiting} bytes wait already, this one has {len_bytes}, and the limit is {bytes}\n  help: try again later, or start the compiler process with a wider limit (--publish-mib)"
            ));
        }
        let ticket = state.next;
        state.next += 1;
        state.requests.push_back(Request {
            ticket,
            connection,
            len_bytes,
            names: None,
            content: None,
            stage: Stage::Waiting,
        });
        Ok(ticket)
    }

    /// A request has been read, which is about `names`, a publication of `content`. Whether it has a twin: then nothing is to
    /// be done about it.
    pub(super) fn describe(
        &self,
        ticket: Ticket,
        names: Names,
        content: Option<ContentHash>,
    ) -> bool {
        let mut state = self.state.lock();
        let position = state.position(ticket);
        let request = &mut state.requests[position];
        (request.names, request.content) = (Some(names), content);
        self.changed.notify_all();
        if content.is_none() {
            return false;
        }
        // One that came before may be its twin; or come between them.
        let is_unread = |state: &State| {
            let mut earlier = state.earlier(state.position(ticket));
            earlier.any(|request| request.names.is_none())
        };
        self.changed
            .wait_while(&mut state, |state| !state.closed && is_unread(state));
        let position = state.position(ticket);
        let Some(twin) = state.twin(position) else {
            return false;
        };
        let request = &mut state.requests[position];
        (request.stage, request.len_bytes) = (Stage::Twin(twin), 0);
        true
    }

    /// Waits until everything is answered that goes first.
    pub(super) fn wait(&self, ticket: Ticket) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if seeded(Fault::CommitAsReady) {
            return Ok(());
        }
        let has_to_wait =
            |state: &mut State| !state.closed && !state.is_first(state.position(ticket));
        self.changed.wait_while(&mut state, has_to_wait);
        if state.closed { Err(Closed) } else { Ok(()) }
    }

    /// A request is about to be committed: whoever comes now is no twin of it.
    pub(super) fn begin(&self, ticket: Ticket) {
        let mut state = self.state.lock();
        let position = state.position(ticket);
        state.requests[position].stage = Stage::Begun;
    }

    /// Lets a request go, and its twins: `answer` is told each one's connection.
    pub(super) fn finish(&self, ticket: Ticket, mut answer: impl FnMut(u64)) {
        let mut state: MutexGuard<'_, State> = self.state.lock();
        state.requests.retain(|request| {
            let is_done = request.ticket == ticket || request.stage == Stage::Twin(ticket);
            if is_done {
                answer(request.connection);
            }
            !is_done
        });
        self.changed.notify_all();
    }

    /// How many publications are under way that have been read.
    pub(super) fn publications(&self) -> usize {
        let state = self.state.lock();
        let publications = state.requests.iter();
        publications
            .filter(|request| request.content.is_some())
            .count()
    }

    /// Lets nobody commit any more.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
