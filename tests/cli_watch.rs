//! `jitcast run --watch`: save a file, and the workers run it.

mod common;

use common::process::{Process, Stream, Watched, jitcast};
use common::scratch::{Scratch, adds};
use rustix::process::Signal;

const WORKERS: usize = 2;

/// A watching run of `f.clif`.
struct Watching {
    run: Process,
    scratch: Scratch,
}

impl Watching {
    fn start() -> Self {
        let scratch = Scratch::new();
        let file = scratch.write("f.clif", adds("f", 1));
        let count = WORKERS.to_string();
        let args = [
            "run",
            &file,
            "--call=f(100)",
            "--watch",
            "--workers",
            &count,
        ];
        let mut run = Process::start(&mut jitcast(&args));
        run.await_line(Stream::Err, "`watching`", |line| {
            line.starts_with("watching")
        });
        Self { run, scratch }
    }

    /// Waits until every worker has reported `result`; their process ids.
    fn await_result(&mut self, result: i64) -> Vec<i32> {
        let wanted = format!("f(100) = {result}");
        let mut pids = Vec::new();
        while pids.len() < WORKERS {
            let line = self
                .run
                .await_line(Stream::Out, &wanted, |line| line.ends_with(&wanted));
            let (_, rest) = line.split_once("(pid ").unwrap();
            let pid = rest.split_once(')').unwrap().0.parse().unwrap();
            if !pids.contains(&pid) {
                pids.push(pid);
            }
        }
        pids
    }
}

#[test]
fn workers_move_to_what_is_saved_in_place_or_by_renaming() {
    let mut watching = Watching::start();
    watching.scratch.write("f.clif", adds("f", 2));
    watching.await_result(102);
    watching.scratch.replace("f.clif", adds("f", 3));
    watching.await_result(103);
}

#[test]
fn a_file_that_does_not_compile_is_shown_and_leaves_the_old_code_running() {
    let mut watching = Watching::start();
    watching.scratch.replace("f.clif", adds("f", 2));
    let pids = watching.await_result(102);
    watching.scratch.replace(
        "f.clif",
        "function %f(i64) -> i64 {\nblock0(v0: i64):\n    return v9\n}\n",
    );
    let error = watching
        .run
        .await_line(Stream::Err, "the error", |line| line.starts_with("error: "));
    assert!(error.contains("f.clif"), "{error}");
    watching.run.await_line(Stream::Err, "the note", |line| {
        line == "note: the version before runs on"
    });
    watching.scratch.replace("f.clif", adds("f", 3));
    let mut later = watching.await_result(103);
    later.sort_unstable();
    let mut before = pids;
    before.sort_unstable();
    assert_eq!(before, later, "the same workers run on");
}

#[test]
fn a_replacement_that_does_not_link_is_shown_and_leaves_the_old_code_running() {
    let mut watching = Watching::start();
    let hidden = "function colocated %g() -> i64 { block0: v0 = iconst.i64 0 return v0 }\n";
    watching
        .scratch
        .replace("f.clif", format!("{}{}", adds("f", 2), adds("f", 2)));
    watching.run.await_line(Stream::Err, "the note", |line| {
        line == "note: the version before runs on"
    });
    watching.scratch.replace(
        "f.clif",
        format!("{}{hidden}", adds("f", 4)).replace(" colocated", ""),
    );
    watching.await_result(104);
}

#[test]
fn ctrl_c_ends_a_watching_run_and_its_workers() {
    let mut watching = Watching::start();
    watching.scratch.replace("f.clif", adds("f", 2));
    let workers: Vec<_> = watching
        .await_result(102)
        .into_iter()
        .map(Watched::new)
        .collect();
    watching.run.signal(Signal::INT);
    let done = watching.run.finish();
    assert_eq!(done.code, Some(0), "{done:#?}");
    workers.iter().for_each(Watched::await_end);
}
