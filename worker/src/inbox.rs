//! Frames as they come in, piece by piece, without waiting for the rest.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use jitcast_runtime::wire::{self, Frame, FrameHeader, FrameKind};

/// A frame that is coming in.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    header: Vec<u8>,
    /// Its kind and the length of its payload, once they are known.
    expected: Option<(FrameKind, usize)>,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Inbox {
    /// The next frame, if all of it has come.
    ///
    /// # Errors
    /// As recvmsg(2); `UnexpectedEof` if the other side closed, `InvalidData` if it speaks something else.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Frame>> {
        let mut buffer = [0; 4096];
        loop {
            let wanted = match self.expected {
                None => size_of::<FrameHeader>() - self.header.len(),
                Some((_, len)) => len - self.payload.len(),
            };
            if wanted > 0 {
                let wanted = wanted.min(buffer.len());
                let received = wire::receive_now(socket, &mut buffer[..wanted], &mut self.fds);
                let count = match received {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    received => received?,
                };
                let to = match self.expected {
                    None => &mut self.header,
                    Some(_) => &mut self.payload,
                };
                to.extend_from_slice(&buffer[..count]);
            }
            match self.expected {
                None => {
                    if let Ok(header) = self.header[..].try_into() {
                        let (kind, len) = wire::check_header(header, wire::MAX_WORKER_PAYLOAD)?;
                        self.expected = Some((kind, len as usize));
                    }
                }
                Some((kind, len)) if self.payload.len() == len => {
                    let Self { payload, fds, .. } = core::mem::take(self);
                    return Ok(Some(Frame { kind, payload, fds }));
                }
                Some(_) => {}
            }
        }
    }
}
