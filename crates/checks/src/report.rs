//! All results of a look, and what they come to.

use serde::{Deserialize, Serialize};

use crate::{CheckResult, CheckState};

/// What JSON and YAML of `cnictl` begin with. Within this version members are only added.
pub const API_VERSION: &str = "cnictl.istio-cni.io/v1";
/// `kind` of the report in JSON.
const KIND: &str = "CheckReport";

/// All results, as programs read them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// Within a version members are only added.
    pub api_version: String,
    /// `CheckReport`.
    pub kind: String,
    /// In the order in which they are shown.
    pub items: Vec<CheckResult>,
}

/// The worst of several results.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worst<'a> {
    /// The first of those that are as bad.
    pub result: &'a CheckResult,
    /// How many others are as bad.
    pub others: usize,
}

impl CheckReport {
    /// Results in the order of their sections.
    #[must_use]
    pub fn new(mut items: Vec<CheckResult>) -> Self {
        items.sort_by_key(|item| item.section);
        Self { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), items }
    }

    /// The worst, if any is wrong or unknown.
    #[must_use]
    pub fn worst(&self) -> Option<Worst<'_>> {
        let state =
            self.items.iter().map(|item| item.state).max().filter(|state| *state >= CheckState::Unknown)?;
        let mut as_bad = self.items.iter().filter(|item| item.state == state);
        let result = as_bad.next()?;
        Some(Worst { result, others: as_bad.count() })
    }

    /// Whether a result is of this state.
    #[must_use]
    pub fn has(&self, state: CheckState) -> bool {
        self.items.iter().any(|item| item.state == state)
    }

    /// How many are of a state.
    #[must_use]
    pub fn count(&self, state: CheckState) -> usize {
        self.items.iter().filter(|item| item.state == state).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CheckFinding, catalogue};

    #[test]
    fn the_worst_leads_and_what_is_unknown_is_never_good() {
        let of = |finding: CheckFinding| finding.of(&catalogue::CONNTRACK, 0.0);
        let report = CheckReport::new;
        let (ok, skipped) = (CheckFinding::ok("a"), CheckFinding::skipped("b"));
        assert_eq!(report(vec![of(ok.clone()), of(skipped)]).worst(), None);
        let unknown = report(vec![of(ok), of(CheckFinding::unknown("c")), of(CheckFinding::unknown("d"))]);
        let worst = unknown.worst().map(|worst| (worst.result.text.as_str(), worst.others));
        assert_eq!(worst, Some(("c", 1)));
        let failed = report(vec![of(CheckFinding::warning("e", "x")), of(CheckFinding::failed("f", "y"))]);
        assert_eq!(failed.worst().map(|worst| worst.result.text.as_str()), Some("f"));
    }

    #[test]
    fn a_hint_is_there_only_where_something_is_wrong() {
        let more = |finding: CheckFinding| finding.of(&catalogue::CONNTRACK, 0.0).more;
        assert_eq!(more(CheckFinding::ok("a")), None);
        assert_eq!(more(CheckFinding::unknown("a")), None);
        assert_eq!(
            more(CheckFinding::failed("a", "b")).as_deref(),
            Some("docs/troubleshooting.md#connection-tracking")
        );
    }
}
