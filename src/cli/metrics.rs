//! `--metrics`: what the compiler process counts, over HTTP, for Prometheus.
//!
//! Invariant: nobody who connects can stop or grow anything. One thread serves a bounded number of connections, none of which it waits
//! for; each is given a few seconds and a few kilobytes, and when there are too many, the oldest goes. The text is made anew a few
//! times a second at the most, and what it is made from is not waited for either.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jitcast::compiler::Compiler;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Failure;

/// The most connections at once.
const MAX_CLIENTS: usize = 64;

/// The longest request, bytes.
const MAX_REQUEST_BYTES: usize = 8192;

/// How long a connection may be there.
const PATIENCE: Duration = Duration::from_secs(5);

/// For how long a text is as good as new.
const FRESH: Duration = Duration::from_millis(100);

/// The form of the text.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The endpoint, until it is dropped.
#[derive(Debug)]
pub(super) struct Endpoint {
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Serves the metrics of `compiler` at `address`, and says where.
    pub(super) fn start(address: SocketAddr, compiler: Arc<Compiler>) -> Result<Self, Failure> {
        let refused = |cause: std::io::Error| {
            let help = "choose another address with --metrics; port 0 takes any that is free";
            Failure(format!(
                "cannot serve metrics at {address}: {cause}\n  help: {help}"
            ))
        };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true)?;
        let there = listener.local_addr()?;
        let (stop, stopped) = UnixStream::pair()?;
        let text = Text {
            compiler,
            made: None,
        };
        let thread = std::thread::Builder::new().name("metrics".into());
        let thread = thread.spawn(move || serve(&listener, &stopped, text))?;
        eprintln!("metrics at http://{there}/metrics");
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // It is waited for at the other end.
        let _ = self.stop.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is served.
struct Text {
    compiler: Arc<Compiler>,
    made: Option<(Instant, String)>,
}

impl Text {
    fn get(&mut self) -> &str {
        let made = self.made.take();
        let made = made.filter(|(at, _)| at.elapsed() < FRESH);
        let made = made.unwrap_or_else(|| (Instant::now(), self.compiler.metrics_text()));
        &self.made.insert(made).1
    }
}

/// A connection.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
    deadline: Instant,
}

fn serve(listener: &TcpListener, stopped: &UnixStream, mut text: Text) {
    // The oldest first.
    let mut clients: Vec<Client> = Vec::new();
    loop {
        let now = Instant::now();
        clients.retain(|client| client.deadline > now);
        let Some(ready) = wait(listener, stopped, &clients, now) else {
            return;
        };
        let mut ready = ready.into_iter();
        clients.retain_mut(|client| !ready.next().unwrap_or_default() || client.step(&mut text));
        accept(listener, &mut clients);
    }
}

/// Which clients can go on; `None`: this is the end.
fn wait(
    listener: &TcpListener,
    stopped: &UnixStream,
    clients: &[Client],
    now: Instant,
) -> Option<Vec<bool>> {
    let mut fds = vec![
        PollFd::new(stopped, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
    ];
    fds.extend(clients.iter().map(|client| {
        let flags = match client.answer.len() > client.sent {
            true => PollFlags::OUT,
            false => PollFlags::IN,
        };
        PollFd::new(&client.stream, flags)
    }));
    let left = clients.iter().map(|client| client.deadline - now).min();
    let left = left.map(|left| Timespec {
        tv_sec: left.as_secs().cast_signed() + 1,
        tv_nsec: 0,
    });
    match poll(&mut fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        // Out of memory: it is tried again.
        Err(_) => std::thread::sleep(FRESH),
    }
    let happened = |fd: &PollFd<'_>| !fd.revents().is_empty();
    (!happened(&fds[0])).then(|| fds[2..].iter().map(happened).collect())
}

/// Lets in who waits.
fn accept(listener: &TcpListener, clients: &mut Vec<Client>) {
    for _ in 0..MAX_CLIENTS {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            // Out of descriptors, or gone already.
            Err(_) => return std::thread::sleep(Duration::from_millis(10)),
        };
        if stream.set_nonblocking(true).is_err() {
            continue;
        }
        if clients.len() == MAX_CLIENTS {
            clients.remove(0);
        }
        clients.push(Client {
            stream,
            request: Vec::new(),
            answer: Vec::new(),
            sent: 0,
            deadline: Instant::now() + PATIENCE,
        });
    }
}

impl Client {
    /// Goes on as far as that can be done now; whether it stays.
    fn step(&mut self, text: &mut Text) -> bool {
        if self.answer.is_empty() {
            let Some(goes_on) = self.read() else {
                return true;
            };
            if !goes_on {
                return false;
            }
            match answer(&self.request, text) {
                Some(answer) => self.answer = answer,
                None => return true,
            }
        }
        if self.sent < self.answer.len() {
            match self.stream.write(&self.answer[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if is_for_later(&error) => {}
                Err(_) => return false,
            }
            if self.sent == self.answer.len() {
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            return true;
        }
        // What comes after the request is thrown away until the peer closes: closing before would take the answer back.
        self.request.clear();
        self.read() != Some(false)
    }

    /// Reads some; whether the peer goes on. `None`: nothing is there now.
    fn read(&mut self) -> Option<bool> {
        let mut buffer = [0; 2048];
        match self.stream.read(&mut buffer) {
            Ok(0) => Some(false),
            Ok(count) => {
                self.request.extend_from_slice(&buffer[..count]);
                Some(true)
            }
            Err(error) if is_for_later(&error) => None,
            Err(_) => Some(false),
        }
    }
}

fn is_for_later(error: &std::io::Error) -> bool {
    [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind())
}

/// The answer to a request; `None`: it is not complete.
fn answer(request: &[u8], text: &mut Text) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let status = parsed.parse(request);
    let path = parsed.path.unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    Some(match (status, parsed.method, path) {
        (Ok(httparse::Status::Partial), ..) if request.len() < MAX_REQUEST_BYTES => return None,
        (Ok(httparse::Status::Partial) | Err(_), ..) => plain("400 Bad Request", "what?\n", ""),
        (_, Some(method @ ("GET" | "HEAD")), "/metrics") => {
            let text = text.get();
            let body = if method == "GET" { text } else { "" };
            let len = text.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
            );
            [head.as_bytes(), body.as_bytes()].concat()
        }
        (_, Some("GET" | "HEAD"), _) => plain("404 Not Found", "metrics are at /metrics\n", ""),
        _ => plain(
            "405 Method Not Allowed",
            "GET /metrics\n",
            "Allow: GET, HEAD\r\n",
        ),
    })
}

fn plain(status: &str, body: &str, header: &str) -> Vec<u8> {
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n{header}Content-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}
