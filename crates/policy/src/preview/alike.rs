//! Pods that no policy tells apart, before a change and after it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use facts::networkpolicy::{Block, Entries};
use facts::peer::NamedPort;
use ipnet::IpNet;

use crate::terms::{PeerTerm, PolicyTerms, TrafficDirection};
use crate::{PlainPod, PlainWorld, PolicyWorld as _, World as _};

/// Addresses of live pods that no policy tells apart.
#[derive(Debug)]
pub(super) struct AlikePods<'w> {
    pub(super) is_v6: bool,
    /// Each address with its pod, as it is after the change.
    pods: Vec<(&'w PlainPod, IpAddr)>,
    /// The policies that select them, before and after.
    pub(super) classes: [Vec<&'w PolicyTerms>; 2],
    /// Whether policies mean other peers by what they say, or the pods themselves are others.
    any_can_change: bool,
}

/// Labels and named ports.
type Said = (Vec<(Box<str>, Box<str>)>, Vec<NamedPort>);

/// What policies can tell of an address of a pod.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PodLikeness {
    is_v6: bool,
    namespace: Box<str>,
    /// Before and after.
    says: [Said; 2],
    node: Box<str>,
    /// Which of all blocks and prefixes have it.
    blocks: Vec<bool>,
    /// Terms that mean it where only its address is known.
    nameless: Option<IpAddr>,
}

/// Groups the pods that live in both clusters at the same address.
pub(super) fn alike_pods<'w>(before: &'w PlainWorld, after: &'w PlainWorld) -> Vec<AlikePods<'w>> {
    let (blocks, nets) = (blocks(before, after), nets(before, after));
    let only_policies = !before.differs_beside_policies(after);
    let mut found: BTreeMap<PodLikeness, AlikePods<'w>> = BTreeMap::new();
    for pod in after.live_pods() {
        let Some(old) = before.pod(&pod.namespace, &pod.name) else { continue };
        for address in &pod.facts.addresses {
            let is_its = |world: &'w PlainWorld, one: &PlainPod| {
                world
                    .pod_at(*address)
                    .is_some_and(|owner| (&owner.namespace, &owner.name) == (&one.namespace, &one.name))
            };
            if !is_its(before, old) || !is_its(after, pod) {
                continue;
            }
            let in_blocks = blocks.iter().map(|block| block.contains(*address));
            let in_nets = nets.iter().map(|net| net.contains(address));
            let likeness = PodLikeness {
                is_v6: address.is_ipv6(),
                namespace: pod.namespace.clone(),
                says: [says(old), says(pod)],
                node: pod.facts.node.clone(),
                blocks: in_blocks.chain(in_nets).collect(),
                nameless: pod.is_nameless().then_some(*address),
            };
            let group = found.entry(likeness).or_insert_with(|| AlikePods {
                is_v6: address.is_ipv6(),
                pods: Vec::new(),
                classes: [class(before, old), class(after, pod)],
                any_can_change: !only_policies,
            });
            group.pods.push((pod, *address));
        }
    }
    found.into_values().collect()
}

fn says(pod: &PlainPod) -> Said {
    let labels = pod.facts.labels.iter().map(|(key, value)| (key.into(), value.into())).collect();
    (labels, pod.facts.ports.to_vec())
}

fn class<'w>(world: &'w PlainWorld, pod: &PlainPod) -> Vec<&'w PolicyTerms> {
    world.policies().filter(|policy| world.selects(&policy.subjects, &pod)).collect()
}

fn peers<'w>(before: &'w PlainWorld, after: &'w PlainWorld) -> impl Iterator<Item = &'w PeerTerm> {
    let rules = |policy: &'w PolicyTerms| policy.ingress.rules.iter().chain(&policy.egress.rules);
    let rules = before.policies().chain(after.policies()).flat_map(rules);
    rules.flat_map(|rule| [&rule.own, &rule.peers]).flat_map(|entries| match entries {
        Entries::Any => &[],
        Entries::Of(peers) => &**peers,
    })
}

fn blocks<'w>(before: &'w PlainWorld, after: &'w PlainWorld) -> Vec<&'w Block> {
    let mut found: Vec<&Block> = Vec::new();
    let mut seen = BTreeSet::new();
    for peer in peers(before, after) {
        if let PeerTerm::Block(block) = peer
            && seen.insert((block.net, block.except.to_vec()))
        {
            found.push(block);
        }
    }
    found
}

fn nets(before: &PlainWorld, after: &PlainWorld) -> BTreeSet<IpNet> {
    let inside = peers(before, after).filter_map(|peer| match peer {
        PeerTerm::Outside(inside) => Some(inside.iter().copied()),
        _ => None,
    });
    inside.flatten().collect()
}

// === impl AlikePods ===

impl AlikePods<'_> {
    /// Whether the verdict of policies that select these pods can be another one.
    pub(super) fn can_change(&self, direction: TrafficDirection) -> bool {
        let applies = |policy: &&&PolicyTerms| policy.direction(direction).applies;
        let [before, after] = &self.classes;
        self.any_can_change || !before.iter().filter(applies).eq(after.iter().filter(applies))
    }

    /// Two addresses of different pods, if there are two pods.
    pub(super) fn pair_with(&self, other: &Self) -> Option<(IpAddr, IpAddr)> {
        self.pods.iter().find_map(|(one, from)| {
            let is_other =
                |(pod, _): &&(&PlainPod, IpAddr)| (&pod.namespace, &pod.name) != (&one.namespace, &one.name);
            other.pods.iter().find(is_other).map(|(_, to)| (*from, *to))
        })
    }

    /// The pods with their addresses.
    pub(super) fn named(&self) -> Vec<(String, IpAddr)> {
        self.pods.iter().map(|(pod, address)| (pod.to_string(), *address)).collect()
    }

    /// The numbers of the ports that these pods name.
    pub(super) fn numbers(&self) -> impl Iterator<Item = &NamedPort> {
        self.pods.first().into_iter().flat_map(|(pod, _)| &pod.facts.ports)
    }

    pub(super) fn first(&self) -> Option<&PlainPod> {
        self.pods.first().map(|(pod, _)| *pod)
    }
}
