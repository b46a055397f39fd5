//! Compile once, use in many processes: a filter expression, given as text, becomes one published function, which four processes apply
//! to a file of records each. Beside it, what they would do without: interpret the expression, or compile it in each process.
//!
//! ```sh
//! cargo run --release --example filter -- 'status >= 500 && ms * 2 > bytes'     # and a number of records
//! ```

mod expression;

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use expression::{Expression, Record};
use jitcast::compiler::front::{Options, compile_bytes};
use jitcast::compiler::{Compiler, CompilerOptions, Policy, Server, UnitSource};
use jitcast::worker::{Endpoint, Worker, WorkerOptions};

type Matches = extern "C" fn(*const Record) -> i64;

const PROCESSES: u32 = 4;
/// Of each process, unless the second argument says otherwise.
const RECORDS: usize = 1 << 20;
/// Records that are filtered under one guard: no longer than it may take until a replaced filter is followed.
const BATCH: usize = 4096;

/// The compiler process: publishes the filter, and starts those that use it.
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().collect();
    if let [_, role, way, socket, text, file] = args.as_slice()
        && role == "--process"
    {
        return process(way, socket, text, file);
    }
    let text = args.get(1).map_or(
        "status >= 500 && ms * 2 > bytes || status == 404",
        String::as_str,
    );
    let count = args.get(2).map_or(Ok(RECORDS), |count| count.parse())?;
    let expression = Expression::parse(text)?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let compiler = Arc::new(Compiler::create(&CompilerOptions::default())?);
    let server = Server::bind(
        &socket.to_string_lossy(),
        Policy::default(),
        Options::default(),
    )?;
    let (stop, shared) = (server.stopper()?, Arc::clone(&compiler));
    let serving = std::thread::spawn(move || server.run(shared));
    let begun = Instant::now();
    let compiled = compile_bytes(
        "filter.clif",
        expression.to_clif().into(),
        &Options::default(),
    )?;
    compiler.publish(&[UnitSource::new("filter", [compiled])])?;
    println!(
        "{text}\ncompiled and published once in {:?}\n",
        begun.elapsed()
    );
    println!(
        "{:>12}  {:>14}  {:>22}  matches",
        "way", "ready after", "records/s of each"
    );
    let mut answers = Vec::new();
    for way in ["interpreted", "own JIT", "published"] {
        let mut children = Vec::new();
        for number in 0..PROCESSES {
            let file = folder.path().join(format!("records.{number}"));
            if !file.exists() {
                write_records(&file, count, number)?;
            }
            let mut command = Command::new(std::env::current_exe()?);
            command
                .args(["--process", way])
                .arg(&socket)
                .arg(text)
                .arg(&file);
            children.push(command.stdout(Stdio::piped()).spawn()?);
        }
        let mut lines = Vec::new();
        for child in children {
            let output = child.wait_with_output()?;
            if !output.status.success() {
                return Err(format!("a process that filters has failed: {}", output.status).into());
            }
            lines.push(String::from_utf8(output.stdout)?);
        }
        let number = |line: &String, field| line.split_whitespace().nth(field)?.parse::<f64>().ok();
        let mean = |field| {
            lines
                .iter()
                .filter_map(|line| number(line, field))
                .sum::<f64>()
                / f64::from(PROCESSES)
        };
        let matches = mean(2) * f64::from(PROCESSES);
        println!(
            "{way:>12}  {:>11.2} ms  {:>18.1} M/s  {matches}",
            mean(0) * 1e3,
            mean(1) / 1e6
        );
        answers.push(matches);
    }
    stop.stop();
    serving.join().expect("the server does not panic")?;
    if answers.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err("the three ways do not agree".into());
    }
    Ok(())
}

/// A process that filters its file: prints when it was ready, seconds, records in a second, and how many match.
fn process(way: &str, socket: &str, text: &str, file: &str) -> Result<(), Box<dyn Error>> {
    let records = read_records(Path::new(file))?;
    let begun = Instant::now();
    let (ready, matches) = match way {
        "published" => {
            let worker =
                Worker::attach(Endpoint::Path(Path::new(socket)), WorkerOptions::default())?;
            let matches = worker.function::<Matches>(&worker.enter()?, "matches")?;
            let ready = begun.elapsed();
            let batch = |batch: &[Record]| {
                // The poll: a filter that was replaced is followed here.
                let guard = worker.enter().expect("the worker is attached");
                batch
                    .iter()
                    .filter(|record| matches.call(&guard, *record) != 0)
                    .count()
            };
            (ready, records.chunks(BATCH).map(batch).sum::<usize>())
        }
        "own JIT" => {
            let mut module = JITModule::new(JITBuilder::with_flags(
                &[("opt_level", "speed")],
                default_libcall_names(),
            )?);
            let expression = Expression::parse(text)?;
            let functions = cranelift_reader::parse_functions(&expression.to_clif())?;
            let function = functions.into_iter().next().ok_or("no function")?;
            let id = module.declare_function("matches", Linkage::Export, &function.signature)?;
            let mut context = module.make_context();
            context.func = function;
            module.define_function(id, &mut context)?;
            module.finalize_definitions()?;
            // SAFETY: of this signature, and there as long as the module.
            let matches = unsafe {
                core::mem::transmute::<*const u8, Matches>(module.get_finalized_function(id))
            };
            let ready = begun.elapsed();
            (
                ready,
                records
                    .iter()
                    .filter(|record| matches(*record) != 0)
                    .count(),
            )
        }
        _ => {
            let expression = Expression::parse(text)?;
            let ready = begun.elapsed();
            (
                ready,
                records
                    .iter()
                    .filter(|record| expression.interpret(record) != 0)
                    .count(),
            )
        }
    };
    let took: Duration = begun.elapsed() - ready;
    println!(
        "{} {} {matches}",
        ready.as_secs_f64(),
        records.len() as f64 / took.as_secs_f64()
    );
    Ok(())
}

/// Makes a file of records, of text as logs are.
fn write_records(path: &Path, count: usize, seed: u32) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut state = u64::from(seed) + 1;
    for _ in 0..count {
        // Knuth's linear congruential generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let status = [200, 200, 200, 301, 404, 500, 503][(state >> 33) as usize % 7];
        writeln!(
            file,
            "{status} {} {}",
            (state >> 40) % 5000,
            (state >> 20) % 3000
        )?;
    }
    file.flush()
}

fn read_records(path: &Path) -> Result<Vec<Record>, Box<dyn Error>> {
    let text = std::fs::read_to_string(path)?;
    let record = |line: &str| {
        let mut fields = line.split(' ').map(str::parse);
        let mut next = || {
            fields
                .next()
                .ok_or("a field is missing".to_owned())?
                .map_err(|error| format!("{line}: {error}"))
        };
        Ok::<Record, String>([next()?, next()?, next()?])
    };
    Ok(text.lines().map(record).collect::<Result<_, _>>()?)
}
