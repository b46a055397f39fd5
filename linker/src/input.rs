//! What goes into the linker and what comes out: the contract with whoever publishes units.

use std::sync::Arc;

use jitcast_runtime::{Patch, PatchTarget, SegmentOffset};

/// One file of a unit: an object or an archive (told apart by their magic).
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The name that messages use, `score.o`.
    pub name: &'a str,
    /// The file's bytes. Hostile.
    pub bytes: &'a [u8],
    /// Which compiler's habits the object follows.
    pub dialect: Dialect,
}

/// Which compiler's habits an object follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Whatever emits ELF: calls and taken addresses are told apart by the instruction's bytes.
    Elf,
    /// Our own Cranelift front end: a GOT load of `f` is the load of a callee (the call cell), a GOT
    /// load of `f@addr` takes the address of `f` (the address cell). Data are named `x@addr` too, since
    /// an undefined symbol does not tell what it is.
    Cranelift,
}

/// What the caller may set.
///
/// ```
/// use jitcast_linker::Options;
///
/// let options = Options { roots: Some(vec!["score".to_owned()]), ..Options::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The longest that the areas of one unit may be together, bytes; at most 2 GiB.
    pub max_len_bytes: u64,
    /// Take every member of every archive, wanted or not (`--whole-archive`).
    pub whole_archive: bool,
    /// Drop the sections that these global names do not reach (`--gc-sections`, with its roots); `None`
    /// keeps all. Constructors, `SHF_GNU_RETAIN` and sections whose bounds are asked for are kept too.
    pub roots: Option<Vec<String>>,
    /// The caller runs the resolvers of indirect functions (`STT_GNU_IFUNC`;
    /// [`PatchKind::Resolver`](jitcast_runtime::PatchKind)); else they are refused.
    pub runs_resolvers: bool,
    /// The caller keeps one copy of what is unique ([`Definition::unique`]) for all units; else it is refused.
    pub keeps_unique: bool,
    /// The caller runs [`Linked::init`] and [`Linked::fini`]; else constructors and destructors are refused.
    pub runs_startup: bool,
    /// Data of the host that the unit gets a copy of, by name, with the length, bytes: for code that reaches it
    /// directly. The copy is made once; what the host stores later is not seen.
    pub copies: Vec<(String, u64)>,
    /// An archive of the caller's own, by name and bytes, whose members are pulled by need after all others.
    pub support: Option<(&'static str, &'static [u8])>,
}

impl Options {
    /// The longest that a unit can be: a whole window.
    pub const WINDOW_LEN_BYTES: u64 = 1 << 31;

    /// How much a unit may copy from the host, bytes.
    pub const COPY_LEN_BYTES: u64 = 1 << 20;
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_len_bytes: Self::WINDOW_LEN_BYTES,
            whole_archive: false,
            roots: None,
            runs_resolvers: false,
            keeps_unique: false,
            runs_startup: false,
            copies: Vec::new(),
            support: None,
        }
    }
}

/// What a definition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    /// Code: has a call cell and a stub, its address is the stub's.
    Function,
    /// A datum.
    Data,
    /// `STT_TLS`: a datum of each thread's own.
    ThreadLocal,
    /// `SHN_ABS`: a number, the same in every process.
    Absolute,
}

/// Where linked bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Shared, R-X.
    Text,
    /// Shared, R--.
    ReadOnly,
    /// The worker's own: filled from the template, then patched.
    Private,
    /// One for all workers, which write it: filled once, by whoever publishes the unit.
    SharedData,
}

/// A global (or weak) symbol that the unit defines and that others may refer to by name. Hidden and
/// local symbols are not among them.
#[derive(Clone, Copy, Debug)]
pub struct Definition<'a> {
    /// The symbol's name.
    pub name: &'a str,
    /// Function, datum or absolute.
    pub kind: SymbolKind,
    /// `STB_WEAK`.
    pub weak: bool,
    /// One in the process, whoever defines it too: `STB_GNU_UNIQUE`, and data of COMDAT groups that can be
    /// written to. The unit itself refers to it only through cells and patches, so that its own copy need not
    /// be the one.
    pub unique: bool,
    /// `st_size`, bytes.
    pub size: u64,
    /// The alignment of its place in the piece that it lies in, bytes.
    pub align_bytes: u64,
    /// A variable, whose contents a later version may take over ([`Carried`]): it can be written to, is neither
    /// thread-local nor unique, and lies in no section whose bounds are asked for.
    pub writable: bool,
    /// It lies in shared data.
    pub shared: bool,
}

/// A variable, or what is unique, that lies elsewhere in its area, where an earlier unit had it: what that has
/// stored in it is kept. The unit's own copy serves workers that have not had it, or, of shared data, whoever starts them
/// afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The index into [`Prepared::definitions`](crate::Prepared::definitions).
    pub definition: usize,
    /// Where it lies.
    pub place: SegmentOffset,
    /// The number of the unit that brought it: workers that have had one of this number or a later one have it.
    pub since: u32,
}

/// A global name that the unit's code refers to through cells, stubs or patches: undefined in it, or its
/// own and reached through a GOT entry or by its canonical address (the stub's).
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// The symbol's name.
    pub name: &'a str,
    /// The version that the objects ask for (`name@VERSION`), if any does. Names bind without it; it says
    /// which of several the host's symbol has to be (`dlvsym`).
    pub version: Option<&'a str>,
    /// Whether every reference to it is weak (`STB_WEAK` and undefined: 0 if nobody defines it).
    pub weak: bool,
    /// The index into [`Prepared::definitions`](crate::Prepared::definitions) if the unit defines it itself.
    pub own: Option<usize>,
    /// Needs a call cell.
    pub call_cell: bool,
    /// Needs an address cell.
    pub address_cell: bool,
    /// Needs a stub (and with it a call cell).
    pub stub: bool,
    /// Needs its address for a patch ([`Binding::target`]).
    pub address: bool,
    /// Taken for a thread-local symbol.
    pub thread_local: bool,
}

/// How many bytes a unit needs in one area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length, bytes.
    pub len_bytes: u64,
    /// Alignment, bytes, a power of two, at most 4096.
    pub align_bytes: u64,
}

impl Default for Extent {
    fn default() -> Self {
        Self {
            len_bytes: 0,
            align_bytes: 1,
        }
    }
}

/// What a unit needs in each area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// Shared text, thunks included.
    pub text: Extent,
    /// Shared read-only data.
    pub read_only: Extent,
    /// Private data.
    pub private: Extent,
    /// Shared data.
    pub shared: Extent,
}

/// Where a unit was placed.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Start of its text.
    pub text: SegmentOffset,
    /// Start of its read-only data.
    pub read_only: SegmentOffset,
    /// Start of its private data.
    pub private: SegmentOffset,
    /// Start of its shared data.
    pub shared: SegmentOffset,
    /// The unit's number, that no other one of the segment has had.
    pub number: u64,
}

impl Placement {
    /// Start of the unit's part of `area`.
    pub fn start(&self, area: Area) -> SegmentOffset {
        match area {
            Area::Text => self.text,
            Area::ReadOnly => self.read_only,
            Area::Private => self.private,
            Area::SharedData => self.shared,
        }
    }
}

/// What the publisher bound a [`Reference`] to, in the order of
/// [`Prepared::references`](crate::Prepared::references). Cells and stub are there if the reference asked
/// for them.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// What a patch stores: the stub of a function, the datum itself, or a host symbol. Of a thread-local
    /// symbol that another unit defines, the module of that unit.
    pub target: PatchTarget,
    /// Of a thread-local symbol that another unit defines, its offset in that unit's block, bytes.
    pub block_offset: Option<u64>,
    /// The call cell's place among the slots.
    pub call_cell: Option<SegmentOffset>,
    /// The address cell's place among the slots.
    pub address_cell: Option<SegmentOffset>,
    /// The stub's place in text.
    pub stub: Option<SegmentOffset>,
}

/// A linked unit.
#[derive(Clone, Debug)]
pub struct Linked {
    /// The shared text.
    pub text: Vec<u8>,
    /// The shared read-only data.
    pub read_only: Vec<u8>,
    /// The initialised start of the private data; the rest, up to the extent's length, is zero.
    pub template: Vec<u8>,
    /// The same of the shared data, which hold no addresses.
    pub shared: Vec<u8>,
    /// What a worker stores into the private data, in the order of their sites.
    pub patches: Vec<Patch>,
    /// Every definition's place, in the order of [`Prepared::definitions`](crate::Prepared::definitions).
    pub symbols: Vec<PlacedSymbol>,
    /// Which code needs which references: the unit's, wherever it lies.
    pub needs: Arc<Needs>,
    /// The constructors, in the order in which they are to run: slots of the private data, each of which
    /// holds the address of a function after it was patched (`void(int, char **, char **)`).
    pub init: Vec<SegmentOffset>,
    /// The destructors, likewise, in the order in which they are to run.
    pub fini: Vec<SegmentOffset>,
    /// Where the unit's [module](jitcast_runtime::module) lies, if it has one.
    pub module: Option<SegmentOffset>,
}

/// A definition, placed.
#[derive(Clone, Copy, Debug)]
pub struct PlacedSymbol {
    /// Index into [`Prepared::definitions`](crate::Prepared::definitions).
    pub definition: usize,
    /// Where it is, or its value if it is absolute.
    pub place: Place,
    /// The [`Linked::needs`] node of its code.
    pub node: u32,
}

/// Where a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the window.
    At(Area, SegmentOffset),
    /// A number.
    Absolute(u64),
    /// In each thread's block.
    ThreadLocal {
        /// The unit's module.
        module: SegmentOffset,
        /// The offset in the block, bytes.
        offset: u64,
    },
}

/// Which code and data of a unit refer to which, and to which references: so that a symbol that a worker
/// lacks disables what needs it, and only that.
///
/// A node is an atom: the range of one function or object, or what no symbol covers in a section. Node 0
/// needs nothing. What a node needs is what its targets need, transitively; nothing of it is exact to the
/// byte, since assemblers refer to local data by section and addend. Of a unit without references there is no graph: all is
/// node 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Where each node's targets start in `targets`; one more entry than there are nodes.
    pub first: Vec<u32>,
    /// A node's number, or [`Needs::REFERENCE`] and the index of a reference.
    pub targets: Vec<u32>,
}

impl Needs {
    /// The bit that makes a target a reference.
    pub const REFERENCE: u32 = 1 << 31;

    /// The targets of `node`; none if there is no such node.
    pub fn of(&self, node: u32) -> &[u32] {
        let at = |index: usize| self.first.get(index).map(|&first| first as usize);
        let range = at(node as usize).zip(at(node as usize + 1));
        range
            .and_then(|(start, end)| self.targets.get(start..end))
            .unwrap_or_default()
    }

    /// The references that `node` needs, transitively, in ascending order.
    pub fn references_of(&self, node: u32) -> Vec<usize> {
        let mut seen = vec![false; self.first.len()];
        let mut references = Vec::new();
        let mut pending = vec![node];
        while let Some(next) = pending.pop() {
            if next & Self::REFERENCE != 0 {
                references.push((next & !Self::REFERENCE) as usize);
            } else if let Some(seen) = seen.get_mut(next as usize)
                && !std::mem::replace(seen, true)
            {
                pending.extend_from_slice(self.of(next));
            }
        }
        references.sort_unstable();
        references.dedup();
        references
    }
}
