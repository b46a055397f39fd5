//! A segment from the compiler process's side: made, mapped, sealed, backed.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use crate::cpu::CpuFeatures;
use crate::frames::stub_frames;
use crate::geometry::{Area, Geometry, Region};
use crate::header::{self, CONTROL_FIXED_BYTES, Header};
use crate::heap::Backing;
use crate::memory::Memory;
use crate::selector;
use crate::sys;

use super::named::{DeadSegment, NamedObject};
use super::shared::{SharedObject, Template};
use super::sharing::SharedData;
use super::{NameError, ObjectIdentity, cgroup, memfd};

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
    /// Where its shared data come from.
    pub shared: SharedOrigin,
}

/// Where shared data come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedOrigin {
    /// A fresh object.
    Fresh,
    /// The object of the compiler process before. A sealed one is waited for ([`Segment::adopt_shared_data`],
    /// [`Segment::begin_shared_data`]); a named one is there, or else it is a fresh one.
    Awaited(ObjectIdentity),
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
    /// The same one in each object that the segment is renewed in.
    shared: Arc<SharedData>,
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
        let region = geometry.region(Area::SharedData);
        // A byte that no file reaches, and most likely no other process marks.
        let mark = header.object >> 2;
        let (object, shared) = match &options.back_end {
            BackEnd::Sealed => {
                let object = memfd::SealedMemfd::create(len_bytes)?;
                let shared = match options.shared {
                    SharedOrigin::Fresh => SharedData::known(SharedObject::sealed(region, mark)?, region, mark, false),
                    SharedOrigin::Awaited(identity) => SharedData::awaited(identity, region, mark),
                };
                (Object::Sealed(object), shared)
            }
            BackEnd::Named(name) => {
                // Whoever has the name, or holds the dead one that has it, has what lies beside it.
                let object = named(name, len_bytes)?;
                let left = match options.shared {
                    SharedOrigin::Fresh => None,
                    SharedOrigin::Awaited(identity) => SharedObject::left(name, identity, region, mark),
                };
                let adopted = left.is_some();
                let shared = match left {
                    Some(left) => left,
                    None => SharedObject::named(name, region, mark)?,
                };
                (Object::Named(object), SharedData::known(shared, region, mark, adopted))
            }
        };
        Self::format(geometry, header, object, Arc::new(shared))
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
        Self::format(self.geometry, header, object, Arc::clone(&self.shared))
    }

    /// Goes on in the object that a dead compiler process left, if its header is what [`Segment::restore`] would give a new one;
    /// nothing of it is changed. Its shared data are those of the segment that was `made` beside it, which has found them there.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub fn adopt(
        dead: DeadSegment,
        made: &Self,
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
            ("object of shared data", made.has_adopted_shared_data()),
        ] {
            if !same {
                return Err(AdoptError::Different { what });
            }
        }
        Ok(Self { memory, object: Object::Named(object), shared: Arc::clone(&made.shared), geometry, header })
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

    fn format(
        geometry: Geometry,
        header: Header,
        object: Object,
        shared: Arc<SharedData>,
    ) -> Result<Self, SegmentError> {
        let base = match &object {
            Object::Sealed(object) => object.base(),
            Object::Named(object) => object.base(),
        };
        // SAFETY: the object maps `len_bytes` bytes from `base`, page-aligned, readable and writable; it is
        // dropped after the memory, and hands out no other access to them.
        let memory = unsafe { Memory::new(base, geometry.shared()) };
        let segment = Self { memory, object, shared, geometry, header };
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

    /// The descriptor of the shared data for workers, open for reading and writing; `None` while it is not known which they
    /// are.
    pub fn shared_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.object()?.descriptor())
    }

    /// What their object is known by.
    pub fn shared_identity(&self) -> Option<ObjectIdentity> {
        self.shared.object()?.identity()
    }

    /// Whether they are those of the compiler process before, which has filled them.
    pub fn has_adopted_shared_data(&self) -> bool {
        self.shared.is_adopted()
    }

    /// What has been filled so far is what an object of the process before holds already.
    pub fn end_of_fresh_shared_data(&self) {
        self.shared.end_of_fresh();
    }

    /// Takes the object that a worker brings, if it is the one that is waited for.
    ///
    /// # Errors
    /// There is no memory for what has been filled meanwhile.
    pub fn adopt_shared_data(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.shared.adopt(fd, |object, range, template| object.fill(range, self.template(template)))
    }

    /// Waits for it no longer: the shared data start afresh.
    ///
    /// # Errors
    /// [`SegmentError`]; it can be tried again.
    pub fn begin_shared_data(&self) -> Result<(), SegmentError> {
        self.shared.begin(|object, range, template| object.fill(range, self.template(template)))
    }

    /// Whether anybody has them from a compiler process before this one, and may use what is retired; also if it is not known.
    pub fn has_earlier_users_of_shared_data(&self) -> bool {
        self.shared.object().is_none_or(SharedObject::has_earlier_users)
    }

    fn template(&self, template: Region) -> Template<'_> {
        let at = template.start.saturating_sub(self.geometry.shared().start);
        Template { object: self.writable_fd(), at: at.into(), len_bytes: template.len_bytes }
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
            if let Some(shared) = self.shared.object() {
                shared.keep();
            }
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

    fn fill(&self, range: Region, template: Region) -> io::Result<()> {
        self.shared.fill(range, template, |object| object.fill(range, self.template(template)))
    }
}

