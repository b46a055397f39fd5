//! Each seeded mistake of the linker is noticed, and the linker without one passes.

use jitcast_fuzz::{keep, session};
use jitcast_linker::mutant::{Mutant, choose};

/// So many cases have to be enough, for each mistake.
const CASES: u64 = 600;

/// The number of the first case that fails, and how.
fn first_failure(mutant: Option<Mutant>, cases: u64) -> Option<(u64, String)> {
    choose(mutant);
    let found = (0..cases).find_map(|index| {
        // The first failure as it is: shrinking is another test's.
        let failed = session::run(20, index, || true).err()?;
        Some((index, failed.failure.to_string()))
    });
    choose(None);
    found
}

#[test]
fn the_linker_as_it_is_passes() {
    assert_eq!(first_failure(None, CASES), None);
}

#[test]
fn every_mistake_is_noticed() {
    for mutant in Mutant::ALL {
        let (index, failure) = first_failure(Some(mutant), CASES)
            .unwrap_or_else(|| panic!("{mutant:?} is not noticed in {CASES} cases"));
        let first = failure.lines().take(2).collect::<Vec<_>>().join(" ");
        println!("{mutant:?}: case {index}: {first}");
    }
}

#[test]
fn a_failure_is_kept_with_what_shows_it_again() {
    let folder = tempfile::tempdir().unwrap();
    choose(Some(Mutant::SizeOff));
    let failed = (0..CASES).find_map(|index| session::run(20, index, || false).err());
    let kept = keep::keep(folder.path(), &failed.unwrap()).unwrap();
    choose(None);
    let text = std::fs::read_to_string(kept.join("failure.txt")).unwrap();
    assert!(text.starts_with("jitcast fuzz --seed 20 --case "), "{text}");
    for part in ["R_X86_64_SIZE64", "expected [", "found [", " against "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let object = std::fs::read(kept.join("u0o0.o")).unwrap();
    assert!(object.starts_with(b"\x7fELF"));
}

#[test]
fn a_failure_shrinks_to_one_site() {
    choose(Some(Mutant::AddendDropped));
    let failed = (0..CASES).find_map(|index| session::run(20, index, || false).err());
    let failed = failed.unwrap();
    let text = failed.trial.describe();
    choose(None);
    assert_eq!(text.matches(" against ").count(), 1, "{text}");
    assert!(text.lines().count() <= 8, "{text}");
}
