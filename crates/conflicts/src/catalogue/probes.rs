//! Probes of the node on their way to pods in the mesh.

use std::net::IpAddr;

use ruleset::Family;
use ruleset::listed::walk::FirstPacket;
use ruleset::listed::{address_of, number_of, state};

use super::Found;
use super::nat::resolution;
use super::view::{NetnsView, told};
use crate::follow::{BranchEnd, NetnsScene, PacketBranch, VerdictCause};
use crate::{Conflict, ConflictId, Severity};

/// A port that probes go to, and one that they come from.
const PROBE_PORT: u16 = 15_020;
const KUBELET_PORT: u16 = 41_233;
/// Chains in which networks keep their policies for pods, and whose they are.
const POLICIES: [(&str, &str); 6] = [
    ("cali-", "calico"),
    ("KUBE-ROUTER-", "kube-router"),
    ("KUBE-POD-FW-", "kube-router"),
    ("KUBE-NWPLCY-", "kube-router"),
    ("AWS-", "the VPC CNI"),
    ("CILIUM_", "cilium"),
];

pub(super) fn find(view: &NetnsView<'_>, found: &mut Found) {
    for source in &view.probe_sources {
        let family = Family::of_address(*source);
        // Without a pod there is no probe.
        if let Some(to) = view.observed.probed.iter().find(|to| Family::of_address(**to) == family) {
            Probe { view, source: *source, to: *to }.look(found);
        }
    }
}

/// A probe to a pod, whose source becomes one address.
struct Probe<'v, 'a> {
    view: &'v NetnsView<'a>,
    source: IpAddr,
    to: IpAddr,
}

impl<'a> Probe<'_, 'a> {
    fn look(&self, found: &mut Found) {
        // Rules of ours that do not work alone are drift, and no conflict.
        let ours = NetnsScene::new(self.view.ours());
        let (alone, _) = ours.branches(self.sent());
        if !alone.iter().all(|way| self.is_right(way)) {
            found
                .not_looked_at
                .push(format!("probes from {}: rules of ours do not give them this source", self.source));
            return;
        }
        let everything = NetnsScene::new(self.view.observed);
        for start in [self.sent(), self.answered()] {
            let (ways, _) = everything.branches(start);
            let certain = ways.len() == 1;
            ways.iter().filter_map(|way| self.judge(way, certain)).for_each(|conflict| found.add(conflict));
        }
    }

    /// An address of the node that the pod's is not.
    fn node(&self) -> IpAddr {
        self.view.addresses(Family::of_address(self.to)).next().unwrap_or(self.source)
    }

    /// What kubelet sends.
    fn sent<'b>(&self) -> PacketBranch<'b> {
        let uid = self.view.proxy.uids.first().copied().unwrap_or(0);
        let packet = self.view.sent(self.node(), (self.to, PROBE_PORT), (uid, 0));
        PacketBranch::begin(packet, (String::new(), self.to_pod()))
    }

    /// What the pod answers, as it is once its destination is the node's own again.
    fn answered<'b>(&self) -> PacketBranch<'b> {
        let packet = self.view.received(self.to, (self.node(), KUBELET_PORT));
        let packet = FirstPacket { source_port: PROBE_PORT, ..packet };
        let mut branch = PacketBranch::begin(packet, (self.to_pod(), String::new()));
        branch.state.connection.state = state::ESTABLISHED;
        branch.state.connection.reply = true;
        branch
    }

    /// The interface that leads to the pod.
    fn to_pod(&self) -> String {
        let kinds = ["veth", "netkit", "bridge"];
        let link = self.view.observed.links.iter().find(|link| kinds.contains(&&*link.kind));
        link.map_or_else(|| self.view.interface.clone(), |link| link.name.clone())
    }

    fn is_right(&self, way: &PacketBranch<'_>) -> bool {
        matches!(way.outcome, Some(BranchEnd::Left)) && way.state.packet.source == number_of(self.source)
    }

    fn judge(&self, way: &PacketBranch<'_>, certain: bool) -> Option<Conflict> {
        let severity = if certain { Severity::Error } else { Severity::Warning };
        match &way.outcome {
            Some(BranchEnd::Dropped(by)) => by.is_foreign().then(|| self.dropped(way, by, severity)),
            Some(BranchEnd::Unknown(by @ VerdictCause::Rule(_))) => {
                Some(self.dropped(way, by, Severity::Warning))
            }
            Some(BranchEnd::Left) if !self.is_right(way) => self.other_source(way, severity),
            _ => None,
        }
    }

    fn dropped(&self, way: &PacketBranch<'_>, by: &VerdictCause<'_>, severity: Severity) -> Conflict {
        let may = if severity == Severity::Error { "are" } else { "may be" };
        let affects = format!("probes from {} to pods in the mesh {may} dropped here", self.source);
        let conflict = Conflict::of_cause(ConflictId::H1, severity, by, affects, "");
        let policy = POLICIES.iter().find(|(prefix, _)| conflict.place.chain.starts_with(prefix));
        if let Some((_, whose)) = policy {
            let advice = format!("allow {} in the pods' network policies, as {whose} has them", self.source);
            return Conflict { id: ConflictId::H4, advice, ..conflict };
        }
        let rule = by.accept_before(&conflict.place, Family::of_address(self.to), &self.words(way));
        let advice = rule.map(|rule| format!("accept probes before it, to each pod of the node: {rule}"));
        Conflict { advice: advice.unwrap_or_default(), ..conflict }
    }

    /// What the missing rule asks for, as nft and as iptables write it.
    fn words(&self, way: &PacketBranch<'_>) -> (String, String) {
        let (to, source) = (self.to, self.source);
        let ip = if to.is_ipv4() { "ip" } else { "ip6" };
        match way.state.packet.owner {
            // Before ours have changed the source, only the pod's address tells a probe.
            Some(_) if way.state.packet.source != number_of(source) => {
                (format!("{ip} daddr {to} meta l4proto tcp"), format!("-d {to} -p tcp"))
            }
            Some(_) => (format!("{ip} saddr {source} meta l4proto tcp"), format!("-s {source} -p tcp")),
            None => (
                format!("{ip} saddr {to} ct state established"),
                format!("-s {to} -m conntrack --ctstate ESTABLISHED"),
            ),
        }
    }

    fn other_source(&self, way: &PacketBranch<'_>, severity: Severity) -> Option<Conflict> {
        let place = way.state.source_by.filter(|place| place.table.is_foreign(place.rule))?;
        let packet = &way.state.packet;
        let source = address_of(packet.source, packet.family);
        let affects = format!(
            "{} leaves as from {source}, or from its interface's address, and not from {}: pods cannot tell it from other connections",
            told(packet),
            self.source
        );
        let advice = "except TCP of the node itself to its pods from this rule";
        let conflict =
            Conflict::of_cause(ConflictId::H2, severity, &VerdictCause::Rule(place), affects, advice);
        Some(Conflict { resolution: resolution(self.view, &place), ..conflict })
    }
}
