//! YAML as JSON, with limits: the one place that reads YAML.
//!
//! A value without quotes has the type that Kubernetes gives it, and the parser for our own types is in the executable once, not once for
//! each format. What a parser for YAML into any Rust type would bring along is larger than everything here, and not needed.

mod scalar;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Value};

use crate::MAX_BYTES;

/// Most values in one document. An honest manifest has eight bytes and more for each, so it meets [`MAX_BYTES`] first; text that is
/// made of the shortest values only is refused before it costs hundreds of megabytes.
const MAX_VALUES: usize = MAX_BYTES / 4;
const MAX_DEPTH: usize = 64;
/// Most anchors, and most aliases.
const MAX_NAMES: usize = 1_000;
/// Most values that anchors name, and that aliases repeat: those that multiply ("billion laughs") end here.
const MAX_NAMED_VALUES: usize = 20_000;
/// The same in bytes of text.
const MAX_NAMED_BYTES: usize = 4 << 20;

const ALIASES: &str = "its aliases (*name) repeat more than is allowed; write the values out";
const DUPLICATE_KEY: &str = "a key is there twice in one mapping; remove one";
const TAG: &str = "a value or tag that no manifest can have";

/// Text that is no document of YAML, or more than the limits allow.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct Error {
    /// Beginning with 1.
    pub line: u64,
    /// In characters, beginning with 1.
    pub column: u64,
    /// In words that quote no value and name no function.
    pub reason: Cow<'static, str>,
}

/// Turns one document into JSON, as `kubectl` does before it looks at fields, with limits that no honest manifest meets.
pub(crate) fn to_json(text: &str) -> Result<Vec<u8>, Error> {
    let value = read(text)?;
    // A file of comments only describes an object without fields.
    Ok(if value.is_null() { b"{}".to_vec() } else { value.to_string().into_bytes() })
}

/// Reads one document, with the limits of [`to_json`]; one without a value is null.
///
/// # Errors
/// It is not YAML, or exceeds a limit.
pub fn read(text: &str) -> Result<Value, Error> {
    let mut reader = Reader::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Error::from(&error))?;
        reader.take(event).map_err(|reason| Error::at(&span, reason))?;
    }
    Ok(reader.document.unwrap_or_default())
}

// === impl Error ===

impl Error {
    fn at(span: &Span, reason: Cow<'static, str>) -> Self {
        Self { line: span.start.line() as u64, column: span.start.col() as u64 + 1, reason }
    }
}

impl From<&ScanError> for Error {
    fn from(error: &ScanError) -> Self {
        let (line, column) = (error.marker().line() as u64, error.marker().col() as u64 + 1);
        let reason = match error.kind() {
            ErrorKind::RecursionLimitExceeded => too_deep(),
            ErrorKind::UnknownAnchor => "an alias (*name) has no anchor (&name) before it".into(),
            ErrorKind::UnexpectedEof => "it ends early".into(),
            // The parser's own words, which are fixed.
            kind => kind.to_string().chars().take(200).collect::<String>().into(),
        };
        Self { line, column, reason }
    }
}

type Refusal = Cow<'static, str>;

fn too_deep() -> Refusal {
    format!("nested deeper than {MAX_DEPTH} levels").into()
}

/// A list or a mapping that has begun.
struct Open {
    of: Collection,
    /// Of the whole collection.
    anchor: usize,
    /// Values and bytes of text before it.
    before: Amount,
}

enum Collection {
    List(Vec<Value>),
    Mapping {
        entries: Map<String, Value>,
        /// The key whose value is awaited.
        key: Option<Key>,
        /// What `<<` brings along, which counts where the mapping has no such key itself.
        merged: Vec<Map<String, Value>>,
    },
}

enum Key {
    Named(String),
    Merge,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Amount {
    values: usize,
    bytes: usize,
}

/// Puts values together from what the parser meets, without recursion.
#[derive(Default)]
struct Reader {
    open: Vec<Open>,
    document: Option<Value>,
    seen: Amount,
    /// What anchors name.
    named: HashMap<usize, (Value, Amount)>,
    recorded: Amount,
    repeated: Amount,
    aliases: usize,
}

// === impl Reader ===

impl Reader {
    fn take(&mut self, event: Event<'_>) -> Result<(), Refusal> {
        match event {
            Event::DocumentStart(..) if self.document.is_some() => {
                Err("another document follows without a line --- before it; separate documents with ---"
                    .into())
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(text.len())?;
                self.scalar(&text, style, anchor, tag.as_deref())
            }
            Event::SequenceStart(_, anchor, tag) => {
                fits(tag.as_deref(), "seq")?;
                self.begin(Collection::List(Vec::new()), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                fits(tag.as_deref(), "map")?;
                let (entries, key, merged) = (Map::new(), None, Vec::new());
                self.begin(Collection::Mapping { entries, key, merged }, anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(anchor),
            _ => Ok(()),
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.seen.values += 1;
        self.seen.bytes += bytes;
        if self.seen.values > MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values in one document; split the file").into());
        }
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
    ) -> Result<(), Refusal> {
        let plain = style == ScalarStyle::Plain;
        if let Some(key) = self.awaited_key() {
            let merge = plain && tag.is_none() && text == "<<";
            *key = Some(if merge { Key::Merge } else { Key::Named(scalar::key(text, plain, tag)?) });
            return self.remember(
                anchor,
                || Value::String(text.to_owned()),
                Amount { values: 1, bytes: text.len() },
            );
        }
        let value = scalar::value(text, plain, tag)?;
        self.remember(anchor, || value.clone(), Amount { values: 1, bytes: text.len() })?;
        self.put(value)
    }

    /// Where the key of a mapping goes, if one comes next.
    fn awaited_key(&mut self) -> Option<&mut Option<Key>> {
        match self.open.last_mut().map(|open| &mut open.of) {
            Some(Collection::Mapping { key: key @ None, .. }) => Some(key),
            _ => None,
        }
    }

    fn begin(&mut self, of: Collection, anchor: usize) -> Result<(), Refusal> {
        let before = self.seen;
        self.count(0)?;
        if self.awaited_key().is_some() {
            return Err("a key that is a list or a mapping, which JSON does not have".into());
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep());
        }
        self.open.push(Open { of, anchor, before });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Refusal> {
        let Some(Open { of, anchor, before }) = self.open.pop() else { return Ok(()) };
        let value = match of {
            Collection::List(list) => Value::Array(list),
            Collection::Mapping { mut entries, merged, .. } => {
                // The first that has a key counts.
                for (key, value) in merged.into_iter().flatten() {
                    entries.entry(key).or_insert(value);
                }
                Value::Object(entries)
            }
        };
        let size = Amount { values: self.seen.values - before.values, bytes: self.seen.bytes - before.bytes };
        self.remember(anchor, || value.clone(), size)?;
        self.put(value)
    }

    /// Keeps a value that an anchor names.
    fn remember(
        &mut self,
        anchor: usize,
        value: impl FnOnce() -> Value,
        size: Amount,
    ) -> Result<(), Refusal> {
        if anchor == 0 {
            return Ok(());
        }
        self.recorded.add(size)?;
        if self.named.len() >= MAX_NAMES {
            return Err(ALIASES.into());
        }
        self.named.insert(anchor, (value(), size));
        Ok(())
    }

    fn alias(&mut self, anchor: usize) -> Result<(), Refusal> {
        self.aliases += 1;
        let Some((value, size)) = self.named.get(&anchor) else {
            return Err("an alias (*name) stands inside of what it names".into());
        };
        let (value, size) = (value.clone(), *size);
        // What is repeated may be named again, by an anchor around it.
        self.seen.add_unbounded(size);
        self.repeated.add(size)?;
        if self.aliases > MAX_NAMES {
            return Err(ALIASES.into());
        }
        match (self.awaited_key(), value) {
            (Some(key), Value::String(text)) => *key = Some(Key::Named(text)),
            (Some(_), _) => return Err(TAG.into()),
            (None, value) => return self.put(value),
        }
        Ok(())
    }

    /// A value that is complete.
    fn put(&mut self, value: Value) -> Result<(), Refusal> {
        match self.open.last_mut().map(|open| &mut open.of) {
            None => self.document = Some(value),
            Some(Collection::List(list)) => list.push(value),
            Some(Collection::Mapping { entries, key, merged }) => match key.take() {
                Some(Key::Named(key)) => {
                    if entries.insert(key, value).is_some() {
                        return Err(DUPLICATE_KEY.into());
                    }
                }
                Some(Key::Merge) => merge(value, merged)?,
                None => return Err(TAG.into()),
            },
        }
        Ok(())
    }
}

/// Refuses a collection with the tag of something else.
fn fits(tag: Option<&Tag>, wanted: &str) -> Result<(), Refusal> {
    const KINDS: [&str; 9] = ["binary", "bool", "float", "int", "map", "null", "seq", "str", "timestamp"];
    let tag = tag.and_then(scalar::own);
    let other = tag.is_some_and(|tag| tag != wanted && KINDS.contains(&tag.as_str()));
    if other { Err(TAG.into()) } else { Ok(()) }
}

/// `<<: *name` or `<<: [*name, *name]`.
fn merge(value: Value, merged: &mut Vec<Map<String, Value>>) -> Result<(), Refusal> {
    match value {
        Value::Null => {}
        Value::Object(entries) => merged.push(entries),
        // No deeper than a document may be.
        Value::Array(list) => list.into_iter().try_for_each(|one| merge(one, merged))?,
        _ => return Err("a merge key (<<) takes mappings only".into()),
    }
    Ok(())
}

// === impl Amount ===

impl Amount {
    fn add(&mut self, more: Self) -> Result<(), Refusal> {
        self.add_unbounded(more);
        let fits = self.values <= MAX_NAMED_VALUES && self.bytes <= MAX_NAMED_BYTES;
        if fits { Ok(()) } else { Err(ALIASES.into()) }
    }

    fn add_unbounded(&mut self, more: Self) {
        self.values = self.values.saturating_add(more.values);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}
