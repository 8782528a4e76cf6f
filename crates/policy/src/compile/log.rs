//! What is told of packets that policies deny.

use ruleset::{Action, Limit};

use crate::index::PolicyClass;

/// The group of nfnetlink_log.
pub const LOG_GROUP: u16 = 115;
/// What the prefix of an entry begins with. The number of the class follows, see [`log_number`].
pub const LOG_PREFIX: &str = "ic1:";
/// What the prefix begins with of what is only tried out: it would be denied.
pub const AUDIT_PREFIX: &str = "ic1a:";
/// Of a class.
pub(super) const LOG_LIMIT: Limit = Limit { per_second: 10, burst: 50 };

/// Tells of a packet that a class denies, or would deny.
pub(super) fn log(prefix: &str, class: &PolicyClass) -> Action {
    let prefix = format!("{prefix}{:016x}", class.hash()).into();
    Action::Log { group: LOG_GROUP, prefix, limit: Some(LOG_LIMIT) }
}

/// The number by which the prefix of an entry names a class: 16 hexadecimal digits.
pub fn log_number(class: &PolicyClass) -> u64 {
    class.hash()
}
