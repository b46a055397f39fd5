//! What the child process does: CLIF in, an object out. It trusts nothing, and nobody trusts it.

use std::io::{Read, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::request::bytes;

/// What the child is given.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CodegenRequest {
    /// For any x86-64, not for this machine's.
    pub(super) baseline: bool,
    #[serde(with = "bytes")]
    pub(super) text: Vec<u8>,
}

/// What it gives back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Generated {
    #[serde(with = "bytes")]
    pub(super) object: Vec<u8>,
    /// The signatures of its functions, as text.
    pub(super) signatures: Vec<(String, String)>,
    /// Functions that no host can call, with what is recorded instead.
    pub(super) uncallable: Vec<(String, String)>,
    /// The signatures by which it calls functions of others, as text.
    pub(super) imports: Vec<(String, String)>,
}

/// Compiles a request: what [`codegen`] does between reading and writing.
pub(super) fn generate(request: CodegenRequest) -> Result<Generated, String> {
    super::compile(request)
}

/// The whole of a child process that compiles one request ([`RequestOptions::command`](super::RequestOptions)): reads it from
/// standard input, and writes what came of it, an error too, to standard output. Fails only where it cannot read or write.
pub fn codegen() -> ExitCode {
    let mut input = Vec::new();
    if let Err(error) = std::io::stdin().read_to_end(&mut input) {
        eprintln!("cannot read the request: {error}");
        return ExitCode::FAILURE;
    }
    let done = postcard::from_bytes(&input)
        .map_err(|error| format!("the request cannot be read: {error}"))
        .and_then(generate);
    let written = postcard::to_stdvec(&done)
        .map_err(std::io::Error::other)
        .and_then(|bytes| {
            let mut out = std::io::stdout().lock();
            out.write_all(&bytes)?;
            out.flush()
        });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write what was compiled: {error}");
            ExitCode::FAILURE
        }
    }
}
