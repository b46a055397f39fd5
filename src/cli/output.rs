//! What the command writes to standard output and standard error: its own `println!` and the like, by the names of those of std, which panic.
//!
//! Invariant: where nothing more can be written (a full disk, a reader that is gone), what the command does goes on. That something of standard
//! output was lost is told once, when it happens, and by the exit status.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether something of standard output was lost.
static LOST: AtomicBool = AtomicBool::new(false);

macro_rules! print {
    ($($text:tt)*) => { $crate::cli::output::out(format_args!($($text)*)) };
}

macro_rules! println {
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}

macro_rules! eprint {
    ($($text:tt)*) => { $crate::cli::output::err(format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { eprint!("{}\n", format_args!($($text)*)) };
}

pub(super) fn out(text: Arguments<'_>) {
    tell(io::stdout().write_fmt(text));
}

pub(super) fn err(text: Arguments<'_>) {
    // There is nobody to be told.
    let _ = io::stderr().write_fmt(text);
}

/// Writes what is left. Whether nothing was lost.
pub(super) fn is_complete() -> bool {
    tell(io::stdout().flush());
    !LOST.load(Ordering::Relaxed)
}

/// What is told of an error of standard output.
pub(super) fn lost(error: io::Error) -> String {
    format!(
        "cannot write to standard output: {error}\n  help: make room where it goes, or send it elsewhere; what was asked for besides is done"
    )
}

fn tell(written: io::Result<()>) {
    if let Err(error) = written
        && !LOST.swap(true, Ordering::Relaxed)
    {
        eprintln!("error: {}", lost(error));
    }
}
