//! What is told of packets that policies deny.

use ruleset::Limit;

use crate::index::PolicyClass;

/// The group of nfnetlink_log.
pub const LOG_GROUP: u16 = 115;
/// What the prefix of an entry begins with. The number of the class follows, see [`log_number`].
pub const LOG_PREFIX: &str = "ic1:";
/// Of a class.
pub(super) const LOG_LIMIT: Limit = Limit { per_second: 10, burst: 50 };

/// The number by which the prefix of an entry names a class: 16 hexadecimal digits.
pub fn log_number(class: &PolicyClass) -> u64 {
    class.hash()
}
