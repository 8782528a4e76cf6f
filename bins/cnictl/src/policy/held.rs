//! What the rules of policies that the kernel holds do to a connection, beside what the objects say.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use kernel::RuleStore as _;
use kernel::nft::{HeldTable, held};
use policy::compiled::{judge_at_node, node_plans};
use policy::{FlowRoute, PolicyFlow, World as _, verdict};
use ruleset::{Backend, Ruleset, TableKind};
use rundir::policy::EnforcedAt;
use serde::Serialize;

use super::judged::word;
use super::source::KnownCluster;
use crate::node::{in_host, iptables_of_the_node};
use crate::output::{Colour, paint};

/// The rules in the node's network namespace.
pub(super) struct KernelPolicies<'a> {
    known: &'a KnownCluster,
    node: &'a str,
    table: HeldPolicies,
}

enum HeldPolicies {
    Nftables(Box<HeldTable>),
    /// Only the other backend has some.
    Iptables,
    Nothing,
}

/// What they do to a connection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct KernelVerdict {
    /// `same`, `differs` or `unknown`.
    pub(super) comparison: &'static str,
    /// Whether the rules let it pass; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<bool>,
    /// The rule that decides, or why nothing can be said.
    text: String,
    /// Rules and sets of this table that no policy has: they may do anything.
    unread: Vec<String>,
}

// === impl KernelPolicies ===

impl<'a> KernelPolicies<'a> {
    /// Reads them, of this node.
    ///
    /// # Errors
    /// The kernel cannot be asked, or it is not known which node this is.
    pub(super) fn read(known: &'a KnownCluster) -> Result<Self> {
        let node = known.node.as_deref().context(
            "the snapshot has no pod of this node, so that there is nothing to compare the kernel's rules with",
        )?;
        let plans = node_plans(&known.world, node);
        let table =
            in_host(|host| look(host.inside(), &plans)).context("enter the node's network namespace")?;
        Ok(Self { known, node, table: table.context("read the rules of policies of this node")? })
    }

    /// What becomes of a connection, of all ends that the node judges.
    pub(super) fn judge(&self, flow: &PolicyFlow) -> KernelVerdict {
        let unknown = |text: &str| KernelVerdict {
            comparison: "unknown",
            allowed: None,
            text: text.to_owned(),
            unread: Vec::new(),
        };
        if flow.route == FlowRoute::Tunnel {
            return unknown("what is inside the tunnel is judged in the pod, and that is not read");
        }
        let said = verdict(&self.known.world, flow);
        let mut wanted = Vec::new();
        for (address, judgement) in [(flow.source, &said.egress), (flow.destination, &said.ingress)] {
            let pod = self.known.world.pod_at(address).filter(|pod| *pod.facts.node == *self.node);
            let Some(pod) = pod else { continue };
            // Without the agent each pod counts as one that is judged at the node.
            let point = self.known.points.get(&pod.to_string()).map(|at| at.point).unwrap_or_default();
            match point {
                EnforcedAt::Node | EnforcedAt::Both => wanted.push(judgement.is_allowed()),
                EnforcedAt::Pod => {
                    return unknown("an end is judged in its own network namespace, and that is not read");
                }
            }
        }
        if wanted.is_empty() {
            return unknown("no end is a pod of this node");
        }
        let wanted = wanted.into_iter().all(|allowed| allowed);
        let (allowed, text, unread) = match &self.table {
            HeldPolicies::Iptables => return unknown("the rules are iptables', which are not read"),
            HeldPolicies::Nothing => (true, "there are no rules of policies".to_owned(), Vec::new()),
            HeldPolicies::Nftables(held) => {
                let held_rules = (&held.rules, &held.contents);
                let found = judge_at_node(&self.known.world, self.node, held_rules, Backend::Nftables, flow);
                (found.is_allowed, found.decided_by, held.unread.clone())
            }
        };
        let comparison = match (allowed == wanted, unread.is_empty()) {
            (false, _) => "differs",
            (true, true) => "same",
            (true, false) => "unknown",
        };
        KernelVerdict { comparison, allowed: Some(allowed), text, unread }
    }
}

fn look(inside: &netns::Inside, plans: &[Ruleset]) -> Result<HeldPolicies> {
    if let Some(table) = held(inside, plans, TableKind::Mangle)? {
        return Ok(HeldPolicies::Nftables(Box::new(table)));
    }
    let has_others = iptables_of_the_node().exists(inside, plans.get(..1).unwrap_or_default())?;
    Ok(if has_others { HeldPolicies::Iptables } else { HeldPolicies::Nothing })
}

// === impl KernelVerdict ===

impl KernelVerdict {
    /// For people.
    pub(super) fn line(&self) -> String {
        let Self { comparison, allowed, text, unread } = self;
        let said = allowed.map_or_else(|| paint("unknown", Colour::Yellow), word);
        let how = match *comparison {
            "differs" => paint("  (differs from what the objects say)", Colour::Red),
            _ => String::new(),
        };
        let mut out = format!("  kernel   {said}: {text}{how}\n");
        for what in unread {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "    not of any policy: {what}");
        }
        out
    }
}
