//! The functions of the coverage-guided targets on what strategies make, so that they are tested without libFuzzer too:
//! nothing panics.

use jitcast_fuzz::hostile;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_objects(bytes in proptest::collection::vec(any::<u8>(), 2..80)) {
        hostile::mutated(&bytes);
    }

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        hostile::object(&bytes);
        hostile::object(&[b"\x7fELF\x02\x01\x01", &bytes[..]].concat());
        hostile::archive(&[b"!<arch>\n", &bytes[..]].concat());
    }
}

/// What libFuzzer found worth keeping.
#[test]
fn the_corpus_that_is_kept() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/coverage/corpus");
    type Target = (&'static str, fn(&[u8]));
    let targets: [Target; 3] = [
        ("object", hostile::object),
        ("archive", hostile::archive),
        ("mutated", hostile::mutated),
    ];
    for (folder, target) in targets {
        let files = std::fs::read_dir(format!("{corpus}/{folder}")).unwrap();
        let mut count = 0;
        for file in files {
            target(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 10, "{folder}: {count} files");
    }
}
