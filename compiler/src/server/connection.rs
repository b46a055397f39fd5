//! One peer: what it has sent so far, what it has not read yet, who it is.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use jitcast_runtime::sys;
use jitcast_runtime::wire::{self, AskRequest, FrameHeader, FrameKind, MAX_WORKER_PAYLOAD};
use rustix::net::SendFlags;
use zerocopy::IntoBytes;

use super::Policy;
use super::publishing::Work;
use crate::request::MAX_REQUEST_BYTES;
use crate::requests;

/// What a peer may leave unread, bytes, before it is dropped.
const MAX_UNREAD: usize = 64 << 20;

/// How long after a hang-up the worker is looked for first; twice as long each time, up to 64 times.
const FIRST_LOOK: Duration = Duration::from_millis(16);

/// A request, whole.
#[derive(Debug)]
pub(super) enum Incoming {
    Attach(Vec<u8>),
    /// As the first, of a worker that has been attached to another compiler process; and the descriptors that came along.
    Resume(Vec<u8>, Vec<OwnedFd>),
    /// Somebody looks at the segment.
    Observe,
    /// What a child takes over.
    Spare,
    /// The child is there: this process.
    Adopt(i32),
    /// A unit is asked for.
    Ask(requests::Incoming),
    /// A worker is done with one.
    Release(Vec<u8>),
    /// Which ones a worker has.
    Hold(Vec<u8>),
    /// What takes a while.
    Work(Work),
    /// Something that the peer may not ask for.
    Refused(String),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// `None`: only the process is still watched.
    socket: Option<OwnedFd>,
    pid: i32,
    uid: u32,
    gid: u32,
    header: Vec<u8>,
    frame: Option<(FrameKind, usize)>,
    payload: Vec<u8>,
    /// How much of the frame's payload has been read and not kept, since it is too long, bytes.
    passed_over: usize,
    unsent: Vec<u8>,
    /// Whether the poller waits until more of that can be sent.
    pending: bool,
    worker: Option<u64>,
    pidfd: Option<OwnedFd>,
    /// Whether it has said which units it has.
    stated: bool,
    /// Whether it was given the segment to look at.
    observes: bool,
    deadline: Option<Instant>,
    /// Requests that are being carried out.
    jobs: u32,
    /// It is for a child of this worker, which has not arrived yet.
    child_of: Option<u64>,
    /// Descriptors that came with the frame that is being read.
    fds: Vec<OwnedFd>,
    /// Both ends were made by this process.
    is_pair: bool,
    /// Who sent what came last, where that is asked for.
    sender: Option<i32>,
    /// The object that the worker was offered last.
    offered: u64,
    /// How often it was looked for since its connection ended.
    looks: u32,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, deadline: Instant) -> io::Result<Self> {
        let peer = sys::peer(&socket)?;
        Ok(Self {
            socket: Some(socket),
            pid: peer.pid,
            uid: peer.uid,
            gid: peer.gid,
            header: Vec::new(),
            frame: None,
            payload: Vec::new(),
            passed_over: 0,
            unsent: Vec::new(),
            pending: false,
            worker: None,
            pidfd: None,
            stated: false,
            observes: false,
            deadline: Some(deadline),
            jobs: 0,
            child_of: None,
            fds: Vec::new(),
            is_pair: false,
            sender: None,
            offered: 0,
            looks: 0,
        })
    }

    /// The connection of a child that `parent` may fork: worker `number`.
    pub(super) fn for_child(&self, socket: OwnedFd, number: u64) -> Option<Self> {
        Some(Self {
            socket: Some(socket),
            pid: self.pid,
            uid: self.uid,
            gid: self.gid,
            header: Vec::new(),
            frame: None,
            payload: Vec::new(),
            passed_over: 0,
            unsent: Vec::new(),
            pending: false,
            worker: Some(number),
            pidfd: None,
            stated: false,
            observes: false,
            deadline: None,
            jobs: 0,
            child_of: Some(self.worker?),
            fds: Vec::new(),
            is_pair: true,
            sender: None,
            offered: 0,
            looks: 0,
        })
    }

    /// Whether it is to be given the segment for the first time.
    pub(super) fn observe_once(&mut self) -> bool {
        !std::mem::replace(&mut self.observes, true)
    }

    /// Whether it says for the first time which units it has.
    pub(super) fn state_once(&mut self) -> bool {
        !std::mem::replace(&mut self.stated, true)
    }

    /// The worker whose child it waits for.
    pub(super) fn child_of(&self) -> Option<u64> {
        self.child_of
    }

    /// The child has arrived: process `pid`.
    pub(super) fn arrive(&mut self, pid: i32) {
        (self.child_of, self.pid) = (None, pid);
    }

    /// What is left when only the worker's end still matters: to be looked for at the deadline, at first soon.
    pub(super) fn into_watch(self) -> Self {
        let pause = FIRST_LOOK * (1 << self.looks.min(6));
        Self {
            socket: None,
            deadline: Some(Instant::now() + pause),
            looks: self.looks + 1,
            payload: Vec::new(),
            unsent: Vec::new(),
            ..self
        }
    }

    /// The process that connected has ended.
    pub(super) fn forget_process(&mut self) {
        self.pidfd = None;
    }

    /// The socket; `None` once only the process is watched.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn uid(&self) -> u32 {
        self.uid
    }

    pub(super) fn worker(&self) -> Option<u64> {
        self.worker
    }

    pub(super) fn set_worker(&mut self, number: u64) {
        self.worker = Some(number);
        self.deadline = None;
    }

    /// The object that the worker was offered last.
    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    pub(super) fn set_offered(&mut self, object: u64) {
        self.offered = object;
    }

    pub(super) fn keep_pidfd(&mut self, pidfd: OwnedFd) {
        self.pidfd = Some(pidfd);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The peer waits for us now, not we for it.
    pub(super) fn start_job(&mut self) {
        self.jobs += 1;
        self.deadline = None;
    }

    pub(super) fn finish_job(&mut self, deadline: Instant) {
        self.jobs -= 1;
        if self.worker.is_none() && self.jobs == 0 {
            self.deadline = Some(deadline);
        }
    }

    /// Whether the peer has left something unread.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The process that connected: by `SO_PEERPIDFD` (Linux 6.5), which cannot mean another one, else by its
    /// number.
    pub(super) fn pidfd(&self) -> Option<OwnedFd> {
        const SO_PEERPIDFD: libc::c_int = 77;
        let by_number = || {
            let pid = rustix::process::Pid::from_raw(self.pid)?;
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
        };
        if self.is_pair {
            // It was made by this process.
            return by_number();
        }
        let mut fd: libc::c_int = -1;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        let socket = self.socket()?.as_raw_fd();
        // SAFETY: the option writes one int into `fd` and its size into `len`, both of which live across the
        // call.
        let result = unsafe {
            libc::getsockopt(
                socket,
                libc::SOL_SOCKET,
                SO_PEERPIDFD,
                (&raw mut fd).cast(),
                &raw mut len,
            )
        };
        if result == 0 && fd >= 0 {
            // SAFETY: the kernel just made this descriptor for us; nobody else knows it.
            return Some(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        by_number()
    }

    /// Reads what has come; a whole request, if there is one. Descriptors that come along are closed with it, unless it is one that
    /// has some.
    pub(super) fn read(
        &mut self,
        policy: &Policy,
        buffer: &mut [u8],
    ) -> Result<Option<Incoming>, String> {
        const HEADER: usize = size_of::<FrameHeader>();
        loop {
            let wanted = match self.frame {
                None => HEADER - self.header.len(),
                Some((_, len)) => (len - self.payload.len() - self.passed_over).min(buffer.len()),
            };
            if wanted > 0 {
                let Some(socket) = &self.socket else {
                    return Err("closed".into());
                };
                // Without a buffer for them, descriptors that come along are dropped by the kernel.
                let received = if self.child_of.is_some() {
                    let received = sys::receive_with_sender(socket, &mut buffer[..wanted]);
                    received.map(|(count, sender)| {
                        self.sender = sender;
                        count
                    })
                } else {
                    let fds = &mut self.fds;
                    let received = wire::receive_some(socket, &mut buffer[..wanted], fds);
                    // More than any frame has belong nowhere, and are closed.
                    fds.truncate(wire::MAX_FDS);
                    received.map_err(|error| {
                        rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
                    })
                };
                match received {
                    Ok(0) => return Err("the peer has closed".into()),
                    Ok(count) => match self.frame {
                        None => self.header.extend_from_slice(&buffer[..count]),
                        Some((kind, _)) => {
                            let kept = (self.kept(kind, policy) - self.payload.len()).min(count);
                            self.payload.extend_from_slice(&buffer[..kept]);
                            self.passed_over += count - kept;
                        }
                    },
                    Err(rustix::io::Errno::AGAIN) => return Ok(None),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            if self.frame.is_none() && self.header.len() == HEADER {
                let header: &[u8; HEADER] = self.header[..].try_into().expect("just measured");
                let (kind, len) =
                    wire::check_header(header, u32::MAX).map_err(|error| error.to_string())?;
                let limit = self.payload_limit(policy);
                if kind != FrameKind::Ask && len > limit {
                    return Err(format!(
                        "a frame of {len} bytes exceeds the limit of {limit}"
                    ));
                }
                self.frame = Some((kind, len as usize));
            }
            if let Some((kind, len)) = self.frame
                && self.payload.len() + self.passed_over == len
            {
                self.frame = None;
                self.header.clear();
                return Ok(Some(self.admit(kind, policy)));
            }
        }
    }

    fn payload_limit(&self, policy: &Policy) -> u32 {
        if policy.publish.allows(self.uid, self.gid) {
            MAX_REQUEST_BYTES
        } else {
            MAX_WORKER_PAYLOAD
        }
    }

    /// How much is kept of a payload, bytes. A request that is too long is answered, like one that nobody may make.
    fn kept(&self, kind: FrameKind, policy: &Policy) -> usize {
        let head = size_of::<AskRequest>();
        match kind {
            FrameKind::Ask if policy.request.allows(self.uid, self.gid) => {
                head + policy.requests.limits.text_bytes as usize
            }
            FrameKind::Ask => head,
            _ => usize::MAX,
        }
    }

    fn admit(&mut self, kind: FrameKind, policy: &Policy) -> Incoming {
        let payload = std::mem::take(&mut self.payload);
        let passed_over = std::mem::take(&mut self.passed_over);
        let fds = std::mem::take(&mut self.fds);
        let lacks = |right: &str| {
            format!(
                "uid {} gid {} may not {right}\n  help: start the compiler process with --allow-{right} {}",
                self.uid, self.gid, self.uid
            )
        };
        let refused = |right: &str| Incoming::Refused(lacks(right));
        let may_attach = policy.attach.allows(self.uid, self.gid);
        let may_publish = policy.publish.allows(self.uid, self.gid);
        match kind {
            FrameKind::Adopt if self.child_of.is_some() => match self.sender {
                Some(pid) => Incoming::Adopt(pid),
                None => Incoming::Refused("nobody can tell who sent that".to_owned()),
            },
            _ if self.child_of.is_some() => {
                Incoming::Refused("the child has not arrived".to_owned())
            }
            FrameKind::Spare => Incoming::Spare,
            FrameKind::Ask => {
                let may = policy.request.allows(self.uid, self.gid);
                Incoming::Ask(requests::Incoming {
                    len_bytes: payload.len() + passed_over,
                    payload,
                    refused: (!may).then(|| lacks("request")),
                })
            }
            FrameKind::Release if self.worker.is_some() => Incoming::Release(payload),
            FrameKind::Hold if self.worker.is_some() => Incoming::Hold(payload),
            FrameKind::Attach if may_attach => Incoming::Attach(payload),
            FrameKind::Resume if may_attach => Incoming::Resume(payload, fds),
            FrameKind::Attach | FrameKind::Resume => refused("attach"),
            FrameKind::Publish if may_publish => Incoming::Work(Work::Publish(payload)),
            FrameKind::Rollback if may_publish => Incoming::Work(Work::Rollback(payload)),
            FrameKind::Decide if may_publish => Incoming::Work(Work::Decide(payload)),
            FrameKind::Renew if may_publish => Incoming::Work(Work::Renew),
            FrameKind::Want if may_publish => Incoming::Work(Work::Want(payload)),
            FrameKind::Publish
            | FrameKind::Rollback
            | FrameKind::Renew
            | FrameKind::Decide
            | FrameKind::Want => refused("publish"),
            FrameKind::Debug if may_attach || may_publish => Incoming::Work(Work::Debug(payload)),
            FrameKind::Status if may_attach || may_publish => {
                Incoming::Work(Work::Status(!payload.is_empty()))
            }
            FrameKind::Observe if may_attach || may_publish => Incoming::Observe,
            FrameKind::Status | FrameKind::Observe | FrameKind::Debug => refused("attach"),
            other => Incoming::Refused(format!(
                "a frame of kind {other:?} is not for the compiler process"
            )),
        }
    }

    /// Queues a frame.
    pub(super) fn queue(&mut self, kind: FrameKind, payload: &[u8]) {
        let header = FrameHeader::new(kind, u32::try_from(payload.len()).unwrap_or(0));
        self.unsent.extend_from_slice(header.as_bytes());
        self.unsent.extend_from_slice(payload);
    }

    /// From now on something is left to be sent, or nothing: whether it was otherwise.
    pub(super) fn set_pending(&mut self, pending: bool) -> bool {
        core::mem::replace(&mut self.pending, pending) != pending
    }

    /// Sends what the peer takes; whether something is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.socket else {
            return Ok(false);
        };
        while !self.unsent.is_empty() {
            match rustix::net::send(
                socket,
                &self.unsent,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if self.unsent.len() <= MAX_UNREAD => {
                    return Ok(true);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}
