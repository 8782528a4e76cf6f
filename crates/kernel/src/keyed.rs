//! Numbers for what the kernel answers, by which it is known again. Nobody outside of this process can make two answers with one number.

use std::hash::{BuildHasher, DefaultHasher, RandomState};
use std::sync::OnceLock;

/// The same for the life of this process.
pub(crate) fn hasher() -> DefaultHasher {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    KEYS.get_or_init(RandomState::new).build_hasher()
}
