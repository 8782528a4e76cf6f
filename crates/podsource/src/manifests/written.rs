//! The objects of a manifest file as they are written; the caller knows their kinds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::document::{self, Broken, ManifestFormat};
use super::file::ManifestFileError;

/// One object of a file.
#[derive(Debug)]
pub struct Written {
    file: Arc<PathBuf>,
    kind: String,
    json: Vec<u8>,
    /// Lines of the file before it.
    line: u64,
    /// Where it is in a list that the file has, such as `items[2].`; its own positions say nothing about the file then.
    item: String,
    format: ManifestFormat,
}

/// What tells an object from a list of them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Outline {
    kind: Option<String>,
    items: Option<Vec<Value>>,
}

/// The objects of the kinds that `is_wanted` names; others are skipped, whatever shape they have.
pub(super) fn all(
    text: &str,
    format: ManifestFormat,
    file: &Path,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Written>, Broken> {
    let mut search =
        Search { file: Arc::new(file.to_owned()), is_wanted, format, line: 0, found: Vec::new() };
    for (line, document) in document::documents(text, format) {
        search.line = line;
        search.document(document).map_err(|error| error.after(line))?;
    }
    Ok(search.found)
}

struct Search<'a> {
    file: Arc<PathBuf>,
    is_wanted: &'a dyn Fn(&str) -> bool,
    format: ManifestFormat,
    line: u64,
    found: Vec<Written>,
}

// === impl Search ===

impl Search<'_> {
    fn document(&mut self, document: &str) -> Result<(), Broken> {
        let json = document::as_json(document, self.format)?;
        let Outline { kind, items } = document::parse(&json, self.format)?;
        let kind = kind.unwrap_or_default();
        match items {
            Some(items) => self.items(&kind, items, ""),
            None => {
                self.add(kind, json.into_owned(), String::new());
                Ok(())
            }
        }
    }

    /// The objects of a list. As the API writes it they carry no kind of their own.
    fn items(&mut self, list: &str, items: Vec<Value>, before: &str) -> Result<(), Broken> {
        let inherited = list.strip_suffix("List").unwrap_or_default();
        for (number, mut item) in items.into_iter().enumerate() {
            let place = format!("{before}items[{number}]");
            let refuse = |reason: &str| Err(Broken::new(1, 1, format!("in this document, {place} {reason}")));
            let Some(members) = item.as_object_mut() else { return refuse("is no mapping") };
            let kind = match members.get("kind") {
                None | Some(Value::Null) => inherited.to_owned(),
                Some(Value::String(kind)) => kind.clone(),
                Some(_) => return refuse("has a kind that is no text"),
            };
            match members.get_mut("items").map(Value::take) {
                None | Some(Value::Null) if !(self.is_wanted)(&kind) => {}
                None | Some(Value::Null) => self.add(kind, item.to_string().into_bytes(), place + "."),
                Some(Value::Array(items)) => self.items(&kind, items, &(place + "."))?,
                Some(_) => return refuse("has items that are no list"),
            }
        }
        Ok(())
    }

    fn add(&mut self, kind: String, json: Vec<u8>, item: String) {
        if (self.is_wanted)(&kind) {
            let (file, line, format) = (self.file.clone(), self.line, self.format);
            self.found.push(Written { file, kind, json, line, item, format });
        }
    }
}

// === impl Written ===

impl Written {
    /// `kind`, as it is written or as the list has it.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The object as a type.
    ///
    /// # Errors
    /// It has another shape.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ManifestFileError> {
        // Positions in an item say nothing about the file: its document's first line, and the item's place in words.
        let format = if self.item.is_empty() { self.format } else { ManifestFormat::Yaml };
        document::parse(&self.json, format).map_err(|mut broken: Broken| {
            if !self.item.is_empty() {
                broken.reason = broken.reason.replacen(
                    document::IN_DOCUMENT,
                    &format!("{}{}", document::IN_DOCUMENT, self.item),
                    1,
                );
            }
            ManifestFileError::broken(&self.file, broken.after(self.line))
        })
    }

    /// Says that the object cannot be used for another reason.
    pub fn refuse(&self, reason: impl Into<String>) -> ManifestFileError {
        ManifestFileError::broken(&self.file, Broken::new(1, 1, reason).after(self.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(text: &str, format: ManifestFormat) -> Result<Vec<Written>, Broken> {
        all(text, format, Path::new("pods.json"), &|kind| kind == "Pod")
    }

    #[test]
    fn objects_of_lists_have_their_kind_and_their_place() {
        let text = r#"{"kind": "List", "items": [{"kind": "Secret", "data": 7},
            {"kind": "PodList", "items": [{"metadata": {"name": "a"}}, {"kind": null, "metadata": {"name": 7}}]}]}"#;
        let found = pods(text, ManifestFormat::Json).unwrap();
        assert_eq!(found.iter().map(Written::kind).collect::<Vec<_>>(), ["Pod", "Pod"]);
        assert_eq!(found[0].read::<facts::Object>().unwrap().name(), "a");
        let error = found[1].read::<facts::Object>().unwrap_err().to_string();
        assert!(
            error.contains("pods.json: broken at line 1") && error.contains("items[1].items[1].metadata"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_wanted_may_have_any_shape_and_no_list_may() {
        assert!(
            pods("kind: ConfigMap\nmetadata: 7\n---\nspec: []\n", ManifestFormat::Yaml).unwrap().is_empty()
        );
        for (text, reason) in [
            (r#"{"items": [7]}"#, "items[0] is no mapping"),
            (r#"{"items": [{"kind": 7}]}"#, "items[0] has a kind that is no text"),
            (r#"{"items": [{"items": 7}]}"#, "items[0] has items that are no list"),
            (r#"{"kind": ["Pod"]}"#, "kind is a list"),
        ] {
            let broken = pods(text, ManifestFormat::Json).unwrap_err();
            assert!(broken.reason.contains(reason), "{}", broken.reason);
        }
    }
}
