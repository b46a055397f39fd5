//! What of a window is memory, as the kernel says.

use std::io::{self, BufRead, BufReader};

/// Resident bytes of the window at `base` in process `pid`, or "self": shared, private.
pub(super) fn of_window(pid: &str, base: u64, len_bytes: u32) -> io::Result<(u64, u64)> {
    let end = base.saturating_add(len_bytes.into());
    let (mut shared, mut private) = (0, 0);
    let mut inside = None;
    let smaps = std::fs::File::open(format!("/proc/{pid}/smaps"))?;
    for line in BufReader::new(smaps).lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else {
            continue;
        };
        if let Some((from, _)) = first.split_once('-')
            && let Ok(from) = u64::from_str_radix(from, 16)
        {
            if from >= end {
                // Mappings come in the order of their addresses.
                break;
            }
            inside = (base..end)
                .contains(&from)
                .then(|| second.is_some_and(|flags| flags.ends_with('s')));
        } else if first == "Rss:"
            && let (Some(is_shared), Some(kib)) =
                (inside, second.and_then(|kib| kib.parse::<u64>().ok()))
        {
            *(if is_shared { &mut shared } else { &mut private }) += kib * 1024;
        }
    }
    Ok((shared, private))
}
