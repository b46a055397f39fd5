//! The frames that travel over the compiler's socket, and the descriptors beside them.
//!
//! A frame is a header and a payload. Whoever receives one trusts neither its length nor its kind nor what
//! came along. Payloads of attaching are fixed records; those of publishing are the compiler crate's.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first four bytes of every frame; the last is the protocol's version.
pub const FRAME_MAGIC: [u8; 4] = *b"JCP\x01";

/// The longest payload that a worker accepts, bytes.
pub const MAX_WORKER_PAYLOAD: u32 = 64 << 10;

/// The most descriptors in a frame.
pub const MAX_FDS: usize = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FrameKind {
    /// Worker to compiler: let me in. [`AttachRequest`].
    Attach = 1,
    /// Compiler to worker: [`AttachReply`], with the descriptors of the segment, the shared data and the mailbox.
    Attached = 2,
    /// Compiler to anyone: refused, with the reason as text.
    Refused = 3,
    /// Publisher to compiler: publish this.
    Publish = 4,
    /// Compiler to publisher: done.
    Published = 5,
    /// Anyone to compiler: tell me.
    Status = 6,
    /// Compiler to anyone: the answer.
    StatusReply = 7,
    /// Worker to compiler: what a child of mine needs that may be forked at any moment.
    Spare = 8,
    /// Compiler to worker: [`AttachReply`] for such a child, with the descriptors of its mailbox and its connection.
    SpareReply = 9,
    /// Child to compiler, over that connection: here I am.
    Adopt = 10,
    /// Publisher to compiler: publish what an earlier generation had. Answered by `Published`.
    Rollback = 11,
    /// Worker to compiler: I was attached to the one before you. [`ResumeRequest`], with the descriptors of my mailbox and of the
    /// shared data. Answered by `Attached`, with those of the segment and the shared data. So is nothing: a worker is offered
    /// whatever object the segment goes on in.
    Resume = 12,
    /// Publisher to compiler: go on in another object. Answered by `Published`.
    Renew = 13,
    /// Publisher to compiler: promote or abort a canary. Answered by `Published`.
    Decide = 14,
    /// Worker to compiler: compile this for me. [`AskRequest`] and CLIF as text.
    Ask = 15,
    /// Compiler to worker: [`AskReply`], and where it came to nothing why, as text.
    AskReply = 16,
    /// Worker to compiler: I am done with that unit. [`ReleaseNotice`].
    Release = 17,
    /// Worker to compiler, once for each connection: of what those before me were told that they have, I have these; numbers of
    /// units, 32 bits each.
    Hold = 18,
    /// Anyone to compiler: let me look at the segment, as nobody. Answered by `Observed`.
    Observe = 19,
    /// Compiler to anyone: nothing, with the segment's descriptor.
    Observed = 20,
    /// Anyone to compiler: what debugging information says of a unit. [`DebugRequest`](crate::debug::DebugRequest).
    Debug = 21,
    /// Compiler to anyone: the answer ([`debug`](crate::debug)); empty: nothing is known.
    DebugReply = 22,
    /// Publisher to compiler: let these workers show what is published to debuggers and profilers. Answered by `Published`.
    Want = 23,
}

impl FrameKind {
    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        use FrameKind::{
            Adopt, Ask, AskReply, Attach, Attached, Debug, DebugReply, Decide, Hold, Observe, Observed, Publish, Published,
            Refused, Release, Renew, Resume, Rollback, Spare, SpareReply, Status, StatusReply, Want,
        };
        let all = [
            Attach, Attached, Refused, Publish, Published, Status, StatusReply, Spare, SpareReply, Adopt, Rollback,
            Resume, Renew, Decide, Ask, AskReply, Release, Hold,
            Observe, Observed, Debug, DebugReply, Want,
        ];
        all.into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// What every frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrameHeader {
    /// [`FRAME_MAGIC`].
    pub magic: [u8; 4],
    /// [`FrameKind`].
    pub kind: u32,
    /// Length of the payload, bytes.
    pub len_bytes: u32,
    /// Zero.
    pub reserved: u32,
}

impl FrameHeader {
    /// The header of a frame of `len_bytes`.
    pub fn new(kind: FrameKind, len_bytes: u32) -> Self {
        Self { magic: FRAME_MAGIC, kind: kind as u32, len_bytes, reserved: 0 }
    }
}

/// A worker's request to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttachRequest {
    /// [`FORMAT_VERSION`](crate::header::FORMAT_VERSION) of the worker.
    pub format_version: u32,
    /// 1: membarrier cannot reach the worker, its guards use fences.
    pub fenced: u32,
    /// A label for people, NUL-padded UTF-8.
    pub label: [u8; 64],
}

/// A worker's request to go on with another compiler process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ResumeRequest {
    /// What it would attach with.
    pub attach: AttachRequest,
    /// Which segment it has mapped ([`Header::instance`](crate::header::Header)).
    pub instance: [u8; 16],
}

/// The compiler's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AttachReply {
    /// The number by which the compiler knows the worker.
    pub worker: u64,
    /// 1: the segment is sealed, and the worker is to insist on the seals.
    pub sealed: u32,
    /// 1: the compiler process has no membarrier, so the worker's guards are to use fences.
    pub fenced: u32,
}

/// A worker's request for a unit. The text follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AskRequest {
    /// What the reply is known by: the worker's own numbering.
    pub id: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AskReply {
    /// That of the request.
    pub id: u64,
    /// The first generation that has the unit.
    pub generation: u64,
    /// The unit's number.
    pub unit: u32,
    /// [`ASK_READY`], [`ASK_REFUSED`] or [`ASK_BUSY`].
    pub outcome: u32,
}

/// [`AskReply::outcome`]: the unit is there, and the worker's until it releases it.
pub const ASK_READY: u32 = 0;
/// [`AskReply::outcome`]: it came to nothing, and would again.
pub const ASK_REFUSED: u32 = 1;
/// [`AskReply::outcome`]: not now.
pub const ASK_BUSY: u32 = 2;

/// A worker's notice that it is done with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReleaseNotice {
    /// How many children have taken over what this connection brought for them: those have the unit still.
    pub forks: u64,
    /// The unit's number.
    pub unit: u32,
    /// How many replies brought it.
    pub grants: u32,
}

/// A frame, received.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Sends a frame with `fds` beside its first byte; blocks if the socket does.
///
/// # Errors
/// As sendmsg(2); `InvalidInput` if the payload exceeds 4 GiB.
pub fn send(
    socket: impl AsFd,
    kind: FrameKind,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_together(socket, &[(kind, payload)], fds)
}

/// The same for several frames, in one piece: whoever receives them is woken once.
///
/// # Errors
/// As [`send`].
pub fn send_together(
    socket: impl AsFd,
    frames: &[(FrameKind, &[u8])],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut bytes = Vec::new();
    for (kind, payload) in frames {
        let len_bytes = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        bytes.extend_from_slice(FrameHeader::new(*kind, len_bytes).as_bytes());
        bytes.extend_from_slice(payload);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let parts = [IoSlice::new(&bytes[sent..])];
        match rustix::net::sendmsg(&socket, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(count) => {
                sent += count;
                ancillary.clear();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives some bytes and whatever descriptors come with them.
///
/// # Errors
/// As recvmsg(2).
pub fn receive_some(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    receive_with(socket, buffer, fds, RecvFlags::empty())
}

/// As [`receive_some`]; `WouldBlock` if nothing has come.
///
/// # Errors
/// As recvmsg(2).
pub fn receive_now(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    receive_with(socket, buffer, fds, RecvFlags::DONTWAIT)
}

fn receive_with(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let count = loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(count)
}

/// Receives a whole frame from a blocking socket; a payload over `max_len_bytes` is refused.
///
/// # Errors
/// `UnexpectedEof` if the other side closed, `InvalidData` if it speaks something else, else as recvmsg(2).
pub fn receive(socket: impl AsFd, max_len_bytes: u32) -> io::Result<Frame> {
    let mut fds = Vec::new();
    let mut header = [0; size_of::<FrameHeader>()];
    fill(&socket, &mut header, &mut fds)?;
    let (kind, len_bytes) = check_header(&header, max_len_bytes)?;
    let mut payload = vec![0; len_bytes as usize];
    fill(&socket, &mut payload, &mut fds)?;
    Ok(Frame { kind, payload, fds })
}

/// The kind and the payload's length that a header states.
///
/// # Errors
/// `InvalidData` if it is no header of this protocol, or states more than `max_len_bytes`.
pub fn check_header(bytes: &[u8; size_of::<FrameHeader>()], max_len_bytes: u32) -> io::Result<(FrameKind, u32)> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let header = FrameHeader::read_from_bytes(bytes).map_err(|_| invalid("no frame".into()))?;
    if header.magic != FRAME_MAGIC {
        return Err(invalid(format!("the other side speaks another protocol: it began with {:02x?}", header.magic)));
    }
    let kind = FrameKind::from_number(header.kind)
        .ok_or_else(|| invalid(format!("frame of the unknown kind {}", header.kind)))?;
    if header.len_bytes > max_len_bytes {
        return Err(invalid(format!("a frame of {} bytes exceeds the limit of {max_len_bytes}", header.len_bytes)));
    }
    Ok((kind, header.len_bytes))
}

fn fill(socket: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match receive_some(&socket, &mut buffer[filled..], fds)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    Ok(())
}
