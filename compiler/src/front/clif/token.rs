//! Cuts CLIF text into tokens.
//!
//! Invariant: tokens are cut as Cranelift's own lexer cuts them (`cranelift-reader`, `lexer.rs`), and every
//! token is at least one byte, so cutting takes time linear in the text.

use std::ops::Range;

/// What a token is, as far as this reading cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `iadd`, `v12`, `function`.
    Word,
    /// `%score`.
    Name,
    /// `; to the end of the line`.
    Comment,
    /// Numbers, strings and punctuation.
    Other,
    /// No token at all.
    Invalid,
}

/// A token and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) at: Range<usize>,
}

/// The tokens of a text.
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    /// The tokens of `text`.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    /// How many bytes at the start of `rest`, from `skip` on, satisfy `wanted`, plus `skip`.
    fn span(rest: &str, skip: usize, wanted: impl Fn(char) -> bool) -> usize {
        let tail = rest.get(skip..).unwrap_or("");
        skip + tail.find(|c| !wanted(c)).unwrap_or(tail.len())
    }
}

fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn in_number(c: char) -> bool {
    in_word(c) || matches!(c, '-' | '.')
}

fn numeric(rest: &str) -> bool {
    rest.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'))
        || ["NaN", "Inf", "sNaN"]
            .iter()
            .any(|word| rest.starts_with(word))
}

/// The length of the number at the start of `rest`, which has its sign, if any, in the first `sign` bytes.
fn number_len(rest: &str, sign: usize) -> usize {
    let body = rest.get(sign..).unwrap_or("");
    let payload = ["NaN:", "sNaN:"]
        .iter()
        .find(|prefix| body.starts_with(**prefix));
    // The lexer takes the first character unseen, then what is like a number.
    let first = match payload {
        Some(prefix) => prefix.len(),
        None => body.chars().next().map_or(0, char::len_utf8),
    };
    Tokens::span(rest, sign + first, in_number)
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.at = Self::span(self.text, self.at, |c| matches!(c, ' ' | '\x09'..='\x0d'));
        let rest = self.rest();
        let first = rest.chars().next()?;
        let (kind, len) = match first {
            ';' => (Kind::Comment, Self::span(rest, 1, |c| c != '\n')),
            '%' => (Kind::Name, Self::span(rest, 1, in_word)),
            '"' => {
                let end = Self::span(rest, 1, |c| c != '"');
                (Kind::Other, (end + 1).min(rest.len()))
            }
            '#' => (Kind::Other, Self::span(rest, 1, |c| c.is_ascii_hexdigit())),
            '@' => (Kind::Other, Self::span(rest, 1, |c| c.is_ascii_hexdigit())),
            '-' if rest.starts_with("->") => (Kind::Other, 2),
            '-' | '+' if !numeric(rest.get(1..).unwrap_or("")) => (Kind::Other, 1),
            '-' | '+' => (Kind::Other, number_len(rest, 1)),
            '0'..='9' => (Kind::Other, number_len(rest, 0)),
            _ if rest.starts_with("NaN") || rest.starts_with("Inf") => {
                (Kind::Other, number_len(rest, 0))
            }
            c if c.is_ascii_alphabetic() => (Kind::Word, Self::span(rest, 1, in_word)),
            '(' | ')' | '{' | '}' | '[' | ']' | '<' | '>' | ',' | '.' | ':' | '=' | '!' | '*' => {
                (Kind::Other, 1)
            }
            c => (Kind::Invalid, c.len_utf8()),
        };
        let start = self.at;
        self.at += len;
        Some(Token {
            kind,
            at: start..self.at,
        })
    }
}
