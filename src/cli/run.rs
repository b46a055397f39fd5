//! `jitcast run`: the whole path in one command.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jitcast::compiler::front::{self, compile_files};
use jitcast::compiler::{Compiler, CompilerOptions, Policy, Publication, Server, Stop, UnitSource};
use jitcast::runtime::Geometry;
use jitcast::runtime::segment::BackEnd;
use jitcast::runtime::sys;

use super::Failure;
use super::args::{RunArgs, SegmentArgs, UnitArgs};
use super::children::{Children, News};
use super::metrics::Endpoint;
use super::report::{Event, Row, table};
use super::serve::{clear_leftover, hide_memory};
use super::signals::Ending;
use super::watch;

/// How often the loop looks whether it was asked to end.
pub(super) const TICK: Duration = Duration::from_millis(50);

pub(super) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let ending = Ending::listen()?;
    let options = args.unit.options(args.segment.cpu);
    let unit = with_types_of_calls(compile(&args.unit, &options)?, args)?;
    let socket = format!("@jitcast-run-{:016x}", u64::from_le_bytes(sys::random()?));
    let serving = Serving::start(&args.segment, &socket, &options)?;
    let mut children = Children::start(args.workers, &worker_arguments(args, &socket))?;
    let mut rows = Rows::new(children.len());
    rows.collect(&mut children, &ending, |rows| {
        rows.ready.iter().all(|ready| *ready)
    });
    if ending.asked() {
        return Ok(ExitCode::from(130));
    }
    let publication = serving.compiler.publish(std::slice::from_ref(&unit))?;
    check_calls(args, &publication)?;
    rows.collect(&mut children, &ending, |rows| {
        rows.rows.iter().all(Option::is_some)
    });
    if ending.asked() {
        return Ok(ExitCode::from(130));
    }
    let succeeded = rows.show(args);
    if args.watch {
        watch::watch(args, &options, &serving.compiler, &children, &ending)?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(if succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Refuses calls of what the unit does not publish: the workers would wait for it for ever.
fn check_calls(args: &RunArgs, publication: &Publication) -> Result<(), Failure> {
    let functions = &publication.functions;
    match args
        .calls
        .iter()
        .find(|call| !functions.contains(&call.name))
    {
        None => Ok(()),
        Some(call) => Err(Failure(format!(
            "`{call}`: `{}` is no function of the unit `{}`\n  it publishes {}\n  help: check the name; static functions are not published",
            call.name,
            args.unit.name(),
            if functions.is_empty() {
                "no functions".to_owned()
            } else {
                functions.join(", ")
            },
        ))),
    }
}

/// Records the types that the calls themselves have for functions whose signature nobody stated.
pub(super) fn with_types_of_calls(
    mut unit: UnitSource,
    args: &RunArgs,
) -> Result<UnitSource, Failure> {
    for call in &args.calls {
        let is_known = unit.signatures.iter().any(|(name, _)| *name == call.name);
        let uncallable = unit.uncallable.iter().find(|(name, _)| *name == call.name);
        if let (Some((name, text)), false) = (uncallable, is_known) {
            return Err(Failure(format!(
                "`{call}`: `{name}` has the signature {text}, by which no host can call\n  help: publish a function that wraps it, with one result and no vectors"
            )));
        }
        if !is_known {
            let (signature, _) = call.resolve(None)?;
            unit.signatures.push((call.name.clone(), signature));
        }
    }
    Ok(unit)
}

/// Compiles the files of a unit.
pub(super) fn compile(args: &UnitArgs, options: &front::Options) -> Result<UnitSource, Failure> {
    let files = compile_files(&args.files, options)?;
    files.iter().for_each(|file| eprint!("{}", file.messages));
    let mut unit = UnitSource::new(args.name(), files);
    let given = args.signatures.iter();
    let given = given.map(|named| (named.name.clone(), named.signature.clone()));
    // The first one counts, and what was said explicitly comes first.
    unit.signatures.splice(0..0, given);
    unit.reclaim = args.reclaim();
    unit.link = args.link();
    Ok(unit)
}

fn worker_arguments(args: &RunArgs, socket: &str) -> Vec<String> {
    let mut arguments = vec![
        "worker".to_owned(),
        format!("--socket={socket}"),
        "--json".into(),
    ];
    arguments.extend(["--with-parent".to_owned(), format!("--wait={}", 1u64 << 30)]);
    arguments.extend(args.calls.iter().map(|call| format!("--call={call}")));
    arguments.extend(args.libs.iter().map(|library| format!("--lib={library}")));
    arguments.extend(args.watch.then(|| "--watch".to_owned()));
    arguments
}

/// A compiler with its server, in threads of this process.
pub(super) struct Serving {
    pub(super) compiler: Arc<Compiler>,
    stop: Stop,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    _metrics: Option<Endpoint>,
}

impl Serving {
    fn start(
        segment: &SegmentArgs,
        socket: &str,
        options: &front::Options,
    ) -> Result<Self, Failure> {
        hide_memory()?;
        clear_leftover(segment)?;
        let compiler = Arc::new(Compiler::create(&compiler_options(segment, socket)?)?);
        let metrics = segment.metrics;
        let metrics = metrics.map(|address| Endpoint::start(address, Arc::clone(&compiler)));
        let metrics = metrics.transpose()?;
        let server = Server::bind(socket, Policy::default(), options.clone())?;
        let stop = server.stopper()?;
        let thread = {
            let compiler = Arc::clone(&compiler);
            std::thread::Builder::new()
                .name("server".into())
                .spawn(move || server.run(compiler))?
        };
        Ok(Self {
            compiler,
            stop,
            thread: Some(thread),
            _metrics: metrics,
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // Whatever it ran into, this process is about to end.
            let _ = thread.join();
        }
    }
}

/// What the command line says of the segment.
pub(super) fn compiler_options(
    segment: &SegmentArgs,
    socket: &str,
) -> Result<CompilerOptions, Failure> {
    let mut options = CompilerOptions::default();
    if let Some(window) = segment.window {
        options.geometry = Some(Geometry::new(window.saturating_mul(1 << 20))?);
    }
    socket.clone_into(&mut options.socket);
    if let Some(name) = &segment.name {
        options.back_end = BackEnd::Named(name.clone());
    }
    if matches!(segment.cpu, super::args::Cpu::Baseline) {
        options.cpu = jitcast::runtime::cpu::CpuFeatures::from_bits(0);
    }
    Ok(options)
}

/// What is known of each worker.
struct Rows {
    ready: Vec<bool>,
    rows: Vec<Option<Row>>,
}

impl Rows {
    fn new(count: usize) -> Self {
        Self {
            ready: vec![false; count],
            rows: (0..count).map(|_| None).collect(),
        }
    }

    /// Takes news until `done`, or until the process is asked to end.
    fn collect(&mut self, children: &mut Children, ending: &Ending, done: impl Fn(&Self) -> bool) {
        while !done(self) && !ending.asked() {
            match children.next(TICK) {
                Some(News::Event(index, Event::Ready { .. })) => self.ready[index] = true,
                Some(News::Event(index, Event::Called(report))) => {
                    self.rows[index] = Some(Row::Done(report))
                }
                Some(News::Silent(index)) => {
                    self.ready[index] = true;
                    if self.rows[index].is_none() {
                        let how = children.end_of(index);
                        self.rows[index] = Some(Row::Lost {
                            pid: children.pid(index),
                            how,
                        });
                    }
                }
                None => {}
            }
        }
    }

    /// Prints the table and, once each, what went wrong; whether nothing did.
    fn show(&mut self, args: &RunArgs) -> bool {
        let calls: Vec<_> = args.calls.iter().map(ToString::to_string).collect();
        let rows: Vec<Row> = self.rows.drain(..).flatten().collect();
        println!("{}", table(&calls, &rows));
        let mut shown = std::collections::BTreeSet::new();
        for row in &rows {
            if let Row::Done(report) = row {
                for error in report
                    .results
                    .iter()
                    .filter_map(|result| result.as_ref().err())
                {
                    if shown.insert(error.clone()) {
                        eprintln!("error: {error}");
                    }
                }
            }
        }
        rows.iter().all(Row::succeeded)
    }
}
