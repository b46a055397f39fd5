//! A unit that is ready to be placed.

use std::sync::Arc;

use crate::archive;
use crate::atoms::Atoms;
use crate::error::LinkError;
use crate::input::{Definition, Extents, Input, Needs, Options, Reference};
use crate::layout::{self, CELLS, CONSTANTS, Content, DYNAMIC_CELLS, Plot};
use crate::names::{self, Named};
use crate::needs;
use crate::object_file::{ObjectFile, ask_for};
use crate::plan::{self, Plan};
use crate::startup::{self, Order};
use crate::thunk;
use crate::unit::Unit;
use crate::unwind::{self, Unwound};

/// A file of a unit, read by itself: all that can be known of it without the others. So files can be read in any order, or
/// at once.
///
/// It borrows the file's bytes.
#[derive(Debug)]
pub struct File<'a>(pub(crate) Kind<'a>);

/// What a file is.
#[derive(Debug)]
pub(crate) enum Kind<'a> {
    /// An object.
    Object(Box<ObjectFile<'a>>),
    /// An archive, of which nothing is read yet: which members are needed depends on the other files.
    Archive(Input<'a>),
}

impl<'a> File<'a> {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What is wrong with it by itself.
    pub fn read(input: &Input<'a>) -> Result<Self, LinkError> {
        if archive::is_archive(input.bytes) {
            return Ok(Self(Kind::Archive(*input)));
        }
        let object = ObjectFile::read(input.name.to_owned(), input.bytes, input.dialect)?;
        Ok(Self(Kind::Object(Box::new(object))))
    }
}

/// A unit, read and resolved: all that can be known before it has a place.
///
/// It borrows the bytes of its inputs.
///
/// ```
/// use jitcast_linker::{Dialect, Input, Options, Prepared};
///
/// # let bytes = b"hostile";
/// let input = Input { name: "score.o", bytes, dialect: Dialect::Elf };
/// match Prepared::read("score", &[input], &Options::default()) {
///     Ok(prepared) => println!("{} bytes of text", prepared.extents().text.len_bytes),
///     Err(error) => eprintln!("{error}"), // where, why, and what to do
/// }
/// ```
#[derive(Debug)]
pub struct Prepared<'a> {
    pub(crate) name: &'a str,
    pub(crate) unit: Unit<'a>,
    pub(crate) plan: Plan<'a>,
    pub(crate) needs: Arc<Needs>,
    /// The node of each definition.
    pub(crate) nodes: Vec<u32>,
    pub(crate) startup: Order,
    pub(crate) unwound: Vec<Unwound>,
    pub(crate) names: Vec<Named<'a>>,
    pub(crate) plot: Plot,
}

impl<'a> Prepared<'a> {
    /// Reads `inputs` as one unit: parses, pulls archive members by need, resolves symbols inside the unit,
    /// decides for each relocation what it will hold, and lays the unit out.
    ///
    /// `unit` is what messages call the whole. Time and memory are linear in the length of the inputs (but for
    /// sorting), whatever they contain.
    ///
    /// # Errors
    ///
    /// Whatever cannot be linked correctly, named with its place.
    pub fn read(unit: &'a str, inputs: &[Input<'a>], options: &Options) -> Result<Self, LinkError> {
        let mut files = Vec::with_capacity(inputs.len());
        for (number, input) in inputs.iter().enumerate() {
            if let Some(next) = inputs.get(number + 2) {
                ask_for(next.bytes);
            }
            files.push(File::read(input)?);
        }
        Self::of(unit, files, options)
    }

    /// As [`Prepared::read`], of files that have been read already.
    ///
    /// # Errors
    ///
    /// As [`Prepared::read`].
    pub fn of(unit: &'a str, files: Vec<File<'a>>, options: &Options) -> Result<Self, LinkError> {
        let name = unit;
        let mut unit = Unit::read(files, options)?;
        let mut plan = plan::plan(&unit)?;
        let labels = core::mem::take(&mut unit.labels).placed(&unit);
        // Where nothing refers to anybody else, nobody asks what needs what.
        let needy = !plan.references.is_empty();
        let asked = needy || !plan.detours.is_empty();
        let atoms = Atoms::of(&unit, if asked { &labels } else { &[] });
        let thunks = thunk::build(&mut unit, &mut plan, &atoms)?;
        make(&mut unit, &plan);
        let unwound = unwind::place(&mut unit, &mut plan)?;
        let names = names::collect(&mut unit, &labels)?;
        let (needs, nodes) = match needy {
            true => needs::graph(&unit, &plan, atoms, &labels, &thunks),
            false => (Needs::default(), vec![needs::NONE; unit.defined.len()]),
        };
        let startup = startup::order(&unit, &plan)?;
        let max_len_bytes = options.max_len_bytes.min(Options::WINDOW_LEN_BYTES);
        let plot = layout::lay_out(&mut unit.chunks, max_len_bytes)
            .map_err(|problem| LinkError::new(name, problem))?;
        Ok(Self {
            name,
            unit,
            plan,
            needs: Arc::new(needs),
            nodes,
            startup,
            unwound,
            names,
            plot,
        })
    }

    /// The global names that the unit defines, in the order in which they first appear.
    pub fn definitions(&self) -> &[Definition<'a>] {
        &self.unit.definitions
    }

    /// The names that have to be bound before the unit is linked.
    pub fn references(&self) -> &[Reference<'a>] {
        &self.plan.references
    }

    /// What the unit needs in each area.
    pub fn extents(&self) -> Extents {
        self.plot.extents
    }
}

/// Gives the unit's own cells and constants their bytes.
fn make(unit: &mut Unit<'_>, plan: &Plan<'_>) {
    let constants: Vec<u8> = plan
        .constants
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    for (number, bytes) in [
        (CONSTANTS, constants),
        (CELLS, vec![0; plan.cells.len() * 8]),
        (DYNAMIC_CELLS, vec![0; plan.dynamic.len_bytes()]),
    ] {
        let chunk = &mut unit.chunks[number as usize];
        chunk.align_bytes = if bytes.is_empty() { 1 } else { 8 };
        chunk.content = Content::Made(bytes);
    }
}
