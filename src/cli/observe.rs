//! Looking at a segment and its workers, without being one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use jitcast::compiler::{Status, WorkerStatus, request};
use jitcast::runtime::debug::Lines;
use jitcast::runtime::geometry::{Area, Region};
use jitcast::runtime::header::Header;
use jitcast::runtime::observer::Observer;
use jitcast::runtime::segment::object_path;
use jitcast::runtime::selector::{BLOCK_BYTES, MAX_BLOCKS, SelectorWord};
use jitcast::runtime::{Geometry, SegmentOffset};

use super::Failure;
use super::args::ObserveArgs;
use super::publish::connect;

/// Maps the segment, which the compiler process hands out, or which has a name.
pub(super) fn observe(args: &ObserveArgs) -> Result<Observer, Failure> {
    match (&args.socket, &args.name) {
        (Some(socket), None) => observe_at(socket),
        (_, Some(name)) => observe_named(name),
        (None, None) => Err(Failure("give --socket or --name".into())),
    }
}

/// Maps the segment that the compiler process at `socket` hands out.
pub(super) fn observe_at(socket: &str) -> Result<Observer, Failure> {
    Ok(Observer::new(request::observe(connect(socket)?)?)?)
}

/// Maps the segment of this name.
pub(super) fn observe_named(name: &str) -> Result<Observer, Failure> {
    let path = object_path(name)?;
    let object = File::open(&path).map_err(|cause| {
        let help = "check the name that `jitcast serve --name` was given, and the permissions of the object";
        Failure(format!("cannot open {path}: {cause}\n  help: {help}"))
    })?;
    Ok(Observer::new(object)?)
}

/// Where the header says that the compiler process listens; empty: it does not say.
pub(super) fn stated_socket(observer: &Observer) -> String {
    let stated = observer.header().socket.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(stated.unwrap_or_default()).into_owned()
}

/// What the compiler process says of itself and its workers.
pub(super) fn status(args: &ObserveArgs, observer: &Observer) -> Result<Status, Failure> {
    Ok(request::status(connect(&socket(args, observer)?)?)?)
}

/// Which lines the code of a unit comes from; `None`: the compiler process is not there, or knows nothing of it.
pub(super) fn lines(args: &ObserveArgs, observer: &Observer, unit: u32) -> Option<Lines> {
    let socket = connect(&socket(args, observer).ok()?).ok()?;
    request::lines(socket, unit).ok()
}

/// Where the compiler process listens; that of a named segment, where it states.
fn socket(args: &ObserveArgs, observer: &Observer) -> Result<String, Failure> {
    let stated = stated_socket(observer);
    let socket = args.socket.as_ref().unwrap_or(&stated);
    if socket.is_empty() {
        let help = "give --socket";
        return Err(Failure(format!(
            "the segment does not say where its compiler process is\n  help: {help}"
        )));
    }
    Ok(socket.clone())
}

/// The memory of a worker, which is read as a debugger does.
#[derive(Debug)]
pub(super) struct Inside {
    memory: File,
    base: u64,
    window_bytes: u32,
}

/// What a slot of a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// The address of this place in its window.
    Place(SegmentOffset),
    /// That of a selector: threads that are inside at older generations go elsewhere, all others to this address.
    Between(u64),
    /// Another address: the host's, or 0.
    Address(u64),
}

impl Inside {
    /// The memory of `worker`, or why it cannot be read.
    pub(super) fn open(worker: &WorkerStatus, observer: &Observer) -> Result<Self, String> {
        let pid = worker.pid;
        let path = format!("/proc/{pid}/mem");
        let memory = File::open(&path).map_err(|cause| format!("{path}: {cause}"))?;
        let inside = Self {
            memory,
            base: worker.base,
            window_bytes: observer.geometry().window().len_bytes,
        };
        if inside.is_of(observer.header(), observer.geometry()) {
            return Ok(inside);
        }
        Err(format!(
            "process {pid} does not map this segment: pids may be those of another namespace"
        ))
    }

    /// Whether the worker maps the segment of this header where it says.
    fn is_of(&self, header: &Header, geometry: &Geometry) -> bool {
        let control = geometry.region(Area::Control).start as usize;
        let at = control + std::mem::offset_of!(Header, instance);
        let mut instance = [0; 16];
        let read = self.read(self.base.wrapping_add(at as u64), &mut instance);
        read.is_ok() && instance == header.instance
    }

    fn read(&self, address: u64, to: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(to, address)
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.read(address, &mut word).ok()?;
        Some(u64::from_le_bytes(word))
    }

    /// What it holds at `slot`; `None`: nothing is there.
    pub(super) fn holds(&self, slot: SegmentOffset) -> Option<Holds> {
        let address = self.word(self.base.wrapping_add(slot.get().into()))?;
        let selectors = Region::new(self.window_bytes, MAX_BLOCKS * 2 * BLOCK_BYTES);
        let distance = address.wrapping_sub(self.base);
        let distance = u32::try_from(distance).map(SegmentOffset::new);
        Some(match distance {
            Ok(place) if place.get() < self.window_bytes => Holds::Place(place),
            Ok(place) if selectors.is_some_and(|selectors| selectors.contains(place, 1)) => {
                let record = address.wrapping_sub(BLOCK_BYTES.into());
                let new = record.wrapping_add(SelectorWord::New as u64 * 8);
                Holds::Between(self.word(new)?)
            }
            _ => Holds::Address(address),
        })
    }

    /// The place of an address in its window.
    pub(super) fn place_of(&self, address: u64) -> Option<SegmentOffset> {
        let distance = u32::try_from(address.checked_sub(self.base)?).ok()?;
        (distance < self.window_bytes).then(|| SegmentOffset::new(distance))
    }
}
