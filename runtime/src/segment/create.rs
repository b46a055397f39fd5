//! A segment from the compiler process's side: made, mapped, sealed, backed.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::FallocateFlags;

use crate::cpu::CpuFeatures;
use crate::frames::stub_frames;
use crate::geometry::{Geometry, Region};
use crate::header::{self, CONTROL_FIXED_BYTES, Header};
use crate::heap::Backing;
use crate::memory::Memory;
use crate::selector;
use crate::sys;

use super::named::{DeadSegment, NamedObject};
use super::{NameError, cgroup, memfd};

/// What lies behind a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackEnd {
    /// An anonymous object, sealed so that no worker can write it.
    Sealed,
    /// An object with a name, which the same user can reopen for writing.
    Named(String),
}

/// How a segment is to be.
#[derive(Clone, Debug)]
pub struct SegmentOptions {
    /// Its layout.
    pub geometry: Geometry,
    /// What its code may use.
    pub cpu: CpuFeatures,
    /// Where it lies.
    pub back_end: BackEnd,
    /// The path of the compiler's socket, at most 108 bytes; empty if it has none.
    pub socket: String,
}

impl SegmentOptions {
    fn header(&self, numbers: ([u8; 16], u64), hash_seed: u64) -> Result<Header, SegmentError> {
        let mut socket = [0; 108];
        let path = self.socket.as_bytes();
        let room = socket.get_mut(..path.len());
        room.ok_or(SegmentError::Socket { len_bytes: path.len() })?.copy_from_slice(path);
        Ok(Header::new(&self.geometry, self.cpu, numbers, hash_seed, socket))
    }
}

/// Why a compiler process does not go on in the object that another one left.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is not what was written down.
    #[error("its {what} is another one")]
    Different {
        /// What of it.
        what: &'static str,
    },
    /// It cannot be had.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// It cannot be had.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Why a segment cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// The system refused a step.
    #[error("cannot create the segment: {step}: {cause}\n  help: {help}")]
    System {
        /// Which step.
        step: &'static str,
        /// What to do.
        help: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The name cannot be had.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The socket's path does not fit the header.
    #[error("the socket's path has {len_bytes} bytes, at most 108 fit\n  help: choose a shorter path")]
    Socket {
        /// Its length, bytes.
        len_bytes: usize,
    },
}

/// A segment, as its compiler process holds it.
#[derive(Debug)]
pub struct Segment {
    // Declared, and so dropped, before the mapping that it looks at.
    memory: Memory,
    object: Object,
    geometry: Geometry,
    header: Header,
}

#[derive(Debug)]
enum Object {
    Sealed(memfd::SealedMemfd),
    Named(NamedObject),
}

impl Segment {
    /// Creates a segment with an empty directory.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn create(options: &SegmentOptions) -> Result<Self, SegmentError> {
        let instance = sys::random().map_err(no_random)?;
        let hash_seed = u64::from_le_bytes(sys::random().map_err(no_random)?);
        Self::restore(options, instance, hash_seed)
    }

    /// Creates a segment for the image of another one, whose header said `instance` and `hash_seed`: names are
    /// found in the image by hashes with that seed.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn restore(
        options: &SegmentOptions,
        instance: [u8; 16],
        hash_seed: u64,
    ) -> Result<Self, SegmentError> {
        Self::make(options, (instance, hash_seed), NamedObject::create)
    }

    /// The same, but a named one gets its name with [`Segment::claim`]: until then another object may have it.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn restore_beside(
        options: &SegmentOptions,
        instance: [u8; 16],
        hash_seed: u64,
    ) -> Result<Self, SegmentError> {
        Self::make(options, (instance, hash_seed), NamedObject::create_beside)
    }

    fn make(
        options: &SegmentOptions,
        (instance, hash_seed): ([u8; 16], u64),
        named: fn(&str, u32) -> Result<NamedObject, SegmentError>,
    ) -> Result<Self, SegmentError> {
        let geometry = options.geometry;
        let header = options.header((instance, object_number()?), hash_seed)?;
        let len_bytes = geometry.shared().len_bytes;
        let object = match &options.back_end {
            BackEnd::Sealed => Object::Sealed(memfd::SealedMemfd::create(len_bytes)?),
            BackEnd::Named(name) => Object::Named(named(name, len_bytes)?),
        };
        Self::format(geometry, header, object)
    }

    /// Creates another object for the same segment, with the same header but for its own number; nothing else is in it
    /// yet. A named one gets its name with [`Segment::install`].
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn renewed(&self) -> Result<Self, SegmentError> {
        let header = Header { object: object_number()?, ..self.header };
        let len_bytes = self.geometry.shared().len_bytes;
        let object = match &self.object {
            Object::Sealed(_) => Object::Sealed(memfd::SealedMemfd::create(len_bytes)?),
            Object::Named(object) => Object::Named(NamedObject::create_beside(object.name(), len_bytes)?),
        };
        Self::format(self.geometry, header, object)
    }

    /// Goes on in the object that a dead compiler process left, if its header is what [`Segment::restore`] would give a new one;
    /// nothing of it is changed.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub fn adopt(
        dead: DeadSegment,
        options: &SegmentOptions,
        (instance, hash_seed): ([u8; 16], u64),
    ) -> Result<Self, AdoptError> {
        let geometry = options.geometry;
        let object = NamedObject::adopt(dead)?;
        let needed_bytes = geometry.shared().len_bytes as usize;
        if object.len_bytes() < needed_bytes {
            return Err(AdoptError::Different { what: "length" });
        }
        // SAFETY: as in `format`: the object maps at least these bytes, and they stay as long as it.
        let memory = unsafe { Memory::new(object.base(), geometry.shared()) };
        let found: Header = memory.read(geometry.shared().offset()).map_err(|_| AdoptError::Different { what: "length" })?;
        let header = options.header((instance, found.object), hash_seed)?;
        for (what, same) in [
            ("instance", found.instance == header.instance),
            ("layout", found.areas == header.areas),
            ("processor features", found.cpu_features == header.cpu_features),
            ("socket", found.socket == header.socket),
            ("header", found == header && found.object != 0),
            ("code of selectors", has_selectors(&memory, &geometry)),
        ] {
            if !same {
                return Err(AdoptError::Different { what });
            }
        }
        Ok(Self { memory, object: Object::Named(object), geometry, header })
    }

    /// Gives a renewed object the name of the one before, or, the second time, gives it back.
    ///
    /// # Errors
    /// [`SegmentError::Name`].
    pub fn install(&self) -> Result<(), SegmentError> {
        match &self.object {
            Object::Sealed(_) => Ok(()),
            Object::Named(object) => Ok(object.install()?),
        }
    }

    /// Gives an object that was made beside another one its name, which nobody has any more.
    ///
    /// # Errors
    /// [`SegmentError::Name`].
    pub fn claim(&self) -> Result<(), SegmentError> {
        match &self.object {
            Object::Sealed(_) => Ok(()),
            Object::Named(object) => Ok(object.claim()?),
        }
    }

    fn format(geometry: Geometry, header: Header, object: Object) -> Result<Self, SegmentError> {
        let base = match &object {
            Object::Sealed(object) => object.base(),
            Object::Named(object) => object.base(),
        };
        // SAFETY: the object maps `len_bytes` bytes from `base`, page-aligned, readable and writable; it is
        // dropped after the memory, and hands out no other access to them.
        let memory = unsafe { Memory::new(base, geometry.shared()) };
        let segment = Self { memory, object, geometry, header };
        let header_region = Region { start: geometry.shared().start, len_bytes: CONTROL_FIXED_BYTES };
        for fixed in [header_region, geometry.selectors()] {
            segment.reserve(fixed).map_err(|cause| SegmentError::System {
                step: "fallocate of the header",
                help: "there is no memory for it: enlarge the tmpfs or the memory cgroup",
                cause,
            })?;
        }
        header::format(&segment.memory, &geometry, &header);
        segment.memory.write_bytes(geometry.selectors().offset(), &selector::block_code());
        Ok(segment)
    }

    /// The compiler's mapping.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The layout.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The constant part of the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// A descriptor for one worker, open for reading only.
    ///
    /// # Errors
    /// As open(2).
    pub fn worker_fd(&self) -> io::Result<OwnedFd> {
        match &self.object {
            Object::Sealed(object) => object.for_worker(),
            Object::Named(object) => object.for_worker(),
        }
    }

    /// Whether workers may map it that an earlier compiler process let in, and of whose pins this one knows nothing.
    pub fn has_strangers(&self) -> bool {
        match &self.object {
            Object::Sealed(_) => false,
            Object::Named(object) => object.has_strangers(),
        }
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match &self.object {
            Object::Sealed(_) => None,
            Object::Named(object) => Some(object.name()),
        }
    }

    /// Keeps the name in the file system when this value is dropped, for workers that still need it.
    pub fn keep_name(&self) {
        if let Object::Named(object) = &self.object {
            object.keep();
        }
    }

    fn writable_fd(&self) -> BorrowedFd<'_> {
        match &self.object {
            Object::Sealed(object) => object.writable(),
            Object::Named(object) => object.writable(),
        }
    }
}

/// Whether the code of selectors, and how stubs are unwound through, are those of this version.
fn has_selectors(memory: &Memory, geometry: &Geometry) -> bool {
    let code = selector::block_code();
    let at = header::stub_frames_at(geometry);
    let frames = stub_frames(geometry, at);
    memory.bytes(geometry.selectors().offset(), code.len()).is_ok_and(|found| found[..] == code[..])
        && memory.bytes(at, frames.len()).is_ok_and(|found| found[..] == frames[..])
}

/// A number for an object.
fn object_number() -> Result<u64, SegmentError> {
    Ok(u64::from_le_bytes(sys::random().map_err(no_random)?) | 1)
}

fn no_random(cause: io::Error) -> SegmentError {
    let help = "the kernel has no random numbers yet; try again";
    SegmentError::System { step: "getrandom", help, cause }
}

impl Backing for Segment {
    fn reserve(&self, range: Region) -> io::Result<()> {
        cgroup::check(range.len_bytes.into())?;
        let start = u64::from(range.start - self.geometry.shared().start);
        let flags = FallocateFlags::empty();
        loop {
            match rustix::fs::fallocate(self.writable_fd(), flags, start, range.len_bytes.into()) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

