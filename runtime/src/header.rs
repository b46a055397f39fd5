//! The first page of the shared object: what the segment is, and the few words that change.
//!
//! FORMAT.md draws these bytes; a test holds it against the offsets here. Invariant: everything but the
//! words from [`ROOT`] on is written before the descriptor leaves the compiler and never again.

use core::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::SegmentOffset;
use crate::atomic::Release;
use crate::cpu::CpuFeatures;
use crate::frames::{STUB_FRAMES_BYTES, stub_frames};
use crate::geometry::{Area, GRANULE_BYTES, Geometry, GeometryError};
use crate::memory::{Corrupt, Memory, SharedRecord, View};
use crate::ring::{RECORD_WORDS, Ring};

/// The first eight bytes of every segment.
pub const MAGIC: [u8; 8] = *b"JITCAST\n";

/// The version of the format that this code reads and writes.
pub const FORMAT_VERSION: u32 = 4;

/// Places of the ring.
pub const RING_PLACES: usize = 1024;

/// Bytes before the first allocation in the control area: the header page and the ring.
pub const CONTROL_FIXED_BYTES: u32 = 4096 + (RING_PLACES * RECORD_WORDS * 8) as u32;

/// Distance from the start of the control area to the root's offset, bytes.
pub const ROOT: u32 = 256;

/// Distance to the areas' committed ends, a word each, bytes.
pub const EXTENTS: u32 = 264;

/// Distance to the floor: nothing that a generation after it retired has been reused, bytes.
pub const FLOOR: u32 = 328;

/// Distance to the head of the ring (alone in its cache line: every poll loads it), bytes.
pub const HEAD: u32 = 384;

/// Distance to the ring's announcement, bytes.
pub const INTENT: u32 = 448;

/// Distance to how the stubs are unwound through ([`frames::stub_frames`](crate::frames::stub_frames)), bytes.
pub const STUB_FRAMES: u32 = 512;

/// Distance to the ring's records, bytes.
pub const RECORDS: u32 = 4096;

const _: () = assert!(EXTENTS as usize + Area::COUNT * 8 <= FLOOR as usize && FLOOR < HEAD && HEAD.is_multiple_of(64));
const _: () = assert!(size_of::<Header>() <= ROOT as usize && STUB_FRAMES + STUB_FRAMES_BYTES <= RECORDS);
const _: () = assert!(CONTROL_FIXED_BYTES <= GRANULE_BYTES * 2);

/// The constant part of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// ELF `e_machine` of the code: 62, `EM_X86_64`.
    pub machine: u32,
    /// Bits that a reader must know to understand the segment; none are defined yet.
    pub features: u64,
    /// What the code may use: [`CpuFeatures`].
    pub cpu_features: u64,
    /// A random number that names this segment.
    pub instance: [u8; 16],
    /// The seed of the symbols' hashes.
    pub hash_seed: u64,
    /// A random number that names the object: a segment that was renewed has another one. Not 0.
    pub object: u64,
    /// Lengths of the areas, bytes, in the order of [`Area::ALL`].
    pub areas: [u32; Area::COUNT],
    /// [`RING_PLACES`].
    pub ring_places: u32,
    /// The compiler's socket, NUL-padded; empty if there is none in the file system.
    pub socket: [u8; 108],
}

// SAFETY: numbers, and a socket's path, which means the same in every process of one mount namespace.
unsafe impl SharedRecord for Header {}

/// Why a segment cannot be attached to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than a header.
    #[error("the segment is truncated: {len_bytes} bytes are less than {needed_bytes}\n  help: remove it and start the compiler process anew")]
    Truncated {
        /// What there is, bytes.
        len_bytes: u64,
        /// What the header asks for, bytes.
        needed_bytes: u64,
    },
    /// Not one of ours.
    #[error("this is no jitcast segment: it begins with {found:02x?}\n  help: check the name or descriptor that was given")]
    Foreign {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// Written by another version.
    #[error("the segment has format version {found}, this program reads {FORMAT_VERSION}\n  help: use the same version of jitcast for the compiler process and its workers")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Uses features that this version does not know.
    #[error("the segment needs format features {unknown:#x} that this program does not know\n  help: use the version of jitcast that wrote it")]
    Features {
        /// The unknown bits.
        unknown: u64,
    },
    /// For another processor.
    #[error("the segment's code may use processor features that this machine lacks: {}\n  help: start the compiler process with --cpu baseline", missing.join(", "))]
    Cpu {
        /// Names of the features.
        missing: Vec<String>,
    },
    /// For another architecture.
    #[error("the segment's code is for ELF machine {found}, not x86-64 (62)")]
    Machine {
        /// `e_machine`.
        found: u32,
    },
    /// Its layout is impossible.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
}

impl Header {
    /// The header of a new segment.
    pub fn new(
        geometry: &Geometry,
        cpu: CpuFeatures,
        (instance, object): ([u8; 16], u64),
        hash_seed: u64,
        socket: [u8; 108],
    ) -> Self {
        Self {
            magic: MAGIC,
            format_version: FORMAT_VERSION,
            machine: 62,
            features: 0,
            cpu_features: cpu.bits(),
            instance,
            hash_seed,
            object,
            areas: geometry.lens(),
            ring_places: RING_PLACES as u32,
            socket,
        }
    }

    /// Checks the first bytes of an object of `len_bytes` bytes; `cpu` is what this machine has.
    ///
    /// # Errors
    /// [`HeaderError`] says which of the conditions does not hold.
    pub fn check(bytes: &[u8], len_bytes: u64, cpu: CpuFeatures) -> Result<(Self, Geometry), HeaderError> {
        let needed_bytes = size_of::<Self>() as u64;
        let Ok((header, _)) = Self::read_from_prefix(bytes) else {
            return Err(HeaderError::Truncated { len_bytes, needed_bytes });
        };
        if header.magic != MAGIC {
            return Err(HeaderError::Foreign { found: header.magic });
        }
        if header.format_version != FORMAT_VERSION || header.ring_places != RING_PLACES as u32 {
            return Err(HeaderError::Version { found: header.format_version });
        }
        if header.features != 0 {
            return Err(HeaderError::Features { unknown: header.features });
        }
        if header.machine != 62 {
            return Err(HeaderError::Machine { found: header.machine });
        }
        let geometry = Geometry::from_lens(header.areas)?;
        let needed_bytes = u64::from(geometry.shared().len_bytes);
        if len_bytes < needed_bytes {
            return Err(HeaderError::Truncated { len_bytes, needed_bytes });
        }
        let missing = CpuFeatures::from_bits(header.cpu_features).missing_from(cpu);
        if !missing.is_empty() {
            return Err(HeaderError::Cpu { missing });
        }
        Ok((header, geometry))
    }
}

/// The words of the header that change, in a mapped segment.
#[derive(Clone, Copy, Debug)]
pub struct Control<'a> {
    root: &'a AtomicU64,
    extents: &'a [AtomicU64],
    ring: Ring<'a>,
    head: &'a AtomicU64,
    floor: &'a AtomicU64,
}

impl<'a> Control<'a> {
    /// Finds the words in `view`, which maps the control area from its start.
    ///
    /// # Errors
    /// [`Corrupt`] if the fixed part of the control area is not readable.
    #[inline]
    pub fn new(view: &'a View) -> Result<Self, Corrupt> {
        const WORDS: usize = CONTROL_FIXED_BYTES as usize / 8;
        const fn index(distance: u32) -> usize {
            distance as usize / 8
        }
        let at = SegmentOffset::new(view.span().start);
        let (fixed, _) = view.words(at, WORDS)?.split_first_chunk::<WORDS>().ok_or(Corrupt {
            what: "control area shorter than its fixed part",
            at,
        })?;
        let head = &fixed[index(HEAD)];
        Ok(Self {
            root: &fixed[index(ROOT)],
            extents: &fixed[index(EXTENTS)..index(EXTENTS) + Area::COUNT],
            ring: Ring::new(head, &fixed[index(INTENT)], &fixed[index(RECORDS)..]),
            head,
            floor: &fixed[index(FLOOR)],
        })
    }

    /// The word that polls load and sleepers wait on, and nothing else: entering a guard looks for it each time.
    ///
    /// # Errors
    /// As [`Control::new`].
    #[inline]
    pub fn head_in(view: &'a View) -> Result<&'a AtomicU64, Corrupt> {
        let at = SegmentOffset::new(view.span().start + HEAD);
        Ok(&view.words(at, 1)?[0])
    }

    /// What a generation after this one retired has not been reused. A thread that wants to stay at an older
    /// generation pins itself at it, executes a full barrier, and looks here.
    #[inline]
    pub fn floor(&self) -> &'a AtomicU64 {
        self.floor
    }

    /// The ring.
    #[inline]
    pub fn ring(&self) -> Ring<'a> {
        self.ring
    }

    /// The word that polls load and sleepers wait on.
    #[inline]
    pub fn head_word(&self) -> &'a AtomicU64 {
        self.head
    }

    /// The directory's root. Acquire: pairs with the release in [`Control::commit`].
    #[inline]
    pub fn root(&self) -> SegmentOffset {
        SegmentOffset::new(self.root.load(Ordering::Acquire) as u32)
    }

    /// First offset past what is backed by memory in `area`. At least as new as the root loaded before.
    pub fn extent(&self, area: Area) -> u32 {
        self.extents[area.index()].load(Ordering::Relaxed) as u32
    }

    /// Moves the end of `area`. Takes effect for workers with the next commit.
    pub fn set_extent(&self, area: Area, end: u32) {
        self.extents[area.index()].store(end.into(), Ordering::Relaxed);
    }

    /// Makes `root` the directory: one release store, after which everything that it refers to is there.
    pub fn commit(&self, root: SegmentOffset) {
        self.root.store(root.get().into(), Release::Root.ordering());
    }
}

/// Writes `header` into a fresh segment whose control area has been committed up to `control_end`.
pub fn format(memory: &Memory, geometry: &Geometry, header: &Header) {
    memory.write_bytes(geometry.region(Area::Control).offset(), header.as_bytes());
    let at = stub_frames_at(geometry);
    memory.write_bytes(at, &stub_frames(geometry, at));
}

/// Where it says how to unwind through the stubs.
pub fn stub_frames_at(geometry: &Geometry) -> SegmentOffset {
    SegmentOffset::new(geometry.region(Area::Control).start + STUB_FRAMES)
}
