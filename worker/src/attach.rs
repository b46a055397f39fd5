//! Attaching: the worker's side of the handshake, and its own checks of what it is given, since it is about
//! to execute it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use jitcast_runtime::Geometry;
use jitcast_runtime::cpu::CpuFeatures;
use jitcast_runtime::header::{FORMAT_VERSION, Header};
use jitcast_runtime::mailbox::{MAILBOX_BYTES, MAILBOX_MAGIC, Mailbox, Word};
use jitcast_runtime::segment::{SEALS, object_path};
use jitcast_runtime::sys::{self, Mapping, MappingAdvice};
use jitcast_runtime::wire::{self, AttachReply, AttachRequest, FrameKind};
use rustix::fs::{Mode, OFlags};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::AttachError;

/// Where the compiler process is found.
#[derive(Debug)]
pub enum Endpoint<'a> {
    /// Its socket in the file system, or, after an `@`, in the abstract name space.
    Path(&'a Path),
    /// A connected socket, inherited or handed over.
    Fd(OwnedFd),
    /// A named segment, whose header says where the socket is.
    Name(&'a str),
}

/// What the handshake yields, checked.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) socket: OwnedFd,
    pub(crate) segment: OwnedFd,
    pub(crate) geometry: Geometry,
    pub(crate) header: Header,
    pub(crate) mailbox: Mailbox,
    pub(crate) number: u64,
    /// The compiler process cannot reach anybody by membarrier.
    pub(crate) fenced: bool,
}

pub(crate) fn attach(
    endpoint: Endpoint<'_>,
    label: &str,
    fenced: bool,
    allowed_uids: &[u32],
) -> Result<Attachment, AttachError> {
    let socket = connect(endpoint)?;
    check_peer(&socket, allowed_uids)?;
    let (reply, segment, mailbox_fd) = ask(&socket, label, fenced)?;
    let (header, geometry) = check_segment(&segment, reply.sealed == 1)?;
    let mailbox = map_mailbox(&mailbox_fd)?;
    Ok(Attachment {
        socket,
        segment,
        geometry,
        header,
        mailbox,
        number: reply.worker,
        fenced: reply.fenced != 0,
    })
}

/// Maps a mailbox, checked.
pub(crate) fn map_mailbox(mailbox_fd: &OwnedFd) -> Result<Mailbox, AttachError> {
    let step = |step| move |cause| AttachError::System { step, cause };
    let stat = rustix::fs::fstat(mailbox_fd)
        .map_err(std::io::Error::from)
        .map_err(step("fstat of the mailbox"))?;
    if stat.st_size.cast_unsigned() < u64::from(MAILBOX_BYTES) {
        return Err(protocol("the mailbox is too short"));
    }
    let mapping = Mapping::shared(mailbox_fd.as_fd(), MAILBOX_BYTES as usize, true)
        .map_err(step("mmap of the mailbox"))?;
    mapping
        .advise(MappingAdvice::LinuxDontDump)
        .map_err(step("madvise of the mailbox"))?;
    let mailbox = Mailbox::new(mapping).map_err(|cause| AttachError::Update(cause.into()))?;
    if mailbox
        .word(Word::Magic)
        .load(core::sync::atomic::Ordering::Relaxed)
        != MAILBOX_MAGIC
    {
        return Err(protocol("the mailbox is none"));
    }
    Ok(mailbox)
}

fn connect(endpoint: Endpoint<'_>) -> Result<OwnedFd, AttachError> {
    let path = match endpoint {
        Endpoint::Fd(socket) => return Ok(socket),
        Endpoint::Path(path) => path.to_owned(),
        Endpoint::Name(name) => socket_of(name)?.into(),
    };
    let connected = match path.as_os_str().as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)
            .and_then(|address| UnixStream::connect_addr(&address)),
        None => UnixStream::connect(&path),
    };
    let stream = connected.map_err(|cause| AttachError::Connect {
        path: path.display().to_string(),
        cause,
    })?;
    Ok(stream.into())
}

/// The socket that the header of the segment called `name` states.
fn socket_of(name: &str) -> Result<String, AttachError> {
    let system = |cause: std::io::Error| AttachError::System {
        step: "opening the named segment",
        cause,
    };
    let path =
        object_path(name).map_err(|error| system(std::io::Error::other(error.to_string())))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let object =
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|cause| AttachError::Connect {
            path: path.clone(),
            cause: cause.into(),
        })?;
    let (header, _) = read_header(&object)?;
    let socket = header
        .socket
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    match String::from_utf8(socket.to_vec()) {
        Ok(socket) if !socket.is_empty() => Ok(socket),
        _ => Err(protocol("the named segment states no socket")),
    }
}

fn check_peer(socket: &OwnedFd, allowed_uids: &[u32]) -> Result<(), AttachError> {
    let peer = sys::peer(socket).map_err(|cause| AttachError::System {
        step: "SO_PEERCRED",
        cause,
    })?;
    let (found, own) = (peer.uid, rustix::process::geteuid().as_raw());
    if found == own || found == 0 || allowed_uids.contains(&found) {
        return Ok(());
    }
    Err(AttachError::ForeignCompiler { found, own })
}

fn ask(
    socket: &OwnedFd,
    label: &str,
    fenced: bool,
) -> Result<(AttachReply, OwnedFd, OwnedFd), AttachError> {
    let mut request = AttachRequest {
        format_version: FORMAT_VERSION,
        fenced: fenced.into(),
        label: [0; 64],
    };
    let len = label.floor_char_boundary(request.label.len() - 1);
    request.label[..len].copy_from_slice(&label.as_bytes()[..len]);
    let broken = |cause| AttachError::Protocol { cause };
    wire::send(socket, FrameKind::Attach, request.as_bytes(), &[]).map_err(broken)?;
    let frame = wire::receive(socket, wire::MAX_WORKER_PAYLOAD).map_err(broken)?;
    match frame.kind {
        FrameKind::Attached => {}
        FrameKind::Refused => {
            return Err(AttachError::Refused {
                reason: String::from_utf8_lossy(&frame.payload).into_owned(),
            });
        }
        _ => return Err(protocol("an unexpected kind of frame")),
    }
    let reply =
        AttachReply::read_from_bytes(&frame.payload).map_err(|_| protocol("a malformed reply"))?;
    let [segment, mailbox] =
        <[OwnedFd; 2]>::try_from(frame.fds).map_err(|_| protocol("other than two descriptors"))?;
    Ok((reply, segment, mailbox))
}

/// What is about to be executed must be what its compiler alone can write.
fn check_segment(segment: &OwnedFd, sealed: bool) -> Result<(Header, Geometry), AttachError> {
    let system = |step| {
        move |cause: rustix::io::Errno| AttachError::System {
            step,
            cause: cause.into(),
        }
    };
    let flags = rustix::fs::fcntl_getfl(segment).map_err(system("F_GETFL of the segment"))?;
    if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return Err(AttachError::Writable);
    }
    if sealed {
        let seals =
            rustix::fs::fcntl_get_seals(segment).map_err(system("F_GET_SEALS of the segment"))?;
        if !seals.contains(SEALS) {
            return Err(AttachError::NotSealed {
                found: seals.bits(),
                needed: SEALS.bits(),
            });
        }
    }
    read_header(segment)
}

fn read_header(object: &OwnedFd) -> Result<(Header, Geometry), AttachError> {
    let system = |step| {
        move |cause: rustix::io::Errno| AttachError::System {
            step,
            cause: cause.into(),
        }
    };
    let len_bytes = rustix::fs::fstat(object)
        .map_err(system("fstat of the segment"))?
        .st_size
        .cast_unsigned();
    let mut first = [0; size_of::<Header>()];
    let mut filled = 0;
    while filled < first.len() {
        let count = rustix::io::pread(object, &mut first[filled..], filled as u64)
            .map_err(system("reading the segment's header"))?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(Header::check(
        &first[..filled],
        len_bytes,
        CpuFeatures::host(),
    )?)
}

fn protocol(why: &'static str) -> AttachError {
    AttachError::Protocol {
        cause: std::io::Error::new(std::io::ErrorKind::InvalidData, why),
    }
}
