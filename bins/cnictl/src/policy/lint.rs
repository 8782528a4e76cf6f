//! `policy lint`: what in policies is probably not meant.

use anyhow::Result;
use policy::lint::{FindingSeverity, PolicyFinding, lint};
use serde::Serialize;

use super::source::PolicySourceArgs;
use crate::output::{Colour, VerbAnswer};
use crate::pods::{Around, Column, ListArgs, ListHead, ResourceList};

const EXAMPLES: &str = "\
Examples:
  # Before policies are applied: by files, without a node
  cnictl policy lint --manifests deploy/

  # What the agent of this node knows
  cnictl policy lint

Exit codes: 0 there is no warning; there may be notes
            1 there is one, or the command failed
            2 wrong command line
            124 the time was over";

/// Show what in network policies is probably not meant
///
/// Names of ports that no pod has, rules that open the tunnel of ambient mode, Services of which some endpoints are denied, pods that may not ask for
/// names, entries that an API server would refuse: these are warnings. Blocks with addresses of the cluster, probes that only pass because the own node
/// always does, policies and peers that mean no pod: these are notes. Services, probes and refused entries are known from manifests only.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LintArgs {
    /// Policies of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    source: PolicySourceArgs,
    #[command(flatten)]
    list: ListArgs,
}

/// A finding as it is printed.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct ListedFinding {
    policy: String,
    /// Where in it; empty for all of it.
    place: String,
    /// A word for what it is.
    finding: &'static str,
    /// `warning` or `note`.
    severity: &'static str,
    text: String,
}

const LISTING: ResourceList<ListedFinding> = ResourceList {
    kind: "PolicyFindingList",
    item_kind: "PolicyFinding",
    columns: &[
        Column { head: "POLICY", wide: false, cell: |one| (one.policy.clone(), None) },
        Column { head: "WHERE", wide: false, cell: |one| (one.place.clone(), None) },
        Column { head: "SEVERITY", wide: false, cell: severity },
        Column { head: "FINDING", wide: false, cell: |one| (one.finding.to_owned(), None) },
        Column { head: "TEXT", wide: true, cell: |one| (one.text.clone(), None) },
    ],
    key: |one| format!("{} {} {} {}", one.policy, one.place, one.finding, one.text),
    name: |one| one.policy.clone(),
    steady: Clone::clone,
};

fn severity(one: &ListedFinding) -> (String, Option<Colour>) {
    (one.severity.to_owned(), (one.severity == WARNING).then_some(Colour::Yellow))
}

const WARNING: &str = "warning";

impl LintArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        if self.list.watch {
            return LISTING.watch(&self.list, &mut || Ok(self.findings(&lint(&self.source.load()?.world))));
        }
        let known = self.source.load()?;
        let mut findings = self.findings(&lint(&known.world));
        LISTING.sort(&self.list, &mut findings)?;
        let lines = findings.iter().map(|one| format!("{} {}: {}\n", one.policy, one.place, one.text));
        let lines: String = lines.collect::<String>().replace(" : ", ": ");
        let gap = if lines.is_empty() { "" } else { "\n" };
        let head = ListHead { evidence: &known.evidence, not_looked_at: &known.remarks };
        let around = Around { after: format!("{gap}{lines}{}\n", known.evidence.line()) };
        let text = LISTING.print(&self.list, &head, &findings, &around)?;
        let warnings = findings.iter().filter(|one| one.severity == WARNING).count();
        Ok(match warnings {
            0 => VerbAnswer::text(text),
            1 => VerbAnswer::failed(text, "1 warning about network policies".to_owned()),
            many => VerbAnswer::failed(text, format!("{many} warnings about network policies")),
        })
    }

    fn findings(&self, found: &[PolicyFinding]) -> Vec<ListedFinding> {
        let is_meant =
            |one: &&PolicyFinding| self.namespace.as_ref().is_none_or(|name| *one.policy.namespace == **name);
        let listed = |one: &PolicyFinding| ListedFinding {
            policy: one.policy.to_string(),
            place: one.place.clone(),
            finding: one.kind.name(),
            severity: if one.kind.severity() == FindingSeverity::Warning { WARNING } else { "note" },
            text: one.text.clone(),
        };
        found.iter().filter(is_meant).map(listed).collect()
    }
}
