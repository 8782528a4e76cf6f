//! What came of an input, as a number that inputs of the same kind share.

use std::hash::{DefaultHasher, Hash, Hasher};

/// What came of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Outcome(u64);

impl Outcome {
    /// Of anything that names the kind: a variant, a number of elements, a set of options that are there.
    pub fn of(kind: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        kind.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// For names of files.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// The kind of an error by its text: what is quoted, numbers and the rest of a line after 120 characters do not count.
pub fn of_text(text: &str) -> Outcome {
    let mut kind = String::new();
    let mut quoted = false;
    for c in text.chars().take(120) {
        match c {
            '"' | '`' => quoted = !quoted,
            '0'..='9' => {}
            c if quoted || !c.is_ascii() => {}
            c => kind.push(c),
        }
    }
    Outcome::of(kind)
}
