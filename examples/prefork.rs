//! A prefork HTTP server: processes that listen at one port, each with a runtime of one thread, whose pages are made by a published
//! function `page`, and by the server itself until there is one.
//!
//! ```sh
//! jitcast serve --socket /tmp/prefork.sock &
//! cargo run --release --example prefork -- /tmp/prefork.sock 8082 4 &
//! jitcast publish --socket /tmp/prefork.sock examples/nginx/page.c --cflags '-O2 -g -fPIC -fno-plt'
//! curl -i http://127.0.0.1:8082/hello
//! ```

#[path = "async_worker.rs"]
#[expect(dead_code, reason = "a program of its own")]
mod async_worker;

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_worker::look_after;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jitcast::worker::{Endpoint, LateFunction, LateWorker, WorkerOptions};
use rustix::process::{Signal, WaitOptions, set_parent_process_death_signal, waitpid};
use tokio::net::TcpSocket;

jitcast::worker::embed!();

/// From a path to a page: where it is, its length, where the page goes, how much of it; returns its length, or a status, negated.
type Page = extern "C" fn(*const u8, i64, *mut u8, i64) -> i64;

const CAPACITY: usize = 64 << 10;

/// What serves while nothing is published.
extern "C" fn no_page(_: *const u8, _: i64, _: *mut u8, _: i64) -> i64 {
    -503
}

struct Site {
    worker: LateWorker,
    page: LateFunction<Page>,
}

impl Site {
    /// A request is one guard. Nothing is awaited inside.
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let mut body = vec![0_u8; CAPACITY];
        let (at, len) = (path.as_ptr(), path.len() as i64);
        let result = {
            let guard = self.worker.enter();
            let args = (at, len, body.as_mut_ptr(), CAPACITY as i64);
            self.page.call(guard.as_ref(), args)
        };
        let status = match usize::try_from(result) {
            Ok(len) if len <= CAPACITY => {
                body.truncate(len);
                StatusCode::OK
            }
            _ => {
                body.clear();
                let status = u16::try_from(-result).ok();
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
        };
        let mut response = Response::new(Full::new(body.into()));
        *response.status_mut() = status;
        let process = std::process::id().into();
        response.headers_mut().insert("x-process", process);
        response
    }
}

/// A worker process.
#[tokio::main(flavor = "current_thread")]
async fn serve(socket: &str, address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let options = WorkerOptions {
        label: "prefork".to_owned(),
        ..WorkerOptions::default()
    };
    // There may be no compiler process yet. One that is there is waited for, a moment, so that the first answer is a published one.
    let worker = LateWorker::attach(Endpoint::Path(Path::new(socket)), options);
    worker.join(Some(Duration::from_secs(1)));
    let page = worker.function_or("page", no_page as Page);
    let watched = worker.clone();
    tokio::spawn(async move {
        loop {
            watched.tend();
            if let Some(worker) = watched.worker() {
                let ended = look_after(worker.clone()).await;
                eprintln!("the compiler process is not watched any more: {ended:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let site = Arc::new(Site { worker, page });
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    let listener = socket.listen(1024)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let answer = |request: Request<Incoming>| {
                let answer = site.answer(&request);
                async { Ok::<_, Infallible>(answer) }
            };
            // A client that goes away is no fault of the server's.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

/// Forks a worker process, which ends with this one.
fn spawn(socket: &str, address: SocketAddr) -> std::io::Result<()> {
    // SAFETY: this process has one thread, so the child may do whatever it likes.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()),
        0 => {
            let ended = set_parent_process_death_signal(Some(Signal::TERM))
                .map_err(Into::into)
                .and_then(|()| serve(socket, address));
            eprintln!("a worker has ended: {ended:?}");
            std::process::exit(1);
        }
        _ => Ok(()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().collect();
    let [_, socket, port, workers] = args.as_slice() else {
        return Err("usage: prefork SOCKET PORT WORKERS".into());
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port.parse()?));
    for _ in 0..workers.parse()? {
        spawn(socket, address)?;
    }
    println!("serving http://{address}/");
    // Whoever ends is replaced.
    while waitpid(None, WaitOptions::empty())?.is_some() {
        spawn(socket, address)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
