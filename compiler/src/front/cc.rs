//! C files to objects, through the system's compiler.
//!
//! Invariant: the compiler writes into a directory of its own that is gone when this returns.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// The compiler that is called unless another one is named.
pub const DEFAULT_CC: &str = "cc";

/// What it is told unless said otherwise. `-fPIC`: code runs at another address in each worker;
/// `-fno-plt`: calls go through cells without a stub in between; `-g`: signatures are known, of which where variables
/// are is no part.
pub const DEFAULT_CFLAGS: [&str; 5] = ["-O2", "-g", "-fno-var-tracking", "-fPIC", "-fno-plt"];

/// How much of the compiler's messages is kept, in bytes.
const MAX_MESSAGE_BYTES: u64 = 64 * 1024;

/// A C file that did not become an object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CcError {
    /// The compiler is not there.
    #[error(
        "{file}: no C compiler: `{cc}` is not on PATH\n  \
         a .c file is compiled by the system's compiler\n  \
         help: install gcc or clang, or name one with --cc"
    )]
    Missing {
        /// The C file.
        file: String,
        /// The compiler.
        cc: String,
    },
    /// The compiler did not start.
    #[error(
        "{file}: the C compiler `{cc}` cannot be run: {source}\n  \
         a .c file is compiled by the system's compiler\n  \
         help: name another one with --cc"
    )]
    Start {
        /// The C file.
        file: String,
        /// The compiler.
        cc: String,
        /// Why.
        source: io::Error,
    },
    /// The compiler found faults, or fell over.
    #[error(
        "{file}: `{cc}` failed ({status}){}\n  \
         the file was not compiled\n  \
         help: mend it; the command was `{command}`",
        indented(.messages)
    )]
    Failed {
        /// The C file.
        file: String,
        /// The compiler.
        cc: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error, shortened if it is long.
        messages: String,
        /// The whole command.
        command: String,
    },
    /// The compiler ended well, but its object is not there.
    #[error(
        "{file}: `{cc}` left no object: {source}\n  \
         its flags must let it compile one file, with `-c -o`\n  \
         help: look at --cflags; the command was `{command}`"
    )]
    NoObject {
        /// The C file.
        file: String,
        /// The compiler.
        cc: String,
        /// What reading it gave.
        source: io::Error,
        /// The whole command.
        command: String,
    },
    /// No temporary directory.
    #[error(
        "{file}: no temporary directory for the object: {source}\n  \
         the C compiler writes a file\n  \
         help: make room, or set TMPDIR to a directory that can be written"
    )]
    Temporary {
        /// The C file.
        file: String,
        /// Why.
        source: io::Error,
    },
}

/// The compiler's messages as indented lines.
fn indented(messages: &str) -> String {
    messages
        .lines()
        .map(|line| format!("\n  | {line}"))
        .collect()
}

/// Where the C text is.
pub(super) enum Source<'a> {
    /// In a file.
    File(&'a Path),
    /// In memory.
    Text(&'a [u8]),
}

/// An object, and what the compiler said (its warnings).
pub(super) struct CcObject {
    pub(super) object: Vec<u8>,
    pub(super) messages: String,
}

/// Compiles `source` by `cc cflags... -c -o OBJECT FILE`; messages call it `name`.
pub(super) fn compile(
    name: &str,
    source: &Source<'_>,
    cc: &str,
    cflags: &[String],
) -> Result<CcObject, CcError> {
    let file = || name.to_owned();
    let temporary = |source| CcError::Temporary {
        file: file(),
        source,
    };
    let directory = tempfile::Builder::new()
        .prefix("jitcast-cc-")
        .tempdir()
        .map_err(temporary)?;
    let (object, messages) = (
        directory.path().join("unit.o"),
        directory.path().join("messages"),
    );
    let path = match source {
        Source::File(path) => path_argument(path),
        Source::Text(text) => {
            // Under its own name, which the compiler's messages repeat.
            let stem = Path::new(name)
                .file_name()
                .map_or("unit.c".into(), PathBuf::from);
            let path = directory.path().join(stem);
            std::fs::write(&path, text).map_err(temporary)?;
            path
        }
    };
    let mut args: Vec<OsString> = cflags.iter().map(OsString::from).collect();
    if cflags.iter().any(|flag| flag.starts_with("-g")) {
        args.extend(nowhere(directory.path()));
    }
    args.extend(["-c".into(), "-o".into(), object.clone().into(), path.into()]);
    let command = args.iter().fold(cc.to_owned(), |mut command, arg| {
        command.push(' ');
        command.push_str(&arg.to_string_lossy());
        command
    });
    let status = Command::new(cc)
        .args(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&messages).map_err(temporary)?)
        .status()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CcError::Missing {
                file: file(),
                cc: cc.to_owned(),
            },
            _ => CcError::Start {
                file: file(),
                cc: cc.to_owned(),
                source,
            },
        })?;
    let messages = read_messages(&messages).map_err(temporary)?;
    if !status.success() {
        return Err(CcError::Failed {
            file: file(),
            cc: cc.to_owned(),
            status,
            messages,
            command,
        });
    }
    match std::fs::read(&object) {
        Ok(object) => Ok(CcObject { object, messages }),
        Err(source) => Err(CcError::NoObject {
            file: file(),
            cc: cc.to_owned(),
            source,
            command,
        }),
    }
}

/// Flags that keep out of debugging information where the compiler ran, so that equal files make equal objects.
fn nowhere(directory: &Path) -> impl Iterator<Item = OsString> {
    let current = std::env::current_dir();
    let places = current.into_iter().chain([directory.to_owned()]);
    places.map(|place| {
        let mut flag = OsString::from("-fdebug-prefix-map=");
        flag.push(place);
        flag.push("=.");
        flag
    })
}

/// `path`, such that the compiler does not take it for an option.
fn path_argument(path: &Path) -> PathBuf {
    let dashed = path.as_os_str().as_encoded_bytes().starts_with(b"-");
    if dashed {
        Path::new(".").join(path)
    } else {
        path.to_owned()
    }
}

fn read_messages(path: &Path) -> io::Result<String> {
    let mut messages = Vec::new();
    File::open(path)?
        .take(MAX_MESSAGE_BYTES)
        .read_to_end(&mut messages)?;
    Ok(String::from_utf8_lossy(&messages).into_owned())
}
