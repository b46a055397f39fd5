//! Which definition a global name means in several objects that are linked as one.
//!
//! Strong beats common beats weak, of equals the first; of COMDAT groups with one signature the first stays
//! (gABI 4.1, chapter 4, sections "Section Groups" and "Symbol Table"). Visibility is the strictest of all.

use std::collections::{HashMap, HashSet};

use crate::elf::{Elf, Home, Symbol};

/// A global name.
#[derive(Clone, Copy, Debug)]
pub struct Global {
    /// The object that defines it, and where; `None` if none does.
    pub definition: Option<(usize, Home)>,
    /// The value of the definition.
    pub value: u64,
    /// The size of the definition; of common symbols, the largest.
    pub size: u64,
    /// `STT_*` of the definition.
    pub kind: u8,
    /// `STB_*` of the definition.
    pub binding: u8,
    /// Default or protected for everybody.
    pub exported: bool,
    /// Referred to other than weakly, somewhere.
    pub wanted: bool,
    strength: u8,
}

/// All global names of some objects.
#[derive(Clone, Debug, Default)]
pub struct Names<'a> {
    globals: HashMap<&'a str, Global>,
    discarded: HashSet<(usize, usize)>,
}

/// The name without its version.
pub(crate) fn stem(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

impl<'a> Names<'a> {
    /// Resolves the names of `objects`.
    pub fn resolve<'e>(objects: impl IntoIterator<Item = &'e Elf<'a>>) -> Self
    where
        'a: 'e,
    {
        let mut names = Self::default();
        let mut groups = HashSet::new();
        for (number, object) in objects.into_iter().enumerate() {
            for group in &object.groups {
                if !groups.insert(group.signature) {
                    let members = group.members.iter().map(|&member| (number, member));
                    names.discarded.extend(members);
                }
            }
            for symbol in object.symbols.iter().skip(1) {
                if symbol.binding != 0 {
                    names.add(number, symbol);
                }
            }
        }
        names
    }

    fn add(&mut self, object: usize, symbol: &Symbol<'a>) {
        let discarded = match symbol.home {
            Home::Section(section) => self.discarded.contains(&(object, section)),
            _ => false,
        };
        let strength = match symbol.home {
            _ if discarded => 0,
            Home::Undefined => 0,
            Home::Common => 2,
            // A unique symbol is as good as any of its copies.
            _ if matches!(symbol.binding, 2 | 10) => 1,
            _ => 3,
        };
        let new = Global {
            definition: None,
            value: 0,
            size: 0,
            kind: 0,
            binding: 0,
            exported: true,
            wanted: false,
            strength: 0,
        };
        let global = self.globals.entry(stem(symbol.name)).or_insert(new);
        global.exported &= matches!(symbol.visibility, 0 | 3);
        global.wanted |= strength == 0 && !discarded && symbol.binding != 2;
        if strength == 2 && global.strength == 2 {
            global.size = global.size.max(symbol.size);
        } else if strength > global.strength {
            global.definition = Some((object, symbol.home));
            global.value = symbol.value;
            global.size = symbol.size;
            global.kind = symbol.kind;
            global.binding = symbol.binding;
            global.strength = strength;
        }
    }

    /// The name `name`, if any object has it.
    pub fn get(&self, name: &str) -> Option<&Global> {
        self.globals.get(stem(name))
    }

    /// Whether a section was discarded, since another object has its group too.
    pub fn is_discarded(&self, object: usize, section: usize) -> bool {
        self.discarded.contains(&(object, section))
    }

    /// All names.
    pub fn all(&self) -> impl Iterator<Item = (&'a str, &Global)> {
        self.globals.iter().map(|(&name, global)| (name, global))
    }
}
