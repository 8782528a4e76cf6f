//! `pods`: all pods of the node, with decision, reason and state.

use anyhow::Result;
use rundir::pods::PodReport;
use serde::Serialize;

use super::evidence::PodEvidence;
use super::listing::{Around, Column, ListArgs, NOTHING, OUT_OF_TIME, PARTLY_UNKNOWN, ResourceList};
use super::select::SelectArgs;
use super::view::{EvidenceSource, NodeView, Viewer};
use crate::configuration::ConfigurationArgs;
use crate::explain::PacketReport;
use crate::output::{Colour, VerbAnswer, one_line, paint};

const EXAMPLES: &str = "\
Examples:
  # Which pods of this node are in the mesh, and why are the others not?
  cnictl pods

  # Those of a namespace with a label, and what becomes of them
  cnictl pods -n shop -l app=web -w

Exit codes: 0 shown, 1 failed, 2 wrong command line, 3 there is no such pod, 4 some pods may be missing, 124 the time was over";

/// List the pods of this node: whether each should be captured, by which row of the decision table, and its state
///
/// The agent is asked; without it this program decides and looks by itself, and says so.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PodsArgs {
    #[command(flatten)]
    pub(super) select: SelectArgs,
    #[command(flatten)]
    pub(super) list: ListArgs,
    #[command(flatten)]
    pub(super) configuration: ConfigurationArgs,
}

/// A pod, and who says so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PodItem {
    #[serde(flatten)]
    pub(super) pod: PodReport,
    pub(super) evidence: EvidenceSource,
    /// What it rests on, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<PodEvidence>,
    /// What becomes of a packet, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) packet: Option<PacketReport>,
}

const LISTING: ResourceList<PodItem> = ResourceList {
    kind: "PodList",
    item_kind: "Pod",
    columns: &[
        Column { head: "NAMESPACE", wide: false, cell: |item| (item.pod.namespace.clone(), None) },
        Column { head: "NAME", wide: false, cell: |item| (item.pod.name.clone(), None) },
        Column { head: "WANTED", wide: false, cell: |item| (item.pod.wanted.clone(), None) },
        Column { head: "DECIDED BY", wide: false, cell: |item| (item.pod.decided_by.clone(), None) },
        Column { head: "STATE", wide: false, cell: state_cell },
        Column { head: "REASON", wide: false, cell: |item| (item.pod.reason.clone(), None) },
        Column { head: "EVIDENCE", wide: true, cell: evidence_cell },
        Column { head: "DECISION", wide: true, cell: |item| (item.pod.decision.clone(), None) },
    ],
    key,
    name,
    steady,
};

impl PodsArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let viewer = Viewer::new(&self.configuration, false, self.list.timeout)?;
        if self.list.watch {
            return LISTING.watch(&self.list, &mut || Ok(items(&viewer.view(&self.select)?)));
        }
        let view = viewer.view(&self.select)?;
        let mut items = items(&view);
        LISTING.sort(&self.list, &mut items)?;
        let around = Around { after: remarks(&view, &items, |pod| pod.decided_by == "not-injected") };
        let text = LISTING.print(&self.list, &Head::of(&view), &items, &around)?;
        Ok(answer(text, &view, &self.select).unwrap_or_else(VerbAnswer::text))
    }
}

/// What is said once for all pods.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    evidence: &'a EvidenceSource,
    /// What is not known.
    gaps: &'a [String],
}

impl<'a> Head<'a> {
    pub(super) fn of(view: &'a NodeView) -> Self {
        Self { evidence: &view.evidence, gaps: &view.gaps }
    }
}

pub(super) fn items(view: &NodeView) -> Vec<PodItem> {
    let item = |pod: &PodReport| PodItem {
        pod: pod.clone(),
        evidence: view.evidence.clone(),
        detail: None,
        packet: None,
    };
    view.pods.iter().map(item).collect()
}

pub(super) fn key(item: &PodItem) -> String {
    format!("{}/{}/{}/{:?}", item.pod.namespace, item.pod.name, item.pod.uid, item.pod.inode)
}

pub(super) fn name(item: &PodItem) -> String {
    item.pod.pod().to_string()
}

pub(super) fn steady(item: &PodItem) -> PodItem {
    let mut item = item.clone();
    item.pod.last_verified = None;
    item.evidence.at = 0.0;
    item
}

pub(super) fn state_cell(item: &PodItem) -> (String, Option<Colour>) {
    (item.pod.state.clone(), Some(colour_of(&item.pod)))
}

/// Who says it: the agent at a time, or this program.
pub(super) fn evidence_cell(item: &PodItem) -> (String, Option<Colour>) {
    let text = match item.evidence.by {
        "agent" => format!("agent, {}", super::listing::ago(item.evidence.at)),
        _ => "own look".to_owned(),
    };
    (text, None)
}

/// Lines below a table: who says it, what is not known, what is wrong.
pub(super) fn remarks(view: &NodeView, items: &[PodItem], is_told: impl Fn(&PodReport) -> bool) -> String {
    let mut lines = Vec::new();
    let told = items.iter().filter(|item| !item.pod.problem.is_empty() && is_told(&item.pod));
    for item in told {
        let problem = paint("problem:", colour_of(&item.pod));
        lines.push(format!("{problem} {}: {}", item.pod.pod(), one_line(&item.pod.problem)));
    }
    for gap in &view.gaps {
        lines.push(format!("{} {}", paint("not known:", Colour::Yellow), one_line(gap)));
    }
    lines.push(view.evidence.line());
    let text = lines.join("\n") + "\n";
    if items.is_empty() { text } else { format!("\n{text}") }
}

fn colour_of(pod: &PodReport) -> Colour {
    match &*pod.state {
        "verified" | "draining" => Colour::Green,
        "drifted" | "contended" => Colour::Red,
        _ => Colour::Yellow,
    }
}

/// The answer where it is the same for every verb: nothing there, not all known, out of time; else the text again.
pub(super) fn answer(text: String, view: &NodeView, select: &SelectArgs) -> Result<VerbAnswer, String> {
    let with = |exit: u8, problem: String| VerbAnswer { exit, ..VerbAnswer::failed(text.clone(), problem) };
    if view.out_of_time {
        let problem = "the time was over before all pods were looked at; give more by --timeout";
        return Ok(with(OUT_OF_TIME, problem.to_owned()));
    }
    if view.pods.is_empty() {
        return Ok(with(NOTHING, format!("no pod is known on this node{}", select.text())));
    }
    match view.gaps.first() {
        Some(gap) => Ok(with(PARTLY_UNKNOWN, one_line(gap))),
        None => Err(text),
    }
}
