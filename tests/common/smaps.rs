//! What a process sees of its own mappings.

use jitcast::runtime::Area;
use jitcast::worker::Worker;

/// A mapping, as `/proc/self/smaps` tells it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// `r-xp` and the like.
    pub(crate) permissions: String,
    pub(crate) anonymous_kib: u64,
    pub(crate) flags: Vec<String>,
}

/// All mappings of this process.
pub(crate) fn all() -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            mappings.push(Mapping {
                start: address(start),
                end: address(end),
                permissions: words.next().unwrap().to_owned(),
                ..Mapping::default()
            });
            continue;
        }
        let last = mappings.last_mut().expect("details follow a mapping");
        match first {
            "Anonymous:" => last.anonymous_kib = words.next().unwrap().parse().unwrap(),
            "VmFlags:" => last.flags = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    mappings
}

/// The mappings of a worker's window.
pub(crate) fn of_window(worker: &Worker) -> Vec<Mapping> {
    let start = worker.window().base().get();
    let end = start + u64::from(worker.geometry().window().len_bytes);
    let mut mappings = all();
    mappings.retain(|mapping| (start..end).contains(&mapping.start));
    mappings
}

/// The mapping of `area`'s accessible part, which begins where the area does.
pub(crate) fn of_area(worker: &Worker, area: Area) -> Mapping {
    let offset = worker.geometry().region(area).offset();
    let start = worker.window().addr_of(offset).get();
    of_window(worker)
        .into_iter()
        .find(|mapping| (mapping.start..mapping.end).contains(&start))
        .unwrap_or_else(|| panic!("no mapping of {}", area.name()))
}

/// What is wrong with this worker's mappings; nothing, if all is well.
///
/// Of a view of the segment the kernel says `ms`, but not `sh`: mmap(2) of a descriptor that is open for reading only
/// takes `VM_MAYWRITE` and with it `VM_SHARED` away, and leaves `VM_MAYSHARE`. Tried out: the same memfd,
/// mapped `MAP_SHARED` and `PROT_READ`, has `rd mr me ms` through an `O_RDONLY` descriptor and
/// `rd sh mr mw me ms` through one of `O_RDWR`; a `MAP_PRIVATE` mapping has neither `sh` nor `ms`.
pub(crate) fn faults(worker: &Worker) -> Vec<String> {
    let mut faults = Vec::new();
    for area in Area::ALL.into_iter().filter(|area| area.is_in_segment()) {
        let mapping = of_area(worker, area);
        let wanted = match area {
            Area::Stubs | Area::Text => "r-xs",
            _ => "r--s",
        };
        let has = |flag: &str| mapping.flags.iter().any(|known| known == flag);
        let is_well = mapping.permissions == wanted
            && mapping.anonymous_kib == 0
            && has("ms")
            && !has("wr")
            && !has("mw");
        if !is_well {
            faults.push(format!("{} should be {wanted}: {mapping:?}", area.name()));
        }
    }
    faults.extend(fault_of_shared_data(worker));
    faults.extend(writable_and_executable());
    faults
}

/// What is wrong with the mapping of shared data: they are written, by all, and never executed.
fn fault_of_shared_data(worker: &Worker) -> Option<String> {
    let mapping = of_area(worker, Area::SharedData);
    let start = worker.geometry().region(Area::SharedData).start;
    let wanted = if worker.window().end(Area::SharedData) > start {
        "rw-s"
    } else {
        "---s"
    };
    let has = |flag: &str| mapping.flags.iter().any(|known| known == flag);
    let is_well = mapping.permissions == wanted
        && mapping.anonymous_kib == 0
        && has("sh")
        && has("ms")
        && !has("ex");
    (!is_well).then(|| format!("shared data should be {wanted}: {mapping:?}"))
}

/// The mappings of this process that can be written and executed.
pub(crate) fn writable_and_executable() -> Vec<String> {
    let all = region::query_range(std::ptr::null::<u8>(), usize::MAX).unwrap();
    let mut faults = Vec::new();
    for region in all {
        let region = region.unwrap();
        if region.is_writable() && region.is_executable() {
            faults.push(format!("writable and executable: {:x?}", region.as_range()));
        }
    }
    faults
}
