//! What a verdict about a pod rests on: its namespace, and what is in it, read now.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;
use kernel::nft::Nftables;
use kernel::sockets::Sockets;
use kernel::watch::KeptSockets;
use kernel::{RuleStore, iptables::Iptables, route};
use netns::Inside;
use ruleset::Backend;
use serde::Serialize;

use super::listed::{attached, chain_text, of_plan};
use super::own::LookedPod;
use crate::output::columns;
use crate::subject::Captured;

/// Annotations that say something of the pod's capture.
const ANNOTATIONS: [&str; 2] = ["ambient.istio.io/redirection", "sidecar.istio.io/status"];

/// The evidence about one pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct PodEvidence {
    /// How its namespace was found; empty where it was not.
    netns: String,
    /// Addresses of the namespace.
    addresses: Vec<IpAddr>,
    /// Of nf_tables in the namespace: another number after each transaction, whoever made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    /// Chains of ours, and what of others leads to them.
    chains: Vec<ChainEvidence>,
    /// Each step of the plan's routing, and whether it is there.
    routing: Vec<RoutingEvidence>,
    /// Of the ports that connections are sent to, those on which somebody listens.
    listening: Vec<u16>,
    /// The others.
    not_listening: Vec<u16>,
    /// Annotations about capture, as far as the pod's object has them.
    annotations: BTreeMap<String, String>,
    /// What could not be looked at, and why.
    not_looked_at: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct ChainEvidence {
    table: String,
    chain: String,
    /// Where packets meet it; empty for one that others lead to.
    attached: String,
    rules: Vec<RuleEvidence>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct RuleEvidence {
    #[serde(skip_serializing_if = "Option::is_none")]
    handle: Option<u64>,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct RoutingEvidence {
    step: String,
    present: bool,
}

impl PodEvidence {
    /// Reads it; what cannot be read is said.
    pub(super) fn of(looked: &LookedPod) -> Self {
        let is_meant = |(key, _): &(&String, &String)| ANNOTATIONS.contains(&key.as_str());
        let annotations =
            looked.annotations.iter().filter(is_meant).map(|(key, value)| (key.clone(), value.clone()));
        let mut evidence = Self { annotations: annotations.collect(), ..Self::default() };
        let Some(place) = &looked.place else {
            evidence.not_looked_at.push(format!("its network namespace: {}", looked.report.problem));
            return evidence;
        };
        evidence.netns = place.how.clone();
        let read = place.netns.enter(|inside| evidence.read(inside, looked.captured.as_deref()));
        if let Err(error) = read.map_err(anyhow::Error::from).flatten() {
            evidence.not_looked_at.push(format!("its network namespace: {error:#}"));
        }
        match KeptSockets::open(&place.netns).and_then(|mut kept| kept.generation()) {
            Ok(generation) => evidence.generation = Some(generation),
            Err(error) => evidence.not_looked_at.push(format!("the generation: {}", fault::chain(&error))),
        }
        evidence
    }

    fn read(&mut self, inside: &Inside, captured: Option<&Captured>) -> Result<()> {
        self.addresses = route::addresses(inside)?;
        let Some(captured) = captured else { return Ok(()) };
        let ports = captured.listeners();
        self.listening = Sockets::open(inside)?.listening(&ports)?;
        self.not_listening = ports.into_iter().filter(|port| !self.listening.contains(port)).collect();
        let plan = &captured.plan;
        for step in &plan.routing {
            let present = !route::missing(inside, step)?;
            self.routing.push(RoutingEvidence { step: step.to_string(), present });
        }
        let iptables = Iptables::new();
        let store: &dyn RuleStore = match plan.backend {
            Backend::Nftables => &Nftables,
            Backend::Iptables => &iptables,
        };
        let listing = store.others(inside, &[])?;
        self.not_looked_at.extend(listing.notes);
        for table in of_plan(listing.tables, store, plan, &[]) {
            let chain = |chain: &ruleset::listed::ListedChain| ChainEvidence {
                table: table.name.clone(),
                chain: chain.name.clone(),
                attached: attached(chain),
                rules: chain.rules.iter().map(RuleEvidence::of).collect(),
            };
            self.chains.extend(table.chains.iter().map(chain));
        }
        Ok(())
    }

    /// For people.
    pub(super) fn text(&self, pod: &str) -> String {
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), text]);
        row("POD", pod.to_owned());
        row("NETNS", or_none(&self.netns));
        row("ADDRESSES", or_none(&list(&self.addresses)));
        let generation = self.generation.map_or_else(String::new, |number| number.to_string());
        row("GENERATION", or_none(&generation));
        row("LISTENING", or_none(&list(&self.listening)));
        if !self.not_listening.is_empty() {
            row("NOT LISTENING", list(&self.not_listening));
        }
        for RoutingEvidence { step, present } in &self.routing {
            row("ROUTING", format!("{step}: {}", if *present { "present" } else { "missing" }));
        }
        for (key, value) in &self.annotations {
            row("ANNOTATION", format!("{key}={value}"));
        }
        for ChainEvidence { table, chain, attached, rules } in &self.chains {
            row("CHAIN", format!("{table} {}", chain_text(chain, attached)));
            for RuleEvidence { handle, text } in rules {
                let handle = handle.map_or_else(String::new, |handle| format!("handle {handle}: "));
                row("", format!("{handle}{text}"));
            }
        }
        for gap in &self.not_looked_at {
            row("NOT LOOKED AT", gap.clone());
        }
        format!("\n{}", columns(&rows))
    }
}

impl RuleEvidence {
    fn of(rule: &ruleset::listed::ListedRule) -> Self {
        Self { handle: rule.handle, text: rule.to_string() }
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}
