//! Where the pieces of some objects lie: what a judge is told, besides the objects and the image.

use std::collections::HashMap;

/// Addresses, and the rules that the linker follows.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The address of each section: object, section. What is missing is not in the image.
    pub sections: HashMap<(usize, usize), u64>,
    /// The address of each common symbol.
    pub commons: HashMap<String, u64>,
    /// What names mean that no object defines: the address that everybody has of them; 0 where it is weak
    /// and nobody defines it.
    pub outside: HashMap<String, u64>,
    /// The address of `_GLOBAL_OFFSET_TABLE_`, if there is one.
    pub table: Option<u64>,
    /// What the thread-local offsets are counted from.
    pub block: Option<u64>,
    /// Where calls and addresses lead.
    pub rules: Rules,
}

/// Where calls and addresses lead.
#[derive(Clone, Debug)]
pub enum Rules {
    /// An executable or a library of a common linker: entries of the global offset table hold the symbol's
    /// address; calls lead to the symbol or to an entry of the procedure linkage table.
    Executable {
        /// What the dynamic linker stores, and where.
        dynamic: HashMap<u64, Stored>,
    },
    /// A window of jitcast.
    Window(Window),
}

/// What a window of jitcast has for names and for the unit.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// The cells and the stub of each name.
    pub published: HashMap<String, Published>,
    /// Where the indirect functions of the unit lead: to code that jumps through a cell.
    pub indirect: HashMap<String, u64>,
    /// What a worker finds out otherwise than by an address, and stores.
    pub dynamic: HashMap<u64, Stored>,
    /// The unit's module, by which `__tls_get_addr` finds its block.
    pub module: Option<u64>,
    /// The thread-local symbols of other units: module and offset.
    pub thread_local: HashMap<String, (u64, u64)>,
}

/// What the dynamic linker stores at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// The address of this name.
    Name(String),
    /// What the function at this address returns (`R_X86_64_IRELATIVE`).
    Resolved(u64),
    /// The module of this thread-local name (`R_X86_64_DTPMOD64`).
    Module(String),
    /// Its offset in that module's block (`R_X86_64_DTPOFF64`).
    Offset(String),
    /// Its distance from the thread pointer (`R_X86_64_TPOFF64`).
    FromThread(String),
}

/// Where the cells and the stub of a name are, in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The cell that calls go through.
    pub call_cell: u64,
    /// The cell that holds the address that everybody has.
    pub address_cell: u64,
    /// The stub, which is that address if the name is a function's.
    pub stub: u64,
}
