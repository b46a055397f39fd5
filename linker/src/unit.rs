//! A unit while it is being linked: its objects, what they became, and what each of their symbols means.

use std::collections::HashMap;

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::Sym as _;

use crate::archive::Archives;
use crate::bounds::Bounded;
use crate::error::{LinkError, Problem, SymbolRefusal};
use crate::input::{Area, Definition, Dialect, Input, Options, SymbolKind};
use crate::label::Labels;
use crate::layout::{Chunk, Content, MODULE, RANK_PATCHED, RANK_PLAIN, Spot, text_rank};
use crate::lists::Lists;
use crate::mutant::{Mutant, makes};
use crate::object_file::{ObjectFile, Relocations};
use crate::prepared::{File, Kind};
use crate::reach;
use crate::relocation::{self, Resolved};
use crate::resolve::{Global, Globals, Strength, SymbolUse, Value};
use crate::section::{self, Role};
use crate::startup::Startup;
use crate::unwind::{self, Frames};

/// What `__cxa_atexit` and its like know a unit by.
pub(crate) const DSO_HANDLE: &str = "__dso_handle";

/// What the psABI calls the start of the cells.
const OFFSET_TABLE: &str = "_GLOBAL_OFFSET_TABLE_";

/// How many members ahead the processor is told what will be read.
const MEMBERS_AHEAD: usize = 2;

/// "None" in the tables below.
const NONE: u32 = u32::MAX;

/// What a symbol that a relocation names turns out to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meaning {
    /// Defined in this unit.
    Own(Own),
    /// A number.
    Absolute(u64),
    /// Another unit's or the host's: an index into [`Globals::list`].
    External(u32),
    /// `_GLOBAL_OFFSET_TABLE_`: the start of the window, whose first bytes are the cells.
    Window,
}

/// What a global is, found out once: relocations ask for it again and again.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// [`Unit::definition`]; `None` where that refuses.
    definition: Option<Meaning>,
    /// [`Global::is_indirect`](crate::resolve::Global::is_indirect).
    indirect: bool,
}

/// A symbol that this unit defines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    pub(crate) spot: Spot,
    /// The global name, if others see it.
    pub(crate) exported: Option<u32>,
    /// Code that others see: its address is that of its stub.
    pub(crate) has_stub: bool,
    /// Each thread has its own.
    pub(crate) thread_local: bool,
}

impl Own {
    /// What lies at `spot`, and that nobody else sees.
    fn unseen(spot: Spot) -> Self {
        Self {
            spot,
            exported: None,
            has_stub: false,
            thread_local: false,
        }
    }
}

/// The objects of a unit, resolved.
#[derive(Debug)]
pub(crate) struct Unit<'a> {
    #[expect(
        clippy::vec_box,
        reason = "each was read by itself, and hundreds of bytes need not be moved when the list grows"
    )]
    pub(crate) objects: Vec<Box<ObjectFile<'a>>>,
    /// For each object, what each of its symbols means.
    uses: Lists<SymbolUse>,
    pub(crate) globals: Globals<'a>,
    pub(crate) labels: Labels,
    pub(crate) chunks: Vec<Chunk<'a>>,
    /// For each object, the chunk of each section.
    chunk_of: Lists<u32>,
    /// The chunk of each global that is a common symbol.
    common_of: Vec<u32>,
    pub(crate) definitions: Vec<Definition<'a>>,
    /// Each definition's global.
    pub(crate) defined: Vec<u32>,
    /// The definition of each global.
    definition_of: Vec<u32>,
    /// What is known of each global, once all are placed.
    known: Vec<Known>,
    /// Some chunk is thread-local storage.
    pub(crate) has_block: bool,
    /// The sections that something asks the bounds of.
    bounded: Bounded<'a>,
    /// The chunks that hold addresses of constructors or destructors, in the order of the files.
    pub(crate) startups: Vec<(Startup, u32)>,
    /// The resolvers of indirect functions; the thunk of each lies at its index among the thunks.
    pub(crate) resolvers: Vec<Spot>,
    pub(crate) resolver_of: HashMap<Spot, u32>,
    /// The copies of host data: the global, and its chunk.
    pub(crate) copies: Vec<(u32, u32)>,
    /// What says how to unwind, until it is put together.
    pub(crate) frames: Vec<Frames<'a>>,
}

impl<'a> Unit<'a> {
    /// Puts the objects together, and the members that they pull from the archives.
    pub(crate) fn read(files: Vec<File<'a>>, options: &Options) -> Result<Self, LinkError> {
        let mut unit = Self {
            objects: Vec::new(),
            uses: Lists::default(),
            globals: Globals::new(options),
            labels: Labels::default(),
            chunks: Chunk::made(),
            chunk_of: Lists::default(),
            common_of: Vec::new(),
            definitions: Vec::new(),
            defined: Vec::new(),
            definition_of: Vec::new(),
            known: Vec::new(),
            has_block: false,
            bounded: Bounded::default(),
            startups: Vec::new(),
            resolvers: Vec::new(),
            resolver_of: HashMap::new(),
            copies: Vec::new(),
            frames: Vec::new(),
        };
        unit.objects.reserve(files.len());
        unit.uses.reserve(files.len());
        unit.chunk_of.reserve(files.len());
        let mut archives = Archives::default();
        for File(kind) in files {
            match kind {
                Kind::Object(object) => unit.add(object)?,
                Kind::Archive(input) => {
                    archives.add(&input)?;
                    if options.whole_archive {
                        for member in archives.pull_all()? {
                            unit.add(Box::new(member))?;
                        }
                    }
                }
            }
        }
        let mut support = options.support;
        let mut next = 0;
        while let Some(&global) = unit.globals.pending.get(next) {
            next += 1;
            if let Some(&later) = unit.globals.pending.get(next + MEMBERS_AHEAD) {
                archives.ask_for_member(unit.globals.list[later as usize].name);
            }
            let global = &unit.globals.list[global as usize];
            if global.strength != Strength::Undefined {
                continue;
            }
            let mut member = archives.pull(global.name)?;
            // It comes after all others, and most units want nothing that they have not.
            if member.is_none()
                && let Some((name, bytes)) = support.take()
            {
                let dialect = Dialect::Elf;
                archives.add(&Input {
                    name,
                    bytes,
                    dialect,
                })?;
                member = archives.pull(global.name)?;
            }
            if let Some(member) = member {
                unit.add(Box::new(member))?;
            }
        }
        for global in &unit.globals.list {
            if global.strength == Strength::Undefined {
                unit.bounded.ask(global.name);
            }
        }
        unit.frames = unwind::read(&unit.objects)?;
        if let Some(roots) = &options.roots {
            let bounded = |name: &str| unit.bounded.has(name);
            let frames = unwind::references(&unit.frames);
            let (objects, uses) = (&mut unit.objects, &unit.uses);
            reach::drop_unreached(objects, uses, &unit.globals, roots, bounded, &frames)?;
        }
        unit.bound_sections()?;
        unit.cut(options)?;
        unit.copy_host_data(options)?;
        unit.make_module();
        unit.find_resolvers()?;
        unit.define()?;
        Ok(unit)
    }

    fn add(&mut self, mut object: Box<ObjectFile<'a>>) -> Result<(), LinkError> {
        let (uses, labels) = (&mut self.uses, &mut self.labels);
        (self.globals).add(&mut object, &self.objects, uses, labels)?;
        self.objects.push(object);
        Ok(())
    }

    /// Finds out what the sections are that something asks the bounds of.
    fn bound_sections(&mut self) -> Result<(), LinkError> {
        if self.bounded.is_empty() {
            return Ok(());
        }
        for object in &self.objects {
            let patched = patched_sections(object);
            for (index, section) in object.sections.iter().enumerate() {
                let patched = patched.get(index).is_some_and(|&patched| patched);
                if section.role.is_placed() && !section.thread_local {
                    self.bounded.join(object, section, patched)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a chunk of each section that is placed, and of each common symbol.
    fn cut(&mut self, options: &Options) -> Result<(), LinkError> {
        let placed = self.objects.iter().map(|object| object.placed);
        self.chunks.reserve(placed.sum());
        for (number, object) in (0..).zip(&self.objects) {
            let patched = patched_sections(object);
            self.chunk_of.begin(object.sections.len());
            for (index, section) in (0..).zip(&object.sections) {
                if !section.role.is_placed() {
                    self.chunk_of.push(NONE);
                    continue;
                }
                let patched = patched.get(index as usize).is_some_and(|&patched| patched);
                let (area, rank) = match section.role {
                    Role::Text => (Area::Text, text_rank(section.name)),
                    Role::Shared => (Area::SharedData, RANK_PLAIN),
                    Role::ReadOnly if !patched => (Area::ReadOnly, RANK_PLAIN),
                    _ if patched => (Area::Private, RANK_PATCHED),
                    _ => (Area::Private, RANK_PLAIN),
                };
                let content = match section.content {
                    section::Content::Bytes(bytes) => Content::Input(bytes),
                    // Shared zeros would cost bytes of the segment; the end of the private data costs none.
                    section::Content::Zero(len_bytes) => Content::Zero(len_bytes),
                };
                let area = match content {
                    Content::Zero(_) if area != Area::SharedData => Area::Private,
                    _ => area,
                };
                if let Some(startup) = section.startup.filter(|_| !options.runs_startup) {
                    return Err(object.error(section::refuse(section.name, startup.refusal())));
                }
                let origin = Some((number, index));
                let chunk = Chunk {
                    area,
                    rank,
                    align_bytes: section.align_bytes.into(),
                    pack_bytes: section.align_bytes.into(),
                    group: 0,
                    content,
                    origin,
                    thread_local: section.thread_local,
                    position: 0,
                };
                let chunk =
                    push(&mut self.chunks, chunk).map_err(|problem| object.error(problem))?;
                self.has_block |= section.thread_local;
                if !section.thread_local {
                    let made = &mut self.chunks[chunk as usize];
                    self.bounded.gather(section.name, made, chunk);
                }
                self.chunk_of.push(chunk);
                if let Some(startup) = section.startup {
                    self.startups.push((startup, chunk));
                }
            }
        }
        if !self.globals.has_common {
            return Ok(());
        }
        for global in &self.globals.list {
            let mut number = NONE;
            if let Value::Common { align_bytes } = global.value {
                let content = Content::Zero(global.size);
                let (area, rank) = (Area::Private, RANK_PLAIN);
                let chunk = Chunk {
                    area,
                    rank,
                    align_bytes,
                    pack_bytes: align_bytes,
                    group: 0,
                    content,
                    origin: None,
                    thread_local: global.kind == elf::STT_TLS,
                    position: 0,
                };
                self.has_block |= chunk.thread_local;
                number = push(&mut self.chunks, chunk)
                    .map_err(|problem| LinkError::new(global.name, problem))?;
            }
            self.common_of.push(number);
        }
        Ok(())
    }

    /// What a global is to other units, given what it means here; nothing, if they do not see it.
    fn export(
        &self,
        global: &Global<'a>,
        meaning: Option<Meaning>,
    ) -> Result<Option<Definition<'a>>, LinkError> {
        if !global.exported || global.strength == Strength::Undefined {
            return Ok(None);
        }
        let mut definition = Definition {
            name: global.name,
            kind: SymbolKind::Absolute,
            weak: global.strength == Strength::Weak && !global.unique,
            unique: global.unique,
            size: global.size,
            align_bytes: 1,
            writable: false,
            shared: false,
        };
        match meaning {
            Some(Meaning::Own(own)) => {
                let chunk = &self.chunks[own.spot.chunk as usize];
                definition.kind = match chunk.thread_local {
                    true => SymbolKind::ThreadLocal,
                    false if is_code(chunk, global.kind) => SymbolKind::Function,
                    false => SymbolKind::Data,
                };
                let place = chunk.align_bytes | u64::from(own.spot.offset);
                definition.align_bytes = 1 << place.trailing_zeros();
                definition.writable = self.is_variable(global, &own, chunk);
                definition.shared = chunk.area == Area::SharedData;
                if definition.shared && global.unique {
                    return Err(self.refuse_shared(global));
                }
            }
            Some(_) => {}
            // In a section that is not placed: nothing that anybody could refer to.
            None => return Ok(None),
        }
        Ok(Some(definition))
    }

    /// Whether a global is a variable that a later version may take over.
    fn is_variable(&self, global: &Global<'a>, own: &Own, chunk: &Chunk<'a>) -> bool {
        if !matches!(chunk.area, Area::Private | Area::SharedData) {
            return false;
        }
        let written = chunk.origin.is_none_or(|(object, section)| {
            let section = &self.objects[object as usize].sections[section as usize];
            section.role == Role::Shared
                || section.role == Role::Writable && !section.name.starts_with(".data.rel.ro")
        });
        let end = u64::from(own.spot.offset).checked_add(global.size);
        let whole = end.is_some_and(|end| end <= chunk.len_bytes());
        let alone = chunk.group == 0 && !own.thread_local && !global.unique;
        written && alone && whole && global.size > 0
    }

    /// Refuses a global that lies in shared data, and is to be unique in each process.
    #[cold]
    fn refuse_shared(&self, global: &Global<'a>) -> LinkError {
        let (symbol, refusal) = (global.name.into(), SymbolRefusal::SharedUnique);
        let problem = Problem::Symbol { symbol, refusal };
        match global.value {
            Value::InSection { object, .. } => self.objects[object as usize].error(problem),
            _ => LinkError::new(global.name, problem),
        }
    }

    /// Finds out what each global means, and lists what other units may refer to by name.
    fn define(&mut self) -> Result<(), LinkError> {
        let count = self.globals.list.len();
        let mut known = Vec::with_capacity(count);
        let mut definition_of = vec![NONE; count];
        let (mut definitions, mut defined) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for ((number, global), place) in (0..).zip(&self.globals.list).zip(&mut definition_of) {
            let placed = self.find_placed(number, global);
            let meaning = placed.or_else(|| self.find_definition(number).ok());
            known.push(Known {
                definition: meaning,
                indirect: global.is_indirect(),
            });
            if let Some(definition) = self.export(global, meaning)? {
                // There are fewer definitions than globals, whose numbers are 32 bits wide.
                *place = definitions.len() as u32;
                definitions.push(definition);
                defined.push(number);
            }
        }
        (self.known, self.definition_of) = (known, definition_of);
        (self.definitions, self.defined) = (definitions, defined);
        Ok(())
    }

    /// The definition of a global, if others see it.
    pub(crate) fn definition_of(&self, global: u32) -> Option<usize> {
        self.definition_of
            .get(global as usize)
            .filter(|&&definition| definition != NONE)
            .map(|&at| at as usize)
    }

    /// The chunk of a section of an object, if it is placed.
    pub(crate) fn chunk_of(&self, object: usize, section: usize) -> Option<u32> {
        let chunk = self.chunk_of.get(object, section);
        chunk.filter(|&chunk| chunk != NONE)
    }

    /// What each symbol of an object is, in its own words.
    pub(crate) fn uses(&self, object: usize) -> &[SymbolUse] {
        self.uses.list(object)
    }

    /// What symbol `index` of an object is, in its own words.
    pub(crate) fn symbol_use(&self, object: usize, index: u32) -> Option<SymbolUse> {
        self.uses.get(object, index as usize)
    }

    /// What symbol `index` of an object means.
    pub(crate) fn meaning(&self, object: usize, index: u32) -> Result<Meaning, Problem> {
        match self.symbol_use(object, index) {
            Some(SymbolUse::Local(0)) => Ok(Meaning::Absolute(0)),
            Some(SymbolUse::Local(index)) => self.local_meaning(object, index),
            Some(SymbolUse::Global { global, .. }) => self.global_meaning(global),
            None => Err(Problem::Corrupt(
                "relocation against a symbol that does not exist".into(),
            )),
        }
    }

    fn local_meaning(&self, object: usize, index: u32) -> Result<Meaning, Problem> {
        let file = &self.objects[object];
        let corrupt = |what: &str| Problem::Corrupt(what.into());
        let symbol = file
            .symbol(index)
            .ok_or_else(|| corrupt("symbol that does not exist"))?;
        let section = file
            .symbol_section(index, symbol)
            .map_err(|error| error.problem.clone())?;
        let Some(section) = section else {
            return match symbol.st_shndx(LE) {
                elf::SHN_ABS => Ok(Meaning::Absolute(symbol.st_value(LE))),
                _ => Err(corrupt("local symbol that is undefined or common")),
            };
        };
        let spot = self.spot(object, section, symbol.st_value(LE), || {
            file.symbol_label(index)
        })?;
        let indirect = symbol.st_type() == elf::STT_GNU_IFUNC;
        Ok(Meaning::Own(Own {
            thread_local: self.chunks[spot.chunk as usize].thread_local,
            ..Own::unseen(if indirect { self.resolved(spot) } else { spot })
        }))
    }

    /// What a global name means to those who refer to it.
    pub(crate) fn global_meaning(&self, number: u32) -> Result<Meaning, Problem> {
        match self.known_meaning(number) {
            Some(meaning) => Ok(meaning),
            None => self.definition(number),
        }
    }

    /// The same, where it is what the unit has; `None` where it is not, and where that refuses.
    #[inline]
    pub(crate) fn plain_meaning(&self, number: u32) -> Option<&Meaning> {
        let known = self.known.get(number as usize)?;
        known.definition.as_ref().filter(|_| !known.indirect)
    }

    /// The same; `None` where that refuses.
    fn known_meaning(&self, number: u32) -> Option<Meaning> {
        let known = self.known.get(number as usize)?;
        match known.indirect {
            true => Some(Meaning::External(number)),
            false => known.definition,
        }
    }

    /// What the unit has under a global name.
    pub(crate) fn definition(&self, number: u32) -> Result<Meaning, Problem> {
        let known = self.known.get(number as usize);
        match known.and_then(|known| known.definition) {
            Some(meaning) => Ok(meaning),
            None => self.find_definition(number),
        }
    }

    /// What the unit has under a global name, where that has a place.
    #[inline]
    pub(crate) fn own(&self, number: u32) -> Option<&Own> {
        match &self.known.get(number as usize)?.definition {
            Some(Meaning::Own(own)) => Some(own),
            _ => None,
        }
    }

    fn find_definition(&self, number: u32) -> Result<Meaning, Problem> {
        let global = &self.globals.list[number as usize];
        let spot = match global.value {
            Value::Absolute(value) => return Ok(Meaning::Absolute(value)),
            Value::Nothing => return self.undefined_meaning(number),
            Value::Common { .. } => Spot {
                chunk: self.common_of[number as usize],
                offset: 0,
            },
            Value::InSection {
                object,
                section,
                value,
            } => self.spot(object as usize, section as usize, value, || {
                global.name.into()
            })?,
        };
        let indirect = global.kind == elf::STT_GNU_IFUNC;
        let spot = if indirect { self.resolved(spot) } else { spot };
        Ok(Meaning::Own(self.defined_at(spot, number, global)))
    }

    /// The same, found sooner, for a global in a section that is placed, as most are.
    #[inline]
    fn find_placed(&self, number: u32, global: &Global<'a>) -> Option<Meaning> {
        let Value::InSection {
            object,
            section,
            value,
        } = global.value
        else {
            return None;
        };
        let chunk = self.chunk_of(object as usize, section as usize)?;
        let offset = u32::try_from(value).ok()?;
        let spot = Spot { chunk, offset };
        let inside = value <= self.chunks[chunk as usize].len_bytes();
        let plain = inside && global.kind != elf::STT_GNU_IFUNC;
        plain.then(|| Meaning::Own(self.defined_at(spot, number, global)))
    }

    /// What global `number` is, which is defined at `spot`.
    #[inline]
    fn defined_at(&self, spot: Spot, number: u32, global: &Global<'a>) -> Own {
        let chunk = &self.chunks[spot.chunk as usize];
        let code = is_code(chunk, global.kind);
        Own {
            spot,
            exported: global.exported.then_some(number),
            has_stub: global.exported && (code || makes(Mutant::StubForData)),
            thread_local: chunk.thread_local,
        }
    }

    /// The size of symbol `index` of an object, if the unit defines it.
    pub(crate) fn size_of(&self, object: usize, index: u32) -> Option<u64> {
        match self.symbol_use(object, index)? {
            SymbolUse::Local(index) => {
                let symbol = self.objects.get(object)?.symbol(index)?;
                Some(symbol.st_size(LE))
            }
            SymbolUse::Global { global, .. } => {
                let global = self.globals.list.get(global as usize)?;
                (global.strength != Strength::Undefined).then_some(global.size)
            }
        }
    }

    fn undefined_meaning(&self, number: u32) -> Result<Meaning, Problem> {
        let global = &self.globals.list[number as usize];
        let refused = |refusal| {
            Err(Problem::Symbol {
                symbol: global.name.into(),
                refusal,
            })
        };
        if global.name == OFFSET_TABLE {
            return Ok(Meaning::Window);
        }
        if let Some(spot) = self.bounded.spot(global.name, &self.chunks) {
            return Ok(Meaning::Own(Own::unseen(spot)));
        }
        if let Ok(index) = (self.copies).binary_search_by_key(&number, |(global, _)| *global) {
            let (chunk, offset) = (self.copies[index].1, 0);
            return Ok(Meaning::Own(Own::unseen(Spot { chunk, offset })));
        }
        if global.name == DSO_HANDLE {
            let (chunk, offset) = (MODULE, 0);
            return Ok(Meaning::Own(Own::unseen(Spot { chunk, offset })));
        }
        if let Some(refusal) = self.globals.refuse_undefined(global) {
            return refused(refusal);
        }
        if !global.exported && !global.wanted {
            // Hidden, weak and defined by no file of the unit: nobody else may define it.
            return Ok(Meaning::Absolute(0));
        }
        Ok(Meaning::External(number))
    }

    pub(crate) fn spot(
        &self,
        object: usize,
        section: usize,
        value: u64,
        label: impl Fn() -> String,
    ) -> Result<Spot, Problem> {
        let Some(chunk) = self.chunk_of(object, section) else {
            let home = &self.objects[object].sections[section];
            let refusal = if home.role == Role::Discarded {
                SymbolRefusal::Discarded
            } else {
                SymbolRefusal::NotPlaced
            };
            return Err(Problem::Symbol {
                symbol: label(),
                refusal,
            });
        };
        let len_bytes = self.chunks[chunk as usize].len_bytes();
        let offset = u32::try_from(value).ok().filter(|_| value <= len_bytes);
        let offset =
            offset.ok_or_else(|| Problem::Corrupt("symbol past the end of its section".into()))?;
        Ok(Spot { chunk, offset })
    }
}

/// Which sections of an object have a relocation that is resolved at attach; nothing, if none has.
fn patched_sections(object: &ObjectFile<'_>) -> Vec<bool> {
    if !object.relocates_data {
        return Vec::new();
    }
    let mut patched = vec![false; object.sections.len()];
    let in_data = |table: &&Relocations<'_>| object.sections[table.section].role.is_data();
    for table in object.relocations.iter().filter(in_data) {
        patched[table.section] |= table.entries.iter().any(|entry| {
            relocation::lookup(entry.r_type(LE, false))
                .is_some_and(|row| row.resolved == Resolved::AtAttach)
        });
    }
    patched
}

/// Whether a symbol of `kind` in `chunk` is code. Assembly leaves the types of its labels out.
fn is_code(chunk: &Chunk<'_>, kind: u8) -> bool {
    chunk.area == Area::Text && kind != elf::STT_OBJECT
}

#[inline(always)]
pub(crate) fn push<'a>(chunks: &mut Vec<Chunk<'a>>, chunk: Chunk<'a>) -> Result<u32, Problem> {
    let longest = Options::WINDOW_LEN_BYTES;
    if chunk.len_bytes() > longest {
        return Err(Problem::Limit {
            what: "the length of a section",
            value: chunk.len_bytes(),
            limit: longest,
        });
    }
    let number = u32::try_from(chunks.len())
        .ok()
        .filter(|&number| number != NONE);
    chunks.push(chunk);
    number.ok_or_else(|| Problem::Corrupt("too many sections".into()))
}
