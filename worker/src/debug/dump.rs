//! A jitdump: what perf learns published code from, code and lines included, at the time at which each was there.
//!
//! Source: `tools/perf/Documentation/jitdump-specification.txt` of Linux. perf finds the file by a mapping of it that is executable,
//! and for nothing else. Invariant: each publication is one write(2), so a process that ends leaves whole records.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use jitcast_runtime::debug::Row;
use jitcast_runtime::sys::{self, Mapping};
use jitcast_runtime::window::Window;
use jitcast_runtime::{Area, Region};

use super::file::Named;
use super::text::{Function, Text};

const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
const HEADER_BYTES: u32 = 40;
const EM_X86_64: u32 = 62;
const PAGE_BYTES: usize = 4096;

/// Kinds of records.
const LOAD: u32 = 0;
const DEBUG_INFO: u32 = 2;
const CLOSE: u32 = 3;

/// What workers of this process write to: the format knows one file for each process.
static CURRENT: Mutex<Weak<Writer>> = Mutex::new(Weak::new());

/// The file.
#[derive(Debug)]
struct Writer {
    file: Named,
    pid: u32,
    /// By which perf finds it.
    _marker: Mapping,
    /// The number of the next function.
    next: Mutex<u64>,
}

/// A worker's share of it.
#[derive(Debug)]
pub(super) struct Dump {
    writer: Arc<Writer>,
    /// Up to where stubs are in it.
    stubs: u32,
}

impl Dump {
    pub(super) fn begin(folder: &Path) -> Result<Self, String> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        let known = current.upgrade().filter(|writer| writer.pid == pid);
        let writer = match known {
            Some(writer) => writer,
            None => {
                let writer = Arc::new(Writer::create(folder, pid)?);
                *current = Arc::downgrade(&writer);
                writer
            }
        };
        Ok(Self { writer, stubs: 0 })
    }

    /// Adds texts that can be run from now on.
    pub(super) fn load(&mut self, window: &Window, texts: &[Arc<Text>]) -> Result<(), String> {
        let mut next = self
            .writer
            .next
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut records = Records {
            bytes: Vec::new(),
            base: window.base().get(),
            pid: self.writer.pid,
            tid: rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .cast_unsigned(),
            now: sys::monotonic_ns(),
        };
        let (start, end) = (
            window.geometry().region(Area::Stubs).start.max(self.stubs),
            window.end(Area::Stubs),
        );
        if start < end {
            let stubs = Function {
                start,
                len_bytes: end - start,
                name: "jitcast stubs".to_owned(),
            };
            records.load(window, Area::Stubs, &stubs, &mut next);
            self.stubs = end;
        }
        for text in texts {
            for function in &text.functions {
                records.lines(text, function);
                records.load(window, Area::Text, function, &mut next);
            }
        }
        self.writer.file.append(&records.bytes)
    }
}

impl Writer {
    fn create(folder: &Path, pid: u32) -> Result<Self, String> {
        let path = folder.join(format!("jit-{pid}.dump"));
        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        for word in [MAGIC, VERSION, HEADER_BYTES, EM_X86_64, 0, pid] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        for word in [sys::monotonic_ns(), 0] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        let (file, open) = Named::create(path, &header)?;
        let marker = Mapping::executable(open.as_fd(), PAGE_BYTES);
        let marker = marker.map_err(|cause| file.failed("map, to be executable,", &cause))?;
        Ok(Self {
            file,
            pid,
            _marker: marker,
            next: Mutex::new(0),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A forked child lets go of its parent's, which goes on.
        if self.pid != std::process::id() {
            return;
        }
        let mut close = Vec::new();
        for word in [CLOSE, 16] {
            close.extend_from_slice(&word.to_le_bytes());
        }
        close.extend_from_slice(&sys::monotonic_ns().to_le_bytes());
        // Readers do without.
        let _ = self.file.append(&close);
    }
}

/// Records while they are put together.
struct Records {
    bytes: Vec<u8>,
    base: u64,
    pid: u32,
    tid: u32,
    now: u64,
}

impl Records {
    fn word(&mut self, word: u32) {
        self.bytes.extend_from_slice(&word.to_le_bytes());
    }

    fn long(&mut self, long: u64) {
        self.bytes.extend_from_slice(&long.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend(text.bytes().filter(|byte| *byte != 0));
        self.bytes.push(0);
    }

    /// Begins a record.
    fn begin(&mut self, kind: u32) -> usize {
        let start = self.bytes.len();
        self.word(kind);
        self.word(0);
        self.long(self.now);
        start
    }

    /// States the length of the record that begins at `start`.
    fn end(&mut self, start: usize) {
        // A function is shorter than its window.
        let len_bytes = (self.bytes.len() - start) as u32;
        self.bytes[start + 4..start + 8].copy_from_slice(&len_bytes.to_le_bytes());
    }

    fn address(&self, start: u32) -> u64 {
        self.base.wrapping_add(start.into())
    }

    /// What is at a place in `area` from now on. What cannot be read cannot be run either, and is left out.
    fn load(&mut self, window: &Window, area: Area, function: &Function, next: &mut u64) {
        let region = Region::new(function.start, function.len_bytes);
        let code = region.and_then(|region| window.copy(area, region).ok());
        let Some(code) = code.filter(|code| !code.is_empty()) else {
            return;
        };
        let address = self.address(function.start);
        let start = self.begin(LOAD);
        self.word(self.pid);
        self.word(self.tid);
        self.long(address);
        self.long(address);
        self.long(code.len() as u64);
        self.long(*next);
        self.text(&function.name);
        self.bytes.extend_from_slice(&code);
        self.end(start);
        *next += 1;
    }

    /// The lines of a function, which have to come before it.
    fn lines(&mut self, text: &Text, function: &Function) {
        let rows = text.lines.within(function.start, function.len_bytes);
        let known: Vec<&Row> = rows.iter().filter(|row| row.line > 0).collect();
        if known.is_empty() {
            return;
        }
        let start = self.begin(DEBUG_INFO);
        self.long(self.address(function.start));
        self.long(known.len() as u64);
        for row in known {
            self.long(self.address(row.at));
            self.word(row.line);
            self.word(0);
            let file = text.lines.files.get(row.file as usize);
            self.text(file.map_or("?", String::as_str));
        }
        self.end(start);
    }
}
