//! What the agent knows of the pods of its node, for `cnictl`: which should be captured, which are, and what is in the way.
//!
//! Words such as states and reasons are text here, because a reader may be older or newer than the agent: it shows a word that it does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use conflicts::Conflict;
use facts::PodRef;
use serde::{Deserialize, Serialize};

/// The pods of a node, each once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodsReport {
    /// Version of the agent.
    pub version: String,
    /// When this was said, in seconds since 1970.
    pub at: f64,
    /// Whether the agent has listed pods and namespaces once; before that pods may be missing.
    pub synced: bool,
    /// Seconds between two looks at a pod.
    pub interval: f64,
    /// The pods, sorted by namespace and name.
    pub pods: Vec<PodReport>,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodReport {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.uid`
    pub uid: String,
    /// `metadata.labels`, for selectors.
    pub labels: BTreeMap<String, String>,
    /// Whether and how the pod should be captured: `sidecar` or `ambient`, else `none`.
    pub wanted: String,
    /// The row of the decision table that says so, such as `sidecar` or `host-network`.
    pub decided_by: String,
    /// The same in words.
    pub decision: String,
    /// `verified`, `drifted` and so on; empty of a pod that should not be captured.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Why its state is not known, such as `no-namespace`; empty otherwise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// How connections are taken: `REDIRECT`, `TPROXY` or `AMBIENT`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// `nftables` or `iptables`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// When the pod's namespace was last found equal to its plan, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_verified: Option<f64>,
    /// How the namespace differs from the plan, at most [`MAX_LINES`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<String>,
    /// Who wrote what differs, where that is known: `nft (pid 4711)`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub culprit: String,
    /// Conflicts that are known, by id, such as `CF-P1`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<String>,
    /// Whether the proxy, or ztunnel, listens on all ports that connections are sent to; absent where it was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listening: Option<bool>,
    /// Whether a connected ztunnel has acknowledged the pod; absent in sidecar mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<bool>,
    /// What is wrong and what to do about it, in a line.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// Its addresses, as far as they are known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Number of the network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// How the namespace was found, such as the path that a runtime named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub netns: String,
}

/// Asks for one repair now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreRequest {
    /// `metadata.uid` of the pod.
    pub uid: String,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreReport {
    /// Whether something was written. A pod that was as planned is left alone.
    pub repaired: bool,
    /// What differed before, at most [`MAX_LINES`].
    pub differed: Vec<String>,
    /// Why it is not as planned now; empty when it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// The conflicts that the agent knows of, in its pods and in the node's namespace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConflictsReport {
    /// When this was said, in seconds since 1970.
    pub at: f64,
    /// Each conflict.
    pub conflicts: Vec<ConflictReport>,
    /// What could not be looked at, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_looked_at: Vec<ConflictGap>,
}

/// What was not looked at for conflicts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConflictGap {
    /// The pod; absent for the node's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// What, and why.
    pub text: String,
    /// It cannot be seen from where the one who looks is: no later look shows it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub standing: bool,
}

/// Rules or settings of others that change what ours mean.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConflictReport {
    /// The pod; absent for the node's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Which kind: `CF-P1`, `CF-H2`.
    pub id: String,
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// `ip`, `ip6`, `inet`; empty where the conflict is no rule.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub family: String,
    /// Table of the foreign rule.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub table: String,
    /// Its chain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chain: String,
    /// Its handle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
    /// Priority of the base chain from which it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// The rule, in its own notation.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub foreign: String,
    /// What it does to captured traffic.
    pub affects: String,
    /// Who wrote it, where that is known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub culprit: String,
    /// What the agent did about it; empty where it did nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resolved: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
    /// When it was first seen, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<f64>,
    /// When it was last seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<f64>,
    /// It is not there any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// The most lines of a pod's differences.
pub const MAX_LINES: usize = 10;
/// The row of the decision of a pod that a label asks a proxy for, and that has none.
const NOT_INJECTED: &str = "not-injected";
/// The longest line, in bytes.
const MAX_LINE: usize = 512;
/// The largest [`PodsReport`] and [`ConflictsReport`], in bytes: 10,000 pods with some hundred bytes of labels and words each are 10 MB.
pub const MAX_PODS_BYTES: usize = 32 << 20;

impl PodReport {
    /// The pod.
    pub fn pod(&self) -> PodRef {
        PodRef { uid: self.uid.clone(), ..PodRef::named(&*self.namespace, &*self.name) }
    }

    /// Whether it should be captured.
    pub fn is_wanted(&self) -> bool {
        !matches!(&*self.wanted, "" | "none")
    }

    /// Says of a pod that is left alone that a label asks for a proxy, which it has not.
    pub fn note_not_injected(&mut self, label: &str) {
        self.decided_by = NOT_INJECTED.to_owned();
        self.decision =
            format!("label {label} asks for a proxy and it has none: it runs outside of the mesh");
        self.problem = format!("{}; see that the injector runs, and create the pod again", self.decision);
    }

    /// Whether a label asks for a proxy, which it has not.
    pub fn is_not_injected(&self) -> bool {
        self.decided_by == NOT_INJECTED
    }

    /// Says of a pod that is as planned that nobody listens on these ports.
    pub fn note_missing_listeners(&mut self, ports: &[u16]) {
        if ports.is_empty() || !self.problem.is_empty() {
            return;
        }
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        self.problem = format!(
            "its rules are as planned and nobody listens on {}: connections are refused until the proxy starts",
            ports.join(", ")
        );
    }

    /// Says which conflicts are in the pod's namespace, each kind once, without those that are only worth knowing. Gives whether one has severity
    /// error: the pod is not captured as planned then, whatever else is known of it.
    pub fn note_conflicts(&mut self, conflicts: &[ConflictReport]) -> bool {
        let there = conflicts.iter().filter(|conflict| !conflict.gone && conflict.severity != "info");
        let ids: BTreeSet<&String> = there.clone().map(|conflict| &conflict.id).collect();
        self.conflicts = ids.into_iter().cloned().collect();
        let bad = there.clone().find(|conflict| conflict.severity == "error");
        if let Some(ConflictReport { id, affects, advice, .. }) = bad
            && self.drift.is_empty()
        {
            let advice = if advice.is_empty() { String::new() } else { format!("; {advice}") };
            self.problem = format!("{id}: {affects}{advice}");
        }
        bad.is_some()
    }
}

impl From<Conflict> for ConflictReport {
    /// Without the pod, and without what only the agent knows: times, and what it did.
    fn from(conflict: Conflict) -> Self {
        let Conflict { id, severity, place, foreign, affects, culprit, advice, .. } = conflict;
        Self {
            id: id.to_string(),
            severity: severity.to_string(),
            family: place.family,
            table: place.table,
            chain: place.chain,
            handle: place.handle,
            priority: place.priority,
            foreign,
            affects,
            culprit: culprit.unwrap_or_default(),
            advice,
            ..Self::default()
        }
    }
}

/// At most [`MAX_LINES`] lines, each of at most 512 bytes; the last says how many more there are.
pub fn bounded<T: ToString>(lines: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut lines = lines.into_iter();
    let mut kept: Vec<String> = lines.by_ref().take(MAX_LINES).map(|line| cut(line.to_string())).collect();
    let more = lines.count();
    if more > 0 {
        kept.pop();
        kept.push(format!("{} more differences", more + 1));
    }
    kept
}

fn cut(mut line: String) -> String {
    if line.len() > MAX_LINE {
        line.truncate(line.floor_char_boundary(MAX_LINE - '…'.len_utf8()));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_in_number_and_length() {
        assert_eq!(bounded(["a", "b"]), ["a", "b"]);
        let many = bounded((0..25).map(|number| number.to_string()));
        assert_eq!((many.len(), &*many[8], &*many[9]), (MAX_LINES, "8", "16 more differences"));
        let long = bounded(["ä".repeat(1000)]);
        assert!(long[0].len() <= MAX_LINE && long[0].ends_with("ä…"), "{}", long[0].len());
    }

    #[test]
    fn a_pod_is_told_the_kinds_of_conflicts_that_are_there_and_an_error_is_its_problem() {
        let conflict = |id: &str, severity: &str, gone: bool| ConflictReport {
            id: id.to_owned(),
            severity: severity.to_owned(),
            affects: "packets pass".to_owned(),
            gone,
            ..ConflictReport::default()
        };
        let mut pod = PodReport::default();
        assert!(!pod.note_conflicts(&[conflict("CF-P1", "error", true), conflict("CF-P9", "info", false)]));
        assert_eq!((pod.conflicts.len(), &*pod.problem), (0, ""));
        let some = [("CF-P2", "warning"), ("CF-P1", "error"), ("CF-P1", "error")];
        assert!(pod.note_conflicts(&some.map(|(id, severity)| conflict(id, severity, false))));
        assert_eq!(
            (pod.conflicts, &*pod.problem),
            (vec!["CF-P1".to_owned(), "CF-P2".to_owned()], "CF-P1: packets pass")
        );
    }

    #[test]
    fn reports_of_other_versions_are_read() {
        let text = r#"{"pods":[{"namespace":"shop","name":"web","wanted":"sidecar","state":"improved","new":[1]}],"later":true}"#;
        let report: PodsReport = serde_json::from_str(text).unwrap();
        assert!(report.pods[0].is_wanted() && report.pods[0].state == "improved");
        assert_eq!(report.pods[0].pod(), PodRef::named("shop", "web"));
        assert!(!PodReport::default().is_wanted());
        let conflicts: ConflictsReport = serde_json::from_str(r#"{"conflicts":[{"id":"CF-P99"}]}"#).unwrap();
        assert_eq!(conflicts.conflicts[0].id, "CF-P99");
        assert_eq!(serde_json::from_str::<RestoreRequest>("{}").unwrap().uid, "");
    }
}
