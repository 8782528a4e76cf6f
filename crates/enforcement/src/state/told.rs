//! What is told of what is known.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use cluster::news::ObjectKey;
use policy::index::PolicyEffect;
use policy::{
    PolicyFlow, PolicyPod as _, PolicyTerms, TUNNEL_PORT, Traffic, TrafficDirection, World as _, denies,
};
use rundir::denials::DenialRecord;

use super::{FollowStage, PolicyState, name_of, policy_name, world};
use crate::denials::{DenialBatch, join};
use crate::news::{PolicyCounts, PolicyNews};
use crate::world::ClusterWorld;

/// A pod that is older is not new to rules because it was just created.
const NEW_POD: Duration = Duration::from_secs(600);

impl PolicyState {
    /// Says whose packets were denied, and by which policies.
    pub(crate) fn denied(&self, batch: &DenialBatch) -> Vec<DenialRecord> {
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        let mut records = join(batch, &world, self.local.own_node(), (&self.index, &self.logged));
        let index = self.sources.cluster.index();
        let ends = records.iter_mut().map(|record| &mut record.connection);
        for end in ends.flat_map(|of| of.source.iter_mut().chain(&mut of.destination)) {
            let pod = index.pod(&end.namespace, &end.pod_name);
            // A successor of the same name has another address.
            let pod =
                pod.filter(|pod| end.ip.is_none_or(|ip| pod.ips().is_empty() || pod.ips().contains(&ip)));
            end.pod_uid = pod.and_then(|pod| pod.uid()).unwrap_or_default().to_owned();
        }
        records
    }

    /// Tells of entries that do not count, once for each generation of a policy.
    pub(super) fn note_refused(&mut self, key: &ObjectKey) {
        let policies = self.sources.policies.read();
        let policy = policies.get(&key.namespace, &key.name).filter(|policy| !policy.refused.is_empty());
        let Some(policy) = policy else {
            self.refused.remove(key);
            return;
        };
        let now = (policy.generation, policy.refused.count);
        if self.refused.insert(key.clone(), now) != Some(now) {
            let name = policy_name(&key.namespace, &key.name);
            let selects = self.index.classes().any(|class| class.policies.contains(&name));
            self.points.tell(PolicyNews::Refused { policy, selects });
        }
    }

    /// Counts what there is.
    pub(super) fn count(&self) {
        let refused = self.refused.values().map(|(_, entries)| entries).sum();
        self.points.tell(PolicyNews::Counted(&PolicyCounts::of(&self.index, refused, &self.points)));
    }

    /// Tells how long it took until a pod of the cluster is known to rules; `created` is when it was created.
    pub(super) fn tell_peer(&self, created: Option<u64>, effects: &[PolicyEffect]) {
        let gains = |effect: &PolicyEffect| {
            matches!(effect, PolicyEffect::SetGains(..) | PolicyEffect::SetAppears(..))
        };
        let age = created.and_then(cluster::time::since_digits).filter(|age| *age < NEW_POD);
        if let Some(age) = age.filter(|_| !self.behind && effects.iter().any(gains)) {
            self.points.tell(PolicyNews::PeerKnown(age));
        }
    }

    /// Tells between which addresses connections may be denied by now.
    pub(super) fn tell_narrowed(&self, effects: &[PolicyEffect]) {
        let mut addresses = BTreeSet::new();
        for effect in effects {
            match effect {
                PolicyEffect::PodChanges { addresses: its, classes, .. }
                    if classes.iter().next().is_some() =>
                {
                    addresses.extend(its);
                }
                PolicyEffect::ClassChanges(class) => {
                    let pods =
                        self.index.pods().filter(|(.., classes)| classes.iter().any(|its| its == class));
                    addresses.extend(pods.flat_map(|(_, facts, _)| facts.addresses.iter().copied()));
                }
                PolicyEffect::SetLoses(_, members) => {
                    let peers = self.sources.peers.read();
                    let world = world(&peers, &self.local, &self.namespaces);
                    // Connections of a pod that is gone end with it.
                    let there = members.iter().filter(|member| world.pod_at(member.address).is_some());
                    addresses.extend(there.map(|member| member.address));
                }
                _ => {}
            }
        }
        self.tell_of(addresses);
    }

    /// As [`Self::tell_narrowed`], after everything was compared.
    pub(super) fn tell_all_narrowed(&self) {
        let isolated = self.index.pods().filter(|(.., classes)| classes.iter().next().is_some());
        self.tell_of(isolated.flat_map(|(_, facts, _)| facts.addresses.iter().copied()).collect());
    }

    fn tell_of(&self, addresses: BTreeSet<IpAddr>) {
        if !addresses.is_empty() {
            let addresses: Vec<IpAddr> = addresses.into_iter().collect();
            self.points.tell(PolicyNews::Narrowed(&addresses));
        }
    }

    /// Which of these connections policies deny by now; `node` are the own node's addresses. What goes through the tunnel of ambient mode is judged
    /// inside, and what a pod sends to itself or its node to it is not denied.
    pub(crate) fn judge(&self, flows: &[PolicyFlow], node: &[IpAddr]) -> Vec<bool> {
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        flows.iter().map(|flow| self.is_denied(&world, flow, node)).collect()
    }

    fn is_denied(&self, world: &ClusterWorld<'_>, flow: &PolicyFlow, node: &[IpAddr]) -> bool {
        let is_tunnel = matches!(flow.traffic, Traffic::Port(_, TUNNEL_PORT));
        if self.behind || self.stage != FollowStage::Follows || is_tunnel || flow.source == flow.destination {
            return false;
        }
        let denies_at = |direction, address: IpAddr, peer: IpAddr| {
            let pod = world.pod_at(address).filter(|pod| world.is_local(pod));
            let Some(pod) = pod.filter(|pod| !node.contains(&peer) && !pod.addresses().contains(&peer))
            else {
                return false;
            };
            let classes = self.index.classes_of(&name_of(&pod.key()));
            let Some(class) = classes.and_then(|classes| classes.of_direction(direction)) else {
                return false;
            };
            let terms = class.policies.iter().filter_map(|name| self.index.terms(name));
            let terms: Vec<&PolicyTerms> = terms.map(|terms| &**terms).collect();
            denies(world, direction, &terms, flow)
        };
        denies_at(TrafficDirection::Egress, flow.source, flow.destination)
            || denies_at(TrafficDirection::Ingress, flow.destination, flow.source)
    }
}
