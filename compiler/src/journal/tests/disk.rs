//! A file system in memory that forgets whatever was not synced, dies at any step, and can be made to lie.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::journal::storage::{File, Storage};

/// A sync that does nothing, as if the code had left it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    /// Of a publication in the log.
    Publication,
    /// Of a reservation in the log: a few bytes.
    Reservation,
    /// Of a log that is written anew.
    NewLog,
    /// Of an object.
    Object,
    /// Of the folder of objects.
    Objects,
    /// Of the folder that the log is in.
    Top,
}

/// What a step is refused with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A write that finds room for half of its bytes.
    Write,
    /// A sync of a file.
    Sync,
}

/// Numbers that follow from a seed.
#[derive(Clone, Debug)]
pub(super) struct Choices(pub(super) u64);

impl Choices {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

#[derive(Clone, Debug)]
enum Change {
    Append(u64, Vec<u8>),
    Cut(u64),
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Append(at, bytes) => {
                let at = *at as usize;
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Self::Cut(len) => content.truncate(*len as usize),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

/// Which names lead where after an operation.
type Names = Vec<(String, Option<usize>)>;

#[derive(Debug, Default)]
struct Inner {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<Names>,
    /// Steps until it dies.
    left: Option<u64>,
    dead: bool,
    lie: Option<Lie>,
    refusal: Option<(u32, Refusal)>,
}

/// The file system. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    /// Lets it die after `steps`, or never.
    pub(super) fn die_after(&self, steps: Option<u64>) {
        self.0.lock().left = steps;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// Makes it lie from here on.
    pub(super) fn lie(&self, lie: Option<Lie>) {
        self.0.lock().lie = lie;
    }

    /// Refuses the next step of that kind.
    pub(super) fn refuse(&self, refusal: Refusal) {
        self.refuse_after(0, refusal);
    }

    /// Refuses a step of that kind, after `count` more that it lets pass.
    pub(super) fn refuse_after(&self, count: u32, refusal: Refusal) {
        self.0.lock().refusal = Some((count, refusal));
    }

    /// The process is gone; what it had written is there.
    pub(super) fn revive(&self) {
        let mut inner = self.0.lock();
        inner.dead = false;
        inner.left = None;
    }

    /// The power is gone: of what was not synced, any part may be there.
    pub(super) fn lose_power(&self, choices: &mut Choices) {
        self.revive();
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        let mut names = inner.durable.clone();
        for operation in inner.pending.drain(..) {
            if choices.next(2) == 0 {
                assign(&mut names, &operation);
            }
        }
        inner.names.clone_from(&names);
        inner.durable = names;
        for inode in &mut inner.inodes {
            let mut content = inode.durable.clone();
            for change in inode.pending.drain(..) {
                match (choices.next(3), change) {
                    (0, change) => change.apply(&mut content),
                    (1, Change::Append(at, mut bytes)) => {
                        bytes.truncate(choices.next(bytes.len()));
                        Change::Append(at, bytes).apply(&mut content);
                    }
                    _ => {}
                }
            }
            inode.content.clone_from(&content);
            inode.durable = content;
        }
    }

    /// The contents of a file.
    pub(super) fn contents(&self, name: &str) -> Vec<u8> {
        let inner = self.0.lock();
        inner.inodes[inner.names[name]].content.clone()
    }

    /// Puts other contents into a file, durably.
    pub(super) fn overwrite(&self, name: &str, contents: &[u8]) {
        let mut inner = self.0.lock();
        let index = inner.names[name];
        let inode = &mut inner.inodes[index];
        inode.content = contents.to_vec();
        inode.durable = contents.to_vec();
        inode.pending.clear();
    }

    /// The names of all files.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.lock().names.keys().cloned().collect()
    }
}

fn assign(names: &mut BTreeMap<String, usize>, operation: &Names) {
    for (name, inode) in operation {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Inner {
    /// A step: `Err` once it is dead. On the step at which it dies, `true`: whether anything of it happens is
    /// open.
    fn step(&mut self) -> io::Result<bool> {
        if self.dead {
            return Err(io::Error::other("the process is dead"));
        }
        match &mut self.left {
            Some(0) => {
                self.dead = true;
                Ok(true)
            }
            Some(left) => {
                *left -= 1;
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn refused(&mut self, refusal: Refusal) -> bool {
        match &mut self.refusal {
            Some((0, refused)) if *refused == refusal => {
                self.refusal = None;
                true
            }
            Some((left, refused)) if *refused == refusal => {
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    fn rename(&mut self, operation: Names) -> io::Result<()> {
        let dies = self.step()?;
        assign(&mut self.names, &operation);
        self.pending.push(operation);
        died(dies)
    }

    /// What a sync of the file `inode` makes durable.
    fn lie_of(&self, inode: usize) -> Lie {
        let name = self.names.iter().find(|(_, at)| **at == inode);
        let pending = self.inodes[inode].pending.iter();
        let pending: usize = pending
            .map(|change| match change {
                Change::Append(_, bytes) => bytes.len(),
                Change::Cut(_) => 0,
            })
            .sum();
        match name.map(|(name, _)| name.as_str()) {
            Some("log") if pending <= 64 => Lie::Reservation,
            Some("log") => Lie::Publication,
            Some("log.new") => Lie::NewLog,
            _ => Lie::Object,
        }
    }
}

fn died(dies: bool) -> io::Result<()> {
    if dies {
        return Err(io::Error::other("the process dies"));
    }
    Ok(())
}

impl Storage for Disk {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn File>>> {
        let inner = self.0.lock();
        let inode = inner.names.get(name).copied();
        Ok(inode.map(|inode| Box::new(Handle(self.clone(), inode)) as _))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        let mut inner = self.0.lock();
        let inode = inner.inodes.len();
        inner.inodes.push(Inode::default());
        inner.rename(vec![(name.to_owned(), Some(inode))])?;
        Ok(Box::new(Handle(self.clone(), inode)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        let inode = inner.names.get(from).copied();
        let inode = inode.ok_or(io::ErrorKind::NotFound)?;
        inner.rename(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))])
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().rename(vec![(name.to_owned(), None)])
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let inner = self.0.lock();
        let names = inner.names.keys().filter(|name| folder_of(name) == folder);
        let last = |name: &String| name.rsplit('/').next().unwrap().to_owned();
        Ok(names.map(last).collect())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        died(inner.step()?)?;
        let lie = if folder.is_empty() {
            Lie::Top
        } else {
            Lie::Objects
        };
        if inner.lie == Some(lie) {
            return Ok(());
        }
        let pending = std::mem::take(&mut inner.pending);
        for operation in pending {
            if folder_of(&operation[0].0) == folder {
                assign(&mut inner.durable, &operation);
            } else {
                inner.pending.push(operation);
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Handle(Disk, usize);

impl Handle {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut inner = self.0.0.lock();
        let dies = inner.step()?;
        let inode = &mut inner.inodes[self.1];
        change.apply(&mut inode.content);
        inode.pending.push(change);
        died(dies)
    }
}

impl File for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.0.lock().inodes[self.1].content.len() as u64)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let inner = self.0.0.lock();
        let content = &inner.inodes[self.1].content;
        let from = content.get(at as usize..at as usize + bytes.len());
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let at = self.len()?;
        let half = self.0.0.lock().refused(Refusal::Write);
        if half {
            self.change(Change::Append(at, bytes[..bytes.len() / 2].to_vec()))?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.change(Change::Append(at, bytes.to_vec()))
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.change(Change::Cut(len))
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.0.0.lock();
        died(inner.step()?)?;
        if inner.refused(Refusal::Sync) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if inner.lie == Some(inner.lie_of(self.1)) {
            return Ok(());
        }
        let inode = &mut inner.inodes[self.1];
        inode.pending.clear();
        inode.durable.clone_from(&inode.content);
        Ok(())
    }
}
