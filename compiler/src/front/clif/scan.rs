//! Reads CLIF text ahead of its parser: takes the filetest header away, and refuses what the parser or the
//! code generator would not survive, or what jitcast does not support, by name and position.
//!
//! Invariant: a word that is refused here is that word for Cranelift too (see [`super::token`]); a name, a
//! comment or a string never is.

use std::collections::HashMap;
use std::ops::Range;

use super::error::ClifFault;
use super::token::{Kind, Token, Tokens};

/// A fault and the bytes of the text that it is about.
pub(super) type Finding = (Range<usize>, ClifFault);

/// Words that are refused: what they ask for, and what to do instead.
const REFUSED: [(&[&str], &str, &str); 11] = [
    (
        &[
            "try_call",
            "try_call_indirect",
            "get_exception_handler_address",
        ],
        "exceptions need unwind tables, which are not generated",
        "use `call`, and return an error code",
    ),
    (
        &["tls", "tls_value"],
        "a thread-local variable of published code has no place in the threads of a worker",
        "keep thread-local state in the host, and pass a pointer to it",
    ),
    (
        &[
            "fast",
            "tail",
            "windows_fastcall",
            "apple_aarch64",
            "probestack",
            "winch",
            "preserve_all",
        ],
        "hosts and units call one another by the System V convention only",
        "write `system_v`, or nothing: it is the default",
    ),
    (
        &["return_call", "return_call_indirect"],
        "a tail call needs the `tail` convention, by which hosts cannot call",
        "use `call` and `return`",
    ),
    (
        &[
            "stack_limit",
            "stack_switch",
            "get_pinned_reg",
            "set_pinned_reg",
        ],
        "it needs a runtime that sets up stacks or registers for generated code",
        "remove it; stacks are the host's own threads'",
    ),
    (
        &["stack_map"],
        "stack maps are for garbage collectors, and no one would read them",
        "remove it",
    ),
    (
        &["patchable", "patchable_call"],
        "published text is never changed in place",
        "use `call`: calls follow updates through their cells",
    ),
    (
        &[
            "dyn_scale_target_const",
            "dynamic_stack_load",
            "dynamic_stack_store",
            "dynamic_stack_addr",
        ],
        DYNAMIC.0,
        DYNAMIC.1,
    ),
    (
        &["vmctx"],
        "there is no VM context",
        "pass a pointer as an ordinary `i64` parameter",
    ),
    (
        &["sret", "sarg"],
        "structures by value would need their layout to be known to callers",
        "pass a pointer as an ordinary `i64` parameter",
    ),
    (
        &["f16", "f128", "f16const", "f128const"],
        "Cranelift has not all of the code for it on x86-64",
        "use `f32` or `f64`",
    ),
];

/// Why vectors of dynamic size are refused, and what to do instead.
const DYNAMIC: (&str, &str) = (
    "vectors of dynamic size do not exist on x86-64",
    "use a vector of fixed size, such as `i32x4`",
);

/// Why vectors of another size are refused, and what to do instead.
const VECTORS: (&str, &str) = (
    "x86-64 code is generated for vectors of 128 bits",
    "use one of `i8x16 i16x8 i32x4 i64x2 f32x4 f64x2`",
);

/// Prefixes of numbered entities whose numbers become the length of a table in the parser.
const ENTITIES: [&str; 13] = [
    "v", "block", "ss", "gv", "mt", "const", "fn", "sig", "region", "extable", "tag", "ret", "exn",
];

/// How many global values a function can have: their check takes time quadratic in the length of a chain.
const MAX_GLOBAL_VALUES: u32 = 8192;

/// How deep aliases of aliases can be: resolving them takes time quadratic in the length of a chain.
const MAX_ALIAS_DEPTH: u32 = 64;

/// The chains of aliases (`v2 -> v1`) of one function, while its tokens go by.
#[derive(Default)]
struct Aliases {
    /// How deep the values that are aliases are.
    depths: HashMap<u32, u32>,
    /// The value before this token.
    value: Option<u32>,
    /// The value before the `->` before this token.
    alias: Option<u32>,
}

impl Aliases {
    /// Takes the next token; returns the alias and its depth if it is too deep.
    fn next(&mut self, word: &str, value: Option<u32>) -> Option<(u32, u32)> {
        let alias = self.alias.take();
        self.alias = self.value.take().filter(|_| word == "->");
        self.value = value;
        let (alias, target) = (alias?, value?);
        let depth = self
            .depths
            .get(&target)
            .map_or(1, |depth| depth.saturating_add(1));
        self.depths.insert(alias, depth);
        (depth > MAX_ALIAS_DEPTH).then_some((alias, depth))
    }
}

/// Refuses what must not reach the parser; `body` is where the header ends.
pub(super) fn check(text: &str, body: usize) -> Result<(), Finding> {
    // Numbers are dense in real text, where each takes a few bytes to define. So this budget for the sum of
    // all tables is never met by accident, and keeps memory linear in the text.
    let budget = text.len() as u64 + 65_536;
    let mut used = 0_u64;
    let mut highest = [0_u32; ENTITIES.len()];
    let mut aliases = Aliases::default();
    // Where the last word began: an alias that is too deep began two tokens before.
    let mut last_word = 0;
    for Token { kind, at } in Tokens::new(text.get(body..).unwrap_or("")) {
        let at = at.start + body..at.end + body;
        let word = text.get(at.clone()).unwrap_or("");
        let value = entity(word).filter(|(prefix, _)| kind == Kind::Word && *prefix == "v");
        if kind != Kind::Comment
            && let Some((alias, depth)) = aliases.next(word, value.map(|(_, number)| number))
        {
            let word = format!("v{alias}");
            return Err((last_word..at.end, ClifFault::AliasDepth { word, depth }));
        }
        match kind {
            Kind::Name if word == "%" => return Err((at, ClifFault::EmptyName)),
            Kind::Invalid => {
                let shown = word.escape_debug();
                return Err((
                    at,
                    ClifFault::Syntax(format!("invalid character `{shown}`")),
                ));
            }
            Kind::Word => {}
            Kind::Name | Kind::Comment | Kind::Other => continue,
        }
        last_word = at.start;
        if word == "function" {
            highest = [0; ENTITIES.len()];
            aliases = Aliases::default();
        }
        if let Some((_, why, help)) = REFUSED.iter().find(|(words, ..)| words.contains(&word)) {
            return Err((
                at,
                ClifFault::Unsupported {
                    what: word.to_owned(),
                    why,
                    help,
                },
            ));
        }
        let Some((prefix, number)) = entity(word) else {
            continue;
        };
        if let Some(lane_bits) = lane_bits(prefix)
            && (prefix.starts_with("f16") || lane_bits * u64::from(number) != 128)
        {
            let (why, help) = VECTORS;
            return Err((
                at,
                ClifFault::Unsupported {
                    what: word.to_owned(),
                    why,
                    help,
                },
            ));
        }
        match prefix {
            "u" | "userextname" => return Err((at, ClifFault::NumberedName(word.to_owned()))),
            "dt" | "dss" => {
                let (why, help) = DYNAMIC;
                return Err((
                    at,
                    ClifFault::Unsupported {
                        what: word.to_owned(),
                        why,
                        help,
                    },
                ));
            }
            "gv" if number >= MAX_GLOBAL_VALUES => {
                return Err((
                    at,
                    ClifFault::Number {
                        word: word.to_owned(),
                        limit: MAX_GLOBAL_VALUES.into(),
                    },
                ));
            }
            _ => {}
        }
        if let Some(index) = ENTITIES.iter().position(|entity| *entity == prefix)
            && number > highest[index]
        {
            used += u64::from(number - highest[index]);
            highest[index] = number;
            if used > budget {
                return Err((
                    at,
                    ClifFault::Number {
                        word: word.to_owned(),
                        limit: budget,
                    },
                ));
            }
        }
    }
    Ok(())
}

/// The width of a lane of the vector types that begin so: 32 of `i32x`.
fn lane_bits(prefix: &str) -> Option<u64> {
    let lane = prefix.strip_suffix('x')?.strip_prefix(['i', 'f'])?;
    matches!(lane, "8" | "16" | "32" | "64" | "128").then(|| lane.parse().ok())?
}

/// Splits `gv3` into `gv` and 3.
fn entity(word: &str) -> Option<(&str, u32)> {
    let prefix = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = word.get(prefix.len()..)?.parse().ok()?;
    Some((prefix, number))
}

/// The text with its header (`test`, `set` and `target` lines of Cranelift's filetests) blanked, so that
/// lines and columns stay, and where the header ends.
///
/// The header's settings are not ours to follow; but a file that names targets names this one, or was
/// written for another machine.
pub(super) fn without_header(text: &str) -> Result<(String, usize), Finding> {
    let mut blanked = text.to_owned();
    let mut other: Option<(Range<usize>, String)> = None;
    let mut ours = false;
    let mut body = 0;
    while let Some(token) = Tokens::new(text.get(body..).unwrap_or("")).next() {
        let at = token.at.start + body..token.at.end + body;
        if token.kind == Kind::Comment {
            body = at.end;
            continue;
        }
        let word = text.get(at.clone()).unwrap_or("");
        if !matches!(word, "test" | "set" | "target") {
            break;
        }
        let tail = text.get(at.end..).unwrap_or("");
        let end = at.end + tail.find('\n').unwrap_or(tail.len());
        if word == "target" {
            let line = text.get(at.end..end).unwrap_or("");
            let triple = line.split_whitespace().next().unwrap_or("").to_owned();
            ours |= is_ours(&triple);
            if other.is_none() && !is_ours(&triple) {
                other = Some((at.clone(), triple));
            }
        }
        let line = at.start..end;
        let spaces: String = text
            .get(line.clone())
            .unwrap_or("")
            .chars()
            .flat_map(|c| std::iter::repeat_n(' ', c.len_utf8()))
            .collect();
        blanked.replace_range(line, &spaces);
        body = end;
    }
    match other {
        Some((at, triple)) if !ours => Err((at, ClifFault::Target(triple))),
        _ => Ok((blanked, body)),
    }
}

/// Whether `triple` is x86-64 Linux, or x86-64 without saying more.
fn is_ours(triple: &str) -> bool {
    let mut parts = triple.split('-');
    parts.next() == Some("x86_64") && (triple == "x86_64" || parts.any(|part| part == "linux"))
}
