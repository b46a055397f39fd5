//! A case: units of objects, and where a window has them. Plain data, which strategies make and shrink, and which
//! [`crate::build`] turns into bytes.

use crate::form::Form;

/// Units that refer to one another, and a place for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The units.
    pub units: Vec<UnitPlan>,
    /// Where they go.
    pub window: Places,
    /// The addresses at which the window is looked at.
    pub bases: Vec<u64>,
}

/// What is linked as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitPlan {
    /// The objects.
    pub objects: Vec<ObjectPlan>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlan {
    /// Its sections.
    pub sections: Vec<SectionPlan>,
    /// The common symbols that it has: bit k is name k of those that all objects share.
    pub commons: u8,
    /// The value of its absolute symbols.
    pub number: u64,
}

/// What a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Code.
    Text,
    /// `.rodata`.
    ReadOnly,
    /// `.data.rel.ro`.
    Relocated,
    /// `.data`.
    Data,
    /// `.jitcast.shared`, which holds no addresses.
    SharedData,
    /// `.bss`.
    Zero,
    /// `.ldata`, of the larger code models.
    LargeData,
    /// `.tdata`: what each thread's own starts as.
    ThreadData,
    /// `.tbss`.
    ThreadZero,
}

/// How a section is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `.text`.
    Plain,
    /// `.text.f3`, as `-ffunction-sections` has it.
    Own,
    /// In a COMDAT group, one of two.
    Group(u8),
}

/// One section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionPlan {
    /// What it is.
    pub placement: Placement,
    /// How it is named.
    pub style: Style,
    /// Its alignment is two to this power, at most 6.
    pub align: u8,
    /// What it holds, in order.
    pub items: Vec<Item>,
}

/// A part of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Instructions without relocations, or bytes of data.
    Fill(u8),
    /// A symbol, here.
    Symbol(SymbolPlan),
    /// A relocated field.
    Site(SitePlan),
}

/// A definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SymbolPlan {
    /// Who sees it.
    pub sight: Sight,
    /// Whether it has a type, as compilers give it, and a size.
    pub typed: bool,
    /// Its size, if it is a datum.
    pub size: u8,
}

/// Binding and visibility.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Local.
    Local,
    /// Global.
    Global,
    /// Global and protected.
    Protected,
    /// Global and hidden.
    Hidden,
    /// Global and internal.
    Internal,
    /// Weak.
    Weak,
    /// Weak, under a name that all objects share: one of three.
    Shared(u8),
    /// The same, and the first of a unit is not weak.
    SharedStrong(u8),
    /// A datum that there is one of in the process (`STB_GNU_UNIQUE`), under one of two names; in text: global.
    Unique(u8),
    /// A function that is found by asking (`STT_GNU_IFUNC`); in data: global.
    Indirect,
}

/// A relocated field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SitePlan {
    /// How it refers to its target.
    pub form: Form,
    /// Which of the possible targets, modulo their number.
    pub target: u16,
}

/// Where the parts of a window are, from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Call cells and address cells.
    pub slots: u32,
    /// Stubs.
    pub stubs: u32,
    /// Text.
    pub text: u32,
    /// Read-only data.
    pub read_only: u32,
    /// Private data.
    pub private: u32,
    /// Shared data.
    pub shared: u32,
}
