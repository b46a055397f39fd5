//! jitcast: compile once, link once, run in every worker.
//!
//! A facade over the crates of the workspace. [`worker`] is what a server embeds; [`compiler`] is the other
//! side, which links machine code into the shared segment; [`linker`] and [`runtime`] are what both rest on.
//!
//! Both sides, for once in one process:
//!
//! ```
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use jitcast::compiler::front::{Options, compile_bytes};
//! use jitcast::compiler::{Changeset, Compiler, CompilerOptions, Policy, Server, UnitSource};
//! use jitcast::worker::{Endpoint, Polled, Worker, WorkerOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let compiler = Arc::new(Compiler::create(&CompilerOptions::default())?);
//! let socket = format!("@jitcast-example-{}", std::process::id()); // of the abstract name space
//! let server = Server::bind(&socket, Policy::default(), Options::default())?;
//! let (stop, shared) = (server.stopper()?, Arc::clone(&compiler));
//! let serving = std::thread::spawn(move || server.run(shared));
//!
//! // A unit is compiled from files, or from text.
//! let times = |factor: i64| {
//!     let text = format!(
//!         "function %score(i64) -> i64 {{
//!          block0(v0: i64):
//!              v1 = iconst.i64 {factor}
//!              v2 = imul v0, v1
//!              return v2
//!          }}"
//!     );
//!     let file = compile_bytes("score.clif", text.into_bytes(), &Options::default())?;
//!     Ok::<_, jitcast::compiler::front::FrontError>(UnitSource::new("score", [file]))
//! };
//! compiler.publish(&[times(2)?])?;
//!
//! let worker = Worker::attach(Endpoint::Path(Path::new(&socket)), WorkerOptions::default())?;
//! let guard = worker.enter()?;
//! let score = worker.function::<extern "C" fn(i64) -> i64>(&guard, "score")?;
//! assert_eq!(score.call(&guard, 21), 42);
//!
//! // What is called under one guard is of one generation, whatever is published meanwhile.
//! let units = [times(3)?];
//! let published = compiler.change(&Changeset { units: &units, ..Changeset::default() })?;
//! assert_eq!(score.call(&guard, 21), 42);
//! assert!(matches!(worker.poll()?, Polled::Inside { newest, .. } if newest == published.generation));
//! drop(guard);
//!
//! // The next guard applies it; so does who polls.
//! let found = Polled::Applied { generation: published.generation };
//! assert_eq!(worker.poll()?, found);
//! assert_eq!(worker.call(&score, (21,))?, 63);
//! assert_eq!(worker.stats().applied, published.generation);
//!
//! stop.stop();
//! serving.join().expect("the server does not panic")?;
//! assert_eq!(worker.call(&score, (21,))?, 63, "workers go on");
//! # Ok(())
//! # }
//! ```
//!
//! A host that is there first, calls what is its own until there is something else, and says what published code may call:
//!
//! ```
//! use std::path::Path;
//!
//! use jitcast::worker::{Endpoint, HostTable, LateWorker, Log, WorkerOptions};
//!
//! extern "C" fn note(value: i64) {
//!     println!("published code says {value}");
//! }
//! extern "C" fn own_score(value: i64) -> i64 {
//!     2 * value
//! }
//!
//! let mut host = HostTable::strict();
//! host.define("note", note as extern "C" fn(i64));
//! let options = WorkerOptions {
//!     host,
//!     log: Log::new(|event| eprintln!("{event}")),
//!     ..WorkerOptions::default()
//! };
//! let worker = LateWorker::attach(Endpoint::Path(Path::new("/run/nobody-listens-here.sock")), options);
//! let score = worker.function_or("score", own_score as extern "C" fn(i64) -> i64);
//! assert_eq!(worker.call(&score, (21,)), 42);
//! ```

pub use jitcast_compiler as compiler;
pub use jitcast_linker as linker;
pub use jitcast_runtime as runtime;
pub use jitcast_worker as worker;
