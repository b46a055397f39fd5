//! Where everything lies, for a picture of it: what is free, and what is retired and by which generation. What is published, the
//! directory tells.

use jitcast_runtime::geometry::{Area, Region};
use serde::{Deserialize, Serialize};

use crate::compiler::Compiler;
use crate::state::State;

/// A range of the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeStatus {
    /// The area.
    pub area: String,
    /// Where it begins: an offset in the window.
    pub offset: u32,
    /// Its length, bytes.
    pub len_bytes: u32,
    /// The generation that retired it; `None`: it is free.
    pub retired_by: Option<u64>,
}

impl RangeStatus {
    fn new(area: Area, region: Region, retired_by: Option<u64>) -> Self {
        Self {
            area: area.name().to_owned(),
            offset: region.start,
            len_bytes: region.len_bytes,
            retired_by,
        }
    }
}

impl Compiler {
    /// What is free of all areas, and what is retired, at the newest generation.
    pub fn layout(&self) -> Vec<RangeStatus> {
        layout(&self.state.lock())
    }
}

pub(crate) fn layout(state: &State) -> Vec<RangeStatus> {
    let heap = &state.heap;
    let areas = Area::ALL.into_iter();
    let free = areas.flat_map(|area| {
        let ranges = heap.free_ranges(area);
        ranges.map(move |region| RangeStatus::new(area, region, None))
    });
    let retired = heap.retired_by();
    let retired =
        retired.map(|(generation, area, region)| RangeStatus::new(area, region, Some(generation)));
    free.chain(retired).collect()
}
