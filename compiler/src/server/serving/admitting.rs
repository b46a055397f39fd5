//! Who is let in: workers, those that were attached before, their children, and who only looks.
//!
//! Invariant: whoever has been told its number is known here, with the mailbox that it was given; whoever has not is nobody.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use jitcast_runtime::header::FORMAT_VERSION;
use jitcast_runtime::wire::{self, AttachReply, AttachRequest, FrameKind, ResumeRequest};
use rustix::event::epoll;
use zerocopy::{FromBytes, IntoBytes};

use super::waiting::UNKNOWN;
use super::{Loop, MAX_CONNECTIONS};
use crate::compiler::Compiler;
use crate::server::connection::Connection;

/// The most children of one worker that are waited for at once.
const MAX_SPARES: usize = 4;

impl Loop<'_> {
    pub(super) fn attach(&mut self, token: u64, payload: &[u8]) -> Result<(), String> {
        let connection = self
            .connections
            .get_mut(&token)
            .ok_or("the connection is gone")?;
        let request =
            AttachRequest::read_from_bytes(payload).map_err(|_| "malformed request to attach")?;
        let label = check_attach(connection, &request)?;
        let process = (connection.pid(), connection.uid());
        let mailbox = self.ahead.take();
        let mailbox = mailbox.map_err(|error| format!("no mailbox: {error}"))?;
        let admission = self.compiler.admit(process, label, mailbox);
        let reply = reply(&self.compiler, self.fenced, admission.number);
        let shared = admission.segment.shared_fd().ok_or(UNKNOWN)?;
        // Nothing is unread, so a frame of this size fits the socket's buffer: it goes out at once or not at all.
        let socket = connection.socket().ok_or("the connection is gone")?;
        let sent = admission.segment.worker_fd().and_then(|segment| {
            let fds = [segment.as_fd(), shared, admission.mailbox.as_fd()];
            wire::send(socket, FrameKind::Attached, reply.as_bytes(), &fds)
        });
        if let Err(error) = sent {
            self.compiler.worker_died(admission.number);
            return Err(format!("the reply cannot be sent: {error}"));
        }
        connection.set_worker(admission.number);
        connection.set_offered(admission.segment.header().object);
        self.watch(token);
        self.let_in = Some(token);
        Ok(())
    }

    /// Lets somebody look at the segment who is no worker, and holds nothing back.
    pub(super) fn observe(&mut self, token: u64) -> Result<(), String> {
        let connection = self.connections.get_mut(&token);
        let connection = connection.ok_or("the connection is gone")?;
        // Descriptors that nobody takes count against this process.
        if !connection.observe_once() {
            return Err("this connection has the segment already".to_owned());
        }
        if connection.has_unsent() {
            return Err("read what was answered before you look".to_owned());
        }
        let socket = connection.socket().ok_or("the connection is gone")?;
        // As in `attach`: it goes out at once or not at all.
        let sent = self.compiler.segment().worker_fd().and_then(|segment| {
            let fds = [segment.as_fd()];
            wire::send(socket, FrameKind::Observed, &[], &fds)
        });
        sent.map_err(|error| format!("the reply cannot be sent: {error}"))
    }

    /// A worker goes on that was attached to the compiler process before this one.
    pub(super) fn resume(
        &mut self,
        token: u64,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let connection = self
            .connections
            .get_mut(&token)
            .ok_or("the connection is gone")?;
        let request =
            ResumeRequest::read_from_bytes(payload).map_err(|_| "malformed request to resume")?;
        let label = check_attach(connection, &request.attach)?;
        if request.instance != self.compiler.instance() {
            return Err("this compiler process has another segment\n  help: start it with the journal of the one before, or attach afresh".to_owned());
        }
        // The shared data that it has came along; they have been looked at.
        let mailbox = fds.into_iter().next().ok_or("no descriptor came along")?;
        let process = (connection.pid(), connection.uid());
        let number = self
            .compiler
            .admit_again(process, label, &mailbox)
            .map_err(|error| format!("that is no mailbox: {error}"))?;
        let reply = reply(&self.compiler, self.fenced, number);
        let socket = connection.socket().ok_or("the connection is gone")?;
        let segment = self.compiler.segment();
        let shared = segment.shared_fd().ok_or(UNKNOWN)?;
        let sent = segment.worker_fd().and_then(|object| {
            let fds = [object.as_fd(), shared];
            wire::send(socket, FrameKind::Attached, reply.as_bytes(), &fds)
        });
        if let Err(error) = sent {
            self.compiler.worker_died(number);
            return Err(format!("the reply cannot be sent: {error}"));
        }
        connection.set_worker(number);
        connection.set_offered(segment.header().object);
        self.watch(token);
        Ok(())
    }

    /// Gives a worker what a child of it takes over at a fork, when there is no time to ask.
    pub(super) fn spare(&mut self, token: u64) -> Result<(), String> {
        let parent = self
            .connections
            .get(&token)
            .ok_or("the connection is gone")?;
        if parent.has_unsent() {
            return Err("read what was answered before you ask for more".to_owned());
        }
        let number = parent.worker().ok_or("only workers have children")?;
        let waiting = self.connections.values();
        let waiting = waiting
            .filter(|connection| connection.child_of() == Some(number))
            .count();
        if waiting >= MAX_SPARES || self.connections.len() >= MAX_CONNECTIONS {
            return Err(format!("{waiting} mailboxes wait for children already"));
        }
        let system = |error: io::Error| format!("no mailbox for a child: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(system)?;
        ours.set_nonblocking(true).map_err(system)?;
        // The kernel then says who sends.
        rustix::net::sockopt::set_socket_passcred(&ours, true)
            .map_err(|error| system(error.into()))?;
        let child = self.next;
        let data = epoll::EventData::new_u64(child);
        epoll::add(&self.poller, &ours, data, epoll::EventFlags::IN)
            .map_err(|error| system(error.into()))?;
        let admission = self.compiler.admit_child(number).map_err(system)?;
        let admission = admission.ok_or("the worker is gone")?;
        let connection = parent.for_child(ours.into(), admission.number);
        let connection = connection.ok_or("only workers have children")?;
        let reply = reply(&self.compiler, self.fenced, admission.number);
        let fds = [admission.mailbox.as_fd(), theirs.as_fd()];
        // As for attaching: it goes out at once or not at all.
        let sent = parent
            .socket()
            .map(|socket| wire::send(socket, FrameKind::SpareReply, reply.as_bytes(), &fds));
        if !matches!(sent, Some(Ok(()))) {
            self.compiler.worker_died(admission.number);
            return Err("the reply cannot be sent".to_owned());
        }
        self.next += 2;
        self.connections.insert(child, connection);
        Ok(())
    }
}

/// What a worker is told that is let in, or offered another object.
pub(super) fn reply(compiler: &Compiler, fenced: bool, worker: u64) -> AttachReply {
    AttachReply {
        worker,
        sealed: compiler.is_sealed().into(),
        fenced: fenced.into(),
    }
}

/// What is asked of whoever wants to attach: its label.
fn check_attach(connection: &Connection, request: &AttachRequest) -> Result<String, String> {
    if request.format_version != FORMAT_VERSION {
        return Err(format!(
            "the worker reads format version {}, the compiler process writes {FORMAT_VERSION}\n  help: use the same version of jitcast for both",
            request.format_version
        ));
    }
    if connection.worker().is_some() {
        return Err("this connection is attached already".to_owned());
    }
    if connection.has_unsent() {
        return Err("read what was answered before you attach".to_owned());
    }
    let label = request.label.split(|byte| *byte == 0);
    let label = label.into_iter().next().unwrap_or_default();
    Ok(String::from_utf8_lossy(label).into_owned())
}
