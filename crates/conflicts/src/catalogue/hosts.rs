//! What else the node's namespace has.

use ruleset::listed::ListedAct;
use ruleset::{Base, ChainKind, Hook};

use super::Found;
use super::view::NetnsView;
use crate::{Conflict, ConflictId, ConflictPlace, Severity};

/// The chain in which upstream's agent has its rules of the node.
const UPSTREAM: &str = "ISTIO_POSTRT";
/// What the names of our sets begin with.
const SETS: &str = "istio-inpod-probes";
/// The table of kube-proxy in its nftables mode.
const KUBE_PROXY: &str = "kube-proxy";
/// The interface of NodeLocal DNSCache.
const DNS_CACHE: &str = "nodelocaldns";

pub(super) fn find(view: &NetnsView<'_>, found: &mut Found) {
    dns_cache(view, found);
    kube_proxy(view, found);
    other_agent(view, found);
}

fn dns_cache(view: &NetnsView<'_>, found: &mut Found) {
    let link = view.observed.links.iter().any(|link| link.name == DNS_CACHE);
    let for_cache = |act: &ListedAct| *act == ListedAct::Notrack;
    let rule = view
        .foreign_rules()
        .find(|(.., rule)| rule.acts.iter().any(for_cache) && rule.to_string().contains("169.254.20.10"));
    let evidence = match rule {
        Some((table, chain, rule)) => format!("{} {}: {rule}", table.name, chain.name),
        None if link => format!("interface {DNS_CACHE}"),
        None => return,
    };
    found.add(Conflict::of_setting(
        ConflictId::H7,
        Severity::Info,
        evidence,
        "pods ask a DNS cache of the node; what the proxy captures of DNS it asks that cache itself",
        "nothing",
    ));
}

/// Both are at one priority, for different packets.
fn kube_proxy(view: &NetnsView<'_>, found: &mut Found) {
    let at_ours = |base: Base| base.kind == ChainKind::Nat && base.hook == Hook::Postrouting;
    let of_kube_proxy = view.chains().filter(|(table, _)| table.name.split(' ').nth(1) == Some(KUBE_PROXY));
    for (table, chain) in of_kube_proxy {
        let Some(base) = chain.base.filter(|base| at_ours(*base)) else { continue };
        found.add(Conflict {
            place: ConflictPlace::of_chain(table, chain, base),
            ..Conflict::of_setting(
                ConflictId::H10,
                Severity::Info,
                format!("chain {} of table {}", chain.name, table.name),
                "it is where ours is; it masquerades packets that kube-proxy has marked, and probes have no such mark",
                "nothing",
            )
        });
    }
}

/// Rules of another agent of Istio, or of an older one.
fn other_agent(view: &NetnsView<'_>, found: &mut Found) {
    for (table, chain, rule) in view.foreign_rules() {
        let evidence = || format!("{} {}: {rule}", table.name, chain.name);
        if chain.name == UPSTREAM {
            found.add(Conflict::of_setting(
                ConflictId::H14,
                Severity::Error,
                evidence(),
                "another agent of Istio works on this node, or has left its rules: two agents undo what the other does",
                "remove the other agent; what it has left goes by `iptables -t nat -F ISTIO_POSTRT`",
            ));
        } else if rule.to_string().contains(SETS) {
            found.add(Conflict::warning(
                ConflictId::H11,
                evidence(),
                "a rule that is not ours asks our set of pods",
                "remove the rule, if the agent that made it is gone",
            ));
        }
    }
}
