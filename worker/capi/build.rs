//! What the linker is told of the shared library: its name, with the version of the ABI, and that it stays.

fn main() {
    println!("cargo::rerun-if-changed=src/lib.rs");
    let version = include_str!("src/lib.rs")
        .lines()
        .find_map(|line| line.strip_prefix("pub const JITCAST_ABI_VERSION: u32 = "))
        .and_then(|rest| rest.strip_suffix(';'))
        .expect("src/lib.rs states the version of the ABI");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libjitcast_worker.so.{version}");
    // Fork handlers and destructors of thread-local data lead into it: dlclose(3) must not unmap it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
