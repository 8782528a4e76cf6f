//! The end: whether another agent is to follow, or everything is to be removed.

use cluster::daemonset::{DEFAULT_NAME, decide};
use cluster::{Outlook, OwnPod, WatchError, Writer};

use crate::config::Cleanup;
use crate::health::Notice;
use crate::run::Agent;

/// What it means that the plugin stays although no agent may follow.
const STAYS: &str = "the plugin stays and holds new pods back until an agent answers; if none is to follow, run cnictl uninstall on this node";

/// Whether to take everything off the node. Where the plugin stays, pods go on being captured: it asks the API server itself, or what this agent
/// knew last.
pub(crate) async fn is_to_clean_up(agent: &Agent) -> bool {
    let (clean, reason) = match (agent.config.cleanup, &agent.config.own_pod, &agent.writer) {
        (Cleanup::Always, ..) => (true, "cleanup-on-exit is always".to_owned()),
        (Cleanup::Never, ..) => (false, "cleanup-on-exit is never".to_owned()),
        (Cleanup::Auto, Some(own), Some(writer)) => ask(agent, own, writer).await,
        (Cleanup::Auto, ..) => (true, "there is no DaemonSet that could bring another agent".to_owned()),
    };
    let what = if clean { "taking the plugin off this node" } else { "leaving the plugin on this node" };
    agent.log.info(format!("{what}: {reason}"), &[]);
    clean
}

/// By what was seen, and by a last look at it.
async fn ask(agent: &Agent, own: &OwnPod, writer: &Writer) -> (bool, String) {
    let (seen, errors) = writer.look_again(&agent.cluster.seen(), &own.namespace).await;
    for error in &errors {
        agent.log.warn("the last look at the DaemonSet and the node decides nothing", &[("error", error)]);
    }
    let outlook = decide(&seen);
    let reason = format!("DaemonSet {}/{} {outlook}", own.namespace, seen.name);
    match outlook {
        // What was seen last stays true for this decision, but nobody has confirmed it.
        Outlook::Follows if errors.is_empty() => (false, reason),
        Outlook::Follows => (false, format!("{reason}, as it was seen last; {STAYS}")),
        Outlook::Unknown(_) => (false, format!("{reason}; {STAYS}")),
        Outlook::Deleted | Outlook::Absent | Outlook::Unwanted(_) => (true, reason),
    }
}

/// Tells people what becomes of this agent.
pub(crate) fn tell(agent: &Agent, outlook: &Outlook) {
    let Some(own) = &agent.config.own_pod else { return };
    let name = agent.cluster.seen().name;
    let text = format!("DaemonSet {}/{name} {outlook}", own.namespace);
    if outlook.is_end() {
        let text = format!("{text}; this agent takes everything off the node when it ends");
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
        "whether DaemonSet {}/{name} still wants this node cannot be seen: {error}; without it an end of this agent leaves everything",
        own.namespace
    );
    agent.health.notice(Notice::DaemonSet, &text);
}
