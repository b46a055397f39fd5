//! FORMAT.md says what the code does: its tables are compared with the structures' own offsets.
#![cfg(not(loom))]

use std::fmt::Write;
use std::mem::offset_of;

use jitcast_runtime::Patch;
use jitcast_runtime::directory::{record_flags, unpack_op};
use jitcast_runtime::geometry::{Area, GRANULE_BYTES, SLOT_BYTES, STUB_BYTES};
use jitcast_runtime::header::{self, Header};
use jitcast_runtime::mailbox::{self, ThreadWord, Word};
use jitcast_runtime::module;
use jitcast_runtime::records::{
    AskedFunction, AskedImport, AskedRecord, CanaryRecord, ImportRecord, Root, StoredRegion,
    SymbolRecord, TextRecord, UnitRecord,
};
use jitcast_runtime::wire::{
    AskReply, AskRequest, AttachReply, AttachRequest, FrameHeader, FrameKind, ReleaseNotice,
    ResumeRequest,
};

const FORMAT: &str = include_str!("../FORMAT.md");

/// The rows that a structure's table must have.
macro_rules! rows {
    ($ty:ty { $($field:ident),* $(,)? }) => {{
        let offsets = [$((stringify!($field), offset_of!($ty, $field))),*];
        let mut text = String::new();
        for (index, (name, offset)) in offsets.iter().enumerate() {
            let end = offsets.get(index + 1).map_or(size_of::<$ty>(), |(_, next)| *next);
            writeln!(text, "| {offset} | {} | `{name}` |", end - offset).unwrap();
        }
        (stringify!($ty), text)
    }};
}

#[test]
fn every_structure_is_drawn_as_it_is() {
    let structures = [
        rows!(Header {
            magic,
            format_version,
            machine,
            features,
            cpu_features,
            instance,
            hash_seed,
            object,
            areas,
            ring_places,
            socket,
        }),
        rows!(Root {
            generation,
            published_ns,
            reused_text,
            symbols,
            units,
            cells,
            imports,
            unit_count,
            symbol_count,
            import_count,
            texts,
            overlay,
            canaries,
            asked,
            asked_count,
        }),
        rows!(StoredRegion { start, len_bytes }),
        rows!(UnitRecord {
            key,
            generation,
            text,
            read_only,
            private,
            template,
            patches,
            needs,
            init,
            fini,
            shared,
            shared_template,
            name_len,
            flags,
            module,
            reserved,
        }),
        rows!(AskedRecord {
            key,
            generation,
            text,
            read_only,
            private,
            template,
            patches,
            needs,
            imports,
            functions,
            name_len,
            reserved,
        }),
        rows!(AskedImport {
            number,
            trap,
            weak,
            name_len,
        }),
        rows!(AskedFunction {
            place,
            node,
            name_len,
            signature_len,
        }),
        rows!(TextRecord {
            key,
            generation,
            text,
            eh_frame,
            frames,
            names,
            unit,
            name_len,
        }),
        rows!(SymbolRecord {
            key,
            generation,
            size,
            unit,
            kind,
            place,
            stub,
            call_cell,
            address_cell,
            node,
            name_len,
            signature_len,
            flags,
        }),
        rows!(ImportRecord {
            key,
            generation,
            trap,
            call_cell,
            address_cell,
            weak,
            name_len,
            fallback,
        }),
        rows!(CanaryRecord {
            key,
            generation,
            first_unit,
            unit_count,
            seats,
            label_len,
        }),
        rows!(FrameHeader {
            magic,
            kind,
            len_bytes,
            reserved
        }),
        rows!(AttachRequest {
            format_version,
            fenced,
            label
        }),
        rows!(ResumeRequest { attach, instance }),
        rows!(AttachReply {
            worker,
            sealed,
            fenced
        }),
        rows!(AskRequest { id }),
        rows!(AskReply {
            id,
            generation,
            unit,
            outcome
        }),
        rows!(ReleaseNotice {
            forks,
            unit,
            grants
        }),
    ];
    for (name, rows) in structures {
        let shown: String = FORMAT
            .split_once(&format!("### `{name}`"))
            .unwrap_or_else(|| panic!("FORMAT.md has no section `{name}`"))
            .1
            .lines()
            .skip(1)
            .skip_while(|line| !line.starts_with("| 0"))
            .take_while(|line| line.starts_with('|'))
            // The last column explains and is free.
            .map(|line| format!("{}|\n", line.rsplitn(3, '|').last().unwrap()))
            .collect();
        assert_eq!(
            shown, rows,
            "FORMAT.md, `{name}`: these rows are right:\n{rows}"
        );
    }
}

#[test]
fn the_numbers_are_those_of_the_code() {
    let facts = [
        format!("format version {}", header::FORMAT_VERSION),
        format!("root at {}", header::ROOT),
        format!("extents at {}", header::EXTENTS),
        format!("floor at {}", header::FLOOR),
        format!("head at {}", header::HEAD),
        format!("intent at {}", header::INTENT),
        format!(
            "stub frames at {}: {} bytes",
            header::STUB_FRAMES,
            jitcast_runtime::frames::STUB_FRAMES_BYTES
        ),
        format!("records at {}", header::RECORDS),
        format!("{} places", header::RING_PLACES),
        format!("first allocation at {}", header::CONTROL_FIXED_BYTES),
        format!("granule of {GRANULE_BYTES} bytes"),
        format!("slot of {SLOT_BYTES} bytes"),
        format!("stub of {STUB_BYTES} bytes"),
        format!("patch of {} bytes", size_of::<Patch>()),
        format!("**module** of {} bytes", module::BYTES),
        format!("mailbox of {} bytes", mailbox::MAILBOX_BYTES),
        format!(
            "thread records at {}, {} bytes each",
            mailbox::HEADER_BYTES,
            mailbox::THREAD_BYTES
        ),
        format!("`RESYNC` {:#x}", record_flags::RESYNC),
        format!("`SERIALISE` {:#x}", record_flags::SERIALISE),
        format!("`EXTENTS` {:#x}", record_flags::EXTENTS),
        format!("`NAMES` {:#x}", record_flags::NAMES),
        format!("`ASKED` {:#x}", record_flags::ASKED),
        format!("`Applied` {}", Word::Applied as usize),
        format!("`Seat` {}", Word::Seat as usize),
        format!("`Mapped` {}", Word::Mapped as usize),
        format!("`Pin` {}", ThreadWord::Pin as usize),
        format!("`Publish` {}", FrameKind::Publish as u32),
        format!("`Ask` {}", FrameKind::Ask as u32),
        format!("`Decide` {}", FrameKind::Decide as u32),
        format!("`Observe` {}", FrameKind::Observe as u32),
    ];
    for fact in facts {
        assert!(FORMAT.contains(&fact), "FORMAT.md must say: {fact}");
    }
    let areas: Vec<_> = Area::ALL.iter().map(|area| area.name()).collect();
    assert!(
        FORMAT.contains(&areas.join(", ")),
        "FORMAT.md must list the areas: {}",
        areas.join(", ")
    );
    assert_eq!(unpack_op(u64::MAX).0.get() % SLOT_BYTES, 0);
}
