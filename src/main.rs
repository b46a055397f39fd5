//! The `jitcast` command. Data go to standard output, everything else to standard error. Exit status: 0 done,
//! 1 failed, 2 wrong usage.

mod cli;

// Exceptions find their way through published code.
jitcast_worker::embed!();

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
