//! Changes of a set's members.

use std::collections::{BTreeMap, BTreeSet};

use super::{Element, Key, MapVerdict};

/// What is to be different in a set: afterwards every added element is in it as it is here, and no removed key is. It can be applied again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetDelta {
    /// No key of these is among the removed ones.
    add: BTreeMap<Key, (Option<MapVerdict>, String)>,
    remove: BTreeSet<Key>,
}

// === impl SetDelta ===

impl SetDelta {
    /// Adds an element, or makes the one of its key what this one is.
    pub fn add(&mut self, element: impl Into<Element>) {
        let Element { key, verdict, comment } = element.into();
        self.remove.remove(&key);
        self.add.insert(key, (verdict, comment));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: impl Into<Key>) {
        let key = key.into();
        self.add.remove(&key);
        self.remove.insert(key);
    }

    /// What leads from one content to another.
    #[must_use]
    pub fn between(old: &[Element], new: &[Element]) -> Self {
        let mut delta = Self::default();
        let before: BTreeMap<&Key, &Element> = old.iter().map(|element| (&element.key, element)).collect();
        old.iter().for_each(|element| delta.remove(element.key));
        for element in new {
            delta.add(element.clone());
        }
        delta.add.retain(|key, (verdict, comment)| {
            before.get(key).is_none_or(|old| (&old.verdict, &old.comment) != (verdict, comment))
        });
        delta
    }

    /// This one and then another, as one.
    #[must_use]
    pub fn then(mut self, later: Self) -> Self {
        later.remove.into_iter().for_each(|key| self.remove(key));
        for (key, (verdict, comment)) in later.add {
            self.add(Element { key, verdict, comment });
        }
        self
    }

    /// The elements that are added, in the order of their keys.
    pub fn added(&self) -> impl ExactSizeIterator<Item = Element> {
        self.add.iter().map(|(key, (verdict, comment))| Element {
            key: *key,
            verdict: verdict.clone(),
            comment: comment.clone(),
        })
    }

    /// The keys that are removed, in order.
    pub fn removed(&self) -> impl ExactSizeIterator<Item = Key> {
        self.remove.iter().copied()
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

#[cfg(test)]
mod tests;
