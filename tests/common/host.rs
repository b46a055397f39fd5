//! A compiler with its server inside the test's own process, through the library.

use std::sync::Arc;
use std::thread::JoinHandle;

use jitcast::compiler::front::{self, compile_bytes};
use jitcast::compiler::{
    Compiler, CompilerOptions, Policy, PublishError, Reclaim, RequestLimits, RequestOptions,
    Server, Stop, UnitFile, UnitSource,
};
use jitcast::linker::Dialect;
use jitcast::runtime::segment::BackEnd;

use super::object::{Maker, PLUS_ONE};
use super::scratch::{Scratch, adds};

/// The smallest window, bytes: its shared part can be read as a whole.
pub(crate) const WINDOW_BYTES: u64 = 8 << 20;

/// The policy of a server that compiles for workers of the same user, within `limits`.
pub(crate) fn compiles(limits: RequestLimits) -> Policy {
    let command = vec![env!("CARGO_BIN_EXE_jitcast").into(), "codegen".into()];
    Policy {
        requests: RequestOptions {
            command: Some(command),
            limits,
        },
        ..Policy::default()
    }
}

/// The compiler, serving.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) compiler: Arc<Compiler>,
    pub(crate) socket: String,
    stop: Stop,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    _scratch: Scratch,
}

impl Host {
    /// Serves a segment of `back_end` with a small window.
    pub(crate) fn start(back_end: BackEnd) -> Self {
        Self::with(CompilerOptions {
            back_end,
            ..CompilerOptions::with_window(WINDOW_BYTES).unwrap()
        })
    }

    /// Serves a segment made by `options`, at a socket of its own.
    pub(crate) fn with(options: CompilerOptions) -> Self {
        Self::with_policy(options, Policy::default())
    }

    /// Serves a sealed segment, and compiles for workers that ask, within `limits`.
    pub(crate) fn compiling(limits: RequestLimits) -> Self {
        let options = CompilerOptions::with_window(WINDOW_BYTES).unwrap();
        Self::with_policy(options, compiles(limits))
    }

    /// The same under `policy`.
    pub(crate) fn with_policy(options: CompilerOptions, policy: Policy) -> Self {
        let scratch = Scratch::open_to_all();
        let socket = scratch.path("socket");
        let options = CompilerOptions {
            socket: socket.clone(),
            ..options
        };
        let compiler =
            Arc::new(Compiler::create(&options).unwrap_or_else(|error| panic!("{error}")));
        let server = Server::bind(&socket, policy, front::Options::default()).unwrap();
        let stop = server.stopper().unwrap();
        let thread = {
            let compiler = Arc::clone(&compiler);
            std::thread::spawn(move || server.run(compiler))
        };
        Self {
            compiler,
            socket,
            stop,
            thread: Some(thread),
            _scratch: scratch,
        }
    }

    /// Serves a sealed segment.
    pub(crate) fn sealed() -> Self {
        Self::start(BackEnd::Sealed)
    }

    /// Publishes a unit of CLIF; returns its generation.
    pub(crate) fn publish(&self, unit: &str, text: &str) -> Result<u64, PublishError> {
        let published = self.compiler.publish(&[clif_unit(unit, text)])?;
        Ok(published.generation)
    }

    /// Publishes a unit whose function of the same name adds `bonus`; returns its generation.
    pub(crate) fn publish_adds(&self, name: &str, bonus: i64) -> u64 {
        self.publish(name, &adds(name, bonus))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Publishes an object; returns its generation.
    pub(crate) fn publish_object(&self, unit: &str, bytes: Vec<u8>) -> u64 {
        let published = self.compiler.publish(&[object_unit(unit, bytes)]);
        published
            .unwrap_or_else(|error| panic!("{error}"))
            .generation
    }

    /// Publishes something that lies in every shared area.
    pub(crate) fn fill_every_area(&self) {
        let object = Maker::new().function("everywhere", &PLUS_ONE);
        let object = object.read_only("datum", &[7; 64]);
        self.publish_object("everywhere", object.finish());
    }

    /// Every byte of the shared object, as the descriptor that workers get shows it.
    pub(crate) fn shared_bytes(&self) -> Vec<u8> {
        let segment = self.compiler.segment();
        let fd = &segment.worker_fd().unwrap();
        let len = rustix::fs::fstat(fd).unwrap().st_size;
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::io::pread(fd, &mut bytes[filled..], filled as u64).unwrap() {
                0 => panic!("the shared object ends after {filled} of {len} bytes"),
                count => filled += count,
            }
        }
        bytes
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A unit of one CLIF file.
pub(crate) fn clif_unit(unit: &str, text: &str) -> UnitSource {
    let name = format!("{unit}.clif");
    let compiled = compile_bytes(&name, text.into(), &front::Options::default())
        .unwrap_or_else(|error| panic!("{error}"));
    UnitSource {
        name: unit.to_owned(),
        files: vec![UnitFile {
            name,
            bytes: compiled.bytes,
            dialect: compiled.dialect,
        }],
        signatures: compiled.signatures,
        uncallable: Vec::new(),
        imports: compiled.imports,
        link: jitcast::compiler::LinkOptions::default(),
        reclaim: Reclaim::Auto,
    }
}

/// A unit of one object.
pub(crate) fn object_unit(unit: &str, bytes: Vec<u8>) -> UnitSource {
    let file = UnitFile {
        name: format!("{unit}.o"),
        bytes,
        dialect: Dialect::Elf,
    };
    UnitSource {
        name: unit.to_owned(),
        files: vec![file],
        signatures: Vec::new(),
        uncallable: Vec::new(),
        imports: Vec::new(),
        link: jitcast::compiler::LinkOptions::default(),
        reclaim: Reclaim::Auto,
    }
}
