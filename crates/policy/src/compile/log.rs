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
    let prefix = format!("{prefix}{}", log_number_text(class.hash())).into();
    Action::Log { group: LOG_GROUP, prefix, limit: Some(LOG_LIMIT) }
}

/// The number by which the prefix of an entry names a class: 16 hexadecimal digits.
pub fn log_number(class: &PolicyClass) -> u64 {
    class.hash()
}

/// That number as people and programs read it.
pub fn log_number_text(number: u64) -> String {
    format!("{number:016x}")
}

/// What the prefix of an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogMark {
    /// The number of the class, see [`log_number`].
    pub class: u64,
    /// Whether it is only tried out what the class says: the packet passes.
    pub is_tried_out: bool,
}

// === impl LogMark ===

impl LogMark {
    /// From a prefix, if it is one of ours.
    pub fn read(prefix: &str) -> Option<Self> {
        let (number, is_tried_out) = match prefix.strip_prefix(AUDIT_PREFIX) {
            Some(number) => (number, true),
            None => (prefix.strip_prefix(LOG_PREFIX)?, false),
        };
        Some(Self { class: hexadecimal(number)?, is_tried_out })
    }

    /// The prefix.
    pub fn text(&self) -> String {
        let prefix = if self.is_tried_out { AUDIT_PREFIX } else { LOG_PREFIX };
        format!("{prefix}{}", log_number_text(self.class))
    }
}

/// The chain of a class by its number, whose last rule counts what it denies, or would deny.
pub fn denying_chain(number: u64) -> String {
    format!("istio-np-{number:016x}-n")
}

/// Whether this is a [`denying_chain`].
pub fn is_denying_chain(chain: &str) -> bool {
    let number = chain.strip_prefix("istio-np-").and_then(|rest| rest.strip_suffix("-n"));
    number.and_then(hexadecimal).is_some()
}

fn hexadecimal(number: &str) -> Option<u64> {
    (number.len() == 16).then(|| u64::from_str_radix(number, 16).ok()).flatten()
}
