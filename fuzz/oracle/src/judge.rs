//! The judge: goes through the relocations of the objects and compares each field with what it must hold, then
//! all other bytes with what they were.

use core::fmt;

use crate::answer::answer;
use crate::elf::{Elf, Home, Relocation, Section, Symbol, WRITE};
use crate::image::Image;
use crate::layout::{Layout, Rules};
use crate::linked::THREAD_LOCAL;
use crate::names::{Global, Names};
use crate::report::{Finding, Outcome, Report, Verdict};
use crate::rules::RULES;
use crate::site::Site;
use crate::table::{self, Row};
use crate::usage::Usage;

/// What a symbol is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// Defined by one of the objects.
    Own {
        address: u64,
        /// The name, if others see it.
        seen: Option<&'a str>,
        /// It lies in text and is not declared to be a datum.
        code: bool,
    },
    /// A number.
    Number(u64),
    /// Defined elsewhere.
    Outside(&'a str),
    /// `_GLOBAL_OFFSET_TABLE_`.
    Table,
    /// In a section whose address nobody knows.
    Lost,
}

impl fmt::Display for Meaning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { address, code, .. } => {
                let what = if *code { "code" } else { "data" };
                write!(f, "its own {what} at {address:#x}")
            }
            Self::Number(value) => write!(f, "the number {value:#x}"),
            Self::Outside(name) => write!(f, "`{name}`, which it does not define"),
            Self::Table => f.write_str("the global offset table"),
            Self::Lost => f.write_str("a section that was not found"),
        }
    }
}

impl<'a> Meaning<'a> {
    pub(crate) fn seen(&self) -> Option<&'a str> {
        match self {
            Self::Own { seen, .. } => *seen,
            _ => None,
        }
    }

    pub(crate) fn seen_code(&self) -> Option<&'a str> {
        match self {
            Self::Own {
                seen, code: true, ..
            } => *seen,
            _ => None,
        }
    }
}

/// An object with the name that reports use.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it holds.
    pub elf: Elf<'a>,
}

/// Compares the image with the objects that it was linked from.
#[derive(Debug)]
pub struct Judge<'a> {
    objects: &'a [Object<'a>],
    names: Names<'a>,
    image: &'a Image,
    layout: &'a Layout,
}

impl<'a> Judge<'a> {
    /// A judge of `image`.
    pub fn new(objects: &'a [Object<'a>], image: &'a Image, layout: &'a Layout) -> Self {
        let names = Names::resolve(objects.iter().map(|object| &object.elf));
        Self {
            objects,
            names,
            image,
            layout,
        }
    }

    /// Looks at every site and every byte.
    pub fn judge(&self) -> Report {
        self.judge_each(&mut |_| {})
    }

    /// The same, and tells of each site what it came to.
    pub fn judge_each(&self, each: &mut dyn FnMut(Verdict)) -> Report {
        let mut report = Report::default();
        for (number, object) in self.objects.iter().enumerate() {
            let mut of_section: Vec<Vec<&Relocation>> = vec![Vec::new(); object.elf.sections.len()];
            for relocation in &object.elf.relocations {
                if let Some(list) = of_section.get_mut(relocation.section) {
                    list.push(relocation);
                }
            }
            let sections = object.elf.sections.iter().zip(of_section).enumerate();
            for (index, (section, relocations)) in sections {
                if section.is_loaded() {
                    self.section((number, index), section, &relocations, each, &mut report);
                }
            }
        }
        report
    }

    fn section(
        &self,
        place: (usize, usize),
        section: &'a Section<'a>,
        relocations: &[&Relocation],
        each: &mut dyn FnMut(Verdict),
        report: &mut Report,
    ) {
        let apart = match section.name {
            // Linkers take it apart and put it together again.
            ".eh_frame" => Some("unwind table"),
            _ if self.names.is_discarded(place.0, place.1) => Some("discarded with its group"),
            _ if !self.layout.sections.contains_key(&place) => Some("not in the image"),
            _ => None,
        };
        if let Some(why) = apart {
            for relocation in relocations {
                report.count(relocation.kind, Outcome::Apart(why));
            }
            return;
        }
        let start = self.layout.sections[&place];
        let mut excused = vec![false; section.bytes.len()];
        for relocation in relocations {
            match self.site(place, start, section, relocation) {
                Ok(verdict) => {
                    report.count(relocation.kind, verdict.outcome);
                    if let Some(bytes) = excused.get_mut(verdict.range.clone()) {
                        bytes.fill(true);
                    }
                    each(verdict);
                }
                Err(wrong) => {
                    report.count(relocation.kind, Outcome::Wrong);
                    report.findings.push(self.finding(place, relocation, wrong));
                }
            }
        }
        self.rest(place, start, section, &excused, report);
    }

    /// Whether everything that no relocation accounts for is as it was.
    fn rest(
        &self,
        place: (usize, usize),
        start: u64,
        section: &Section<'_>,
        excused: &[bool],
        report: &mut Report,
    ) {
        if section.is_zero() && section.flags & THREAD_LOCAL != 0 {
            // Each thread has its own, somewhere else.
            return;
        }
        if section.is_zero() {
            let len = usize::try_from(section.len_bytes).unwrap_or(usize::MAX);
            let now = self.image.read(start, len).unwrap_or_default();
            if let Some(at) = now.iter().position(|&byte| byte != 0) {
                report.findings.push(Finding {
                    object: self.objects[place.0].name.to_owned(),
                    section: section.name.to_owned(),
                    offset: at as u64,
                    kind: "byte",
                    symbol: String::new(),
                    what: "a byte that should be zero".to_owned(),
                    expected: vec![0],
                    found: vec![now[at]],
                });
            }
            return;
        }
        // Equal contents are kept once, in any order.
        let merged = section.flags & 0x10 != 0;
        let Some(now) = self
            .image
            .read(start, section.bytes.len())
            .filter(|_| !merged)
        else {
            if !merged {
                report.findings.push(Finding {
                    object: self.objects[place.0].name.to_owned(),
                    section: section.name.to_owned(),
                    offset: 0,
                    kind: "section",
                    symbol: String::new(),
                    what: format!(
                        "the image has no {} bytes at {start:#x}",
                        section.bytes.len()
                    ),
                    expected: Vec::new(),
                    found: Vec::new(),
                });
            }
            return;
        };
        let changed = |&at: &usize| !excused[at] && now[at] != section.bytes[at];
        if let Some(at) = (0..now.len()).find(changed) {
            report.findings.push(Finding {
                object: self.objects[place.0].name.to_owned(),
                section: section.name.to_owned(),
                offset: at as u64,
                kind: "byte",
                symbol: String::new(),
                what: "a byte changed that no relocation accounts for".to_owned(),
                expected: vec![section.bytes[at]],
                found: vec![now[at]],
            });
        }
    }

    fn site(
        &self,
        place: (usize, usize),
        start: u64,
        section: &'a Section<'a>,
        relocation: &Relocation,
    ) -> Result<Verdict, Wrong> {
        let row =
            table::lookup(relocation.kind).ok_or_else(|| Wrong::says("no row has this kind"))?;
        let len = section.bytes.len();
        let at = usize::try_from(relocation.offset)
            .ok()
            .filter(|&at| at <= len);
        let at = at.ok_or_else(|| Wrong::says("the field is outside its section"))?;
        let verdict = |outcome, range, canonical| Verdict {
            object: place.0,
            section: place.1,
            offset: relocation.offset,
            kind: relocation.kind,
            range,
            outcome,
            canonical,
        };
        let executable = matches!(self.layout.rules, Rules::Executable { .. });
        if row.is_thread_local() && executable {
            // The instructions around it change as a whole.
            let around = at.saturating_sub(8)..at.saturating_add(16).min(len);
            return Ok(verdict(Outcome::Apart("thread-local"), around, false));
        }
        let site = self.read(place, start, section, relocation, row, at)?;
        let found = site
            .now(site.field_range())
            .ok_or_else(|| Wrong::says("the field is outside its section"))?;
        let canonical = match &site.meaning {
            Meaning::Outside(_) => true,
            own => own.seen_code().is_some(),
        };
        let expected = site.value().map(|value| site.field.encode(value));
        let holds = match &expected {
            Some(bytes) => bytes.as_deref() == Some(found),
            // The entry is anywhere, but it has to hold the symbol's address.
            None => site.named_entry().is_some_and(|entry| site.is_entry(entry)),
        };
        if holds {
            return Ok(verdict(Outcome::Compared, site.field_range(), canonical));
        }
        for rule in RULES {
            if let Some(range) = (rule.holds)(&site) {
                return Ok(verdict(Outcome::Excused(rule.name), range, canonical));
            }
        }
        if site.meaning == Meaning::Lost {
            let range = at.saturating_sub(3)..site.field_range().end;
            return Ok(verdict(
                Outcome::Apart("its section was not found"),
                range,
                false,
            ));
        }
        let what = match &expected {
            Some(Some(_)) => format!(
                "{} gives something else, and no rule allows it",
                row.formula
            ),
            Some(None) => format!("{} does not fit the field", row.formula),
            None => "the entry that it leads to does not hold the symbol's address".to_owned(),
        };
        Err(Wrong {
            what: format!("{what} ({:?} of {})", site.usage, site.meaning),
            expected: expected.flatten().unwrap_or_default(),
            found: found.to_vec(),
        })
    }

    fn read(
        &self,
        place: (usize, usize),
        start: u64,
        section: &'a Section<'a>,
        relocation: &Relocation,
        row: &Row,
        at: usize,
    ) -> Result<Site<'a>, Wrong> {
        let elf = &self.objects[place.0].elf;
        let symbol_number = relocation.symbol as usize;
        let symbol = elf
            .symbols
            .get(symbol_number)
            .ok_or_else(|| Wrong::says("no such symbol"))?;
        let in_text = section.is_text();
        let before = section.bytes.get(..at).unwrap_or_default();
        let usage = Usage::of(row, relocation.addend, before, in_text);
        let unreadable = || Wrong::says("the row is not readable");
        let formula = row.formula().ok_or_else(unreadable)?;
        let field = row.field().ok_or_else(unreadable)?;
        let (meaning, answer) = if usage == Usage::Number {
            (Meaning::Number(0), Ok(crate::answer::Answer::default()))
        } else {
            let meaning = self.meaning(place.0, symbol_number, symbol)?;
            let answer = answer(self.layout, usage, &meaning, relocation.addend, in_text);
            (meaning, answer)
        };
        Ok(Site {
            elf,
            section,
            section_number: place.1,
            symbol: symbol_number,
            start,
            at,
            addend: relocation.addend,
            size: self.size(symbol),
            meaning,
            usage,
            in_text,
            answer: answer.map_err(Wrong::says)?,
            formula,
            field,
            view: self.image,
            layout: self.layout,
        })
    }

    fn size(&self, symbol: &Symbol<'_>) -> u64 {
        let global = self.names.get(symbol.name).filter(|_| symbol.binding != 0);
        global.map_or(symbol.size, |global| global.size)
    }

    /// The address of a place in an object.
    fn placed(&self, object: usize, home: Home, value: u64, name: &str) -> Result<u64, Wrong> {
        let start = match home {
            Home::Section(section) => self.layout.sections.get(&(object, section)).copied(),
            Home::Common => {
                return self
                    .layout
                    .commons
                    .get(name)
                    .copied()
                    .ok_or_else(|| Wrong::says(format!("nobody says where `{name}` is")));
            }
            _ => None,
        };
        let start = start.ok_or_else(|| {
            Wrong::says(format!(
                "`{name}` lies in a section that is not in the image"
            ))
        })?;
        Ok(start.wrapping_add(value))
    }

    /// Whether a datum is one in the process, whoever defines it: unique, or weak, written to and in a COMDAT group. What is
    /// one for all processes is not.
    fn is_shared(&self, global: &Global) -> bool {
        let Some((object, Home::Section(index))) = global.definition else {
            return false;
        };
        let elf = &self.objects[object].elf;
        let Some(section) = elf.section(index).filter(|_| global.exported) else {
            return false;
        };
        let written = section.flags & WRITE != 0
            && section.flags & THREAD_LOCAL == 0
            && !section.name.starts_with(".data.rel.ro")
            && !section.name.starts_with(".jitcast.shared");
        let grouped = elf
            .groups
            .iter()
            .any(|group| group.members.contains(&index));
        global.binding == 10 || global.binding == 2 && written && grouped
    }

    /// Whether a section lies somewhere that nobody knows: only another linker's image has such.
    fn is_lost(&self, object: usize, section: usize) -> bool {
        matches!(self.layout.rules, Rules::Executable { .. })
            && !self.layout.sections.contains_key(&(object, section))
    }

    fn meaning(
        &self,
        object: usize,
        number: usize,
        symbol: &Symbol<'a>,
    ) -> Result<Meaning<'a>, Wrong> {
        if number == 0 {
            return Ok(Meaning::Number(0));
        }
        let is_code = |object: usize, home, kind: u8| {
            let Home::Section(section) = home else {
                return false;
            };
            let section = self.objects[object].elf.section(section);
            section.is_some_and(Section::is_text) && kind != 1
        };
        if symbol.binding == 0 {
            return Ok(match symbol.home {
                Home::Absolute => Meaning::Number(symbol.value),
                Home::Section(home) if self.is_lost(object, home) => Meaning::Lost,
                home => Meaning::Own {
                    address: self.placed(object, home, symbol.value, symbol.name)?,
                    seen: None,
                    code: is_code(object, home, symbol.kind),
                },
            });
        }
        let name = crate::names::stem(symbol.name);
        let global = self
            .names
            .get(name)
            .ok_or_else(|| Wrong::says("no such name"))?;
        let window = match &self.layout.rules {
            Rules::Window(window) => Some(window),
            Rules::Executable { .. } => None,
        };
        match global.definition {
            // One in the process: everybody goes through cells.
            Some(_) if window.is_some() && self.is_shared(global) => Ok(Meaning::Outside(name)),
            // Found by asking: the code that everybody reaches is not the resolver.
            Some(_) if global.kind == 10 && window.is_some() => {
                let indirect = window.and_then(|window| window.indirect.get(name));
                let address = *indirect
                    .ok_or_else(|| Wrong::says(format!("nobody says where `{name}` leads")))?;
                Ok(Meaning::Own {
                    address,
                    seen: global.exported.then_some(name),
                    code: true,
                })
            }
            Some((_, Home::Absolute)) => Ok(Meaning::Number(global.value)),
            Some((definer, Home::Section(home))) if self.is_lost(definer, home) => {
                Ok(Meaning::Lost)
            }
            Some((definer, home)) => {
                let value = if home == Home::Common {
                    0
                } else {
                    global.value
                };
                Ok(Meaning::Own {
                    address: self.placed(definer, home, value, name)?,
                    seen: global.exported.then_some(name),
                    code: is_code(definer, home, global.kind),
                })
            }
            None if name == "_GLOBAL_OFFSET_TABLE_" => Ok(Meaning::Table),
            // Hidden, weak, and nowhere: nobody may define it any more.
            None if !global.exported && !global.wanted => Ok(Meaning::Number(0)),
            None => Ok(Meaning::Outside(name)),
        }
    }

    fn finding(&self, place: (usize, usize), relocation: &Relocation, wrong: Wrong) -> Finding {
        let object = &self.objects[place.0];
        let symbol = object.elf.symbols.get(relocation.symbol as usize);
        let symbol = symbol.map_or("", |symbol| match symbol.home {
            Home::Section(home) if symbol.kind == 3 => {
                object.elf.section(home).map_or("", |section| section.name)
            }
            _ => symbol.name,
        });
        Finding {
            object: object.name.to_owned(),
            section: object.elf.sections[place.1].name.to_owned(),
            offset: relocation.offset,
            kind: table::lookup(relocation.kind).map_or("unknown", |row| row.name),
            symbol: format!("{symbol}{:+#x}", relocation.addend),
            what: wrong.what,
            expected: wrong.expected,
            found: wrong.found,
        }
    }
}

/// Why a site is wrong.
struct Wrong {
    what: String,
    expected: Vec<u8>,
    found: Vec<u8>,
}

impl Wrong {
    fn says(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            expected: Vec::new(),
            found: Vec::new(),
        }
    }
}
