//! Hands on what the libraries' own build scripts say of themselves.

fn main() {
    for (variable, from) in [
        ("SQLITE_FOLDER", "DEP_SQLITE3_LIB_DIR"),
        ("SQLITE_INCLUDE", "DEP_SQLITE3_INCLUDE"),
        ("ZSTD_FOLDER", "DEP_ZSTD_ROOT"),
        ("ZSTD_INCLUDE", "DEP_ZSTD_INCLUDE"),
    ] {
        let value = std::env::var(from).unwrap_or_else(|_| {
            panic!("the build script of a library does not set {from}: see its sources for what it sets now")
        });
        println!("cargo::rustc-env={variable}={value}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
