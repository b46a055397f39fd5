//! The form of `.eh_frame`: checked, since the section is dropped and must not hide a damaged object.
//!
//! Source: Linux Standard Base Core 5.0, section 10.6.1. What the records describe is not looked at:
//! published code is not unwound through.

/// Whether `bytes` is a sequence of well-formed records, as far as their lengths, their kind and their
/// references to one another go. The error says what is wrong.
pub(crate) fn check(bytes: &[u8]) -> Result<(), &'static str> {
    let mut cies = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let (body, len) = record_body(bytes, start)?;
        if len == 0 {
            // A terminator; what `ld -r` made of several sections may have them in between.
            start = body;
            continue;
        }
        let end = body.checked_add(len).filter(|&end| end <= bytes.len());
        let end = end.ok_or(".eh_frame record longer than its section")?;
        let back = read_u32(bytes, body)
            .filter(|_| len >= 4)
            .ok_or(".eh_frame record too short")?;
        if back == 0 {
            let version = bytes[body..end].get(4).ok_or(".eh_frame CIE too short")?;
            if !matches!(version, 1 | 3) {
                return Err(".eh_frame CIE of an unknown version");
            }
            cies.push(start);
        } else {
            let cie = body
                .checked_sub(back as usize)
                .ok_or(".eh_frame FDE points before its section")?;
            cies.binary_search(&cie)
                .map_err(|_| ".eh_frame FDE without a CIE")?;
        }
        start = end;
    }
    Ok(())
}

/// Where the record at `start` has its body, and how long that is.
fn record_body(bytes: &[u8], start: usize) -> Result<(usize, usize), &'static str> {
    let truncated = "truncated .eh_frame record";
    match read_u32(bytes, start).ok_or(truncated)? {
        u32::MAX => {
            let wide = bytes.get(start + 4..start + 12).ok_or(truncated)?;
            let wide = wide
                .iter()
                .rev()
                .fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
            Ok((start + 12, usize::try_from(wide).map_err(|_| truncated)?))
        }
        len => Ok((start + 4, len as usize)),
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|four| u32::from_le_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::check;

    /// A CIE of 8 bytes, an FDE of 8 bytes that points at it, a terminator.
    const GOOD: [u8; 28] = [
        8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, // CIE
        8, 0, 0, 0, 16, 0, 0, 0, 9, 9, 9, 9, // FDE, 16 bytes after the CIE's start
        0, 0, 0, 0,
    ];

    #[test]
    fn well_formed_sections_pass() {
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&GOOD), Ok(()));
        assert_eq!(check(&[GOOD, GOOD].concat()), Ok(()));
    }

    #[test]
    fn damage_is_named() {
        let damaged = |at: usize, byte: u8| {
            let mut bytes = GOOD;
            bytes[at] = byte;
            check(&bytes).unwrap_err()
        };
        assert_eq!(damaged(8, 2), ".eh_frame CIE of an unknown version");
        assert_eq!(damaged(12, 200), ".eh_frame record longer than its section");
        assert_eq!(damaged(12, 2), ".eh_frame record too short");
        assert_eq!(damaged(16, 12), ".eh_frame FDE without a CIE");
        assert_eq!(damaged(16, 200), ".eh_frame FDE points before its section");
        assert_eq!(check(&GOOD[..26]), Err("truncated .eh_frame record"));
        assert_eq!(
            check(&[255; 16]),
            Err(".eh_frame record longer than its section")
        );
    }
}
