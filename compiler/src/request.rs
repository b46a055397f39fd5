//! What publishers and askers send over the socket, and what they are answered: postcard inside a frame.

use std::io;
use std::os::fd::AsFd;

use jitcast_runtime::signature::NamedSignature;
use jitcast_runtime::wire::{self, Frame, FrameKind};
use serde::{Deserialize, Serialize};

use crate::changeset::{Audience, Changeset, PublishOptions, SymbolUpdate};
use crate::compiler::Compiler;
use crate::front::{self, FrontError};
use crate::publish::{LinkOptions, Publication, Reclaim, UnitSource};
use crate::status::Status;

/// The longest request that the compiler process accepts from a publisher, bytes.
pub const MAX_REQUEST_BYTES: u32 = 512 << 20;

/// What is to become visible as one: a [`Changeset`] whose units are not compiled yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    /// The units to publish.
    pub units: Vec<RequestUnit>,
    /// Names of the units to remove.
    pub removals: Vec<String>,
    /// Updates of symbols.
    pub updates: Vec<SymbolUpdate>,
    /// What the publisher asks for besides.
    pub options: PublishOptions,
    /// Who is to run the units, until the canary is promoted or aborted; `None`: every worker.
    pub canary: Option<Audience>,
}

/// What is to become of a canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecideRequest {
    /// Its number, or the name of a unit of it.
    pub canary: String,
    /// What is to become of it.
    pub decision: Decision,
}

/// How a canary ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Every worker runs it.
    Promote,
    /// Nobody runs it.
    Abort,
}

/// A state to go back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// The generation whose units are wanted; `None`: what was before the latest publication of units.
    pub generation: Option<u64>,
    /// What the publisher asks for besides.
    pub options: PublishOptions,
}

/// A unit to publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestUnit {
    /// Its name.
    pub name: String,
    /// Its files: CLIF, objects, archives. C is compiled by the publisher, where its headers are.
    pub files: Vec<RequestFile>,
    /// Signatures to record, in the text of `--sig`.
    pub signatures: Vec<String>,
    /// Whether its memory is reused after it was replaced.
    pub reclaim: Reclaim,
    /// How it is linked.
    pub link: LinkOptions,
}

/// A file of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFile {
    /// The name that messages use, and whose extension tells CLIF.
    pub name: String,
    /// Its contents.
    #[serde(with = "bytes")]
    pub bytes: Vec<u8>,
}

/// Bytes as one block, not as a sequence of numbers.
pub(crate) mod bytes {
    use serde::{Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        from.deserialize_bytes(Visitor)
    }
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The compiler process said no, in these words.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error(
        "the compiler process does not answer as it should: {0}\n  help: check that the socket is jitcast's, and of the same version"
    )]
    Protocol(#[from] io::Error),
    /// The message is not what was expected.
    #[error("a message cannot be read: {0}")]
    Malformed(#[from] postcard::Error),
}

/// What is text is compiled here.
fn unit_source(unit: RequestUnit, options: &front::Options) -> Result<UnitSource, String> {
    let mut signatures = Vec::new();
    for text in &unit.signatures {
        let NamedSignature { name, signature } =
            text.parse().map_err(|error| format!("{error}"))?;
        signatures.push((name, signature));
    }
    let mut files = Vec::new();
    for file in unit.files {
        let is_c = file.name.ends_with(".c") && !file.bytes.starts_with(b"\x7fELF");
        if is_c {
            return Err(format!(
                "{}: C is compiled by the publisher, not by the compiler process",
                file.name
            ));
        }
        let compiled = front::compile_bytes(&file.name, file.bytes, options);
        files.push(compiled.map_err(|error: FrontError| error.to_string())?);
    }
    let mut source = UnitSource::new(unit.name, files);
    // The first one counts, and what was said explicitly comes first.
    source.signatures.splice(0..0, signatures);
    source.reclaim = unit.reclaim;
    source.link = unit.link;
    Ok(source)
}

/// Carries a request out.
pub(crate) fn carry_out(
    compiler: &Compiler,
    payload: &[u8],
    options: &front::Options,
) -> (FrameKind, Vec<u8>) {
    let published = read(payload).and_then(|request| publish_request(compiler, request, options));
    reply(published)
}

/// Goes back to an earlier state.
pub(crate) fn roll_back(compiler: &Compiler, payload: &[u8]) -> (FrameKind, Vec<u8>) {
    let published = read(payload).and_then(|request: RollbackRequest| {
        let done = compiler.rollback(request.generation, request.options);
        done.map_err(|error| error.to_string())
    });
    reply(published)
}

/// Promotes or aborts a canary.
pub(crate) fn end_canary(compiler: &Compiler, payload: &[u8]) -> (FrameKind, Vec<u8>) {
    let done = read(payload).and_then(|request: DecideRequest| {
        let done = match request.decision {
            Decision::Promote => compiler.promote(&request.canary),
            Decision::Abort => compiler.abort(&request.canary),
        };
        done.map_err(|error| error.to_string())
    });
    reply(done)
}

/// Goes on in another object.
pub(crate) fn renew_segment(compiler: &Compiler) -> (FrameKind, Vec<u8>) {
    reply(compiler.renew().map_err(|error| error.to_string()))
}

fn publish_request(
    compiler: &Compiler,
    request: PublishRequest,
    options: &front::Options,
) -> Result<Publication, String> {
    let units = request.units.into_iter();
    let units: Vec<_> = units
        .map(|unit| unit_source(unit, options))
        .collect::<Result<_, _>>()?;
    let changes = Changeset {
        units: &units,
        removals: &request.removals,
        updates: &request.updates,
        options: request.options,
        canary: request.canary.as_ref(),
    };
    compiler.change(&changes).map_err(|error| error.to_string())
}

fn read<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, String> {
    postcard::from_bytes(payload).map_err(|error| format!("the request cannot be read: {error}"))
}

fn reply(published: Result<Publication, String>) -> (FrameKind, Vec<u8>) {
    let reply = published.and_then(|publication| {
        postcard::to_stdvec(&publication).map_err(|error| error.to_string())
    });
    match reply {
        Ok(reply) => (FrameKind::Published, reply),
        Err(text) => (FrameKind::Refused, text.into_bytes()),
    }
}

/// Tells the state of the segment.
pub(crate) fn tell(compiler: &Compiler) -> (FrameKind, Vec<u8>) {
    match postcard::to_stdvec(&compiler.status()) {
        Ok(status) => (FrameKind::StatusReply, status),
        Err(error) => (FrameKind::Refused, error.to_string().into_bytes()),
    }
}

/// Sends a request over a connected, blocking socket and waits for the answer.
///
/// # Errors
/// [`RequestError`].
pub fn publish(socket: impl AsFd, request: &PublishRequest) -> Result<Publication, RequestError> {
    let payload = postcard::to_stdvec(request)?;
    wire::send(&socket, FrameKind::Publish, &payload, &[])?;
    let frame = answer(socket, FrameKind::Published)?;
    Ok(postcard::from_bytes(&frame.payload)?)
}

/// Asks a compiler process to go back to an earlier state.
///
/// # Errors
/// [`RequestError`].
pub fn rollback(socket: impl AsFd, request: &RollbackRequest) -> Result<Publication, RequestError> {
    let payload = postcard::to_stdvec(request)?;
    wire::send(&socket, FrameKind::Rollback, &payload, &[])?;
    let frame = answer(socket, FrameKind::Published)?;
    Ok(postcard::from_bytes(&frame.payload)?)
}

/// Asks a compiler process to promote or abort a canary.
///
/// # Errors
/// [`RequestError`].
pub fn decide(socket: impl AsFd, request: &DecideRequest) -> Result<Publication, RequestError> {
    let payload = postcard::to_stdvec(request)?;
    wire::send(&socket, FrameKind::Decide, &payload, &[])?;
    let frame = answer(socket, FrameKind::Published)?;
    Ok(postcard::from_bytes(&frame.payload)?)
}

/// Asks a compiler process to go on in another object, which gives memory back to the system.
///
/// # Errors
/// [`RequestError`].
pub fn renew(socket: impl AsFd) -> Result<Publication, RequestError> {
    wire::send(&socket, FrameKind::Renew, &[], &[])?;
    let frame = answer(socket, FrameKind::Published)?;
    Ok(postcard::from_bytes(&frame.payload)?)
}

/// Asks a compiler process for its state.
///
/// # Errors
/// [`RequestError`].
pub fn status(socket: impl AsFd) -> Result<Status, RequestError> {
    wire::send(&socket, FrameKind::Status, &[], &[])?;
    let frame = answer(socket, FrameKind::StatusReply)?;
    Ok(postcard::from_bytes(&frame.payload)?)
}

fn answer(socket: impl AsFd, expected: FrameKind) -> Result<Frame, RequestError> {
    let frame = wire::receive(socket, MAX_REQUEST_BYTES)?;
    match frame.kind {
        kind if kind == expected => Ok(frame),
        FrameKind::Refused => Err(RequestError::Refused(
            String::from_utf8_lossy(&frame.payload).into_owned(),
        )),
        other => {
            let why = format!("a frame of kind {other:?} instead of {expected:?}");
            Err(io::Error::new(io::ErrorKind::InvalidData, why).into())
        }
    }
}
