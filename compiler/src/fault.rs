//! Seeded faults: what tests turn on to see that they notice it. Compiled in by a feature that nothing but
//! tests enables, chosen by the environment variable `JITCAST_FAULT`.

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Retired memory is reused at once, whoever may be inside.
    ReuseEarly,
}

/// Whether `fault` was asked for.
#[cfg(feature = "seeded-faults")]
pub(crate) fn seeded(fault: Fault) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| match std::env::var("JITCAST_FAULT").as_deref() {
        Ok("reuse-early") => Some(Fault::ReuseEarly),
        // Others are workers'.
        _ => None,
    });
    *chosen == Some(fault)
}

/// Whether `fault` was asked for: never, in a build without them.
#[cfg(not(feature = "seeded-faults"))]
pub(crate) fn seeded(_fault: Fault) -> bool {
    false
}
