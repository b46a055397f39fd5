//! Asking the compiler process what debugging information says, over a connection apart, which is waited for.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use jitcast_runtime::debug::{
    ASK_LINES, ASK_SECTIONS, DebugRequest, Lines, MAX_ANSWER_BYTES, decode_sections,
};
use jitcast_runtime::wire::{self, FrameKind};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use zerocopy::IntoBytes;

use super::text::Text;
use crate::worker::Inner;

/// How long the answers to all questions of one publication may take together.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for the sections of `texts`, for gdb, and for their lines, for a dump; or says why there are none.
pub(super) fn fill(
    worker: &Inner,
    texts: &mut [Text],
    (sections, lines): (bool, bool),
) -> Result<(), String> {
    let socket = worker.link().connect_apart()?;
    let deadline = Instant::now() + PATIENCE;
    for text in texts {
        let request = |what| DebugRequest {
            base: worker.window().base().get(),
            unit: text.unit,
            what,
        };
        if sections {
            let answer = ask(&socket, request(ASK_SECTIONS), deadline)?;
            text.sections = decode_sections(&answer).unwrap_or_default();
        }
        if lines {
            let answer = ask(&socket, request(ASK_LINES), deadline)?;
            text.lines = Lines::decode(&answer).unwrap_or_default();
        }
    }
    Ok(())
}

/// The answer; empty where the question is refused.
fn ask(socket: &OwnedFd, request: DebugRequest, deadline: Instant) -> Result<Vec<u8>, String> {
    let failed = |cause: std::io::Error| {
        format!(
            "lines are not shown: the compiler process does not answer: {cause}\n  help: look whether it runs; what it publishes later is asked for again"
        )
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // 0 would be for ever.
    let left = left.max(Duration::from_millis(1));
    set_socket_timeout(socket, Timeout::Recv, Some(left)).map_err(|error| failed(error.into()))?;
    wire::send(socket, FrameKind::Debug, request.as_bytes(), &[]).map_err(failed)?;
    let frame = wire::receive(socket, MAX_ANSWER_BYTES).map_err(failed)?;
    Ok(match frame.kind {
        FrameKind::DebugReply => frame.payload,
        _ => Vec::new(),
    })
}
