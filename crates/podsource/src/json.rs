//! JSON text becomes our types.
//!
//! Errors name the field, what it is and what it must be, and never quote: any value of a pod may be a secret, and errors end up in
//! logs and in the pod's events, which more people may read than the pod.

#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_path_to_error::{Path, Segment, Track};

/// Longest name of a field that is repeated, in characters.
const LONGEST_KEY: usize = 100;

/// Text that is no JSON, or JSON of another shape than the type's.
#[derive(Debug)]
pub(crate) struct Misfit {
    /// From 1.
    pub(crate) line: u64,
    /// From 1; 0 before the first character of a line.
    pub(crate) column: u64,
    pub(crate) category: Category,
    pub(crate) reason: String,
}

pub(crate) fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Misfit> {
    let mut parser = serde_json::Deserializer::from_slice(text);
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut parser, &mut track);
    let parsed = T::deserialize(tracked).and_then(|value| parser.end().map(|()| value));
    parsed.map_err(|error| {
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        Misfit {
            line: error.line() as u64,
            column: error.column() as u64,
            category: error.classify(),
            reason: match error.classify() {
                // the parser's words about syntax contain nothing of the text
                Category::Syntax | Category::Eof | Category::Io => message.to_owned(),
                Category::Data => misfit(&track.path(), message),
            },
        }
    })
}

/// What does not fit, from serde's words of which only those are used that cannot come from the text.
fn misfit(path: &Path, message: &str) -> String {
    let place = place(path);
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{place} has no {}", field.trim_matches('`'));
    }
    let types = message.split_once(": ").zip(message.rsplit_once(", expected "));
    match types {
        Some((("invalid type" | "invalid value", found), (_, expected))) => {
            let (found, expected) = (found_type(found), expected_type(expected));
            let quotes = matches!((found, expected), ("a number" | "true or false", "text"));
            let advice = if quotes { "; write it in quotes" } else { "" };
            format!("{place} is {found}, must be {expected}{advice}")
        }
        _ if message.starts_with("duplicate field") => format!("a field of {place} is there twice"),
        _ => format!("{place} has another type than it must have"),
    }
}

fn found_type(words: &str) -> &'static str {
    const TYPES: [(&str, &str); 7] = [
        ("integer", "a number"),
        ("floating point", "a number"),
        ("number", "a number"),
        ("boolean", "true or false"),
        ("string", "text"),
        ("sequence", "a list"),
        ("map", "a mapping"),
    ];
    TYPES.iter().find(|(start, _)| words.starts_with(start)).map_or("something else", |(_, name)| name)
}

fn expected_type(words: &str) -> &'static str {
    match words {
        "a string" => "text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "i64" => "a whole number",
        _ => "a mapping",
    }
}

/// The path in the form that `kubectl` and `jq` users write.
fn place(path: &Path) -> String {
    let mut text = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Seq { index } => text += &format!("[{index}]"),
            Segment::Map { key }
                if key.chars().all(|c| c.is_ascii_alphanumeric()) && key.len() <= LONGEST_KEY =>
            {
                text += if text.is_empty() { "" } else { "." };
                text += key;
            }
            Segment::Map { key } => {
                let key: String = key.chars().take(LONGEST_KEY).collect();
                text += &format!("[{key:?}]");
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    if text.is_empty() { "the object".into() } else { text }
}
