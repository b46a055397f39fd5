//! How to unwind through units: records lead to their functions, landing pads and personality routines; what
//! describes nothing is dropped; damage is refused.

use jitcast_linker::{Area, Options, Placement, Prepared, Unwinding};
use jitcast_runtime::SegmentOffset;
use jitcast_runtime::frames::Frame;
use object::read::elf::{FileHeader, SectionHeader};
use object::{LittleEndian as LE, elf};

use crate::common::{
    Map, World, archive, assemble, compile, inputs, prepare, refusal, refusal_of, run,
};

/// Throws, catches, and has a destructor on the way; local, hidden, inline and cold functions.
const THROWS: &str = "
    extern \"C\" void note(int);
    struct Noisy { int value; ~Noisy() { note(value); } };
    struct Mine { int value; };
    inline __attribute__((noinline)) int shared(int x) { Noisy noisy{x}; if (x > 90) throw x; return x + 1; }
    __attribute__((noinline)) static int local(int x) { if (x == 7) throw Mine{x}; return shared(x); }
    __attribute__((visibility(\"hidden\"))) int hidden(int x) { Noisy noisy{x + 1}; return local(x) * 2; }
    extern \"C\" int FUNCTION(int x) {
        try { return hidden(x); } catch (Mine &mine) { return mine.value; } catch (int) { return -1; } }";

fn throws(function: &str, flags: &[&str]) -> Vec<u8> {
    compile("c++", &THROWS.replace("FUNCTION", function), flags)
}

fn at(map: Map) -> Placement {
    Placement {
        text: SegmentOffset::new(map.text),
        read_only: SegmentOffset::new(map.read_only),
        private: SegmentOffset::new(map.private),
        shared: SegmentOffset::new(map.shared),
        number: 1,
    }
}

fn unwinding(prepared: &Prepared<'_>) -> Unwinding {
    prepared.unwinding(&at(Map::default())).unwrap()
}

fn names(prepared: &Prepared<'_>) -> Vec<(String, SegmentOffset, u32)> {
    let names = prepared.names(&at(Map::default())).unwrap();
    names
        .iter()
        .map(|name| (name.name.to_owned(), name.start, name.len_bytes))
        .collect()
}

/// A record of a linked unit, as an unwinder reads it.
struct Record<'w> {
    world: &'w World,
    at: u64,
}

impl Record<'_> {
    fn word(&self, offset: u64) -> u32 {
        self.world.read_i32(self.at + offset).cast_unsigned()
    }

    fn pointer(&self, at: u64, encoding: u8) -> (u64, u64) {
        let (value, width) = match encoding & 0x0f {
            0 | 4 | 12 => (self.world.read_u64(at), 8),
            3 => (u64::from(self.world.read_i32(at).cast_unsigned()), 4),
            _ => (i64::from(self.world.read_i32(at)).cast_unsigned(), 4),
        };
        let origin = if encoding & 0x70 == 0x10 { at } else { 0 };
        let value = origin.wrapping_add(value);
        let value = if encoding & 0x80 != 0 {
            self.world.read_u64(value)
        } else {
            value
        };
        (value, width)
    }

    /// Function, length, landing pads, personality routine.
    fn read(&self) -> (u64, u64, Option<u64>, Option<u64>) {
        let cie = self.at + 4 - u64::from(self.word(4));
        assert_eq!(self.world.read_i32(cie + 4), 0, "a CIE");
        let bytes = self.world.bytes(cie + 9, 32);
        let end = bytes.iter().position(|&byte| byte == 0).unwrap();
        let letters = &bytes[..end];
        // Two numbers and a register of a byte each, then the length.
        let mut data = cie + 9 + end as u64 + 5;
        let (mut function, mut landing, mut personality) = (0, None, None);
        for letter in letters {
            let encoding = self.world.bytes(data, 1)[0];
            match letter {
                b'z' => continue,
                b'R' => function = encoding,
                b'L' => landing = Some(encoding),
                b'P' => {
                    let (value, width) = self.pointer(data + 1, encoding);
                    personality = Some(value);
                    data += width;
                }
                _ => panic!("{letters:?}"),
            }
            data += 1;
        }
        let (start, width) = self.pointer(self.at + 8, function);
        let (len, _) = self.pointer(self.at + 8 + width, function & 0x0f);
        let landing = landing.map(|encoding| self.pointer(self.at + 9 + 2 * width, encoding).0);
        (start, len, landing, personality)
    }
}

/// Looks at every record of a unit as an unwinder would; returns how many have landing pads.
fn check(prepared: &Prepared<'_>) -> usize {
    let world = World::new(prepared);
    let Unwinding { eh_frame, frames } = unwinding(prepared);
    let base = world.map.base;
    let region = eh_frame.expect("there is something to unwind through");
    let end = base + u64::from(region.end());
    assert_eq!(world.read_i32(end - 4), 0, "a terminator");
    let mut landings = 0;
    for (index, frame) in frames.iter().enumerate() {
        let (start, len, landing, personality) = Record {
            world: &world,
            at: base + u64::from(frame.fde.get()),
        }
        .read();
        assert_eq!(
            (start, len),
            (
                base + u64::from(frame.start.get()),
                u64::from(frame.len_bytes)
            ),
            "{frame:?}"
        );
        assert!(index == 0 || frames[index - 1].start < frame.start);
        if let Some(landing) = landing {
            // The landing pads of one function are counted from its start.
            assert!([0xff, 0x00, 0x1b].contains(&world.bytes(landing, 1)[0]));
            assert_eq!(personality, Some(world.hosts["__gxx_personality_v0"]));
            landings += 1;
        }
    }
    // From record to record, as `__register_frame` goes.
    let (mut at, mut fdes) = (base + u64::from(region.start), 0);
    while world.read_i32(at) != 0 {
        fdes += usize::from(world.read_i32(at + 4) != 0);
        at += 4 + u64::from(world.read_i32(at).cast_unsigned());
    }
    assert_eq!((at, fdes), (end - 4, frames.len()));
    landings
}

#[test]
fn records_lead_to_functions_landing_pads_and_personality() {
    let flags: [&[&str]; 9] = [
        &["-O2", "-fPIC"],
        &["-O0", "-fPIC"],
        &["-O2", "-fPIC", "-fno-plt"],
        &["-O2", "-fPIC", "-ffunction-sections", "-fdata-sections"],
        &["-O2", "-fPIE"],
        &["-O2", "-fPIC", "-mcmodel=medium"],
        &["-O2", "-fPIC", "-mcmodel=large"],
        &["-O2", "-fno-pic", "-mcmodel=large"],
        &["-O1", "-fPIC", "-fno-asynchronous-unwind-tables"],
    ];
    for flags in flags {
        let object = throws("f", flags);
        let files = [("x.o", &object[..])];
        let prepared = prepare(&files).unwrap_or_else(|error| panic!("{flags:?}: {error}"));
        assert!(check(&prepared) >= 3, "{flags:?}");
        // Every function has a record of its own.
        let frames = unwinding(&prepared).frames;
        for (name, start, len_bytes) in names(&prepared) {
            let record = frames.iter().find(|frame| frame.start == start);
            assert_eq!(
                record.map(|frame| frame.len_bytes),
                Some(len_bytes),
                "{name}, {flags:?}"
            );
        }
        assert_eq!(frames.len(), names(&prepared).len());
        for name in ["f", "_ZL5locali", "_Z6hiddeni", "_Z6sharedi"] {
            assert!(
                names(&prepared).iter().any(|(known, ..)| known == name),
                "{name}"
            );
        }
    }
}

#[test]
fn only_what_is_resolved_at_attach_makes_it_private() {
    for (flags, area) in [
        (&["-O2", "-fPIC"][..], Area::ReadOnly),
        (&["-O2", "-fno-pic", "-mcmodel=large"], Area::Private),
    ] {
        let object = throws("f", flags);
        let files = [("x.o", &object[..])];
        let prepared = prepare(&files).unwrap();
        let start = unwinding(&prepared).eh_frame.unwrap().start;
        let map = Map::default();
        let expected = if area == Area::Private {
            map.private
        } else {
            map.read_only
        };
        assert!((expected..expected + 0x1_0000).contains(&start), "{area:?}");
    }
}

#[test]
fn what_a_group_discarded_has_no_record() {
    let (one, two) = (
        throws("one", &["-O2", "-fPIC"]),
        throws("two", &["-O2", "-fPIC"]),
    );
    let count = |files: &[(&str, &[u8])]| {
        let prepared = Prepared::read("unit", &inputs(files), &Options::default()).unwrap();
        check(&prepared);
        unwinding(&prepared).frames.len()
    };
    let hidden = |object: &[u8]| {
        // One of its names is in both.
        let names = [("_Z6hiddeni".to_owned(), "_Z6hiddenx".to_owned())];
        crate::common::rename(object, &names)
    };
    let alone = count(&[("one.o", &one)]);
    let both = count(&[("one.o", &one), ("two.o", &hidden(&two))]);
    // The function `shared`, its cold part, and the destructor are in groups.
    assert!(both < 2 * alone && both > alone, "{both} of {alone} each");
    let object = compile(
        "c++",
        "inline int twice(int x) { return 2 * x; } int (*volatile p)(int) = twice;",
        &["-O2", "-fPIC"],
    );
    let other = compile(
        "c++",
        "inline int twice(int x) { return 2 * x; } int (*volatile q)(int) = twice;",
        &["-O2", "-fPIC"],
    );
    assert_eq!(count(&[("a.o", &object), ("b.o", &other)]), 1);
}

#[test]
fn records_keep_nothing_but_are_kept_with_what_they_need() {
    let source = THROWS.replace("FUNCTION", "f")
        + "extern \"C\" int unused(int x) { try { return hidden(x); } catch (Mine &) { return 5; } }";
    let object = compile("c++", &source, &["-O2", "-fPIC", "-ffunction-sections"]);
    let options = Options {
        roots: Some(vec!["f".into()]),
        ..Options::default()
    };
    let files = [("x.o", &object[..])];
    let inputs = inputs(&files);
    let prepared = Prepared::read("unit", &inputs, &options).unwrap();
    assert!(check(&prepared) >= 3);
    assert!(
        !names(&prepared)
            .iter()
            .any(|(name, ..)| name.starts_with("unused"))
    );
    let all = Prepared::read("unit", &inputs, &Options::default()).unwrap();
    assert!(unwinding(&all).frames.len() > unwinding(&prepared).frames.len());
}

#[test]
fn relocatable_links_are_taken_apart_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("one.o"), throws("one", &["-O2", "-fPIC"])).unwrap();
    let two = throws("two", &["-O2", "-fPIC"]);
    let two = crate::common::rename(&two, &[("_Z6hiddeni".to_owned(), "_Z6hiddenx".to_owned())]);
    std::fs::write(path("two.o"), two).unwrap();
    run(std::process::Command::new("ld")
        .arg("-r")
        .arg("-o")
        .arg(path("both.o"))
        .arg(path("one.o"))
        .arg(path("two.o")));
    let both = std::fs::read(path("both.o")).unwrap();
    let files = [("both.o", &both[..])];
    check(&prepare(&files).unwrap());
    let archive = archive("rcs", &[("both.o", &both)]);
    let files = [("x.a", &archive[..])];
    assert_eq!(
        unwinding(&prepare(&files).unwrap()).frames,
        [],
        "nothing is pulled"
    );
}

#[test]
fn functions_of_assembly_are_named_up_to_the_next() {
    let object = assemble(
        ".text\n.globl f\n.type f, @function\nf: nop\nnop\nret\n.type g, @function\ng: ret\nret\n",
    );
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let names: Vec<_> = names(&prepared)
        .into_iter()
        .map(|(name, _, len)| (name, len))
        .collect();
    assert_eq!(names, [("f".into(), 3), ("g".into(), 2)]);
    assert_eq!(unwinding(&prepared).eh_frame, None);
}

#[test]
fn one_that_outside_is_reached_directly_is_refused() {
    let personality = |encoding: &str| {
        assemble(&format!(
            "f: .cfi_startproc\n.cfi_personality {encoding}, somebody\nret\n.cfi_endproc\n"
        ))
    };
    let expected = "x.o: .eh_frame+0x12: R_X86_64_PC32 against `somebody` needs the distance to a symbol that the unit \
                    does not define\n  where the symbol is differs between workers, and this data cannot go through a \
                    cell\n  help: compile x.o with -fPIC";
    assert_eq!(refusal(&personality("0x1b")), expected);
    // What `-fno-pic` does in the small model.
    let narrow = refusal(&throws("f", &["-O2", "-fno-pic"]));
    assert!(
        narrow.contains("needs an absolute address") && narrow.ends_with("compile x.o with -fPIC"),
        "{narrow}"
    );
    // An address is patched.
    let object = personality("0x00");
    let files = [("x.o", &object[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let [Frame { fde, .. }] = unwinding(&prepared).frames[..] else {
        panic!()
    };
    let record = Record {
        world: &world,
        at: world.map.base + u64::from(fde.get()),
    };
    assert_eq!(record.read().3, Some(world.hosts["somebody"]));
    // The unit's own is reached, and not by its stub.
    let own = assemble(
        "f: .cfi_startproc\n.cfi_personality 0x1b, g\nret\n.cfi_endproc\n.globl g\ng: ret\n",
    );
    let files = [("x.o", &own[..])];
    let prepared = prepare(&files).unwrap();
    let world = World::new(&prepared);
    let fde = unwinding(&prepared).frames[0].fde;
    let record = Record {
        world: &world,
        at: world.map.base + u64::from(fde.get()),
    };
    assert_eq!(record.read().3, Some(world.at("g")));
}

/// Where a section lies in an object.
fn section(object: &[u8], name: &[u8]) -> (usize, usize) {
    let header = elf::FileHeader64::<LE>::parse(object).unwrap();
    let sections = header.sections(LE, object).unwrap();
    let (_, section) = sections.section_by_name(LE, name).unwrap();
    (section.sh_offset(LE) as usize, section.sh_size(LE) as usize)
}

#[test]
fn damage_is_refused_by_name() {
    let object = assemble("f: .cfi_startproc\nret\n.cfi_endproc\n");
    let (at, _) = section(&object, b".eh_frame");
    let damaged = |offset: usize, bytes: &[u8]| {
        let mut object = object.clone();
        object[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
        refusal(&object)
    };
    let corrupt = "is corrupt or truncated: .eh_frame";
    for (offset, bytes, expected) in [
        (0, &[255, 255, 0, 0][..], format!("x.o: .eh_frame+0x0: {corrupt} record longer than its section")),
        (0, &[255; 4], "x.o: .eh_frame+0x0: section .eh_frame is refused: a record of it has a length of 64 bits, which unwinders do not read".into()),
        (8, &[9], "x.o: .eh_frame+0x0: section .eh_frame is refused: a CIE of it has an unknown version".into()),
        (9, b"eh", "x.o: .eh_frame+0x0: section .eh_frame is refused: an augmentation of it is not known".into()),
        (10, b"Q", "x.o: .eh_frame+0x0: section .eh_frame is refused: an augmentation of it is not known".into()),
        (16, &[0x2b], "x.o: .eh_frame+0x0: section .eh_frame is refused: a pointer of it is counted from a section, or aligned".into()),
        (16, &[0x1c], "section .eh_frame is refused: a relocation of it is for no pointer that is known".into()),
        (16, &[0x0b], format!("{corrupt} pointer that is stored otherwise than its relocation says")),
        (36, &[2], format!("x.o: .eh_frame+0x20: {corrupt} FDE of what is not all code of its section")),
    ] {
        let message = damaged(offset, bytes);
        // Eight bytes for a function make what follows the range run out.
        let either = message.contains(&expected) || (offset == 16 && message.contains("record too short"));
        assert!(either, "{offset}: {message}");
    }
    let (rela, len) = section(&object, b".rela.eh_frame");
    assert_eq!(len, 24);
    let relocated = |offset: usize, bytes: &[u8]| {
        let mut object = object.clone();
        object[rela + offset..rela + offset + bytes.len()].copy_from_slice(bytes);
        refusal(&object)
    };
    let missing = relocated(0, &[33]);
    assert!(
        missing.contains("a relocation of it is for no pointer that is known"),
        "{missing}"
    );
    let symbol = relocated(12, &[200]);
    assert!(
        symbol.contains(".eh_frame FDE of a symbol that does not exist"),
        "{symbol}"
    );
    let outside = relocated(16, &[100]);
    assert!(outside.contains("FDE of what is not all code"), "{outside}");
    // What `ld -r` leaves of a function that it discarded.
    let mut discarded = object.clone();
    discarded[rela + 8] = 0;
    let files = [("x.o", &discarded[..])];
    assert_eq!(unwinding(&prepare(&files).unwrap()).frames, []);
    let data = assemble(".data\nf: .cfi_startproc\n.long 1\n.cfi_endproc\n");
    assert!(refusal_of(&[("x.o", &data)]).contains("FDE of what is not all code"));
}
