//! What published code is called, by its addresses: for backtraces and profilers.

use core::fmt;

use jitcast_runtime::frames::find_name;
use jitcast_runtime::geometry::{Area, SLOT_BYTES, STUB_BYTES};
use jitcast_runtime::host_name::HostName;
use jitcast_runtime::records::{
    ImportRecord, Root, SymbolRecord, TextRecord, UnitRecord, trailing_text,
};
use jitcast_runtime::{Corrupt, SegmentOffset, WorkerAddr, index};

use super::text_at;
use crate::worker::{Inner, Worker};

/// A place in published code.
///
/// ```
/// use jitcast_worker::Location;
///
/// let unit = Some("score".to_owned());
/// let location = Location { unit, function: Some("twice".to_owned()), offset: 0x12 };
/// assert_eq!(location.to_string(), "twice+0x12 (score)");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The unit; `None`: a stub of a host symbol.
    pub unit: Option<String>,
    /// The function, also a local one; `None`: code between functions.
    pub function: Option<String>,
    /// How far the place is from the start of the function, else of the unit's text, bytes.
    pub offset: u64,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.function.as_deref().unwrap_or("?"))?;
        write!(f, "+{:#x}", self.offset)?;
        match &self.unit {
            Some(unit) => write!(f, " ({unit})"),
            None => Ok(()),
        }
    }
}

/// Why a walk ends.
enum Stop<T> {
    Found(T),
    Corrupt(Corrupt),
}

impl<T> From<Corrupt> for Stop<T> {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

impl Worker {
    /// What is at the address `addr` of this process: a place in a unit's text, or a stub. `None` if it is no
    /// published code of this worker.
    ///
    /// Of a frame's return address, pass one less: the call may be the last of its function. It enters a guard
    /// of its own and allocates, so it is not for signal handlers: they store addresses.
    ///
    /// ```
    /// # use jitcast_runtime::WorkerAddr;
    /// # use jitcast_worker::Worker;
    /// fn frame(worker: &Worker, return_address: u64) -> String {
    ///     match worker.symbolize(WorkerAddr::new(return_address - 1)) {
    ///         Some(location) => location.to_string(), // `score+0x12 (score)`
    ///         None => "not published".to_owned(),
    ///     }
    /// }
    /// ```
    pub fn symbolize(&self, addr: WorkerAddr) -> Option<Location> {
        let at = self.window().offset_of(addr)?;
        // What is found below stays while this thread is inside.
        let guard = self.enter().ok()?;
        let inner = self.inner();
        let in_stubs = self.geometry().region(Area::Stubs).contains(at, 1);
        let mut roots = inner.listing().from(guard.generation());
        roots.find_map(|root_at| {
            let found = if in_stubs {
                inner.stub_at(root_at, at)
            } else {
                inner.text_name(root_at, at)
            };
            found.ok().flatten()
        })
    }
}

impl Inner {
    fn text_name(
        &self,
        root_at: SegmentOffset,
        at: SegmentOffset,
    ) -> Result<Option<Location>, Corrupt> {
        let view = self.window().control();
        let Some((record_at, text)) = text_at(view, root_at, at)? else {
            return Ok(None);
        };
        let unit = trailing_text::<TextRecord>(view, record_at, 0, text.name_len)?;
        let region = text.names.region();
        let named = region.map(|region| find_name(view, region, text.unit, at));
        let (start, function) = match named.transpose()?.flatten() {
            Some((start, name)) => (start.get(), Some(name)),
            None => (text.text.start, None),
        };
        Ok(Some(Location {
            unit: Some(unit),
            function,
            offset: u64::from(at.get() - start),
        }))
    }

    /// The published function or host symbol whose stub is at `at`. Nothing leads back from a cell, so all are
    /// looked at.
    fn stub_at(
        &self,
        root_at: SegmentOffset,
        at: SegmentOffset,
    ) -> Result<Option<Location>, Corrupt> {
        let root: Root = self.window().control().read(root_at)?;
        let geometry = self.window().geometry();
        let distance = at.get() - geometry.region(Area::Stubs).start;
        let cells = geometry.region(Area::CallCells);
        let cell = SegmentOffset::new(cells.start + distance / STUB_BYTES * SLOT_BYTES);
        let view = self.window().control();
        let found = |name, unit| {
            Stop::Found(Location {
                unit,
                function: Some(name),
                offset: (distance % STUB_BYTES).into(),
            })
        };
        let mut named = |at| {
            let symbol: SymbolRecord = view.read(at)?;
            if symbol.call_cell != cell {
                return Ok(());
            }
            let name = trailing_text::<SymbolRecord>(view, at, 0, symbol.name_len)?;
            let unit_at = index::get(view, root.units, symbol.unit.into())?;
            let unit = unit_at.map(|at| {
                let unit: UnitRecord = view.read(at)?;
                trailing_text::<UnitRecord>(view, at, 0, unit.name_len)
            });
            Err(found(name, unit.transpose()?))
        };
        // One that only a canary has is found there.
        let symbols = index::walk(view, root.symbols, 0, &mut named)
            .and_then(|()| index::walk(view, root.overlay, 0, &mut named));
        let walked = symbols.and_then(|()| {
            index::walk(view, root.imports, 0, &mut |at| {
                let import: ImportRecord = view.read(at)?;
                if import.call_cell != cell {
                    return Ok(());
                }
                let name = trailing_text::<ImportRecord>(view, at, 0, import.name_len)?;
                Err(found(HostName::parse(&name).name.to_owned(), None))
            })
        });
        match walked {
            Ok(()) => Ok(None),
            Err(Stop::Found(location)) => Ok(Some(location)),
            Err(Stop::Corrupt(corrupt)) => Err(corrupt),
        }
    }
}
