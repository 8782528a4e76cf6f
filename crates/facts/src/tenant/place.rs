//! Where something stands in an object.

use std::fmt;

/// A path from the object's root; made into text only where it is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum FieldPlace<'p> {
    Root,
    Member(&'p FieldPlace<'p>, &'p str),
    Item(&'p FieldPlace<'p>, usize),
}

impl<'p> FieldPlace<'p> {
    pub(super) fn member(&'p self, name: &'p str) -> Self {
        Self::Member(self, name)
    }

    pub(super) fn item(&'p self, number: usize) -> Self {
        Self::Item(self, number)
    }
}

impl fmt::Display for FieldPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(Self::Root, name) => f.write_str(name),
            Self::Member(of, name) => write!(f, "{of}.{name}"),
            Self::Item(of, number) => write!(f, "{of}[{number}]"),
        }
    }
}
