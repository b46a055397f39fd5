//! What a unit's compilers know of the functions that it calls.

use super::UnitSource;

#[test]
fn a_function_that_is_called_by_several_signatures_is_called_by_none() {
    let mut unit = UnitSource::new("unit", []);
    unit.imports = [
        ("once", "(i64) -> i64"),
        ("often", "(i64) -> i64"),
        ("alike", "(i64) -> ptr"),
        ("otherwise", "(i64) -> i64"),
        ("often", "(i64) -> i64"),
        ("alike", "(ptr) -> i64"),
        ("otherwise", "(f64) -> i64"),
        // As the first, which does not bring it back.
        ("otherwise", "(i64) -> i64"),
    ]
    .map(|(name, signature)| (name.to_owned(), signature.parse().unwrap()))
    .to_vec();
    let calls = unit.calls();
    let by = |name: &str| calls[name].map(ToString::to_string);
    assert_eq!(by("once").as_deref(), Some("(i64) -> i64"));
    assert_eq!(by("often").as_deref(), Some("(i64) -> i64"));
    // The first of them.
    assert_eq!(by("alike").as_deref(), Some("(i64) -> ptr"));
    assert_eq!(by("otherwise"), None);
    assert!(!calls.contains_key("never"));
}
