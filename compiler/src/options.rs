//! How a compiler process is to be.

use jitcast_runtime::cpu::CpuFeatures;
use jitcast_runtime::geometry::{DEFAULT_WINDOW_BYTES, Geometry, GeometryError};
use jitcast_runtime::segment::{BackEnd, SegmentOptions, SharedOrigin};

use crate::journal::JournalOptions;
use crate::threads::Threads;

/// How many publications can be undone, unless more or fewer are asked for.
pub const DEFAULT_RETAIN: usize = 3;

/// How a compiler process is to be.
///
/// ```
/// use jitcast_compiler::{Compiler, CompilerOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = CompilerOptions { retain: 10, ..CompilerOptions::with_window(64 << 20)? };
/// let compiler = Compiler::create(&options)?;
/// assert!(compiler.is_sealed());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CompilerOptions {
    /// The layout of the window; `None`: that of the journal, or else the default.
    pub geometry: Option<Geometry>,
    /// Where the segment lies.
    pub back_end: BackEnd,
    /// The path of its socket, for the header; empty if there is none.
    pub socket: String,
    /// The processor features that code may use.
    pub cpu: CpuFeatures,
    /// How many publications of units can be undone: their sources are retained.
    pub retain: usize,
    /// Publications are refused while more than this is retired and held back by threads that stay inside, bytes;
    /// `None`: as long as the segment has room.
    pub max_held_bytes: Option<u64>,
    /// Retired memory is looked through for what can be reused once it exceeds this, bytes.
    pub reclaim_above_bytes: u64,
    /// Where publications are written down, so that the next compiler process has them too; `None`: nowhere.
    pub journal: Option<JournalOptions>,
    /// How many threads read the objects of a batch at once. What is published does not depend on it.
    pub threads: Threads,
}

impl Default for CompilerOptions {
    /// A sealed segment of a 1 GiB window for this machine's processor.
    fn default() -> Self {
        Self {
            geometry: None,
            back_end: BackEnd::Sealed,
            socket: String::new(),
            cpu: CpuFeatures::host(),
            retain: DEFAULT_RETAIN,
            max_held_bytes: None,
            reclaim_above_bytes: 256 << 10,
            journal: None,
            threads: Threads::default(),
        }
    }
}

impl CompilerOptions {
    /// The defaults with a window of `window_bytes`.
    ///
    /// # Errors
    /// [`GeometryError`] outside the limits.
    pub fn with_window(window_bytes: u64) -> Result<Self, GeometryError> {
        Ok(Self {
            geometry: Some(Geometry::new(window_bytes)?),
            ..Self::default()
        })
    }

    /// What the segment is to be.
    pub(crate) fn segment(&self) -> SegmentOptions {
        let default = || {
            Geometry::new(DEFAULT_WINDOW_BYTES.into()).expect("the default is within the limits")
        };
        SegmentOptions {
            geometry: self.geometry.unwrap_or_else(default),
            cpu: self.cpu,
            back_end: self.back_end.clone(),
            socket: self.socket.clone(),
            shared: SharedOrigin::Fresh,
        }
    }
}
