//! The end: whether another agent is to follow, or everything is to be removed.

mod machine;

use std::os::unix::process::CommandExt as _;

use cluster::daemonset::{DEFAULT_NAME, decide};
use cluster::{Outlook, OwnPod, WatchError, Writer};

use crate::config::CleanupAtEnd;
use crate::health::Notice;
use crate::node_lock::NodeLock;
use crate::run::Agent;

/// What it means that the plugin stays although no agent may follow.
const STAYS: &str = "the plugin stays and holds new pods back until an agent answers; if no agent will follow, run cnictl uninstall on this node";

/// What the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShutdownOutcome {
    /// A signal came, and everything stays.
    Leave,
    /// A signal came, and everything is removed.
    CleanUp,
    /// The DaemonSet was deleted; the signal is still to come.
    Deleted,
}

/// Waits until the deletion of the DaemonSet is seen, and another look does not take that back: one of the same name may have been made at once,
/// and a watch that comes back tells of both. Waits for ever where another agent waits for the end of this one: that one follows.
pub(crate) async fn is_deleted(agent: &Agent, lock: &NodeLock) {
    let (Some(own), Some(writer)) = (&agent.config.own_pod, &agent.own_set) else {
        return std::future::pending().await;
    };
    // The sender lives as long as the agent.
    let mut outlook = agent.outlook.subscribe();
    loop {
        let _ = outlook.wait_for(|outlook| *outlook == Some(Outlook::Deleted)).await;
        let (seen, _) = writer.look_again(&agent.cluster.seen(), own).await;
        if decide(&seen) == Outlook::Deleted && lock.next().await.is_none() {
            let reason = format!("DaemonSet {}/{} was deleted", own.namespace, seen.name);
            return agent.log.info(format!("taking the plugin off this node: {reason}"), &[]);
        }
        let _ = outlook.changed().await;
    }
}

/// Waits until a DaemonSet of the name is seen that is for this node.
pub(crate) async fn is_there_again(agent: &Agent) {
    let mut outlook = agent.outlook.subscribe();
    let _ = outlook.wait_for(|outlook| *outlook == Some(Outlook::Follows)).await;
}

/// The new agent that did not start.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct NotStarted(std::io::Error);

/// Becomes a new agent in the same process, so that the pod need not be restarted for it. Comes back only if that fails.
pub(crate) fn start_over(agent: &Agent) -> NotStarted {
    agent.log.warn("the DaemonSet is there again: this agent starts over and installs everything anew", &[]);
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    NotStarted(std::process::Command::new("/proc/self/exe").arg0(name).args(args).exec())
}

/// Whether a signal lets everything be taken off the node. Where the plugin stays, pods go on being captured: it asks the API server itself, or
/// what this agent knew last.
pub(crate) async fn outcome(agent: &Agent, lock: &NodeLock) -> ShutdownOutcome {
    let (clean, reason) =
        match (lock.next().await, agent.config.cleanup, &agent.config.own_pod, &agent.own_set) {
            (Some(next), ..) => (false, format!("another agent waits: {next}")),
            (_, CleanupAtEnd::Always, ..) => unless_machine_ends(agent, "cleanup-on-exit is always").await,
            (_, CleanupAtEnd::Never, ..) => (false, "cleanup-on-exit is never".to_owned()),
            (_, CleanupAtEnd::Auto, Some(own), Some(writer)) => ask(agent, own, writer).await,
            (_, CleanupAtEnd::Auto, ..) => {
                unless_machine_ends(agent, "there is no DaemonSet that could bring another agent").await
            }
        };
    let (outcome, what) = match clean {
        true => (ShutdownOutcome::CleanUp, "taking the plugin off this node"),
        false => (ShutdownOutcome::Leave, "leaving the plugin on this node"),
    };
    agent.log.info(format!("{what}: {reason}"), &[]);
    outcome
}

/// Whatever the options say: an agent comes with the machine's next start, and pods may be quicker.
async fn unless_machine_ends(agent: &Agent, reason: &str) -> (bool, String) {
    match machine::shuts_down(agent).await {
        Some(sign) => (false, format!("the machine is shutting down: {sign}")),
        None => (true, reason.to_owned()),
    }
}

/// By what was seen, and by a last look at it.
async fn ask(agent: &Agent, own: &OwnPod, writer: &Writer) -> (bool, String) {
    let (seen, errors) = writer.look_again(&agent.cluster.seen(), own).await;
    for error in &errors {
        agent.log.warn("the DaemonSet or the node could not be read before the end", &[("error", error)]);
    }
    let outlook = decide(&seen);
    let reason = format!("DaemonSet {}/{} {outlook}", own.namespace, seen.name);
    match outlook {
        // What was seen last stays true for this decision, but nobody has confirmed it.
        Outlook::Follows if errors.is_empty() => (false, reason),
        Outlook::Follows => (false, format!("{reason}, as it was seen last; {STAYS}")),
        Outlook::Stays(_) => (false, reason),
        Outlook::Unknown(_) => (false, format!("{reason}; {STAYS}")),
        Outlook::Deleted | Outlook::Absent | Outlook::Unwanted(_) => (true, reason),
    }
}

/// Tells people and the agent's life what becomes of this agent.
pub(crate) fn tell(agent: &Agent, outlook: &Outlook) {
    let Some(own) = &agent.config.own_pod else { return };
    agent.outlook.send_replace(Some(outlook.clone()));
    let name = agent.cluster.seen().name;
    let text = format!("DaemonSet {}/{name} {outlook}", own.namespace);
    if outlook.is_end() {
        let when = if *outlook == Outlook::Deleted { "now" } else { "when it ends" };
        let text = format!("{text}; this agent takes everything off the node {when}");
        if agent.health.notice(Notice::DaemonSet, &text) {
            agent.log.warn(text, &[]);
        }
    } else if agent.health.settled(Notice::DaemonSet) {
        agent.log.info(text, &[]);
    }
}

/// Tells people that the DaemonSet or the node may not be watched.
pub(crate) fn tell_refusal(agent: &Agent, error: &WatchError) {
    let Some(own) = &agent.config.own_pod else { return };
    if !matches!(error, WatchError::Api(error) if matches!(error.status(), Some(401 | 403))) {
        return;
    }
    let known = agent.cluster.seen().name;
    let name = if known.is_empty() { DEFAULT_NAME } else { &known };
    let text = format!(
        "this agent cannot see whether DaemonSet {}/{name} still covers this node, so it removes nothing when it ends: {error}",
        own.namespace
    );
    agent.health.notice(Notice::DaemonSet, &text);
}
