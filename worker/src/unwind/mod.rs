//! Unwinding through published code: exceptions, backtraces, profilers.
//!
//! An unwinder asks for the record of the function around an address. It knows those of loaded libraries;
//! published code lies in none. Here is who answers for the windows of this process, in two steps: the text
//! around the address (an index in the directory, by place), then the function in the text's sorted table. Both
//! are shared; a worker keeps nothing of it but where its window is.
//!
//! Whoever unwinds through published code holds a guard, so nothing that the thread's generation reaches is reused: the answer
//! is read from the directory of that generation, or from a newer one, which says the same of what both have. Hence no lock, no allocation, and answers also in a signal handler. Destructors run without a guard, when
//! the process ends; their units are kept, and the records of these texts are known by heart.
//!
//! - [`embed!`](crate::embed) makes libgcc's unwinder ask here first (`hook`).
//! - Without it, copies of the records are registered with the unwinder (`register`).

pub(crate) mod hook;
pub(crate) mod register;
pub(crate) mod symbolize;
pub(crate) mod windows;

use jitcast_runtime::frames::{STUB_FDE, find_frame};
use jitcast_runtime::header::stub_frames_at;
use jitcast_runtime::index;
use jitcast_runtime::memory::View;
use jitcast_runtime::records::{Root, TextRecord};
use jitcast_runtime::window::Window;
use jitcast_runtime::{Corrupt, SegmentOffset};

/// How unwinders get to know published code.
///
/// ```
/// use jitcast_worker::{Unwinding, WorkerOptions};
///
/// // A host whose published code throws nothing.
/// let options = WorkerOptions { unwinding: Unwinding::Off, ..WorkerOptions::default() };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unwinding {
    /// By the hook, if [`embed!`](crate::embed) has installed it; else as [`Unwinding::Register`].
    #[default]
    Auto,
    /// A copy of all records is registered with the unwinder (`__register_frame_info`): memory of this process, and the
    /// time to do it anew whenever code is published.
    Register,
    /// Not at all, unless the hook is installed: exceptions end the process, backtraces end at published code.
    Off,
}

/// The text around `at`, and where its record is. Neither allocates nor locks.
pub(crate) fn text_at(
    view: &View,
    root_at: SegmentOffset,
    at: SegmentOffset,
) -> Result<Option<(SegmentOffset, TextRecord)>, Corrupt> {
    let root: Root = view.read(root_at)?;
    let Some(found) = index::floor(view, root.texts, at)? else {
        return Ok(None);
    };
    let record: TextRecord = view.read(found)?;
    let text = record.text.region();
    let inside = text.is_some_and(|text| text.contains(at, 1));
    Ok(inside.then_some((found, record)))
}

/// Where the stubs' one record is.
pub(crate) fn stub_fde(window: &Window) -> SegmentOffset {
    SegmentOffset::new(stub_frames_at(window.geometry()).get() + STUB_FDE)
}

/// The record of the function around `at`, and its start; `None` if there is none that can be read. Neither
/// allocates nor locks.
fn frame_at(
    window: &Window,
    root_at: SegmentOffset,
    at: SegmentOffset,
) -> Option<(SegmentOffset, SegmentOffset)> {
    let (_, text) = text_at(window.control(), root_at, at).ok()??;
    frame_in(window, &text, at)
}

/// The same, if the function is one of `text`.
fn frame_in(
    window: &Window,
    text: &TextRecord,
    at: SegmentOffset,
) -> Option<(SegmentOffset, SegmentOffset)> {
    let frames = text.frames.region()?;
    let frame = find_frame(window.control(), frames, text.unit, at).ok()??;
    let eh_frame = text.eh_frame.region()?;
    eh_frame
        .contains(frame.fde, 8)
        .then_some((frame.fde, frame.start))
}
