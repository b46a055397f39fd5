//! `jitcast run --watch`: recompile when a file is saved, and show the workers move.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use jitcast::compiler::{Compiler, front};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::Failure;
use super::args::RunArgs;
use super::children::{Children, News};
use super::report::{Event, Report};
use super::run::{TICK, compile, with_types_of_calls};
use super::signals::Ending;

/// Editors save in several steps; what follows this closely is one save.
const SETTLE: Duration = Duration::from_millis(30);

pub(super) fn watch(
    args: &RunArgs,
    options: &front::Options,
    compiler: &Compiler,
    children: &Children,
    ending: &Ending,
) -> Result<(), Failure> {
    let (_watcher, saves) = saves(&args.unit.files)?;
    let mut alive = children.len();
    eprintln!("watching; Ctrl-C ends");
    while !ending.asked() && alive > 0 {
        match children.next(TICK) {
            Some(News::Event(index, Event::Called(report))) => show(index, args, &report),
            Some(News::Silent(index)) => {
                alive -= 1;
                println!("worker {}: ended", index + 1);
            }
            Some(News::Event(_, Event::Ready { .. })) | None => {}
        }
        if saves.try_recv().is_ok() {
            while saves.recv_timeout(SETTLE).is_ok() {}
            republish(args, options, compiler);
        }
    }
    Ok(())
}

/// Compiles and publishes anew; whatever goes wrong, the old code runs on.
fn republish(args: &RunArgs, options: &front::Options, compiler: &Compiler) {
    let published = compile(&args.unit, options)
        .and_then(|unit| with_types_of_calls(unit, args))
        .and_then(|unit| Ok(compiler.publish(std::slice::from_ref(&unit))?));
    match published {
        Ok(publication) => println!("generation {}: published", publication.generation),
        Err(Failure(text)) => eprintln!("error: {text}\nnote: the version before runs on"),
    }
}

fn show(index: usize, args: &RunArgs, report: &Report) {
    let shown: Vec<_> = args
        .calls
        .iter()
        .zip(&report.results)
        .map(|(call, result)| match result {
            Ok(value) => format!("{call} = {value}"),
            Err(error) => format!("{call}: {error}"),
        })
        .collect();
    println!(
        "generation {}: worker {} (pid {}) after {:.1?}: {}",
        report.generation,
        index + 1,
        report.pid,
        Duration::from_nanos(report.latency_ns),
        shown.join(", ")
    );
}

/// Becomes ready whenever one of `files` is saved. Folders are watched, since editors replace files.
fn saves(files: &[PathBuf]) -> Result<(RecommendedWatcher, Receiver<()>), Failure> {
    let mut wanted = BTreeSet::new();
    for file in files {
        wanted.insert(std::path::absolute(file)?);
    }
    let folders: BTreeSet<PathBuf> = wanted
        .iter()
        .filter_map(|file| file.parent().map(PathBuf::from))
        .collect();
    let (sender, saves) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = event.is_ok_and(|event| {
            let changes = event.kind.is_create() || event.kind.is_modify();
            changes && event.paths.iter().any(|path| wanted.contains(path))
        });
        if concerns {
            // The other end is gone only when the process is about to end.
            let _ = sender.send(());
        }
    })?;
    for folder in &folders {
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
    }
    Ok((watcher, saves))
}
