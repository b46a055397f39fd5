//! The socket of the compiler process: who may attach, ask and publish, who has died.
//!
//! One thread waits for everything; a second one publishes, so that a long link keeps nobody from
//! attaching. Invariant: no peer can block either of them. What a peer sends is read as it comes, within
//! limits; what it does not read is dropped with it.

mod access;
mod connection;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, unbounded};
use jitcast_runtime::header::FORMAT_VERSION;
use jitcast_runtime::wire::{
    self, AttachReply, AttachRequest, FrameKind, ReleaseNotice, ResumeRequest,
};
use rustix::event::epoll;
use zerocopy::{FromBytes, IntoBytes};

use crate::compiler::Compiler;
use crate::front;
use crate::renewal::Offering;
use crate::request;
use crate::requests::Asks;

pub use access::{Access, Policy};
use connection::{Connection, Incoming};

/// The most connections at once.
const MAX_CONNECTIONS: usize = 8192;

/// How long a peer may take for its request, and how long an idle one that is no worker may stay.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nobody is let in when descriptors or memory ran out.
const RETRY: Duration = Duration::from_millis(100);

/// The most publications that wait their turn.
const MAX_QUEUE: usize = 64;

/// The most children of one worker that are waited for at once.
const MAX_SPARES: usize = 4;

/// How much is done for one peer before others have their turn.
const STEPS: usize = 16;

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const FIRST_CONNECTION: u64 = 2;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another compiler process listens there.
    #[error(
        "{path} is in use by a running compiler process\n  help: end that one, or choose another --socket"
    )]
    InUse {
        /// The path.
        path: String,
    },
    /// Something else is there.
    #[error("{path} exists and is no socket\n  help: remove it, or choose another --socket")]
    NotASocket {
        /// The path.
        path: String,
    },
    /// The system refused.
    #[error("cannot {step} {path}: {cause}")]
    System {
        /// Which step.
        step: &'static str,
        /// The path.
        path: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// The listening socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: String,
    /// What lies at the path: another compiler process may bind there later.
    file: Option<(u64, u64)>,
    policy: Policy,
    options: front::Options,
    stop: UnixStream,
    stopped: UnixStream,
    stopping: Arc<AtomicBool>,
}

/// Ends a server's loop.
#[derive(Debug)]
pub struct Stop(UnixStream, Arc<AtomicBool>);

impl Stop {
    /// Ends it. The server removes its socket.
    pub fn stop(&self) {
        self.1.store(true, Ordering::Release);
        // A full pipe has a wake-up in it already.
        let _ = rustix::io::write(&self.0, &[0]);
    }
}

impl Server {
    /// Listens at `path`; after an `@`, in the abstract name space. What a dead compiler process left there is
    /// removed.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn bind(path: &str, policy: Policy, options: front::Options) -> Result<Self, ServeError> {
        let system = |step| {
            let path = path.to_owned();
            move |cause| ServeError::System { step, path, cause }
        };
        let listener = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixListener::bind_addr(&address))
                .map_err(system("listen at"))?,
            None => bind_path(Path::new(path), &policy)?,
        };
        listener.set_nonblocking(true).map_err(system("set up"))?;
        let (stop, stopped) = UnixStream::pair().map_err(system("set up"))?;
        stop.set_nonblocking(true).map_err(system("set up"))?;
        stopped.set_nonblocking(true).map_err(system("set up"))?;
        let file = identity(path);
        Ok(Self {
            listener,
            path: path.to_owned(),
            file,
            policy,
            options,
            stop,
            stopped,
            stopping: Arc::default(),
        })
    }

    /// What ends the loop, from another thread.
    ///
    /// # Errors
    /// As dup(2).
    pub fn stopper(&self) -> io::Result<Stop> {
        Ok(Stop(self.stop.try_clone()?, Arc::clone(&self.stopping)))
    }

    /// Serves until it is stopped; removes the socket then. Workers go on.
    ///
    /// # Errors
    /// What the system says when it cannot even wait.
    pub fn run(self, compiler: Arc<Compiler>) -> io::Result<()> {
        let (jobs, queue) = bounded(MAX_QUEUE);
        let (replies, answered) = unbounded();
        let wake = self.stop.try_clone()?;
        let offering = Arc::new(Offering::new(self.stop.try_clone()?));
        compiler.tell_of_renewals(Arc::clone(&offering));
        let publisher = {
            let (compiler, options) = (Arc::clone(&compiler), self.options.clone());
            std::thread::Builder::new()
                .name("publisher".into())
                .spawn(move || publish_all(&compiler, &options, &queue, &replies, &wake))?
        };
        let asks = Asks::start(
            &compiler,
            &self.policy.requests,
            self.options.cpu,
            &self.stop,
        )?;
        let serving = Loop::new(&self, compiler, offering, (jobs, asks, answered));
        let result = serving.and_then(|mut serving| {
            let result = serving.run();
            serving.end();
            result
        });
        // The loop has dropped its end of the queue, so the publisher ends after what it is at.
        let _ = publisher.join();
        result
    }
}

fn bind_path(path: &Path, policy: &Policy) -> Result<UnixListener, ServeError> {
    let shown = path.display().to_string();
    let system = |step| {
        let path = shown.clone();
        move |cause| ServeError::System { step, path, cause }
    };
    match std::fs::symlink_metadata(path) {
        Ok(there) if !std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()) => {
            return Err(ServeError::NotASocket { path: shown });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ServeError::InUse { path: shown });
        }
        Ok(_) => std::fs::remove_file(path)
            .map_err(system("remove the socket of a dead compiler process at"))?,
        Err(_) => {}
    }
    // Bound under a private name with its final mode, then moved: nobody connects in between.
    let staged = PathBuf::from(format!("{shown}.{}", std::process::id()));
    let listener = UnixListener::bind(&staged).map_err(system("listen at"))?;
    let mode = if policy.is_private() { 0o600 } else { 0o666 };
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::rename(&staged, path))
        .map_err(system("set the mode of"))?;
    Ok(listener)
}

impl Drop for Server {
    /// Removes the socket, also of a compiler process that did not get as far as serving.
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            // Whoever removed it before has done what is to be done.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Which file lies at `path`: its device and inode; `None` in the abstract name space.
fn identity(path: &str) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// A request on its way to the publisher, by its connection.
type Job = (u64, Work);

/// What takes a while.
#[derive(Debug)]
enum Work {
    Publish(Vec<u8>),
    Rollback(Vec<u8>),
    /// Promotes or aborts a canary.
    Decide(Vec<u8>),
    Renew,
    /// Waits for a publication that is under way, which the serving thread must not.
    Status,
}

/// An answer on its way back.
type Answer = (u64, FrameKind, Vec<u8>);

fn publish_all(
    compiler: &Compiler,
    options: &front::Options,
    queue: &Receiver<Job>,
    replies: &Sender<Answer>,
    wake: &UnixStream,
) {
    for (connection, work) in queue {
        // Whatever goes wrong in one publication, the next one is served: a transaction that is dropped leaves
        // no trace.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match work {
            Work::Publish(payload) => request::carry_out(compiler, &payload, options),
            Work::Rollback(payload) => request::roll_back(compiler, &payload),
            Work::Decide(payload) => request::end_canary(compiler, &payload),
            Work::Renew => request::renew_segment(compiler),
            Work::Status => request::tell(compiler),
        }));
        let (kind, reply) = done.unwrap_or_else(|_| {
            let text =
                "the compiler process has a fault: it panicked\n  help: report this with the files";
            (FrameKind::Refused, text.into())
        });
        if replies.send((connection, kind, reply)).is_err() {
            return;
        }
        let _ = rustix::io::write(wake, &[0]);
    }
}

/// The state of the serving thread.
struct Loop<'a> {
    server: &'a Server,
    compiler: Arc<Compiler>,
    poller: OwnedFd,
    connections: HashMap<u64, Connection>,
    next: u64,
    jobs: Sender<Job>,
    asks: Asks,
    answered: Receiver<Answer>,
    /// Whether the listener is waited for.
    accepting: bool,
    /// The object that every worker has been offered.
    offered: u64,
    /// Who waits for that.
    offering: Arc<Offering>,
}

impl<'a> Loop<'a> {
    fn new(
        server: &'a Server,
        compiler: Arc<Compiler>,
        offering: Arc<Offering>,
        (jobs, asks, answered): (Sender<Job>, Asks, Receiver<Answer>),
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
        Ok(Self {
            server,
            compiler,
            poller,
            connections,
            next: FIRST_CONNECTION,
            jobs,
            asks,
            answered,
            accepting: true,
            offered: 0,
            offering,
        })
    }

    /// Workers go on, and may come to another server.
    fn end(self) {
        self.asks.end();
        let mut holds = self.compiler.holds.lock();
        let workers = self.connections.values().filter_map(Connection::worker);
        workers.for_each(|worker| holds.server_ends(worker));
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        loop {
            let was_accepting = self.accepting;
            events.clear();
            let timeout = self.next_deadline();
            match epoll::wait(
                &self.poller,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    WAKE => {
                        if self.woken() {
                            return Ok(());
                        }
                    }
                    token => self.connection_event(token),
                }
            }
            self.drop_late();
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
        let waits = !self.accepting || self.offered != self.compiler.segment().header().object;
        let retry = waits.then(|| now + RETRY);
        let deadline = deadlines.chain(retry).min()?;
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
            match self.server.listener.accept() {
                Ok((stream, _)) if self.connections.len() < MAX_CONNECTIONS => {
                    // A peer that vanished in between is no loss.
                    let _ = self.adopt(stream);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors or memory: nobody is let in for a while.
                    tracing::warn!(%error, "cannot accept connections for now");
                    self.accepting = epoll::delete(&self.poller, &self.server.listener).is_err();
                    return;
                }
            }
        }
    }

    fn adopt(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let token = self.next;
        self.next += 2;
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.poller, &stream, data, epoll::EventFlags::IN)?;
        let connection = Connection::new(stream.into(), Instant::now() + PATIENCE)?;
        self.connections.insert(token, connection);
        Ok(())
    }

    /// Handles what woke the loop: whether it is to end.
    fn woken(&mut self) -> bool {
        let mut bytes = [0; 64];
        while let Ok(1..) = rustix::io::read(&self.server.stopped, &mut bytes) {}
        while let Ok((token, kind, payload)) = self.answered.try_recv() {
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

    fn connection_event(&mut self, token: u64) {
        if token & 1 == 1 {
            // The process behind the connection has ended.
            self.close_dead(token & !1);
            return;
        }
        self.flush(token);
        // No peer keeps the thread for long: what is left makes the socket readable again.
        for _ in 0..STEPS {
            let Some(connection) = self.connections.get_mut(&token) else {
                return;
            };
            match connection.read(&self.server.policy) {
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
            Incoming::Work(work) => match self.jobs.try_send((token, work)) {
                Ok(()) => return connection.start_job(),
                Err(TrySendError::Full(_)) => (
                    FrameKind::Refused,
                    b"busy: too many requests wait already\n  help: try again later".to_vec(),
                ),
                Err(TrySendError::Disconnected(_)) => (
                    FrameKind::Refused,
                    b"the compiler process is ending".to_vec(),
                ),
            },
            Incoming::Refused(reason) => (FrameKind::Refused, reason.into_bytes()),
        };
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.queue(answer.0, &answer.1);
        }
        self.flush(token);
    }

    fn attach(&mut self, token: u64, payload: &[u8]) -> Result<(), String> {
        let connection = self
            .connections
            .get_mut(&token)
            .ok_or("the connection is gone")?;
        let request =
            AttachRequest::read_from_bytes(payload).map_err(|_| "malformed request to attach")?;
        let label = check_attach(connection, &request)?;
        let (pid, uid) = (connection.pid(), connection.uid());
        let admission = self
            .compiler
            .admit(pid, uid, label)
            .map_err(|error| format!("no mailbox: {error}"))?;
        let reply = AttachReply {
            worker: admission.number,
            sealed: self.compiler.is_sealed().into(),
            fenced: self.compiler.needs_fences().into(),
        };
        let fds = [admission.segment.worker_fd(), admission.mailbox.as_fd()];
        // Nothing is unread, so a frame of this size fits the socket's buffer: it goes out at once or not at all.
        let socket = connection.socket().ok_or("the connection is gone")?;
        let sent = wire::send(socket, FrameKind::Attached, reply.as_bytes(), &fds);
        if let Err(error) = sent {
            self.compiler.worker_died(admission.number);
            return Err(format!("the reply cannot be sent: {error}"));
        }
        connection.set_worker(admission.number);
        connection.set_offered(admission.segment.header().object);
        self.watch(token);
        Ok(())
    }

    /// A worker goes on that was attached to the compiler process before this one.
    fn resume(&mut self, token: u64, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), String> {
        let connection = self
            .connections
            .get_mut(&token)
            .ok_or("the connection is gone")?;
        let request =
            ResumeRequest::read_from_bytes(payload).map_err(|_| "malformed request to resume")?;
        let label = check_attach(connection, &request.attach)?;
        if request.instance != self.compiler.instance() {
            return Err("this compiler process has another segment\n  help: start it with the journal of the one before, or attach afresh".to_owned());
        }
        let [mailbox] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| "other than one descriptor")?;
        let process = (connection.pid(), connection.uid());
        let number = self
            .compiler
            .admit_again(process, label, &mailbox)
            .map_err(|error| format!("that is no mailbox: {error}"))?;
        let reply = AttachReply {
            worker: number,
            sealed: self.compiler.is_sealed().into(),
            fenced: self.compiler.needs_fences().into(),
        };
        let socket = connection.socket().ok_or("the connection is gone")?;
        let segment = self.compiler.segment();
        let fds = [segment.worker_fd()];
        if let Err(error) = wire::send(socket, FrameKind::Attached, reply.as_bytes(), &fds) {
            self.compiler.worker_died(number);
            return Err(format!("the reply cannot be sent: {error}"));
        }
        connection.set_worker(number);
        connection.set_offered(segment.header().object);
        self.watch(token);
        Ok(())
    }

    /// Offers the object that the segment is in now to every worker that has not been offered it. One that has left something
    /// unread is offered it later.
    fn offer(&mut self) {
        let segment = self.compiler.segment();
        let object = segment.header().object;
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
            let reply = AttachReply {
                worker,
                sealed: self.compiler.is_sealed().into(),
                fenced: self.compiler.needs_fences().into(),
            };
            let fds = [segment.worker_fd()];
            // As for attaching: it goes out at once or not at all.
            let sent = !connection.has_unsent()
                && wire::send(socket, FrameKind::Attached, reply.as_bytes(), &fds).is_ok();
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

    /// Gives a worker what a child of it takes over at a fork, when there is no time to ask.
    fn spare(&mut self, token: u64) -> Result<(), String> {
        let parent = self
            .connections
            .get(&token)
            .ok_or("the connection is gone")?;
        if parent.has_unsent() {
            return Err("read what was answered before you ask for more".to_owned());
        }
        let number = parent.worker().ok_or("only workers have children")?;
        let waiting = self.connections.values();
        let waiting = waiting
            .filter(|connection| connection.child_of() == Some(number))
            .count();
        if waiting >= MAX_SPARES || self.connections.len() >= MAX_CONNECTIONS {
            return Err(format!("{waiting} mailboxes wait for children already"));
        }
        let system = |error: io::Error| format!("no mailbox for a child: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(system)?;
        ours.set_nonblocking(true).map_err(system)?;
        // The kernel then says who sends.
        rustix::net::sockopt::set_socket_passcred(&ours, true)
            .map_err(|error| system(error.into()))?;
        let child = self.next;
        let data = epoll::EventData::new_u64(child);
        epoll::add(&self.poller, &ours, data, epoll::EventFlags::IN)
            .map_err(|error| system(error.into()))?;
        let admission = self.compiler.admit_child(number).map_err(system)?;
        let admission = admission.ok_or("the worker is gone")?;
        let connection = parent.for_child(ours.into(), admission.number);
        let connection = connection.ok_or("only workers have children")?;
        let reply = AttachReply {
            worker: admission.number,
            sealed: self.compiler.is_sealed().into(),
            fenced: self.compiler.needs_fences().into(),
        };
        let fds = [admission.mailbox.as_fd(), theirs.as_fd()];
        // As for attaching: it goes out at once or not at all.
        let sent = parent
            .socket()
            .map(|socket| wire::send(socket, FrameKind::SpareReply, reply.as_bytes(), &fds));
        if !matches!(sent, Some(Ok(()))) {
            self.compiler.worker_died(admission.number);
            return Err("the reply cannot be sent".to_owned());
        }
        self.next += 2;
        self.connections.insert(child, connection);
        Ok(())
    }

    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        match connection.flush() {
            Ok(pending) => {
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

/// What is asked of whoever wants to attach: its label.
fn check_attach(connection: &Connection, request: &AttachRequest) -> Result<String, String> {
    if request.format_version != FORMAT_VERSION {
        return Err(format!(
            "the worker reads format version {}, the compiler process writes {FORMAT_VERSION}\n  help: use the same version of jitcast for both",
            request.format_version
        ));
    }
    if connection.worker().is_some() {
        return Err("this connection is attached already".to_owned());
    }
    if connection.has_unsent() {
        return Err("read what was answered before you attach".to_owned());
    }
    let label = request.label.split(|byte| *byte == 0);
    let label = label.into_iter().next().unwrap_or_default();
    Ok(String::from_utf8_lossy(label).into_owned())
}
