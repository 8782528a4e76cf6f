//! What is told of packets that policies deny.

use ruleset::{Action, Limit};

use super::answer::ChainRole;
use crate::index::PolicyClass;

/// The group of nfnetlink_log.
pub const LOG_GROUP: u16 = 115;
/// What the prefix of an entry begins with. The number of the class follows, see [`log_number`].
pub const LOG_PREFIX: &str = "ic1:";
/// The same of what is denied and answered.
pub const ANSWERED_PREFIX: &str = "ic1r:";
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
    /// What becomes of the packet.
    pub fate: LoggedFate,
}

/// What becomes of a packet that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LoggedFate {
    /// It is dropped.
    Dropped,
    /// It is dropped, and its sender is told.
    Answered,
    /// It passes: it is only tried out what the class says.
    Passed,
}

// === impl LogMark ===

impl LogMark {
    /// From a prefix, if it is one of ours.
    pub fn read(prefix: &str) -> Option<Self> {
        let [dropped, answered, passed] = [LOG_PREFIX, ANSWERED_PREFIX, AUDIT_PREFIX]
            .map(|beginning| prefix.strip_prefix(beginning).and_then(hexadecimal));
        let mark = |fate| move |class| Self { class, fate };
        let dropped = dropped.map(mark(LoggedFate::Dropped));
        dropped.or(answered.map(mark(LoggedFate::Answered))).or(passed.map(mark(LoggedFate::Passed)))
    }

    /// Whether it is only tried out what the class says: the packet passes.
    pub fn is_tried_out(self) -> bool {
        self.fate == LoggedFate::Passed
    }

    /// The chain whose last rules count and log such packets.
    pub fn chain(self) -> String {
        let role = if self.fate == LoggedFate::Answered { ChainRole::Answer } else { ChainRole::Decide };
        format!("{}{:016x}-n", role.beginning(), self.class)
    }

    /// The prefix.
    pub fn text(self) -> String {
        let prefix = match self.fate {
            LoggedFate::Dropped => LOG_PREFIX,
            LoggedFate::Answered => ANSWERED_PREFIX,
            LoggedFate::Passed => AUDIT_PREFIX,
        };
        format!("{prefix}{}", log_number_text(self.class))
    }
}

/// Whether rules of it count and log what a class denies: the [`LogMark::chain`] of some mark, or another chain of a class.
pub fn is_denying_chain(chain: &str) -> bool {
    let number = ChainRole::ALL.iter().find_map(|role| chain.strip_prefix(role.beginning()));
    let (class, rest) = number.and_then(|rest| rest.split_at_checked(16)).unwrap_or_default();
    hexadecimal(class).is_some() && rest.starts_with('-')
}

fn hexadecimal(number: &str) -> Option<u64> {
    (number.len() == 16).then(|| u64::from_str_radix(number, 16).ok()).flatten()
}
