//! What is known of policies: for the disk, and for people who ask.

use std::collections::BTreeMap;

use policy::index::LocalName;
use policy::snapshot::PolicySnapshot;
use policy::{PlainPod, PolicyPod as _, World as _};

use super::{FollowStage, PolicyState, world};
use crate::point::EnforcementPoint;
use crate::sight::UnseenReason;
use crate::world::{ClusterPod, ClusterWorld};

/// What is known of policies, with as many pods as were asked for.
#[derive(Debug)]
pub struct KnownPolicies {
    /// Policies, namespaces and pods, without the own node's addresses and without sets.
    pub snapshot: PolicySnapshot,
    /// Where the policies of this node's pods are enforced.
    pub points: Vec<KnownPoint>,
    /// Pods that are not told of, because they are too many.
    pub left_out: usize,
}

/// Where the policies of a pod of this node are enforced.
#[derive(Debug)]
pub struct KnownPoint {
    /// Which.
    pub pod: LocalName,
    /// Where.
    pub point: EnforcementPoint,
    /// Why the node's rules do not see its packets, if they do not.
    pub unseen: Option<UnseenReason>,
}

impl PolicyState {
    /// What is known, for the disk. Nothing before the lists are complete: what is on the disk says more then.
    pub(crate) fn snapshot(&self) -> Option<PolicySnapshot> {
        match self.stage {
            FollowStage::Lists => return None,
            FollowStage::Remembers => return self.remembered_snapshot(),
            FollowStage::Idle | FollowStage::Follows => {}
        }
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        let pods = match self.stage {
            FollowStage::Follows => world.local_pods().map(|pod| plain(&world, &pod)).collect(),
            FollowStage::Lists | FollowStage::Remembers | FollowStage::Idle => Vec::new(),
        };
        let namespaces = self.labelled_namespaces().into_iter();
        let namespaces = namespaces.map(|(name, namespace)| (name, namespace.labels.clone()));
        let of_index = PolicySnapshot::of(&self.index, Vec::new(), namespaces.collect(), BTreeMap::new());
        Some(PolicySnapshot { pods, services: self.known_services(), ..of_index })
    }

    /// The same for people, with pods of other nodes, `most` in all.
    pub(crate) fn known(&self, most: usize) -> Option<KnownPolicies> {
        let mut snapshot = self.snapshot()?;
        if self.stage != FollowStage::Remembers {
            snapshot.sets.clear();
        }
        let peers = self.sources.peers.read();
        let world = world(&peers, &self.local, &self.namespaces);
        let mut left_out = 0;
        if self.stage == FollowStage::Follows {
            for pod in world.other_pods() {
                if snapshot.pods.len() < most {
                    snapshot.pods.push(plain(&world, &pod));
                } else {
                    left_out += 1;
                }
            }
        }
        let names = self.index.pods().map(|(name, ..)| name.clone());
        let points = names.map(|pod| KnownPoint {
            point: self.points.of(&pod),
            unseen: self.points.unseen_reason(&pod).cloned(),
            pod,
        });
        let points = points.collect();
        Some(KnownPolicies { snapshot, points, left_out })
    }
}

/// A pod by itself, with the addresses that are its own.
fn plain(world: &ClusterWorld<'_>, pod: &ClusterPod<'_>) -> PlainPod {
    let mut facts = pod.to_peer();
    let key = pod.key();
    if world.is_local(pod) {
        // A manifest's pod names none.
        facts.node = world.node().into();
    }
    let is_owner = |owner: ClusterPod<'_>| owner.key() == key;
    let own = facts.addresses.iter().filter(|address| world.pod_at(**address).is_some_and(is_owner));
    facts.addresses = own.copied().collect();
    PlainPod { namespace: pod.namespace().into(), name: pod.name().into(), is_enrolled: false, facts }
}
