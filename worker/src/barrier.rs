//! Barriers between the processors that run this worker's threads.

use rustix::thread::{MembarrierCommand, membarrier};

/// Which barriers the kernel lets this process use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barriers {
    /// The compiler's GLOBAL_EXPEDITED reaches this process; if not, guards use fences.
    pub(crate) global: bool,
    /// Threads of this process can be reached.
    private: bool,
    /// They can be made to serialise their instruction streams.
    sync_core: bool,
}

impl Barriers {
    /// Whether guards must do without: with fences, and serialising in each thread.
    pub(crate) fn incomplete(self) -> bool {
        !(self.global && self.private && self.sync_core)
    }

    /// Registers this process for what the kernel offers; seccomp may forbid any of it.
    pub(crate) fn register() -> Self {
        let allowed = std::env::var_os("JITCAST_NO_MEMBARRIER").is_none();
        let register = |command| allowed && membarrier(command).is_ok();
        Self {
            global: register(MembarrierCommand::RegisterGlobalExpedited),
            private: register(MembarrierCommand::RegisterPrivateExpedited),
            sync_core: register(MembarrierCommand::RegisterPrivateExpeditedSyncCore),
        }
    }

    /// Registers again, in a child.
    pub(crate) fn register_again(self) {
        let commands = [
            (self.global, MembarrierCommand::RegisterGlobalExpedited),
            (self.private, MembarrierCommand::RegisterPrivateExpedited),
            (
                self.sync_core,
                MembarrierCommand::RegisterPrivateExpeditedSyncCore,
            ),
        ];
        for (_, command) in commands.into_iter().filter(|(registered, _)| *registered) {
            // What its parent could, it can.
            let _ = membarrier(command);
        }
    }

    /// Makes every running thread of this process execute a full barrier; whether it could. (If not, their
    /// guards use fences, so none is needed.)
    pub(crate) fn all_threads(self) {
        let done = self.private && membarrier(MembarrierCommand::PrivateExpedited).is_ok();
        if !done {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// Makes every thread of this process serialise its instruction stream before it runs user code again.
    pub(crate) fn serialise_all(self) {
        let done =
            self.sync_core && membarrier(MembarrierCommand::PrivateExpeditedSyncCore).is_ok();
        if !done {
            serialise_this();
        }
    }
}

/// Serialises the calling thread's instruction stream (Intel SDM volume 3, 10.3; AMD APM volume 2, 7.6.4).
pub(crate) fn serialise_this() {
    let leaf = std::arch::x86_64::__cpuid(0);
    std::hint::black_box(leaf);
}
