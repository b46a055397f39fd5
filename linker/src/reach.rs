//! Which sections of a unit are reachable from its roots, where the caller wants no others (`--gc-sections`).
//!
//! A section is reached from a root or a section that has a relocation against a symbol in it. What runs or is
//! found without being referred to is a root too: constructors, `SHF_GNU_RETAIN`, sections whose bounds
//! something asks for.
//!
//! Invariant: each section is visited once, and each of its relocations looked at once.

use std::collections::HashMap;

use object::LittleEndian as LE;

use crate::error::{LinkError, Problem};
use crate::object_file::ObjectFile;
use crate::resolve::{Globals, SymbolUse, Value};
use crate::section::Role;

/// Drops what the roots do not reach. `uses` says what each symbol of each object means.
pub(crate) fn drop_unreached<'a>(
    objects: &mut [ObjectFile<'a>],
    uses: &[Vec<SymbolUse>],
    globals: &Globals<'a>,
    roots: &[String],
    is_root: impl Fn(&str) -> bool,
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
        for &table in tables[number].get(&section).into_iter().flatten() {
            for entry in object.relocations[table].entries {
                let symbol = entry.r_sym(LE, false);
                match uses[number].get(symbol as usize) {
                    Some(&SymbolUse::Global { global, .. }) => {
                        if let Value::InSection {
                            object, section, ..
                        } = globals.list[global as usize].value
                        {
                            pending.push((object as usize, section as usize));
                        }
                    }
                    Some(&SymbolUse::Local(index)) => {
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
