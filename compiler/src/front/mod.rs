//! Front ends: what turns source files into objects for the linker.
//!
//! Invariant: nothing here is shared between calls, so any number of threads may compile at once.

pub(crate) mod ar;
pub mod cc;
pub mod clif;
mod dwarf;
mod thin;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jitcast_linker::Dialect;
use jitcast_runtime::signature::Signature;

pub use cc::CcError;
pub use clif::ClifError;

use crate::threads::Threads;
use clif::{Target, TargetError};

/// How large a file can be, in bytes: no window holds more.
pub const MAX_FILE_BYTES: u64 = 2 << 30;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Cranelift's intermediate representation, as text.
    Clif,
    /// C.
    C,
    /// A relocatable object.
    Object,
    /// An archive of objects.
    Archive,
}

impl Kind {
    /// What the file `path` is, whose first bytes are `head`: by its magic number if it has one, else by
    /// its extension.
    pub fn of(path: &Path, head: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Kind); 4] = [
            (b"\x7fELF", Kind::Object),
            (b"!<arch>\n", Kind::Archive),
            (b"!<thin>\n", Kind::Archive),
            // Bitcode in place of an object: the linker says what to do.
            (b"BC\xc0\xde", Kind::Object),
        ];
        let magic = MAGIC.iter().find(|(magic, _)| head.starts_with(magic));
        magic
            .map(|(_, kind)| *kind)
            .or_else(|| match path.extension()?.to_str()? {
                "clif" => Some(Self::Clif),
                "c" => Some(Self::C),
                "o" => Some(Self::Object),
                "a" => Some(Self::Archive),
                _ => None,
            })
    }
}

/// Which processor CLIF is compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cpu {
    /// This machine's.
    #[default]
    Host,
    /// Any x86-64.
    Baseline,
}

/// How source files are compiled.
///
/// ```
/// use jitcast_compiler::front::{Cpu, Options};
///
/// let mut options = Options { cpu: Cpu::Baseline, ..Options::default() };
/// options.cflags.push("-Iinclude".to_owned());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The C compiler.
    pub cc: String,
    /// All of its flags but `-c -o`: to add to [`cc::DEFAULT_CFLAGS`], push; to replace them, assign.
    pub cflags: Vec<String>,
    /// The processor that CLIF is compiled for.
    pub cpu: Cpu,
    /// The longest CLIF text, in bytes.
    pub max_text_bytes: usize,
    /// How many threads compile at once. What comes out does not depend on it.
    pub threads: Threads,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cc: cc::DEFAULT_CC.to_owned(),
            cflags: cc::DEFAULT_CFLAGS.map(str::to_owned).to_vec(),
            cpu: Cpu::Host,
            max_text_bytes: clif::DEFAULT_MAX_TEXT_BYTES,
            threads: Threads::default(),
        }
    }
}

/// A file, ready for the linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The name that messages use: the path as it was given.
    pub name: String,
    /// What it was.
    pub kind: Kind,
    /// An ELF object or an archive; hostile if it was one before.
    pub bytes: Vec<u8>,
    /// Whose habits it follows.
    pub dialect: Dialect,
    /// The signatures of the functions that it defines, as far as they are known: those of CLIF, and of C where debugging
    /// information (`-g`) says them.
    pub signatures: Vec<(String, Signature)>,
    /// Functions that it defines whose signature is known and none that a host can call by, with that
    /// signature's text.
    pub unlisted: Vec<(String, String)>,
    /// The signatures by which it uses other functions, as far as they are known.
    pub imports: Vec<(String, Signature)>,
    /// What the compiler said though it succeeded: the warnings of C.
    pub messages: String,
}

impl Compiled {
    fn add(&mut self, described: dwarf::Described) {
        self.signatures.extend(described.signatures);
        self.imports.extend(described.imports);
    }
}

/// A file that did not get as far as the linker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}\n  {}\n  help: {}", .path.display(),
        "its bytes are needed to compile or link it", read_help(.source))]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is a directory, a device or a pipe.
    #[error(
        "{}: not a regular file\n  \
         directories, devices and pipes are not read\n  \
         help: name a .clif, .c, .o or .a file",
        .path.display()
    )]
    NotAFile {
        /// Its path.
        path: PathBuf,
    },
    /// It is larger than [`MAX_FILE_BYTES`].
    #[error(
        "{}: {bytes} bytes, the limit is {MAX_FILE_BYTES}\n  \
         no window holds more\n  \
         help: split it, or strip its debug sections",
        .path.display()
    )]
    TooLarge {
        /// Its path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A thin archive that cannot be read.
    #[error("{}: is no thin archive, though it begins like one: {why}\n  help: make it anew with `ar`", .path.display())]
    ThinArchive {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Neither its name nor its first bytes tell what it is.
    #[error(
        "{}: neither its name nor its first bytes tell what it is\n  \
         a unit is made of CLIF (.clif), C (.c), ELF objects (.o) and archives (.a)\n  \
         help: rename it, or compile it to an object first",
        .path.display()
    )]
    UnknownKind {
        /// Its path.
        path: PathBuf,
    },
    /// CLIF that is not text.
    #[error(
        "{}: byte {offset} is not UTF-8\n  \
         CLIF is text\n  \
         help: save it as UTF-8, or give it the extension of what it is",
        .path.display()
    )]
    NotText {
        /// Its path.
        path: PathBuf,
        /// Where the text ends.
        offset: usize,
    },
    /// Wrong CLIF.
    #[error(transparent)]
    Clif(#[from] ClifError),
    /// C that was not compiled.
    #[error(transparent)]
    C(#[from] CcError),
    /// No code generator.
    #[error(transparent)]
    Target(#[from] TargetError),
}

fn read_help(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "check the path; it is relative to the current directory",
        io::ErrorKind::PermissionDenied => "let the compiler process read it (chmod), or copy it",
        _ => "check the path and the disk",
    }
}

/// The name that a unit has unless it is given one: the stem of its first file.
pub fn unit_name(path: &Path) -> String {
    path.file_stem().map_or_else(
        || "unit".to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    )
}

/// Compiles the file at `path`, or just reads it if it is an object or an archive.
///
/// # Errors
///
/// See [`FrontError`]: each names the file, the reason and the remedy.
///
/// ```
/// use jitcast_compiler::front::{Kind, Options, compile_file};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("same.clif");
/// # std::fs::write(&path, "function %same(i64) -> i64 {\nblock0(v0: i64):\n    return v0\n}")?;
/// let compiled = compile_file(&path, &Options::default())?;
/// assert_eq!(compiled.kind, Kind::Clif);
/// # Ok(())
/// # }
/// ```
pub fn compile_file(path: &Path, options: &Options) -> Result<Compiled, FrontError> {
    let mut bytes = read_file(path, MAX_FILE_BYTES)?;
    if thin::is_thin(&bytes) {
        bytes = thin::made_whole(path, &bytes)?;
    }
    compile(path, bytes, options, true)
}

/// Compiles the files of one batch as [`compile_file`] does each, several at once. What comes out is in their order.
///
/// # Errors
///
/// As [`compile_file`], of the first file that has any.
pub fn compile_files(paths: &[PathBuf], options: &Options) -> Result<Vec<Compiled>, FrontError> {
    let files: Vec<_> = paths.iter().collect();
    let threads = &options.threads;
    threads.map(paths.len(), files, |_, path| compile_file(path, options))
}

/// Reads a regular file of at most `limit` bytes.
fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, FrontError> {
    let unreadable = |source| FrontError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // A pipe would block at `open`.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(FrontError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(FrontError::TooLarge {
            path: path.to_owned(),
            bytes: metadata.len(),
        });
    }
    Ok(bytes)
}

/// Compiles `bytes`, a file's contents, or just returns them if they are an object or an archive. Its `name`
/// tells messages what to call it, and with its extension what it is.
///
/// # Errors
///
/// As [`compile_file`].
///
/// ```
/// use jitcast_compiler::front::{Options, compile_bytes};
///
/// let wrong = compile_bytes("wrong.clif", "function %wrong".into(), &Options::default());
/// assert!(wrong.unwrap_err().to_string().starts_with("wrong.clif:"));
/// ```
pub fn compile_bytes(
    name: &str,
    bytes: Vec<u8>,
    options: &Options,
) -> Result<Compiled, FrontError> {
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(FrontError::TooLarge {
            path: name.into(),
            bytes: bytes.len() as u64,
        });
    }
    compile(Path::new(name), bytes, options, false)
}

/// Compiles files of one batch as [`compile_bytes`] does each, several at once. What comes out is in their order.
///
/// # Errors
///
/// As [`compile_bytes`], of the first file that has any.
pub fn compile_all(
    files: Vec<(String, Vec<u8>)>,
    options: &Options,
) -> Result<Vec<Compiled>, FrontError> {
    let is_text = |(name, bytes): &&(String, Vec<u8>)| {
        matches!(Kind::of(Path::new(name), bytes), Some(Kind::Clif | Kind::C))
    };
    // What is an object already costs nothing.
    let worth = files.iter().filter(is_text).count();
    options.threads.map(worth, files, |_, (name, bytes)| {
        compile_bytes(&name, bytes, options)
    })
}

/// Compiles the contents of `path`, which the C compiler can open itself if they are `on_disk`.
fn compile(
    path: &Path,
    bytes: Vec<u8>,
    options: &Options,
    on_disk: bool,
) -> Result<Compiled, FrontError> {
    let Some(kind) = Kind::of(path, &bytes) else {
        return Err(FrontError::UnknownKind {
            path: path.to_owned(),
        });
    };
    let mut compiled = Compiled {
        name: path.display().to_string(),
        kind,
        bytes,
        dialect: Dialect::Elf,
        signatures: Vec::new(),
        unlisted: Vec::new(),
        imports: Vec::new(),
        messages: String::new(),
    };
    match kind {
        Kind::Object => compiled.add(dwarf::describe(&compiled.bytes)),
        Kind::Archive => {}
        Kind::C => {
            let source = if on_disk {
                cc::Source::File(path)
            } else {
                cc::Source::Text(&compiled.bytes)
            };
            let done = cc::compile(&compiled.name, &source, &options.cc, &options.cflags)?;
            compiled.add(dwarf::describe(&done.object));
            (compiled.bytes, compiled.messages) = (done.object, done.messages);
        }
        Kind::Clif => {
            let text =
                std::str::from_utf8(&compiled.bytes).map_err(|error| FrontError::NotText {
                    path: path.to_owned(),
                    offset: error.valid_up_to(),
                })?;
            let target = match options.cpu {
                Cpu::Host => Target::host(),
                Cpu::Baseline => Target::baseline(),
            }?;
            let (limit, threads) = (options.max_text_bytes, &options.threads);
            let done = clif::compile_limited(&compiled.name, text, &target, limit, threads)?;
            compiled.dialect = Dialect::Cranelift;
            compiled.bytes = done.object;
            compiled.signatures = done.signatures;
            compiled.unlisted = done.unlisted;
            compiled.imports = done.imports;
        }
    }
    Ok(compiled)
}
