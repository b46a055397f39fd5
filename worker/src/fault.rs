//! Seeded faults: what tests turn on to see that they notice it. Compiled in by a feature that nothing but
//! tests enables, chosen by the environment variable `JITCAST_FAULT`. Names that are not listed here are the compiler
//! process's.

/// A fault of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Replaced cells do not tell threads apart: they are stored one after another, whoever is inside.
    SlotBySlot,
    /// Guards are only counted: who jumps out of published code past them stays inside.
    PinCounted,
    /// Asked-for units are bound by everybody.
    BoundEverywhere,
    /// Every worker runs every canary.
    AudienceIgnored,
    /// Another object is mapped whoever is inside.
    RenewUnderPins,
    /// Publications whose records were overwritten are passed over.
    LapUnnoticed,
    /// A child begins without a pin of its own.
    ChildUnpinned,
    /// A segment is taken whoever may write it.
    SealsUnchecked,
    /// Each worker maps shared data of its own.
    SharedDataApart,
    /// Threads look for what is new at another word than the head of the ring.
    HeadMistaken,
}

/// Whether `fault` was asked for.
#[cfg(feature = "seeded-faults")]
pub(crate) fn seeded(fault: Fault) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| match std::env::var("JITCAST_FAULT").as_deref() {
        Ok("slot-by-slot") => Some(Fault::SlotBySlot),
        Ok("pin-counted") => Some(Fault::PinCounted),
        Ok("bound-everywhere") => Some(Fault::BoundEverywhere),
        Ok("audience-ignored") => Some(Fault::AudienceIgnored),
        Ok("renew-under-pins") => Some(Fault::RenewUnderPins),
        Ok("lap-unnoticed") => Some(Fault::LapUnnoticed),
        Ok("child-unpinned") => Some(Fault::ChildUnpinned),
        Ok("seals-unchecked") => Some(Fault::SealsUnchecked),
        Ok("shared-data-apart") => Some(Fault::SharedDataApart),
        Ok("head-mistaken") => Some(Fault::HeadMistaken),
        _ => None,
    });
    *chosen == Some(fault)
}

/// Whether `fault` was asked for: never, in a build without them.
#[cfg(not(feature = "seeded-faults"))]
pub(crate) fn seeded(_fault: Fault) -> bool {
    false
}
