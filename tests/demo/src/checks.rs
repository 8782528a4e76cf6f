//! CHECK: of pods as they are, of a pod that lost a rule, and after the repair.

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::connections::{ConnectionReport, Places, observe};
use crate::expectations::{Connection, Expected, From};
use crate::node::{ALONE, CONFLIST, Node};
use crate::pods::Pod;

/// The pod that loses a rule.
const VICTIM: &str = "web";

/// What was observed.
#[derive(Debug, Serialize)]
pub(crate) struct CheckReport {
    /// Pods whose CHECK passed after the ADD.
    pub(crate) passed: usize,
    /// The pod that lost a rule.
    pub(crate) pod: String,
    /// The rule, and where it was.
    pub(crate) deleted: String,
    /// A connection that the rule sent to the proxy, without it.
    pub(crate) without: ConnectionReport,
    /// What CHECK said then.
    pub(crate) message: String,
    /// The same connection after the next ADD.
    pub(crate) repaired: ConnectionReport,
    pub(crate) problems: Vec<String>,
}

/// Checks, breaks, checks, repairs, checks.
///
/// # Errors
/// A step could not be done.
pub(crate) fn run(node: &Node, places: &Places<'_>) -> Result<CheckReport> {
    let mut problems = Vec::new();
    let mut passed = 0;
    for pod in places.pods {
        match check(node, pod)? {
            None => passed += 1,
            Some(message) => {
                problems.push(format!("CHECK of {} has to pass: {message}", pod.case.full_name()));
            }
        }
    }
    let pod =
        places.pods.iter().find(|pod| pod.case.name == VICTIM).context("the pod to break is missing")?;
    let is_outbound = |c: &&Connection| c.from == From::App && c.expected == Expected::Outbound;
    let case =
        pod.case.connections.iter().find(is_outbound).context("the pod to break has no such connection")?;
    let (place, text) = observe(node, places, pod, case)?.rule.context("no rule captures the connection")?;

    node.backend.delete_rule(&pod.netns, &place)?;
    let deleted = format!("{} in chain {}", text, place.chain);
    let without = observe(node, places, pod, case)?;
    if without.captured {
        problems.push(format!(
            "without its rule a connection has to miss the proxy, it reached {}",
            without.reached
        ));
    }
    let message = check(node, pod)?.unwrap_or_default();
    if !message.contains(&place.chain) {
        problems.push(format!("CHECK has to fail and to name chain {}, it said: {message:?}", place.chain));
    }

    repair(node, pod)?;
    let repaired = observe(node, places, pod, case)?;
    problems.extend(repaired.problems.iter().map(|problem| format!("after the repair: {problem}")));
    if let Some(message) = check(node, pod)? {
        problems.push(format!("CHECK has to pass after the repair: {message}"));
    }
    Ok(CheckReport { passed, pod: pod.case.full_name(), deleted, without, message, repaired, problems })
}

/// Why CHECK failed, if it did.
fn check(node: &Node, pod: &Pod) -> Result<Option<String>> {
    let manifest = node.manifest(pod.case.namespace, pod.case.name);
    Ok(node.cnictl(&node.chain("check", CONFLIST, &manifest, "results"))?.problem)
}

/// ADD of `istio-cni` alone, because `bridge` refuses a second one; its result goes elsewhere, so that DEL finds the first.
fn repair(node: &Node, pod: &Pod) -> Result<()> {
    let manifest = node.manifest(pod.case.namespace, pod.case.name);
    let mut arguments = node.chain("add", ALONE, &manifest, "repair");
    arguments.extend(["--netns".to_owned(), pod.netns.path().display().to_string()]);
    let problem = node.cnictl(&arguments)?.problem;
    ensure!(problem.is_none(), "the ADD that repairs failed: {}", problem.unwrap_or_default());
    std::fs::remove_dir_all(node.path("repair")).context("remove the result of the repair")
}
