//! JSON text becomes our types.
//!
//! Errors name the field, what it is and what it must be, and never quote: any value of a pod may be a secret, and errors end up in
//! logs and in the pod's events, which more people may read than the pod.

mod place;
#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use serde_json::error::Category;

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
    serde_json::from_slice(text).map_err(|error| {
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        Misfit {
            line: error.line() as u64,
            column: error.column() as u64,
            category: error.classify(),
            reason: match error.classify() {
                // the parser's words about syntax contain nothing of the text
                Category::Syntax | Category::Eof | Category::Io => message.to_owned(),
                Category::Data => misfit(&place::at(text, error.line(), error.column()), message),
            },
        }
    })
}

/// What does not fit, from serde's words of which only those are used that cannot come from the text.
fn misfit(place: &str, message: &str) -> String {
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
