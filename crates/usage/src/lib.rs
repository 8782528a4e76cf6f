//! What the pods of tenants send and receive, by the tenant at the other end.
//!
//! - [`PeerClass`]: what the other end is to a pod's tenant.
//! - [`UsagePlan`]: the rules of a pod's namespace that count, for nf_tables.
//! - [`PodReading`]: what its counters say at a time.
//! - [`UsageBook`]: what was counted since the last reading, kept across restarts of the agent, as sums for each hour.
//! - [`UsageLine`]: a sum as a line of a file; [`UsageReport`]: many of them, for people.

mod book;
mod class;
mod direction;
mod hour;
mod line;
mod plan;
mod reading;
mod report;
#[cfg(test)]
mod tests;

pub use book::{CountedPod, PodKey, UsageBook, UsageIncrement};
pub use class::PeerClass;
pub use hour::Hour;
pub use line::{LineRow, PodShare, SCHEMA, UsageLine};
pub use plan::{USAGE_OWNER, USAGE_TABLE, UsageClass, UsagePlan};
pub use reading::{Amount, CounterCount, PodReading};
pub use report::{ReportFilter, ReportRow, UsageReport};
use ruleset::Ruleset;

/// Whose rules of ours stand beside those that capture: they enforce policies, and count the traffic of tenants' pods. A pod has none of the second, the
/// node none of the last.
pub fn owners() -> [Ruleset; 3] {
    [policy::guard::no_rules(), policy::compile::no_iptables_answers(), UsagePlan::no_rules()]
}

/// Where in the agent's state directory usage is kept.
pub const USAGE_DIR: &str = "usage";
/// How the files of lines begin: `usage-YYYYMMDD.jsonl`.
pub const USAGE_FILES: &str = "usage";
/// Beside them, the [`UsageBook`]: the present hour, and what is known of counters.
pub const USAGE_STATE: &str = "usage-now.json";
