//! The verdict on one connection, as it is printed.

use std::fmt::Write as _;
use std::net::IpAddr;

use policy::{
    FlowRoute, Ground, Judgement, PolicyFlow, PolicyName, PolicyWorld as _, RuleMiss, RuleTerms, Traffic,
    TrafficDirection, World as _, rule_misses, verdict,
};
use serde::Serialize;

use super::end::named;
use super::held::KernelVerdict;
use super::source::KnownCluster;
use crate::output::{Colour, paint};

/// A connection and what becomes of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct JudgedConnection {
    source: IpAddr,
    /// The pod that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_pod: Option<String>,
    destination: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_pod: Option<String>,
    /// `TCP`, `UDP`, `SCTP`, or `other` for what has no ports.
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// `direct`, `service` or `hbone`.
    route: &'static str,
    pub(super) allowed: bool,
    pub(super) egress: JudgedEnd,
    pub(super) ingress: JudgedEnd,
    /// What the kernel's rules do to it, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<KernelVerdict>,
}

/// What policies say at one end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct JudgedEnd {
    allowed: bool,
    /// Whether the policies of this end are not known here: it counts as allowed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) unknown: bool,
    /// A word for why.
    reason: &'static str,
    /// The same for people.
    text: String,
    /// The policies that select the pod.
    selecting: Vec<String>,
    /// The rules that decide, by the fields of their policies.
    rules: Vec<String>,
    /// The rules that handed it on before, such as the row of a tenant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    handed_on: Vec<String>,
    /// Where it is denied: policies, and what of their rules fails.
    missed: Vec<MissedReport>,
    /// What would deny it, and is only tried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried_out: Option<String>,
    /// The rule that comes nearest.
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<String>,
}

/// A rule that does not match; a policy without one that has no rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct MissedReport {
    policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// `peer`, `port`, `peer and port`, or empty.
    failed: &'static str,
    peers: String,
    ports: String,
}

impl JudgedConnection {
    pub(super) fn of(known: &KnownCluster, flow: &PolicyFlow) -> Self {
        let verdict = verdict(&known.world, flow);
        let end = |direction, judgement: &Judgement, address| {
            JudgedEnd::of(known, flow, direction, judgement, address)
        };
        let egress = end(TrafficDirection::Egress, &verdict.egress, flow.source);
        let ingress = end(TrafficDirection::Ingress, &verdict.ingress, flow.destination);
        let pod = |address| {
            let pod = known.world.pod_at(address).filter(|pod| !pod.is_nameless());
            pod.map(ToString::to_string)
        };
        let (protocol, port) = match flow.traffic {
            Traffic::Port(protocol, port) => (protocol.name(), Some(port)),
            Traffic::Portless => ("other", None),
        };
        Self {
            source: flow.source,
            source_pod: pod(flow.source),
            destination: flow.destination,
            destination_pod: pod(flow.destination),
            protocol,
            port,
            route: match flow.route {
                FlowRoute::Direct => "direct",
                FlowRoute::Service => "service",
                FlowRoute::Tunnel => "hbone",
            },
            allowed: verdict.is_allowed(),
            egress,
            ingress,
            kernel: None,
        }
    }

    /// Whether the verdict depends on what is not known.
    pub(super) fn is_unsure(&self) -> bool {
        self.allowed && (self.egress.unknown || self.ingress.unknown)
    }

    /// `allowed: shop/web -> shop/db TCP 5432 (10.0.1.5 -> 10.0.1.6)`.
    pub(super) fn line(&self) -> String {
        let Self { source, source_pod, destination, destination_pod, protocol, port, route, .. } = self;
        let name =
            |pod: &Option<String>, address: &IpAddr| pod.clone().unwrap_or_else(|| address.to_string());
        let what = port.map_or_else(|| "without ports".to_owned(), |port| format!("{protocol} {port}"));
        let way = match *route {
            "service" => ", by a Service",
            "hbone" => ", through HBONE",
            _ => "",
        };
        let both = if source_pod.is_some() || destination_pod.is_some() {
            format!(" ({source} -> {destination})")
        } else {
            String::new()
        };
        let (from, to) = (name(source_pod, source), name(destination_pod, destination));
        format!("{}: {from} -> {to} {what}{way}{both}\n", word(self.allowed))
    }

    /// Both ends, and what of a denial's rules fails.
    pub(super) fn text(&self) -> String {
        let kernel = self.kernel.as_ref().map(KernelVerdict::line).unwrap_or_default();
        self.line() + &self.egress.paragraph("egress") + &self.ingress.paragraph("ingress") + &kernel
    }
}

pub(super) fn word(allowed: bool) -> String {
    if allowed { paint("allowed", Colour::Green) } else { paint("denied", Colour::Red) }
}

impl JudgedEnd {
    fn of(
        known: &KnownCluster,
        flow: &PolicyFlow,
        direction: TrafficDirection,
        judgement: &Judgement,
        address: IpAddr,
    ) -> Self {
        let Judgement { selecting, ground, audited, handed_on, tried_out } = judgement;
        let unknown = is_unknown(known, address) && judgement.is_allowed();
        let missed = if judgement.is_allowed() {
            Vec::new()
        } else {
            let terms = known.world.policies().filter(|policy| selecting.contains(&policy.name));
            let ends = (flow.source, flow.destination, flow.traffic);
            rule_misses(&known.world, direction, terms, ends)
        };
        let nearest = missed.iter().min_by_key(|miss| miss.missed).map(ToString::to_string);
        let text = match ground {
            _ if unknown => format!("the policies of {} are not known here", named(known, address)),
            Ground::NotAPod => format!("{address} is no pod that policies are about"),
            Ground::NotIsolated => format!("no policy selects {}", named(known, address)),
            Ground::NoRuleMatched => {
                let count = selecting.len();
                let policies =
                    if count == 1 { "the policy that selects" } else { "the policies that select" };
                format!("no rule matches of {policies} {}", named(known, address))
            }
            ground => ground.to_string(),
        };
        Self {
            allowed: judgement.is_allowed(),
            unknown,
            reason: if unknown { "unknown" } else { ground.word() },
            text,
            selecting: selecting.iter().map(ToString::to_string).collect(),
            rules: ground.rules().iter().map(ToString::to_string).collect(),
            handed_on: handed_on.iter().map(ToString::to_string).collect(),
            missed: if judgement.is_allowed() {
                Vec::new()
            } else {
                MissedReport::all(known, direction, selecting, &missed)
            },
            tried_out: audited
                .as_ref()
                .map(ToString::to_string)
                .or_else(|| tried_out.first().map(|policy| format!("the isolation of {policy}"))),
            nearest,
        }
    }

    fn paragraph(&self, direction: &str) -> String {
        let Self { allowed, text, handed_on, missed, tried_out, nearest, .. } = self;
        let mut out = format!("  {direction:<8} {}: {text}\n", word(*allowed));
        for rule in handed_on {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "    handed on: by {rule}");
        }
        for MissedReport { policy, rule, failed, peers, ports } in missed {
            // Writing to a String cannot fail.
            let _ = match rule {
                None => writeln!(out, "    {policy}: it has no rule"),
                Some(rule) => writeln!(
                    out,
                    "    {policy} {rule}: {failed} failed\n      peers: {peers}\n      ports: {ports}"
                ),
            };
        }
        if let Some(rule) = tried_out {
            let _ = writeln!(out, "    tried out: {rule} would deny it");
        }
        if let Some(nearest) = nearest {
            let _ = writeln!(out, "    nearest: {nearest}");
        }
        out
    }
}

/// Whether this end may be a pod of which policies are not known.
fn is_unknown(known: &KnownCluster, address: IpAddr) -> bool {
    let is_node = || known.world.nodes().any(|(_, addresses)| addresses.contains(&address));
    match known.world.pod_at(address) {
        Some(pod) => pod.is_nameless(),
        None => !known.knows_all && !is_node(),
    }
}

impl MissedReport {
    /// Each policy that selects the pod, with its rules that fail.
    fn all(
        known: &KnownCluster,
        direction: TrafficDirection,
        selecting: &[PolicyName],
        missed: &[RuleMiss],
    ) -> Vec<Self> {
        let mut found = Vec::new();
        for name in selecting {
            let terms = known.world.policies().find(|policy| policy.name == *name);
            let own = missed.iter().filter(|one| one.policy == *name);
            let before = found.len();
            for one in own {
                let rule = terms.and_then(|terms| terms.direction(direction).rules.get(one.rule));
                found.push(Self {
                    policy: name.to_string(),
                    rule: Some(format!("{direction}[{}]", one.rule)),
                    failed: one.missed.name(),
                    peers: rule.map(RuleTerms::peers_text).unwrap_or_default(),
                    ports: rule.map(RuleTerms::ports_text).unwrap_or_default(),
                });
            }
            let is_empty = terms.is_some_and(|terms| terms.direction(direction).rules.is_empty());
            if before == found.len() && is_empty {
                let (peers, ports) = (String::new(), String::new());
                found.push(Self { policy: name.to_string(), rule: None, failed: "", peers, ports });
            }
        }
        found
    }
}
