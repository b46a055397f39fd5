//! A full segment, and the accounting of what is taken: whatever fails gives everything back.

mod common;
#[path = "publish/units.rs"]
mod units;

use common::host::{Host, clif_unit, object_unit};
use common::object::{ADDRESS_OF, Maker, PLUS_ONE};
use jitcast::compiler::{PublishError, Reclaim, UnitSource};
use jitcast::runtime::Area;
use object::elf;
use units::{attach, call, calls, publish, published, refused};

/// `jmp x`, with the field at byte 1.
const JUMP: [u8; 5] = [0xe9, 0, 0, 0, 0];

/// A unit with a function that returns `value`, and so much text and read-only data.
fn sized(name: &str, value: u8, text_bytes: usize, read_only_bytes: usize) -> UnitSource {
    // mov $value, %eax; ret
    let mut code = vec![0xb8, value, 0, 0, 0, 0xc3];
    code.resize(text_bytes.max(code.len()), 0xcc);
    let object = Maker::new().function(name, &code);
    let datum = format!("{name}_datum");
    let object = object.read_only(&datum, &vec![value; read_only_bytes]);
    UnitSource {
        reclaim: Reclaim::Yes,
        ..object_unit(name, object.finish())
    }
}

/// Publishes units made by `unit` until there is no room; returns how many there are, and the refusal.
fn fill(host: &Host, unit: impl Fn(usize) -> UnitSource) -> (usize, PublishError) {
    for number in 0..1_000_000 {
        if let Err(first) = host.compiler.publish(&[unit(number)]) {
            // Again, now that everything that could be freed is.
            let again = refused(host, &[unit(number)]);
            assert_eq!(again.to_string(), first.to_string());
            return (number, again);
        }
    }
    panic!("a window of 8 MiB holds a million units");
}

#[test]
fn a_full_area_is_refused_with_figures_and_what_was_before_runs() {
    const TEXT_BYTES: usize = 100_000;
    let host = Host::sealed();
    let worker = attach(&host);
    host.publish_adds("before", 1);
    let unit = |number| sized(&format!("f{number}"), number as u8, TEXT_BYTES, 0);
    let (count, error) = fill(&host, unit);
    let PublishError::Full(full) = &error else {
        panic!("{error}");
    };
    let text = &host.compiler.status().areas[Area::Text.index()];
    assert_eq!((full.area, full.asked_bytes), ("text", TEXT_BYTES as u64));
    assert_eq!(full.area_bytes, text.area_bytes);
    assert_eq!(full.free_bytes, text.area_bytes - text.used_bytes);
    assert!(full.largest_bytes < TEXT_BYTES as u64 && full.largest_bytes <= full.free_bytes);
    let said = error.to_string();
    let figures = format!("segment full: {TEXT_BYTES} bytes of text are needed, ");
    assert!(
        said.starts_with(&figures) && said.contains("larger --window"),
        "{said}"
    );
    let allocated = worker.geometry().allocated(Area::Text).len_bytes;
    assert_eq!(count, allocated as usize / TEXT_BYTES);
    for worker in [&worker, &attach(&host)] {
        assert_eq!(call(worker, "before", 1), 2);
        for number in 0..count {
            assert_eq!(call(worker, &format!("f{number}"), 0), number as i64);
        }
    }
    // Smaller versions make room, and then it is used.
    for number in 0..count {
        publish(&host, &[sized(&format!("f{number}"), 200, 16, 0)]);
    }
    let (more, error) = fill(&host, |number| unit(count + number));
    assert!(matches!(error, PublishError::Full(_)));
    assert!(more + 1 >= count, "{more} fit where {count} had been");
    assert_eq!(
        [
            call(&worker, "f0", 0),
            call(&worker, &format!("f{count}"), 0)
        ],
        [200, count as i64]
    );
}

#[test]
fn every_area_can_be_the_one_that_is_full() {
    let many = |number: usize| {
        let names = (0..100).map(|index| format!("f{number}_{index}"));
        let object = names.fold(Maker::new(), |object, name| {
            object.function(&name, &PLUS_ONE)
        });
        object_unit(&format!("u{number}"), object.finish())
    };
    let importing = |number: usize| {
        let object = (0..100).fold(Maker::new(), |object, index| {
            let import = format!("jitcast_test_import_{number}_{index}");
            let call = (1, import.as_str(), elf::R_X86_64_PLT32, -4);
            object.referring(&format!("f{number}_{index}"), &JUMP, call)
        });
        object_unit(&format!("u{number}"), object.finish())
    };
    let read_only = |number: usize| sized(&format!("f{number}"), 1, 16, 100_000);
    let cases: [(&str, &dyn Fn(usize) -> UnitSource); 3] = [
        ("read-only data", &read_only),
        ("control", &many),
        ("control", &importing),
    ];
    for (area, unit) in cases {
        let host = Host::sealed();
        let (count, error) = fill(&host, unit);
        assert!(
            matches!(&error, PublishError::Full(full) if full.area == area),
            "{area}: {error} after {count}"
        );
        let worker = attach(&host);
        let guard = worker.enter().unwrap();
        assert_eq!(guard.generation(), host.compiler.status().generation);
        drop(guard);
        if area == "read-only data" {
            assert_eq!(call(&worker, &format!("f{}", count - 1), 0), 1);
        }
    }
}

#[test]
fn a_unit_larger_than_its_area_is_refused_at_once() {
    let host = Host::sealed();
    for (text_bytes, read_only_bytes) in [(3 << 20, 0), (16, 3 << 20), (3 << 20, 3 << 20)] {
        let error = refused(&host, &[sized("large", 1, text_bytes, read_only_bytes)]);
        assert!(matches!(&error, PublishError::Full(full) if full.asked_bytes >= 3 << 20));
    }
    publish(&host, &[sized("small", 1, 16, 16)]);
}

/// A source of numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// What the state `published` is known to hold of text and read-only data, bytes.
fn stated_bytes(host: &Host) -> (u64, u64) {
    let units = host.compiler.status().units;
    let text = units.iter().map(|unit| unit.text_bytes).sum();
    (text, units.iter().map(|unit| unit.read_only_bytes).sum())
}

#[test]
fn random_successes_and_failures_keep_the_accounts() {
    let host = Host::sealed();
    let worker = attach(&host);
    let mut numbers = Numbers(7);
    let (mut done, mut failed) = (0, 0);
    for round in 0..200u64 {
        let name = format!("f{}", numbers.below(12));
        let value = (round % 251) as u8;
        let (text, read_only) = (numbers.below(60_000), numbers.below(40_000));
        let good = sized(&name, value, text as usize, read_only as usize);
        let rival = sized("rival", value, 64, 64);
        let batch = match numbers.below(6) {
            0 => vec![good.clone(), sized("large", 1, 3 << 20, 0)],
            1 => vec![good.clone(), good.clone()],
            2 => vec![
                good.clone(),
                UnitSource {
                    name: "other".into(),
                    ..good.clone()
                },
            ],
            3 => vec![
                good.clone(),
                UnitSource {
                    name: "second".into(),
                    ..rival.clone()
                },
                rival,
            ],
            4 => vec![good.clone(), out_of_range()],
            _ => vec![good.clone()],
        };
        if batch.len() == 1 {
            publish(&host, &batch);
            assert_eq!(call(&worker, &name, 0), i64::from(value));
            done += 1;
        } else {
            refused(&host, &batch);
            failed += 1;
        }
    }
    assert!(done > 20 && failed > 100, "{done} and {failed}");
    // With nothing retired, what is used is what the units state (text besides holds nothing: no imports).
    worker.poll().unwrap();
    assert!(matches!(
        refused(&host, &[sized("large", 1, 3 << 20, 0)]),
        PublishError::Full(_)
    ));
    let status = host.compiler.status();
    assert_eq!(status.retired_bytes, 0);
    let used = |area: Area| status.areas[area.index()].used_bytes;
    assert_eq!(
        (used(Area::Text), used(Area::ReadOnly)),
        stated_bytes(&host)
    );
    let functions = status
        .symbols
        .iter()
        .filter(|symbol| symbol.kind == "function");
    assert_eq!(used(Area::CallCells), 8 * (1 + functions.count() as u64));
    assert_eq!((used(Area::AddressCells), used(Area::Private)), (0, 0));
}

/// A unit that places well and then does not link: its field cannot hold the distance.
fn out_of_range() -> UnitSource {
    let far = (3, "far", elf::R_X86_64_PC32, i64::from(i32::MIN));
    let object = Maker::new().function("far", &ADDRESS_OF);
    object_unit("out", object.referring("out", &ADDRESS_OF, far).finish())
}

/// The same state, whatever way led there, takes the same memory.
#[test]
fn a_hundred_detours_lead_back_to_the_same_use() {
    let host = Host::sealed();
    let state = || {
        [
            sized("f", 1, 5000, 3000),
            clif_unit("g", &calls("g", "f", 1)),
        ]
    };
    let settled = |host: &Host| {
        refused(host, &[sized("large", 1, 3 << 20, 0)]);
        published(host)
    };
    publish(&host, &state());
    let first = settled(&host);
    for round in 0..100usize {
        publish(&host, &[sized("f", 2, 100 * round, 7 * round)]);
        publish(&host, &[sized("h", 3, 333 * round, 0)]);
        publish(&host, &[clif_unit("g", &calls("g", "h", 1))]);
        publish(&host, &[sized("h", 3, 16, 0)]);
        let mut back = state().to_vec();
        // The name goes, its unit stays, empty.
        back.push(object_unit("h", Maker::new().finish()));
        publish(&host, &back);
    }
    let last = settled(&host);
    for (before, after) in first.areas.iter().zip(&last.areas) {
        // The unit `h` is still known, and a leaf of a tree may have become a branch.
        let slack = if before.name == "control" { 1024 } else { 0 };
        assert!(
            after.used_bytes <= before.used_bytes + slack,
            "{before:?} and then {after:?}"
        );
    }
    assert_eq!(call(&attach(&host), "g", 0), 2);
}
