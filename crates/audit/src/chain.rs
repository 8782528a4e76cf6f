//! The hash chain: each line has a number and the hash of the line before it, so that a line that was changed, removed or put elsewhere shows.
//!
//! A line is a JSON object whose last members are `seq`, `prev`, `hash` and `schema`. `hash` is the SHA-256 of `prev` as it is written and of the line
//! without its member `hash`; whoever has a shell can check it.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Longest line, without its newline.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// Digits of a hash.
const HASH_DIGITS: usize = 64;
const HASH: &str = ",\"hash\":\"";

/// Where a chain stands: what the next line follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLink {
    /// The number of the last line, from 1; 0 where there is none.
    pub seq: u64,
    /// Its hash, 64 hexadecimal digits.
    pub hash: String,
}

/// Why a line is not one of a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Text that is no sealed line.
    #[error("is not a line with seq, prev, hash and schema at its end")]
    NotSealed,
    /// Something in it was changed.
    #[error("does not have the hash that it states: it was changed")]
    Changed,
}

/// What a sealed line says of its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedLine {
    /// The hash of the line before.
    pub prev: String,
    /// Its own place.
    pub link: ChainLink,
}

// === impl ChainLink ===

impl ChainLink {
    /// Before the first line.
    pub fn start() -> Self {
        Self { seq: 0, hash: "0".repeat(HASH_DIGITS) }
    }

    /// Makes the next line of a JSON object's text, without a newline, and goes on to it. A body that is no object gives nothing.
    pub fn seal(&mut self, body: &str, schema: &str) -> Option<String> {
        let members = body.strip_prefix('{')?.strip_suffix('}')?;
        let comma = if members.is_empty() { "" } else { "," };
        let (seq, prev) = (self.seq + 1, &self.hash);
        let head = format!("{{{members}{comma}\"seq\":{seq},\"prev\":\"{prev}\"");
        let end = format!(",\"schema\":\"{schema}\"}}");
        let hash = hash_text(prev, &head, &end);
        let line = format!("{head}{HASH}{hash}\"{end}");
        *self = Self { seq, hash };
        Some(line)
    }
}

impl SealedLine {
    /// Checks a line by itself. Whether it follows another one, its `prev` says.
    ///
    /// # Errors
    /// It is not sealed, or was changed since.
    pub fn check(line: &str) -> Result<Self, LineError> {
        let parsed = parse(line).ok_or(LineError::NotSealed)?;
        let (head, rest) = line.split_at(parsed.hash_at);
        let end = &rest[HASH.len() + HASH_DIGITS + 1..];
        match hash_text(&parsed.line.prev, head, end) == parsed.line.link.hash {
            true => Ok(parsed.line),
            false => Err(LineError::Changed),
        }
    }

    /// Whether it comes right after `link`.
    pub fn follows(&self, link: &ChainLink) -> bool {
        self.link.seq == link.seq + 1 && self.prev == link.hash
    }
}

struct Parsed {
    line: SealedLine,
    /// Where its member `hash` begins.
    hash_at: usize,
}

/// The members are looked for from the end: in the text before there may be anything, and a quote in a text is escaped.
fn parse(line: &str) -> Option<Parsed> {
    let hash_at = line.rfind(HASH)?;
    let (hash, end) = digits(&line[hash_at + HASH.len()..])?;
    let schema = end.strip_prefix(",\"schema\":\"")?.strip_suffix("\"}")?;
    let is_plain = schema.chars().all(|c| c.is_ascii_alphanumeric() || "-./".contains(c));
    let head = &line[..hash_at];
    let prev_at = head.rfind(",\"prev\":\"")?;
    let (prev, rest) = digits(&head[prev_at + 9..])?;
    let seq = &head[..prev_at];
    let seq = seq[seq.rfind("\"seq\":")? + 6..].parse().ok()?;
    if !is_plain || !rest.is_empty() {
        return None;
    }
    let link = ChainLink { seq, hash: hash.to_owned() };
    Some(Parsed { line: SealedLine { prev: prev.to_owned(), link }, hash_at })
}

/// A hash and the quote behind it; and the rest.
fn digits(text: &str) -> Option<(&str, &str)> {
    let digits = text.get(..HASH_DIGITS)?;
    let is_hash = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hash.then_some(())?;
    Some((digits, text[HASH_DIGITS..].strip_prefix('"')?))
}

fn hash_text(prev: &str, head: &str, end: &str) -> String {
    let hash = Sha256::new().chain_update(prev).chain_update(head).chain_update(end).finalize();
    hash.iter().fold(String::with_capacity(HASH_DIGITS), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn each_line_follows_the_one_before_and_says_so() {
        let mut link = ChainLink::start();
        let mut at = link.clone();
        for body in ["{}", r#"{"a":"\",\"hash\":\"x"}"#, r#"{"seq":7,"prev":"","hash":""}"#] {
            let line = link.seal(body, "istio-cni.audit/v1").unwrap();
            let sealed = SealedLine::check(&line).unwrap();
            assert!(sealed.follows(&at), "{line}");
            assert_eq!(sealed.link, link);
            at = sealed.link;
        }
        assert_eq!(at.seq, 3);
        assert_eq!(link.seal("[]", "x"), None);
    }

    #[test]
    fn any_byte_of_a_line_that_is_changed_shows() {
        let mut link = ChainLink { seq: 41, ..ChainLink::start() };
        let line = link.seal(r#"{"verdict":"DROPPED","n":1}"#, "istio-cni.audit/v1").unwrap();
        for at in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(SealedLine::check(&changed).is_err(), "at {at}: {changed}");
        }
        for cut in 0..line.len() {
            assert!(SealedLine::check(&line[..cut]).is_err());
            assert!(SealedLine::check(&line[cut + 1..]).is_err());
        }
    }
}
