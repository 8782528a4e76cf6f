//! Names of interfaces as keys.

use std::fmt;

use super::{Key, KeyType};
use crate::rule::Family;

/// The name of an interface, as the kernel takes it: 1 to 15 bytes, none of them a blank, a slash or a quote.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceName([u8; 15]);

/// The interface that packets of a family come in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArrivalKey {
    /// The family of the packets.
    pub family: Family,
    /// The interface.
    pub name: InterfaceName,
}

// === impl InterfaceName ===

impl InterfaceName {
    /// Nothing where no interface has such a name.
    pub fn new(name: &str) -> Option<Self> {
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || "/\"'`".contains(c);
        if name.is_empty() || name.contains(is_odd) {
            return None;
        }
        let mut bytes = [0; 15];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self(bytes))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        // It was made of text.
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

// === impl ArrivalKey ===

impl From<ArrivalKey> for Key {
    fn from(key: ArrivalKey) -> Self {
        Self::Arrival(key)
    }
}

impl ArrivalKey {
    /// The type of sets that have it as a member.
    pub(super) fn key_type(self) -> KeyType {
        KeyType::Arrival(self.family)
    }
}
