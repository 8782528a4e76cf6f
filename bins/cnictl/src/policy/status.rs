//! `policy status`: how the enforcement of policies stands on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::UNIX_EPOCH;

use anyhow::Result;
use policy::PolicyWorld as _;
use policy::index::classes_in;
use rundir::policy::{EnforcedAt, StandingWord};
use serde::Serialize;

use super::source::{KnownCluster, PolicySourceArgs};
use crate::output::{Format, VerbAnswer, columns, structured};
use crate::pods::{API_VERSION, EvidenceSource, NOTHING, ago};

const EXAMPLES: &str = "\
Examples:
  # Are the network policies of this node's pods in force?
  cnictl policy status

  # Where are those of each pod enforced?
  cnictl policy status -o wide

Exit codes: 0 they are in force
            1 they are not, or not all of them, or nothing tells how it stands
            2 wrong command line
            3 policies are not enforced on this node";

/// Show how the enforcement of network policies stands on this node
///
/// Pods whose packets the node's rules do not see are named, with the reason: their policies are enforced in their own network namespaces.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct PolicyStatusArgs {
    #[command(flatten)]
    source: PolicySourceArgs,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Serialize)]
struct StatusDocument<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    evidence: &'a EvidenceSource,
    /// `in-force`, `remembered` (in force as an earlier agent knew them), `failing`, `not-listed`, or `unknown` without the agent.
    standing: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    problem: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    policies: usize,
    /// Namespaces that have policies.
    namespaces: usize,
    /// Pods of this node that policies could select.
    pods: usize,
    isolated_ingress: usize,
    isolated_egress: usize,
    /// Pods of this node by where their policies are enforced.
    points: BTreeMap<&'static str, usize>,
    /// The same pod by pod.
    placed: Vec<PlacedPod<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<SnapshotFile>,
    not_known: &'a [String],
}

/// Where the policies of a pod are enforced.
#[derive(Debug, Serialize)]
struct PlacedPod<'a> {
    pod: &'a str,
    point: &'static str,
    /// A word for why the node's rules do not see its packets; empty where they do.
    unseen: &'a str,
    /// The same for people.
    text: &'a str,
}

/// What an ADD without the agent goes by.
#[derive(Debug, Serialize)]
struct SnapshotFile {
    path: String,
    /// In seconds since 1970.
    written: f64,
    bytes: u64,
}

impl PolicyStatusArgs {
    pub(super) fn run(&self) -> Result<VerbAnswer> {
        if !self.source.names_files()
            && self.source.ask().is_ok_and(|said| said.standing == StandingWord::Off)
        {
            let problem =
                "network policies are not enforced on this node (POLICY_ENFORCEMENT=off)".to_owned();
            return Ok(VerbAnswer { exit: NOTHING, ..VerbAnswer::failed(String::new(), problem) });
        }
        let known = self.source.load()?;
        let document = self.document(&known);
        let text = match self.output {
            Format::Json | Format::Yaml => structured(self.output, &document)?,
            Format::Table | Format::Wide => document.text(self.output == Format::Wide),
        };
        Ok(match known.standing {
            Some(StandingWord::InForce | StandingWord::Remembered) => VerbAnswer::text(text),
            _ if self.source.names_files() => VerbAnswer::text(text),
            Some(StandingWord::Failing) => {
                let problem = format!("not all policies are in force: {}", known.problem);
                VerbAnswer::failed(text, problem)
            }
            _ => VerbAnswer::failed(text, "whether policies are in force is not known".to_owned()),
        })
    }

    fn document<'a>(&self, known: &'a KnownCluster) -> StatusDocument<'a> {
        let node = known.node.as_deref();
        let own = |pod: &&policy::PlainPod| node.is_none_or(|node| *pod.facts.node == *node);
        let pods: Vec<_> = known.world.live_pods().filter(|pod| !pod.is_nameless()).filter(own).collect();
        let classes: Vec<_> = pods.iter().map(|pod| classes_in(&known.world, pod)).collect();
        let namespaces: BTreeSet<&str> =
            known.world.policies().map(|policy| &*policy.name.namespace).collect();
        let mut points = BTreeMap::new();
        for at in known.points.values() {
            *points.entry(at.point.name()).or_default() += 1;
        }
        let placed = known.points.iter().map(|(pod, at)| PlacedPod {
            pod,
            point: at.point.name(),
            unseen: &at.unseen,
            text: &at.unseen_text,
        });
        StatusDocument {
            api_version: API_VERSION,
            kind: "PolicyStatus",
            evidence: &known.evidence,
            standing: known.standing.map_or("unknown", StandingWord::name),
            problem: &known.problem,
            node,
            policies: known.world.policies().count(),
            namespaces: namespaces.len(),
            pods: pods.len(),
            isolated_ingress: classes.iter().filter(|classes| classes.ingress.is_some()).count(),
            isolated_egress: classes.iter().filter(|classes| classes.egress.is_some()).count(),
            points,
            placed: placed.collect(),
            snapshot: self.snapshot(),
            not_known: &known.remarks,
        }
    }

    fn snapshot(&self) -> Option<SnapshotFile> {
        let path = Some(self.source.snapshot_path()).filter(|_| !self.source.names_files())?;
        let file = std::fs::metadata(&path).ok()?;
        let written = file.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Some(SnapshotFile { path: path.display().to_string(), written, bytes: file.len() })
    }
}

impl StatusDocument<'_> {
    /// Pods with the point of each and why the node does not see it.
    fn placed_text(&self, every: bool) -> String {
        let shown = self.placed.iter().filter(|placed| every || !placed.unseen.is_empty());
        let mut rows: Vec<Vec<String>> = shown
            .map(|placed| {
                // Without a reason it was not asked where the node sees the pod.
                let is_chosen = placed.unseen.is_empty() && placed.point == EnforcedAt::Pod.name();
                let why = if is_chosen { "POLICY_POINT=pod" } else { placed.text };
                [placed.pod, placed.point, why].map(str::to_owned).to_vec()
            })
            .collect();
        if rows.is_empty() {
            return String::new();
        }
        rows.insert(0, ["POD", "POINT", "WHY"].map(str::to_owned).to_vec());
        columns(&rows)
    }

    /// With every pod, or those that the node does not see.
    fn text(&self, every: bool) -> String {
        let mut rows = Vec::new();
        let mut row = |head: &str, text: String| rows.push(vec![head.to_owned(), text]);
        let on = self.node.map_or_else(String::new, |node| format!(" on node {node}"));
        row("Policies in force", format!("{}{on}", self.standing));
        if !self.problem.is_empty() {
            row("Problem", self.problem.to_owned());
        }
        row("Policies", format!("{} in {} namespaces", self.policies, self.namespaces));
        row(
            "Pods",
            format!(
                "{}; isolated: {} for ingress, {} for egress",
                self.pods, self.isolated_ingress, self.isolated_egress
            ),
        );
        let points: Vec<String> =
            self.points.iter().map(|(point, count)| format!("{point} {count}")).collect();
        if !points.is_empty() {
            row("Enforced at", points.join(", "));
        }
        if let Some(SnapshotFile { path, written, .. }) = &self.snapshot {
            row("Snapshot", format!("{path}, written {}", ago(*written)));
        }
        for remark in self.not_known {
            row("Not known", remark.clone());
        }
        columns(&rows) + &self.placed_text(every) + &self.evidence.line() + "\n"
    }
}
