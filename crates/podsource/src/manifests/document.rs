//! From the text of a manifest file to the one object wanted.

use serde::de::DeserializeOwned;

use crate::object::{Header, Object};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One or more YAML documents.
    Yaml,
    /// One JSON object.
    Json,
}

/// A document that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) reason: String,
}

/// The named pod, if the text describes it; an error if it does not and some document that may be the one is broken.
pub(super) fn find(
    text: &str,
    format: Format,
    namespace: &str,
    name: &str,
) -> Result<Option<Object>, Broken> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut broken = None;
    for (first_line, document) in documents(text, format) {
        if !may_mention(document, name) {
            continue;
        }
        match parse::<Object>(document, format) {
            Ok(object) => {
                if let Some(found) = object.find(namespace, name) {
                    return Ok(Some(found));
                }
            }
            Err(_) if is_another(document, format, namespace, name) => {}
            Err(error) => {
                broken.get_or_insert(Broken { line: error.line + first_line, ..error });
            }
        }
    }
    broken.map_or(Ok(None), Err)
}

/// Every pod of the text; an error if some document that may hold one is broken.
pub(super) fn all(text: &str, format: Format) -> Result<Vec<Object>, Broken> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pods = Vec::new();
    for (first_line, document) in documents(text, format) {
        match parse::<Object>(document, format) {
            Ok(object) => object.pods(&mut pods),
            Err(_) if parse::<Header>(document, format).is_ok_and(|header| !header.holds_any()) => {}
            Err(error) => return Err(Broken { line: error.line + first_line, ..error }),
        }
    }
    Ok(pods)
}

/// A document without the pod's name cannot describe it; not parsing those keeps a scan of a large directory cheap. Only an escape
/// sequence could hide a name, so those are parsed.
fn may_mention(document: &str, name: &str) -> bool {
    document.contains(name) || document.contains('\\')
}

/// Whether a document that does not fit is some other kind of object, whose `spec` may well look different.
fn is_another(document: &str, format: Format, namespace: &str, name: &str) -> bool {
    parse::<Header>(document, format).is_ok_and(|header| !header.holds(namespace, name))
}

/// The documents of a file, each with the number of lines before it.
///
/// A line that starts with `---` ends a document wherever it stands, even inside a block scalar (YAML 1.2, `c-forbidden`), so
/// splitting needs no parser, and one broken document does not hide the next.
fn documents(text: &str, format: Format) -> Vec<(u64, &str)> {
    if format == Format::Json {
        return vec![(0, text)];
    }
    let mut found = Vec::new();
    let (mut start, mut start_line, mut offset, mut line) = (0, 0, 0, 0);
    for full_line in text.split_inclusive('\n') {
        let rest = full_line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            found.push((start_line, &text[start..offset]));
            // the marker may be followed by content on its own line, so it stays with the document that it opens
            (start, start_line) = (offset, line);
        }
        offset += full_line.len();
        line += 1;
    }
    found.push((start_line, &text[start..]));
    found.retain(|(_, document)| document.lines().any(has_content));
    found
}

fn has_content(line: &str) -> bool {
    let line = line.trim();
    !(line.is_empty() || line == "---" || line.starts_with('#') || line.starts_with('%'))
}

fn parse<T: DeserializeOwned>(document: &str, format: Format) -> Result<T, Broken> {
    match format {
        Format::Json => serde_json::from_slice(document.as_bytes()).map_err(|error| Broken {
            line: error.line() as u64,
            column: error.column() as u64,
            reason: without_position(&error.to_string()),
        }),
        Format::Yaml => {
            let json = crate::yaml::to_json(document).map_err(|error| {
                let location = error.location();
                Broken {
                    line: location.map_or(0, |at| at.line()),
                    column: location.map_or(0, |at| at.column()),
                    reason: without_position(&error.without_snippet().to_string()),
                }
            })?;
            // What does not fit has no position of its own any more: the document's first line.
            serde_json::from_slice(&json).map_err(|error| Broken {
                line: 1,
                column: 1,
                reason: format!("in this document, {}", without_position(&error.to_string())),
            })
        }
    }
}

/// The parsers append the position, which is that within the document; ours is that within the file.
fn without_position(message: &str) -> String {
    let end = message.find(" at line ").unwrap_or(message.len());
    message[..end].chars().take(300).collect()
}
