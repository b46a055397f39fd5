//! The objects that `benches/compare` gives to every linker are what their names say, and the bare linker links them.

#[path = "../benches/compare/bare.rs"]
mod bare;
#[path = "../benches/compare/shapes.rs"]
#[allow(dead_code, reason = "the bench uses the rest of it")]
mod shapes;

use jitcast::linker::{Dialect, Input, Options, Prepared};
use shapes::Shape;

/// How many relocations these files have in one unit, and how many functions they define.
fn counts(files: &[(String, Vec<u8>)]) -> (usize, usize) {
    let inputs: Vec<Input<'_>> = files
        .iter()
        .map(|(name, bytes)| Input {
            name,
            bytes,
            dialect: Dialect::Elf,
        })
        .collect();
    let prepared = Prepared::read("shape", &inputs, &Options::default()).unwrap();
    let functions = prepared
        .definitions()
        .iter()
        .filter(|definition| definition.name.starts_with("function_"));
    (prepared.counts().relocations, functions.count())
}

#[test]
fn a_shape_has_the_relocations_that_it_says() {
    for (objects, functions_each, relocations_each, sections, relocations) in [
        (1, 1, 1, false, 4),
        (1000, 1, 7, false, 7003),
        (1, 5000, 8, false, 40_003),
        (1, 5000, 8, true, 40_003),
    ] {
        let shape = Shape {
            objects,
            functions_each,
            relocations_each,
            sections,
        };
        assert_eq!(shape.relocations(), relocations, "{shape:?}");
        let wanted = (relocations, objects * functions_each);
        assert_eq!(counts(&shape.files()), wanted, "{shape:?}");
    }
}

/// Members are taken by the archive's index: what nothing reaches is not, which is little.
#[test]
fn an_archive_has_what_the_objects_have() {
    let shape = Shape {
        objects: 125,
        functions_each: 1,
        relocations_each: 8,
        sections: false,
    };
    let (relocations, functions) = counts(&shape.archived());
    assert!(functions > 120, "{functions} of 125 members were taken");
    assert_eq!(relocations, functions * 8 + 3);
}

/// Two functions, each of which begins with a call of the other.
#[test]
fn the_bare_linker_links() {
    let shape = Shape {
        objects: 2,
        functions_each: 1,
        relocations_each: 4,
        sections: false,
    };
    let files = shape.files();
    let inputs: Vec<(&str, &[u8])> = (files.iter())
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    let image = bare::link(&inputs);
    let called = |call: usize| {
        assert_eq!(image[call], 0xe8);
        let displacement = image[call + 1..call + 5].try_into().unwrap();
        let called = call as i64 + 5 + i64::from(i32::from_le_bytes(displacement));
        usize::try_from(called).unwrap()
    };
    // What lies before the code is a datum.
    let first = image.iter().position(|&byte| byte == 0xe8).unwrap();
    let second = called(first);
    assert!(second > first, "{first} {second}");
    assert_eq!(called(second), first);
}
