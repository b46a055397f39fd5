//! Compile once, use in many processes: a filter expression, given as text, becomes one published function, which four processes apply
//! to a file of records each.
//!
//! ```sh
//! cargo run --release --example filter -- 'status >= 500 && ms * 2 > bytes'     # and a number of records, and of passes
//! ```
//!
//! Beside it: [`expression`], the little language and how it becomes CLIF; [`records`], the files; [`compare`], which starts the
//! processes, and lets them do without, too: interpret the expression, or compile it in each of them.

mod compare;
mod expression;
mod records;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use expression::{Expression, Record};
use jitcast::compiler::front::{Options, compile_bytes};
use jitcast::compiler::{Compiler, CompilerOptions, Policy, Server, UnitSource};
use jitcast::worker::{Endpoint, Worker, WorkerOptions};

/// Gives how many of these records match.
type Filter = Box<dyn Fn(&[Record]) -> Result<usize, Box<dyn Error>>>;
type Matches = extern "C" fn(*const Record) -> i64;

/// The compiler process: publishes the filter, and has it used.
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == compare::PROCESS) {
        return compare::process(&args[2..]);
    }
    let text = args.get(1).map_or(
        "status >= 500 && ms * 2 > bytes || status == 404",
        String::as_str,
    );
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket").display().to_string();
    let compiler = Arc::new(Compiler::create(&CompilerOptions::default())?);
    let server = Server::bind(&socket, Policy::default(), Options::default())?;
    let (stop, shared) = (server.stopper()?, Arc::clone(&compiler));
    let serving = std::thread::spawn(move || server.run(shared));

    let clif = Expression::parse(text)?.to_clif();
    let compiled = compile_bytes("filter.clif", clif.into(), &Options::default())?;
    compiler.publish(&[UnitSource::new("filter", [compiled])])?;
    compare::compare(text, &socket, folder.path(), args.get(2..).unwrap_or(&[]))?;

    stop.stop();
    Ok(serving.join().expect("the server does not panic")?)
}

/// One of the processes: the filter that was published at `socket`.
fn published(socket: &str) -> Result<Filter, Box<dyn Error>> {
    let endpoint = Endpoint::Path(Path::new(socket));
    let worker = Worker::attach(endpoint, WorkerOptions::default())?;
    let matches = worker.function::<Matches>(&worker.enter()?, "matches")?;
    Ok(Box::new(move |batch| {
        let guard = worker.enter()?; // the poll: a filter that was replaced is followed here
        let matching = batch
            .iter()
            .filter(|record| matches.call(&guard, *record) != 0);
        Ok(matching.count())
    }))
}
