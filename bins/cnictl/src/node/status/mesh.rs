//! The mesh on this node: ambient mode's options in force, and how many pods that should be captured are.

use std::collections::BTreeMap;

use rundir::AmbientOptions;
use rundir::pods::PodsReport;
use serde::Serialize;

use super::words::count;

/// How many pods should be captured, and how they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct VerificationCounts {
    /// Pods that should be captured.
    pub(super) expected: usize,
    /// Of these, the ones that are known to be.
    pub(super) verified: usize,
    /// The others, by state.
    pub(super) unverified: BTreeMap<String, usize>,
    /// Pods that ask for a sidecar and have none.
    pub(super) not_injected: usize,
}

impl VerificationCounts {
    pub(super) fn of(report: &PodsReport) -> Self {
        let mut counts = Self::default();
        for pod in &report.pods {
            match (pod.is_wanted(), &*pod.state) {
                (true, "verified") => counts.verified += 1,
                (true, "") => *counts.unverified.entry("unknown".to_owned()).or_default() += 1,
                (true, state) => *counts.unverified.entry(state.to_owned()).or_default() += 1,
                (false, _) => counts.not_injected += usize::from(pod.is_not_injected()),
            }
        }
        counts.expected = counts.verified + counts.unverified.values().sum::<usize>();
        counts
    }

    /// `12 of 14 pods; 1 drifted, 1 unverifiable; 1 pod not injected`
    pub(super) fn text(&self) -> String {
        let mut text = format!("{} of {}", self.verified, count(self.expected, "pod"));
        let states: Vec<String> =
            self.unverified.iter().map(|(state, number)| format!("{number} {state}")).collect();
        if !states.is_empty() {
            text += &format!("; {}", states.join(", "));
        }
        if self.not_injected > 0 {
            text += &format!("; {} not injected", count(self.not_injected, "pod"));
        }
        text
    }

    /// What is worth knowing.
    pub(super) fn warning(&self) -> Option<String> {
        // What has just started or leaves is no reason.
        let passing = |state: &str| matches!(state, "starting" | "draining");
        let bad: usize =
            self.unverified.iter().filter(|(state, _)| !passing(state)).map(|(_, number)| number).sum();
        let are = if bad == 1 { "is" } else { "are" };
        (bad > 0).then(|| {
            format!("{} that should be captured {are} not known to be; see cnictl verify", count(bad, "pod"))
        })
    }
}

/// Ambient mode in a line.
pub(super) fn ambient_text(options: Option<&AmbientOptions>) -> String {
    let Some(options) = options else { return "off, or not prepared yet".to_owned() };
    let AmbientOptions { backend, dns_capture, ipv6, system_namespace, .. } = options;
    let on = |is: bool| if is { "on" } else { "off" };
    format!(
        "on, backend {backend}, DNS capture {}, IPv6 {}, ztunnel in {system_namespace}",
        on(*dns_capture),
        on(*ipv6)
    )
}

#[cfg(test)]
mod tests {
    use rundir::pods::PodReport;

    use super::*;

    #[test]
    fn pods_are_counted_once_each() {
        let pod = |wanted: &str, decided_by: &str, state: &str| PodReport {
            wanted: wanted.to_owned(),
            decided_by: decided_by.to_owned(),
            state: state.to_owned(),
            ..PodReport::default()
        };
        let pods = vec![
            pod("sidecar", "sidecar", "verified"),
            pod("ambient", "ambient", "drifted"),
            pod("ambient", "ambient", "starting"),
            pod("none", "not-injected", ""),
            pod("none", "host-network", ""),
        ];
        let counts = VerificationCounts::of(&PodsReport { pods, ..PodsReport::default() });
        assert_eq!(counts.text(), "1 of 3 pods; 1 drifted, 1 starting; 1 pod not injected");
        assert_eq!(
            counts.warning().unwrap(),
            "1 pod that should be captured is not known to be; see cnictl verify"
        );
        assert_eq!(VerificationCounts::default().text(), "0 of 0 pods");
        assert_eq!(VerificationCounts::default().warning(), None);
    }
}
