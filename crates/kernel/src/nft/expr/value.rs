//! What registers hold.

use std::fmt;

/// Up to 16 bytes, what a register holds.
#[derive(Clone, Copy)]
pub(in crate::nft) struct RegisterValue {
    bytes: [u8; 16],
    pub(super) len: u8,
}

// === impl RegisterValue ===

impl RegisterValue {
    /// `None` when it is longer than a register.
    pub(in crate::nft) fn new(data: &[u8]) -> Option<Self> {
        let mut bytes = [0; 16];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(Self { bytes, len: u8::try_from(data.len()).ok()? })
    }

    /// The first `len` bytes, at most 16.
    pub(in crate::nft) fn prefix(bytes: [u8; 16], len: u8) -> Self {
        let mut kept = [0; 16];
        let len = len.min(16);
        kept[..usize::from(len)].copy_from_slice(&bytes[..usize::from(len)]);
        Self { bytes: kept, len }
    }

    pub(in crate::nft) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl From<[u8; 1]> for RegisterValue {
    fn from([a]: [u8; 1]) -> Self {
        let mut bytes = [0; 16];
        bytes[0] = a;
        Self { bytes, len: 1 }
    }
}

impl From<[u8; 2]> for RegisterValue {
    fn from(two: [u8; 2]) -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&two);
        Self { bytes, len: 2 }
    }
}

impl From<[u8; 4]> for RegisterValue {
    fn from(four: [u8; 4]) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&four);
        Self { bytes, len: 4 }
    }
}

impl From<[u8; 16]> for RegisterValue {
    fn from(bytes: [u8; 16]) -> Self {
        Self { bytes, len: 16 }
    }
}

impl PartialEq for RegisterValue {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for RegisterValue {}

impl fmt::Debug for RegisterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RegisterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.as_slice().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
