//! What an import calls its host symbol: the name, `name@VERSION` for one of a certain version, and then, if the code that
//! calls it says so, the signature by which it is called (`log(i64) -> void`).
//!
//! Invariant: text that is not of this form is a name as a whole, so every text names something.

use core::fmt;

use crate::records::MAX_NAME_BYTES;
use crate::signature::Signature;

/// A host symbol, as an import names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName<'a> {
    /// Its name, with its version.
    pub name: &'a str,
    /// How it is called; `None`: nobody says.
    pub signature: Option<Signature>,
}

impl<'a> HostName<'a> {
    /// The symbol `name`, called by `signature`, unless the text of both would be longer than names may be.
    pub fn new(name: &'a str, signature: Option<Signature>) -> Self {
        let fits = |signature: &Signature| name.len() + signature.to_string().len() <= MAX_NAME_BYTES;
        Self { name, signature: signature.filter(fits) }
    }

    /// What `text` names.
    pub fn parse(text: &'a str) -> Self {
        // Canonical text only: a name may end in parentheses.
        let called = text.find('(').filter(|at| *at > 0).and_then(|at| {
            let signature: Signature = text[at..].parse().ok()?;
            (signature.to_string() == text[at..]).then_some((at, signature))
        });
        match called {
            Some((at, signature)) => Self { name: &text[..at], signature: Some(signature) },
            None => Self { name: text, signature: None },
        }
    }
}

impl fmt::Display for HostName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.signature.iter().try_for_each(|signature| write!(f, "{signature}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_versions_and_signatures_are_told_apart() {
        for (text, name, signature) in [
            ("log", "log", None),
            ("log@V_2", "log@V_2", None),
            ("log(i64, ptr) -> void", "log", Some("(i64, ptr) -> void")),
            ("log@V_2() -> f64", "log@V_2", Some("() -> f64")),
            // Names all the same.
            ("operator()", "operator()", None),
            ("(i64) -> i64", "(i64) -> i64", None),
            ("log(i64", "log(i64", None),
        ] {
            let parsed = HostName::parse(text);
            let signature = signature.map(|signature| signature.parse().unwrap());
            assert_eq!(parsed, HostName { name, signature }, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn no_signature_makes_a_name_too_long() {
        let name = "n".repeat(MAX_NAME_BYTES - 4);
        let named = HostName::new(&name, Some("() -> void".parse().unwrap()));
        assert_eq!(named.to_string(), name);
    }
}
