//! A folder for a test's files, gone with the test.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::process::finish;

/// The folder.
#[derive(Debug)]
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("jitcast-test-").tempdir();
        Self(folder.unwrap())
    }

    /// A folder in memory, where the system has such: for who is killed at each point of writing, and would wait for a disk
    /// that others write to. What a process wrote outlives it there too.
    pub(crate) fn in_memory() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("scratch-of-jitcast-")
            .tempdir_in("/dev/shm");
        folder.map_or_else(|_| Self::new(), Self)
    }

    /// A folder that every user can look into.
    pub(crate) fn open_to_all() -> Self {
        let scratch = Self::new();
        std::fs::set_permissions(scratch.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        scratch
    }

    /// The path of `name` in the folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file; returns its path.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// Writes a file the way that editors do: beside it, then in its place.
    pub(crate) fn replace(&self, name: &str, contents: impl AsRef<[u8]>) {
        let staged = self.write(&format!("{name}.new"), contents);
        std::fs::rename(staged, self.path(name)).unwrap();
    }

    /// Compiles C to an object called `name`; returns its path.
    pub(crate) fn object(&self, name: &str, source: &str) -> String {
        self.compile(name, source, &["-c", "-O2", "-fPIC"])
    }

    /// Compiles C to a file called `name` with `flags`; returns its path.
    pub(crate) fn compile(&self, name: &str, source: &str, flags: &[&str]) -> String {
        let source = self.write(&format!("{name}.c"), source);
        let path = self.path(name);
        let mut cc = Command::new("cc");
        finish(cc.args(flags).arg("-o").arg(&path).arg(&source)).succeeded();
        path
    }

    /// Compiles C++ to an object, with one of its compilers; returns its bytes.
    pub(crate) fn cplusplus(&self, source: &str, compiler: &str, flags: &[&str]) -> Vec<u8> {
        let path = self.path("cplusplus.o");
        let flags: Vec<&str> = flags.iter().copied().chain(["-c"]).collect();
        self.cplusplus_to(&path, source, compiler, &flags);
        std::fs::read(path).unwrap()
    }

    /// Compiles C++ to `path`.
    pub(crate) fn cplusplus_to(&self, path: &str, source: &str, compiler: &str, flags: &[&str]) {
        let source = self.write("cplusplus.cc", source);
        let mut command = Command::new(compiler);
        finish(
            command
                .args(["-std=c++17"])
                .args(flags)
                .arg("-o")
                .arg(path)
                .arg(&source),
        )
        .succeeded();
    }

    /// Makes an archive called `name`; returns its path.
    pub(crate) fn archive(&self, name: &str, members: &[&str]) -> String {
        let path = self.path(name);
        finish(Command::new("ar").arg("rcs").arg(&path).args(members)).succeeded();
        path
    }

    /// Names of the folder's files.
    pub(crate) fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.0.path()).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// The path of one of the examples.
pub(crate) fn example(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "examples", name]
        .iter()
        .collect();
    path.to_str().unwrap().to_owned()
}

/// CLIF of a function `name` that adds `bonus` to its argument.
pub(crate) fn adds(name: &str, bonus: i64) -> String {
    format!(
        "function %{name}(i64) -> i64 {{\nblock0(v0: i64):\n    v1 = iconst.i64 {bonus}\n    \
         v2 = iadd v0, v1\n    return v2\n}}\n"
    )
}

/// CLIF of a function `stuck` that prints the letter X on a line of its own and stays in the call for ever.
pub(crate) const STUCK: &str = "function %stuck() -> i64 {
    fn0 = %putchar(i32) -> i32
    fn1 = %fflush(i64) -> i32
    fn2 = %pause() -> i32
block0:
    v0 = iconst.i32 88
    v1 = call fn0(v0)
    v2 = iconst.i32 10
    v3 = call fn0(v2)
    v4 = iconst.i64 0
    v5 = call fn1(v4)
    jump block1
block1:
    v6 = call fn2()
    jump block1
}
";
