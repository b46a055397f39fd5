//! Where functions and objects are, told by the symbols of the inputs: the one list of which atoms and names are made.

use object::LittleEndian as LE;
use object::elf;
use object::read::elf::Sym as _;

use crate::error::LinkError;
use crate::layout::Spot;
use crate::object_file::ask_ahead;
use crate::order;
use crate::unit::Unit;

/// A symbol of a function or an object that is placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) start: Spot,
    /// `st_size`, bytes, or as much of it as 32 bits hold.
    pub(crate) len_bytes: u32,
    pub(crate) object: u32,
    /// Its index in the object.
    pub(crate) symbol: u32,
    /// `STT_FUNC`, `STT_GNU_IFUNC` or `STT_OBJECT`.
    pub(crate) kind: u8,
    /// `STB_LOCAL`.
    pub(crate) local: bool,
}

/// All of them in the order of their places, those of one place in the order of the files.
pub(crate) fn collect(unit: &Unit<'_>) -> Result<Vec<Label>, LinkError> {
    let symbols = unit.objects.iter().map(|object| object.symbols.len());
    let mut labels = Vec::with_capacity(symbols.sum());
    for (number, object) in unit.objects.iter().enumerate() {
        ask_ahead(&unit.objects, number);
        for (index, symbol) in (0..).zip(object.symbols.symbols()) {
            let kind = symbol.st_type();
            if !matches!(kind, elf::STT_FUNC | elf::STT_GNU_IFUNC | elf::STT_OBJECT) {
                continue;
            }
            if let Some(section) = object.symbol_section(index, symbol)?
                && let Some(chunk) = unit.chunk_of(number, section)
                && let Ok(offset) = u32::try_from(symbol.st_value(LE))
            {
                labels.push(Label {
                    start: Spot { chunk, offset },
                    len_bytes: u32::try_from(symbol.st_size(LE)).unwrap_or(u32::MAX),
                    // Objects are numbered with 32 bits.
                    object: number as u32,
                    symbol: index,
                    kind,
                    local: symbol.st_bind() == elf::STB_LOCAL,
                });
            }
        }
    }
    order::sort(&mut labels, |label| label.start.key());
    Ok(labels)
}
