//! Lines of words.
//!
//! A word is letters, digits and `-._/:`; each other byte of a text is `%` and two digits of base 16, and the empty text is `%`. So names from manifests,
//! which may be anything, end no word and no line.

use std::fmt::{self, Display, Write};
use std::str::FromStr;

/// The words of a line that are not read yet.
pub(super) struct SnapshotWords<'a>(Option<&'a str>);

/// Lines so far.
pub(super) struct SnapshotWriter {
    text: String,
    lines: usize,
}

/// Writes a text as a word.
struct Escaping<'a>(&'a mut String);

// === impl SnapshotWords ===

impl<'a> SnapshotWords<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self(Some(line))
    }

    /// The next word as it is written.
    pub(super) fn raw(&mut self) -> Option<&'a str> {
        let rest = self.0.take()?;
        let word = match rest.split_once(' ') {
            None => rest,
            Some((word, rest)) => {
                self.0 = Some(rest);
                word
            }
        };
        (!word.is_empty()).then_some(word)
    }

    /// The next word's text.
    pub(super) fn text(&mut self) -> Option<Box<str>> {
        let word = self.raw()?;
        if word == "%" {
            return Some("".into());
        }
        let Some((first, rest)) = word.split_once('%') else { return Some(word.into()) };
        let mut bytes = first.as_bytes().to_vec();
        for part in rest.split('%') {
            let (digits, plain) = part.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            bytes.extend(plain.as_bytes());
        }
        String::from_utf8(bytes).ok().map(String::into_boxed_str)
    }

    /// The next word as something that is written in plain letters.
    pub(super) fn number<T: FromStr>(&mut self) -> Option<T> {
        self.raw()?.parse().ok()
    }

    /// How many there are, and these.
    pub(super) fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count: usize = self.number()?;
        // Not made room for beforehand: a number says nothing of what follows.
        let mut found = Vec::new();
        for _ in 0..count {
            found.push(read(self)?);
        }
        Some(found)
    }

    /// Takes the next word if it is this one.
    pub(super) fn takes(&mut self, word: &str) -> bool {
        let before = self.0;
        let is_it = self.raw() == Some(word);
        if !is_it {
            self.0 = before;
        }
        is_it
    }

    /// Whether no word is left.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_none()
    }
}

// === impl SnapshotWriter ===

impl SnapshotWriter {
    pub(super) fn new(first: &str) -> Self {
        Self { text: format!("{first}\n"), lines: 1 }
    }

    pub(super) fn line(&mut self, kind: &str, write: impl FnOnce(&mut Self)) {
        self.text.push_str(kind);
        write(self);
        self.text.push('\n');
        self.lines += 1;
    }

    pub(super) fn word(&mut self, text: &str) {
        self.show(&text);
        if text.is_empty() {
            self.text.push('%');
        }
    }

    /// What shows itself in one word.
    pub(super) fn show(&mut self, value: &impl Display) {
        self.text.push(' ');
        // Writing to a String cannot fail.
        let _ = write!(Escaping(&mut self.text), "{value}");
    }

    pub(super) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&T, &mut Self)) {
        self.show(&items.len());
        items.iter().for_each(|item| write(item, self));
    }

    /// The whole, with a last line that says how many there are.
    pub(super) fn finish(mut self, kind: &str) -> Vec<u8> {
        let lines = self.lines;
        self.line(kind, |out| out.show(&lines));
        self.text.into_bytes()
    }
}

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'/' | b':' => {
                    self.0.push(char::from(byte));
                }
                _ => write!(self.0, "%{byte:02x}")?,
            }
        }
        Ok(())
    }
}
