//! An ordered JSON tree and typed reads from it.
//!
//! Plugins are expected to read their configuration the way Go programs do: keys match in any letter case, the last of
//! several equal keys counts, `null` is the same as absent. A sorted map cannot tell which of `name` and `NAME` came
//! last, so this tree keeps all members in their order.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::Serialize;

/// A JSON value with its members in the order of the text, duplicates included.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// any number
    Number(serde_json::Number),
    /// a text
    String(String),
    /// `[...]`
    Array(Vec<Value>),
    /// `{...}`
    Object(Vec<(String, Value)>),
}

/// A member has the wrong type or an impossible value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The JSON type differs from the one that the key has.
    #[error("{path}: expected {expected}, found {found}")]
    WrongType {
        /// Where, e.g. `prevResult.ips[0].address`.
        path: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A member that cannot be left out is not there.
    #[error("{path}: missing")]
    Missing {
        /// Where.
        path: String,
    },
    /// The type is right, the value is not.
    #[error("{path}: {reason}")]
    Invalid {
        /// Where.
        path: String,
        /// What is wrong and what to write instead.
        reason: String,
    },
}

impl Value {
    /// Parses one JSON document. Nesting is limited by `serde_json` (128 levels).
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The member `key` of an object: any ASCII letter case, the last that is not `null`. `None` also if this is no
    /// object.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Self::Object(members) = self else { return None };
        members
            .iter()
            .rev()
            .find(|(name, value)| !matches!(value, Self::Null) && name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a text",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

impl From<&Value> for serde_json::Value {
    /// For handing a subtree to a `serde` type; of several equal keys the last stays.
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(flag) => Self::Bool(*flag),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::String(text.clone()),
            Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            Value::Object(members) => {
                Self::Object(members.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect())
            }
        }
    }
}

/// `value` as JSON text with 4-space indentation and no newline at the end.
pub(crate) fn to_pretty(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = Vec::with_capacity(512);
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    Ok(text)
}

// === impl Deserialize ===

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Vec::new();
        while let Some(member) = members.next_entry()? {
            object.push(member);
        }
        Ok(Value::Object(object))
    }
}

// === impl JsonNode ===

/// A value and where it stands, for errors that name the place.
#[derive(Clone)]
pub(crate) struct JsonNode<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> JsonNode<'a> {
    /// `value` as the root; `path` is how errors call it.
    pub(crate) fn root(value: &'a Value, path: &str) -> Self {
        Self { value, path: path.to_owned() }
    }

    fn wrong(&self, expected: &'static str) -> DecodeError {
        DecodeError::WrongType { path: self.path.clone(), expected, found: self.value.kind() }
    }

    pub(crate) fn invalid(&self, reason: impl Into<String>) -> DecodeError {
        DecodeError::Invalid { path: self.path.clone(), reason: reason.into() }
    }

    fn child_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn members(&self) -> Result<&'a [(String, Value)], DecodeError> {
        match self.value {
            Value::Object(members) => Ok(members),
            _ => Err(self.wrong("an object")),
        }
    }

    /// The member `key`, see [`Value::get`]; an error if this is no object.
    pub(crate) fn field(&self, key: &str) -> Result<Option<JsonNode<'a>>, DecodeError> {
        self.members()?;
        Ok(self.value.get(key).map(|value| JsonNode { value, path: self.child_path(key) }))
    }

    pub(crate) fn required(&self, key: &str) -> Result<JsonNode<'a>, DecodeError> {
        self.field(key)?.ok_or_else(|| DecodeError::Missing { path: self.child_path(key) })
    }

    pub(crate) fn text(&self) -> Result<&'a str, DecodeError> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.wrong("a text")),
        }
    }

    pub(crate) fn boolean(&self) -> Result<bool, DecodeError> {
        match self.value {
            Value::Bool(flag) => Ok(*flag),
            _ => Err(self.wrong("a boolean")),
        }
    }

    pub(crate) fn integer(&self) -> Result<i64, DecodeError> {
        match self.value {
            Value::Number(number) => number.as_i64().ok_or_else(|| self.invalid("not a 64-bit whole number")),
            _ => Err(self.wrong("a number")),
        }
    }

    pub(crate) fn items(&self) -> Result<impl Iterator<Item = JsonNode<'a>> + use<'a>, DecodeError> {
        let Value::Array(items) = self.value else { return Err(self.wrong("an array")) };
        let path = self.path.clone();
        Ok(items
            .iter()
            .enumerate()
            .map(move |(index, value)| JsonNode { value, path: format!("{path}[{index}]") }))
    }

    /// The members of an object used as a map: keys as written, the last of equal ones counts, `null` is absent.
    fn entries(&self) -> Result<impl Iterator<Item = (&'a str, JsonNode<'a>)> + use<'a, '_>, DecodeError> {
        let members = self.members()?.iter().filter(|(_, value)| !matches!(value, Value::Null));
        Ok(members.map(|(key, value)| (key.as_str(), JsonNode { value, path: self.child_path(key) })))
    }

    // The rest reads an optional member and gives the zero value when it is absent.

    pub(crate) fn text_or_empty(&self, key: &str) -> Result<String, DecodeError> {
        Ok(self.field(key)?.map(|node| node.text()).transpose()?.unwrap_or_default().to_owned())
    }

    pub(crate) fn bool_or_false(&self, key: &str) -> Result<bool, DecodeError> {
        Ok(self.field(key)?.map(|node| node.boolean()).transpose()?.unwrap_or_default())
    }

    pub(crate) fn maybe_integer(&self, key: &str) -> Result<Option<i64>, DecodeError> {
        self.field(key)?.map(|node| node.integer()).transpose()
    }

    pub(crate) fn list<T>(
        &self,
        key: &str,
        read: impl Fn(&JsonNode<'a>) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let Some(node) = self.field(key)? else { return Ok(Vec::new()) };
        node.items()?.map(|item| read(&item)).collect()
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Vec<String>, DecodeError> {
        self.list(key, |item| Ok(item.text()?.to_owned()))
    }

    pub(crate) fn map<T>(
        &self,
        key: &str,
        read: impl Fn(&JsonNode<'a>) -> Result<T, DecodeError>,
    ) -> Result<BTreeMap<String, T>, DecodeError> {
        let Some(node) = self.field(key)? else { return Ok(BTreeMap::new()) };
        // One by one: collecting would bring a sort of its own for each type into the plugin.
        let mut map = BTreeMap::new();
        for (name, value) in node.entries()? {
            map.insert(name.to_owned(), read(&value)?);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests;
