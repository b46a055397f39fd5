//! `jitcast dis`: the code of a published function, with names in place of displacements.
//!
//! Invariant: what is shown belongs to one generation, and nothing is executed, bound or held back for it.

use std::process::ExitCode;

use iced_x86::{
    Decoder, DecoderOptions, Formatter, FormatterOutput, FormatterTextKind, GasFormatter,
    Instruction, IntelFormatter, OpKind, SymbolResolver, SymbolResult,
};
use jitcast::compiler::WorkerStatus;
use jitcast::runtime::frames::{each_name, find_extent};
use jitcast::runtime::geometry::{Area, Region};
use jitcast::runtime::observer::{Look, Observer};
use jitcast::runtime::records::{SYMBOL_FUNCTION, SYMBOL_QUARANTINED, TextRecord, trailing_text};
use jitcast::runtime::{Corrupt, SegmentOffset, index};
use serde::Serialize;

use super::Failure;
use super::args::{DisArgs, Syntax};
use super::directory::{Directory, Symbol};
use super::observe::{self, Holds, Inside};
use super::places::{Places, Target, What};

/// A function's code.
#[derive(Debug, Serialize)]
struct Listing {
    /// The unit's number.
    #[serde(skip)]
    number: u32,
    symbol: String,
    /// `null`: unknown.
    signature: Option<String>,
    unit: String,
    /// The generation that published it.
    generation: u64,
    /// The canary whose version it is.
    canary: Option<u64>,
    quarantined: bool,
    /// Where it begins: an offset in the window, bytes.
    offset: u32,
    len_bytes: u32,
    worker: Option<Worker>,
    instructions: Vec<Line>,
}

/// Whose addresses are shown.
#[derive(Debug, Serialize)]
struct Worker {
    pid: i32,
    label: String,
    base: u64,
    /// The generation that it has applied.
    applied: u64,
    /// Why its cells cannot be read.
    unreadable: Option<String>,
}

/// An instruction.
#[derive(Debug, Serialize)]
struct Line {
    /// How far into the function, bytes.
    distance: u32,
    /// Where it is in the worker.
    address: Option<u64>,
    /// Its bytes, hexadecimal.
    bytes: String,
    text: String,
    /// What it refers to.
    target: Option<Target>,
    /// What the worker has in the cell that it refers to.
    holds: Option<u64>,
    /// Where it comes from, if debugging information says so.
    source: Option<Source>,
}

/// A line of a source file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Source {
    file: String,
    line: u32,
}

/// A function that is to be shown.
struct Shown<'a> {
    extent: Region,
    unit: String,
    number: u32,
    generation: u64,
    /// If it is published.
    symbol: Option<&'a Symbol>,
}

pub(super) fn dis(args: &DisArgs) -> Result<ExitCode, Failure> {
    let observer = observe::observe(&args.segment)?;
    let worker = args.worker.map(|pid| worker(args, &observer, pid));
    let worker = worker.transpose()?;
    let mut listing = observer.look(|look| list(look, args, worker.as_ref()))?;
    add_lines(args, &observer, &mut listing);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&listing)?);
    } else {
        show(&listing);
    }
    Ok(ExitCode::SUCCESS)
}

fn worker(args: &DisArgs, observer: &Observer, pid: i32) -> Result<WorkerStatus, Failure> {
    let status = observe::status(&args.segment, observer)?;
    let mut workers = status.workers.into_iter();
    workers.find(|worker| worker.pid == pid).ok_or_else(|| {
        let help =
            "`jitcast status` shows the workers and their pids, as the compiler process has them";
        Failure(format!(
            "process {pid} is no worker of this segment\n  help: {help}"
        ))
    })
}

fn list(
    look: &Look<'_>,
    args: &DisArgs,
    worker: Option<&WorkerStatus>,
) -> Result<Listing, Failure> {
    let directory = Directory::read(look)?;
    let places = Places::new(look, &directory);
    let shown = match &args.unit {
        Some(unit) => function_of(look, unit, &args.symbol)?,
        None => published(look, args, &directory, &places, worker)?,
    };
    let inside = worker.map(|worker| Inside::open(worker, look.observer()));
    let (inside, unreadable) = match inside.transpose() {
        Ok(inside) => (inside, None),
        Err(why) => (None, Some(why)),
    };
    Ok(Listing {
        number: shown.number,
        symbol: args.symbol.clone(),
        signature: shown.symbol.and_then(|symbol| symbol.signature.clone()),
        unit: shown.unit,
        generation: shown.generation,
        canary: shown.symbol.and_then(|symbol| symbol.canary),
        quarantined: shown
            .symbol
            .is_some_and(|symbol| symbol.record.flags & SYMBOL_QUARANTINED != 0),
        offset: shown.extent.start,
        len_bytes: shown.extent.len_bytes,
        worker: worker.map(|worker| Worker {
            pid: worker.pid,
            label: worker.label.clone(),
            base: worker.base,
            applied: worker.applied,
            unreadable,
        }),
        instructions: decode(
            look,
            &places,
            shown.extent,
            args.syntax,
            worker,
            inside.as_ref(),
        )?,
    })
}

/// The published function that is meant.
fn published<'a>(
    look: &Look<'_>,
    args: &DisArgs,
    directory: &'a Directory,
    places: &Places<'_>,
    worker: Option<&WorkerStatus>,
) -> Result<Shown<'a>, Failure> {
    let canaries = worker.map_or(&[][..], |worker| &worker.canaries);
    let hash = Directory::hash(look, &args.symbol);
    let meant = directory.meant(hash, canaries);
    // One that only a canary has is shown too, unless it is asked what a worker runs.
    let any = || directory.versions(&args.symbol).first().copied();
    let meant = meant.or_else(|| any().filter(|_| worker.is_none()));
    let symbol = meant
        .filter(|symbol| symbol.name == args.symbol)
        .ok_or_else(|| {
            let help = format!(
                "`jitcast why {}` says why; --unit shows static functions, and those of units that workers asked for",
                args.symbol
            );
            Failure(format!(
                "`{}` is not published\n  help: {help}",
                args.symbol
            ))
        })?;
    if symbol.record.kind != SYMBOL_FUNCTION {
        let help = "`jitcast status` shows what each symbol is";
        return Err(Failure(format!(
            "`{}` is no function\n  help: {help}",
            symbol.name
        )));
    }
    let (extent, unit) = extent(look, places, symbol)?;
    Ok(Shown {
        extent,
        unit,
        number: symbol.record.unit,
        generation: places.unit(symbol).1,
        symbol: Some(symbol),
    })
}

/// The function `symbol` of the unit that is called so, by its name or its number.
fn function_of(look: &Look<'_>, unit: &str, symbol: &str) -> Result<Shown<'static>, Failure> {
    let view = look.view();
    let number = unit.parse().ok();
    let mut newest: Option<(TextRecord, String)> = None;
    index::walk(view, look.root.texts, 0, &mut |at| {
        let record: TextRecord = view.read(at)?;
        let name = trailing_text::<TextRecord>(view, at, 0, record.name_len)?;
        let is_newer = newest
            .as_ref()
            .is_none_or(|(known, _)| record.unit > known.unit);
        if number == Some(record.unit) || name == unit && is_newer {
            newest = Some((record, name));
        }
        Ok::<_, Corrupt>(())
    })?;
    let (record, name) = newest.ok_or_else(|| {
        let help = "`jitcast status` shows the units, those that workers asked for too";
        Failure(format!("there is no unit `{unit}`\n  help: {help}"))
    })?;
    let mut extent = None;
    if let Some(names) = record.names.region() {
        each_name(view, names, record.unit, |start, len_bytes, name| {
            if name == symbol {
                extent = Region::new(start.get(), len_bytes);
            }
        })?;
    }
    let extent = extent.ok_or_else(|| {
        let help = "names are as the object has them: C++ names are mangled, and what was inlined is in its callers";
        Failure(format!("the unit `{name}` has no function `{symbol}`\n  help: {help}"))
    })?;
    Ok(Shown {
        extent,
        unit: name,
        number: record.unit,
        generation: record.generation,
        symbol: None,
    })
}

/// Adds where instructions come from, as far as the compiler process is there and knows.
fn add_lines(args: &DisArgs, observer: &Observer, listing: &mut Listing) {
    let Some(lines) = observe::lines(&args.segment, observer, listing.number) else {
        return;
    };
    for line in &mut listing.instructions {
        let found = lines.find(listing.offset + line.distance);
        line.source = found.map(|(file, line)| Source {
            file: file.to_owned(),
            line,
        });
    }
}

/// Where the code of a function is, and its unit's name. What nobody says the length of goes on to the end of the unit's text.
fn extent(
    look: &Look<'_>,
    places: &Places<'_>,
    symbol: &Symbol,
) -> Result<(Region, String), Failure> {
    let start = symbol.record.place;
    let (text, unit) = places.text(start)?.ok_or_else(|| {
        let help = "report this with the files that were published";
        let name = &symbol.name;
        Failure(format!("no text of `{name}` is at {start}\n  help: {help}"))
    })?;
    let left = text.text.start + text.text.len_bytes - start.get();
    let names = text.names.region();
    let named = names.map(|names| find_extent(look.view(), names, text.unit, start));
    let named = named.transpose()?.flatten();
    let named = named.filter(|extent| extent.start == start.get());
    let stated = u32::try_from(symbol.record.size).unwrap_or(u32::MAX);
    let len_bytes = match (stated, named) {
        (0, Some(named)) => named.len_bytes,
        (0, None) => left,
        (stated, _) => stated,
    };
    let len_bytes = len_bytes.min(left);
    let start = start.get();
    Ok((Region { start, len_bytes }, unit))
}

fn decode(
    look: &Look<'_>,
    places: &Places<'_>,
    extent: Region,
    syntax: Syntax,
    worker: Option<&WorkerStatus>,
    inside: Option<&Inside>,
) -> Result<Vec<Line>, Failure> {
    let bytes = look.bytes(Area::Text, extent)?;
    let mut decoder = Decoder::with_ip(64, &bytes, extent.start.into(), DecoderOptions::NONE);
    let (mut lines, mut instruction) = (Vec::new(), Instruction::default());
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let target = match reference(&instruction) {
            Some(place) => places.at(place)?,
            None => None,
        };
        let distance = instruction.ip32() - extent.start;
        let len = instruction.len();
        let encoded = &bytes[distance as usize..distance as usize + len];
        let is_cell = |target: &Target| matches!(target.what, What::CallCell | What::AddressCell);
        let holds = target.as_ref().filter(|target| is_cell(target));
        let holds = holds.and_then(|cell| {
            let cell = SegmentOffset::new(cell.offset);
            let base = worker?.base;
            Some(match inside?.holds(cell)? {
                Holds::Place(place) => base.wrapping_add(place.get().into()),
                Holds::Between(address) | Holds::Address(address) => address,
            })
        });
        lines.push(Line {
            distance,
            address: worker.map(|worker| worker.base.wrapping_add(instruction.ip())),
            bytes: encoded.iter().map(|byte| format!("{byte:02x}")).collect(),
            text: text(&instruction, target.as_ref(), syntax, worker),
            target,
            holds,
            source: None,
        });
    }
    Ok(lines)
}

/// The place that an instruction refers to, by its distance from there.
fn reference(instruction: &Instruction) -> Option<SegmentOffset> {
    let is_branch = matches!(instruction.op0_kind(), OpKind::NearBranch64);
    let address = if is_branch {
        instruction.near_branch_target()
    } else if instruction.is_ip_rel_memory_operand() {
        instruction.ip_rel_memory_address()
    } else {
        return None;
    };
    u32::try_from(address).ok().map(SegmentOffset::new)
}

/// Calls what an instruction refers to by its name.
struct Resolver(Option<(u64, u64, String)>);

impl SymbolResolver for Resolver {
    fn symbol(
        &mut self,
        _: &Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let (referred, start, label) = self.0.as_ref()?;
        (address == *referred).then(|| SymbolResult::with_str(*start, label))
    }
}

/// Text without colours.
#[derive(Default)]
struct Plain(String);

impl FormatterOutput for Plain {
    fn write(&mut self, text: &str, _: FormatterTextKind) {
        self.0.push_str(text);
    }
}

fn text(
    instruction: &Instruction,
    target: Option<&Target>,
    syntax: Syntax,
    worker: Option<&WorkerStatus>,
) -> String {
    let named = target.map(|target| {
        let start = target.offset - target.distance;
        (target.offset.into(), start.into(), target.label())
    });
    let resolver: Option<Box<dyn SymbolResolver>> = Some(Box::new(Resolver(named)));
    // What has no name is shown where it is in the worker.
    let mut shown = *instruction;
    if let (None, Some(worker), Some(place)) = (target, worker, reference(instruction)) {
        let address = worker.base.wrapping_add(place.get().into());
        shown.set_ip(worker.base.wrapping_add(instruction.ip()));
        if instruction.is_ip_rel_memory_operand() {
            shown.set_memory_displacement64(address);
        } else {
            shown.set_near_branch64(address);
        }
    }
    let mut output = Plain::default();
    match syntax {
        Syntax::Intel => {
            let mut formatter = IntelFormatter::with_options(resolver, None);
            options(formatter.options_mut());
            formatter.format(&shown, &mut output);
        }
        Syntax::Att => {
            let mut formatter = GasFormatter::with_options(resolver, None);
            options(formatter.options_mut());
            formatter.format(&shown, &mut output);
        }
    }
    output.0
}

fn options(options: &mut iced_x86::FormatterOptions) {
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(true);
    options.set_show_branch_size(false);
    options.set_space_after_operand_separator(true);
    options.set_rip_relative_addresses(true);
}

fn show(listing: &Listing) {
    let signature = listing.signature.as_deref();
    let signature = signature.unwrap_or(", of an unknown signature");
    let canary = listing.canary.map(|id| format!(", canary {id}"));
    let quarantined = if listing.quarantined {
        ", quarantined"
    } else {
        ""
    };
    println!(
        "{}{signature}: unit {}, generation {}{}{quarantined}, w+{:#x}, {} bytes",
        listing.symbol,
        listing.unit,
        listing.generation,
        canary.unwrap_or_default(),
        listing.offset,
        listing.len_bytes,
    );
    if let Some(worker) = &listing.worker {
        println!(
            "worker {}: base {:#x}, generation {} applied",
            worker.pid, worker.base, worker.applied
        );
        if let Some(why) = &worker.unreadable {
            println!("its cells cannot be read: {why}");
        }
    }
    let column = |len: fn(&Line) -> usize| listing.instructions.iter().map(len).max();
    let bytes = column(|line| line.bytes.len()).unwrap_or(0);
    let text = column(|line| line.text.chars().count()).unwrap_or(0);
    let mut source = None;
    for line in &listing.instructions {
        if line.source != source {
            source = line.source.clone();
            if let Some(Source { file, line }) = &source {
                println!("{file}:{line}");
            }
        }
        let address = line.address.map(|address| format!("{address:#x}  "));
        let row = format!(
            "  {}{:<6}  {:bytes$}  {:text$}",
            address.unwrap_or_default(),
            format!("+{:#x}", line.distance),
            line.bytes,
            line.text,
        );
        match comment(line, listing) {
            Some(comment) => println!("{row}  ; {comment}"),
            None => println!("{}", row.trim_end()),
        }
    }
}

/// What the name of an operand does not say.
fn comment(line: &Line, listing: &Listing) -> Option<String> {
    let target = line.target.as_ref()?;
    let is_own = target.what == What::Code && target.name.as_ref() == Some(&listing.symbol);
    if is_own && target.unit.as_ref() == Some(&listing.unit) {
        return None;
    }
    let holds = line.holds.map(|address| format!(", holds {address:#x}"));
    Some(format!(
        "{}{}",
        target.described(),
        holds.unwrap_or_default()
    ))
}
