//! Other people's programs: started, and, where they can tell, asked how long they took.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// LLVM's own measure of its JIT linker, as Debian installs it.
const JITLINK: &str = "/usr/lib/llvm-19/bin/llvm-jitlink";

/// How to get it.
pub(crate) const JITLINK_HELP: &str =
    "no /usr/lib/llvm-19/bin/llvm-jitlink; Debian's package llvm-19 has it";

/// A version of LLVM's JIT linker that is there.
#[derive(Debug)]
pub(crate) struct Jitlink {
    program: PathBuf,
    /// `llvm-jitlink` and the version of its LLVM.
    pub(crate) name: String,
    /// Whether it links thousands of sections, or files, in a time that can be waited for.
    pub(crate) takes_many: bool,
}

impl Jitlink {
    fn new(program: PathBuf) -> Result<Self, String> {
        let told = output(Command::new(&program).arg("--version"))?;
        let (_, version) = told.split_once("LLVM version ").ok_or_else(|| {
            let program = program.display();
            format!("{program}: its --version names no LLVM; --jitlink takes an llvm-jitlink")
        })?;
        let major = version.split('.').next().unwrap_or_default();
        Ok(Self {
            name: format!("llvm-jitlink {major}"),
            // LLVM 22's takes over ten minutes for 5,000 sections.
            takes_many: program == Path::new(JITLINK),
            program,
        })
    }

    pub(crate) fn command(&self) -> Command {
        Command::new(&self.program)
    }
}

static JITLINKS: OnceLock<Vec<Jitlink>> = OnceLock::new();

/// Looks for LLVM 19's; `others` take part too.
pub(crate) fn find_jitlinks(others: &[PathBuf]) -> Result<(), String> {
    let debian = Path::new(JITLINK).exists().then(|| JITLINK.into());
    let programs = debian.into_iter().chain(others.iter().cloned());
    let found = programs.map(Jitlink::new).collect::<Result<_, _>>()?;
    JITLINKS.get_or_init(|| found);
    Ok(())
}

/// What [`find_jitlinks`] found.
pub(crate) fn jitlinks() -> &'static [Jitlink] {
    JITLINKS.get().map_or(&[], |found| found)
}

/// Makes the library `out` of `objects`, whose functions can be replaced by others of the same names.
pub(crate) fn ld_shared(out: &Path, objects: &[PathBuf]) -> Result<(), String> {
    ld(&["-shared"], out, objects)
}

/// The same of objects that reach each other by displacements only: their functions cannot be replaced.
pub(crate) fn ld_symbolic(out: &Path, objects: &[PathBuf]) -> Result<(), String> {
    ld(&["-shared", "-Bsymbolic"], out, objects)
}

fn ld(args: &[&str], out: &Path, objects: &[PathBuf]) -> Result<(), String> {
    run(Command::new("ld")
        .args(args)
        .arg("-o")
        .arg(out)
        .args(objects))
}

/// Compiles C.
pub(crate) fn cc(args: &[&str], out: &Path, source: &Path) -> Result<(), String> {
    run(Command::new("cc").args(args).arg("-o").arg(out).arg(source))
}

/// Runs `command` to its end, quietly.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    output(command).map(|_| ())
}

/// The same: what it wrote.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout) + &text(&output.stderr))
    } else {
        let errors = text(&output.stderr);
        let first = errors.lines().next().unwrap_or_default().to_owned();
        Err(format!("{program}: {}: {first}", output.status))
    }
}

/// Whether there is a program of this name that runs.
pub(crate) fn has(program: &str) -> bool {
    run(Command::new(program).arg("--version")).is_ok()
}

/// The wall-clock time of `llvm-jitlink`'s own phases, ns, as `-show-times` tells: loading and linking together. It tells
/// tenths of milliseconds.
pub(crate) fn jitlink_own_ns(told: &str) -> Option<f64> {
    let line = told
        .lines()
        .find(|line| line.trim_end().ends_with("Total"))?;
    // Seconds and hundredths, `0.0002 (100.0%)`, of whatever was not zero; the wall clock's come last.
    let (before, _) = line.rsplit_once('(')?;
    Some(before.split_whitespace().last()?.parse::<f64>().ok()? * 1e9)
}
