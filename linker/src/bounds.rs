//! Sections whose start and end something asks for (`__start_NAME`, `__stop_NAME`): their parts, from all
//! objects of the unit, lie one after another.
//!
//! Invariant: the parts of one such section have the same area, rank and packing, hence follow one another.

use std::collections::HashMap;

use crate::error::{LinkError, SectionRefusal};
use crate::input::Area;
use crate::layout::{Chunk, RANK_PATCHED, RANK_PLAIN, Spot, text_rank};
use crate::object_file::ObjectFile;
use crate::section::{Content, Role, Section, refuse};

/// One section that is asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    /// Its number, from 1 on.
    group: u32,
    code: bool,
    data: bool,
    bytes: bool,
    zeros: bool,
    private: bool,
    patched: bool,
    align_bytes: u64,
    /// Its first and last chunk.
    chunks: Option<(u32, u32)>,
}

/// The sections that are asked for, by name.
#[derive(Debug, Default)]
pub(crate) struct Bounded<'a> {
    sections: HashMap<&'a str, Bounds>,
}

/// Which section the name of a symbol asks for, and whether for its end.
fn asks_for(symbol: &str) -> Option<(&str, bool)> {
    let start = symbol.strip_prefix("__start_").map(|name| (name, false));
    let (name, end) = start.or_else(|| symbol.strip_prefix("__stop_").map(|name| (name, true)))?;
    let identifier = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && name.bytes().all(identifier)).then_some((name, end))
}

impl<'a> Bounded<'a> {
    /// Takes note of an undefined name.
    pub(crate) fn ask(&mut self, symbol: &'a str) {
        if let Some((name, _)) = asks_for(symbol) {
            let group = self.sections.len() as u32 + 1;
            let new = Bounds {
                group,
                align_bytes: 1,
                ..Bounds::default()
            };
            self.sections.entry(name).or_insert(new);
        }
    }

    /// Whether something asks for the bounds of section `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.sections.contains_key(name)
    }

    /// Whether nothing asks for the bounds of any section.
    pub(crate) fn is_empty(&self) -> bool {
        self.sections.is_empty()
    }

    /// Takes note of a section that is placed, before any is cut.
    pub(crate) fn join(
        &mut self,
        object: &ObjectFile<'a>,
        section: &Section<'a>,
        patched: bool,
    ) -> Result<(), LinkError> {
        let Some(bounds) = self.sections.get_mut(section.name) else {
            return Ok(());
        };
        let code = section.role == Role::Text;
        let zeros = matches!(section.content, Content::Zero(_));
        bounds.code |= code;
        bounds.data |= !code;
        bounds.zeros |= zeros;
        bounds.bytes |= !zeros;
        bounds.private |= patched || zeros || section.role == Role::Writable;
        bounds.patched |= patched;
        bounds.align_bytes = bounds.align_bytes.max(section.align_bytes.into());
        if (bounds.code && bounds.data) || (bounds.zeros && bounds.bytes) {
            return Err(object.error(refuse(section.name, SectionRefusal::MixedBounds)));
        }
        Ok(())
    }

    /// Makes chunk `number` lie beside the others of its section.
    #[inline]
    pub(crate) fn gather(&mut self, name: &str, chunk: &mut Chunk<'_>, number: u32) {
        let Some(bounds) = self.sections.get_mut(name) else {
            return;
        };
        (chunk.area, chunk.rank) = match (bounds.code, bounds.private) {
            (true, _) => (Area::Text, text_rank(name)),
            (_, false) => (Area::ReadOnly, RANK_PLAIN),
            _ if bounds.patched => (Area::Private, RANK_PATCHED),
            _ => (Area::Private, RANK_PLAIN),
        };
        chunk.group = bounds.group;
        chunk.pack_bytes = bounds.align_bytes;
        let first = bounds.chunks.map_or(number, |(first, _)| first);
        bounds.chunks = Some((first, number));
    }

    /// Where the section starts or ends that `symbol` asks for, if the unit has such a section.
    pub(crate) fn spot(&self, symbol: &str, chunks: &[Chunk<'_>]) -> Option<Spot> {
        let (name, end) = asks_for(symbol)?;
        let (first, last) = self.sections.get(name)?.chunks?;
        let start = Spot {
            chunk: first,
            offset: 0,
        };
        let stop = Spot {
            chunk: last,
            offset: u32::try_from(chunks.get(last as usize)?.len_bytes()).ok()?,
        };
        Some(if end { stop } else { start })
    }
}

#[cfg(test)]
mod tests {
    use super::asks_for;

    #[test]
    fn only_identifiers_have_bounds() {
        assert_eq!(asks_for("__start_things"), Some(("things", false)));
        assert_eq!(asks_for("__stop_things_2"), Some(("things_2", true)));
        for other in ["__start_", "__start_.text", "_start", "start_x"] {
            assert_eq!(asks_for(other), None, "{other}");
        }
    }
}
