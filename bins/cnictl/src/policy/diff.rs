//! `policy diff`: what a change of objects would change between pods.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use policy::preview::{IsolationChange, PolicyPreview, VerdictChange, preview};
use serde::Serialize;

use super::judged::word;
use super::source::{PolicySourceArgs, add_manifests};
use crate::output::{Format, VerbAnswer, structured};
use crate::pods::{API_VERSION, EvidenceSource};

/// Most names of pods in a line.
const MAX_NAMED: usize = 3;

const EXAMPLES: &str = "\
Examples:
  # What would change between the pods of the cluster if this were applied?
  cnictl policy diff -f new-policy.yaml

  # Without a node, by files
  cnictl policy diff --manifests deploy/ -f new-policy.yaml

  # And if this policy were deleted?
  cnictl policy diff --delete shop/db

Exit codes: 0 no verdict would change
            1 one would, or the command failed
            2 wrong command line";

/// Show which connections between pods would be allowed or denied by a change
///
/// The objects of the files are put in the place of those of the same name. Every connection between two live pods is judged before and after, and those
/// whose verdict is another one are printed, pods that are alike in one line. What is allowed now and denied then is cut, if it is open at that time:
/// established connections are judged, too (see POLICY_ESTABLISHED). Connections with addresses outside of the cluster are not listed: pods that become
/// isolated are.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PolicyDiffArgs {
    /// Objects that would be applied, a file or a directory (repeat); - reads standard input
    #[arg(short, long = "filename", value_name = "PATH", required_unless_present = "delete")]
    files: Vec<PathBuf>,
    /// A policy that would be deleted (repeat)
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = super::end::policy_name)]
    delete: Vec<(String, String)>,
    #[command(flatten)]
    source: PolicySourceArgs,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct DiffDocument<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    evidence: &'a EvidenceSource,
    /// Policies that are new, other than before, or gone.
    policies: Vec<String>,
    isolation: Vec<IsolationReport>,
    changes: Vec<ChangeReport>,
    /// Connections that were judged.
    judged: usize,
    not_known: &'a [String],
}

#[derive(Debug, Serialize)]
struct IsolationReport {
    pod: String,
    direction: String,
    isolated: bool,
}

#[derive(Debug, Serialize)]
struct ChangeReport {
    sources: Vec<String>,
    destinations: Vec<String>,
    /// `TCP 80`, `UDP 53-54`, `TCP` for all ports, or `without ports`.
    traffic: String,
    /// Whether they are allowed after the change.
    allowed: bool,
    egress: String,
    ingress: String,
}

impl PolicyDiffArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        let known = self.source.load()?;
        let mut after = known.world.clone();
        add_manifests(&mut after, &self.files)?;
        for (namespace, name) in &self.delete {
            after.remove_networkpolicy(namespace, name);
        }
        let found = preview(&known.world, &after).context("compare the verdicts")?;
        let document = DiffDocument {
            api_version: API_VERSION,
            kind: "PolicyDiff",
            evidence: &known.evidence,
            policies: found.policies.iter().map(ToString::to_string).collect(),
            isolation: found.isolation.iter().map(IsolationReport::of).collect(),
            changes: found.verdicts.iter().map(ChangeReport::of).collect(),
            judged: found.judged,
            not_known: &known.remarks,
        };
        let text = match self.output {
            Format::Json | Format::Yaml => structured(self.output, &document)?,
            Format::Table | Format::Wide => document.text(self.output == Format::Wide),
        };
        if is_nothing(&found) {
            return Ok(VerbAnswer::text(text));
        }
        Ok(VerbAnswer { exit: 1, ..VerbAnswer::text(text) })
    }
}

fn is_nothing(found: &PolicyPreview) -> bool {
    found.verdicts.is_empty() && found.isolation.is_empty()
}

impl IsolationReport {
    fn of(change: &IsolationChange) -> Self {
        let (pod, direction) = (change.pod.clone(), change.direction.to_string());
        Self { pod, direction, isolated: change.isolated }
    }
}

impl ChangeReport {
    fn of(change: &VerdictChange) -> Self {
        let named = |ends: &[(String, std::net::IpAddr)]| {
            let mut names: Vec<String> = ends.iter().map(|(pod, _)| pod.clone()).collect();
            names.dedup();
            names
        };
        Self {
            sources: named(&change.sources),
            destinations: named(&change.destinations),
            traffic: change.traffic.to_string(),
            allowed: change.allowed,
            egress: change.verdict.egress.to_string(),
            ingress: change.verdict.ingress.to_string(),
        }
    }
}

impl DiffDocument<'_> {
    fn text(&self, is_wide: bool) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        for policy in &self.policies {
            let _ = writeln!(out, "policy {policy} changes");
        }
        for IsolationReport { pod, direction, isolated } in &self.isolation {
            let what = if *isolated { "becomes isolated for" } else { "is not isolated any more for" };
            let _ = writeln!(out, "pod {pod} {what} {direction}");
        }
        for change in &self.changes {
            let ChangeReport { sources, destinations, traffic, allowed, egress, ingress } = change;
            let (from, to) = (several(sources), several(destinations));
            let _ = writeln!(out, "{}: {from} -> {to} {traffic}", word(*allowed));
            if is_wide {
                let _ = writeln!(out, "  egress {egress}\n  ingress {ingress}");
            }
        }
        if self.changes.is_empty() {
            let _ = writeln!(out, "no verdict between pods changes");
        }
        for remark in self.not_known {
            let _ = writeln!(out, "not known: {remark}");
        }
        out + &self.evidence.line() + "\n"
    }
}

/// The first names, and how many more there are.
fn several(names: &[String]) -> String {
    let first = names.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MAX_NAMED { format!("{first} and {} more", names.len() - MAX_NAMED) } else { first }
}
