//! What the functions of a unit are called, the local ones too: for backtraces and profilers.

use std::borrow::Cow;

use jitcast_runtime::SegmentOffset;
use jitcast_runtime::frames::Name;
use object::elf;

use crate::error::LinkError;
use crate::input::{Area, Placement};
use crate::label::Label;
use crate::layout::Spot;
use crate::prepared::Prepared;
use crate::unit::Unit;

/// A function and its name.
#[derive(Clone, Debug)]
pub(crate) struct Named<'a> {
    start: Spot,
    len_bytes: u32,
    name: Cow<'a, str>,
}

/// Every function that is placed, sorted; of several names for one place, a global one.
pub(crate) fn collect<'a>(
    unit: &mut Unit<'a>,
    labels: &[Label],
) -> Result<Vec<Named<'a>>, LinkError> {
    let mut named: Vec<Named<'a>> = Vec::with_capacity(labels.len());
    let functions = labels.iter().filter(|label| label.kind != elf::STT_OBJECT);
    let (mut home, mut len_bytes) = (u32::MAX, 0);
    // Whether only its object knows the last one.
    let mut local = false;
    for label in functions {
        let start = label.start;
        if start.chunk != home {
            let chunk = &unit.chunks[start.chunk as usize];
            // Chunks are no longer than a window. Elsewhere are no functions.
            let text = (chunk.area == Area::Text).then(|| chunk.len_bytes() as u32);
            (home, len_bytes) = (start.chunk, text.unwrap_or_default());
        }
        if start.offset >= len_bytes {
            continue;
        }
        let again = named.last().is_some_and(|last| last.start == start);
        if again && (label.global.is_none() || !local) {
            continue;
        }
        if again {
            named.pop();
        }
        local = label.global.is_none();
        let name = match label.global {
            Some(global) => Cow::Borrowed(unit.globals.list[global as usize].name),
            None => {
                let file = &mut unit.objects[label.object as usize];
                let local = file.symbol(label.symbol);
                let name = local.map(|local| file.global_name(local)).transpose()?;
                String::from_utf8_lossy(name.unwrap_or_default())
            }
        };
        named.push(Named {
            start,
            len_bytes: label.len_bytes.min(len_bytes - start.offset),
            name,
        });
    }
    // Assembly leaves the sizes of its functions out: such a one ends where the next begins.
    let mut next: Option<Spot> = None;
    for named in named.iter_mut().rev() {
        let start = named.start;
        if named.len_bytes == 0 {
            let whole = unit.chunks[start.chunk as usize].len_bytes() as u32;
            let next = next.filter(|next| next.chunk == start.chunk);
            named.len_bytes = next.map_or(whole, |next| next.offset) - start.offset;
        }
        next = Some(start);
    }
    Ok(named)
}

impl Prepared<'_> {
    /// What its functions are called, sorted by their places.
    ///
    /// # Errors
    /// A placement outside every window.
    pub fn names(&self, at: &Placement) -> Result<Vec<Name<'_>>, LinkError> {
        let mut names = Vec::with_capacity(self.names.len());
        for named in &self.names {
            let start: SegmentOffset = self.offset(named.start, at)?;
            names.push(Name {
                start,
                len_bytes: named.len_bytes,
                name: &named.name,
            });
        }
        names.sort_unstable_by_key(|name| name.start);
        Ok(names)
    }
}
