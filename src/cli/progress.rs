//! How far work is that takes a while: a bar or a spinner on a terminal, lines elsewhere, on standard error. What takes less than a
//! second shows nothing.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long nothing is shown.
const SILENCE: Duration = Duration::from_secs(1);

/// How often a terminal is drawn.
const TICK: Duration = Duration::from_millis(100);

/// The longest time between two lines.
const LONGEST: Duration = Duration::from_secs(30);

/// How far something is: what is done, and of how much; 0: nobody knows.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) done: AtomicU64,
    pub(super) total: AtomicU64,
}

/// Shows progress until it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    over: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows `what` is done, without a count.
    pub(super) fn spin(what: impl Into<String>) -> Self {
        Self::start(what, "", || (0, 0))
    }

    /// Shows how many `unit`s of `what` are done.
    pub(super) fn count(what: impl Into<String>, unit: &'static str, counts: &Arc<Counts>) -> Self {
        let counts = Arc::clone(counts);
        Self::start(what, unit, move || {
            let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
            (load(&counts.done), load(&counts.total))
        })
    }

    /// Shows what `look` says.
    pub(super) fn start(
        what: impl Into<String>,
        unit: &'static str,
        look: impl Fn() -> (u64, u64) + Send + 'static,
    ) -> Self {
        let what = what.into();
        let (over, ended) = mpsc::channel();
        let run = move || {
            let start = Instant::now();
            let goes_on = |time| ended.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
            if !goes_on(SILENCE) {
                return;
            }
            if std::io::stderr().is_terminal() {
                draw(&what, unit, goes_on, look);
            } else {
                write_lines(&what, unit, start, goes_on, look);
            }
        };
        // Without a thread nothing is shown, and nothing is lost.
        let thread = std::thread::Builder::new().name("progress".into());
        Self {
            over: Some(over),
            thread: thread.spawn(run).ok(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn draw(what: &str, unit: &str, goes_on: impl Fn(Duration) -> bool, look: impl Fn() -> (u64, u64)) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_message(what.to_owned());
    loop {
        let (done, total) = look();
        let style = match (total, unit) {
            (0, "") => "{spinner} {msg}, {elapsed}".to_owned(),
            (0, unit) => format!("{{spinner}} {{msg}}: {{pos}} {unit}, {{elapsed}}"),
            (_, "bytes") => "{msg} [{bar:30}] {bytes}/{total_bytes}, {elapsed}".to_owned(),
            (_, unit) => format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {unit}, {{elapsed}}"),
        };
        if let Ok(style) = ProgressStyle::with_template(&style) {
            bar.set_style(style);
        }
        if total > 0 {
            bar.set_length(total);
        }
        bar.set_position(done);
        bar.tick();
        if !goes_on(TICK) {
            break;
        }
    }
    bar.finish_and_clear();
}

fn write_lines(
    what: &str,
    unit: &str,
    start: Instant,
    goes_on: impl Fn(Duration) -> bool,
    look: impl Fn() -> (u64, u64),
) {
    let mut pause = SILENCE;
    loop {
        let seconds = start.elapsed().as_secs();
        match look() {
            (0, 0) => eprintln!("{what}: {seconds} s"),
            (done, 0) => eprintln!("{what}: {done} {unit}, {seconds} s"),
            (done, total) => eprintln!("{what}: {done} of {total} {unit}, {seconds} s"),
        }
        if !goes_on(pause) {
            return;
        }
        pause = (2 * pause).min(LONGEST);
    }
}
