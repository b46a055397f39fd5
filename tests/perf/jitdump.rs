//! A reader of jitdumps (`tools/perf/Documentation/jitdump-specification.txt` of Linux), which insists on their form.

/// A file.
#[derive(Debug)]
pub(crate) struct Dump {
    pub(crate) pid: u32,
    pub(crate) records: Vec<Record>,
}

/// A record.
#[derive(Debug)]
pub(crate) enum Record {
    Load(Load),
    /// Where code begins, and of each place its line and file.
    Lines(u64, Vec<(u64, u32, String)>),
    Close,
}

/// Code that is there from a time on.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) time: u64,
    pub(crate) address: u64,
    pub(crate) index: u64,
    pub(crate) name: String,
    pub(crate) code: Vec<u8>,
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap();
        let text = String::from_utf8(self.take(len).to_vec()).unwrap();
        self.take(1);
        text
    }
}

impl Dump {
    /// Reads the file at `path`.
    pub(crate) fn read(path: &str) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut bytes = Bytes(&bytes);
        let header: [u32; 4] = std::array::from_fn(|_| bytes.word());
        assert_eq!(header, [0x4a69_5444, 1, 40, 62]);
        bytes.word();
        let pid = bytes.word();
        assert_ne!(bytes.long(), 0);
        assert_eq!(bytes.long(), 0);
        let mut records = Vec::new();
        while !bytes.0.is_empty() {
            let (kind, len) = (bytes.word(), bytes.word());
            let mut rest = Bytes(bytes.take(len as usize - 8));
            let time = rest.long();
            records.push(match kind {
                0 => Record::Load(load(&mut rest, pid, time)),
                2 => {
                    let (address, count) = (rest.long(), rest.long());
                    let line = |_| {
                        let (address, line) = (rest.long(), rest.word());
                        assert_eq!(rest.word(), 0);
                        (address, line, rest.text())
                    };
                    Record::Lines(address, (0..count).map(line).collect())
                }
                3 => Record::Close,
                other => panic!("a record of kind {other}"),
            });
            assert!(
                rest.0.is_empty(),
                "{} bytes too many in {:?}",
                rest.0.len(),
                records.last()
            );
        }
        Self { pid, records }
    }

    pub(crate) fn loads(&self) -> impl DoubleEndedIterator<Item = &Load> {
        self.records.iter().filter_map(|record| match record {
            Record::Load(load) => Some(load),
            _ => None,
        })
    }

    /// The last version of the function `name`.
    pub(crate) fn last(&self, name: &str) -> &Load {
        let mut found = self.loads().rev().filter(|load| load.name == name);
        found
            .next()
            .unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    /// The lines that belong to `load`: those right before it.
    pub(crate) fn lines_of(&self, load: &Load) -> &[(u64, u32, String)] {
        let is_it =
            |record: &Record| matches!(record, Record::Load(other) if other.index == load.index);
        let place = self.records.iter().position(is_it).unwrap();
        match place.checked_sub(1).map(|before| &self.records[before]) {
            Some(Record::Lines(address, lines)) if *address == load.address => lines,
            _ => &[],
        }
    }
}

fn load(rest: &mut Bytes<'_>, pid: u32, time: u64) -> Load {
    assert_eq!(rest.word(), pid);
    assert_ne!(rest.word(), 0);
    let address = rest.long();
    assert_eq!(rest.long(), address);
    let (len, index) = (rest.long(), rest.long());
    let name = rest.text();
    let code = rest.take(len as usize).to_vec();
    Load {
        time,
        address,
        index,
        name,
        code,
    }
}
