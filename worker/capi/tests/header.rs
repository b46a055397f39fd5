//! The header that is checked in is what cbindgen makes of the sources. `JITCAST_BLESS=1` writes it.

use std::path::Path;

use cbindgen::{Builder, Config};

fn made() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is read");
    let inline = std::fs::read_to_string(root.join("src/inline.h")).unwrap();
    let bindings = Builder::new()
        .with_config(config)
        .with_src(root.join("../src/thread_words.rs"))
        .with_src(root.join("src/lib.rs"))
        .with_trailer(inline)
        .generate()
        .expect("the sources are taken");
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).unwrap();
    text.replace("# Safety", "Required:")
}

#[test]
fn the_header_is_what_the_sources_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/jitcast.h");
    let made = made();
    if std::env::var_os("JITCAST_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == made,
        "worker/capi/include/jitcast.h is out of date: `JITCAST_BLESS=1 cargo test -p jitcast-capi --test header` writes it"
    );
}
