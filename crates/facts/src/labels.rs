//! Labels, and what selects by them as Kubernetes means it.

mod selector;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

pub use selector::{Operator, Requirement, Selector, SelectorError, WireSelector};
pub use text::parse_selector;

/// The labels of an object: pairs in the order of their keys, without spare room.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSet(Box<[(Box<str>, Box<str>)]>);

impl LabelSet {
    /// The value of a label, if it is there.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same as a map.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// `null` counts as the empty text, which is what the API server makes of it.
impl From<&BTreeMap<String, Option<String>>> for LabelSet {
    fn from(map: &BTreeMap<String, Option<String>>) -> Self {
        let pair = |(key, value): (&String, &Option<String>)| {
            (key.as_str().into(), value.as_deref().unwrap_or_default().into())
        };
        Self(map.iter().map(pair).collect())
    }
}

/// Of pairs in any order; of several with one key the first in the order of values counts.
impl<'a> FromIterator<(&'a str, &'a str)> for LabelSet {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        pairs.sort_unstable();
        pairs.dedup_by(|one, other| one.0 == other.0);
        Self(pairs.into())
    }
}

impl From<&BTreeMap<String, String>> for LabelSet {
    fn from(map: &BTreeMap<String, String>) -> Self {
        Self(map.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect())
    }
}

impl<'de> Deserialize<'de> for LabelSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
        Ok(Self::from(&map.unwrap_or_default()))
    }
}
