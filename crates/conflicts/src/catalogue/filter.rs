//! Packets that others drop.

use std::cell::OnceCell;

use ruleset::{ChainKind, Family, Hook};

use super::Found;
use super::packets::{Escape, Hit, Hits};
use super::view::{NetnsView, told};
use crate::follow::{BranchEnd, NetnsScene, VerdictCause};
use crate::{Conflict, ConflictId, ConflictPlace, Severity};

pub(super) fn find(view: &NetnsView<'_>, hits: &Hits<'_>, found: &mut Found) {
    // A copy of everything that others have, which few namespaces need.
    let others = OnceCell::new();
    let is_meant = |hit: &Hit<'_>| {
        let others = NetnsScene::new(others.get_or_init(|| view.observed.without_ours()));
        let (ways, _) = others.branches(view.start(&hit.packet));
        ways.iter().all(|way| matches!(way.outcome, Some(BranchEnd::Dropped(_))))
    };
    for hit in &hits.all {
        for way in &hit.ways {
            match hit.escape(way) {
                // What is dropped without the mesh, too, is meant to be.
                Some(Escape::Dropped { by, after: true }) if !is_meant(hit) => found.add(after(hit, &by)),
                Some(Escape::Dropped { by, after: false }) => found.add(before(hit, &by)),
                Some(Escape::Unread(place)) if place.base.kind != ChainKind::Nat => {
                    found.add(unread(hit, &VerdictCause::Rule(place), way.is_taken_by_ours()));
                }
                _ => {}
            }
        }
    }
}

/// What ours led to the proxy is dropped.
fn after(hit: &Hit<'_>, by: &VerdictCause<'_>) -> Conflict {
    let affects = format!("{} is dropped on its way to port {}", told(&hit.packet), hit.port);
    let severity = hit.severity(Severity::Error);
    let conflict = Conflict::of_cause(ConflictId::P3, severity, by, affects, "");
    let words = words(hit, by.hook());
    let advice = match by.accept_before(&conflict.place, hit.packet.family, &words) {
        Some(rule) => format!("accept what goes to port {} before it: {rule}", hit.port),
        None => String::new(),
    };
    Conflict { advice, ..conflict }
}

/// What the missing rule asks for, as nft and as iptables write it.
fn words(hit: &Hit<'_>, hook: Option<Hook>) -> (String, String) {
    let protocol = if hit.packet.protocol == 17 { "udp" } else { "tcp" };
    // What the pod sent is on the loopback interface once it is redirected; an output chain still sees where it was going.
    let (nft, iptables) = match (hit.packet.owner, hook) {
        (Some(_), Some(Hook::Postrouting)) => ("oifname \"lo\" ", "-o lo "),
        (Some(_), Some(Hook::Prerouting | Hook::Input)) => ("iifname \"lo\" ", "-i lo "),
        _ => ("", ""),
    };
    let port = hit.port;
    (format!("{nft}{protocol} dport {port}"), format!("{iptables}-p {protocol} --dport {port}"))
}

/// It is dropped before ours see it, which may be meant.
fn before(hit: &Hit<'_>, by: &VerdictCause<'_>) -> Conflict {
    let affects = format!("{} is dropped before rules of ours see it", told(&hit.packet));
    let advice = "nothing if it is meant; the proxy does not see such connections, so its policies and metrics do not either";
    Conflict::of_cause(ConflictId::P4, Severity::Warning, by, affects, advice)
}

fn unread(hit: &Hit<'_>, by: &VerdictCause<'_>, after: bool) -> Conflict {
    let id = if after { ConflictId::P3 } else { ConflictId::P4 };
    let affects =
        format!("{} may not come to port {}: the rule could not be read", told(&hit.packet), hit.port);
    Conflict::of_cause(id, Severity::Warning, by, affects, "look at the rule with the program that made it")
}

impl VerdictCause<'_> {
    /// The command that puts an accept rule before it, in the notation of the table's own program, and the rule in the other one. `words`
    /// is what the rule asks for, as nft and as iptables write it.
    pub(super) fn accept_before(
        &self,
        place: &ConflictPlace,
        family: Family,
        (nft, iptables): &(String, String),
    ) -> Option<String> {
        let table = self.table()?;
        let name = table.name.split(" (").next().unwrap_or_default();
        let chain = &place.chain;
        let kind = name.split(' ').nth(1).unwrap_or_default();
        let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
        let own = match table.lister.is_iptables() {
            true => format!(
                "`{program} -t {kind} -I {chain} 1 {iptables} -j ACCEPT`, in nft's words `{nft} accept`"
            ),
            false => {
                format!(
                    "`nft insert rule {name} {chain} {nft} accept`, in iptables' words `{iptables} -j ACCEPT`"
                )
            }
        };
        Some(own)
    }
}
