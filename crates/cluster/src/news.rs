//! What lists, watches and single questions tell of the objects of a kind, as values.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::watch::ObjectChange;

/// Namespace, empty where there is none, and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `metadata.namespace`; empty for objects that belong to none.
    pub namespace: Box<str>,
    /// `metadata.name`
    pub name: Box<str>,
}

/// `metadata.uid`, as a number: two of the usual form are equal as numbers if they are as texts. 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Uid(u64, u64);

/// An object as it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<T> {
    /// Who it is.
    pub key: ObjectKey,
    /// Which of that name.
    pub uid: Uid,
    /// Its resource version; 0 if that is not a number.
    pub version: u64,
    /// What is kept of it.
    pub object: T,
}

/// Something that is told of the objects of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News<T> {
    /// A list of all of them begins.
    ListBegins,
    /// It has this one.
    Listed(Item<T>),
    /// It was the last one: this is all that there was at a version.
    ListEnds(u64),
    /// It broke off, or is not to be believed. Where `most` is given, what it said counts unless that is more objects.
    ListFails {
        /// Objects.
        most: Option<usize>,
    },
    /// A watch tells of an object that is there.
    Watched(ObjectChange, Item<T>),
    /// A watch tells that an object is gone. All that the item has of it is how it was.
    Gone(Item<T>),
    /// A watch has told everything up to a version.
    Reached(u64),
    /// A single question brought an object.
    Fetched(Item<T>),
    /// An object is there, and what is said of it cannot be read.
    Unreadable(ObjectKey),
}

/// One object before and after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectDelta<T> {
    /// Who it is.
    pub key: ObjectKey,
    /// What it was; nothing if it was not known.
    pub before: Option<T>,
    /// What it is; nothing if it is gone.
    pub after: Option<T>,
}

/// Holds the objects of a kind.
pub trait Hold<T> {
    /// How one of them is held, or given out.
    type Held;

    /// Takes in what is told; gives what changes by that.
    fn take(&mut self, news: News<T>) -> Vec<ObjectDelta<Self::Held>>;
}

// === impl News ===

impl<T> News<T> {
    /// The same with another form of the object.
    pub fn map<U>(self, convert: impl FnOnce(T) -> U) -> News<U> {
        match self {
            Self::ListBegins => News::ListBegins,
            Self::Listed(item) => News::Listed(item.map(convert)),
            Self::ListEnds(version) => News::ListEnds(version),
            Self::ListFails { most } => News::ListFails { most },
            Self::Watched(change, item) => News::Watched(change, item.map(convert)),
            Self::Gone(item) => News::Gone(item.map(convert)),
            Self::Reached(version) => News::Reached(version),
            Self::Fetched(item) => News::Fetched(item.map(convert)),
            Self::Unreadable(key) => News::Unreadable(key),
        }
    }
}

impl<T> Item<T> {
    fn map<U>(self, convert: impl FnOnce(T) -> U) -> Item<U> {
        let Self { key, uid, version, object } = self;
        Item { key, uid, version, object: convert(object) }
    }
}

// === impl ObjectKey ===

impl ObjectKey {
    /// Of an object in a namespace, or, with an empty text for that, in none.
    pub fn new(namespace: impl Into<Box<str>>, name: impl Into<Box<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, name } = self;
        if namespace.is_empty() { f.write_str(name) } else { write!(f, "{namespace}/{name}") }
    }
}

// === impl Uid ===

impl Uid {
    /// From the text; one that is not of the usual form (RFC 9562) counts by its hash.
    pub fn new(text: &str) -> Self {
        if text.is_empty() {
            return Self::default();
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let usual = digits.len() == 32 && text.len() == 36 && !digits.starts_with('+');
        let number = usual.then(|| u128::from_str_radix(&digits, 16).ok()).flatten();
        // Two halves of their own; the number is compared within this process only.
        let hash =
            |half: u8| u128::from(BuildHasherDefault::<DefaultHasher>::default().hash_one((half, text)));
        let number = number.unwrap_or_else(|| (hash(1) << 64) | hash(0)).max(1);
        Self((number >> 64) as u64, number as u64)
    }

    /// Whether both are known and differ.
    pub fn differs(self, other: Self) -> bool {
        self != Self::default() && other != Self::default() && self != other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_told_apart_and_none_differs_from_nothing() {
        let (one, other) = ("3ad17846-0d2e-8a8a-96fd-14e214b038ab", "3ad17846-0d2e-8a8a-96fd-14e214b038ac");
        assert_eq!(Uid::new(one), Uid(0x3ad1_7846_0d2e_8a8a, 0x96fd_14e2_14b0_38ab));
        assert!(Uid::new(one).differs(Uid::new(other)) && !Uid::new(one).differs(Uid::new(one)));
        assert!(!Uid::new("").differs(Uid::new(one)) && !Uid::new(one).differs(Uid::default()));
        for odd in ["uid-1", "0", "00000000-0000-0000-0000-000000000000", "3ad178460d2e8a8a96fd14e214b038ab"]
        {
            assert_eq!(Uid::new(odd), Uid::new(odd));
            assert!(
                Uid::new(odd).differs(Uid::new(one)) && Uid::new(odd).differs(Uid::new("uid-2")),
                "{odd}"
            );
        }
    }
}
