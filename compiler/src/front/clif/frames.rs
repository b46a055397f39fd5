//! How to unwind through compiled functions: the `.eh_frame` section that Cranelift's object writer leaves out
//! for functions given as bytes.

use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::isa::unwind::UnwindInfo;
use gimli::write::{
    Address, EhFrame, EndianVec, FrameTable, RelocateWriter, Relocation, RelocationTarget,
};
use gimli::{DW_EH_PE_pcrel, DW_EH_PE_sdata4, DwEhPe, LittleEndian};
use object::write::{Object, StandardSection, SymbolId};
use object::{RelocationFlags, elf};

/// Functions are at signed distances of 32 bits: the section is then the same in every process.
const ENCODING: DwEhPe = DwEhPe(DW_EH_PE_pcrel.0 | DW_EH_PE_sdata4.0);

/// The section while it is written.
struct Section {
    writer: EndianVec<LittleEndian>,
    relocations: Vec<Relocation>,
}

impl RelocateWriter for Section {
    type Writer = EndianVec<LittleEndian>;

    fn writer(&self) -> &Self::Writer {
        &self.writer
    }

    fn writer_mut(&mut self) -> &mut Self::Writer {
        &mut self.writer
    }

    fn relocate(&mut self, relocation: Relocation) {
        self.relocations.push(relocation);
    }
}

/// Adds the section to `object`, whose `functions` are given by their symbols.
pub(super) fn write(
    object: &mut Object<'_>,
    isa: &dyn TargetIsa,
    functions: &[(SymbolId, &UnwindInfo)],
) -> Result<(), String> {
    let Some(mut cie) = isa.create_systemv_cie() else {
        return Ok(());
    };
    cie.fde_address_encoding = ENCODING;
    let mut table = FrameTable::default();
    let cie = table.add_cie(cie);
    for (index, (_, info)) in functions.iter().enumerate() {
        if let UnwindInfo::SystemV(info) = info {
            let address = Address::Symbol {
                symbol: index,
                addend: 0,
            };
            table.add_fde(cie, info.to_fde(address));
        }
    }
    if table.fde_count() == 0 {
        return Ok(());
    }
    let mut frames = EhFrame(Section {
        writer: EndianVec::new(LittleEndian),
        relocations: Vec::new(),
    });
    let written = table.write_eh_frame(&mut frames);
    written.map_err(|error| error.to_string())?;
    let Section {
        writer,
        relocations,
    } = frames.0;
    let section = object.section_id(StandardSection::EhFrame);
    object.append_section_data(section, writer.slice(), 8);
    for relocation in relocations {
        let RelocationTarget::Symbol(index) = relocation.target else {
            continue;
        };
        let relocation = object::write::Relocation {
            offset: relocation.offset as u64,
            symbol: functions[index].0,
            addend: relocation.addend,
            flags: RelocationFlags::Elf {
                r_type: elf::R_X86_64_PC32,
            },
        };
        let added = object.add_relocation(section, relocation);
        added.map_err(|error| error.to_string())?;
    }
    Ok(())
}
