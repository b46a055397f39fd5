//! A unit's text, as it is shown.

use jitcast_runtime::debug::{DebugSection, Lines};
use jitcast_runtime::frames::each_name;
use jitcast_runtime::records::{TextRecord, trailing_text};
use jitcast_runtime::window::Window;
use jitcast_runtime::{Corrupt, SegmentOffset};

use crate::unwind::register;

/// A function of it.
#[derive(Debug)]
pub(super) struct Function {
    /// Its offset in the window.
    pub(super) start: u32,
    pub(super) len_bytes: u32,
    pub(super) name: String,
}

/// A text.
#[derive(Debug)]
pub(super) struct Text {
    /// Its offset in the window.
    pub(super) start: u32,
    pub(super) len_bytes: u32,
    /// The unit's number, and its name.
    pub(super) unit: u32,
    pub(super) name: String,
    pub(super) functions: Vec<Function>,
    /// How to unwind through it: records with absolute pointers, without a terminator.
    pub(super) frames: Vec<u64>,
    /// What debugging information says, if that is wanted and known.
    pub(super) sections: Vec<DebugSection>,
    pub(super) lines: Lines,
}

impl Text {
    /// Reads it from the record at `at`.
    pub(super) fn read(
        window: &Window,
        at: SegmentOffset,
        record: &TextRecord,
    ) -> Result<Self, Corrupt> {
        let view = window.control();
        let mut functions = Vec::new();
        if let Some(names) = record.names.region() {
            each_name(view, names, record.unit, |start, len_bytes, name| {
                functions.push(Function {
                    start: start.get(),
                    len_bytes,
                    name: name.to_owned(),
                });
            })?;
        }
        // What cannot be unwound through can be shown all the same.
        let frames = register::absolute_records(window, record).unwrap_or_default();
        Ok(Self {
            start: record.text.start,
            len_bytes: record.text.len_bytes,
            unit: record.unit,
            name: trailing_text::<TextRecord>(view, at, 0, record.name_len)?,
            functions,
            frames,
            sections: Vec::new(),
            lines: Lines::default(),
        })
    }
}
