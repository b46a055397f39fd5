//! Maps that linkers write (`-Map`): where each section of each object went. GNU ld's and lld's.

use std::collections::HashMap;

/// The addresses of the sections of each file, by name, in the order of the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    sections: HashMap<(String, String), Vec<u64>>,
}

impl Map {
    /// Reads a map. Lines of other kinds are passed over.
    pub fn parse(text: &str) -> Self {
        let mut map = Self::default();
        let mut pending = "";
        for line in text.lines() {
            if let Some((address, file, section)) = of_lld(line) {
                map.add(file, section, address);
                continue;
            }
            // GNU ld breaks the line after a long name.
            let (name, rest) = match line.strip_prefix(' ') {
                Some(rest) if rest.starts_with(' ') => (pending, rest),
                Some(rest) => rest.split_once(' ').unwrap_or((rest, "")),
                None => ("", ""),
            };
            pending = if rest.is_empty() { name } else { "" };
            if let Some((address, file)) = of_gnu(rest).filter(|_| !name.is_empty()) {
                map.add(file, name, address);
            }
        }
        map
    }

    fn add(&mut self, file: &str, section: &str, address: u64) {
        let key = (file.to_owned(), section.to_owned());
        self.sections.entry(key).or_default().push(address);
    }

    /// The address of the `nth` section called `name` of `file`.
    pub fn find(&self, file: &str, name: &str, nth: usize) -> Option<u64> {
        let key = (file.to_owned(), name.to_owned());
        self.sections.get(&key)?.get(nth).copied()
    }
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// `0xADDRESS 0xSIZE FILE`, of a section that is not empty.
fn of_gnu(line: &str) -> Option<(u64, &str)> {
    let (address, rest) = line.trim_start().split_once(' ')?;
    let (size, file) = rest.trim_start().split_once(' ')?;
    let address = hex(address.strip_prefix("0x")?)?;
    let size = hex(size.strip_prefix("0x")?)?;
    (size > 0).then_some((address, file))
}

/// `ADDRESS LMA SIZE ALIGN FILE:(SECTION)`.
fn of_lld(line: &str) -> Option<(u64, &str, &str)> {
    let mut words = line.split_whitespace();
    let address = hex(words.next()?)?;
    let (_, size, _) = (words.next()?, hex(words.next()?)?, words.next()?);
    let (file, section) = words.next()?.split_once(":(")?;
    (size > 0).then_some((address, file, section.strip_suffix(')')?))
}

#[cfg(test)]
mod tests {
    use super::Map;

    #[test]
    fn both_forms_are_read() {
        let gnu = Map::parse(
            ".text           0x0000000000401000       0x20\n \
             *(.text)\n \
             .text          0x0000000000401000       0x10 a.o\n \
             .text.a_long_function_name\n                0x0000000000401010       0x10 b.o\n",
        );
        assert_eq!(gnu.find("a.o", ".text", 0), Some(0x40_1000));
        assert_eq!(
            gnu.find("b.o", ".text.a_long_function_name", 0),
            Some(0x40_1010)
        );
        assert_eq!(gnu.find("a.o", ".text", 1), None);
        let lld = Map::parse(
            "             VMA              LMA     Size Align Out     In      Symbol\n          \
             201158           201158       2a    16         a.o:(.text)\n          \
             201160           201160        0     1                 main\n",
        );
        assert_eq!(lld.find("a.o", ".text", 0), Some(0x20_1158));
    }
}
