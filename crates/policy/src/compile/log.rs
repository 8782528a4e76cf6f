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

/// The number in a prefix, if it is one of ours.
pub fn logged_number(prefix: &str) -> Option<u64> {
    let number = prefix.strip_prefix(LOG_PREFIX).filter(|number| number.len() == 16)?;
    u64::from_str_radix(number, 16).ok()
}

/// The chain of a class by its number, whose last rule counts what it denies.
pub fn denying_chain(number: u64) -> String {
    format!("istio-np-{number:016x}-n")
}

/// The number of the class whose [`denying_chain`] this is.
pub fn denying_class(chain: &str) -> Option<u64> {
    let number = chain.strip_prefix("istio-np-")?.strip_suffix("-n").filter(|number| number.len() == 16)?;
    u64::from_str_radix(number, 16).ok()
}
