//! From the text of a manifest file to the one object wanted.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

use crate::json::{self, Misfit};
use crate::yaml;
use facts::object::{Header, NO_CONTAINERS, Object};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ManifestFormat {
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
    /// Whether it certainly is what is looked for, and no other document can stand in for it.
    pub(super) is_it: bool,
}

impl Broken {
    pub(super) fn new(line: u64, column: u64, reason: impl Into<String>) -> Self {
        Self { line, column, reason: reason.into(), is_it: false }
    }

    pub(super) fn after(self, lines: u64) -> Self {
        Self { line: self.line + lines, ..self }
    }
}

/// The pod that is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct WantedManifest<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl WantedManifest<'_> {
    /// The pod, if the text describes it; an error if it does not and some document that may be the one is broken.
    pub(super) fn find(self, text: &str, format: ManifestFormat) -> Result<Option<Object>, Broken> {
        let mut broken = None;
        for (first_line, document) in documents(text, format) {
            if !may_mention(document, self.name) {
                continue;
            }
            match self.examine(document, format) {
                Ok(None) => {}
                Err(error) if !error.is_it => {
                    broken.get_or_insert(error.after(first_line));
                }
                end => return end.map_err(|error| error.after(first_line)),
            }
        }
        broken.map_or(Ok(None), Err)
    }

    /// The same for a text that ought to describe the pod: nothing is skipped, and what may be the rest of the pod counts as broken.
    pub(super) fn expect(self, text: &str, format: ManifestFormat) -> Result<Option<Object>, Broken> {
        let documents = documents(text, format);
        if documents.is_empty() {
            return Err(Broken::new(1, 1, "the file is empty"));
        }
        let mut broken = None;
        for (first_line, document) in documents {
            let found = self.examine(document, format).and_then(|found| match found {
                None => whole(document, format).map(|()| None),
                found => Ok(found),
            });
            match found {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => {
                    broken.get_or_insert(error.after(first_line));
                }
            }
        }
        broken.map_or(Ok(None), Err)
    }

    fn examine(self, document: &str, format: ManifestFormat) -> Result<Option<Object>, Broken> {
        let json = as_json(document, format)?;
        match parse::<Object>(&json, format) {
            Ok(object) => match object.find(self.namespace, self.name) {
                Some(pod) if !pod.has_containers() => {
                    let reason = format!("the pod {NO_CONTAINERS}");
                    Err(Broken { is_it: true, ..Broken::new(1, 1, reason) })
                }
                found => Ok(found),
            },
            // some other kind of object, whose `spec` may well look different, or the pod with members that do not fit
            Err(error) => match parse::<Header>(&json, format) {
                Ok(header) if !header.holds(self.namespace, self.name) => Ok(None),
                header => Err(Broken { is_it: header.is_ok(), ..error }),
            },
        }
    }
}

/// Whether a document says what it describes.
fn whole(document: &str, format: ManifestFormat) -> Result<(), Broken> {
    let gap = parse::<Header>(&as_json(document, format)?, format)?.gap();
    gap.map_or(Ok(()), |gap| Err(Broken::new(1, 1, format!("the object {gap}"))))
}

/// The namespace, if the text describes it; an error if it does not and some document that may be the one is broken.
pub(super) fn namespace(text: &str, format: ManifestFormat, name: &str) -> Result<Option<Object>, Broken> {
    let mut broken = None;
    for (first_line, document) in documents(text, format) {
        // The key `namespace` of pods has a small letter.
        if !may_mention(document, name) || !may_mention(document, "Namespace") {
            continue;
        }
        let found = as_json(document, format).and_then(|json| {
            let error = match parse::<Object>(&json, format) {
                Ok(object) => {
                    let mut objects = Vec::new();
                    object.unfold(&mut objects);
                    return Ok(objects
                        .into_iter()
                        .find(|found| found.is_namespace() && found.name() == name));
                }
                Err(error) => error,
            };
            match parse::<Header>(&json, format) {
                Ok(header) if !header.holds_namespace(name) => Ok(None),
                header => Err(Broken { is_it: header.is_ok(), ..error }),
            }
        });
        match found {
            Ok(None) => {}
            Err(error) if !error.is_it => {
                broken.get_or_insert(error.after(first_line));
            }
            end => return end.map_err(|error| error.after(first_line)),
        }
    }
    broken.map_or(Ok(None), Err)
}

/// A document without the pod's name cannot describe it; not parsing those keeps a scan of a large directory cheap. Only an escape
/// sequence could hide a name, so those are parsed.
fn may_mention(document: &str, name: &str) -> bool {
    document.contains(name) || document.contains('\\')
}

/// The documents of a file, each with the number of lines before it.
///
/// A line that starts with `---` ends a document wherever it stands, even inside a block scalar (YAML 1.2, `c-forbidden`), so
/// splitting needs no parser, and one broken document does not hide the next.
pub(super) fn documents(text: &str, format: ManifestFormat) -> Vec<(u64, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if format == ManifestFormat::Json {
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

/// The document as JSON.
pub(super) fn as_json(document: &str, format: ManifestFormat) -> Result<Cow<'_, [u8]>, Broken> {
    match format {
        ManifestFormat::Json => Ok(Cow::Borrowed(document.as_bytes())),
        ManifestFormat::Yaml => yaml::to_json(document)
            .map(Cow::Owned)
            .map_err(|error| Broken::new(error.line, error.column, error.reason)),
    }
}

/// An object from what [`as_json`] made of a document of this format.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8], format: ManifestFormat) -> Result<T, Broken> {
    json::from_slice(json).map_err(|Misfit { line, column, reason, .. }| match format {
        ManifestFormat::Json => Broken::new(line, column, reason),
        // Positions in the JSON say nothing about the YAML: the document's first line.
        ManifestFormat::Yaml => Broken::new(1, 1, format!("{IN_DOCUMENT}{reason}")),
    })
}

/// Before what is wrong with a document that has no positions of its own.
pub(super) const IN_DOCUMENT: &str = "in this document, ";
