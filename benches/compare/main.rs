//! jitcast beside what people would use instead: each row against its peers, in one run, in turns.
//!
//! `cargo bench --bench compare -- --help` says what it can do; ARCHITECTURE.md ("Benchmarks"), how it measures and what its
//! ratios mean. Invariant: what stands in one row was measured in one run, with every peer in each of its rounds.

mod bare;
mod board;
#[path = "../common/mod.rs"]
mod common;
mod environment;
mod follow;
mod jit;
mod library;
mod measure;
mod peers;
mod plots;
mod process;
mod ratios;
mod readme;
mod report;
mod role;
mod rows;
mod shapes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use measure::{Plan, Recorder};
use report::Report;
use role::Role;

// As in the hosts that it stands for.
jitcast::worker::embed!();

/// Measures jitcast beside its peers.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer rounds, smaller sizes: for a look, not for figures.
    #[arg(long)]
    quick: bool,
    /// Only these groups of rows; see `--list`.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    rows: Vec<String>,
    /// Says which groups of rows there are.
    #[arg(long)]
    list: bool,
    /// Another version of LLVM's JIT linker to measure, beside that of Debian's package llvm-19.
    #[arg(long, value_name = "PROGRAM")]
    jitlink: Vec<PathBuf>,
    /// Writes everything, raw samples too, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the plots into this folder.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Writes the figures into this file, between the marks that are there.
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Measures nothing: compares two files that `--json` wrote.
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    compare: Option<Vec<PathBuf>>,
    /// Measures nothing: shows a file that `--json` wrote, and writes what else is asked for.
    #[arg(long, value_name = "FILE")]
    show: Option<PathBuf>,
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
    /// Plays a role in a measurement: the program starts itself anew for each process that takes part.
    #[arg(long, hide = true)]
    role: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(role) = &args.role {
        let role: Role = serde_json::from_str(role).expect("the program starts itself");
        role::play(role);
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    if args.list {
        for group in rows::GROUPS {
            println!("{:<10} {}", group.name, group.what);
        }
        return Ok(());
    }
    if let Some([old, new]) = args.compare.as_deref() {
        println!(
            "{}",
            ratios::table(&report::read(old)?, &report::read(new)?)
        );
        return Ok(());
    }
    let report = match &args.show {
        Some(file) => report::read(file)?,
        None => measure(args)?,
    };
    println!("{}", report.table());
    if let Some(file) = &args.json {
        report.write(file)?;
    }
    if let Some(folder) = &args.plots {
        plots::draw(&report, folder)?;
    }
    if let Some(file) = &args.readme {
        readme::write(&report, file)?;
    }
    Ok(())
}

fn measure(args: &Args) -> Result<Report, String> {
    // While nothing is pinned, and no thread started.
    process::cpus();
    process::keep_freed_memory();
    peers::find_jitlinks(&args.jitlink)?;
    let groups = rows::chosen(&args.rows)?;
    let mut recorder = Recorder::new(Plan::new(args.quick));
    let environment = environment::capture();
    println!("{environment}");
    rows::noise(&mut recorder);
    for group in groups {
        eprintln!("measuring {}: {}", group.name, group.what);
        (group.run)(&mut recorder);
    }
    Ok(recorder.finish(environment))
}
