//! Which sections of a unit are reachable from its roots, where the caller wants no others (`--gc-sections`).
//!
//! A section is reached from a root or a section that has a relocation against a symbol in it. What says how to
//! unwind through a function does not keep it, but is kept with it, and so is what that refers to: landing pads
//! and the personality routine. What runs or is found without being referred to is a root too: constructors, `SHF_GNU_RETAIN`, sections whose bounds
//! something asks for.
//!
//! Invariant: each section is visited once, and each of its relocations looked at once.

use std::collections::HashMap;

use object::LittleEndian as LE;

use crate::error::{LinkError, Problem};
use crate::lists::Lists;
use crate::object_file::ObjectFile;
use crate::resolve::{Globals, SymbolUse, Value};
use crate::section::Role;

/// Drops what the roots do not reach. `uses` says what each symbol of each object means, and `frames` which
/// symbols of its object the frames of each section's functions refer to.
pub(crate) fn drop_unreached<'a>(
    objects: &mut [Box<ObjectFile<'a>>],
    uses: &Lists<SymbolUse>,
    globals: &Globals<'a>,
    roots: &[String],
    is_root: impl Fn(&str) -> bool,
    frames: &HashMap<(usize, usize), Vec<u32>>,
) -> Result<(), LinkError> {
    let mut reached: Vec<Vec<bool>> = objects
        .iter()
        .map(|object| vec![false; object.sections.len()])
        .collect();
    let mut pending = Vec::new();
    let named: HashMap<&str, Value> = globals
        .list
        .iter()
        .map(|global| (global.name, global.value))
        .collect();
    for root in roots {
        match named.get(root.as_str()) {
            Some(Value::InSection {
                object, section, ..
            }) => pending.push((*object as usize, *section as usize)),
            Some(Value::Nothing) | None => {
                return Err(LinkError::new(root, Problem::NoRoot));
            }
            Some(Value::Absolute(_) | Value::Common { .. }) => {}
        }
    }
    for (number, object) in objects.iter().enumerate() {
        let roots = (0..).zip(&object.sections).filter(|(_, section)| {
            section.retained || section.startup.is_some() || is_root(section.name)
        });
        pending.extend(roots.map(|(index, _)| (number, index)));
    }
    // Where the relocations of each section are.
    let tables: Vec<HashMap<usize, Vec<usize>>> = objects
        .iter()
        .map(|object| {
            let mut tables: HashMap<usize, Vec<usize>> = HashMap::new();
            for (index, table) in object.relocations.iter().enumerate() {
                tables.entry(table.section).or_default().push(index);
            }
            tables
        })
        .collect();
    while let Some((number, section)) = pending.pop() {
        let seen = reached[number].get_mut(section);
        if seen.is_none_or(|seen| core::mem::replace(seen, true)) {
            continue;
        }
        let object = &objects[number];
        if object.sections[section].role == Role::Frames {
            continue;
        }
        let related = tables[number].get(&section).into_iter().flatten();
        let related = related
            .flat_map(|&table| object.relocations[table].entries)
            .map(|entry| entry.r_sym(LE, false));
        let described = frames.get(&(number, section)).into_iter().flatten();
        for symbol in related.chain(described.copied()) {
            match uses.get(number, symbol as usize) {
                Some(SymbolUse::Global { global, .. }) => {
                    if let Value::InSection {
                        object, section, ..
                    } = globals.list[global as usize].value
                    {
                        pending.push((object as usize, section as usize));
                    }
                }
                Some(SymbolUse::Local(index)) => {
                    if let Some(found) = object.symbol(index)
                        && let Some(section) = object.symbol_section(index, found)?
                    {
                        pending.push((number, section));
                    }
                }
                None => {}
            }
        }
    }
    for (object, reached) in objects.iter_mut().zip(reached) {
        for (section, reached) in object.sections.iter_mut().zip(reached) {
            if section.role.is_placed() && !reached {
                section.role = Role::Unreached;
            }
        }
    }
    Ok(())
}
