//! What is said of the pods of this node to `cnictl`: which should be captured and by which row of the decision table, and what the verification
//! knows of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use capture::settings::Mode as CaptureMode;
use capture::{Expected, Outside};
use cluster::Cluster;
use facts::{Facts, Object, PodRef};
use ruleset::Plan;
use rundir::pods::{ConflictReport, PodReport, PodsReport, RestoreReport, bounded};
use verification::{DataPlaneMode, UnverifiableReason, VerificationState};

use crate::sidecars::Sidecars;
use crate::verification::{PodVerification, PodVerifier, RepairResult};

/// Knows what is said.
pub(crate) struct PodsReporter {
    pub(crate) cluster: Cluster,
    pub(crate) sidecars: Arc<Sidecars>,
    pub(crate) verifier: Arc<PodVerifier>,
}

impl PodsReporter {
    /// All pods of this node that have not ended.
    pub(crate) fn report(&self) -> PodsReport {
        let verified = self.verifier.pods();
        let mut verified: HashMap<String, PodVerification> =
            verified.into_iter().map(|pod| (pod.pod.uid.clone(), pod)).collect();
        let pods = self.facts().into_iter().map(|facts| {
            let mut report = self.decided(&facts);
            if let Some(verification) = verified.remove(&report.uid) {
                take(&mut report, verification);
            }
            report
        });
        let mut pods: Vec<PodReport> = pods.collect();
        // Pods that the verification knows and no watch any more: their namespaces are there still.
        pods.extend(verified.into_values().map(|verification| {
            let PodRef { namespace, name, uid } = verification.pod.clone();
            let mut report = PodReport { namespace, name, uid, ..PodReport::default() };
            take(&mut report, verification);
            report
        }));
        self.add_conflicts(&mut pods);
        pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        PodsReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: seconds(SystemTime::now()),
            synced: self.cluster.state().synced,
            interval: self.verifier.interval().as_secs_f64(),
            pods,
        }
    }

    /// The same after each pod that should be captured was looked at.
    pub(crate) async fn fresh(&self) -> PodsReport {
        // What is known of a pod whose look has failed is in its state.
        self.verifier.check_all_now().await;
        self.report()
    }

    /// One repair of a pod, now; nothing where the pod is not one that should be captured.
    pub(crate) async fn restore(&self, uid: &str) -> Option<RestoreReport> {
        let before = self.verifier.check_now(uid).await?;
        let differed = bounded(&before.differences);
        let (repaired, problem) = match self.verifier.restore(&before.pod).await? {
            Ok(RepairResult::PutRight) => (true, String::new()),
            Ok(RepairResult::WasRight) => (false, String::new()),
            Ok(RepairResult::Left) => {
                (false, "the agent leaves it as it is now; its log says why".to_owned())
            }
            Err(failure) => (false, failure.text),
        };
        let _ = self.verifier.check_now(uid).await;
        Some(RestoreReport { repaired, differed, problem })
    }

    fn facts(&self) -> Vec<Facts> {
        let index = self.cluster.index();
        let alive = index.pods().filter(|pod| !pod.is_terminal());
        let facts =
            |pod: &Arc<Object>| Facts { pod: pod.clone(), namespace_labels: index.labels(pod.namespace()) };
        alive.map(facts).collect()
    }

    /// Adds the conflicts that are known. One that was found after the state was read takes "verified" back.
    fn add_conflicts(&self, pods: &mut [PodReport]) {
        let mut known: HashMap<String, Vec<ConflictReport>> = HashMap::new();
        for conflict in self.verifier.known_conflicts().report().conflicts {
            if let Some(pod) = &conflict.pod {
                known.entry(pod.uid.clone()).or_default().push(conflict);
            }
        }
        for report in pods {
            let Some(conflicts) = known.get(&report.uid) else { continue };
            let is_bad = report.note_conflicts(conflicts);
            if is_bad && report.state == VerificationState::Verified.label() {
                report.state =
                    VerificationState::Unverifiable(UnverifiableReason::Conflict).label().to_owned();
                report.reason = UnverifiableReason::Conflict.label().to_owned();
            }
        }
    }

    /// The pod and what is decided about it.
    fn decided(&self, facts: &Facts) -> PodReport {
        let PodRef { namespace, name, uid } = facts.pod.pod_ref();
        let labels = facts.pod.labels();
        let addresses = facts.pod.ips();
        let mut report = PodReport { namespace, name, uid, labels, addresses, ..PodReport::default() };
        let Some(expected) = self.sidecars.expected(facts) else {
            report.wanted = "unknown".to_owned();
            report.problem = "the API server's object of it is cut off".to_owned();
            return report;
        };
        let mut decide = |wanted: &str, row: &str, text: String| {
            report.wanted = wanted.to_owned();
            report.decided_by = row.to_owned();
            report.decision = text;
        };
        match &*expected {
            Expected::Captured(settings) => {
                decide("sidecar", "sidecar", "captured through its sidecar".to_owned());
                report.mode = match settings.mode {
                    CaptureMode::Redirect => "REDIRECT",
                    CaptureMode::Tproxy => "TPROXY",
                }
                .to_owned();
            }
            Expected::Outside(Outside::Ambient) => {
                decide("ambient", "ambient", "captured through the node's ztunnel".to_owned());
                report.mode = "AMBIENT".to_owned();
            }
            Expected::Unusable(error) => {
                decide("unknown", "settings-invalid", "its annotations cannot be used".to_owned());
                report.problem = error.to_string();
            }
            Expected::Outside(Outside::Foreign) => {
                let reason = capture::decide::Reason::IstioInitPresent;
                decide("none", reason.name(), reason.text().to_owned());
            }
            Expected::Outside(Outside::Skip(skip)) => decide("none", skip.reason.name(), skip.text()),
            Expected::Outside(Outside::NotInjected(label)) => report.note_not_injected(label),
        }
        report
    }
}

/// Adds what the verification knows.
fn take(report: &mut PodReport, verification: PodVerification) {
    let PodVerification { mode, state, last_verified, differences, culprit, problem, .. } = verification;
    report.wanted = mode.label().to_owned();
    report.state = state.label().to_owned();
    report.reason = state.reason().map_or("", |reason| reason.label()).to_owned();
    report.last_verified = last_verified.map(seconds);
    report.drift = bounded(differences);
    report.culprit = culprit.map(|culprit| culprit.to_string()).unwrap_or_default();
    // What the decision has said of a pod stays where the verification has nothing to say.
    if let Some(problem) = problem {
        report.problem = problem;
    }
    if let Some(netns) = verification.netns {
        report.inode = Some(netns.id().ino);
        report.netns = netns.path().display().to_string();
    }
    report.backend =
        verification.plan.as_deref().map(|plan: &Plan| plan.backend.to_string()).unwrap_or_default();
    report.listening = verification.missing_listeners.as_ref().map(Vec::is_empty);
    if let Some(missing) = verification.missing_listeners.filter(|_| state == VerificationState::Verified) {
        report.note_missing_listeners(&missing);
    }
    if mode == DataPlaneMode::Ambient {
        let is_known = !matches!(state, VerificationState::Starting | VerificationState::Unverifiable(_));
        report.acknowledged = is_known.then_some(state != VerificationState::Unacknowledged);
    }
}

/// Since 1970.
pub(crate) fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_verification_does_not_know_is_not_said() {
        let known = PodVerification {
            pod: PodRef::named("shop", "web"),
            mode: DataPlaneMode::Sidecar,
            state: VerificationState::Verified,
            last_verified: Some(SystemTime::now()),
            drift: Vec::new(),
            differences: Vec::new(),
            is_without_rules: false,
            culprit: None,
            problem: None,
            missing_listeners: None,
            conflicts: 0,
            netns: None,
            plan: None,
        };
        let decided = || PodReport { problem: "its annotations".to_owned(), ..PodReport::default() };
        let taken = |mut report: PodReport, known: &PodVerification| {
            take(&mut report, known.clone());
            (report.listening, report.problem)
        };
        assert_eq!(
            taken(decided(), &known),
            (None, "its annotations".to_owned()),
            "nobody asked who listens"
        );
        let told = PodVerification { problem: Some("gone".to_owned()), ..known.clone() };
        assert_eq!(taken(decided(), &told), (None, "gone".to_owned()));
        let asked = PodVerification { missing_listeners: Some(Vec::new()), ..known.clone() };
        assert_eq!(taken(PodReport::default(), &asked), (Some(true), String::new()));
        let missing = PodVerification { missing_listeners: Some(vec![15006]), ..known };
        let (listening, problem) = taken(PodReport::default(), &missing);
        assert!(listening == Some(false) && problem.contains("nobody listens on 15006"), "{problem}");
    }
}
