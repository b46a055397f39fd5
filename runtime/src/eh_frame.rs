//! The records of `.eh_frame`: where each begins, and where its pointers are.
//!
//! Source: Linux Standard Base Core 5.0, section 10.6.1, for the records; section 10.5 for the encodings of
//! pointers. What a record says of registers is not looked at. Invariant: every offset here lies inside its
//! section; what is not known is refused by name, since an unwinder would read it otherwise.

use core::ops::Range;

/// What is wrong with a section, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The record that is at fault.
    pub offset: u32,
    /// What it is.
    pub kind: FaultKind,
}

/// Damage, or something that is valid and not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It contradicts itself.
    Damaged(&'static str),
    /// It may mean something, but not here.
    Unsupported(&'static str),
}

use FaultKind::{Damaged, Unsupported};

/// A pointer in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Offset in the section.
    pub offset: u32,
    /// How it is stored.
    pub encoding: Encoding,
}

/// How a pointer is stored, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// How long it is, bytes.
    pub width_bytes: u8,
    /// Counted from the pointer's own place.
    pub relative: bool,
    /// It leads to a cell with the address.
    pub indirect: bool,
    /// A short one is extended by its sign.
    pub signed: bool,
}

impl Encoding {
    /// What there is without an augmentation: an address.
    const ABSOLUTE: Self = Self {
        width_bytes: 8,
        relative: false,
        indirect: false,
        signed: false,
    };

    /// The encoding `byte`; `None`: no pointer at all (`DW_EH_PE_omit`).
    fn read(byte: u8) -> Result<Option<Self>, FaultKind> {
        let width_bytes = match byte & 0x0f {
            _ if byte == 0xff => return Ok(None),
            // DW_EH_PE_absptr, _udata8, _sdata8.
            0x00 | 0x04 | 0x0c => 8,
            // DW_EH_PE_udata4, _sdata4.
            0x03 | 0x0b => 4,
            0x01 | 0x09 => return Err(Unsupported("a pointer of it is stored as LEB128")),
            0x02 | 0x0a => return Err(Unsupported("a pointer of it has 16 bits")),
            _ => return Err(Unsupported("the encoding of a pointer is not known")),
        };
        let relative = match byte & 0x70 {
            0x00 => false,
            0x10 => true,
            _ => {
                return Err(Unsupported(
                    "a pointer of it is counted from a section, or aligned",
                ));
            }
        };
        Ok(Some(Self {
            width_bytes,
            relative,
            indirect: byte & 0x80 != 0,
            signed: byte & 0x08 != 0,
        }))
    }
}

/// What several functions have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cie {
    /// First offset, that of its length.
    pub start: u32,
    /// First offset after it.
    pub end: u32,
    /// What is called for its functions, if anything is.
    pub personality: Option<Pointer>,
    /// How its functions' landing pads are referred to, if they are.
    pub lsda: Option<Encoding>,
    /// How its functions are referred to.
    pub function: Encoding,
    /// The letters of its augmentation; if there are any, its functions' records have a part of stated length after the
    /// range.
    pub letters: Range<u32>,
    /// The units of code and of the stack, and the register of the return address.
    pub units: Range<u32>,
    /// Where its instructions begin.
    pub instructions: u32,
}

/// One function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fde {
    /// First offset, that of its length.
    pub start: u32,
    /// First offset after it.
    pub end: u32,
    /// The index of its CIE.
    pub cie: u32,
    /// The function's start.
    pub function: Pointer,
    /// How long the function is, bytes.
    pub len_bytes: u64,
    /// The table of its landing pads.
    pub lsda: Option<Pointer>,
    /// Where its instructions begin.
    pub instructions: u32,
}

/// The length field, and the pointer to the CIE after it, bytes.
pub const LENGTH_BYTES: u32 = 4;

/// Reads the records of a section.
///
/// # Errors
/// The first record that is damaged or not supported.
pub fn read(bytes: &[u8]) -> Result<(Vec<Cie>, Vec<Fde>), Fault> {
    let (mut cies, mut fdes) = (Vec::<Cie>::new(), Vec::new());
    let whole = u32::try_from(bytes.len()).map_err(|_| Fault {
        offset: 0,
        kind: Unsupported("it is longer than 4 GiB"),
    })?;
    let mut start = 0;
    while start < whole {
        let fault = |kind| Fault {
            offset: start,
            kind,
        };
        let mut cursor = Cursor {
            bytes,
            at: start as usize,
            end: bytes.len(),
        };
        let len = cursor
            .u32()
            .map_err(|_| fault(Damaged("truncated .eh_frame record")))?;
        if len == 0 {
            // A terminator; what `ld -r` made of several sections may have them in between.
            start += LENGTH_BYTES;
            continue;
        }
        if len == u32::MAX {
            return Err(fault(Unsupported(
                "a record of it has a length of 64 bits, which unwinders do not read",
            )));
        }
        let body = start + LENGTH_BYTES;
        let end = body.checked_add(len).filter(|&end| end <= whole);
        let end = end.ok_or(fault(Damaged(".eh_frame record longer than its section")))?;
        cursor.end = end as usize;
        let back = cursor
            .u32()
            .map_err(|_| fault(Damaged(".eh_frame record too short")))?;
        if back == 0 {
            cies.push(cie(&mut cursor, start).map_err(fault)?);
        } else {
            let cie = body
                .checked_sub(back)
                .ok_or(fault(Damaged(".eh_frame FDE points before its section")))?;
            let index = cies
                .binary_search_by_key(&cie, |cie| cie.start)
                .map_err(|_| fault(Damaged(".eh_frame FDE without a CIE")))?;
            fdes.push(fde(&mut cursor, start, index as u32, &cies[index]).map_err(fault)?);
        }
        start = end;
    }
    Ok((cies, fdes))
}

fn cie(cursor: &mut Cursor<'_>, start: u32) -> Result<Cie, FaultKind> {
    let version = cursor.byte()?;
    if !matches!(version, 1 | 3) {
        return Err(Unsupported("a CIE of it has an unknown version"));
    }
    let letters = cursor.at as u32;
    let text = cursor.text()?;
    let units = cursor.at as u32;
    cursor.leb128()?; // the unit of code, and that of the stack
    cursor.leb128()?;
    if version == 1 {
        cursor.byte()?; // the return address's register
    } else {
        cursor.leb128()?;
    }
    let mut cie = Cie {
        start,
        end: cursor.end as u32,
        personality: None,
        lsda: None,
        function: Encoding::ABSOLUTE,
        letters: letters..letters + text.len() as u32,
        units: units..cursor.at as u32,
        instructions: cursor.at as u32,
    };
    let Some((first, letters)) = text.split_first() else {
        return Ok(cie);
    };
    if *first != b'z' {
        return Err(Unsupported("an augmentation of it is not known"));
    }
    let len = cursor.leb128()?;
    let mut data = cursor.part(len)?;
    cie.instructions = cursor.at as u32;
    for letter in letters {
        match letter {
            b'L' => cie.lsda = Encoding::read(data.byte()?)?,
            b'P' => {
                if let Some(encoding) = Encoding::read(data.byte()?)? {
                    cie.personality = Some(data.pointer(encoding)?);
                }
            }
            b'R' => {
                cie.function = Encoding::read(data.byte()?)?
                    .filter(|encoding| !encoding.indirect)
                    .ok_or(Unsupported("a function of it is referred to indirectly"))?;
            }
            // A signal handler's frame; another key for signed addresses. Neither has data.
            b'S' | b'B' => {}
            _ => return Err(Unsupported("an augmentation of it is not known")),
        }
    }
    Ok(cie)
}

fn fde(cursor: &mut Cursor<'_>, start: u32, index: u32, cie: &Cie) -> Result<Fde, FaultKind> {
    let function = cursor.pointer(cie.function)?;
    let mut fde = Fde {
        start,
        end: cursor.end as u32,
        cie: index,
        function,
        len_bytes: cursor.number(cie.function.width_bytes)?,
        lsda: None,
        instructions: cursor.at as u32,
    };
    if !cie.letters.is_empty() {
        let len = cursor.leb128()?;
        let mut data = cursor.part(len)?;
        fde.instructions = cursor.at as u32;
        if let Some(encoding) = cie.lsda {
            fde.lsda = Some(data.pointer(encoding)?);
        }
    }
    Ok(fde)
}

/// What is left of a record.
#[derive(Clone, Copy, Debug)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

const SHORT: FaultKind = Damaged(".eh_frame record too short");

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FaultKind> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.end);
        let end = end.ok_or(SHORT)?;
        let taken = self.bytes.get(self.at..end).ok_or(SHORT)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, FaultKind> {
        Ok(self.take(1)?[0])
    }

    /// A number of so many bytes, without a sign.
    fn number(&mut self, width_bytes: u8) -> Result<u64, FaultKind> {
        let bytes = self.take(usize::from(width_bytes))?.iter().rev();
        Ok(bytes.fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn u32(&mut self) -> Result<u32, FaultKind> {
        Ok(self.number(4)? as u32)
    }

    /// A number in LEB128; of those with a sign only the length counts here.
    fn leb128(&mut self) -> Result<u64, FaultKind> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Damaged(".eh_frame number of more than 63 bits"))
    }

    /// What comes before the next zero byte, which is skipped.
    fn text(&mut self) -> Result<&'a [u8], FaultKind> {
        let rest = self.bytes.get(self.at..self.end).ok_or(SHORT)?;
        let len = rest.iter().position(|&byte| byte == 0).ok_or(SHORT)?;
        self.at += len + 1;
        Ok(&rest[..len])
    }

    fn pointer(&mut self, encoding: Encoding) -> Result<Pointer, FaultKind> {
        let offset = self.at as u32;
        self.take(usize::from(encoding.width_bytes))?;
        Ok(Pointer { offset, encoding })
    }

    /// The next `len` bytes, which are skipped here.
    fn part(&mut self, len: u64) -> Result<Self, FaultKind> {
        let start = self.at;
        self.take(usize::try_from(len).map_err(|_| SHORT)?)?;
        Ok(Self {
            bytes: self.bytes,
            at: start,
            end: self.at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CIE "zR" of pointers relative to their place, an FDE of a function of 9 bytes, a terminator.
    const GOOD: [u8; 41] = [
        13, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, // CIE
        16, 0, 0, 0, 21, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0,
        0, // FDE, its CIE 21 bytes before
        0, 0, 0, 0,
    ];

    fn fault(bytes: &[u8]) -> FaultKind {
        read(bytes).expect_err("a fault").kind
    }

    #[test]
    fn pointers_are_found() {
        let (cies, fdes) = read(&GOOD).unwrap();
        assert_eq!((cies[0].start, cies[0].end), (0, 17));
        assert_eq!(
            (fdes[0].function.offset, fdes[0].len_bytes, fdes[0].lsda),
            (25, 9, None)
        );
        assert_eq!(read(&[]), Ok((vec![], vec![])));
        let twice = [GOOD, GOOD].concat();
        assert_eq!(read(&twice).map(|(cies, _)| cies.len()), Ok(2));
    }

    #[test]
    fn damage_and_what_is_unknown_are_named() {
        let damaged = |at: usize, byte: u8| {
            let mut bytes = GOOD;
            bytes[at] = byte;
            fault(&bytes)
        };
        assert_eq!(
            damaged(8, 2),
            Unsupported("a CIE of it has an unknown version")
        );
        assert_eq!(
            damaged(17, 200),
            Damaged(".eh_frame record longer than its section")
        );
        assert_eq!(damaged(17, 2), SHORT);
        assert_eq!(damaged(21, 12), Damaged(".eh_frame FDE without a CIE"));
        assert_eq!(
            damaged(21, 200),
            Damaged(".eh_frame FDE points before its section")
        );
        for letter in [b'e', b'Q'] {
            assert_eq!(
                damaged(10, letter),
                Unsupported("an augmentation of it is not known")
            );
            assert_eq!(
                damaged(9, letter),
                Unsupported("an augmentation of it is not known")
            );
        }
        assert_eq!(damaged(15, 200), SHORT);
        assert_eq!(
            damaged(16, 0x3b),
            Unsupported("a pointer of it is counted from a section, or aligned")
        );
        assert_eq!(
            damaged(16, 0x19),
            Unsupported("a pointer of it is stored as LEB128")
        );
        assert_eq!(
            damaged(16, 0x9b),
            Unsupported("a function of it is referred to indirectly")
        );
        assert_eq!(fault(&GOOD[..40]), Damaged("truncated .eh_frame record"));
        assert!(matches!(fault(&[255; 16]), Unsupported(_)));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        for at in 0..GOOD.len() {
            for byte in [0, 1, 4, 0x7f, 0x80, 0xff] {
                let mut bytes = GOOD;
                bytes[at] = byte;
                let _ = read(&bytes);
                let _ = read(&bytes[..at]);
            }
        }
    }
}
