//! Exceptions and backtraces through published code, in a host whose unwinder asks for it (`embed!`).

mod common;
#[path = "unwind/scenes.rs"]
mod scenes;
#[path = "unwind/sources.rs"]
mod sources;
#[path = "unwind/stepping.rs"]
mod stepping;
#[path = "publish/units.rs"]
mod units;

use common::{require, role};
use object::{Object, ObjectSymbol};
use scenes::{FLAGS, SCENE, Stage};

jitcast::worker::embed!();

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(SCENE, scenes::play)]);
}

#[test]
fn executables_that_embed_it_are_asked_first() {
    let own = std::env::current_exe().unwrap();
    for path in [own.to_str().unwrap(), env!("CARGO_BIN_EXE_jitcast")] {
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(&bytes[..]).unwrap();
        let exported = file
            .dynamic_symbols()
            .any(|symbol| symbol.name() == Ok("_Unwind_Find_FDE") && symbol.is_definition());
        assert!(exported, "{path} has no dynamic symbol _Unwind_Find_FDE");
    }
}

#[test]
fn exceptions_and_backtraces_pass_in_every_code_model() {
    if !require::cxx() {
        return;
    }
    for flags in [
        &FLAGS[..],
        &["-O0", "-fPIC"],
        &["-O2", "-fPIC", "-fno-plt"],
        &["-O2", "-fPIC", "-ffunction-sections", "-fdata-sections"],
        &["-O2", "-fPIE"],
        &["-O2", "-fPIC", "-mcmodel=large"],
        &["-O2", "-fno-pic", "-mcmodel=large"],
    ] {
        Stage::new(flags).everything(flags, "auto");
    }
}

#[test]
fn with_the_hook_nothing_need_be_registered() {
    if !require::cxx() {
        return;
    }
    let stage = Stage::new(&FLAGS);
    stage.everything(&FLAGS, "off");
    stage.everything(&FLAGS, "register");
}

#[test]
fn units_are_replaced_while_others_throw() {
    if require::cxx() {
        Stage::new(&FLAGS).replace("auto");
    }
}

#[test]
fn a_handle_that_lets_nothing_out_ends_the_process() {
    if require::cxx() {
        let message = "an exception left published code, which the host called as `extern \"C\"`";
        Stage::new(&FLAGS).aborts("contained", "auto", message);
    }
}

#[test]
fn an_idle_worker_throws_after_memory_was_wanted() {
    if require::cxx() {
        Stage::new(&FLAGS).idle("auto");
    }
}

#[test]
fn a_profiler_gets_to_the_host_from_every_instruction() {
    if require::cxx() {
        Stage::new(&FLAGS).finishes("stepped", "auto");
    }
}

#[test]
fn panics_of_the_host_pass_published_code() {
    scenes::panics_pass();
}
