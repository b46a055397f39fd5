//! What can be wrong with CLIF text, and where: `score.clif:3:10: ...`, the line, why, and the remedy.

use std::fmt;

use super::token::{Kind, Token, Tokens};

/// CLIF text that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClifError {
    /// The file's name as it was given.
    pub file: String,
    /// Where in the text, if it is about a place.
    pub place: Option<Place>,
    /// What is wrong.
    pub fault: Box<ClifFault>,
}

/// A place in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line's text.
    pub text: String,
}

/// What is wrong with CLIF text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClifFault {
    /// More text than the limit.
    #[error("{bytes} bytes of text, the limit is {limit}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// No function at all.
    #[error("no function in this file")]
    Empty,
    /// The parser's message.
    #[error("{0}")]
    Syntax(String),
    /// The verifier's message.
    #[error("in `{function}`: {message}{}", others(*.more))]
    Invalid {
        /// The function.
        function: String,
        /// The first error.
        message: String,
        /// How many more there are.
        more: usize,
    },
    /// Something that CLIF has and jitcast has not.
    #[error("`{what}` is not supported")]
    Unsupported {
        /// The word.
        what: String,
        /// Why not.
        why: &'static str,
        /// What to do instead.
        help: &'static str,
    },
    /// `u0:0`, a name that is a number.
    #[error("`{0}` is a number, and functions are published by name")]
    NumberedName(String),
    /// `%` alone.
    #[error("a name is empty")]
    EmptyName,
    /// An entity with a number that is far too large.
    #[error("the number of `{word}` is too large")]
    Number {
        /// The entity.
        word: String,
        /// The limit, for it or for the sum of all.
        limit: u64,
    },
    /// A long chain of aliases.
    #[error("the value `{word}` is an alias of an alias, {depth} deep")]
    AliasDepth {
        /// The value.
        word: String,
        /// How deep.
        depth: u32,
    },
    /// Made for another machine.
    #[error("the file is for the target `{0}`")]
    Target(String),
    /// A function that is defined twice.
    #[error("`{name}` is defined twice")]
    Duplicate {
        /// Its name.
        name: String,
        /// The line of its first definition.
        first_line: usize,
    },
    /// A function of the file, declared otherwise than it is defined.
    #[error("`{name}` is declared as {declared}, but defined as {defined}")]
    Declared {
        /// Its name.
        name: String,
        /// The declaration's signature.
        declared: String,
        /// The definition's.
        defined: String,
    },
    /// An address too far from its symbol.
    #[error("the offset {offset} from `{name}` does not fit 32 bits")]
    Offset {
        /// The symbol.
        name: String,
        /// The offset.
        offset: i64,
    },
    /// Valid CLIF that Cranelift has no x86-64 code for.
    #[error("in `{function}`: {message}")]
    Codegen {
        /// The function.
        function: String,
        /// Cranelift's message.
        message: String,
    },
    /// Cranelift gave up with a panic.
    #[error("Cranelift failed while {stage}: {message}")]
    Internal {
        /// What it was doing.
        stage: String,
        /// The panic's message.
        message: String,
    },
}

fn others(count: usize) -> String {
    if count == 0 {
        String::new()
    } else {
        format!(" (and {count} more)")
    }
}

impl ClifFault {
    /// Why it is refused.
    fn why(&self) -> String {
        match self {
            Self::TooLong { .. } => "text from outside has a limit".to_owned(),
            Self::Empty => "a unit has at least one function".to_owned(),
            Self::Syntax(_) => "this is not CLIF as Cranelift 0.135 reads it".to_owned(),
            Self::Invalid { .. } => {
                "it does not keep CLIF's rules, so it is not compiled".to_owned()
            }
            Self::Unsupported { why, .. } => (*why).to_owned(),
            Self::NumberedName(_) => {
                "`u0:0` means something only to the program that made it".to_owned()
            }
            Self::EmptyName => "a symbol needs a name".to_owned(),
            Self::Number { limit, .. } => format!(
                "entities are rows of tables, and the limit here is {limit}: about one for each byte of text"
            ),
            Self::AliasDepth { .. } => "resolving long chains takes quadratic time".to_owned(),
            Self::Target(_) => "generated code is for x86-64 Linux".to_owned(),
            Self::Duplicate { first_line, .. } => {
                format!("the first definition is on line {first_line}")
            }
            Self::Declared { .. } => {
                "a call by another signature reads the wrong registers".to_owned()
            }
            Self::Offset { .. } => "it is added to an address by one instruction".to_owned(),
            Self::Codegen { .. } => {
                "the function is valid, but cannot be compiled for x86-64".to_owned()
            }
            Self::Internal { .. } => {
                "nothing was published; this is a limit of the code generator".to_owned()
            }
        }
    }

    /// The remedy.
    fn help(&self) -> String {
        let help = match self {
            Self::TooLong { .. } => "split the file; files given together are one unit",
            Self::Empty => "write `function %name(i64) -> i64 { ... }`",
            Self::Syntax(message) => syntax_help(message),
            Self::Invalid { .. } => "mend it; the rules are in Cranelift's docs/ir.md",
            Self::Unsupported { help, .. } => help,
            Self::NumberedName(_) | Self::EmptyName => "write `%` and a name, such as `%score`",
            Self::Number { .. } => "number entities from 0 on, without gaps",
            Self::AliasDepth { .. } => "let the alias name the value itself",
            Self::Target(_) => "remove the `target` line, or write `target x86_64`",
            Self::Duplicate { .. } => "rename or remove one of them",
            Self::Declared { .. } => "declare it as it is defined",
            Self::Offset { .. } => "add the offset with `iadd` after `symbol_value`",
            Self::Codegen { .. } => "use smaller types or frames, or another instruction",
            Self::Internal { .. } => {
                "simplify the function, and report it to Cranelift's maintainers"
            }
        };
        help.to_owned()
    }
}

/// The remedy for a message of the parser.
fn syntax_help(message: &str) -> &'static str {
    const HELP: &[(&str, &str)] = &[
        (
            "expected `stack_map",
            "the instruction takes no more operands",
        ),
        (
            "expected external name",
            "a name is `%` and letters, digits and `_`: `%score`",
        ),
        (
            "Unknown opcode",
            "the opcodes are the methods of Cranelift's `InstBuilder`",
        ),
        (
            "result values",
            "write as many results on the left as the instruction gives",
        ),
        (
            "undefined operand value",
            "define the value before the block that uses it",
        ),
        (
            "type variable required",
            "write the type behind the opcode: `iconst.i64 1`",
        ),
        (
            "expected 'function'",
            "a file is functions: `function %name(i64) -> i64 { ... }`",
        ),
        (
            "invalid character",
            "CLIF is ASCII; comments begin with `;`",
        ),
        (
            "unknown calling convention",
            "write `system_v`, or nothing: it is the default",
        ),
        (
            "undefined function",
            "declare it at the top of the function: `fn0 = %name(i64) -> i64`",
        ),
    ];
    let known = HELP.iter().find(|(part, _)| message.contains(part));
    known.map_or(
        "mend the text here; CLIF is described in Cranelift's docs/ir.md",
        |(_, help)| help,
    )
}

impl fmt::Display for ClifError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = &*self.fault;
        match &self.place {
            Some(place) => {
                let (text, caret) = place.excerpt();
                let line = place.line;
                writeln!(
                    f,
                    "{}:{line}:{}: {}",
                    self.file,
                    place.column,
                    short(&fault.to_string())
                )?;
                writeln!(f, "  {line} | {text}")?;
                writeln!(f, "  {0:1$} | {0:2$}^", "", line.to_string().len(), caret)?;
            }
            None => writeln!(f, "{}: {}", self.file, short(&fault.to_string()))?,
        }
        write!(f, "  {}\n  help: {}", fault.why(), fault.help())
    }
}

impl std::error::Error for ClifError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.fault)
    }
}

/// A message in one line of bounded length.
fn short(message: &str) -> String {
    let mut line: String = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

impl Place {
    /// The place of the byte `at`.
    pub(super) fn of_byte(text: &str, at: usize) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before.get(start..).unwrap_or("").chars().count() + 1;
        Self {
            line,
            column,
            text: nth_line(text, line),
        }
    }

    /// The place of the name of function number `index`, from 0.
    pub(super) fn of_function(text: &str, index: usize) -> Self {
        let name = of_function(text, index).nth(1);
        Self::of_byte(text, name.map_or(0, |token| token.at.start))
    }

    /// The place where function number `index` declares `word` (`fn0 = ...`), else its name.
    pub(super) fn of_declaration(text: &str, index: usize, word: &str) -> Self {
        let mut tokens = of_function(text, index).peekable();
        let of = |token: &Token| text.get(token.at.clone()).unwrap_or("");
        while let Some(token) = tokens.next() {
            if of(&token) == word && tokens.peek().is_some_and(|next| of(next) == "=") {
                return Self::of_byte(text, token.at.start);
            }
        }
        Self::of_function(text, index)
    }

    /// The place on `line` that `find` names when it is given the text with every token of this line on a
    /// line of its own, by the number of that line.
    ///
    /// Cranelift's parser and its source map know lines only; this is how a line becomes a column.
    pub(super) fn of_line(text: &str, line: usize, find: impl Fn(&str) -> Option<usize>) -> Self {
        let start = match line {
            0 | 1 => 0,
            _ => text
                .match_indices('\n')
                .nth(line - 2)
                .map_or(text.len(), |(at, _)| at + 1),
        };
        let tail = text.get(start..).unwrap_or("");
        let end = start + tail.find('\n').unwrap_or(tail.len());
        let tokens: Vec<_> = Tokens::new(text.get(start..end).unwrap_or(""))
            .map(|token| token.at.start + start..token.at.end + start)
            .collect();
        let mut split = text.get(..start).unwrap_or("").to_owned();
        for token in &tokens {
            split.push_str(text.get(token.clone()).unwrap_or(""));
            split.push('\n');
        }
        // The last token's own newline replaces the line's.
        split.push_str(
            text.get(end..)
                .map_or("", |rest| rest.strip_prefix('\n').unwrap_or(rest)),
        );
        let index = find(&split).and_then(|found| found.checked_sub(line));
        let token = index.and_then(|index| tokens.get(index)).or(tokens.first());
        Self::of_byte(text, token.map_or(start, |token| token.start))
    }

    /// The line's text, cut to what is around the column, and the column in it (from 0).
    fn excerpt(&self) -> (String, usize) {
        let skip = if self.column > 90 {
            self.column - 60
        } else {
            0
        };
        let mut text = if skip > 0 {
            "...".to_owned()
        } else {
            String::new()
        };
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        text.extend(self.text.chars().skip(skip).take(120).map(visible));
        if self.text.chars().nth(skip + 120).is_some() {
            text.push_str("...");
        }
        let lead = if skip > 0 { 3 } else { 0 };
        (text, self.column.saturating_sub(1 + skip) + lead)
    }
}

/// The tokens from the word `function` of function number `index` on.
fn of_function(text: &str, index: usize) -> impl Iterator<Item = Token> {
    let mut seen = 0;
    let tokens = Tokens::new(text).filter(|token| token.kind != Kind::Comment);
    tokens.skip_while(move |token| {
        // Nothing but a definition begins with this word.
        let begins =
            token.kind == Kind::Word && text.get(token.at.clone()).is_some_and(|w| w == "function");
        seen += usize::from(begins);
        seen <= index
    })
}

/// Line `line` of `text`, from 1.
fn nth_line(text: &str, line: usize) -> String {
    let line = text.split('\n').nth(line.saturating_sub(1)).unwrap_or("");
    // Bounded, since a line can be as long as the text.
    line.trim_end_matches('\r').chars().take(100_000).collect()
}
