//! Whether the plugin has what it loads rules with on this node: nf_tables in the kernel, or iptables on the node.
//!
//! The agent looks as far as it can: in a container it does not see the node's programs, and without CAP_NET_ADMIN the kernel does not answer. What
//! it cannot see, plugins tell when they fail for it. Only what is proven makes the agent unready.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use facts::Report;
use facts::exchange::Outcome;
use kernel::iptables::Iptables;
use kernel::nft::{self, Support};
use ruleset::Backend;
use telemetry::Scope;
use tokio::sync::Notify;

use crate::health::{Health, Part};

/// The longest that readiness waits for the first look: the kernel may be busy with rules of others.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// The pause between looks while something is missing.
const PAUSE: Duration = Duration::from_secs(5);
/// How long the word of a plugin counts. A runtime tries a pod again far more often than that.
const REPORT_COUNTS: Duration = Duration::from_secs(120);
/// What is missing of the kernel.
const NO_NFTABLES: &str = "the kernel has no nf_tables";
const NO_NAT: &str = "the kernel has no nf_tables nat for both families, which Linux has since 5.2";
const NO_MARKS: &str = "the kernel has no nf_tables route chains for both families or marks of connections, which Linux has since 5.2";

/// The node's backends, as far as they are known.
pub(crate) struct NodeBackend {
    health: Arc<Health>,
    log: Scope,
    /// Whether the node's programs are where this process looks for programs.
    sees_node: bool,
    reported: Mutex<Option<(Instant, String)>>,
    news: Notify,
}

/// What a look at the node found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// nf_tables does, or nothing says that it does not.
    Nftables,
    /// The reason why it is not nf_tables.
    Iptables(String),
    /// The reasons why it is neither.
    Neither(String),
}

impl NodeBackend {
    /// `host_root` is where the node's files are.
    pub(crate) fn new(health: Arc<Health>, log: Scope, host_root: &std::path::Path) -> Self {
        let sees_node = host_root == std::path::Path::new("/") || !host_root.exists();
        Self { health, log, sees_node, reported: Mutex::default(), news: Notify::new() }
    }

    /// Looks at the start, and again and again while something is missing.
    pub(crate) async fn live(self: Arc<Self>) {
        let mut told = None;
        loop {
            let sees_node = self.sees_node;
            let look = tokio::task::spawn_blocking(move || look(sees_node));
            let found = match tokio::time::timeout(FIRST_LOOK, look).await {
                Ok(Ok(found)) => found,
                // Nothing is proven.
                Ok(Err(_)) | Err(_) => Found::Nftables,
            };
            if told.as_ref() != Some(&found) {
                match &found {
                    Found::Nftables => {}
                    Found::Iptables(why) => {
                        let text = "pods get their rules by iptables, unless NATIVE_NFTABLES=true asks for nf_tables only";
                        self.log.info(text, &[("cause", why)]);
                    }
                    Found::Neither(why) => self.log.error(neither(why), &[]),
                }
            }
            let missing = match &found {
                Found::Neither(why) => Some(neither(why)),
                Found::Nftables | Found::Iptables(_) => self.last_report(),
            };
            told = Some(found);
            match missing {
                Some(missing) => {
                    self.health.pending(Part::Backend, &missing);
                    let _ = tokio::time::timeout(PAUSE, self.news.notified()).await;
                }
                None => {
                    self.health.ready(Part::Backend);
                    self.news.notified().await;
                }
            }
        }
    }

    /// Takes what a plugin says about its call.
    pub(crate) fn heard(&self, report: &Report) {
        let works = matches!(report.result, Outcome::Captured | Outcome::Incomplete);
        let mut reported = self.reported();
        if report.backend_missing {
            *reported = Some((Instant::now(), report.error.clone()));
        } else if works && report.operation == "add" && reported.is_some() {
            *reported = None;
        } else {
            return;
        }
        self.news.notify_one();
    }

    fn last_report(&self) -> Option<String> {
        let mut reported = self.reported();
        if reported.as_ref().is_some_and(|(at, _)| at.elapsed() > REPORT_COUNTS) {
            *reported = None;
        }
        reported
            .as_ref()
            .map(|(_, error)| format!("pods with a sidecar cannot be set up on this node: {error}"))
    }

    fn reported(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn neither(why: &str) -> String {
    format!("no pod can get rules on this node: {why}")
}

fn look(sees_node: bool) -> Found {
    match support() {
        Some(support) if !support.redirect => without_nat(support, sees_node.then(Iptables::new).as_ref()),
        _ => Found::Nftables,
    }
}

/// `None`: it cannot be asked.
fn support() -> Option<Support> {
    let inside = netns::Inside::of_calling_thread().ok()?;
    nft::probe(&inside).ok()
}

/// `iptables` is the node's, where it can be seen.
fn without_nat(support: Support, iptables: Option<&Iptables>) -> Found {
    let why = if support.tables { NO_NAT } else { NO_NFTABLES };
    match iptables.map_or(Ok(()), |iptables| iptables.usable_with(support)) {
        Ok(()) => Found::Iptables(why.to_owned()),
        Err(error) => Found::Neither(format!("{why}, and {}", kernel::chain_text(&error))),
    }
}

/// What ambient mode takes where the choice is left to the node, and why it is not nf_tables.
///
/// # Errors
/// Neither works: the reasons.
pub(crate) fn choose(
    inside: &netns::Inside,
    iptables: &Iptables,
) -> Result<(Backend, Option<String>), String> {
    // Where the kernel does not answer, setting up says why.
    let Ok(support) = nft::probe(inside) else { return Ok((Backend::Nftables, None)) };
    let why = match support {
        Support { redirect: true, marks: true, .. } => return Ok((Backend::Nftables, None)),
        Support { tables: false, .. } => NO_NFTABLES,
        Support { redirect: false, .. } => NO_NAT,
        Support { .. } => NO_MARKS,
    };
    match iptables.usable_with(support) {
        Ok(()) => Ok((Backend::Iptables, Some(why.to_owned()))),
        Err(error) => Err(format!("neither backend works here: {why}, and {}", kernel::chain_text(&error))),
    }
}
