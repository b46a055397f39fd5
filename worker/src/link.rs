//! The connection to the compiler process: what it sent ahead for a child that may be forked, what was asked for and answered, and
//! how another one is found when it is gone.
//!
//! Frames are sent and received as far as that goes without waiting; what is left of them is kept. A host may have closed any
//! descriptor ([`crate::watched`]).

use std::collections::HashMap;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::Waker;
use std::time::{Duration, Instant};

use jitcast_runtime::mailbox::Mailbox;
use jitcast_runtime::wire::{
    self, ASK_BUSY, ASK_READY, AskReply, AttachReply, Frame, FrameHeader, FrameKind, ReleaseNotice,
    ResumeRequest,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use zerocopy::{FromBytes, IntoBytes};

use crate::asked::Lease;
use crate::attach::{self, Home};
use crate::error::{AttachError, RequestError};
use crate::inbox::Inbox;
use crate::log::{Event, note};
use crate::watched::Watched;

/// How long a fork waits for what was asked for. It comes in some ten microseconds, if the compiler process is there.
const PATIENCE: Duration = Duration::from_secs(1);

/// When a compiler process that is gone is looked for again: first, and at the most.
pub(crate) const FIRST_BACKOFF: Duration = Duration::from_millis(20);
pub(crate) const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// How long one may take to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// What a child takes over.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) number: u64,
    pub(crate) mailbox: Mailbox,
    descriptor: Watched,
    socket: Watched,
}

/// What a compiler process offers to go on with.
#[derive(Debug)]
pub(crate) struct Offer {
    /// The connection to another compiler process; `None`: it is still the same.
    socket: Option<Watched>,
    segment: Watched,
    shared_data: Watched,
    /// Its number ([`Header::object`](jitcast_runtime::header::Header)).
    pub(crate) object: u64,
    pub(crate) number: u64,
}

impl Offer {
    /// The object that is offered.
    pub(crate) fn segment(&self) -> Option<BorrowedFd<'_>> {
        self.segment.get()
    }

    /// Whether another compiler process offers it.
    pub(crate) fn is_anothers(&self) -> bool {
        self.socket.is_some()
    }

    /// The object of the shared data.
    pub(crate) fn shared_data(&self) -> Option<BorrowedFd<'_>> {
        self.shared_data.get()
    }
}

/// How the connection is.
#[derive(Debug)]
enum State {
    Attached,
    /// The compiler process is gone: it is looked for from `next` on.
    Lost {
        next: Instant,
        backoff: Duration,
    },
    /// One is there, and has been asked.
    Asked {
        socket: OwnedFd,
        until: Instant,
        backoff: Duration,
    },
    /// It has answered; the offer has not been taken yet.
    Answered,
}

/// What has been said over the connection. Held by who forks, so that a child finds it as it was.
#[derive(Debug)]
pub(crate) struct Talk {
    spare: Option<Spare>,
    /// For a spare, which has not come.
    asked: bool,
    state: State,
    /// The latest that has not been taken.
    offer: Option<Offer>,
    /// How many spares of this connection were taken.
    forks: u64,
    /// Whether the compiler process has been told which units this worker has from before this connection.
    stated: bool,
    next_request: u64,
    requests: HashMap<u64, Request>,
    /// Who waited for answers that are there.
    woken: Vec<Waker>,
    /// What the host has not been told.
    events: Vec<Event>,
    /// What could not be sent yet.
    outbox: Vec<u8>,
    inbox: Inbox,
}

/// A request for a unit.
#[derive(Debug)]
struct Request {
    answer: Answer,
    /// Who is to be woken when the answer is there.
    waker: Option<Waker>,
    /// Whether what the answer granted is somebody's.
    taken: bool,
    /// Whether nobody waits for it any more.
    given_up: Arc<AtomicBool>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing yet.
    None,
    Ready {
        unit: u32,
        generation: u64,
    },
    Failed(RequestError),
}

impl Talk {
    fn new(stated: bool, next_request: u64) -> Self {
        Self {
            spare: None,
            asked: false,
            state: State::Attached,
            forks: 0,
            offer: None,
            stated,
            next_request,
            requests: HashMap::new(),
            woken: Vec::new(),
            events: Vec::new(),
            outbox: Vec::new(),
            inbox: Inbox::default(),
        }
    }

    /// Whether the compiler process is there, as far as has been looked.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached)
    }

    /// Whether something has not been sent yet.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// What the host has not been told.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        core::mem::take(&mut self.events)
    }

    /// Whether the compiler process knows which units this worker has.
    pub(crate) fn is_stated(&self) -> bool {
        self.stated && self.is_attached()
    }

    /// Whether it is to be told now.
    pub(crate) fn state_once(&mut self) -> bool {
        self.is_attached() && !core::mem::replace(&mut self.stated, true)
    }

    /// A request is going to be sent: its number.
    pub(crate) fn begin_request(&mut self, given_up: &Arc<AtomicBool>) -> u64 {
        self.next_request += 1;
        let request = Request {
            answer: Answer::None,
            waker: None,
            taken: false,
            given_up: Arc::clone(given_up),
        };
        self.requests.insert(self.next_request, request);
        self.next_request
    }

    /// What came of request `id`; `None`: this process has not made it.
    pub(crate) fn answer(&self, id: u64) -> Option<Answer> {
        self.requests.get(&id).map(|request| request.answer.clone())
    }

    /// Lets `waker` be woken once there is an answer to request `id`: whether there is none yet.
    pub(crate) fn await_answer(&mut self, id: u64, waker: &Waker) -> bool {
        let request = self.requests.get_mut(&id);
        let open = request.filter(|request| request.answer == Answer::None);
        let Some(request) = open else {
            return false;
        };
        match &mut request.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        true
    }

    /// What request `id` was granted is `lease`'s: whether it was.
    pub(crate) fn take_grant(&mut self, id: u64, lease: &Lease) -> bool {
        match self.requests.get_mut(&id) {
            Some(request) if matches!(request.answer, Answer::Ready { .. }) => {
                if !core::mem::replace(&mut request.taken, true) {
                    lease.add_grant();
                }
                true
            }
            _ => false,
        }
    }

    /// The connection is gone, and all that was said over it.
    fn lose(&mut self) {
        let mut woken = core::mem::take(&mut self.woken);
        let mut open = core::mem::take(&mut self.requests);
        let is_open =
            |request: &&mut Request| !request.taken && !matches!(request.answer, Answer::Failed(_));
        for request in open.values_mut().filter(is_open) {
            request.settle(Answer::Failed(RequestError::Lost), &mut woken);
        }
        let mut events = core::mem::take(&mut self.events);
        note(&mut events, Event::Disconnected);
        *self = Self {
            requests: open,
            woken,
            state: State::Lost {
                next: Instant::now(),
                backoff: FIRST_BACKOFF,
            },
            // The object that it is in is there without the connection.
            offer: self.offer.take(),
            events,
            ..Self::new(false, self.next_request)
        };
    }
}

impl Request {
    fn settle(&mut self, answer: Answer, woken: &mut Vec<Waker>) {
        self.answer = answer;
        woken.extend(self.waker.take());
    }
}

/// The talk, held. Who waits for an answer that came meanwhile is woken when it is held no longer, and may ask for it at once.
#[derive(Debug)]
pub(crate) struct HeldTalk<'a>(Option<MutexGuard<'a, Talk>>);

impl Deref for HeldTalk<'_> {
    type Target = Talk;

    fn deref(&self) -> &Talk {
        self.0.as_ref().expect("only taken when it is dropped")
    }
}

impl DerefMut for HeldTalk<'_> {
    fn deref_mut(&mut self) -> &mut Talk {
        self.0.as_mut().expect("only taken when it is dropped")
    }
}

impl Drop for HeldTalk<'_> {
    fn drop(&mut self) {
        let woken = core::mem::take(&mut self.woken);
        drop(self.0.take());
        woken.into_iter().for_each(Waker::wake);
    }
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: Watched,
    mailbox: Watched,
    /// What is mapped, for areas that grow.
    segment: Watched,
    /// What is mapped as shared data, and which file that is, also once the host has closed it.
    shared_data: Watched,
    shared_file: [AtomicU64; 2],
    /// How the compiler process is found again; `None`: by nobody, the connection was handed over.
    home: Option<Home>,
    /// What a new one is told, and who it may be.
    identity: ResumeRequest,
    trusted_uids: Vec<u32>,
    /// Whether workers insist on seals.
    sealed: bool,
    talk: Mutex<Talk>,
}

impl Link {
    pub(crate) fn new(parts: LinkParts) -> io::Result<Self> {
        let LinkParts {
            socket,
            mailbox,
            segment,
            shared_data,
            home,
            identity,
            trusted_uids,
            sealed,
        } = parts;
        let shared_data = Watched::new(shared_data)?;
        Ok(Self {
            socket: Watched::new(socket)?,
            mailbox: Watched::new(mailbox)?,
            segment: Watched::new(segment)?,
            shared_file: shared_data.file().map(AtomicU64::new),
            shared_data,
            home,
            identity,
            trusted_uids,
            sealed,
            talk: Mutex::new(Talk {
                asked: true,
                ..Talk::new(true, 0)
            }),
        })
    }

    /// What is mapped; `None`: the host has closed it.
    pub(crate) fn segment(&self) -> Option<BorrowedFd<'_>> {
        self.segment.get()
    }

    /// Whether the segment is a sealed one.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Whether `offer` comes with other shared data than those that are mapped.
    pub(crate) fn has_other_shared_data(&self, offer: &Offer) -> bool {
        let mapped = self.shared_file.each_ref();
        mapped.map(|word| word.load(Ordering::Relaxed)) != offer.shared_data.file()
    }

    /// The connection's descriptor, whatever it leads to by now.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.descriptor()
    }

    pub(crate) fn talk(&self) -> HeldTalk<'_> {
        let talk = self.talk.lock();
        HeldTalk(Some(talk.unwrap_or_else(PoisonError::into_inner)))
    }

    /// The same, unless somebody else is at it.
    pub(crate) fn try_talk(&self) -> Result<HeldTalk<'_>, ()> {
        match self.talk.try_lock() {
            Ok(talk) => Ok(HeldTalk(Some(talk))),
            Err(TryLockError::Poisoned(talk)) => Ok(HeldTalk(Some(talk.into_inner()))),
            Err(TryLockError::WouldBlock) => Err(()),
        }
    }

    /// Whether the compiler process is there, as far as has been looked.
    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.talk().state, State::Attached)
    }

    /// Sends a frame, as far as that goes without waiting; the rest goes with the next one.
    pub(crate) fn send(&self, talk: &mut Talk, kind: FrameKind, payload: &[u8]) {
        // Nothing that is sent from here comes near 4 GiB: a longer text is refused whatever its length.
        let len_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = FrameHeader::new(kind, len_bytes);
        talk.outbox.extend_from_slice(header.as_bytes());
        talk.outbox
            .extend_from_slice(&payload[..len_bytes as usize]);
        self.flush(talk);
    }

    fn flush(&self, talk: &mut Talk) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while !talk.outbox.is_empty() {
            let Some(socket) = self.socket.get() else {
                return;
            };
            match rustix::net::send(socket, &talk.outbox, flags) {
                Ok(count) => drop(talk.outbox.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // It has hung up, which the next look sees.
                Err(_) => return talk.outbox.clear(),
            }
        }
        talk.outbox = Vec::new();
    }

    /// Sends what is left, and takes what has come.
    pub(crate) fn exchange(&self, talk: &mut Talk) {
        if talk.is_attached() {
            self.flush(talk);
            self.receive(talk);
            self.tidy(talk);
        }
    }

    fn receive(&self, talk: &mut Talk) {
        loop {
            let Some(socket) = self.socket.get() else {
                // The host has closed it: nothing comes any more.
                let failed = Answer::Failed(RequestError::NotConnected);
                let Talk {
                    requests, woken, ..
                } = talk;
                let open = requests.values_mut();
                let open = open.filter(|request| request.answer == Answer::None);
                return open.for_each(|request| request.settle(failed.clone(), woken));
            };
            match talk.inbox.receive(socket) {
                Ok(Some(frame)) => self.take(talk, frame),
                Ok(None) => return,
                Err(_) => return talk.lose(),
            }
        }
    }

    fn take(&self, talk: &mut Talk, frame: Frame) {
        match frame.kind {
            FrameKind::SpareReply => {
                talk.asked = false;
                talk.spare = spare_of(frame).ok();
            }
            FrameKind::Attached => {
                let answer = attach::read_answer(frame);
                let offer = answer.and_then(|(reply, objects)| self.offer(objects, reply, None));
                // One that is none leaves the worker where it is.
                talk.offer = offer.ok().or(talk.offer.take());
            }
            // Nothing else is refused so.
            FrameKind::Refused => talk.asked = false,
            FrameKind::AskReply => {
                let Ok((reply, why)) = AskReply::read_from_prefix(&frame.payload) else {
                    return;
                };
                let reason = String::from_utf8_lossy(why).into_owned();
                let answer = match reply.outcome {
                    ASK_READY => Answer::Ready {
                        unit: reply.unit,
                        generation: reply.generation,
                    },
                    ASK_BUSY => Answer::Failed(RequestError::Busy { reason }),
                    _ => Answer::Failed(RequestError::Refused { reason }),
                };
                match talk.requests.get_mut(&reply.id) {
                    Some(request) => request.settle(answer, &mut talk.woken),
                    None if reply.outcome == ASK_READY => self.release(talk, reply.unit, 1),
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// Gives back what was granted to requests that nobody waits for any more.
    pub(crate) fn tidy(&self, talk: &mut Talk) {
        let over = |request: &Request| {
            request.given_up.load(Ordering::Relaxed) && request.answer != Answer::None
        };
        let over: Vec<u64> = {
            let requests = talk.requests.iter();
            let over = requests.filter(|(_, request)| over(request));
            over.map(|(id, _)| *id).collect()
        };
        for id in over {
            if let Some(request) = talk.requests.remove(&id)
                && let (Answer::Ready { unit, .. }, false) = (request.answer, request.taken)
            {
                self.release(talk, unit, 1);
            }
        }
    }

    /// Tells the compiler process that this worker is done with a unit that so many replies brought.
    pub(crate) fn release(&self, talk: &mut Talk, unit: u32, grants: u32) {
        let forks = talk.forks;
        let notice = ReleaseNotice {
            forks,
            unit,
            grants,
        };
        self.send(talk, FrameKind::Release, notice.as_bytes());
    }

    /// Asks for what the next child takes over; who attached has asked for the first one's. Does not wait.
    pub(crate) fn ask_ahead(&self, talk: &mut Talk) {
        if talk.is_attached() && talk.spare.is_none() && !talk.asked {
            talk.asked = true;
            self.send(talk, FrameKind::Spare, &[]);
        }
    }

    /// What the next child takes over; waits a little for it, if it has been asked for.
    pub(crate) fn take_ahead(&self, talk: &mut Talk) -> Option<Spare> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if talk.is_attached() {
                self.receive(talk);
            }
            if let Some(spare) = talk.spare.take() {
                talk.forks += 1;
                return Some(spare);
            }
            self.ask_ahead(talk);
            let left = deadline.saturating_duration_since(Instant::now());
            let socket = self.socket.get()?;
            if left.is_zero() || !talk.is_attached() || !readable_within(socket, left) {
                return None;
            }
        }
    }

    /// In a child: the connection is the spare's from now on, under the same number, and the compiler process is told so.
    ///
    /// # Errors
    /// Where the descriptors were closed, or the system refuses.
    pub(crate) fn take_over(&self, spare: &Spare) -> io::Result<()> {
        self.socket.replace(&spare.socket)?;
        self.mailbox.replace(&spare.descriptor)?;
        if send_now(self.descriptor(), FrameKind::Adopt) {
            return Ok(());
        }
        Err(io::ErrorKind::NotConnected.into())
    }

    /// Looks whether the compiler process is there; if not, for another. Never waits: what another one offers is there at a
    /// later look.
    pub(crate) fn look<'a>(&self, talk: &'a mut Talk) -> Option<&'a Offer> {
        let now = Instant::now();
        if talk.is_attached() {
            // What was sent before the end is there.
            self.exchange(talk);
        }
        if talk.is_attached() && self.socket.get().is_some_and(has_hung_up) {
            talk.lose();
        }
        talk.state = match core::mem::replace(&mut talk.state, State::Attached) {
            State::Lost { next, backoff } if next <= now => self.ask(now, backoff),
            State::Asked {
                socket,
                until,
                backoff,
            } => self.answer(&mut talk.offer, socket, (now, until, backoff)),
            other => other,
        };
        talk.offer.as_ref()
    }

    /// Another connection to the compiler process that there is now, for questions whose answers are waited for; or why there is
    /// none.
    pub(crate) fn connect_apart(&self) -> Result<OwnedFd, String> {
        let home = self.home.as_ref().ok_or(
            "lines are not shown: the connection was handed over, and nobody knows where the compiler process listens\n  help: attach by its path",
        )?;
        let checked = attach::connect_now(home).and_then(|socket| {
            attach::check_peer(&socket, &self.trusted_uids)?;
            Ok(socket)
        });
        checked.map_err(|error| format!("lines are not shown: {error}"))
    }

    fn ask(&self, now: Instant, backoff: Duration) -> State {
        let asked = self.home.as_ref().map(|home| {
            let socket = attach::connect_now(home)?;
            attach::check_peer(&socket, &self.trusted_uids)?;
            let mailbox = self.mailbox.get().ok_or(io::ErrorKind::NotConnected);
            let mailbox = mailbox.map_err(|kind| AttachError::Protocol { cause: kind.into() })?;
            // The next compiler process may have nobody else to get the shared data from.
            let fds: Vec<_> = [Some(mailbox), self.shared_data.get()]
                .into_iter()
                .flatten()
                .collect();
            let sent = wire::send(&socket, FrameKind::Resume, self.identity.as_bytes(), &fds);
            sent.map_err(|cause| AttachError::Protocol { cause })?;
            Ok::<_, AttachError>(socket)
        });
        match asked {
            Some(Ok(socket)) => State::Asked {
                socket,
                until: now + ANSWER,
                backoff,
            },
            _ => later(now, backoff),
        }
    }

    fn answer(
        &self,
        offered: &mut Option<Offer>,
        socket: OwnedFd,
        (now, until, backoff): (Instant, Instant, Duration),
    ) -> State {
        if !readable_within(socket.as_fd(), Duration::ZERO) {
            let waits = now < until && !has_hung_up(socket.as_fd());
            return if waits {
                State::Asked {
                    socket,
                    until,
                    backoff,
                }
            } else {
                later(now, backoff)
            };
        }
        let answer = attach::answer(&socket);
        let offer = answer.and_then(|(reply, objects)| self.offer(objects, reply, Some(socket)));
        match offer {
            Ok(offer) => {
                *offered = Some(offer);
                State::Answered
            }
            Err(_) => later(now, backoff),
        }
    }

    /// What is offered to a worker, checked as when it attached.
    fn offer(
        &self,
        [segment, shared_data]: [OwnedFd; 2],
        reply: AttachReply,
        socket: Option<OwnedFd>,
    ) -> Result<Offer, AttachError> {
        let broken = |cause| AttachError::Protocol { cause };
        let (header, geometry) = attach::check_segment(&segment, self.sealed)?;
        attach::check_shared_data(&shared_data, self.sealed, &geometry)?;
        if header.instance != self.identity.instance {
            return Err(broken(io::ErrorKind::InvalidData.into()));
        }
        let socket = socket.map(Watched::new).transpose().map_err(broken)?;
        Ok(Offer {
            socket,
            segment: Watched::new(segment).map_err(broken)?,
            shared_data: Watched::new(shared_data).map_err(broken)?,
            object: header.object,
            number: reply.worker,
        })
    }

    /// Whether there is no connection, over which an offer could come.
    pub(crate) fn is_lost(&self, talk: &Talk) -> bool {
        !matches!(talk.state, State::Attached) || self.socket.get().is_none()
    }

    /// The offer was taken: its connection is this one from now on.
    pub(crate) fn accept(&self, talk: &mut Talk) {
        let Some(offer) = talk.offer.take() else {
            return;
        };
        let number = offer.number;
        note(&mut talk.events, Event::Renewed { number });
        // As below.
        let _ = self.segment.replace(&offer.segment);
        let _ = self.shared_data.replace(&offer.shared_data);
        for (word, value) in self.shared_file.iter().zip(offer.shared_data.file()) {
            word.store(value, Ordering::Relaxed);
        }
        if let Some(socket) = offer.socket {
            talk.state = State::Attached;
            // If the host has closed the descriptor, there is no connection; the worker goes on.
            let _ = self.socket.replace(&socket);
            self.ask_ahead(talk);
        }
    }

    /// The offer is none: it does not hold what it should.
    pub(crate) fn decline(&self, talk: &mut Talk) {
        note(&mut talk.events, Event::Declined);
        if talk.offer.take().is_none_or(|offer| offer.socket.is_none()) {
            return;
        }
        talk.state = State::Lost {
            next: Instant::now() + LAST_BACKOFF,
            backoff: LAST_BACKOFF,
        };
    }

    /// In a child that is no worker: closes its copy of the descriptor of the parent's mailbox.
    pub(crate) fn let_go(&self) {
        self.mailbox.close();
    }

    /// In a child, which has a connection of its own: what its parent was at is the parent's.
    pub(crate) fn begin_anew(&self, talk: &mut Talk) {
        *talk = Talk::new(false, talk.next_request);
    }
}

/// What a connection is made of.
#[derive(Debug)]
pub(crate) struct LinkParts {
    pub(crate) socket: OwnedFd,
    pub(crate) mailbox: OwnedFd,
    pub(crate) segment: OwnedFd,
    pub(crate) shared_data: OwnedFd,
    pub(crate) home: Option<Home>,
    pub(crate) identity: ResumeRequest,
    pub(crate) trusted_uids: Vec<u32>,
    pub(crate) sealed: bool,
}

/// The next look, not before twice as long has passed as last time.
fn later(now: Instant, backoff: Duration) -> State {
    State::Lost {
        next: now + backoff,
        backoff: (backoff * 2).min(LAST_BACKOFF),
    }
}

fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let looked = poll(&mut fds, Some(&now));
    looked.is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

impl Spare {
    /// The descriptor of its mailbox.
    ///
    /// # Errors
    /// Where it was closed.
    pub(crate) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        self.descriptor
            .get()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// Sends a frame without payload, if that does not block: whether it was sent. Fit for a child after a fork.
fn send_now(socket: BorrowedFd<'_>, kind: FrameKind) -> bool {
    let header = wire::FrameHeader::new(kind, 0);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::send(socket, header.as_bytes(), flags) == Ok(size_of_val(&header))
}

pub(crate) fn readable_within(socket: BorrowedFd<'_>, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return fds[0].revents().contains(PollFlags::IN),
            Err(_) => {}
        }
    }
}

fn spare_of(frame: Frame) -> io::Result<Spare> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let reply = AttachReply::read_from_bytes(&frame.payload).map_err(|_| invalid())?;
    let [mailbox, socket] = <[OwnedFd; 2]>::try_from(frame.fds).map_err(|_| invalid())?;
    Ok(Spare {
        number: reply.worker,
        mailbox: attach::map_mailbox(&mailbox, None).map_err(io::Error::other)?,
        descriptor: Watched::new(mailbox)?,
        socket: Watched::new(socket)?,
    })
}
