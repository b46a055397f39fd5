//! C of the examples whose version is in an object of its own, so that thousands of versions need no compiler.

#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses some of the helpers"
)]

use jitcast::compiler::front::{Options, compile_bytes};
use jitcast::compiler::{Reclaim, UnitSource};

use crate::common::host::Host;
use crate::common::object::Maker;
use crate::common::scratch::{Scratch, example};
use crate::http::Versions;

/// A unit without its version.
pub(crate) struct Versioned {
    name: &'static str,
    object: Vec<u8>,
    datum: fn(u32) -> Vec<u8>,
}

impl Versioned {
    /// Compiles an example whose macro `of` is the version, which is an `int` or a `double`.
    fn compile(
        name: &'static str,
        path: &str,
        (of, ty): (&str, &str),
        datum: fn(u32) -> Vec<u8>,
    ) -> Self {
        let scratch = Scratch::new();
        let header = scratch.write("version.h", format!("extern const {ty} version;"));
        let source = std::fs::read_to_string(example(path)).unwrap();
        let define = format!("-D{of}=version");
        // With debugging information, which says the types.
        let flags = [
            "-c", "-O2", "-g", "-fPIC", "-fno-plt", &define, "-include", &header,
        ];
        let object = std::fs::read(scratch.compile("unit.o", &source, &flags)).unwrap();
        Self {
            name,
            object,
            datum,
        }
    }

    /// The page of examples/nginx, which says its version.
    pub(crate) fn page() -> Self {
        let datum = |version: u32| version.to_le_bytes().to_vec();
        Self::compile("page", "nginx/page.c", ("VERSION", "int"), datum)
    }

    /// The kernel of examples/gunicorn, which multiplies with it.
    pub(crate) fn kernel() -> Self {
        let datum = |version: u32| f64::from(version).to_le_bytes().to_vec();
        Self::compile("kernel", "gunicorn/kernel.c", ("WEIGHT", "double"), datum)
    }

    /// The unit of a version.
    pub(crate) fn unit(&self, version: u32) -> UnitSource {
        let datum = Maker::new().read_only("version", &(self.datum)(version));
        let files = [
            ("unit.o", self.object.clone()),
            ("version.o", datum.finish()),
        ];
        let files = files.map(|(name, bytes)| {
            let compiled = compile_bytes(name, bytes, &Options::default());
            compiled.unwrap_or_else(|error| panic!("{error}"))
        });
        UnitSource {
            // It hands out no addresses.
            reclaim: Reclaim::Yes,
            ..UnitSource::new(self.name, files)
        }
    }

    /// Publishes the next version, which is the current one once this returns.
    pub(crate) fn publish_next(&self, host: &Host, versions: &Versions) {
        let version = versions.begin();
        let published = host.compiler.publish(&[self.unit(version)]);
        published.unwrap_or_else(|error| panic!("{error}"));
        versions.end(version);
    }
}
