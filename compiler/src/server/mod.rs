//! The socket of the compiler process: who may attach, ask and publish, who has died.
//!
//! One thread waits for everything; what takes a while has threads of its own, so that a long link keeps nobody from
//! attaching. Invariant: no peer can block any of them. What a peer sends is read as it comes, within
//! limits; what it does not read is dropped with it.

mod access;
mod connection;
mod line;
mod publishing;
mod serving;

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::channel::unbounded;

use crate::compiler::Compiler;
use crate::front;
use crate::renewal::Offering;
use crate::requests::Asks;

pub use access::{Access, Policy};
use line::Line;
pub use line::PublishLimits;
use publishing::{Desk, Publishing};
use serving::Loop;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another compiler process listens there.
    #[error(
        "{path} is in use by a running compiler process\n  help: end that one, or choose another --socket"
    )]
    InUse {
        /// The path.
        path: String,
    },
    /// Something else is there.
    #[error("{path} exists and is no socket\n  help: remove it, or choose another --socket")]
    NotASocket {
        /// The path.
        path: String,
    },
    /// What was handed over is not what a compiler process can listen at.
    #[error(
        "the socket that was handed over {what}\n  help: hand over one stream socket that listens at a path or an abstract name (systemd: `ListenStream=`)"
    )]
    NotAListener {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The system refused.
    #[error("cannot {step} {path}: {cause}")]
    System {
        /// Which step.
        step: &'static str,
        /// The path.
        path: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// The listening socket.
///
/// ```
/// # use std::sync::Arc;
/// use jitcast_compiler::front::Options;
/// use jitcast_compiler::{Compiler, CompilerOptions, Policy, Server};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut policy = Policy::default();
/// policy.attach.allow_uid(33);
/// let socket = format!("@jitcast-example-server-{}", std::process::id());
/// let server = Server::bind(&socket, policy, Options::default())?;
/// let compiler = Arc::new(Compiler::create(&CompilerOptions::default())?);
/// let stop = server.stopper()?;
/// let serving = std::thread::spawn(move || server.run(compiler));
/// stop.stop();
/// serving.join().expect("it does not panic")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: String,
    /// What lies at the path, if this process put it there: another compiler process may bind there later.
    file: Option<(u64, u64)>,
    policy: Policy,
    options: front::Options,
    stop: UnixStream,
    stopped: UnixStream,
    stopping: Arc<AtomicBool>,
}

/// Ends a server's loop.
#[derive(Debug)]
pub struct Stop(UnixStream, Arc<AtomicBool>);

impl Stop {
    /// Ends it. The server removes the socket that it made.
    pub fn stop(&self) {
        self.1.store(true, Ordering::Release);
        // A full pipe has a wake-up in it already.
        let _ = rustix::io::write(&self.0, &[0]);
    }
}

impl Server {
    /// Listens at `path`; after an `@`, in the abstract name space. What a dead compiler process left there is
    /// removed.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn bind(path: &str, policy: Policy, options: front::Options) -> Result<Self, ServeError> {
        let system = |step| {
            let path = path.to_owned();
            move |cause| ServeError::System { step, path, cause }
        };
        let listener = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)
                .and_then(|address| UnixListener::bind_addr(&address))
                .map_err(system("listen at"))?,
            None => bind_path(Path::new(path), &policy)?,
        };
        let file = identity(path);
        let path = path.to_owned();
        Self::at(listener, (path.clone(), file), policy, options).map_err(|cause| {
            ServeError::System {
                step: "set up",
                path,
                cause,
            }
        })
    }

    /// Serves at a socket that somebody else has made and listens at already, as service managers do. It stays theirs: who
    /// connects while nobody serves waits there for the next compiler process, and its file is not removed. Its mode is
    /// theirs to set; the policy decides all the same.
    ///
    /// # Errors
    /// [`ServeError::NotAListener`].
    pub fn adopt(
        socket: OwnedFd,
        policy: Policy,
        options: front::Options,
    ) -> Result<Self, ServeError> {
        use rustix::net::{AddressFamily, SocketType, sockopt};
        let refused = |what| ServeError::NotAListener { what };
        let is_stream = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        if !is_stream {
            return Err(refused("is no stream socket of this machine's own"));
        }
        if sockopt::socket_acceptconn(&socket) != Ok(true) {
            return Err(refused("does not listen"));
        }
        let listener = UnixListener::from(socket);
        let address = listener.local_addr().ok();
        let path = address
            .as_ref()
            .and_then(shown)
            .ok_or_else(|| refused("has no name that can be written"))?;
        Self::at(listener, (path.clone(), None), policy, options).map_err(|cause| {
            ServeError::System {
                step: "set up",
                path,
                cause,
            }
        })
    }

    fn at(
        listener: UnixListener,
        (path, file): (String, Option<(u64, u64)>),
        policy: Policy,
        options: front::Options,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (stop, stopped) = UnixStream::pair()?;
        stop.set_nonblocking(true)?;
        stopped.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path,
            file,
            policy,
            options,
            stop,
            stopped,
            stopping: Arc::default(),
        })
    }

    /// Where it listens, as [`Server::bind`] takes it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What ends the loop, from another thread.
    ///
    /// # Errors
    /// As dup(2).
    pub fn stopper(&self) -> io::Result<Stop> {
        Ok(Stop(self.stop.try_clone()?, Arc::clone(&self.stopping)))
    }

    /// Serves until it is stopped; removes the socket then, if it is its own. Workers go on.
    ///
    /// # Errors
    /// What the system says when it cannot even wait.
    pub fn run(self, compiler: Arc<Compiler>) -> io::Result<()> {
        // The line is what limits it.
        let (jobs, queue) = unbounded();
        let (replies, answered) = unbounded();
        let line = Arc::new(Line::new(self.policy.publishing));
        let wake = self.stop.try_clone()?;
        let offering = Arc::new(Offering::new(self.stop.try_clone()?));
        compiler.tell_of_renewals(Arc::clone(&offering));
        let publisher = {
            let (compiler, options) = (Arc::clone(&compiler), self.options.clone());
            let back = (replies, wake);
            let publishing = Publishing::new(compiler, options, Arc::clone(&line), back);
            std::thread::Builder::new()
                .name("dispatcher".into())
                .spawn(move || publishing.run(&queue))?
        };
        let asks = Asks::start(
            &compiler,
            &self.policy.requests,
            self.options.cpu,
            &self.stop,
        )?;
        let desk = Desk {
            line: Arc::clone(&line),
            jobs,
            answered,
        };
        let serving = Loop::new(&self, compiler, offering, (desk, asks));
        let result = serving.and_then(|mut serving| {
            let result = serving.run();
            serving.end();
            result
        });
        // What is being committed is; what waits is not, and nobody would be told.
        line.close();
        // The loop has dropped its end of the queue.
        let _ = publisher.join();
        result
    }
}

fn bind_path(path: &Path, policy: &Policy) -> Result<UnixListener, ServeError> {
    let shown = path.display().to_string();
    let system = |step| {
        let path = shown.clone();
        move |cause| ServeError::System { step, path, cause }
    };
    match std::fs::symlink_metadata(path) {
        Ok(there) if !std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()) => {
            return Err(ServeError::NotASocket { path: shown });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ServeError::InUse { path: shown });
        }
        Ok(_) => std::fs::remove_file(path)
            .map_err(system("remove the socket of a dead compiler process at"))?,
        Err(_) => {}
    }
    // Bound under a private name with its final mode, then moved: nobody connects in between.
    let staged = PathBuf::from(format!("{shown}.{}", std::process::id()));
    let listener = UnixListener::bind(&staged).map_err(system("listen at"))?;
    let mode = if policy.is_private() { 0o600 } else { 0o666 };
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::rename(&staged, path))
        .map_err(system("set the mode of"))?;
    Ok(listener)
}

impl Drop for Server {
    /// Removes the socket, also of a compiler process that did not get as far as serving.
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            // Whoever removed it before has done what is to be done.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The path, or, after an `@`, the abstract name.
fn shown(address: &SocketAddr) -> Option<String> {
    if let Some(path) = address.as_pathname() {
        return path.to_str().map(str::to_owned);
    }
    let name = std::str::from_utf8(address.as_abstract_name()?).ok()?;
    Some(format!("@{name}"))
}

/// Which file lies at `path`: its device and inode; `None` in the abstract name space.
fn identity(path: &str) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}
