//! The processes that filter, and what they would do without published code. All ways have to find the same.

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Linkage, Module, default_libcall_names};
use rustix::time::{ClockId, clock_gettime};

use crate::expression::Expression;
use crate::{Filter, Matches, published, records};

/// The first argument of a process that filters.
pub(crate) const PROCESS: &str = "--process";

const PROCESSES: u32 = 4;
/// Of each process, and how often it goes over them, unless arguments say otherwise.
const RECORDS: usize = 1 << 20;
const PASSES: usize = 50;
/// Records that are filtered under one guard: no longer than it may take until a replaced filter is followed.
const BATCH: usize = 4096;

/// What one process says.
struct Report {
    ready: Duration,
    /// In a second of processor time.
    records: f64,
    matches: usize,
}

/// Has the processes filter in each way; prints how fast they are.
pub(crate) fn compare(
    text: &str,
    socket: &str,
    folder: &Path,
    numbers: &[String],
) -> Result<(), Box<dyn Error>> {
    let count = numbers.first().map_or(Ok(RECORDS), |count| count.parse())?;
    let passes = numbers.get(1).map_or(PASSES.to_string(), String::clone);
    println!("{text}\n\n         way  ready after  records in a CPU second  matches");
    let mut answers = Vec::new();
    for way in ["interpreted", "own JIT", "published"] {
        let mut children = Vec::new();
        for number in 0..PROCESSES {
            let file = folder.join(format!("records.{number}"));
            if !file.exists() {
                records::write(&file, count, number)?;
            }
            let mut command = Command::new(std::env::current_exe()?);
            command
                .args([PROCESS, way, socket, text, &passes])
                .arg(file);
            children.push(command.stdout(Stdio::piped()).spawn()?);
        }
        let mut reports = Vec::new();
        for child in children {
            let said = child.wait_with_output()?;
            if !said.status.success() {
                return Err(format!("a process that filters has failed: {}", said.status).into());
            }
            reports.push(Report::read(&String::from_utf8(said.stdout)?)?);
        }
        let ready = reports.iter().map(|report| report.ready).max();
        let records = reports.iter().map(|report| report.records).sum::<f64>();
        let matches: usize = reports.iter().map(|report| report.matches).sum();
        println!(
            "{way:>12}  {:>8.1} ms  {:>19.0} M/s  {matches}",
            ready.unwrap_or_default().as_secs_f64() * 1e3,
            records / f64::from(PROCESSES) / 1e6
        );
        answers.push(matches);
    }
    if answers.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err("the three ways do not agree".into());
    }
    Ok(())
}

/// A process that filters its file.
pub(crate) fn process(args: &[String]) -> Result<(), Box<dyn Error>> {
    let [way, socket, text, passes, file] = args else {
        return Err("it is started by another one".into());
    };
    let records = records::read(Path::new(file))?;
    let begun = Instant::now();
    let filter = match way.as_str() {
        "published" => published(socket)?,
        "own JIT" => compiled_here(text)?,
        _ => interpreted(text)?,
    };
    let ready = begun.elapsed();
    let (passes, before) = (passes.parse()?, processor_time());
    let mut matches = 0;
    for _ in 0..passes {
        matches = 0;
        for batch in records.chunks(BATCH) {
            matches += filter(batch)?;
        }
    }
    let took = processor_time() - before;
    let done = (records.len() * passes) as f64 / took.as_secs_f64();
    println!("{} {done} {matches}", ready.as_secs_f64());
    Ok(())
}

impl Report {
    fn read(line: &str) -> Result<Self, Box<dyn Error>> {
        let mut words = line.split_whitespace();
        let mut next = || words.next().ok_or("a process says too little");
        Ok(Self {
            ready: Duration::from_secs_f64(next()?.parse()?),
            records: next()?.parse()?,
            matches: next()?.parse()?,
        })
    }
}

fn interpreted(text: &str) -> Result<Filter, Box<dyn Error>> {
    let expression = Expression::parse(text)?;
    Ok(Box::new(move |batch| {
        let matching = batch
            .iter()
            .filter(|record| expression.interpret(record) != 0);
        Ok(matching.count())
    }))
}

/// What each process would do by itself.
fn compiled_here(text: &str) -> Result<Filter, Box<dyn Error>> {
    let builder = JITBuilder::with_flags(&[("opt_level", "speed")], default_libcall_names())?;
    let mut module = JITModule::new(builder);
    let functions = cranelift_reader::parse_functions(&Expression::parse(text)?.to_clif())?;
    let function = functions.into_iter().next().ok_or("no function")?;
    let id = module.declare_function("matches", Linkage::Export, &function.signature)?;
    let mut context = module.make_context();
    context.func = function;
    module.define_function(id, &mut context)?;
    module.finalize_definitions()?;
    let code = module.get_finalized_function(id);
    // SAFETY: of this signature, which `Expression::to_clif` writes; it is there as long as the module, which the process keeps.
    let matches = unsafe { core::mem::transmute::<*const u8, Matches>(code) };
    Ok(Box::new(move |batch| {
        let _kept = &module;
        let matching = batch.iter().filter(|record| matches(*record) != 0);
        Ok(matching.count())
    }))
}

/// How long this process has been running on a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}
