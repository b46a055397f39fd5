//! From the bytes of objects to a linked unit, without publishing it.
#![allow(
    missing_docs,
    reason = "criterion's macros write undocumented functions"
)]

mod common;
#[path = "../tests/lua/archive.rs"]
mod lua_archive;

use std::hint::black_box;
use std::process::Command;

use common::linking::link;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// An object that needs every member of Lua that scripts need.
fn lua_root(folder: &std::path::Path) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let object = scratch.path().join("driver.o");
    let status = Command::new("cc")
        .args(["-O2", "-fPIC", "-fno-plt", "-c", "-I"])
        .arg(folder.join("include"))
        .arg("-o")
        .arg(&object)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lua/driver.c"))
        .status();
    assert!(status.unwrap().success());
    std::fs::read(object).unwrap()
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("link");

    let tiny = common::generated_object(1);
    group.bench_function("tiny_object", |bencher| {
        bencher.iter(|| link(black_box(&[("tiny.o", &tiny)])));
    });

    if Command::new("cc").arg("--version").output().is_ok() {
        let folder = lua_archive::lua(&[], lua_archive::compile);
        let driver = lua_root(&folder);
        let archive = std::fs::read(lua_archive::archive(&folder)).unwrap();
        group.bench_function("lua_archive", |bencher| {
            let files = [("driver.o", &driver[..]), ("liblua5.4.a", &archive[..])];
            bencher.iter(|| link(black_box(&files)));
        });
    } else {
        eprintln!("SKIPPED: link/lua_archive: no C compiler");
    }

    let functions = 5000;
    let many = common::generated_object(functions);
    let relocations = functions * common::RELOCATIONS_PER_FUNCTION;
    group.throughput(Throughput::Elements(relocations as u64));
    group.bench_function("5000_functions_40000_relocations", |bencher| {
        bencher.iter(|| link(black_box(&[("many.o", &many)])));
    });
    // Ten times as much, to see that it takes ten times as long.
    let ten = common::generated_object(10 * functions);
    group.throughput(Throughput::Elements(10 * relocations as u64));
    group.bench_function("50000_functions_400000_relocations", |bencher| {
        bencher.iter(|| link(black_box(&[("ten.o", &ten)])));
    });
    let ten = common::generated_sections(10 * functions);
    group.bench_function("50000_sections_400000_relocations", |bencher| {
        bencher.iter(|| link(black_box(&[("ten.o", &ten)])));
    });
    group.throughput(Throughput::Elements(relocations as u64));
    let sections = common::generated_sections(functions);
    group.bench_function("5000_sections_40000_relocations", |bencher| {
        bencher.iter(|| link(black_box(&[("sections.o", &sections)])));
    });
    let count = 1000;
    let objects = common::generated_objects(count);
    let names: Vec<String> = (0..count).map(|number| format!("{number}.o")).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&objects)
        .map(|(name, bytes)| (name.as_str(), &bytes[..]))
        .collect();
    group.throughput(Throughput::Elements(
        (count * common::RELOCATIONS_PER_FUNCTION) as u64,
    ));
    group.bench_function("1000_objects_8000_relocations", |bencher| {
        bencher.iter(|| link(black_box(&files)));
    });
    group.finish();
}

criterion_group!(link_benches, benches);
criterion_main!(link_benches);
