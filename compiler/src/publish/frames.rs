//! What is known of a unit's text: how to unwind through it, and what its functions are called.

use jitcast_linker::{Placement, Prepared};
use jitcast_runtime::directory::Edit;
use jitcast_runtime::frames::{frame_table, name_table};
use jitcast_runtime::heap::Txn;
use jitcast_runtime::index;
use jitcast_runtime::records::{StoredRegion, TextRecord};

use super::describe::write_table;
use crate::error::PublishError;

/// Describes the text of unit `number`, called `name`, if it has any.
pub(super) fn write_text(
    txn: &mut Txn<'_>,
    edit: &mut Edit,
    (number, name): (u32, &str),
    prepared: &Prepared<'_>,
    placement: &Placement,
    text: StoredRegion,
) -> Result<(), PublishError> {
    if text.len_bytes == 0 {
        return Ok(());
    }
    let unwinding = prepared.unwinding(placement)?;
    let mut frames = StoredRegion::default();
    if !unwinding.frames.is_empty() {
        frames = write_table(txn, &frame_table(number, &unwinding.frames))?;
    }
    let names = name_table(number, &prepared.names(placement)?);
    let text = TextRecord {
        key: index::by_place(placement.text),
        generation: txn.generation(),
        text,
        eh_frame: unwinding.eh_frame.map(Into::into).unwrap_or_default(),
        frames,
        names: write_table(txn, &names)?,
        unit: number,
        name_len: name.len() as u32,
    };
    Ok(edit.put_text(txn, &text, name)?)
}
