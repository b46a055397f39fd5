//! Attaching: the worker's side of the handshake, and its own checks of what it is given, since it is about
//! to execute it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jitcast_runtime::cpu::CpuFeatures;
use jitcast_runtime::geometry::{Area, Geometry};
use jitcast_runtime::header::{FORMAT_VERSION, Header};
use jitcast_runtime::mailbox::{MAILBOX_BYTES, MAILBOX_MAGIC, Mailbox, Word};
use jitcast_runtime::segment::{SEALS, is_fit_for_sharing, object_path};
use jitcast_runtime::sys::{self, Mapping, MappingAdvice};
use jitcast_runtime::wire::{self, AttachReply, AttachRequest, FrameKind, ResumeRequest};
use rustix::fs::{Mode, OFlags};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::AttachError;
use crate::fault::{Fault, seeded};
use crate::life::LifePage;
use crate::link::{LinkParts, readable_within};
use crate::worker::Setup;

/// Where the compiler process is found.
///
/// ```
/// # use std::path::Path;
/// use jitcast_worker::Endpoint;
///
/// let in_the_file_system = Endpoint::Path(Path::new("/run/jitcast.sock"));
/// let abstract_name = Endpoint::Path(Path::new("@jitcast"));
/// let of_a_named_segment = Endpoint::Name("scores"); // `serve --name scores`
/// ```
#[derive(Debug)]
pub enum Endpoint<'a> {
    /// Its socket in the file system, or, after an `@`, in the abstract name space.
    Path(&'a Path),
    /// A connected socket, inherited or handed over.
    Fd(OwnedFd),
    /// A named segment, whose header says where the socket is.
    Name(&'a str),
}

/// The longest label that can be stated, bytes: a 0 follows.
const MAX_LABEL_BYTES: usize = 63;

/// How long a worker looks for its answer before it sleeps: to be woken takes as long as an answer does.
const SOON: Duration = Duration::from_micros(100);

/// Who lets others run and goes on after that long has shared the processor with somebody.
const SHARED: Duration = Duration::from_micros(20);

/// Where a compiler process is found again.
#[derive(Clone, Debug)]
pub(crate) enum Home {
    Path(PathBuf),
    Name(String),
}

impl Home {
    /// `None`: a connection that was handed over cannot be made anew.
    pub(crate) fn of(endpoint: &Endpoint<'_>) -> Option<Self> {
        match endpoint {
            // The host may go to another folder.
            Endpoint::Path(path) if !is_abstract(path) => Some(Self::Path(
                std::path::absolute(path).unwrap_or_else(|_| (*path).to_owned()),
            )),
            Endpoint::Path(path) => Some(Self::Path((*path).to_owned())),
            Endpoint::Name(name) => Some(Self::Name((*name).to_owned())),
            Endpoint::Fd(_) => None,
        }
    }
}

/// What the handshake yields, checked.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) link: LinkParts,
    pub(crate) geometry: Geometry,
    pub(crate) header: Header,
    pub(crate) mailbox: Mailbox,
    pub(crate) life: LifePage,
    pub(crate) number: u64,
    /// The compiler process cannot reach anybody by membarrier.
    pub(crate) fenced: bool,
}

/// Attaches, and waits for the answer.
pub(crate) fn attach(endpoint: Endpoint<'_>, setup: &Setup) -> Result<Attachment, AttachError> {
    let home = Home::of(&endpoint);
    let asking = Asking::begin(connect(endpoint)?, setup)?;
    asking.expect_soon();
    asking.finish(home, setup)
}

/// A compiler process that has been asked to be attached to.
#[derive(Debug)]
pub(crate) struct Asking {
    socket: OwnedFd,
    request: AttachRequest,
    /// For the worker that comes of it: what a fork wipes, and where its mailbox is to be mapped.
    life: LifePage,
    mailbox: Mapping,
}

impl Asking {
    /// Asks over `socket`, which a local peer takes the question from at once.
    pub(crate) fn begin(socket: OwnedFd, setup: &Setup) -> Result<Self, AttachError> {
        check_peer(&socket, &setup.trusted_uids)?;
        let request = request(&setup.label, setup.barriers.incomplete());
        // Along with what a child takes over that may be forked.
        let frames = [
            (FrameKind::Attach, request.as_bytes()),
            (FrameKind::Spare, &[]),
        ];
        wire::send_together(&socket, &frames, &[])
            .map_err(|cause| AttachError::Protocol { cause })?;
        // While the compiler process is at it: what does not depend on the answer. The processor's features are looked at in `finish`;
        // where a hypervisor answers for it, the first look takes long.
        CpuFeatures::host();
        let (life, mailbox) = LifePage::new().map_err(|cause| AttachError::System {
            step: "mmap of what a fork wipes",
            cause,
        })?;
        Ok(Self {
            socket,
            request,
            life,
            mailbox,
        })
    }

    /// Where the answer comes.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Looks for the answer without sleeping, for as long as it takes where nobody is in the way.
    fn expect_soon(&self) {
        let (mut now, until) = (Instant::now(), Instant::now() + SOON);
        while now < until && !readable_within(self.socket.as_fd(), Duration::ZERO) {
            // The compiler process may have only this processor.
            std::thread::yield_now();
            let before = core::mem::replace(&mut now, Instant::now());
            if now - before > SHARED {
                // Others have it too: who sleeps is let on as soon as there is an answer.
                return;
            }
        }
    }

    /// Takes the answer, checked.
    pub(crate) fn finish(
        self,
        home: Option<Home>,
        setup: &Setup,
    ) -> Result<Attachment, AttachError> {
        let (reply, [segment, shared_data, mailbox_fd]) = answer(&self.socket)?;
        let sealed = reply.sealed == 1;
        let (header, geometry) = check_segment(&segment, sealed)?;
        check_shared_data(&shared_data, sealed, &geometry)?;
        let mailbox = map_mailbox(&mailbox_fd, Some(self.mailbox))?;
        let link = LinkParts {
            socket: self.socket,
            mailbox: mailbox_fd,
            segment,
            shared_data,
            home,
            identity: ResumeRequest {
                attach: self.request,
                instance: header.instance,
            },
            trusted_uids: setup.trusted_uids.clone(),
            sealed,
        };
        Ok(Attachment {
            link,
            geometry,
            header,
            mailbox,
            life: self.life,
            number: reply.worker,
            fenced: reply.fenced != 0,
        })
    }
}

fn request(label: &str, fenced: bool) -> AttachRequest {
    let mut request = AttachRequest {
        format_version: FORMAT_VERSION,
        fenced: fenced.into(),
        label: [0; 64],
    };
    let label = stated(label);
    request.label[..label.len()].copy_from_slice(label.as_bytes());
    request
}

/// As much of a label as can be stated.
pub(crate) fn stated(label: &str) -> &str {
    let label = label.split('\0').next().unwrap_or_default();
    &label[..label.floor_char_boundary(MAX_LABEL_BYTES)]
}

/// Maps a mailbox, checked, at `place` or anywhere.
pub(crate) fn map_mailbox(
    mailbox_fd: &OwnedFd,
    place: Option<Mapping>,
) -> Result<Mailbox, AttachError> {
    let step = |step| move |cause| AttachError::System { step, cause };
    let stat = rustix::fs::fstat(mailbox_fd)
        .map_err(std::io::Error::from)
        .map_err(step("fstat of the mailbox"))?;
    if stat.st_size.cast_unsigned() < u64::from(MAILBOX_BYTES) {
        return Err(protocol("the mailbox is too short"));
    }
    let mapped = match place {
        Some(place) => place.share(mailbox_fd.as_fd()),
        None => Mapping::shared(mailbox_fd.as_fd(), MAILBOX_BYTES as usize, true),
    };
    let mapping = mapped.map_err(step("mmap of the mailbox"))?;
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
    let stream = address(&path).and_then(|address| UnixStream::connect_addr(&address));
    Ok(stream.map_err(|cause| unreachable(&path, cause))?.into())
}

/// Connects, if that can be done without waiting.
pub(crate) fn connect_now(home: &Home) -> Result<OwnedFd, AttachError> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let path = match home {
        Home::Path(path) => path.clone(),
        Home::Name(name) => socket_of(name)?.into(),
    };
    let connected = || {
        let name = path.as_os_str().as_encoded_bytes();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(&path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        // A local peer takes and gives whole frames at once.
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    connected().map_err(|error| unreachable(&path, error.into()))
}

fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(b"@")
}

fn address(path: &Path) -> std::io::Result<SocketAddr> {
    match path.as_os_str().as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    }
}

fn unreachable(path: &Path, cause: std::io::Error) -> AttachError {
    let path = path.display().to_string();
    AttachError::Connect { path, cause }
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

pub(crate) fn check_peer(socket: &OwnedFd, allowed_uids: &[u32]) -> Result<(), AttachError> {
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

/// What the compiler process answers, with so many descriptors.
pub(crate) fn answer<const FDS: usize>(
    socket: &OwnedFd,
) -> Result<(AttachReply, [OwnedFd; FDS]), AttachError> {
    let broken = |cause| AttachError::Protocol { cause };
    read_answer(wire::receive(socket, wire::MAX_WORKER_PAYLOAD).map_err(broken)?)
}

/// The same, received.
pub(crate) fn read_answer<const FDS: usize>(
    frame: wire::Frame,
) -> Result<(AttachReply, [OwnedFd; FDS]), AttachError> {
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
    let fds = <[OwnedFd; FDS]>::try_from(frame.fds);
    Ok((
        reply,
        fds.map_err(|_| protocol("other descriptors than belong there"))?,
    ))
}

/// What is about to be executed must be what its compiler alone can write.
pub(crate) fn check_segment(
    segment: &OwnedFd,
    sealed: bool,
) -> Result<(Header, Geometry), AttachError> {
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
    if sealed && !seeded(Fault::SealsUnchecked) {
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

/// What is mapped for writing must not become shorter: an access to what is gone ends the process.
pub(crate) fn check_shared_data(
    object: &OwnedFd,
    sealed: bool,
    geometry: &Geometry,
) -> Result<(), AttachError> {
    let system = |step| {
        move |cause: rustix::io::Errno| AttachError::System {
            step,
            cause: cause.into(),
        }
    };
    let stat = rustix::fs::fstat(object).map_err(system("fstat of the shared data"))?;
    let needed = geometry.region(Area::SharedData).len_bytes;
    if stat.st_size < i64::from(needed) {
        return Err(AttachError::SharedData {
            why: format!("they have {} bytes of {needed}", stat.st_size),
        });
    }
    if sealed {
        let seals = rustix::fs::fcntl_get_seals(object);
        let seals = seals.map_err(system("F_GET_SEALS of the shared data"))?;
        if !is_fit_for_sharing(seals) {
            let why = format!("their seals are {:#x}", seals.bits());
            return Err(AttachError::SharedData { why });
        }
    }
    Ok(())
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
