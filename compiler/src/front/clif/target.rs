//! Which processor CLIF is compiled for.

use cranelift_codegen::isa::{OwnedTargetIsa, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};

/// The processor and the settings that functions are compiled with. Cheap to clone; threads may share it.
#[derive(Clone)]
pub struct Target {
    isa: OwnedTargetIsa,
}

/// Cranelift has no code generator for this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no code generator for this machine: {0}\n  CLIF is compiled for x86-64 Linux\n  \
     help: publish objects or archives instead"
)]
pub struct TargetError(String);

impl Target {
    /// This machine, with every instruction set that it has.
    pub fn host() -> Result<Self, TargetError> {
        Self::new(true)
    }

    /// Any x86-64: SSE2 only. For segments whose workers run on other machines than the compiler, and
    /// for comparisons.
    pub fn baseline() -> Result<Self, TargetError> {
        Self::new(false)
    }

    fn new(native: bool) -> Result<Self, TargetError> {
        let error = |error: &dyn std::fmt::Display| TargetError(error.to_string());
        let mut flags = settings::builder();
        let verifier = if cfg!(debug_assertions) {
            "true"
        } else {
            "false"
        };
        for (name, value) in [
            ("opt_level", "speed"),
            // Code runs wherever a worker maps it.
            ("is_pic", "true"),
            // A large frame touches its pages one by one, so that it cannot leap over the guard page.
            ("enable_probestack", "true"),
            ("probestack_strategy", "inline"),
            // What comes from outside is verified before it is compiled, in every build.
            ("enable_verifier", verifier),
        ] {
            flags.set(name, value).map_err(|e| error(&e))?;
        }
        let isa = cranelift_native::builder_with_options(native).map_err(|e| error(&e))?;
        let isa = isa
            .finish(settings::Flags::new(flags))
            .map_err(|e| error(&e))?;
        Ok(Self { isa })
    }

    /// The code generator.
    pub(super) fn isa(&self) -> &dyn TargetIsa {
        &*self.isa
    }

    /// The code generator, shared.
    pub(super) fn owned_isa(&self) -> OwnedTargetIsa {
        self.isa.clone()
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("triple", &self.isa.triple().to_string())
            .finish()
    }
}
