//! A unit linked as if it were the only one of a segment, without any segment: to see what would be published.

use jitcast_linker::{Binding, Extent, Input, Linked, Place, Placement, Prepared};
use jitcast_runtime::geometry::{Area, SLOT_BYTES};
use jitcast_runtime::{Geometry, ImportId, PatchTarget, SegmentOffset};

use crate::error::PublishError;
use crate::publish::UnitSource;

/// The unit.
///
/// ```
/// use jitcast_compiler::front::{Options, compile_bytes};
/// use jitcast_compiler::{Preview, UnitSource};
/// use jitcast_runtime::Geometry;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let text = "function %same(i64) -> i64 {\nblock0(v0: i64):\n    return v0\n}";
/// let file = compile_bytes("same.clif", text.into(), &Options::default())?;
/// let unit = UnitSource::new("same", [file]);
/// let inputs = unit.inputs();
/// let preview = Preview::new(&unit, &inputs, &Geometry::new(64 << 20)?)?;
/// assert_eq!(preview.prepared.definitions()[0].name, "same");
/// println!("{} bytes of text", preview.linked.text.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Preview<'a> {
    /// What was read and resolved.
    pub prepared: Prepared<'a>,
    /// Where it was put.
    pub placement: Placement,
    /// What came out.
    pub linked: Linked,
}

impl<'a> Preview<'a> {
    /// Links `source`, whose [`UnitSource::inputs`] are `inputs`, in a window of this geometry. What the unit does
    /// not define is taken for the host's.
    ///
    /// # Errors
    /// [`PublishError::Link`]; [`PublishError::Cells`] if the window has too few.
    pub fn new(
        source: &'a UnitSource,
        inputs: &'a [Input<'a>],
        geometry: &Geometry,
    ) -> Result<Self, PublishError> {
        let prepared = Prepared::read(&source.name, inputs, &source.options())?;
        let extents = prepared.extents();
        let start = |area: Area, extent: Extent| {
            // Offset 0 would mean none.
            let start = geometry.region(area).start.max(SLOT_BYTES);
            SegmentOffset::new(start.next_multiple_of(extent.align_bytes as u32))
        };
        let placement = Placement {
            text: start(Area::Text, extents.text),
            read_only: start(Area::ReadOnly, extents.read_only),
            private: start(Area::Private, extents.private),
            shared: start(Area::SharedData, extents.shared),
            number: 0,
        };
        let bindings = bindings(&prepared, &placement, geometry)?;
        let linked = prepared.link(&placement, &bindings)?;
        Ok(Self {
            prepared,
            placement,
            linked,
        })
    }
}

/// A cell of each kind and a stub for each reference, whether it wants them or not.
fn bindings(
    prepared: &Prepared<'_>,
    placement: &Placement,
    geometry: &Geometry,
) -> Result<Vec<Binding>, PublishError> {
    let places = prepared.symbols(placement)?;
    // The first cell is the traps'.
    let cell = |area: Area, index: usize| {
        let region = geometry.region(area);
        let offset = (index as u64 + 1) * u64::from(SLOT_BYTES);
        let cell = region.offset().checked_add(offset)?;
        region.contains(cell, SLOT_BYTES.into()).then_some(cell)
    };
    let binding = |(index, reference): (usize, &jitcast_linker::Reference<'_>)| {
        let call_cell = cell(Area::CallCells, index)?;
        let stub = geometry.stub_of(call_cell)?;
        let own = reference
            .own
            .and_then(|own| places.get(own))
            .map(|symbol| symbol.place);
        let target = match own {
            Some(Place::At(jitcast_linker::Area::Text, _)) => PatchTarget::Window(stub),
            Some(Place::At(_, place)) => PatchTarget::Window(place),
            _ => PatchTarget::Host(ImportId::new(index as u32)),
        };
        Some(Binding {
            target,
            block_offset: None,
            call_cell: Some(call_cell),
            address_cell: Some(cell(Area::AddressCells, index)?),
            stub: Some(stub),
        })
    };
    let count = prepared.references().len();
    let bindings: Option<Vec<_>> = prepared
        .references()
        .iter()
        .enumerate()
        .map(binding)
        .collect();
    bindings.ok_or(PublishError::Cells { count })
}
