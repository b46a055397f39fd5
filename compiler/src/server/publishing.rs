//! The threads that carry out what takes a while: each request has one, from its arrival to its answer.
//!
//! What can be done without knowing what is published is done at once, by as many threads as permits: compiling, reading,
//! hashing. Then each waits for its turn (see [`super::line`]), links and commits under the state's lock. So one batch is prepared
//! while another one is written to the disk.
//!
//! Invariant: whatever goes wrong in one request, the next one is served, and only who asked is told.

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use jitcast_runtime::segment;
use jitcast_runtime::wire::FrameKind;

use super::line::{Line, Names, Ticket};
use crate::compiler::Compiler;
use crate::error::PublishError;
use crate::fault::hold_at;
use crate::front;
use crate::history::ContentHash;
use crate::request::{self, PublishRequest};
use crate::threads::{Permit, Permits};
use crate::turn::Turn;

/// What takes a while.
#[derive(Debug)]
pub(super) enum Work {
    Publish(Vec<u8>),
    Rollback(Vec<u8>),
    /// Promotes or aborts a canary.
    Decide(Vec<u8>),
    Renew,
    /// Waits for a publication that is being committed, which the serving thread must not. With or without where all lies.
    Status(bool),
    /// A question about a unit's debugging information.
    Debug(Vec<u8>),
    /// What workers are to show.
    Want(Vec<u8>),
}

impl Work {
    /// What it is called where it came to nothing.
    fn name(&self) -> &'static str {
        match self {
            Self::Publish(_) => "publish",
            Self::Rollback(_) => "rollback",
            Self::Decide(_) => "promote or abort",
            Self::Renew => "renew",
            Self::Status(_) => "status",
            Self::Debug(_) => "debugging information",
            Self::Want(_) => "debug",
        }
    }

    /// What it holds in memory, bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        match self {
            Self::Publish(payload)
            | Self::Rollback(payload)
            | Self::Decide(payload)
            | Self::Debug(payload)
            | Self::Want(payload) => payload.len() as u64,
            Self::Renew | Self::Status(_) => 0,
        }
    }
}

/// A request on its way, by its place in the line.
pub(super) type Job = (Ticket, Work);

/// An answer on its way back: to which connection, and what.
pub(super) type Answer = (u64, FrameKind, Vec<u8>);

/// The serving thread's side: where requests go, and answers come from.
pub(super) struct Desk {
    pub(super) line: Arc<Line>,
    pub(super) jobs: Sender<Job>,
    pub(super) answered: Receiver<Answer>,
}

/// How often a request lies in memory while it is read, of its own length.
const COPIES: u64 = 4;

impl Desk {
    /// Lets a request in, unless too much is under way, or the kernel would end this process for the memory that it takes: then why.
    pub(super) fn enter(&self, connection: u64, work: &Work) -> Result<Ticket, String> {
        let len_bytes = work.len_bytes();
        if len_bytes > 0 {
            let memory = segment::check_transient(len_bytes.saturating_mul(COPIES));
            memory.map_err(|error| {
                format!("a request of {len_bytes} bytes is not read: {error}\n  help: publish less at once, or enlarge the memory cgroup")
            })?;
        }
        self.line.enter(connection, len_bytes)
    }
}

/// What the threads share.
pub(super) struct Publishing {
    compiler: Arc<Compiler>,
    options: front::Options,
    line: Arc<Line>,
    /// Who may compile and read. Twice as many as there are processors, so that some that take long do not keep everybody
    /// else waiting.
    permits: Permits,
    replies: Sender<Answer>,
    wake: UnixStream,
}

impl Publishing {
    /// Answers go to `replies`; `wake` wakes who waits for them.
    pub(super) fn new(
        compiler: Arc<Compiler>,
        options: front::Options,
        line: Arc<Line>,
        (replies, wake): (Sender<Answer>, UnixStream),
    ) -> Self {
        let permits = Permits::new(2 * options.threads.limit());
        Self {
            compiler,
            options,
            line,
            permits,
            replies,
            wake,
        }
    }

    /// Carries out all that comes, until nobody can send any more.
    pub(super) fn run(&self, queue: &Receiver<Job>) {
        std::thread::scope(|scope| {
            for (ticket, work) in queue {
                let thread = std::thread::Builder::new().name("publisher".into());
                let started = thread.spawn_scoped(scope, move || self.serve(ticket, work));
                if let Err(error) = started {
                    tracing::warn!(%error, "no thread for a request");
                    let text = format!(
                        "busy: the compiler process cannot start a thread: {error}\n  help: try again later"
                    );
                    let _ = self.line.wait(ticket);
                    self.answer(ticket, FrameKind::Refused, text.as_bytes());
                }
            }
        });
    }

    fn serve(&self, ticket: Ticket, work: Work) {
        let what = work.name();
        // Nothing went wrong where somebody only asked.
        let changes = !matches!(work, Work::Status(_) | Work::Debug(_));
        let run = || self.carry_out(ticket, work);
        // A transaction that is dropped leaves no trace.
        let done = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
            let text =
                "the compiler process has a fault: it panicked\n  help: report this with the files";
            Some((FrameKind::Refused, text.into()))
        });
        if let Some((kind, reply)) = done {
            if changes && kind == FrameKind::Refused {
                self.compiler
                    .note_error(what, &String::from_utf8_lossy(&reply));
            }
            // A refusal may be early; the connection's earlier requests are answered first. If that never happens, nobody listens.
            let _ = self.line.wait(ticket);
            self.answer(ticket, kind, &reply);
        }
    }

    fn answer(&self, ticket: Ticket, kind: FrameKind, reply: &[u8]) {
        // Nobody listens any more when the server ends.
        let send = |connection| drop(self.replies.send((connection, kind, reply.to_vec())));
        self.line.finish(ticket, send);
        let _ = rustix::io::write(&self.wake, &[0]);
    }

    /// What is to be answered; nothing to one that gets another one's answer.
    fn carry_out(&self, ticket: Ticket, work: Work) -> Option<(FrameKind, Vec<u8>)> {
        let compiler = &self.compiler;
        if let Work::Publish(payload) = work {
            let content = ContentHash::of(&payload);
            let request = request::read(&payload);
            drop(payload);
            return match request {
                Ok(request) => self.publish(ticket, content, request),
                Err(text) => Some((FrameKind::Refused, text.into_bytes())),
            };
        }
        self.line.describe(ticket, Names::default(), None);
        self.line.wait(ticket).ok()?;
        Some(match work {
            Work::Rollback(payload) => request::roll_back(compiler, &payload),
            Work::Decide(payload) => request::end_canary(compiler, &payload),
            Work::Renew => request::renew_segment(compiler),
            Work::Debug(payload) => request::tell_of_unit(compiler, &payload),
            Work::Want(payload) => request::want_shown(compiler, &payload),
            Work::Status(layout) => request::tell(compiler, self.line.publications(), layout),
            Work::Publish(_) => request::tell(compiler, self.line.publications(), false),
        })
    }

    fn publish(
        &self,
        ticket: Ticket,
        content: ContentHash,
        request: PublishRequest,
    ) -> Option<(FrameKind, Vec<u8>)> {
        let names = Names::of(&request);
        if self.line.describe(ticket, names, Some(content)) {
            return None;
        }
        let mut turn = InLine {
            line: &self.line,
            ticket,
            permit: Some(self.permits.take()),
        };
        request.units.iter().for_each(|unit| hold_at(&unit.name));
        Some(request::carry_out(
            &self.compiler,
            request,
            &self.options,
            &mut turn,
        ))
    }
}

/// A request's place in the line.
struct InLine<'a> {
    line: &'a Line,
    ticket: Ticket,
    /// To prepare it.
    permit: Option<Permit<'a>>,
}

impl Turn for InLine<'_> {
    fn wait(&mut self) -> Result<(), PublishError> {
        // Those that it waits for may need it.
        self.permit = None;
        let turn = self.line.wait(self.ticket);
        turn.map_err(|_| PublishError::Ending)
    }

    fn begin(&mut self) {
        self.line.begin(self.ticket);
    }
}
