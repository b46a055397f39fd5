//! Looking at a segment from outside, without being a worker: by a mapping that is read-only, and without a pin.
//!
//! Invariant: nobody is held back by who looks, and nothing in the segment is executed or believed. What a look finds belongs to
//! one generation: a look during which another one was published is done again, since what it read may have been reused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::addr::SegmentOffset;
use crate::cpu::CpuFeatures;
use crate::geometry::{Area, Geometry, Region};
use crate::header::{Control, Header, HeaderError};
use crate::memory::{Corrupt, View};
use crate::pin;
use crate::records::Root;
use crate::sys::{Mapping, MappingAdvice};

/// How often a look is done again before it is given up.
const TRIES: u32 = 64;

/// Why a segment cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// It is none of ours.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Something in it is not what this version writes.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The system refused.
    #[error("cannot {step} the segment: {cause}\n  help: see the limits and the security policy of this process")]
    System {
        /// Which step.
        step: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// It never stood still.
    #[error("the segment cannot be read: there was another publication during each of {TRIES} looks\n  help: try again when less is published")]
    Restless,
}

/// A segment, mapped to be read.
#[derive(Debug)]
pub struct Observer {
    // Declared, and so dropped, before the mapping that it looks at.
    view: View,
    header: Header,
    geometry: Geometry,
    // Held for the view.
    _mapping: Mapping,
}

/// What is published at one generation.
#[derive(Debug)]
pub struct Look<'a> {
    /// The directory.
    pub root: Root,
    ends: [u32; Area::COUNT],
    observer: &'a Observer,
}

impl Observer {
    /// Maps the segment behind `object`, which need be open for reading only.
    ///
    /// # Errors
    /// [`ObserveError`].
    pub fn new(object: impl AsFd) -> Result<Self, ObserveError> {
        let object = object.as_fd();
        let (header, geometry) = read_header(object)?;
        let span = geometry.shared();
        let system = |step| move |cause| ObserveError::System { step, cause };
        let mapping = Mapping::shared(object, span.len_bytes as usize, false).map_err(system("map"))?;
        mapping.advise(MappingAdvice::LinuxDontDump).map_err(system("madvise"))?;
        // SAFETY: the mapping is as long as the span, readable, page-aligned, and lives as long as the view; an object behind it
        // that is shortened ends this process, as it ends a worker's. The memory is accessed atomically only.
        let view = unsafe { View::new(mapping.base(), span, span.end()) };
        Ok(Self { view, header, geometry, _mapping: mapping })
    }

    /// The constant part of the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The layout.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What `look` makes of what is published. It is called again, from the start, whenever there was a publication meanwhile.
    ///
    /// # Errors
    /// Those of `look`; [`ObserveError::Restless`].
    pub fn look<T, E: From<ObserveError>>(&self, look: impl Fn(&Look<'_>) -> Result<T, E>) -> Result<T, E> {
        let corrupt = |corrupt: Corrupt| E::from(ObserveError::Corrupt(corrupt));
        let control = Control::new(&self.view).map_err(corrupt)?;
        for _ in 0..TRIES {
            let root_at = control.root();
            let root = self.view.read::<Root>(root_at);
            let ends = Area::ALL.map(|area| control.extent(area));
            let looked = root.map_err(corrupt).and_then(|root| {
                let looked = look(&Look { root, ends, observer: self });
                looked.map(|looked| (root.generation, looked))
            });
            // Nothing that a root reaches is reused before another root is there. Pairs with the fence before what was retired is
            // reused: who has read something of that sees the newer root here.
            pin::before_validation();
            let is_same = control.root() == root_at;
            let generation = self.view.read::<Root>(root_at).map(|root| root.generation);
            match (looked, generation) {
                (Ok((of, looked)), Ok(now)) if is_same && of == now => return Ok(looked),
                (Err(error), _) if is_same => return Err(error),
                _ => {}
            }
        }
        Err(ObserveError::Restless.into())
    }
}

impl Look<'_> {
    /// The segment that is looked at.
    pub fn observer(&self) -> &Observer {
        self.observer
    }

    /// Control, stubs, text and read-only data.
    pub fn view(&self) -> &View {
        &self.observer.view
    }

    /// First offset of `area` past what the segment backs.
    pub fn extent(&self, area: Area) -> u32 {
        self.ends[area.index()]
    }

    /// A copy of the bytes of `region`, wherever it begins, which lies in `area`.
    ///
    /// # Errors
    /// [`Corrupt`] unless the area has memory there, and the segment backs it.
    pub fn bytes(&self, area: Area, region: Region) -> Result<Vec<u8>, Corrupt> {
        let start = self.observer.geometry.region(area).start;
        // A hole that is read becomes memory.
        let backed = Region { start, len_bytes: self.ends[area.index()].saturating_sub(start) };
        if !area.is_in_segment() || !backed.contains(region.offset(), region.len_bytes.into()) {
            return Err(Corrupt { what: "reference outside its area", at: region.offset() });
        }
        // Bytes are read from aligned places.
        let skip = region.start % 8;
        let aligned = SegmentOffset::new(region.start - skip);
        let mut bytes = self.view().bytes(aligned, (skip + region.len_bytes) as usize)?;
        Ok(bytes.split_off(skip as usize))
    }
}

fn read_header(object: BorrowedFd<'_>) -> Result<(Header, Geometry), ObserveError> {
    let system = |step| move |cause: rustix::io::Errno| ObserveError::System { step, cause: cause.into() };
    let len_bytes = rustix::fs::fstat(object).map_err(system("fstat"))?.st_size.cast_unsigned();
    let mut first = [0; size_of::<Header>()];
    let mut filled = 0;
    while filled < first.len() {
        match rustix::io::pread(object, &mut first[filled..], filled as u64).map_err(system("read"))? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(Header::check(&first[..filled], len_bytes, CpuFeatures::host())?)
}
