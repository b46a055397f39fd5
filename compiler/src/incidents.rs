//! What went wrong lately, and what workers that are gone had counted: for people, and for metrics.
//!
//! Invariant: each list is bounded, whoever fills it. What workers say is their own word: it is cut, made printable, and nothing
//! follows from it. It is not written down: the next compiler process begins with nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use jitcast_runtime::mailbox::Mailbox;
use jitcast_runtime::tally::{Crash, Tally, crash_name};
use serde::{Deserialize, Serialize};

use crate::compiler::Compiler;

/// How many errors of one kind are remembered, so that nobody who errs all the time drives out what others did.
const MAX_ERRORS: usize = 16;

/// How much of each, bytes.
const MAX_ERROR_BYTES: usize = 1024;

/// How many units' crashes are counted apart.
const MAX_CRASHES: usize = 256;

/// Something that the compiler process refused or met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorStatus {
    /// When, seconds since 1970.
    pub seconds: u64,
    /// What was asked for, or met: "publish", "rollback", "promote or abort", "renew", "request", "serve", "crash".
    pub what: String,
    /// In the words that were answered.
    pub text: String,
}

/// Workers that died in published code, by unit and generation. What they crashed in is their own word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashStatus {
    /// The unit; empty: unknown.
    pub unit: String,
    /// The generation that published it; 0: unknown.
    pub generation: u64,
    /// How many workers.
    pub count: u64,
    /// Of the latest: the function; empty: unknown.
    pub symbol: String,
    /// How far into it, bytes.
    pub distance: u64,
    /// Where that is: an offset in the window.
    pub offset: u32,
    /// The signal.
    pub signal: String,
    /// The generation that the thread was inside at; 0: unknown.
    pub inside: u64,
    /// The process, in the compiler's pid namespace.
    pub pid: i32,
    /// The worker's label.
    pub label: String,
    /// When it crashed, seconds since 1970.
    pub seconds: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    errors: VecDeque<ErrorStatus>,
    /// With the order in which they were noted last.
    crashes: BTreeMap<(String, u64), (u64, CrashStatus)>,
    /// All that were counted, those that are remembered no longer too.
    crash_count: u64,
    order: u64,
    /// What workers had counted that are gone.
    gone: Tally,
}

impl Incidents {
    fn note_error(&mut self, what: &str, text: &str) {
        let alike = |error: &&ErrorStatus| error.what == what;
        if self.errors.iter().filter(alike).count() >= MAX_ERRORS
            && let Some(oldest) = self.errors.iter().rposition(|error| error.what == what)
        {
            self.errors.remove(oldest);
        }
        let cut = &text[..text.floor_char_boundary(MAX_ERROR_BYTES)];
        self.errors.push_front(ErrorStatus {
            seconds: now(),
            what: what.to_owned(),
            text: cut.to_owned(),
        });
    }

    fn note_crash(&mut self, (pid, label): (i32, &str), crash: &Crash) -> CrashStatus {
        let key = (crash_name(&crash.unit), crash.generation);
        self.order += 1;
        self.crash_count += 1;
        let before = self.crashes.get(&key).map_or(0, |(_, known)| known.count);
        let status = CrashStatus {
            unit: key.0.clone(),
            generation: key.1,
            count: before + 1,
            symbol: crash_name(&crash.symbol),
            distance: crash.distance,
            offset: crash.place,
            signal: signal_name(crash.signal),
            inside: crash.inside,
            pid,
            label: label.to_owned(),
            seconds: crash.seconds,
        };
        self.crashes.insert(key, (self.order, status.clone()));
        if self.crashes.len() > MAX_CRASHES {
            let known = self.crashes.iter();
            let oldest = known.min_by_key(|(_, (order, _))| *order);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.crashes.remove(&oldest);
            }
        }
        status
    }

    /// The latest errors, the newest first.
    pub(crate) fn errors(&self) -> Vec<ErrorStatus> {
        self.errors.iter().cloned().collect()
    }

    /// Who died, by unit and generation.
    pub(crate) fn crashes(&self) -> Vec<CrashStatus> {
        let crashes = self.crashes.values();
        crashes.map(|(_, status)| status.clone()).collect()
    }

    /// How many died of crashes.
    pub(crate) fn crash_count(&self) -> u64 {
        self.crash_count
    }

    /// What workers had counted that are gone.
    pub(crate) fn gone(&self) -> Tally {
        self.gone
    }
}

impl Compiler {
    /// Remembers something that was refused or met.
    pub(crate) fn note_error(&self, what: &str, text: &str) {
        self.incidents.lock().note_error(what, text);
    }

    /// Takes over what a worker leaves that has ended: `process` is its pid and its label.
    pub(crate) fn note_end(&self, process: (i32, &str), mailbox: &Mailbox) {
        let mut incidents = self.incidents.lock();
        incidents.gone.add(&mailbox.tally());
        let (count, crash) = mailbox.crashes();
        if count > 0 {
            let crash = crash.unwrap_or(Crash::NONE);
            let status = incidents.note_crash(process, &crash);
            incidents.note_error("crash", &status.to_string());
            tracing::warn!("{status}");
        }
    }
}

impl std::fmt::Display for CrashStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = |name: &str| if name.is_empty() { "?" } else { name }.to_owned();
        write!(
            f,
            "worker {} died of {} at {}+{:#x} of the unit {}, generation {}",
            self.pid,
            self.signal,
            known(&self.symbol),
            self.distance,
            known(&self.unit),
            self.generation
        )
    }
}

/// What a signal is called.
fn signal_name(signal: i32) -> String {
    match signal {
        libc::SIGSEGV => "SIGSEGV".to_owned(),
        libc::SIGBUS => "SIGBUS".to_owned(),
        libc::SIGILL => "SIGILL".to_owned(),
        libc::SIGFPE => "SIGFPE".to_owned(),
        other => format!("signal {other}"),
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_bounded_and_the_newest_stays() {
        let mut incidents = Incidents::default();
        for index in 0..1000u64 {
            incidents.note_error("publish", &format!("{index}{}", "é".repeat(1000)));
            let mut crash = Crash::NONE;
            crash.generation = index;
            incidents.note_crash((1, ""), &crash);
            crash.generation = 0;
            incidents.note_crash((1, ""), &crash);
        }
        let errors = incidents.errors();
        assert_eq!(errors.len(), MAX_ERRORS);
        assert!(errors[0].text.starts_with("999é") && errors[0].text.len() <= MAX_ERROR_BYTES);
        let crashes = incidents.crashes();
        assert_eq!(crashes.len(), MAX_CRASHES);
        assert_eq!((crashes[0].generation, crashes[0].count), (0, 1001));
        assert_eq!(crashes.last().unwrap().generation, 999);
        assert_eq!(incidents.crash_count(), 2000);
    }
}
