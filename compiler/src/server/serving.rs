//! The serving thread: it waits for everybody, and for nobody in particular.

mod admitting;
mod ahead;
mod waiting;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jitcast_runtime::wire::{self, FrameKind, ReleaseNotice};
use rustix::event::epoll;
use rustix::net::SocketFlags;
use zerocopy::{FromBytes, IntoBytes};

use super::Server;
use super::connection::{Connection, Incoming};
use super::publishing::Desk;
use crate::compiler::Compiler;
use crate::fault::{Fault, seeded};
use crate::renewal::Offering;
use crate::requests::Asks;
use ahead::Ahead;
use waiting::SHARED_PATIENCE;

/// The most connections at once.
const MAX_CONNECTIONS: usize = 8192;

/// How long a peer may take for its request, and how long an idle one that is no worker may stay.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nobody is let in when descriptors or memory ran out.
const RETRY: Duration = Duration::from_millis(100);

/// How long this thread does not sleep after somebody has connected, who is about to say what it wants: to be woken for that takes
/// longer.
const LINGER: Duration = Duration::from_micros(50);

/// Who lets others run and goes on after that long has shared the processor with somebody.
const SHARED: Duration = Duration::from_micros(20);

/// How much is done for one peer before others have their turn.
const STEPS: usize = 16;

/// How much of what a peer sends is taken by one system call, bytes.
const BUFFER_BYTES: usize = 64 << 10;

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const FIRST_CONNECTION: u64 = 2;

/// The state of the serving thread.
pub(super) struct Loop<'a> {
    server: &'a Server,
    compiler: Arc<Compiler>,
    poller: OwnedFd,
    connections: HashMap<u64, Connection>,
    /// Where what they send is received.
    buffer: Vec<u8>,
    ahead: Ahead,
    /// Who has just been let in, and goes on at once if there is a processor for it.
    let_in: Option<u64>,
    /// Until when it does not sleep.
    linger: Option<Instant>,
    /// Whether workers are to use fences. Those that are there have been told so, too.
    fenced: bool,
    next: u64,
    desk: Desk,
    asks: Asks,
    /// Whether the listener is waited for.
    accepting: bool,
    /// The object that every worker has been offered.
    offered: u64,
    /// Who waits for that.
    offering: Arc<Offering>,
    /// Who wants to attach, but waits until it is known which object the shared data are in.
    waiting: Vec<(u64, Incoming)>,
    /// How long.
    patience: Instant,
}

impl<'a> Loop<'a> {
    pub(super) fn new(
        server: &'a Server,
        compiler: Arc<Compiler>,
        offering: Arc<Offering>,
        (desk, asks): (Desk, Asks),
    ) -> io::Result<Self> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let readable = epoll::EventFlags::IN;
        epoll::add(
            &poller,
            &server.listener,
            epoll::EventData::new_u64(LISTENER),
            readable,
        )?;
        epoll::add(
            &poller,
            &server.stopped,
            epoll::EventData::new_u64(WAKE),
            readable,
        )?;
        let connections = HashMap::new();
        let fenced = compiler.needs_fences();
        Ok(Self {
            server,
            compiler,
            poller,
            connections,
            buffer: vec![0; BUFFER_BYTES],
            ahead: Ahead::default(),
            let_in: None,
            linger: None,
            fenced,
            next: FIRST_CONNECTION,
            desk,
            asks,
            accepting: true,
            offered: 0,
            offering,
            waiting: Vec::new(),
            patience: Instant::now() + SHARED_PATIENCE,
        })
    }

    /// Workers go on, and may come to another server.
    pub(super) fn end(self) {
        self.asks.end();
        let mut holds = self.compiler.holds.lock();
        let workers = self.connections.values().filter_map(Connection::worker);
        workers.for_each(|worker| holds.server_ends(worker));
    }

    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        loop {
            if seeded(Fault::ServingFails) {
                return Err(rustix::io::Errno::NOMEM.into());
            }
            let was_accepting = self.accepting;
            events.clear();
            self.linger = self.linger.filter(|until| Instant::now() < *until);
            let lingers = self.linger.is_some();
            let makes_ahead = !lingers && self.ahead.is_wanting();
            let timeout = if lingers || makes_ahead {
                Some(rustix::event::Timespec::default())
            } else {
                self.next_deadline()
            };
            match epoll::wait(
                &self.poller,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(0) if lingers => {
                    // Somebody may have only this processor. Where others have it too, who sleeps is let on sooner.
                    let before = Instant::now();
                    std::thread::yield_now();
                    self.linger = self.linger.filter(|_| before.elapsed() < SHARED);
                    continue;
                }
                Ok(0) if makes_ahead => self.ahead.make(),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if let ([event], Some(token)) = (&events[..], self.let_in.take())
                && event.data.u64() == token
            {
                // What else it has asked for can wait, nobody else wants anything, and it may have only this processor. Somebody may
                // have come meanwhile, who does not wait for that either.
                std::thread::yield_now();
                continue;
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    WAKE => {
                        if self.woken() {
                            return Ok(());
                        }
                    }
                    token => {
                        let flags = event.flags;
                        self.connection_event(token, flags.contains(epoll::EventFlags::HUP));
                    }
                }
            }
            self.drop_late();
            self.let_wait_no_longer();
            self.offer();
            if !was_accepting {
                self.accept_again();
            }
        }
    }

    /// Waits for the listener again, after a pause.
    fn accept_again(&mut self) {
        let data = epoll::EventData::new_u64(LISTENER);
        let (listener, flags) = (&self.server.listener, epoll::EventFlags::IN);
        self.accepting = epoll::add(&self.poller, listener, data, flags).is_ok();
    }

    fn next_deadline(&self) -> Option<rustix::event::Timespec> {
        let deadlines = self.connections.values().filter_map(Connection::deadline);
        let now = Instant::now();
        let segment = self.compiler.segment();
        // While nobody may be given any shared data, nobody is offered anything.
        let offers = segment.shared_fd().is_some() && self.offered != segment.header().object;
        let waits = !self.accepting || offers;
        let retry = waits.then(|| now + RETRY);
        let patience = (!self.waiting.is_empty()).then_some(self.patience);
        let deadline = deadlines.chain(retry).chain(patience).min()?;
        let left = deadline.saturating_duration_since(now) + Duration::from_millis(1);
        Some(rustix::event::Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    fn drop_late(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| {
                connection
                    .deadline()
                    .is_some_and(|deadline| deadline <= now)
            })
            .map(|(token, _)| *token)
            .collect();
        late.into_iter().for_each(|token| self.close(token));
    }

    fn accept(&mut self) {
        for _ in 0..STEPS {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(&self.server.listener, flags) {
                Ok(socket) if self.connections.len() < MAX_CONNECTIONS => {
                    // A peer that vanished in between is no loss. What it has said already is not looked at here: requests are taken in
                    // the order of their arrival, which the poller knows.
                    if self.adopt(socket).is_ok() {
                        self.linger = Some(Instant::now() + LINGER);
                    }
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(error) => {
                    // Out of descriptors or memory: nobody is let in for a while.
                    tracing::warn!(%error, "cannot accept connections for now");
                    self.accepting = epoll::delete(&self.poller, &self.server.listener).is_err();
                    return;
                }
            }
        }
    }

    fn adopt(&mut self, socket: OwnedFd) -> io::Result<()> {
        let token = self.next;
        self.next += 2;
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.poller, &socket, data, epoll::EventFlags::IN)?;
        let connection = Connection::new(socket, Instant::now() + PATIENCE)?;
        self.connections.insert(token, connection);
        Ok(())
    }

    /// Handles what woke the loop: whether it is to end.
    fn woken(&mut self) -> bool {
        let mut bytes = [0; 64];
        while let Ok(1..) = rustix::io::read(&self.server.stopped, &mut bytes) {}
        while let Ok((token, kind, payload)) = self.desk.answered.try_recv() {
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.finish_job(Instant::now() + PATIENCE);
                connection.queue(kind, &payload);
                self.flush(token);
            }
        }
        let connections = &self.connections;
        let is_there = |token, worker| {
            let connection: Option<&Connection> = connections.get(&token);
            connection.is_some_and(|connection| connection.worker() == Some(worker))
        };
        for (token, payload) in self.asks.answers(is_there) {
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.queue(FrameKind::AskReply, &payload);
                self.flush(token);
            }
        }
        // Acquire: pairs with the release in `Stop::stop`.
        self.server.stopping.load(Ordering::Acquire)
    }

    fn connection_event(&mut self, token: u64, hung_up: bool) {
        if token & 1 == 1 {
            // The process behind the connection has ended.
            self.close_dead(token & !1);
            return;
        }
        self.flush(token);
        // No peer keeps the thread for long: what is left makes the socket readable again.
        for _ in 0..STEPS {
            if self.let_in == Some(token) {
                return;
            }
            let Some(connection) = self.connections.get_mut(&token) else {
                return;
            };
            match connection.read(&self.server.policy, &mut self.buffer) {
                // Who is gone forks no more.
                Ok(Some(Incoming::Spare)) if hung_up => {}
                Ok(Some(incoming)) => self.handle(token, incoming),
                Ok(None) => return,
                Err(reason) => {
                    tracing::debug!(token, %reason, "connection ends");
                    self.close(token);
                    return;
                }
            }
        }
    }

    fn handle(&mut self, token: u64, incoming: Incoming) {
        self.linger = None;
        let incoming = match self.wait(token, incoming) {
            Some(incoming) => incoming,
            None => return,
        };
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let answer = match incoming {
            Incoming::Attach(payload) => match self.attach(token, &payload) {
                Ok(()) => return,
                Err(reason) => (FrameKind::Refused, reason.into_bytes()),
            },
            Incoming::Resume(payload, fds) => match self.resume(token, &payload, fds) {
                Ok(()) => return,
                Err(reason) => (FrameKind::Refused, reason.into_bytes()),
            },
            Incoming::Observe => match self.observe(token) {
                Ok(()) => return,
                Err(reason) => (FrameKind::Refused, reason.into_bytes()),
            },
            Incoming::Spare => match self.spare(token) {
                Ok(()) => return,
                Err(reason) => (FrameKind::Refused, reason.into_bytes()),
            },
            Incoming::Adopt(pid) => {
                if let Some(number) = connection.worker() {
                    connection.arrive(pid);
                    // It may have been forked from one that has gone on, or from one that has not.
                    self.offered = 0;
                    self.compiler.child_arrived(number, pid);
                    self.watch(token);
                }
                return;
            }
            Incoming::Ask(asked) => match self.asks.take(token, connection.worker(), asked) {
                Ok(None) => return,
                Ok(Some(payload)) => (FrameKind::AskReply, payload),
                Err(reason) => (FrameKind::Refused, reason.into_bytes()),
            },
            Incoming::Release(payload) => {
                let notice = ReleaseNotice::read_from_bytes(&payload);
                if let (Ok(notice), Some(worker)) = (notice, connection.worker()) {
                    let ReleaseNotice {
                        forks,
                        unit,
                        grants,
                    } = notice;
                    let mut holds = self.compiler.holds.lock();
                    holds.release(worker, unit, grants, forks);
                }
                return self.asks.sweep();
            }
            Incoming::Hold(payload) => {
                if let (true, Some(worker)) = (connection.state_once(), connection.worker()) {
                    let (units, _) = payload.as_chunks::<4>();
                    let units = units.iter().map(|unit| u32::from_le_bytes(*unit));
                    let limit = self.asks.units_per_worker();
                    self.compiler.holds.lock().state(worker, units, limit);
                }
                return self.asks.sweep();
            }
            Incoming::Work(work) => match self.desk.enter(token, &work) {
                Ok(ticket) => {
                    connection.start_job();
                    // It ends after this thread.
                    return drop(self.desk.jobs.send((ticket, work)));
                }
                Err(busy) => (FrameKind::Refused, busy.into_bytes()),
            },
            Incoming::Refused(reason) => (FrameKind::Refused, reason.into_bytes()),
        };
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.queue(answer.0, &answer.1);
        }
        self.flush(token);
    }

    /// Offers the object that the segment is in now to every worker that has not been offered it. One that has left something
    /// unread is offered it later.
    fn offer(&mut self) {
        let segment = self.compiler.segment();
        let object = segment.header().object;
        let Some(shared) = segment.shared_fd() else {
            // There is nobody yet to be offered anything.
            return self.offering.done(object);
        };
        if self.offered == object {
            return;
        }
        let mut all = true;
        for connection in self.connections.values_mut() {
            let (Some(worker), Some(socket)) = (connection.worker(), connection.socket()) else {
                continue;
            };
            if connection.child_of().is_some() || connection.offered() == object {
                continue;
            }
            let reply = admitting::reply(&self.compiler, self.fenced, worker);
            let send = |object: OwnedFd| {
                let fds = [object.as_fd(), shared];
                wire::send(socket, FrameKind::Attached, reply.as_bytes(), &fds)
            };
            // As for attaching: it goes out at once or not at all.
            let sent = !connection.has_unsent() && segment.worker_fd().and_then(send).is_ok();
            if sent {
                connection.set_offered(object);
            }
            all &= sent;
        }
        if all {
            self.offered = object;
        }
        self.offering.done(object);
    }

    /// Waits for the end of the process behind a worker's connection, if that can be had.
    fn watch(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if let Some(pidfd) = connection.pidfd() {
            let data = epoll::EventData::new_u64(token | 1);
            if epoll::add(&self.poller, &pidfd, data, epoll::EventFlags::IN).is_ok() {
                connection.keep_pidfd(pidfd);
            }
        }
    }

    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        match connection.flush() {
            Ok(pending) => {
                if !connection.set_pending(pending) {
                    return;
                }
                let mut flags = epoll::EventFlags::IN;
                flags.set(epoll::EventFlags::OUT, pending);
                let data = epoll::EventData::new_u64(token);
                if let Some(socket) = connection.socket() {
                    let _ = epoll::modify(&self.poller, socket, data, flags);
                }
            }
            Err(_) => self.close(token),
        }
    }

    /// The connection has ended; the worker may live on: then it is looked at again and again, since a thread of it may be
    /// inside, or enter again.
    fn close(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else {
            return;
        };
        let Some(worker) = connection.worker() else {
            return;
        };
        // What was asked for over a connection goes with it, else limits for each worker would be none. One that lives on without
        // notices that its units are gone.
        self.compiler.holds.lock().worker_gone(worker);
        // Both who asked for it and whoever was forked meanwhile have ended.
        let has_ended = connection.child_of().is_some()
            || self.compiler.worker_detached(worker)
            || !self.compiler.worker_is_there(worker);
        if has_ended {
            self.compiler.worker_died(worker);
        } else {
            self.connections.insert(token, connection.into_watch());
        }
        self.asks.sweep();
    }

    /// The process that connected has ended: a worker, unless it has handed its connection on.
    fn close_dead(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        connection.forget_process();
        let worker = connection.worker();
        if worker.is_none_or(|worker| !self.compiler.worker_is_there(worker)) {
            self.close(token);
        }
        self.asks.sweep();
    }
}
