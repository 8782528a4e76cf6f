//! Every Event that agents write: its reason, its type, what it is about, and what was done.

/// An Event as it may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventReason {
    /// `reason`.
    pub name: &'static str,
    /// Whether its type is `Warning`, or else `Normal`.
    pub warning: bool,
    /// Kinds of objects that it is written about.
    pub about: &'static [&'static str],
    /// `action`: what was done, or tried, when it happened.
    pub action: &'static str,
}

const POD: &[&str] = &["Pod"];
const NODE: &[&str] = &["Node"];

const fn warning(name: &'static str, about: &'static [&'static str], action: &'static str) -> EventReason {
    EventReason { name, warning: true, about, action }
}

const fn normal(name: &'static str, about: &'static [&'static str], action: &'static str) -> EventReason {
    EventReason { name, warning: false, about, action }
}

/// All of them, in the order of the documents.
pub const REASONS: [EventReason; 33] = [
    warning("StartedWithoutCapture", POD, "StartPod"),
    warning("StartedWithoutPlugin", POD, "StartPod"),
    warning("CaptureIncomplete", POD, "StartPod"),
    warning("AmbientEnrollmentFailed", POD, "Enroll"),
    warning("AmbientPartialCapture", POD, "Enroll"),
    warning("AmbientRemovalFailed", POD, "Remove"),
    warning("CaptureDrift", POD, "Verify"),
    normal("CaptureRestored", POD, "Repair"),
    warning("CaptureContended", POD, "Verify"),
    warning("CaptureUnverifiable", POD, "Verify"),
    warning("HostRulesRestored", NODE, "Repair"),
    warning("CaptureConflict", POD, "Verify"),
    warning("MeshNodeConflict", NODE, "Verify"),
    warning("CaptureSettingsInvalid", POD, "Update"),
    warning("CaptureChangeNeedsRestart", POD, "Update"),
    normal("CaptureUpdated", POD, "Update"),
    normal("CaptureRepaired", POD, "Repair"),
    warning("RepairImpossible", POD, "Repair"),
    warning("DeleteBrokenPod", POD, "Delete"),
    warning("LabelBrokenPod", POD, "Label"),
    warning("NetworkPolicyDenied", POD, "Deny"),
    warning("CrossTenantDenied", POD, "Deny"),
    warning("NetworkPolicyWeakPod", POD, "Enforce"),
    warning("NetworkPolicyTooLarge", POD, "Enforce"),
    warning("NetworkPolicyMixedService", POD, "Enforce"),
    warning("NetworkPolicyRulesRepaired", &["Pod", "Node"], "Repair"),
    warning("NetworkPolicySnapshot", NODE, "Enforce"),
    warning("NetworkPolicyInvalidEntries", &["NetworkPolicy"], "Enforce"),
    warning("TenantNamespaceConflict", &["NetworkTenant"], "Refuse"),
    normal("NodeReady", NODE, "Taint"),
    warning("NodeNotReadyForMesh", NODE, "Taint"),
    warning("PortTaken", POD, "Start"),
    warning("AnotherAgentOnNode", POD, "Start"),
];

/// The Event of this reason.
pub(super) fn of(reason: &str) -> Option<&'static EventReason> {
    REASONS.iter().find(|known| known.name == reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_tell_of_each_and_of_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (_, section) = text.split_once("\n## Events\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let told: Vec<String> = section
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').take(4).map(str::trim).collect::<Vec<_>>().join("|"))
            .collect();
        let known: Vec<String> = REASONS
            .iter()
            .map(|reason| {
                let kind = if reason.warning { "Warning" } else { "Normal" };
                format!("|`{}`|{kind}|{}", reason.name, reason.about.join(", "))
            })
            .collect();
        assert_eq!(told, known);
    }

    #[test]
    fn each_is_a_word_that_servers_take_and_there_once() {
        for reason in REASONS {
            let is_word = |text: &str| {
                text.len() <= 128
                    && text.starts_with(|first: char| first.is_ascii_uppercase())
                    && text.chars().all(|c| c.is_ascii_alphanumeric())
            };
            assert!(is_word(reason.name) && is_word(reason.action), "{reason:?}");
            assert_eq!(of(reason.name), Some(&reason), "it is there twice");
        }
    }
}
