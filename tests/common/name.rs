//! Names of segments.

use std::path::Path;

/// A name of a test's own, free again when the test ends.
#[derive(Debug)]
pub(crate) struct Name(pub(crate) String);

impl Name {
    pub(crate) fn new(test: &str) -> Self {
        Self(format!("test-{test}-{}", std::process::id()))
    }

    pub(crate) fn path(&self) -> String {
        format!("/dev/shm/jitcast-{}", self.0)
    }

    pub(crate) fn exists(&self) -> bool {
        Path::new(&self.path()).exists()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Most tests have removed it.
        let _ = std::fs::remove_file(self.path());
        let _ = std::fs::remove_file(self.path() + "+shared");
    }
}
