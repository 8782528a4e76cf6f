//! CNI spec versions.

use std::fmt;

/// A CNI spec version, ordered numerically by major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

/// Versions that share one shape of result on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultShape {
    /// 0.1.0 and 0.2.0: one address per IP family, under `ip4` and `ip6`.
    Single,
    /// 0.3.0, 0.3.1 and 0.4.0: lists, each address with its `version`.
    Lists,
    /// 1.0.0 and 1.1.0: lists, the family of an address is read off the address.
    Current,
}

/// Why a version text cannot be compared with another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// More than three parts, e.g. `1.0.0.1`.
    #[error("cniVersion \"{0}\" has more than three parts; use major.minor.patch such as 1.0.0")]
    TooManyParts(String),
    /// A part that is not a decimal number of at most 32 bits.
    #[error("cniVersion \"{text}\": part \"{part}\" is not a number; use major.minor.patch such as 1.0.0")]
    NotANumber {
        /// The whole text, shortened.
        text: String,
        /// The part at fault, shortened.
        part: String,
    },
}

impl SpecVersion {
    /// CNI 0.1.0.
    pub const V0_1_0: Self = Self::new(0, 1, 0);
    /// CNI 0.2.0.
    pub const V0_2_0: Self = Self::new(0, 2, 0);
    /// CNI 0.3.0.
    pub const V0_3_0: Self = Self::new(0, 3, 0);
    /// CNI 0.3.1.
    pub const V0_3_1: Self = Self::new(0, 3, 1);
    /// CNI 0.4.0, the first with CHECK.
    pub const V0_4_0: Self = Self::new(0, 4, 0);
    /// CNI 1.0.0.
    pub const V1_0_0: Self = Self::new(1, 0, 0);
    /// CNI 1.1.0, the first with GC and STATUS.
    pub const V1_1_0: Self = Self::new(1, 1, 0);

    /// All supported versions, oldest first, in the order VERSION prints them.
    pub const SUPPORTED: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What a configuration without `cniVersion` means (CNI spec: configurations from before the key existed).
    pub const DEFAULT: Self = Self::V0_1_0;
    /// The newest supported version; also the one used where the configuration's is not known.
    pub const LATEST: Self = Self::V1_1_0;

    const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// Reads `major[.minor[.patch]]` for comparison; missing parts are zero. That a version parses does not mean that
    /// it is supported, see [`SpecVersion::supported`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parts = [0u32; 3];
        for (index, part) in text.split('.').enumerate() {
            let slot =
                parts.get_mut(index).ok_or_else(|| ParseError::TooManyParts(crate::error::shorten(text)))?;
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            *slot = part.parse().ok().filter(|_| digits).ok_or_else(|| ParseError::NotANumber {
                text: crate::error::shorten(text),
                part: crate::error::shorten(part),
            })?;
        }
        let [major, minor, patch] = parts;
        Ok(Self { major, minor, patch })
    }

    /// The supported version that is written exactly as `text`; `1.0` and `01.0.0` are not supported.
    pub fn supported(text: &str) -> Option<Self> {
        Self::SUPPORTED.into_iter().find(|version| version.to_string() == text)
    }

    /// The shape that results of this version have on the wire.
    pub fn family(self) -> ResultShape {
        if self < Self::V0_3_0 {
            ResultShape::Single
        } else if self < Self::V1_0_0 {
            ResultShape::Lists
        } else {
            ResultShape::Current
        }
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests;
