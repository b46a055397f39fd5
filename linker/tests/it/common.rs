//! A worker made of a vector: links units, places them in a window of bytes at any base, binds, patches, and
//! reads back what an instruction or a field means there.

use std::collections::HashMap;
use std::process::Command;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use jitcast_linker::{
    Area, Binding, Dialect, Input, LinkError, Linked, Options, Place, Placement, Prepared,
    SymbolKind,
};
use jitcast_runtime::{ImportId, PatchKind, PatchTarget, SegmentOffset};

/// Runs the system's compiler on `source`, and returns the object.
pub(crate) fn compile(language: &str, source: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("out.o");
    let suffix = match language {
        "assembler" => "in.s",
        "c++" => "in.cc",
        _ => "in.c",
    };
    let input = directory.path().join(suffix);
    std::fs::write(&input, source).unwrap();
    let compiler = if language == "c++" { "c++" } else { "cc" };
    run(Command::new(compiler)
        .args(flags)
        .arg("-c")
        .arg(&input)
        .arg("-o")
        .arg(&object));
    std::fs::read(object).unwrap()
}

/// Assembles `source`, with the newer kinds of GOT relocation.
pub(crate) fn assemble(source: &str) -> Vec<u8> {
    compile("assembler", source, &["-Wa,-mrelax-relocations=yes"])
}

/// Assembles `source` with plain `R_X86_64_GOTPCREL` only.
pub(crate) fn assemble_plain(source: &str) -> Vec<u8> {
    compile("assembler", source, &["-Wa,-mrelax-relocations=no"])
}

/// Makes an archive with `ar`.
pub(crate) fn archive(flags: &str, members: &[(&str, &[u8])]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("ar");
    command
        .current_dir(directory.path())
        .arg(flags)
        .arg("out.a");
    for (name, bytes) in members {
        std::fs::write(directory.path().join(name), bytes).unwrap();
        command.arg(name);
    }
    run(&mut command);
    std::fs::read(directory.path().join("out.a")).unwrap()
}

/// Renames symbols, to names that assemblers do not take.
pub(crate) fn rename(object: &[u8], names: &[(String, String)]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.o");
    std::fs::write(&file, object).unwrap();
    let mut command = Command::new("objcopy");
    for (from, to) in names {
        command.arg("--redefine-sym").arg(format!("{from}={to}"));
    }
    run(command.arg(&file));
    std::fs::read(&file).unwrap()
}

/// Runs a tool that has to succeed.
pub(crate) fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn inputs<'a>(files: &'a [(&'a str, &'a [u8])]) -> Vec<Input<'a>> {
    files
        .iter()
        .map(|&(name, bytes)| Input {
            name,
            bytes,
            dialect: Dialect::Elf,
        })
        .collect()
}

/// Reads files as one unit.
pub(crate) fn prepare<'a>(files: &'a [(&'a str, &'a [u8])]) -> Result<Prepared<'a>, LinkError> {
    Prepared::read("unit", &inputs(files), &Options::default())
}

/// The message with which a single object is refused.
pub(crate) fn refusal(object: &[u8]) -> String {
    refusal_of(&[("x.o", object)])
}

/// The message with which a unit is refused, at whichever pass.
pub(crate) fn refusal_of(files: &[(&str, &[u8])]) -> String {
    let failed = match prepare(files) {
        Err(error) => error,
        Ok(prepared) => World::try_new(&prepared, Map::default())
            .err()
            .expect("the unit links"),
    };
    failed.to_string()
}

/// Where everything goes: the base, and the offsets of the slots, stubs and areas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    pub(crate) base: u64,
    pub(crate) slots: u32,
    pub(crate) private: u32,
    pub(crate) stubs: u32,
    pub(crate) text: u32,
    pub(crate) read_only: u32,
    pub(crate) shared: u32,
    pub(crate) len_bytes: u32,
}

impl Default for Map {
    fn default() -> Self {
        Self {
            base: 0x7f12_3456_7000,
            slots: 0x1000,
            private: 0x1_0000,
            stubs: 0x4_0000,
            text: 0x5_0000,
            read_only: 0xa_0000,
            shared: 0xf_0000,
            len_bytes: 0x10_0000,
        }
    }
}

/// The number of the unit.
pub(crate) const UNIT_NUMBER: u64 = 77;

/// Host symbol number `index` lies here: outside every window.
pub(crate) fn host_address(index: usize) -> u64 {
    0x5555_0000_0000 + index as u64 * 0x1_0000
}

/// One unit in one worker.
pub(crate) struct World {
    pub(crate) map: Map,
    pub(crate) linked: Linked,
    memory: Vec<u8>,
    /// Addresses of the unit's definitions (what they are, not their stubs).
    pub(crate) symbols: HashMap<String, u64>,
    /// Addresses of the host's symbols.
    pub(crate) hosts: HashMap<String, u64>,
    pub(crate) stubs: HashMap<String, u64>,
    pub(crate) call_cells: HashMap<String, u64>,
    pub(crate) address_cells: HashMap<String, u64>,
}

/// What an instruction does, as far as symbols go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Control goes to an address.
    Goes(u64),
    /// Control goes to what a cell at an address holds.
    GoesThrough(u64),
    /// A register gets a value.
    Sets(Register, u64),
    /// Memory at an address is read or written.
    Touches(u64),
}

impl World {
    pub(crate) fn new(prepared: &Prepared<'_>) -> Self {
        Self::try_new(prepared, Map::default()).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn try_new(prepared: &Prepared<'_>, map: Map) -> Result<Self, LinkError> {
        let at = Placement {
            text: SegmentOffset::new(map.text),
            read_only: SegmentOffset::new(map.read_only),
            private: SegmentOffset::new(map.private),
            shared: SegmentOffset::new(map.shared),
            number: UNIT_NUMBER,
        };
        let bindings = Self::bindings(prepared, map);
        let linked = prepared.link(&at, &bindings)?;
        let mut world = Self {
            map,
            memory: vec![0; map.len_bytes as usize],
            linked,
            symbols: HashMap::new(),
            hosts: HashMap::new(),
            stubs: HashMap::new(),
            call_cells: HashMap::new(),
            address_cells: HashMap::new(),
        };
        world.place(prepared);
        world.bind(prepared, &bindings);
        world.patch();
        Ok(world)
    }

    /// A cell and a stub of its own for each reference.
    pub(crate) fn bindings(prepared: &Prepared<'_>, map: Map) -> Vec<Binding> {
        (0..prepared.references().len())
            .map(|index| binding(prepared, map, index))
            .collect()
    }

    fn place(&mut self, prepared: &Prepared<'_>) {
        let areas = [
            (self.map.text, self.linked.text.clone()),
            (self.map.read_only, self.linked.read_only.clone()),
            (self.map.private, self.linked.template.clone()),
            (self.map.shared, self.linked.shared.clone()),
        ];
        for (start, bytes) in areas {
            self.memory[start as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        let extents = prepared.extents();
        assert_eq!(self.linked.text.len() as u64, extents.text.len_bytes);
        assert_eq!(
            self.linked.read_only.len() as u64,
            extents.read_only.len_bytes
        );
        assert!(self.linked.template.len() as u64 <= extents.private.len_bytes);
        assert!(self.linked.shared.len() as u64 <= extents.shared.len_bytes);
        for symbol in &self.linked.symbols {
            let address = match symbol.place {
                Place::At(_, offset) => self.map.base + u64::from(offset.get()),
                Place::Absolute(value) => value,
                Place::ThreadLocal { offset, .. } => offset,
            };
            self.symbols.insert(
                prepared.definitions()[symbol.definition].name.into(),
                address,
            );
        }
    }

    fn bind(&mut self, prepared: &Prepared<'_>, bindings: &[Binding]) {
        let address =
            |offset: Option<SegmentOffset>| self.map.base + u64::from(offset.unwrap().get());
        for (index, (reference, binding)) in prepared.references().iter().zip(bindings).enumerate()
        {
            let name = reference.name.to_owned();
            let (call_cell, address_cell, stub) = (
                address(binding.call_cell),
                address(binding.address_cell),
                address(binding.stub),
            );
            let (callee, taken) = match reference.own {
                None => (host_address(index), host_address(index)),
                Some(definition) => {
                    let place = self.symbols[&name];
                    let function = prepared.definitions()[definition].kind == SymbolKind::Function;
                    (place, if function { stub } else { place })
                }
            };
            if reference.own.is_none() {
                self.hosts.insert(name.clone(), host_address(index));
            }
            for (cell, value, asked) in [
                (call_cell, callee, reference.call_cell || reference.stub),
                (address_cell, taken, reference.address_cell),
            ] {
                // What nobody asked for is not there.
                let value = if asked { value } else { 0xdead_dead_dead_dead };
                let at = (cell - self.map.base) as usize;
                self.memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            if reference.stub {
                let at = (stub - self.map.base) as usize;
                let displacement = (call_cell.wrapping_sub(stub + 6)) as u32;
                self.memory[at..at + 2].copy_from_slice(&[0xff, 0x25]);
                self.memory[at + 2..at + 6].copy_from_slice(&displacement.to_le_bytes());
                self.stubs.insert(name.clone(), stub);
            }
            self.call_cells.insert(name.clone(), call_cell);
            self.address_cells.insert(name, address_cell);
        }
    }

    fn patch(&mut self) {
        for patch in self.linked.patches.clone() {
            let target = match patch.target().unwrap() {
                PatchTarget::Window(offset) => self.map.base + u64::from(offset.get()),
                PatchTarget::Host(import) => host_address(import.get() as usize),
            };
            let site = patch.site.get();
            let private = self.map.private..self.map.private + self.linked.template.len() as u32;
            assert!(
                private.contains(&site) && private.contains(&(site + 7)),
                "a patch outside private data"
            );
            let value = match patch.kind().unwrap() {
                PatchKind::Address => target.wrapping_add_signed(patch.addend),
                // What it is told by, since nobody runs anything here.
                kind => target.wrapping_add_signed(patch.addend) | (kind as u64) << 48,
            };
            self.memory[site as usize..][..8].copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The address of something the unit defines.
    pub(crate) fn at(&self, symbol: &str) -> u64 {
        *self
            .symbols
            .get(symbol)
            .unwrap_or_else(|| panic!("no symbol {symbol}"))
    }

    /// The bytes from an address on.
    pub(crate) fn bytes(&self, address: u64, len: usize) -> &[u8] {
        &self.memory[(address - self.map.base) as usize..][..len]
    }

    pub(crate) fn read_u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    pub(crate) fn read_i64(&self, address: u64) -> i64 {
        self.read_u64(address).cast_signed()
    }

    pub(crate) fn read_i32(&self, address: u64) -> i32 {
        i32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    pub(crate) fn decode(&self, address: u64) -> Instruction {
        let bytes = &self.memory[(address - self.map.base) as usize..];
        Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode()
    }

    /// What the instruction at a symbol does.
    pub(crate) fn effect(&self, symbol: &str) -> Effect {
        self.effect_at(self.at(symbol))
    }

    /// What the instruction at an address does; a jump into a thunk of the unit counts as the instruction it
    /// replaces.
    pub(crate) fn effect_at(&self, address: u64) -> Effect {
        let instruction = self.decode(address);
        assert!(!instruction.is_invalid(), "no instruction at {address:#x}");
        if instruction.op0_kind() == OpKind::NearBranch64 {
            let target = instruction.near_branch64();
            return self
                .thunk_effect(target, address)
                .unwrap_or(Effect::Goes(target));
        }
        assert!(
            instruction.is_ip_rel_memory_operand(),
            "{:?}",
            instruction.mnemonic()
        );
        let memory = instruction.ip_rel_memory_address();
        match instruction.mnemonic() {
            Mnemonic::Call | Mnemonic::Jmp => Effect::GoesThrough(memory),
            Mnemonic::Lea => Effect::Sets(instruction.op0_register(), memory),
            Mnemonic::Mov
                if instruction.op0_kind() == OpKind::Register && self.holds(memory, 8) =>
            {
                Effect::Sets(instruction.op0_register(), self.read_u64(memory))
            }
            _ => Effect::Touches(memory),
        }
    }

    pub(crate) fn holds(&self, address: u64, len: u64) -> bool {
        address >= self.map.base && address + len <= self.map.base + u64::from(self.map.len_bytes)
    }

    /// What a thunk at `target` does for the instruction at `site`: loads a cell, uses it, goes back.
    fn thunk_effect(&self, target: u64, site: u64) -> Option<Effect> {
        if !self.holds(target, 32) {
            return None;
        }
        let cell = self.decode(target);
        if cell.mnemonic() != Mnemonic::Mov || !cell.is_ip_rel_memory_operand() {
            return None;
        }
        let usage = self.decode(cell.next_ip());
        if usage.memory_base() != cell.op0_register() {
            return None;
        }
        let back = self.decode(usage.next_ip());
        assert_eq!(back.mnemonic(), Mnemonic::Jmp);
        let mut after = site + 5;
        while after < back.near_branch64() {
            assert_eq!(
                self.bytes(after, 1),
                [0x90],
                "between a jump to a thunk and the way back"
            );
            after += 1;
        }
        assert_eq!(back.near_branch64(), after);
        let address = self
            .read_u64(cell.ip_rel_memory_address())
            .wrapping_add(usage.memory_displacement64());
        Some(match usage.mnemonic() {
            Mnemonic::Lea => Effect::Sets(usage.op0_register(), address),
            _ => Effect::Touches(address),
        })
    }

    /// The stub that a reference is bound to, whether it asked for one or not.
    pub(crate) fn stub_of(&self, name: &str) -> Option<u64> {
        let first = *self.call_cells.get(name)? - self.map.base - u64::from(self.map.slots);
        Some(self.map.base + u64::from(self.map.stubs) + first / 2)
    }

    /// Where a symbol of the unit lies.
    pub(crate) fn area(&self, prepared: &Prepared<'_>, name: &str) -> Area {
        let symbol = self
            .linked
            .symbols
            .iter()
            .find(|symbol| prepared.definitions()[symbol.definition].name == name);
        match symbol.unwrap_or_else(|| panic!("no symbol {name}")).place {
            Place::At(area, _) => area,
            Place::Absolute(_) => panic!("{name} is absolute"),
            Place::ThreadLocal { .. } => panic!("{name} is thread-local"),
        }
    }
}

fn binding(prepared: &Prepared<'_>, map: Map, index: usize) -> Binding {
    let reference = &prepared.references()[index];
    let slot = |half: u32| SegmentOffset::new(map.slots + index as u32 * 16 + half * 8);
    let stub = SegmentOffset::new(map.stubs + index as u32 * 8);
    let target = match reference.own {
        Some(_) => PatchTarget::Window(stub),
        None => PatchTarget::Host(ImportId::new(index as u32)),
    };
    Binding {
        target,
        block_offset: None,
        call_cell: Some(slot(0)),
        address_cell: Some(slot(1)),
        stub: Some(stub),
    }
}
