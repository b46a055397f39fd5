//! What the benches share: a serving compiler, and units to publish.

#![allow(
    dead_code,
    reason = "each bench is a crate of its own and uses some of the helpers"
)]

pub(crate) mod linking;

use std::path::Path;
use std::sync::Arc;

use jitcast::compiler::front::{self, compile_bytes};
use jitcast::compiler::{
    Compiler, CompilerOptions, Policy, Reclaim, Server, Stop, UnitFile, UnitSource,
};
use jitcast::linker::Dialect;
use jitcast::worker::{Endpoint, Worker, WorkerOptions};
use object::write::{Object, Relocation, StandardSection, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope, elf,
};

/// A compiler with its server in a thread of this process.
pub(crate) struct Serving {
    pub(crate) compiler: Arc<Compiler>,
    pub(crate) socket: String,
    stop: Stop,
}

impl Serving {
    pub(crate) fn start() -> Self {
        Self::with(&CompilerOptions::default())
    }

    pub(crate) fn with(options: &CompilerOptions) -> Self {
        let random = u64::from_le_bytes(jitcast::runtime::sys::random().unwrap());
        let socket = format!("@jitcast-bench-{random:016x}");
        let compiler = Arc::new(Compiler::create(options).unwrap());
        let options = front::Options::default();
        let server = Server::bind(&socket, Policy::default(), options).unwrap();
        let stop = server.stopper().unwrap();
        let shared = Arc::clone(&compiler);
        std::thread::spawn(move || server.run(shared).unwrap());
        Self {
            compiler,
            socket,
            stop,
        }
    }

    pub(crate) fn publish(&self, unit: &UnitSource) {
        let published = self.compiler.publish(std::slice::from_ref(unit));
        published.unwrap_or_else(|error| panic!("{error}"));
    }

    pub(crate) fn attach(&self) -> Worker {
        attach(&self.socket)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

pub(crate) fn attach(socket: &str) -> Worker {
    let endpoint = Endpoint::Path(Path::new(socket));
    Worker::attach(endpoint, WorkerOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// A unit of CLIF.
pub(crate) fn clif(unit: &str, text: &str) -> UnitSource {
    let name = format!("{unit}.clif");
    let compiled = compile_bytes(&name, text.into(), &front::Options::default())
        .unwrap_or_else(|error| panic!("{error}"));
    UnitSource {
        name: unit.to_owned(),
        files: vec![UnitFile {
            name,
            bytes: compiled.bytes,
            dialect: compiled.dialect,
        }],
        signatures: compiled.signatures,
        uncallable: Vec::new(),
        imports: compiled.imports,
        link: jitcast::compiler::LinkOptions::default(),
        reclaim: Reclaim::Auto,
    }
}

/// CLIF of a function `name` that adds `bonus` to its argument.
pub(crate) fn adds(name: &str, bonus: i64) -> String {
    format!(
        "function %{name}(i64) -> i64 {{\nblock0(v0: i64):\n    v1 = iconst.i64 {bonus}\n    \
         v2 = iadd v0, v1\n    return v2\n}}\n"
    )
}

/// CLIF of function `number` of `count`, with two loops, calls and some arithmetic.
pub(crate) fn mixes(number: usize, count: usize) -> String {
    let other = (number + 1) % count;
    format!(
        "function %mix_{number}(i64, i64) -> i64 {{
    fn0 = %mix_{other}(i64, i64) -> i64
block0(v0: i64, v1: i64):
    v2 = iconst.i64 {number}
    v3 = iadd v0, v2
    brif v1, block1(v3, v1), block3(v3)
block1(v4: i64, v5: i64):
    v6 = imul v4, v5
    v7 = iconst.i64 7
    v8 = rotl v6, v7
    v9 = bxor v8, v2
    v10 = iconst.i64 -1
    v11 = iadd v5, v10
    brif v11, block1(v9, v11), block2(v9)
block2(v12: i64):
    v13 = ushr v12, v7
    v14 = band v13, v2
    v15 = call fn0(v13, v14)
    v16 = iadd v15, v12
    jump block3(v16)
block3(v17: i64):
    v18 = iconst.i64 0
    v19 = icmp slt v17, v18
    v20 = ineg v17
    v21 = select v19, v20, v17
    return v21
}}
"
    )
}

/// A unit of one object.
pub(crate) fn object_unit(unit: &str, bytes: Vec<u8>) -> UnitSource {
    UnitSource {
        name: unit.to_owned(),
        files: vec![UnitFile {
            name: format!("{unit}.o"),
            bytes,
            dialect: Dialect::Elf,
        }],
        signatures: Vec::new(),
        uncallable: Vec::new(),
        imports: Vec::new(),
        link: jitcast::compiler::LinkOptions::default(),
        reclaim: Reclaim::Auto,
    }
}

/// How many relocations each function of [`generated_object`] has.
pub(crate) const RELOCATIONS_PER_FUNCTION: usize = 8;

/// An object of `functions` global functions. Each calls four others of them and, through the GOT, two of a
/// hundred host functions, and takes the address of two data.
pub(crate) fn generated_object(functions: usize) -> Vec<u8> {
    generated(functions, "function", false)
}

/// [`generated_object`] with a section for each function, as `-ffunction-sections` makes them.
pub(crate) fn generated_sections(functions: usize) -> Vec<u8> {
    generated(functions, "function", true)
}

/// Objects of one function each, which call functions of the host only.
pub(crate) fn generated_objects(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|number| generated(1, &format!("object_{number}"), false))
        .collect()
}

fn generated(functions: usize, name: &str, sections: bool) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let text = object.section_id(StandardSection::Text);
    let data = object.section_id(StandardSection::ReadOnlyData);
    let mut add = |name: String, kind| object.add_symbol(symbol(name, kind));
    let own: Vec<_> = (0..functions)
        .map(|number| add(format!("{name}_{number}"), SymbolKind::Text))
        .collect();
    let host: Vec<_> = (0..100)
        .map(|number| add(format!("host_{number}"), SymbolKind::Unknown))
        .collect();
    let datum = add(format!("{name}_datum"), SymbolKind::Data);
    object.add_symbol_data(datum, data, &[7; 64], 16);
    let near = |step: usize, number: usize| own[(number * 7 + step * 13) % own.len()];
    for (number, function) in own.iter().enumerate() {
        let mut code = Code::default();
        for step in 0..4 {
            code.refer(&[0xe8], elf::R_X86_64_PLT32, near(step, number));
        }
        for step in 0..2 {
            let callee = host[(number + step) % host.len()];
            code.refer(&[0xff, 0x15], elf::R_X86_64_GOTPCRELX, callee);
        }
        for _ in 0..2 {
            code.refer(&[0x48, 0x8d, 0x05], elf::R_X86_64_PC32, datum);
        }
        code.bytes.push(0xc3);
        let section = if sections {
            let own = format!(".text.{name}_{number}").into_bytes();
            object.add_section(Vec::new(), own, SectionKind::Text)
        } else {
            text
        };
        let start = object.add_symbol_data(*function, section, &code.bytes, 16);
        for mut relocation in code.relocations {
            relocation.offset += start;
            object.add_relocation(section, relocation).unwrap();
        }
    }
    object.write().unwrap()
}

#[derive(Default)]
struct Code {
    bytes: Vec<u8>,
    relocations: Vec<Relocation>,
}

impl Code {
    /// An instruction that ends in a PC-relative field.
    fn refer(&mut self, opcode: &[u8], r_type: u32, symbol: SymbolId) {
        self.bytes.extend(opcode);
        self.relocations.push(Relocation {
            offset: self.bytes.len() as u64,
            symbol,
            addend: -4,
            flags: RelocationFlags::Elf { r_type },
        });
        self.bytes.extend([0; 4]);
    }
}

fn symbol(name: String, kind: SymbolKind) -> Symbol {
    Symbol {
        name: name.into_bytes(),
        value: 0,
        size: 0,
        kind,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Undefined,
        flags: SymbolFlags::None,
    }
}
