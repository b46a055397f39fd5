//! Requests from workers: CLIF that is compiled for those that ask, each text once.
//!
//! A right of its own. What comes of a request is a unit that is named by the hash of what was asked for, publishes nothing, and
//! is bound by those workers alone; so who may ask may not publish. The text is compiled in a child process ([`child`]), within
//! limits; what that gives back is linked like any publisher's object. Invariant: nobody who asks can make the serving thread wait, or a
//! publisher longer than it takes to link one text, or take more than [`RequestLimits`] says.

mod child;
mod codegen;
mod holds;
mod queue;
mod spawn;

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use jitcast_linker::Dialect;
use sha2::{Digest, Sha256};

use crate::compiler::Compiler;
use crate::error::PublishError;
use crate::fault::{Fault, seeded};
use crate::front::{self, Cpu, compile_bytes};
use crate::publish::{self, Reclaim, Retaining, UnitFile, UnitSource};
use crate::state::State;
use crate::threads::Threads;

pub use codegen::codegen;
pub(crate) use holds::Holds;
use queue::Outcome;
pub(crate) use queue::{Asks, Incoming};

use codegen::{CodegenRequest, Generated};

/// What requests are carried out by, and within which limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestOptions {
    /// The command that compiles, in a child process: the path of an executable that calls [`codegen()`], and its arguments, as `jitcast
    /// codegen` is. `None`: requests are refused.
    pub command: Option<Vec<OsString>>,
    /// What workers may ask for.
    pub limits: RequestLimits,
}

/// What workers may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// The longest text, bytes.
    pub text_bytes: u32,
    /// The longest object that may come of one, bytes.
    pub object_bytes: u64,
    /// How many texts wait to be compiled; one more is told "busy".
    pub queue: usize,
    /// How many are compiled at once.
    pub children: usize,
    /// How many requests of one worker are under way; one more is told "busy".
    pub in_flight_per_worker: usize,
    /// How many units one worker has.
    pub units_per_worker: usize,
    /// What these take, bytes.
    pub unit_bytes_per_worker: u64,
    /// What the units of all workers take together, bytes: the rest of the segment is the publishers'.
    pub unit_bytes_total: u64,
    /// Processor time of one child, whole seconds.
    pub cpu: Duration,
    /// How long one may run.
    pub time: Duration,
    /// Address space of one child, bytes.
    pub memory_bytes: u64,
    /// How long a restarted compiler process waits for the workers that have units which its journal brought back.
    pub linger: Duration,
}

impl Default for RequestLimits {
    /// 256 KiB of text, two children of 10 s and 1 GiB each, 64 texts that wait, 8 requests, 1024 units and 16 MiB for each worker, 64
    /// MiB for all.
    fn default() -> Self {
        Self {
            text_bytes: 256 << 10,
            object_bytes: 16 << 20,
            queue: 64,
            children: 2,
            in_flight_per_worker: 8,
            units_per_worker: 1024,
            unit_bytes_per_worker: 16 << 20,
            unit_bytes_total: 64 << 20,
            cpu: Duration::from_secs(10),
            time: Duration::from_secs(30),
            memory_bytes: 1 << 30,
            linger: Duration::from_secs(60),
        }
    }
}

/// A unit that is there for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) unit: u32,
    pub(crate) generation: u64,
}

/// What a unit is called that `text` was compiled to for `cpu`: equal requests have equal names.
pub(crate) fn unit_name(text: &[u8], cpu: Cpu) -> String {
    let mut hash = Sha256::new();
    hash.update(match cpu {
        Cpu::Host => b"host\0".as_slice(),
        Cpu::Baseline => b"baseline\0",
    });
    hash.update(text);
    let digits = hash.finalize();
    let digits = digits.iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", digits.collect::<String>())
}

/// How requests are carried out.
pub(crate) struct How<'a> {
    options: &'a RequestOptions,
    cpu: Cpu,
    /// Hangs up when the server ends.
    ended: &'a UnixStream,
}

/// Carries a request out, in a thread of its own: the unit, held for this very answer ([`Holds::answer_given`]).
pub(crate) fn carry_out(
    compiler: &Compiler,
    how: &How<'_>,
    name: &str,
    text: Vec<u8>,
) -> Result<Granted, Outcome> {
    if let Some(granted) = compiler.find_asked(name) {
        return Ok(granted);
    }
    compiler
        .check_total(&how.options.limits)
        .map_err(|error| Outcome::Busy(error.to_string()))?;
    let request = CodegenRequest {
        baseline: how.cpu == Cpu::Baseline,
        text,
    };
    compiler.holds.lock().compiled += 1;
    let generated = if seeded(Fault::RequestCompiledInProcess) {
        codegen::generate(request)
    } else {
        child::run(how, &request)
    };
    let source = generated.and_then(|generated| unit_source(name, generated));
    let source = source.map_err(Outcome::Refused)?;
    let asked = compiler.ask(&source);
    asked.map_err(|error| Outcome::Refused(error.to_string()))
}

/// The unit of what a child made, which may be anything.
fn unit_source(name: &str, generated: Generated) -> Result<UnitSource, String> {
    let Generated {
        object,
        signatures,
        uncallable,
        imports,
    } = generated;
    let parse = |(name, text): (String, String)| {
        let signature = text.parse().map_err(|error| format!("{error}"))?;
        Ok::<_, String>((name, signature))
    };
    Ok(UnitSource {
        name: name.to_owned(),
        files: vec![UnitFile {
            name: REQUEST_FILE.to_owned(),
            bytes: object,
            dialect: Dialect::Cranelift,
        }],
        signatures: signatures
            .into_iter()
            .map(parse)
            .collect::<Result<_, _>>()?,
        uncallable,
        imports: imports.into_iter().map(parse).collect::<Result<_, _>>()?,
        reclaim: Reclaim::Yes,
        link: publish::LinkOptions::default(),
    })
}

/// What messages call the text.
const REQUEST_FILE: &str = "request.clif";

/// Compiles a request's text in this process.
fn compile(request: CodegenRequest) -> Result<Generated, String> {
    let options = front::Options {
        cpu: if request.baseline {
            Cpu::Baseline
        } else {
            Cpu::Host
        },
        // The child has its limits, and what it takes is counted against who asked.
        threads: Threads::new(1),
        ..front::Options::default()
    };
    let compiled = compile_bytes(REQUEST_FILE, request.text, &options);
    let compiled = compiled.map_err(|error| error.to_string())?;
    let text = |(name, signature): (String, jitcast_runtime::signature::Signature)| {
        (name, signature.to_string())
    };
    Ok(Generated {
        object: compiled.bytes,
        signatures: compiled.signatures.into_iter().map(text).collect(),
        uncallable: compiled.unlisted,
        imports: compiled.imports.into_iter().map(text).collect(),
    })
}

impl Compiler {
    /// The unit that was asked for as `name`, if it is there: held for an answer.
    fn find_asked(&self, name: &str) -> Option<Granted> {
        self.grant(&self.state.lock(), name)
    }

    /// Refuses to make more units while there are as many as may be. One that is made now may exceed that.
    fn check_total(&self, limits: &RequestLimits) -> Result<(), PublishError> {
        let state = self.state.lock();
        let units = state.catalog.asked.values();
        let bytes = units.map(|unit| unit.len_bytes).sum();
        let limit = limits.unit_bytes_total;
        if bytes < limit {
            return Ok(());
        }
        Err(PublishError::AskedFull { bytes, limit })
    }

    fn grant(&self, state: &State, name: &str) -> Option<Granted> {
        let unit = state.catalog.asked_for(name)?;
        self.holds.lock().answer_due(unit);
        Some(Granted {
            unit: unit.number,
            generation: unit.generation,
        })
    }

    /// Links a unit that was asked for, unless an equal one is there by now: held for an answer.
    fn ask(&self, source: &UnitSource) -> Result<Granted, PublishError> {
        let inputs = source.inputs();
        let prepared = publish::read_asked(&source.name, &inputs)?;
        let mut state = self.state.lock();
        if let Some(granted) = self.grant(&state, &source.name) {
            return Ok(granted);
        }
        self.check_held(&mut state)?;
        let result = self.with_room(&mut state, |state| {
            self.commit(state, &Retaining::nothing(), |site, txn, edit| {
                publish::write_asked(&site, txn, edit, source, &prepared)
            })
        });
        self.tidy(&mut state);
        result?;
        // What was just committed is what it is called.
        let granted = self.grant(&state, &source.name);
        granted.ok_or(PublishError::NumbersUsedUp)
    }

    /// Removes the asked-for units that nobody has any more: how many.
    ///
    /// # Errors
    /// [`PublishError`].
    pub(crate) fn remove_unheld(&self) -> Result<usize, PublishError> {
        let mut state = self.state.lock();
        let unheld = {
            let mut holds = self.holds.lock();
            // Others were taken away by publications.
            holds.keep_only(&state.catalog.asked);
            holds.unheld(&state.catalog.asked, Instant::now())
        };
        if unheld.is_empty() {
            return Ok(0);
        }
        let result = self.with_room(&mut state, |state| {
            self.commit(state, &Retaining::nothing(), |site, txn, edit| {
                Ok(publish::remove_asked(site.catalog, txn, edit, &unheld))
            })
        });
        self.tidy(&mut state);
        result?;
        Ok(unheld.len())
    }
}
