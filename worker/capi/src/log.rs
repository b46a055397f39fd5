//! What hosts are told that no call returns: a kind for them, a text for people.

use std::ffi::{CString, c_char, c_void};

use ::jitcast_worker::{Event, Log};

/// What has happened. Others may be added: hosts that do not know a number have its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum jitcast_event {
    /// Something that has no number yet.
    Other = 0,
    /// The compiler process is gone. The worker goes on with what it has, and looks for another one.
    Disconnected = 1,
    /// The worker goes on with another object: another compiler process's, or one to which the same one has moved.
    Renewed = 2,
    /// What the compiler process offered to go on with is not what this worker has.
    Declined = 3,
    /// A unit failed in this worker.
    UnitFailed = 4,
    /// A host symbol is missing: functions that need it cannot be called in this worker.
    MissingImport = 5,
    /// An attempt to attach later came to nothing; it is tried again.
    NotAttached = 6,
    /// What a handle was made of before the worker attached is something else. The host's own function serves.
    Unfit = 7,
    /// Debuggers or profilers are not shown all that was asked for.
    NotShown = 8,
}

/// Who is told, with `log_context` of jitcast_options and a text that is there as long as the call. Called until the worker is detached, by
/// any thread that attaches, enters a guard or tends, by several at a time too, and with nothing locked, so that it may use the worker. It
/// returns: it neither jumps nor throws.
pub type jitcast_log =
    Option<unsafe extern "C" fn(context: *mut c_void, event: jitcast_event, text: *const c_char)>;

/// What a host's function is given.
struct Context(*mut c_void);

// SAFETY: it is never looked into here, and who gave it promised a function that any thread may call with it.
unsafe impl Send for Context {}
// SAFETY: as for `Send`.
unsafe impl Sync for Context {}

impl Context {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// Who is told of events: `log`, if there is one.
///
/// # Safety
/// `log` may be called with `context` by any thread until the worker is detached.
pub(crate) unsafe fn log(log: jitcast_log, context: *mut c_void) -> Log {
    let Some(log) = log else {
        return Log::default();
    };
    let context = Context(context);
    Log::new(move |event| {
        let text = CString::new(event.to_string().replace('\0', "?")).unwrap_or_default();
        // SAFETY: the caller's promise; the text is a C string that outlives the call.
        unsafe { log(context.get(), number(event), text.as_ptr()) };
    })
}

fn number(event: &Event) -> jitcast_event {
    match event {
        Event::Disconnected => jitcast_event::Disconnected,
        Event::Renewed { .. } => jitcast_event::Renewed,
        Event::Declined => jitcast_event::Declined,
        Event::UnitFailed(_) => jitcast_event::UnitFailed,
        Event::MissingImport { .. } => jitcast_event::MissingImport,
        Event::NotAttached { .. } => jitcast_event::NotAttached,
        Event::Unfit { .. } => jitcast_event::Unfit,
        Event::NotShown { .. } => jitcast_event::NotShown,
        _ => jitcast_event::Other,
    }
}
