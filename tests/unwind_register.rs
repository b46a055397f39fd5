//! Exceptions and backtraces through published code, in a host whose unwinder has to be told of each unit.

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
use scenes::{FLAGS, SCENE, Stage};

#[test]
fn this_binary_plays_the_roles_of_its_tests() {
    role::play(&[(SCENE, scenes::play)]);
}

#[test]
fn exceptions_and_backtraces_pass() {
    if !require::cxx() {
        return;
    }
    for flags in [&FLAGS[..], &["-O2", "-fno-pic", "-mcmodel=large"]] {
        let stage = Stage::new(flags);
        stage.everything(flags, "auto");
        stage.everything(flags, "register");
    }
}

#[test]
fn units_are_replaced_while_others_throw() {
    if require::cxx() {
        Stage::new(&FLAGS).replace("auto");
    }
}

#[test]
fn without_it_an_exception_ends_the_process() {
    if require::cxx() {
        Stage::new(&FLAGS).aborts("terminates", "off", "terminate called");
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
