//! Guards: entering, leaving, jumping out. The common case is inline in the header (`inline.h`).

use core::mem::{align_of, forget, size_of};
use core::ptr::NonNull;

use ::jitcast_worker::{ThreadWords, Token};

use crate::attach::{given, jitcast_worker, of, put};
use crate::status::{Failure, bounded, bounded_or, jitcast_status};

/// How deep a thread is inside: for hosts that leave by longjmp.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct jitcast_token {
    /// How many guards it holds.
    pub depth: u32,
}

const _: () = assert!(size_of::<jitcast_token>() == 4 && align_of::<jitcast_token>() == 4);

/// Fetches the calling thread's record in `worker`, which the inline functions take. It is there until the thread ends or
/// the worker is detached, and is no other thread's business.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_ATTACHED, of a worker that attaches late; JITCAST_STATUS_FORKED, in a child that is no worker;
/// JITCAST_STATUS_TOO_MANY_THREADS; JITCAST_STATUS_THREAD_ENDS; JITCAST_STATUS_WHILE_ENDING.
///
/// # Safety
/// `worker` is null or attached; `thread` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_thread_of(
    worker: *const jitcast_worker,
    thread: *mut *mut ThreadWords,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let worker = unsafe { of(worker) }?;
        let words = worker.thread_words()?.as_ptr();
        // SAFETY: the caller's promise.
        unsafe { put(thread, words, "thread") }
    })
}

/// Enters a guard: applies what is new, unless the calling thread is inside already, and pins the thread. `token`, if it
/// is not NULL, is for jitcast_unwind. Everything that is called under the outermost guard belongs to one generation.
///
/// Errors: those of jitcast_thread_of; JITCAST_STATUS_UPDATE, if what was published cannot be applied. The thread holds as many
/// guards as before then, and goes on without published code.
///
/// # Safety
/// `worker` is null or attached; `token` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_enter(
    worker: *const jitcast_worker,
    token: *mut jitcast_token,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let guard = unsafe { of(worker) }?.enter()?;
        // SAFETY: the caller's promise.
        unsafe { tell(token, guard.token()) };
        // `jitcast_leave` leaves it.
        forget(guard);
        Ok(())
    })
}

/// Leaves a guard of the calling thread, however it was entered.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_INSIDE.
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_leave(worker: *const jitcast_worker) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let worker = unsafe { of(worker) }?;
        // SAFETY: guards of hosts in C are held by nobody: each was forgotten or entered by a thread's words.
        let left = unsafe { worker.leave() };
        left.then_some(()).ok_or_else(not_inside)
    })
}

/// How deep the calling thread is inside `worker`, for jitcast_unwind: 0 where it is not, and where `worker` is NULL.
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_take_token(worker: *const jitcast_worker) -> jitcast_token {
    bounded_or(jitcast_token { depth: 0 }, || {
        // SAFETY: the caller's promise.
        let worker = unsafe { given(worker) }?.worker();
        let depth = worker.map_or(0, |worker| worker.token().depth());
        Ok(jitcast_token { depth })
    })
}

/// Leaves every guard that the calling thread entered after `token` was taken: after a longjmp out of published code, past
/// the guards that it was called in. Where the token is that of jitcast_enter, that guard itself is still there.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT, also if the thread is not as deep inside as the token says;
/// JITCAST_STATUS_FORKED, in a child that is no worker.
///
/// # Safety
/// `worker` is null or attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_unwind(
    worker: *const jitcast_worker,
    token: jitcast_token,
) -> jitcast_status {
    bounded(|| {
        // SAFETY: the caller's promise.
        let worker = unsafe { of(worker) }?;
        worker.thread_words()?;
        let depth = worker.token().depth();
        if token.depth > depth {
            return Err(Failure::argument(format!(
                "the token is of a thread that holds {} guards, and this one holds {depth}\n  help: take it in the same \
                 thread, before or in the guard that is jumped out of",
                token.depth
            )));
        }
        // SAFETY: the depth of this thread was as great (checked above), and no guard of it is held by anybody.
        unsafe { worker.unwind(Token::new(token.depth)) };
        Ok(())
    })
}

/// What jitcast_thread_enter calls where the common case does not hold. Not to be called otherwise.
///
/// Errors: those of jitcast_enter.
///
/// # Safety
/// `thread` is null or the calling thread's; `token` is null or can be stored to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_enter_slowly(
    thread: *mut ThreadWords,
    token: *mut jitcast_token,
) -> jitcast_status {
    bounded(|| {
        let words = words(thread)?;
        // SAFETY: the caller's promise.
        let depth = unsafe { ThreadWords::enter_otherwise(words) }?;
        // SAFETY: the caller's promise.
        unsafe { tell(token, depth) };
        Ok(())
    })
}

/// What jitcast_thread_leave calls where the common case does not hold. Not to be called otherwise.
///
/// Errors: JITCAST_STATUS_INVALID_ARGUMENT; JITCAST_STATUS_NOT_INSIDE; JITCAST_STATUS_FORKED, in a child that is no worker.
///
/// # Safety
/// `thread` is null or the calling thread's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitcast_leave_slowly(thread: *mut ThreadWords) -> jitcast_status {
    bounded(|| {
        let words = words(thread)?;
        // SAFETY: the caller's promise.
        let left = unsafe { ThreadWords::leave_otherwise(words) }?;
        left.then_some(()).ok_or_else(not_inside)
    })
}

fn words(thread: *mut ThreadWords) -> Result<NonNull<ThreadWords>, Failure> {
    NonNull::new(thread).ok_or_else(|| Failure::argument("`thread` is NULL"))
}

/// # Safety
/// `to` is null or can be stored to.
unsafe fn tell(to: *mut jitcast_token, token: Token) {
    let depth = token.depth();
    if !to.is_null() {
        // SAFETY: the caller's promise, and not null.
        unsafe { to.write(jitcast_token { depth }) };
    }
}

fn not_inside() -> Failure {
    Failure::new(
        jitcast_status::NotInside,
        "this thread holds no guard of the worker\n  help: leave as often as was entered, in the same thread",
    )
}
