//! C++ and CLIF whose exceptions pass one another's frames. Every function is `long name(long)`.

use std::process::Command;

use jitcast::compiler::{Reclaim, UnitSource};

use crate::common::host::{clif_unit, object_unit};
use crate::common::process::finish;
use crate::common::scratch::Scratch;
use crate::units::calls;

/// What all files begin with: an object whose destructor is noticed, and a class of exceptions.
const HEAD: &str = "
    extern \"C\" void note(long); extern \"C\" long look(long);
    struct Noisy { long value; ~Noisy() { note(value); } };
    struct Mine { long value; };
    #define APART __attribute__((noinline))
    #define EXPORT extern \"C\" APART
";

/// Throws, through a local, a hidden and an exported function.
pub(crate) const THROWER: &str = "
    static APART long local(long x) { Noisy noisy{100 + x}; if (x == 1) throw Mine{x}; if (x == 2) throw 7; return look(x) + 1; }
    __attribute__((visibility(\"hidden\"))) APART long hidden(long x) { Noisy noisy{200 + x}; return local(x) + 1; }
    EXPORT long throws(long x) { Noisy noisy{300 + x}; return hidden(x) + 1; }
";

/// Catches what comes through `middle`, which is CLIF.
pub(crate) const CATCHER: &str = "
    extern \"C\" long middle(long);
    EXPORT long catches(long x) {
        Noisy noisy{400 + x};
        try { return middle(x); }
        catch (Mine &mine) { return 1000 + mine.value; }
        catch (int number) { return 2000 + number; }
    }
    EXPORT long again(long x) { try { return catches(x) + middle(x); } catch (...) { note(500); throw; } }
    EXPORT long passes(long x) { Noisy noisy{600 + x}; return middle(x) + 1; }
";

/// What the C++ library throws passes and is caught.
pub(crate) const LIBRARY: &str = "
    #include <stdexcept>
    #include <string>
    #include <vector>
    static APART long at(const std::vector<long> &v, long x) { Noisy noisy{1}; return v.at(x) + 1; }
    EXPORT long library(long x) {
        std::vector<long> v{5, 6};
        try { return at(v, x); } catch (const std::out_of_range &) { return -1; }
    }
    EXPORT long number(long x) {
        std::string text(x, 'x');
        try { return std::stoi(text); } catch (const std::invalid_argument &e) { return std::string(e.what()).size(); }
    }
    EXPORT long leaves(long x) { std::vector<long> v{5}; Noisy noisy{2}; return v.at(x); }
    EXPORT long host(long (*f)(long)) { try { return f(9); } catch (const std::exception &) { return 77; } }
";

/// A constructor that throws and catches while its unit is bound, one of the C++ library's own, and a destructor that
/// throws and catches when the process ends.
pub(crate) const STARTER: &str = "
    #include <iostream>
    static APART long fails(long x) { Noisy noisy{x}; throw Mine{x}; }
    static long started = [] { try { return fails(50); } catch (Mine &mine) { return mine.value + 1; } }();
    EXPORT long start(long) { return started; }
    extern \"C\" long write(int, const char *, unsigned long);
    struct Ender { ~Ender() { try { fails(60); } catch (Mine &) { write(2, \"caught at the end\\n\", 18); } } } ender;
";

/// The host's library: throws, and catches what published code throws.
const DRIVER: &str = "
    #include <stdexcept>
    #include <cstring>
    struct Mine { long value; };
    extern \"C\" long drive(long (*f)(long), long x) {
        try { return f(x); }
        catch (const Mine &mine) { return 1000 + mine.value; }
        catch (int number) { return 2000 + number; }
        catch (const std::exception &e) { return 3000 + !!strstr(e.what(), \"_M_range_check\"); }
    }
    extern \"C\" __attribute__((noinline)) long complains(long x) { throw std::runtime_error(\"host\"); }
    extern \"C\" long quarrel(long x) { long sum = 0; for (long i = 0; i < x; i++) try { complains(i); } catch (const std::exception &) { sum++; } return sum; }
";

/// An object of C++.
pub(crate) fn cxx(source: &str, flags: &[&str]) -> Vec<u8> {
    let scratch = Scratch::new();
    let path = scratch.path("out.o");
    compile(
        &scratch,
        &format!("{HEAD}{source}"),
        &path,
        &[flags, &["-c"]].concat(),
    );
    std::fs::read(path).unwrap()
}

/// The host's library, in `scratch`; its path.
pub(crate) fn driver(scratch: &Scratch) -> String {
    let path = scratch.path("libdriver.so");
    compile(scratch, DRIVER, &path, &["-O1", "-fPIC", "-shared"]);
    path
}

fn compile(scratch: &Scratch, source: &str, path: &str, flags: &[&str]) {
    let source = scratch.write("in.cc", source);
    let mut compiler = Command::new("g++");
    finish(compiler.args(flags).arg("-o").arg(path).arg(source)).succeeded();
}

/// Units that throw and catch, compiled with `flags`.
pub(crate) fn units(flags: &[&str]) -> Vec<UnitSource> {
    vec![
        object_unit("thrower", cxx(THROWER, flags)),
        clif_unit("middle", &calls("middle", "throws", 1)),
        object_unit("catcher", cxx(CATCHER, flags)),
        object_unit("library", cxx(LIBRARY, flags)),
        object_unit("starter", cxx(STARTER, flags)),
    ]
}

/// The thrower, whose memory is reused when it is replaced.
pub(crate) fn passing_thrower(flags: &[&str]) -> UnitSource {
    UnitSource {
        reclaim: Reclaim::Yes,
        ..object_unit("thrower", cxx(THROWER, flags))
    }
}
