//! Archives: which member defines which name.
//!
//! Members are pulled by need: only a name that is wanted strongly and that nobody has defined yet pulls
//! one, unless all are asked for. The order of archives matters only where two define the same name: the first does.

use std::collections::HashSet;

use object::LittleEndian as LE;
use object::elf;
use object::read::archive::{ArchiveFile, ArchiveMember, ArchiveOffset};
use object::read::elf::Sym as _;

use crate::budget::Budget;
use crate::error::{LinkError, Problem};
use crate::input::{Dialect, Input};
use crate::name::Names;
use crate::object_file::{ObjectFile, ask_for};

/// What every archive starts with, regular and thin.
pub(crate) fn is_archive(bytes: &[u8]) -> bool {
    bytes.starts_with(&object::archive::MAGIC) || bytes.starts_with(&object::archive::THIN_MAGIC)
}

/// The member of a Rust library that is no object, or one without code.
const RUST_METADATA: &[u8] = b"lib.rmeta";

/// Where a member is: the archive, and the offset of the member's header, or its number if the archive has
/// no symbol table.
#[derive(Clone, Copy, Debug)]
enum Place {
    Header(u64),
    Member(usize),
}

/// A member: its name, where its bytes start in the archive, and the bytes.
#[derive(Clone, Copy, Debug)]
struct Member<'a> {
    name: &'a [u8],
    start: u64,
    bytes: &'a [u8],
}

/// An archive.
#[derive(Debug)]
struct Archive<'a> {
    name: &'a str,
    bytes: &'a [u8],
    dialect: Dialect,
    file: ArchiveFile<'a>,
    /// The members, if they were walked for want of a symbol table.
    members: Vec<Member<'a>>,
    budget: Budget,
}

/// All archives of a unit.
#[derive(Debug, Default)]
pub(crate) struct Archives<'a> {
    list: Vec<Archive<'a>>,
    /// Which names are defined, and for each where first.
    defined: Names<'a>,
    definers: Vec<(usize, Place)>,
    /// Archive and offset of the bytes of each member that was pulled.
    pulled: HashSet<(usize, u64)>,
}

fn corrupt(error: object::Error) -> Problem {
    Problem::Corrupt(error.to_string())
}

impl<'a> Archives<'a> {
    /// Adds an archive: reads which names its members define.
    pub(crate) fn add(&mut self, input: &Input<'a>) -> Result<(), LinkError> {
        self.read(input)
            .map_err(|problem| LinkError::new(input.name, problem))
    }

    fn read(&mut self, input: &Input<'a>) -> Result<(), Problem> {
        let &Input {
            name,
            bytes,
            dialect,
        } = input;
        if bytes.starts_with(&object::archive::THIN_MAGIC) {
            return Err(Problem::ThinArchive);
        }
        let file = ArchiveFile::parse(bytes).map_err(corrupt)?;
        let mut archive = Archive {
            name,
            bytes,
            dialect,
            file,
            members: Vec::new(),
            budget: Budget::new(bytes.len()),
        };
        let number = self.list.len();
        if let Some(symbols) = file.symbols().map_err(corrupt)? {
            for symbol in symbols {
                let symbol = symbol.map_err(corrupt)?;
                archive.budget.name(symbol.name())?;
                let place = Place::Header(symbol.offset().0);
                self.define(symbol.name(), (number, place));
            }
        } else {
            self.walk(&mut archive, number)?;
        }
        self.list.push(archive);
        Ok(())
    }

    /// Reads the symbol tables of the members, where the archive has none of its own (`ar S`).
    fn walk(&mut self, archive: &mut Archive<'a>, number: usize) -> Result<(), Problem> {
        for member in archive.file.members() {
            let member = archive.member(&member.map_err(corrupt)?)?;
            let place = Place::Member(archive.members.len());
            archive.members.push(member);
            // What is no object (a text, a list of names) defines nothing; a damaged object is met when it
            // is pulled, and only then.
            let Ok(mut object) = ObjectFile::read(String::new(), member.bytes, archive.dialect)
            else {
                continue;
            };
            for symbol in object.symbols.symbols() {
                if symbol.st_bind() != elf::STB_LOCAL
                    && !matches!(symbol.st_shndx(LE), elf::SHN_UNDEF)
                    && let Ok(name) = object.global_name(symbol)
                {
                    self.define(name, (number, place));
                }
            }
        }
        Ok(())
    }

    /// Notes who defines `name`, if nobody has before.
    fn define(&mut self, name: &'a [u8], definer: (usize, Place)) {
        // More names than 32 bits can number are in no archive whose offsets have 32 bits; they would be undefined.
        if let Some((_, true)) = self.defined.number(self.defined.key().name(name)) {
            self.definers.push(definer);
        }
    }

    /// Pulls every member of the archive that was added last, but for the metadata of Rust's compiler.
    pub(crate) fn pull_all(&mut self) -> Result<Vec<ObjectFile<'a>>, LinkError> {
        let number = self.list.len().saturating_sub(1);
        let Some(archive) = self.list.last_mut() else {
            return Ok(Vec::new());
        };
        let mut objects = Vec::new();
        for member in archive.file.members() {
            let read = member
                .map_err(corrupt)
                .and_then(|member| archive.member(&member));
            let member = read.map_err(|problem| LinkError::new(archive.name, problem))?;
            if member.name != RUST_METADATA && self.pulled.insert((number, member.start)) {
                objects.push(archive.read(member)?);
            }
        }
        Ok(objects)
    }

    /// Asks for the beginning of the member that defines `name`, which may be pulled soon.
    pub(crate) fn ask_for_member(&self, name: &str) {
        let definer = self.defined.find(name.as_bytes());
        let definer = definer.and_then(|name| self.definers.get(name as usize));
        if let Some(&(number, Place::Header(offset))) = definer
            && let Some(archive) = self.list.get(number)
            && let Ok(offset) = usize::try_from(offset)
        {
            ask_for(archive.bytes.get(offset..).unwrap_or_default());
        }
    }

    /// Pulls the member that defines `name`, if there is one and it has not been pulled yet.
    pub(crate) fn pull(&mut self, name: &str) -> Result<Option<ObjectFile<'a>>, LinkError> {
        let definer = self.defined.find(name.as_bytes());
        let definer = definer.and_then(|name| self.definers.get(name as usize));
        let Some(&(number, place)) = definer else {
            return Ok(None);
        };
        let Some(archive) = self.list.get_mut(number) else {
            return Ok(None);
        };
        let opened = archive
            .open(place)
            .map_err(|problem| LinkError::new(archive.name, problem));
        let member = opened?;
        if !self.pulled.insert((number, member.start)) {
            return Ok(None);
        }
        archive.read(member).map(Some)
    }
}

impl<'a> Archive<'a> {
    fn open(&mut self, place: Place) -> Result<Member<'a>, Problem> {
        match place {
            Place::Header(offset) => {
                let member = self.file.member(ArchiveOffset(offset)).map_err(corrupt)?;
                self.member(&member)
            }
            Place::Member(index) => {
                let member = self.members.get(index).copied();
                member.ok_or_else(|| Problem::Corrupt("archive member that does not exist".into()))
            }
        }
    }

    fn read(&mut self, member: Member<'a>) -> Result<ObjectFile<'a>, LinkError> {
        let counted = self.budget.contents(member.bytes.len() as u64);
        counted.map_err(|problem| LinkError::new(self.name, problem))?;
        let member_name = String::from_utf8_lossy(member.name);
        let label = [self.name, "(", &member_name, ")"].concat();
        ObjectFile::read(label, member.bytes, self.dialect)
    }

    fn member(&mut self, member: &ArchiveMember<'a>) -> Result<Member<'a>, Problem> {
        self.budget.name(member.name())?;
        let bytes = member.data(self.bytes).map_err(corrupt)?;
        Ok(Member {
            name: member.name(),
            start: member.file_range().0,
            bytes,
        })
    }
}
