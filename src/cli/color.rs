//! Whether messages have colours: what `--color` says counts, then `NO_COLOR` (<https://no-color.org>), then whether a terminal shows them.

use std::ffi::OsString;
use std::io::{IsTerminal, stderr};

use clap::{ColorChoice, CommandFactory, FromArgMatches, ValueEnum};

use super::args::Args;

/// The command line; complains in colours or without, as the same line asks for.
pub(super) fn parse() -> Args {
    let words: Vec<_> = std::env::args_os().collect();
    let command = Args::command().color(asked(&words).unwrap_or_default());
    let matches = command.get_matches_from(words);
    Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// What a line asks for that may be wrong otherwise.
fn asked(words: &[OsString]) -> Option<ColorChoice> {
    let mut words = words.iter().filter_map(|word| word.to_str());
    let word = words.find_map(|word| match word.strip_prefix("--color")? {
        "" => Some(None),
        value => value.strip_prefix('=').map(Some),
    })?;
    ColorChoice::from_str(word.or_else(|| words.next())?, true).ok()
}

/// Whether standard error is to have colours.
pub(super) fn wanted(asked: ColorChoice) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match asked {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => !no_color && stderr().is_terminal(),
    }
}
