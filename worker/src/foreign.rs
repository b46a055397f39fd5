//! Handles for hosts in other languages: typed by the text of a signature, loaded through a pointer.

use core::marker::PhantomData;
use core::ptr::NonNull;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use jitcast_runtime::WorkerAddr;
use jitcast_runtime::signature::Signature;

use crate::asked::AskedUnit;
use crate::error::LookupError;
use crate::guard::Guard;
use crate::handle::{Function, HandleCell, Wanted};
use crate::late::LateWorker;
use crate::worker::Worker;

/// Code whose type its caller knows.
#[derive(Debug)]
pub enum Code {}

impl Worker {
    /// The function `name`, whose recorded signature must be `signature` (`None`: whatever was recorded), or `fallback` while it
    /// does not serve, as for [`Worker::function_or`].
    ///
    /// # Errors
    /// [`LookupError`].
    ///
    /// # Safety
    /// `fallback` is a function of that signature that stays. Without a signature, `name` is a function of the type that
    /// it is called as in every version that will be published.
    pub unsafe fn function_by_signature(
        &self,
        guard: &Guard<'_>,
        name: &str,
        signature: Option<Signature>,
        fallback: Option<NonNull<c_void>>,
    ) -> Result<Function<Code>, LookupError> {
        let fallback = fallback.map(address);
        let wanted = Wanted {
            name,
            signature,
            fallback,
            unit: None,
        };
        self.handle(guard, wanted)
    }
}

impl LateWorker {
    /// As [`Worker::function_by_signature`], before the worker has attached: `fallback` serves until it has, and what is something
    /// else than it is taken for is told to the host then ([`Event::Unfit`]). `None`: it has attached by now.
    ///
    /// # Safety
    /// As there; and the handle is used only inside guards.
    ///
    /// [`Event::Unfit`]: crate::Event::Unfit
    pub unsafe fn early_by_signature(
        &self,
        name: &str,
        signature: Option<Signature>,
        fallback: NonNull<c_void>,
    ) -> Option<Function<Code>> {
        let cell = Arc::new(HandleCell::early(name, signature, address(fallback)));
        self.keep_early(&cell).then_some(Function {
            cell,
            _type: PhantomData,
        })
    }
}

impl AskedUnit {
    /// Its function `name`, whose signature must be `signature` (`None`: whatever it is), or `fallback` once the unit is gone.
    ///
    /// # Errors
    /// [`LookupError`].
    ///
    /// # Safety
    /// `fallback` is a function of that signature that stays. Without a signature, `name` is a function of the type that it is
    /// called as.
    pub unsafe fn function_by_signature(
        &self,
        guard: &Guard<'_>,
        name: &str,
        signature: Option<Signature>,
        fallback: Option<NonNull<c_void>>,
    ) -> Result<Function<Code>, LookupError> {
        self.find(guard, name, signature, fallback.map(address))
    }
}

fn address(code: NonNull<c_void>) -> WorkerAddr {
    WorkerAddr::new(code.as_ptr().expose_provenance() as u64)
}

impl Function<Code> {
    /// What to call inside `guard`.
    pub fn address(&self, guard: &Guard<'_>) -> *const () {
        self.target(guard)
    }

    /// The handle as the word that holds what to call, to be loaded with acquire inside a guard of its worker.
    /// [`Function::from_raw`] takes it back.
    pub fn into_raw(self) -> NonNull<AtomicU64> {
        let cell = Arc::into_raw(self.cell).cast_mut();
        // SAFETY: an `Arc` leads to something.
        unsafe { NonNull::new_unchecked(cell) }.cast()
    }

    /// The handle that [`Function::into_raw`] made a word of.
    ///
    /// # Safety
    /// It did, and nobody else takes it back or loads the word any more.
    pub unsafe fn from_raw(word: NonNull<AtomicU64>) -> Self {
        // SAFETY: the caller's promise; the word comes first in the cell (asserted beside it).
        let cell = unsafe { Arc::from_raw(word.as_ptr().cast::<HandleCell>()) };
        Self {
            cell,
            _type: PhantomData,
        }
    }
}
