//! Looking at a segment from outside: what is found belongs to one generation, whatever is published meanwhile.

mod common;

use std::cell::Cell;
use std::os::unix::net::UnixStream;

use common::host::{Host, clif_unit};
use common::scratch::adds;
use jitcast::compiler::request;
use jitcast::runtime::geometry::{Area, Region};
use jitcast::runtime::observer::{Look, ObserveError, Observer};
use jitcast::runtime::records::{SymbolRecord, UnitRecord, hash_name};
use jitcast::runtime::{Corrupt, SegmentOffset, index};

fn observer(host: &Host) -> Observer {
    let stream = UnixStream::connect(&host.socket).unwrap();
    Observer::new(request::observe(&stream).unwrap()).unwrap()
}

/// The generation of the unit that defines `name`, and its code.
fn version(look: &Look<'_>, name: &str) -> Result<(u64, Vec<u8>), ObserveError> {
    let (view, root) = (look.view(), look.root);
    let key = hash_name(name.as_bytes(), look.observer().header().hash_seed);
    // Of a directory that is gone anything may be found.
    let corrupt = Corrupt {
        what: "directory",
        at: SegmentOffset::NONE,
    };
    let symbol = index::get(view, root.symbols, key)?.ok_or(corrupt)?;
    let symbol: SymbolRecord = view.read(symbol)?;
    let unit = index::get(view, root.units, symbol.unit.into())?.ok_or(corrupt)?;
    let unit: UnitRecord = view.read(unit)?;
    let code = unit.text.region().ok_or(corrupt)?;
    Ok((unit.generation, look.bytes(Area::Text, code)?))
}

#[test]
fn what_is_found_is_of_one_generation() {
    let host = Host::sealed();
    let publish = |bonus: i64| {
        let units = ["f", "g"].map(|name| clif_unit(name, &adds(name, bonus)));
        host.compiler.publish(&units).unwrap().generation
    };
    publish(1000);
    let observer = observer(&host);
    let looks = Cell::new(0);
    let looked = observer.look(|look| {
        looks.set(looks.get() + 1);
        let f = version(look, "f")?;
        if looks.get() == 1 {
            // What the first look has read is retired by one, and may be reused by the next.
            for bonus in 1001..1004 {
                publish(bonus);
            }
        }
        Ok::<_, ObserveError>((look.root.generation, f, version(look, "g")?))
    });
    let (generation, (f, f_code), (g, g_code)) = looked.unwrap();
    assert_eq!(looks.get(), 2);
    let newest = host.compiler.status().generation;
    assert_eq!((generation, f, g), (newest, newest, newest));
    // Both add the same.
    assert_eq!(f_code, g_code);
    let restless = observer.look(|_| Ok::<_, ObserveError>(publish(1000)));
    assert!(
        matches!(restless, Err(ObserveError::Restless)),
        "{restless:?}"
    );
}

/// Each descriptor on its way counts against the compiler process, so a peer that reads none gets one.
#[test]
fn each_connection_is_given_the_segment_once() {
    let host = Host::sealed();
    let stream = UnixStream::connect(&host.socket).unwrap();
    request::observe(&stream).unwrap();
    let refused = request::observe(&stream).unwrap_err().to_string();
    assert!(refused.contains("has the segment already"), "{refused}");
    assert!(request::status(&stream).is_ok(), "the connection goes on");
}

#[test]
fn who_looks_is_no_worker_and_reads_what_is_there_only() {
    let host = Host::sealed();
    host.publish_adds("f", 1);
    let observer = observer(&host);
    assert_eq!(host.compiler.status().workers, []);
    let geometry = *observer.geometry();
    let refused = |area: Area, start: u32, len_bytes: u32| {
        let region = Region { start, len_bytes };
        let looked = observer.look(|look| Ok::<_, ObserveError>(look.bytes(area, region)?));
        assert!(
            matches!(looked, Err(ObserveError::Corrupt(_))),
            "{region} {looked:?}"
        );
    };
    let text = geometry.region(Area::Text);
    refused(Area::Text, text.end() - 8, 8);
    refused(Area::Text, text.start - 8, 16);
    refused(Area::ReadOnly, text.start, 8);
    refused(Area::Private, geometry.region(Area::Private).start, 8);
    refused(Area::SharedData, geometry.region(Area::SharedData).start, 8);
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(matches!(Observer::new(&file), Err(ObserveError::Header(_))));
}
