//! A processor of a dozen instructions: runs what compilers emit for short functions, in a [`World`].

use std::collections::HashMap;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::common::World;

/// A function that ran.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// What it called, or jumped to at its end.
    pub(crate) calls: Vec<u64>,
    /// What it returned.
    pub(crate) result: u64,
}

struct Machine<'w> {
    world: &'w World,
    registers: HashMap<Register, u64>,
    /// What was stored, by address.
    stored: HashMap<u64, u64>,
}

/// Runs the function at `symbol`. What it calls returns at once.
pub(crate) fn run(world: &World, symbol: &str) -> Run {
    let mut machine = Machine {
        world,
        registers: HashMap::from([(Register::RSP, 0x1000)]),
        stored: HashMap::new(),
    };
    let mut run = Run::default();
    let mut at = world.at(symbol);
    for _ in 0..100 {
        let instruction = world.decode(at);
        at = instruction.next_ip();
        match instruction.mnemonic() {
            Mnemonic::Ret => {
                run.result = machine.read(Register::RAX);
                return run;
            }
            Mnemonic::Call => run.calls.push(machine.branch(&instruction)),
            Mnemonic::Jmp => {
                let target = machine.branch(&instruction);
                let text = u64::from(world.map.text) + world.map.base;
                if !(text..text + world.linked.text.len() as u64).contains(&target)
                    || world.symbols.values().any(|&symbol| symbol == target)
                {
                    run.calls.push(target);
                    return run;
                }
                at = target;
            }
            _ => machine.step(&instruction),
        }
    }
    panic!("{symbol} does not end");
}

/// The register of 64 bits that a register is part of, and whether it is the lower half.
fn whole(register: Register) -> (Register, bool) {
    match register as u32 {
        number if (Register::EAX as u32..=Register::R15D as u32).contains(&number) => {
            (Register::RAX + (number - Register::EAX as u32), true)
        }
        _ => (register, false),
    }
}

impl Machine<'_> {
    fn read(&self, register: Register) -> u64 {
        let (register, narrow) = whole(register);
        let value = self.registers.get(&register).copied().unwrap_or(0);
        if narrow { value & 0xffff_ffff } else { value }
    }

    fn address(&self, instruction: &Instruction) -> u64 {
        if instruction.is_ip_rel_memory_operand() {
            return instruction.ip_rel_memory_address();
        }
        let part = |register: Register| match register {
            Register::None => 0,
            register => self.read(register),
        };
        let index = part(instruction.memory_index())
            .wrapping_mul(u64::from(instruction.memory_index_scale()));
        part(instruction.memory_base())
            .wrapping_add(index)
            .wrapping_add(instruction.memory_displacement64())
    }

    fn load(&self, address: u64) -> u64 {
        match self.stored.get(&address) {
            Some(&value) => value,
            None if self.world.holds(address, 8) => self.world.read_u64(address),
            None => 0,
        }
    }

    fn operand(&self, instruction: &Instruction, index: u32) -> u64 {
        match instruction.op_kind(index) {
            OpKind::Register => self.read(instruction.op_register(index)),
            OpKind::Memory => self.load(self.address(instruction)),
            _ => instruction.immediate(index),
        }
    }

    fn branch(&self, instruction: &Instruction) -> u64 {
        match instruction.op0_kind() {
            OpKind::NearBranch64 => instruction.near_branch64(),
            _ => self.operand(instruction, 0),
        }
    }

    fn write(&mut self, instruction: &Instruction, value: u64) {
        match instruction.op0_kind() {
            OpKind::Register => {
                let (register, narrow) = whole(instruction.op0_register());
                let value = if narrow { value & 0xffff_ffff } else { value };
                self.registers.insert(register, value);
            }
            _ => {
                let address = self.address(instruction);
                self.stored.insert(address, value);
            }
        }
    }

    fn step(&mut self, instruction: &Instruction) {
        match instruction.mnemonic() {
            Mnemonic::Endbr64 | Mnemonic::Nop => {}
            Mnemonic::Leave => {
                let frame = self.read(Register::RBP);
                self.registers.insert(Register::RSP, frame + 8);
                self.registers.insert(Register::RBP, self.load(frame));
            }
            Mnemonic::Inc => self.write(instruction, self.operand(instruction, 0).wrapping_add(1)),
            Mnemonic::Push => {
                let top = self.read(Register::RSP) - 8;
                self.registers.insert(Register::RSP, top);
                self.stored.insert(top, self.operand(instruction, 0));
            }
            Mnemonic::Pop => {
                let top = self.read(Register::RSP);
                self.registers.insert(Register::RSP, top + 8);
                self.write(instruction, self.load(top));
            }
            Mnemonic::Lea => self.write(instruction, self.address(instruction)),
            Mnemonic::Mov => self.write(instruction, self.operand(instruction, 1)),
            Mnemonic::Movsxd => {
                let value = i64::from(self.operand(instruction, 1) as i32);
                self.write(instruction, value.cast_unsigned());
            }
            Mnemonic::Add => {
                let sum = self
                    .operand(instruction, 0)
                    .wrapping_add(self.operand(instruction, 1));
                self.write(instruction, sum);
            }
            Mnemonic::Sub => {
                let rest = self
                    .operand(instruction, 0)
                    .wrapping_sub(self.operand(instruction, 1));
                self.write(instruction, rest);
            }
            Mnemonic::Xor => {
                let value = self.operand(instruction, 0) ^ self.operand(instruction, 1);
                self.write(instruction, value);
            }
            other => panic!("{other:?} at {:#x} is not implemented", instruction.ip()),
        }
    }
}
