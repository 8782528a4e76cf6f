//! JSON as Go's `encoding/json` reads it, which is what container runtimes are written in.
//!
//! It differs from `serde_json` where a file is odd: bytes that are no UTF-8 and surrogates without a partner become U+FFFD, values may be
//! nested 10,000 deep, keys of a struct match in any letter case, `null` leaves a field as it is, and every number of a value without a
//! type has to fit a 64-bit float. Nothing here recurses, so that depth costs no stack.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting of arrays and objects (`maxNestingDepth` of Go's `encoding/json/scanner.go`).
pub(crate) const MAX_DEPTH: usize = 10_000;

/// Length of an escape such as `\ud83d`.
const UNIT: usize = 6;

/// A value has another type than the field that it is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key {key} is not {expected}")]
pub struct WrongType {
    /// Where, such as `dns.search[1]`.
    pub key: String,
    /// What belongs there.
    pub expected: &'static str,
}

/// Which order members have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// That of the text, duplicates included: a file is decoded into a struct.
    Text,
    /// Sorted by key, the last of equal keys only: the value was a map in between.
    Map,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct GoNode<'a> {
    raw: &'a str,
    key: String,
    order: Order,
}

/// The same JSON as valid UTF-8 that `serde_json` decodes to what Go decodes it to.
pub(crate) fn normalize(bytes: &[u8]) -> Result<String, serde_json::Error> {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // one for each byte, not one for the whole of a broken sequence
        text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, chunk.invalid().len()));
    }
    let text = with_paired_surrogates(&text).into_owned();
    serde_json::from_str::<&RawValue>(&text)?;
    Ok(text)
}

/// How deep arrays and objects are nested in valid JSON.
pub(crate) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for token in Tokens(json.as_bytes()) {
        match token {
            b"{" | b"[" => depth += 1,
            b"}" | b"]" => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The first number that no 64-bit float can hold.
pub(crate) fn huge_number(json: &str) -> Option<&str> {
    let words = Tokens(json.as_bytes()).filter_map(|token| std::str::from_utf8(token).ok());
    let mut numbers =
        words.filter(|word| word.starts_with(|first: char| first == '-' || first.is_ascii_digit()));
    numbers.find(|number| number.parse::<f64>().is_ok_and(f64::is_infinite))
}

/// Whether a key of a file is the field of a struct: letter case does not count, nor which of the two characters outside ASCII that fold
/// to a letter of it.
pub(crate) fn is_field(key: &str, field: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(field.chars().map(fold))
}

/// The members of an object in the order of the text; `None` for JSON of another kind.
pub(crate) fn members(json: &str) -> Option<Vec<(String, &RawValue)>> {
    serde_json::from_str(json).ok().map(|Members(members)| members)
}

/// Whether no more than a kind of JSON is wrong: for the text of an error.
pub(crate) fn kind(json: &str) -> &'static str {
    match json.trim_ascii_start().bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a text",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Surrogates without a partner are replaced. A backslash outside of strings is no JSON, which is found later.
fn with_paired_surrogates(text: &str) -> Cow<'_, str> {
    if !text.contains("\\u") {
        return Cow::Borrowed(text);
    }
    let (mut paired, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(place) = rest.find('\\') {
        let (before, escape) = rest.split_at(place);
        paired.push_str(before);
        let length = match unit(escape) {
            Some(0xD800..=0xDBFF) if matches!(escape.get(UNIT..).and_then(unit), Some(0xDC00..=0xDFFF)) => {
                2 * UNIT
            }
            Some(0xD800..=0xDFFF) => {
                paired.push_str("\\ufffd");
                rest = &escape[UNIT..];
                continue;
            }
            // the character after the backslash may be a backslash
            _ => escape.chars().take(2).map(char::len_utf8).sum(),
        };
        paired.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    paired.push_str(rest);
    Cow::Owned(paired)
}

/// The code unit that the text begins with as an escape.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..UNIT - 2)?;
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
}

// === impl GoNode ===

impl<'a> GoNode<'a> {
    /// The whole of a text that is valid JSON.
    pub(crate) fn root(raw: &'a str, order: Order) -> Self {
        Self { raw: raw.trim_ascii(), key: String::new(), order }
    }

    /// `null`, which leaves a field of a struct as it is.
    pub(crate) fn is_null(&self) -> bool {
        self.raw == "null"
    }

    fn wrong(&self, expected: &'static str) -> WrongType {
        WrongType { key: self.key.clone(), expected }
    }

    /// Members of an object; of `null` none.
    pub(crate) fn members(&self, expected: &'static str) -> Result<Vec<(String, Self)>, WrongType> {
        if self.is_null() {
            return Ok(Vec::new());
        }
        let members = members(self.raw).ok_or_else(|| self.wrong(expected))?;
        let node = |(name, value): (String, &'a RawValue)| {
            let key = if self.key.is_empty() { name.clone() } else { format!("{}.{name}", self.key) };
            (name, Self { raw: value.get(), key, order: self.order })
        };
        Ok(match self.order {
            Order::Text => members.into_iter().map(node).collect(),
            Order::Map => {
                let mut map = BTreeMap::new();
                map.extend(members);
                map.into_iter().map(node).collect()
            }
        })
    }

    /// Items of an array; of `null` none.
    pub(crate) fn items(&self, expected: &'static str) -> Result<Vec<Self>, WrongType> {
        if self.is_null() {
            return Ok(Vec::new());
        }
        let items: Vec<&RawValue> = serde_json::from_str(self.raw).map_err(|_| self.wrong(expected))?;
        let node = |(index, item): (usize, &'a RawValue)| Self {
            raw: item.get(),
            key: format!("{}[{index}]", self.key),
            order: self.order,
        };
        Ok(items.into_iter().enumerate().map(node).collect())
    }

    /// A text; `None` for `null`.
    pub(crate) fn text(&self) -> Result<Option<String>, WrongType> {
        serde_json::from_str(self.raw).map_err(|_| self.wrong("a text"))
    }

    /// A boolean; `None` for `null`.
    pub(crate) fn boolean(&self) -> Result<Option<bool>, WrongType> {
        serde_json::from_str(self.raw).map_err(|_| self.wrong("a boolean"))
    }

    /// The text of the value.
    pub(crate) fn raw(&self) -> &'a str {
        self.raw
    }

    /// The key under which the value stands, such as `dns.search[1]`.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}

// === impl Members ===

/// An object's members in their order, values as they are written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

// === impl Tokens ===

/// Strings, punctuation, and words such as `true` or `1e5`.
pub(crate) struct Tokens<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0 = self.0.trim_ascii_start();
        let is_end = |byte: &u8| byte.is_ascii_whitespace() || b"{}[],:\"".contains(byte);
        let length = match self.0.first()? {
            b'"' => string_length(self.0),
            byte if is_end(byte) => 1,
            _ => self.0.iter().position(is_end).unwrap_or(self.0.len()),
        };
        let (token, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(token)
    }
}

/// Length of the string that `text` begins with, its quotes included.
fn string_length(text: &[u8]) -> usize {
    let mut escaped = false;
    let end = text.iter().skip(1).position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => *byte == b'"',
    });
    end.map_or(text.len(), |end| end + 2)
}

#[cfg(test)]
mod tests;
