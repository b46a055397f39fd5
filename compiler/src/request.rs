//! What publishers and askers send over the socket, and what they are answered: postcard inside a frame.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use jitcast_runtime::debug::{ASK_LINES, DebugRequest, Lines, Wanted};
use jitcast_runtime::signature::NamedSignature;
use jitcast_runtime::wire::{self, Frame, FrameKind};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use crate::changeset::{Audience, Changeset, PublishOptions, SymbolUpdate};
use crate::compiler::Compiler;
use crate::front;
use crate::publish::{LinkOptions, Publication, Reclaim, UnitSource};
use crate::status::Status;
use crate::turn::Turn;

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

/// What workers are to show to debuggers and profilers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantRequest {
    /// The worker of this process; `None`: every worker.
    pub pid: Option<i32>,
    /// [`Wanted::word`].
    pub wanted: u64,
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

/// What the units of a request become: what is text is compiled, all files at once.
fn unit_sources(
    units: Vec<RequestUnit>,
    options: &front::Options,
) -> Result<Vec<UnitSource>, String> {
    let (mut sources, mut counts, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for unit in units {
        let mut source = UnitSource::new(unit.name, []);
        for text in &unit.signatures {
            let NamedSignature { name, signature } =
                text.parse().map_err(|error| format!("{error}"))?;
            source.signatures.push((name, signature));
        }
        source.reclaim = unit.reclaim;
        source.link = unit.link;
        counts.push(unit.files.len());
        for file in unit.files {
            let is_c = file.name.ends_with(".c") && !file.bytes.starts_with(b"\x7fELF");
            if is_c {
                return Err(format!(
                    "{}: C is compiled by the publisher, not by the compiler process",
                    file.name
                ));
            }
            files.push((file.name, file.bytes));
        }
        sources.push(source);
    }
    let start = Instant::now();
    let compiled = front::compile_all(files, options);
    tracing::debug!(compiled = ?start.elapsed(), "publication");
    let mut compiled = compiled.map_err(|error| error.to_string())?.into_iter();
    for (source, count) in sources.iter_mut().zip(counts) {
        // The first signature counts, and what was said explicitly comes first.
        source.add(compiled.by_ref().take(count));
    }
    Ok(sources)
}

/// Carries a publication out, in its turn.
pub(crate) fn carry_out(
    compiler: &Compiler,
    request: PublishRequest,
    options: &front::Options,
    turn: &mut dyn Turn,
) -> (FrameKind, Vec<u8>) {
    reply(publish_request(compiler, request, options, turn))
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

/// What debugging information says of a unit.
pub(crate) fn tell_of_unit(compiler: &Compiler, payload: &[u8]) -> (FrameKind, Vec<u8>) {
    match crate::debug::answer(compiler, payload) {
        Ok(answer) => (FrameKind::DebugReply, answer),
        Err(why) => (FrameKind::Refused, why.into_bytes()),
    }
}

/// Has workers show what is published to debuggers and profilers.
pub(crate) fn want_shown(compiler: &Compiler, payload: &[u8]) -> (FrameKind, Vec<u8>) {
    let wanted = read::<WantRequest>(payload).and_then(|WantRequest { pid, wanted }| {
        let wanted = Wanted::of(wanted).ok_or("nothing is asked for")?;
        let done = compiler.want_shown(pid, wanted);
        let done = done.map_err(|error| error.to_string())?;
        done.ok_or_else(|| {
            let help = "`jitcast status` shows the workers and their pids, as the compiler process has them";
            format!("process {} is no worker of this segment\n  help: {help}", pid.unwrap_or(0))
        })
    });
    reply(wanted)
}

fn publish_request(
    compiler: &Compiler,
    request: PublishRequest,
    options: &front::Options,
    turn: &mut dyn Turn,
) -> Result<Publication, String> {
    let units = unit_sources(request.units, options)?;
    let changes = Changeset {
        units: &units,
        removals: &request.removals,
        updates: &request.updates,
        options: request.options,
        canary: request.canary.as_ref(),
    };
    let done = compiler.change_in_turn(&changes, turn);
    done.map_err(|error| error.to_string())
}

/// What a payload says.
pub(crate) fn read<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, String> {
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

/// Tells the state of the segment, and how many publications are under way; and where all lies, for who asks for it.
pub(crate) fn tell(compiler: &Compiler, publishing: usize, layout: bool) -> (FrameKind, Vec<u8>) {
    let status = Status {
        publishing: publishing as u64,
        layout: if layout {
            compiler.layout()
        } else {
            Vec::new()
        },
        ..compiler.status()
    };
    match postcard::to_stdvec(&status) {
        Ok(status) => (FrameKind::StatusReply, status),
        Err(error) => (FrameKind::Refused, error.to_string().into_bytes()),
    }
}

/// Sends a request over a connected, blocking socket and waits for the answer.
///
/// # Errors
/// [`RequestError`].
///
/// ```
/// # use std::sync::Arc;
/// use std::os::unix::net::UnixStream;
///
/// use jitcast_compiler::request::{PublishRequest, RequestFile, RequestUnit, publish, status};
/// use jitcast_compiler::{LinkOptions, Reclaim};
/// # use jitcast_compiler::front::Options;
/// # use jitcast_compiler::{Compiler, CompilerOptions, Policy, Server};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let socket = folder.path().join("socket").display().to_string();
/// # let server = Server::bind(&socket, Policy::default(), Options::default())?;
/// # let compiler = Arc::new(Compiler::create(&CompilerOptions::default())?);
/// # let stop = server.stopper()?;
/// # let serving = std::thread::spawn(move || server.run(compiler));
/// # let text = "function %same(i64) -> i64 {\nblock0(v0: i64):\n    return v0\n}";
/// let connection = UnixStream::connect(&socket)?;
/// let unit = RequestUnit {
///     name: "same".to_owned(),
///     files: vec![RequestFile { name: "same.clif".to_owned(), bytes: text.into() }],
///     signatures: Vec::new(),
///     reclaim: Reclaim::Auto,
///     link: LinkOptions::default(),
/// };
/// let request = PublishRequest { units: vec![unit], ..PublishRequest::default() };
/// assert_eq!(publish(&connection, &request)?.functions, ["same"]);
/// assert_eq!(status(&connection)?.units.len(), 1);
/// # stop.stop();
/// # serving.join().expect("it does not panic")?;
/// # Ok(())
/// # }
/// ```
pub fn publish(socket: impl AsFd, request: &PublishRequest) -> Result<Publication, RequestError> {
    begin_publish(&socket, request)?;
    await_published(&socket)
}

/// Sends a request, whose answer [`await_published`] waits for. More may be sent before: they are prepared meanwhile, and are
/// committed and answered in the order in which they were sent.
///
/// # Errors
/// [`RequestError`].
pub fn begin_publish(socket: impl AsFd, request: &PublishRequest) -> Result<(), RequestError> {
    let payload = postcard::to_stdvec(request)?;
    Ok(wire::send(&socket, FrameKind::Publish, &payload, &[])?)
}

/// Waits for the answer to the oldest request that was sent and has none.
///
/// # Errors
/// [`RequestError`].
pub fn await_published(socket: impl AsFd) -> Result<Publication, RequestError> {
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

/// Has workers show what is published to debuggers and profilers.
///
/// # Errors
/// [`RequestError`].
pub fn want(socket: impl AsFd, request: &WantRequest) -> Result<Publication, RequestError> {
    let payload = postcard::to_stdvec(request)?;
    wire::send(&socket, FrameKind::Want, &payload, &[])?;
    let frame = answer(socket, FrameKind::Published)?;
    Ok(postcard::from_bytes(&frame.payload)?)
}

/// Asks a compiler process which lines the code of a unit comes from. It needs the right to attach or to publish.
///
/// # Errors
/// [`RequestError`].
pub fn lines(socket: impl AsFd, unit: u32) -> Result<Lines, RequestError> {
    let (base, what) = (0, ASK_LINES);
    let request = DebugRequest { base, unit, what };
    wire::send(&socket, FrameKind::Debug, request.as_bytes(), &[])?;
    let frame = answer(socket, FrameKind::DebugReply)?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed answer");
    Ok(Lines::decode(&frame.payload).ok_or_else(malformed)?)
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

/// The same, with what is free and what is retired ([`Status::layout`]).
///
/// # Errors
/// [`RequestError`].
pub fn status_with_layout(socket: impl AsFd) -> Result<Status, RequestError> {
    wire::send(&socket, FrameKind::Status, &[1], &[])?;
    let frame = answer(socket, FrameKind::StatusReply)?;
    Ok(postcard::from_bytes(&frame.payload)?)
}

/// Asks a compiler process for the segment, to look at it ([`Observer`](jitcast_runtime::observer::Observer)). It needs the right
/// to attach or to publish, and is answered once for each connection.
///
/// # Errors
/// [`RequestError`].
pub fn observe(socket: impl AsFd) -> Result<OwnedFd, RequestError> {
    wire::send(&socket, FrameKind::Observe, &[], &[])?;
    let mut frame = answer(socket, FrameKind::Observed)?;
    let none = || io::Error::new(io::ErrorKind::InvalidData, "no descriptor came along");
    Ok(frame.fds.pop().ok_or_else(none)?)
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
