//! STATUS: whether this node can start pods.
//!
//! A runtime that is told no makes the node not ready, and then no pod starts that is not in the node's own network. The node agent can be
//! such a pod, and it is the agent that brings the kubeconfig, the socket and every change of the configuration; after a reboot none of them
//! is there. So the answer is no only where it is proven that nothing a pod brings can help: the node has neither backend. With
//! `strict_status` it is no until everything is seen that a captured pod needs.
//!
//! Runtimes ask often (CRI-O every half second) and wait for the answer, so it comes in time whatever hangs, and leaves no line in the
//! run directory: what is wrong is in the answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cni::{FailurePolicy, PluginConf};
use kernel::Choice;
use kernel::nft::Support;
use ruleset::Backend;
use telemetry::Logger;

use crate::job;
use crate::plugin::{self, SharedBackends};
use crate::progress::Progress;
use crate::sources::Sources;
use crate::within::{Unfinished, within};

/// Longest look at the node. The whole call has to answer within 50 ms; its start and its end take some of them.
const LIMIT: Duration = Duration::from_millis(40);
/// The part of it that what pods' facts come from may take.
const FACTS_LIMIT: Duration = Duration::from_millis(25);

const NO_NAT: &str = "the kernel has no nf_tables nat for both families";

/// What a look at the node needs.
pub(crate) struct StatusLook {
    pub(crate) conf: PluginConf,
    pub(crate) backends: Arc<SharedBackends>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) log: Logger,
}

impl StatusLook {
    /// Why pods cannot be started, if that is so.
    pub(crate) fn obstacle(self) -> Option<String> {
        let strict = self.conf.strict_status;
        if !strict && !self.needs_node_backend() {
            return None;
        }
        let end = Instant::now() + LIMIT;
        let look = Arc::new(self);
        let of_facts = look.clone();
        match if strict { within("facts", FACTS_LIMIT, move || of_facts.facts()) } else { Ok(Ok(())) } {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => return Some(cause),
            Err(Unfinished::Thread(error)) => {
                return Some(format!("start a thread: {error}; the node is out of processes or memory"));
            }
            Err(Unfinished::Late) => {
                let limit = FACTS_LIMIT.as_millis();
                return Some(format!("the sources of pods' facts could not be read within {limit} ms"));
            }
        }
        let backends = move || if strict { look.chosen_backend() } else { look.any_backend() };
        // A kernel in which others load rules for seconds has lost nothing, so having no answer is no obstacle.
        within("backends", end.saturating_duration_since(Instant::now()), backends).ok()?.err()
    }

    /// Whether an ADD can fail for want of a backend of the node. In ambient mode the agent sets pods up, with the programs of its own image.
    fn needs_node_backend(&self) -> bool {
        self.conf.capture && self.conf.failure_policy == FailurePolicy::Closed && !self.conf.ambient_enabled
    }

    /// Whether a sidecar's facts can be had, as far as it can be told without asking anything outside this machine.
    fn facts(&self) -> Result<(), String> {
        job::node_settings().map_err(|error| error.to_string())?;
        let sources = Sources::new(&self.conf, &self.log, &self.progress);
        sources.ready().map_err(|error| error.to_string())
    }

    fn chosen_backend(&self) -> Result<(), String> {
        match plugin::choice(&self.conf) {
            Choice::Only(Backend::Nftables) => all_of_nftables(nftables()?),
            Choice::Only(Backend::Iptables) => self.iptables(nftables().ok()),
            Choice::Auto => {
                let support = nftables();
                support.clone().and_then(all_of_nftables).or_else(|no_nftables| {
                    self.iptables(support.ok())
                        .map_err(|no_iptables| format!("{no_nftables}, and {no_iptables}"))
                })
            }
        }
    }

    /// Fails where both backends are missing, for certain. Which one is chosen does not count, as the agent may write another one.
    fn any_backend(&self) -> Result<(), String> {
        // First, as it asks nothing of the kernel.
        if self.backends.iptables.available_without_nftables().is_ok() {
            return Ok(());
        }
        match nftables() {
            Ok(support) if !support.redirect => {
                self.iptables(Some(support)).map_err(|no_iptables| format!("{NO_NAT}, and {no_iptables}"))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether programs are there that can work on a kernel with this nf_tables, as far as it is known.
    fn iptables(&self, support: Option<Support>) -> Result<(), String> {
        let iptables = &self.backends.iptables;
        let found = support.map_or_else(|| iptables.available(), |support| iptables.usable_with(support));
        found.map_err(|error| fault::chain(&error))
    }
}

fn all_of_nftables(support: Support) -> Result<(), String> {
    match support {
        Support { redirect: true, tproxy: true, .. } => Ok(()),
        Support { redirect: false, .. } => Err(NO_NAT.to_owned()),
        Support { tproxy: false, .. } => Err("the kernel has no nf_tables tproxy".to_owned()),
    }
}

fn nftables() -> Result<Support, String> {
    let inside = netns::Inside::of_calling_thread().map_err(|error| fault::chain(&error))?;
    kernel::nft::probe(&inside).map_err(|error| fault::chain(&error))
}
