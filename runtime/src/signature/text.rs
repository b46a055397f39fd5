//! Reading the text of types, signatures, prototypes and calls, with a position in every error.
//!
//! Invariant: a cursor stands on a character boundary of its text, and every step moves it forward, so
//! reading takes time linear in the text.

use super::{MAX_PARAMS, MAX_TEXT_BYTES, Type};

/// Text that is no signature, prototype, type or call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`, column {column}: {fault}\n  {}\n  help: {}", .fault.why(), .fault.help())]
pub struct SignatureError {
    /// The text, shortened if it is long.
    pub text: String,
    /// Where it is wrong: a column, in characters from 1.
    pub column: usize,
    /// What is wrong.
    pub fault: SignatureFault,
}

/// What is wrong with the text of a signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureFault {
    /// Something else should stand here.
    #[error("expected {wanted}, found {found}")]
    Expected {
        /// What should stand here.
        wanted: &'static str,
        /// What does.
        found: String,
    },
    /// No type has this name.
    #[error("unknown type `{0}`")]
    UnknownType(String),
    /// A C type that travels neither in a general nor in a vector register.
    #[error("arguments of type `{0}` are not supported")]
    UnsupportedType(String),
    /// `void` where a value is needed.
    #[error("`void` is not the type of a parameter")]
    VoidParameter,
    /// `...`
    #[error("a variadic signature is not supported")]
    Variadic,
    /// More than [`MAX_PARAMS`] parameters or arguments.
    #[error("more than {MAX_PARAMS} parameters")]
    TooManyParams,
    /// More than [`MAX_TEXT_BYTES`].
    #[error("{0} bytes of text, more than {MAX_TEXT_BYTES}")]
    TooLong(usize),
    /// A prototype without a result.
    #[error("the type of the result is missing")]
    NoResult,
    /// A prototype with a result on both sides.
    #[error("the type of the result is given twice")]
    TwoResults,
    /// An argument that is no number.
    #[error("`{0}` is not a number")]
    NotANumber(String),
    /// A number with a suffix that is not a type.
    #[error("`{0}` does not end in a type")]
    BadSuffix(String),
}

impl SignatureFault {
    /// Why it is refused.
    fn why(&self) -> &'static str {
        match self {
            Self::Expected { .. } | Self::NoResult | Self::TwoResults => {
                "a signature is `(i64, f64) -> i64`, a prototype `score(i64) -> i64` or `long score(long)`"
            }
            Self::UnknownType(_) | Self::UnsupportedType(_) | Self::VoidParameter => {
                "a call passes integers, pointers, `float` and `double`"
            }
            Self::Variadic => "the types of one call's arguments decide how they are passed",
            Self::TooManyParams | Self::TooLong(_) => "text that comes from outside has limits",
            Self::NotANumber(_) | Self::BadSuffix(_) => {
                "arguments are numbers: `21`, `-3`, `0xff`, `1.5`, `2e9`, `inf`, `nan`, `21i32`, `1.5f32`"
            }
        }
    }

    /// The remedy.
    fn help(&self) -> &'static str {
        match self {
            Self::Expected { .. } => "write it in one of these forms",
            Self::UnknownType(_) => {
                "use i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 ptr, or C's names of them"
            }
            Self::UnsupportedType(_) => "pass a pointer to it (`ptr`)",
            Self::VoidParameter => "leave it away: `()` takes nothing",
            Self::Variadic => {
                "declare the arguments that you pass, and call a wrapper of that type"
            }
            Self::TooManyParams => "pass a pointer to a structure",
            Self::TooLong(_) => "shorten it",
            Self::NoResult => "add `-> long`, or `-> void` if it returns nothing",
            Self::TwoResults => "remove one of them",
            Self::NotANumber(_) => "pass numbers; text and structures cannot be passed this way",
            Self::BadSuffix(_) => {
                "end the number, or add one of i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 ptr"
            }
        }
    }
}

/// A position in a text that is being read.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

/// Whether `c` can begin a name.
fn starts_name(c: char) -> bool {
    c.is_ascii_alphabetic() || matches!(c, '_' | '.' | '$')
}

/// Whether `c` can go on in a name. (Assemblers allow `.`, `$` and `@`.)
fn continues_name(c: char) -> bool {
    starts_name(c) || c.is_ascii_digit() || c == '@'
}

/// `text`, shortened and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(120)
        .flat_map(char::escape_debug_unquoted)
        .collect();
    if text.chars().nth(120).is_some() {
        shown.push_str("...");
    }
    shown
}

/// `char::escape_debug` without escaping quotes and printable text.
trait EscapeUnquoted {
    fn escape_debug_unquoted(self) -> Vec<char>;
}

impl EscapeUnquoted for char {
    fn escape_debug_unquoted(self) -> Vec<char> {
        if matches!(self, '"' | '\'' | '\\') {
            vec![self]
        } else {
            self.escape_debug().collect()
        }
    }
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `text`.
    pub(super) fn new(text: &'a str) -> Result<Self, SignatureError> {
        let cursor = Self { text, at: 0 };
        if text.len() > MAX_TEXT_BYTES {
            return Err(cursor.fail(0, SignatureFault::TooLong(text.len())));
        }
        Ok(cursor)
    }

    /// An error at the byte `at`.
    pub(super) fn fail(&self, at: usize, fault: SignatureFault) -> SignatureError {
        let before = self.text.get(..at).unwrap_or(self.text);
        SignatureError {
            text: shown(self.text),
            column: before.chars().count() + 1,
            fault,
        }
    }

    /// An error here: `wanted` was expected.
    pub(super) fn expected(&mut self, wanted: &'static str) -> SignatureError {
        self.skip_space();
        let rest = self.rest();
        let word: String = rest.chars().take_while(|c| continues_name(*c)).collect();
        let found = match (word.is_empty(), rest.chars().next()) {
            (false, _) => format!("`{}`", shown(&word)),
            (true, Some(c)) => format!("`{}`", shown(&c.to_string())),
            (true, None) => "the end".to_owned(),
        };
        self.fail(self.at, SignatureFault::Expected { wanted, found })
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Where the next token begins, a byte index.
    pub(super) fn at(&mut self) -> usize {
        self.skip_space();
        self.at
    }

    /// Takes `token` if it is next.
    pub(super) fn take(&mut self, token: &str) -> bool {
        self.skip_space();
        let next = self.rest().starts_with(token);
        if next {
            self.at += token.len();
        }
        next
    }

    /// Takes the longest prefix whose characters satisfy `wanted`.
    pub(super) fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        self.skip_space();
        let rest = self.rest();
        let len = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// The next name, if one is next.
    pub(super) fn word(&mut self) -> Option<&'a str> {
        self.skip_space();
        self.rest()
            .starts_with(starts_name)
            .then(|| self.take_while(continues_name))
    }

    fn peek_word(&mut self) -> Option<&'a str> {
        let before = self.at;
        let word = self.word();
        self.at = before;
        word
    }

    /// Takes a `;` if it is next.
    pub(super) fn semicolon(&mut self) {
        self.take(";");
    }

    /// Nothing may follow.
    pub(super) fn end(&mut self) -> Result<(), SignatureError> {
        self.skip_space();
        if self.rest().is_empty() {
            Ok(())
        } else {
            Err(self.expected("the end"))
        }
    }

    /// `-> type`, if it is next; the inner `None` is `void`.
    pub(super) fn arrow_type(&mut self) -> Result<Option<Option<Type>>, SignatureError> {
        if self.take("->") {
            self.c_type().map(Some)
        } else {
            Ok(None)
        }
    }

    /// `(type [name], ...)`.
    pub(super) fn params(&mut self) -> Result<Vec<Type>, SignatureError> {
        if !self.take("(") {
            return Err(self.expected("`(`"));
        }
        let mut params = Vec::new();
        if self.take(")") {
            return Ok(params);
        }
        loop {
            let at = self.at();
            if self.take("...") {
                return Err(self.fail(at, SignatureFault::Variadic));
            }
            let ty = self.c_type()?;
            // A parameter may have a name, and be declared as an array: then it is a pointer.
            let name = self.word();
            let array = self.take("[");
            if array {
                self.take_while(|c| c != ']' && c != ')');
                if !self.take("]") {
                    return Err(self.expected("`]`"));
                }
            }
            match ty {
                _ if array => params.push(Type::Ptr),
                Some(ty) => params.push(ty),
                None if params.is_empty() && name.is_none() && self.take(")") => return Ok(params),
                None => return Err(self.fail(at, SignatureFault::VoidParameter)),
            }
            if params.len() > MAX_PARAMS {
                return Err(self.fail(at, SignatureFault::TooManyParams));
            }
            if self.take(")") {
                return Ok(params);
            }
            if !self.take(",") {
                return Err(self.expected("`,` or `)`"));
            }
        }
    }

    /// What stands before the `(` of a prototype: the name, and C's type of the result if it is there.
    pub(super) fn declarator(&mut self) -> Result<(String, Option<Option<Type>>), SignatureError> {
        while matches!(self.peek_word(), Some("extern" | "static" | "inline")) {
            self.word();
        }
        let start = self.at;
        if let Some(name) = self.word()
            && self.at() < self.text.len()
            && self.rest().starts_with('(')
        {
            if c_word(name) {
                return Err(self.expected("a function's name"));
            }
            return Ok((name.to_owned(), None));
        }
        self.at = start;
        let returns = self.c_type()?;
        let Some(name) = self.word() else {
            return Err(self.expected("a function's name"));
        };
        Ok((name.to_owned(), Some(returns)))
    }

    /// A type by its canonical name or as C spells it, `None` for `void`.
    pub(super) fn c_type(&mut self) -> Result<Option<Type>, SignatureError> {
        let start = self.at();
        let mut words: Vec<&str> = Vec::new();
        while let Some(word) = self.peek_word() {
            let tagged = matches!(words.last(), Some(&("struct" | "union" | "enum")));
            // A word that is not C's ends the type, unless it is the type (or its tag).
            if !c_word(word) && !words.is_empty() && !tagged {
                break;
            }
            if words.len() > 8 {
                return Err(self.expected("a type"));
            }
            self.word();
            if !matches!(
                word,
                "const" | "volatile" | "restrict" | "__restrict" | "register"
            ) {
                words.push(word);
            }
        }
        let end = self.at;
        let mut pointer = false;
        while self.take("*") {
            pointer = true;
            while matches!(
                self.peek_word(),
                Some("const" | "volatile" | "restrict" | "__restrict")
            ) {
                self.word();
            }
        }
        if words.is_empty() {
            return Err(self.expected("a type"));
        }
        if pointer {
            return Ok(Some(Type::Ptr));
        }
        let spelled = self.text.get(start..end).unwrap_or("").trim();
        c_meaning(&mut words).map_err(|unsupported| {
            let fault = if unsupported {
                SignatureFault::UnsupportedType(shown(spelled))
            } else {
                SignatureFault::UnknownType(shown(spelled))
            };
            self.fail(start, fault)
        })
    }
}

/// Whether `word` is part of how C spells types.
fn c_word(word: &str) -> bool {
    Type::from_name(word).is_some() || C_KEYWORDS.contains(&word) || c_typedef(word).is_some()
}

/// The words that C builds types of.
const C_KEYWORDS: [&str; 20] = [
    "void", "char", "short", "int", "long", "signed", "unsigned", "float", "double", "bool",
    "_Bool", "_Complex", "__int128", "const", "volatile", "restrict", "struct", "union", "enum",
    "register",
];

/// The type that `<stdint.h>` or `<stddef.h>` calls `word`.
fn c_typedef(word: &str) -> Option<Type> {
    Some(match word {
        "int8_t" => Type::I8,
        "int16_t" => Type::I16,
        "int32_t" => Type::I32,
        "int64_t" | "intptr_t" | "ssize_t" | "ptrdiff_t" => Type::I64,
        "uint8_t" => Type::U8,
        "uint16_t" => Type::U16,
        "uint32_t" => Type::U32,
        "uint64_t" | "uintptr_t" | "size_t" => Type::U64,
        _ => return None,
    })
}

/// What the words of a type mean together; `Err(true)` if C knows it and we don't support it.
fn c_meaning(words: &mut [&str]) -> Result<Option<Type>, bool> {
    if let [word] = words
        && let Some(ty) = Type::from_name(word).or_else(|| c_typedef(word))
    {
        return Ok(Some(ty));
    }
    // C allows the words in any order: `long unsigned int` is `unsigned long`.
    words.sort_unstable();
    Ok(Some(match words {
        ["void"] => return Ok(None),
        ["char"] | ["char", "signed"] => Type::I8,
        ["short"] | ["int", "short"] | ["short", "signed"] | ["int", "short", "signed"] => {
            Type::I16
        }
        ["int"] | ["signed"] | ["int", "signed"] => Type::I32,
        ["long"] | ["int", "long"] | ["long", "signed"] | ["int", "long", "signed"] => Type::I64,
        ["long", "long"] | ["int", "long", "long"] => Type::I64,
        ["long", "long", "signed"] | ["int", "long", "long", "signed"] => Type::I64,
        ["char", "unsigned"] | ["bool"] | ["_Bool"] => Type::U8,
        ["short", "unsigned"] | ["int", "short", "unsigned"] => Type::U16,
        ["unsigned"] | ["int", "unsigned"] | ["enum", _] | [_, "enum"] => Type::U32,
        ["long", "unsigned"] | ["int", "long", "unsigned"] => Type::U64,
        ["long", "long", "unsigned"] | ["int", "long", "long", "unsigned"] => Type::U64,
        ["float"] => Type::F32,
        ["double"] => Type::F64,
        words => {
            let known = ["double", "float", "__int128", "struct", "union", "_Complex"];
            return Err(words.iter().any(|word| known.contains(word)));
        }
    }))
}
