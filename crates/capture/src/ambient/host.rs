//! The rules in the node's own namespace: probes get a source address by which a pod can tell them.

use std::net::IpAddr;

use ruleset::{
    Action, Backend, Chain, Hook, KeyType, KnownChain, Match, Plan, Rule, Ruleset, Set, Table, TableKind,
};

use super::{NodeOptions, OWNER, base, family_of, regular, tcp};

/// The set of the IPv4 addresses of the node's pods in the mesh.
pub const PROBES_V4: &str = "istio-inpod-probes-v4";
/// The set of their IPv6 addresses.
pub const PROBES_V6: &str = "istio-inpod-probes-v6";
/// The comment of both sets in nf_tables.
pub const SET_COMMENT: &str = "UUID of the pods that are part of ambient mesh";

const POSTROUTING: &str = "istio-postrouting";

const KNOWN_CHAINS: &[KnownChain] = &[KnownChain::named(TableKind::Nat, POSTROUTING)];

/// By what a probe is told from connections that the node only passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProbeSender {
    /// A process of the node sent it, whichever.
    #[default]
    AnySocket,
    /// A process of this user sent it: kubelet's, as upstream's nf_tables rules have it. iptables looks for any process all the
    /// same.
    Uid(u32),
}

/// The plan for the node's own namespace. The members of the sets are no part of it; with iptables the sets must be there before
/// the rules.
#[must_use]
pub fn plan_host(node: &NodeOptions, sender: ProbeSender, backend: Backend) -> Plan {
    let families = || node.families().map(|own| own.probe);
    let rules: Vec<Rule> = families().map(|probe| probe_source(probe, sender, backend)).collect();
    let sets = families().map(|probe| Set {
        commented: true,
        comment: SET_COMMENT.into(),
        ..Set::kept(set_of(probe), KeyType::Address(family_of(probe)))
    });
    let nat = Table { kind: TableKind::Nat, sets: sets.collect(), chains: chains(rules, backend) };
    let rules = Ruleset {
        owner: OWNER.into(),
        known_chains: KNOWN_CHAINS.into(),
        ipv6: node.ipv6,
        tables: vec![nat],
    };
    Plan::of_layer(backend, rules)
}

/// In nf_tables the base chain is ours alone; in iptables others have rules there, and the first that changes the source wins.
fn chains(rules: Vec<Rule>, backend: Backend) -> Vec<Chain> {
    let base = |rules| base(TableKind::Nat, Hook::Postrouting, rules);
    match backend {
        Backend::Nftables => vec![base(rules)],
        Backend::Iptables => {
            let why = "before others' masquerading, which would give probes an address of the node";
            let jump = Rule::new(vec![], Action::Jump(POSTROUTING.into()), why);
            vec![Chain { leading: 1, ..base(vec![jump]) }, regular(POSTROUTING, rules)]
        }
    }
}

fn probe_source(probe: IpAddr, sender: ProbeSender, backend: Backend) -> Rule {
    let sender = match (sender, backend) {
        (ProbeSender::Uid(uid), Backend::Nftables) => Match::Uid { uid, not: false },
        (ProbeSender::AnySocket | ProbeSender::Uid(_), _) => Match::LocalSocket,
    };
    let keys = KeyType::Address(family_of(probe));
    let to = Match::DestinationIn { set: set_of(probe).into(), keys, not: false };
    Rule::new(
        vec![tcp(), sender, to],
        Action::Snat { to: probe },
        "what the node itself sends to a pod in the mesh, as kubelet its probes, is told by this source",
    )
}

fn set_of(probe: IpAddr) -> &'static str {
    if probe.is_ipv4() { PROBES_V4 } else { PROBES_V6 }
}
