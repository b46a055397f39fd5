//! The log: records one after the other, each of which tells whether it is whole.
//!
//! ```text
//! head    "JITCASTJ"  version u32  0 u32  salt u64
//! record  marker u32  kind u32  length u64  checksum u64  payload, zeros up to a multiple of eight
//! ```
//!
//! Numbers are little-endian. The checksum is xxh3-64 over kind, length and payload; its seed is the salt, which is
//! drawn for each file, mixed with the record's position: so nothing that a publisher sends, nor what an older
//! file left on the disk, is taken for a record. Invariant: a record is appended by one write, after all before it
//! were whole.

use std::io;

use jitcast_runtime::sys;
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::storage::File;

const MAGIC: [u8; 8] = *b"JITCASTJ";

/// The version of the format that this code reads and writes.
pub(super) const VERSION: u32 = 4;

const MARKER: u32 = u32::from_le_bytes(*b"JREC");

/// How much is looked through at once, bytes.
const STRIDE: usize = 1 << 20;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: u32,
    reserved: u32,
    salt: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Frame {
    marker: u32,
    kind: u32,
    len_bytes: u64,
    checksum: u64,
}

const FRAME_BYTES: u64 = size_of::<Frame>() as u64;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// The header of the segment and its extents. Begins the file.
    Opening = 1,
    /// A piece of the segment's memory.
    Image = 2,
    /// Everything else that there was when the file was begun. Ends what the file begins with.
    Base = 3,
    /// Generations that may be used from here on.
    Reservation = 4,
    /// A publication.
    Publication = 5,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        [
            Self::Opening,
            Self::Image,
            Self::Base,
            Self::Reservation,
            Self::Publication,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
    }
}

/// Why a file is no log.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// The system says so.
    System(io::Error),
    /// It does not begin as one.
    Foreign,
    /// Another version wrote it.
    Version(u32),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// What lies at a position.
#[derive(Debug)]
pub(super) enum Found {
    /// A record, and where the next one begins.
    Record(Kind, Vec<u8>, u64),
    /// The end of the file.
    End,
    /// Neither.
    Damage,
}

/// A log.
#[derive(Debug)]
pub(super) struct Log {
    file: Box<dyn File>,
    salt: u64,
    len: u64,
}

impl Log {
    /// Begins one in an empty file.
    pub(super) fn begin(mut file: Box<dyn File>) -> io::Result<Self> {
        let salt = u64::from_le_bytes(sys::random()?);
        let head = Head {
            magic: MAGIC,
            version: VERSION,
            reserved: 0,
            salt,
        };
        file.append(head.as_bytes())?;
        let len = size_of::<Head>() as u64;
        Ok(Self { file, salt, len })
    }

    /// Opens what [`Log::begin`] began.
    pub(super) fn open(file: Box<dyn File>) -> Result<Self, Unreadable> {
        let len = file.len()?;
        let mut head = Head::new_zeroed();
        if len < size_of::<Head>() as u64 {
            return Err(Unreadable::Foreign);
        }
        file.read(0, head.as_mut_bytes())?;
        match head {
            Head { magic, .. } if magic != MAGIC => Err(Unreadable::Foreign),
            Head { version, .. } if version != VERSION => Err(Unreadable::Version(version)),
            Head { salt, .. } => Ok(Self { file, salt, len }),
        }
    }

    /// Where the first record is.
    pub(super) const fn start() -> u64 {
        size_of::<Head>() as u64
    }

    /// Its length, bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A record of `value`, with room for its frame.
    pub(super) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
        postcard::to_extend(value, vec![0; size_of::<Frame>()]).map_err(io::Error::other)
    }

    /// Adds a record of `value`.
    pub(super) fn append(&mut self, kind: Kind, value: &impl Serialize) -> Result<(), AppendError> {
        self.add(kind, Self::encode(value)?)
    }

    /// Adds a record that was encoded. Of one that cannot be added nothing is left, or the error is
    /// [`AppendError::Torn`].
    pub(super) fn add(&mut self, kind: Kind, mut bytes: Vec<u8>) -> Result<(), AppendError> {
        let len_bytes = bytes.len() as u64 - FRAME_BYTES;
        let mut frame = Frame {
            marker: MARKER,
            kind: kind as u32,
            len_bytes,
            checksum: 0,
        };
        frame.checksum = self.checksum(&frame, &bytes[size_of::<Frame>()..], self.len);
        bytes[..size_of::<Frame>()].copy_from_slice(frame.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if let Err(cause) = self.file.append(&bytes) {
            return Err(match self.file.cut(self.len) {
                Ok(()) => AppendError::Refused(cause),
                Err(_) => AppendError::Torn(cause),
            });
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Makes everything in it durable.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }

    /// Cuts it to `len` bytes.
    pub(super) fn cut(&mut self, len: u64) -> io::Result<()> {
        self.file.cut(len)?;
        self.len = len;
        Ok(())
    }

    /// What lies at `at`.
    pub(super) fn read(&self, at: u64) -> io::Result<Found> {
        if at == self.len {
            return Ok(Found::End);
        }
        let mut frame = Frame::new_zeroed();
        let payload = at + FRAME_BYTES;
        if payload > self.len {
            return Ok(Found::Damage);
        }
        self.file.read(at, frame.as_mut_bytes())?;
        // The length is compared with what there is before anything is allocated.
        let is_frame = frame.marker == MARKER && frame.len_bytes <= self.len - payload;
        let (true, Some(kind)) = (is_frame, Kind::from_number(frame.kind)) else {
            return Ok(Found::Damage);
        };
        let next = payload + frame.len_bytes.next_multiple_of(8);
        let mut bytes = vec![0; frame.len_bytes as usize];
        self.file.read(payload, &mut bytes)?;
        if next > self.len || frame.checksum != self.checksum(&frame, &bytes, at) {
            return Ok(Found::Damage);
        }
        Ok(Found::Record(kind, bytes, next))
    }

    /// Whether there is a whole record somewhere after `at`.
    pub(super) fn has_record_after(&self, at: u64) -> io::Result<bool> {
        let mut from = at.next_multiple_of(8);
        while from < self.len {
            let count = (self.len - from).min(STRIDE as u64) as usize;
            let mut bytes = vec![0; count];
            self.file.read(from, &mut bytes)?;
            for (index, word) in bytes.chunks_exact(8).enumerate() {
                let place = from + 8 * index as u64;
                let may_be = word[..4] == MARKER.to_le_bytes() && place > at;
                if may_be && matches!(self.read(place)?, Found::Record(..)) {
                    return Ok(true);
                }
            }
            from += count as u64;
        }
        Ok(false)
    }

    fn checksum(&self, frame: &Frame, payload: &[u8], at: u64) -> u64 {
        let mut hash = Xxh3::with_seed(self.salt ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        hash.update(&frame.kind.to_le_bytes());
        hash.update(&frame.len_bytes.to_le_bytes());
        hash.update(payload);
        hash.digest()
    }
}

/// Why a record was not added.
#[derive(Debug)]
pub(super) enum AppendError {
    /// The system took it not, or not whole; what it took is cut off again.
    Refused(io::Error),
    /// And what it took cannot be cut off.
    Torn(io::Error),
}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Refused(cause) | AppendError::Torn(cause) => cause,
        }
    }
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> Self {
        Self::Refused(error)
    }
}
