//! Constructors and destructors: which slots of private data hold them, and in which order they run.
//!
//! As GNU ld orders them: constructors by ascending priority, those without one last, else as the files
//! come; `.ctors` counts priorities and entries downwards. Destructors run the other way round.

use std::collections::HashMap;

use object::elf;

use crate::error::{LinkError, SectionRefusal};
use crate::fixup::Target;
use crate::layout::Spot;
use crate::plan::Plan;
use crate::relocation::ABSOLUTE;
use crate::section::refuse;
use crate::unit::Unit;

/// The priority of what asks for none: after all others.
const LAST: u32 = 65_536;

/// What the functions of a section are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Startup {
    /// Constructors, else destructors.
    pub(crate) init: bool,
    priority: u32,
    /// `.ctors` and `.dtors`: run from the end on.
    backwards: bool,
}

impl Startup {
    /// What a section is for, by its type and name.
    pub(crate) fn of(name: &str, kind: u32) -> Option<Self> {
        let stem = |stem: &str| {
            let rest = name.strip_prefix(stem)?;
            rest.is_empty()
                .then_some("")
                .or_else(|| rest.strip_prefix('.'))
        };
        let forms = [
            (".init_array", true, false, elf::SHT_INIT_ARRAY),
            (".fini_array", false, false, elf::SHT_FINI_ARRAY),
            (".ctors", true, true, elf::SHT_NULL),
            (".dtors", false, true, elf::SHT_NULL),
        ];
        let named = forms.into_iter().find_map(|(form, init, backwards, _)| {
            stem(form).map(|suffix| (suffix, init, backwards))
        });
        let typed = || {
            let (_, init, backwards, _) = forms.into_iter().find(|form| form.3 == kind)?;
            (kind != elf::SHT_NULL).then_some(("", init, backwards))
        };
        let (suffix, init, backwards) = named.or_else(typed)?;
        let number = suffix.parse::<u16>().ok().map(u32::from);
        let priority = match number {
            Some(number) if backwards => u32::from(u16::MAX) - number,
            Some(number) => number,
            None => LAST,
        };
        Some(Self {
            init,
            priority,
            backwards,
        })
    }

    /// Why the section is refused where nobody runs it.
    pub(crate) fn refusal(self) -> SectionRefusal {
        if self.init {
            SectionRefusal::Constructors
        } else {
            SectionRefusal::Destructors
        }
    }
}

/// The slots of constructors and of destructors, each in the order in which they run.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub(crate) init: Vec<Spot>,
    pub(crate) fini: Vec<Spot>,
}

/// Finds the constructors and destructors of a unit.
pub(crate) fn order(unit: &Unit<'_>, plan: &Plan<'_>) -> Result<Order, LinkError> {
    let mut sections = unit.startups.clone();
    let mut order = Order::default();
    if sections.is_empty() {
        return Ok(order);
    }
    // What each entry is filled with: a function's address, or something else.
    let mut filled: HashMap<Spot, bool> = HashMap::new();
    let of_startup: HashMap<u32, ()> = sections.iter().map(|&(_, chunk)| (chunk, ())).collect();
    for fixup in &plan.fixups {
        if of_startup.contains_key(&fixup.site.chunk) {
            let function = fixup.row == ABSOLUTE && !matches!(fixup.target, Target::Number(_));
            filled.insert(fixup.site, function);
        }
    }
    // Chunks are in the order of the files.
    sections.sort_by_key(|(startup, _)| startup.priority);
    for (startup, chunk) in sections {
        let slots = slots(unit, chunk, &mut filled)?;
        let list = if startup.init {
            &mut order.init
        } else {
            &mut order.fini
        };
        if startup.backwards {
            list.extend(slots.into_iter().rev());
        } else {
            list.extend(slots);
        }
    }
    order.fini.reverse();
    Ok(order)
}

/// The slots of one section. Old start files end their lists with 0 or -1, which is no function.
fn slots(
    unit: &Unit<'_>,
    chunk: u32,
    filled: &mut HashMap<Spot, bool>,
) -> Result<Vec<Spot>, LinkError> {
    let home = &unit.chunks[chunk as usize];
    let bytes = home.bytes().unwrap_or_default();
    let mut slots = Vec::new();
    let mut whole = home.len_bytes() == bytes.len() as u64 && bytes.len().is_multiple_of(8);
    for (offset, entry) in (0..).step_by(8).zip(bytes.chunks_exact(8)) {
        let slot = Spot { chunk, offset };
        // Any other field inside the entry would change what it holds.
        let beside = (1..8).any(|more| filled.contains_key(&slot.plus(more)));
        match filled.get(&slot) {
            Some(true) if !beside => slots.push(slot),
            None if !beside && (entry == [0; 8] || entry == [0xff; 8]) => {}
            _ => whole = false,
        }
    }
    if whole {
        return Ok(slots);
    }
    let (object, section) = home.origin.unwrap_or_default();
    let object = &unit.objects[object as usize];
    let name = object.sections[section as usize].name;
    Err(object.error(refuse(name, SectionRefusal::StartupEntry)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_order() {
        let of = |name| {
            Startup::of(name, elf::SHT_PROGBITS)
                .map(|found| (found.init, found.priority, found.backwards))
        };
        assert_eq!(of(".init_array"), Some((true, LAST, false)));
        assert_eq!(of(".init_array.00101"), Some((true, 101, false)));
        assert_eq!(of(".fini_array.7"), Some((false, 7, false)));
        assert_eq!(of(".ctors.65434"), Some((true, 101, true)));
        assert_eq!(of(".dtors"), Some((false, LAST, true)));
        assert_eq!(of(".ctorsx"), None);
        assert_eq!(of(".data"), None);
        let typed = Startup::of("odd", elf::SHT_FINI_ARRAY).unwrap();
        assert_eq!((typed.init, typed.priority), (false, LAST));
    }
}
