//! `verify`: which pods are captured, and by what evidence.

use anyhow::Result;
use rundir::pods::PodReport;

use super::evidence::PodEvidence;
use super::list::{Head, PodItem, answer, evidence_cell, items, key, name, remarks, state_cell, steady};
use super::listing::{Around, Column, ListArgs, NOTHING, PARTLY_UNKNOWN, ResourceList, ago};
use super::live::NodeProcesses;
use super::own::LookedPod;
use super::select::SelectArgs;
use super::view::Viewer;
use crate::configuration::ConfigurationArgs;
use crate::explain::{FlowRequest, PacketReport, parse_packet};
use crate::output::{Colour, VerbAnswer};

const EXAMPLES: &str = "\
Examples:
  # Are all pods of this node captured that should be?
  cnictl verify

  # One pod, after a full look at its network namespace now
  cnictl verify shop/web --fresh

  # What does the verdict rest on?
  cnictl verify shop/web --evidence

  # Which of these pods' connections to this address are captured?
  cnictl verify -n shop --packet out:203.0.113.9:443,uid=1000

  # Tell when something changes, for a program
  cnictl verify -A -w -o json

Exit codes: 0 every pod that should be captured is
            1 one is not, or the command failed; the message says what and what to do
            2 wrong command line
            3 there is no such pod, or none that should be captured
            4 none is known not to be captured, and of some it is not known
            124 the time was over";

/// Show whether pods are captured, and by what evidence
///
/// The agent is asked, which compares every pod with its plan all the time. Without it this program compares by itself, and says so. Nothing
/// is written.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    select: SelectArgs,
    /// Look at the pods in full now, and not only at what is known
    #[arg(long)]
    fresh: bool,
    /// Show what it rests on, read now by this program: namespace, rules with their handles, routing, who listens
    #[arg(long, conflicts_with = "watch")]
    evidence: bool,
    /// Also say what becomes of a packet by the rules that the kernel holds, as cnictl explain --live does: one that the pod sends
    /// (out:IP:PORT) or gets (in::PORT), with uid=, gid=, protocol=udp, from=IP[:PORT] and mark= after commas
    #[arg(long, value_name = "PACKET", value_parser = parse_packet, conflicts_with = "watch")]
    packet: Option<FlowRequest>,
    #[command(flatten)]
    list: ListArgs,
    #[command(flatten)]
    configuration: ConfigurationArgs,
}

const LISTING: ResourceList<PodItem> = ResourceList {
    kind: "PodVerificationList",
    item_kind: "PodVerification",
    columns: &[
        Column { head: "NAMESPACE", wide: false, cell: |item| (item.pod.namespace.clone(), None) },
        Column { head: "NAME", wide: false, cell: |item| (item.pod.name.clone(), None) },
        Column { head: "WANTED", wide: false, cell: wanted_cell },
        Column { head: "STATE", wide: false, cell: state_and_reason },
        Column { head: "MODE", wide: false, cell: |item| (item.pod.mode.clone(), None) },
        Column { head: "BACKEND", wide: false, cell: |item| (item.pod.backend.clone(), None) },
        Column {
            head: "LAST VERIFIED",
            wide: false,
            cell: |item| (item.pod.last_verified.map_or_else(String::new, ago), None),
        },
        Column { head: "DRIFT", wide: false, cell: |item| (count(item.pod.drift.len()), None) },
        Column { head: "CONFLICTS", wide: false, cell: |item| (item.pod.conflicts.join(","), None) },
        Column { head: "PROXY", wide: false, cell: proxy_cell },
        Column { head: "EVIDENCE", wide: false, cell: evidence_cell },
        Column { head: "CULPRIT", wide: true, cell: |item| (item.pod.culprit.clone(), None) },
        Column {
            head: "NETNS",
            wide: true,
            cell: |item| (item.pod.inode.map_or_else(String::new, |inode| inode.to_string()), None),
        },
    ],
    key,
    name,
    steady,
};

impl VerifyArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let viewer = Viewer::new(&self.configuration, self.fresh, self.list.timeout)?;
        if self.list.watch {
            return LISTING.watch(&self.list, &mut || Ok(items(&viewer.view(&self.select)?)));
        }
        let (view, looked) = match self.looks_closer() {
            true => viewer.view_deeply(&self.select)?,
            false => (viewer.view(&self.select)?, Vec::new()),
        };
        let mut items = items(&view);
        LISTING.sort(&self.list, &mut items)?;
        let mut around = Around { after: remarks(&view, &items, |_| true) };
        self.look_closer(&looked, &mut items, &mut around.after)?;
        let text = LISTING.print(&self.list, &Head::of(&view), &items, &around)?;
        let verdict = Verdict::of(&view.pods);
        if let Some(problem) = verdict.failed {
            return Ok(VerbAnswer::failed(text, problem));
        }
        let text = match answer(text, &view, &self.select) {
            Ok(answer) => return Ok(answer),
            Err(text) => text,
        };
        Ok(match (verdict.unknown, verdict.wanted) {
            (Some(problem), _) => VerbAnswer { exit: PARTLY_UNKNOWN, ..VerbAnswer::failed(text, problem) },
            (None, false) => VerbAnswer { exit: NOTHING, ..VerbAnswer::text(text) },
            (None, true) => VerbAnswer::text(text),
        })
    }
}

impl VerifyArgs {
    /// Whether more is asked for than the agent tells.
    fn looks_closer(&self) -> bool {
        self.evidence || self.packet.is_some()
    }

    /// Adds what only a look of this program shows: what a verdict rests on, and what becomes of a packet.
    fn look_closer(&self, looked: &[LookedPod], items: &mut [PodItem], text: &mut String) -> Result<()> {
        if !self.looks_closer() {
            return Ok(());
        }
        let processes = NodeProcesses::read()?;
        let mut details = String::new();
        for looked in looked {
            let pod = looked.report.pod();
            let detail = self.evidence.then(|| PodEvidence::of(looked));
            details.extend(detail.as_ref().map(|detail| detail.text(&pod.to_string())));
            let packet = self.packet.as_ref().map(|packet| PacketReport::of(looked, packet, &processes));
            text.extend(packet.as_ref().map(|packet| packet.line(&pod.to_string())));
            for item in items.iter_mut().filter(|item| item.pod.pod() == pod) {
                (item.detail, item.packet) = (detail.clone(), packet.clone());
            }
        }
        text.push_str(&details);
        Ok(())
    }
}

/// What follows from all pods.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// A pod should be captured.
    wanted: bool,
    /// The first that is known not to be, and how many.
    failed: Option<String>,
    /// The first of which it is not known, and how many.
    unknown: Option<String>,
}

impl Verdict {
    fn of(pods: &[PodReport]) -> Self {
        let wanted: Vec<&PodReport> = pods.iter().filter(|pod| pod.is_wanted()).collect();
        let unknown = |pod: &&&PodReport| is_unknown(pod);
        let failed = |pod: &&&PodReport| !is_fine(pod) && !is_unknown(pod);
        Self {
            wanted: !wanted.is_empty(),
            failed: first(&wanted.iter().filter(failed).copied().collect::<Vec<_>>()),
            unknown: first(&wanted.iter().filter(unknown).copied().collect::<Vec<_>>()),
        }
    }
}

/// Whether a pod that should be captured is.
pub(crate) fn is_fine(pod: &PodReport) -> bool {
    matches!(&*pod.state, "verified" | "draining")
}

/// Nothing bad is known, and not enough good.
fn is_unknown(pod: &PodReport) -> bool {
    match &*pod.state {
        "" | "starting" => true,
        // The rules are as planned; an agent would know about ztunnel.
        "unacknowledged" => pod.acknowledged.is_none(),
        "unverifiable" => !matches!(&*pod.reason, "sandbox" | "conflict"),
        _ => false,
    }
}

fn first(pods: &[&PodReport]) -> Option<String> {
    let text = |pod: &PodReport| {
        let state = match &*pod.state {
            "" => "not known to be captured",
            state => state,
        };
        let reason = if pod.reason.is_empty() { String::new() } else { format!(" ({})", pod.reason) };
        let problem = if pod.problem.is_empty() { String::new() } else { format!(": {}", pod.problem) };
        format!("pod {} is {state}{reason}{problem}", pod.pod())
    };
    match pods {
        [] => None,
        [only] => Some(text(only)),
        [first, more @ ..] => Some(format!("{} (and {} more)", text(first), more.len())),
    }
}

/// The mode, or `no`, and the row of the table.
fn wanted_cell(item: &PodItem) -> (String, Option<Colour>) {
    let PodReport { wanted, decided_by, .. } = &item.pod;
    let text = if wanted == decided_by { wanted.clone() } else { format!("{wanted} ({decided_by})") };
    (text, None)
}

fn state_and_reason(item: &PodItem) -> (String, Option<Colour>) {
    let (state, colour) = state_cell(item);
    let reason = &item.pod.reason;
    (if reason.is_empty() { state } else { format!("{state} ({reason})") }, colour)
}

fn proxy_cell(item: &PodItem) -> (String, Option<Colour>) {
    match item.pod.listening {
        Some(true) => ("listens".to_owned(), None),
        Some(false) => ("does not listen".to_owned(), Some(Colour::Red)),
        None => (String::new(), None),
    }
}

fn count(number: usize) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(wanted: &str, state: &str, reason: &str) -> PodReport {
        PodReport {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            wanted: wanted.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            ..PodReport::default()
        }
    }

    #[test]
    fn the_first_pod_is_named_with_what_is_known_of_it_and_no_more() {
        let problem = |pods: &[PodReport]| first(&pods.iter().collect::<Vec<_>>());
        let told = PodReport { problem: "somebody".to_owned(), ..pod("sidecar", "drifted", "") };
        assert_eq!(problem(&[]), None);
        for (pods, text) in [
            (vec![pod("sidecar", "starting", "")], "pod shop/web is starting"),
            (vec![pod("unknown", "", "")], "pod shop/web is not known to be captured"),
            (
                vec![pod("sidecar", "unverifiable", "kernel"), told.clone()],
                "pod shop/web is unverifiable (kernel) (and 1 more)",
            ),
            (vec![told], "pod shop/web is drifted: somebody"),
        ] {
            assert_eq!(problem(&pods).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_is_not_known_is_never_called_captured() {
        for (state, reason, failed, unknown) in [
            ("verified", "", false, false),
            ("draining", "", false, false),
            ("drifted", "", true, false),
            ("contended", "", true, false),
            ("unacknowledged", "", false, true),
            ("starting", "", false, true),
            ("", "", false, true),
            ("unverifiable", "no-namespace", false, true),
            ("unverifiable", "permission", false, true),
            ("unverifiable", "sandbox", true, false),
            ("unverifiable", "conflict", true, false),
            ("of a later version", "", true, false),
        ] {
            let verdict = Verdict::of(&[pod("sidecar", state, reason)]);
            assert_eq!(
                (verdict.failed.is_some(), verdict.unknown.is_some()),
                (failed, unknown),
                "{state} {reason}"
            );
            assert_eq!(Verdict::of(&[pod("none", state, reason)]), Verdict::default());
        }
        let told = PodReport { acknowledged: Some(false), ..pod("ambient", "unacknowledged", "") };
        assert!(Verdict::of(&[told]).failed.is_some(), "the agent knows that no ztunnel has it");
    }
}
