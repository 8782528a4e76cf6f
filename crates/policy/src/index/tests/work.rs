//! What an event costs does not grow with the pods and policies of a cluster that have nothing to do with it.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};

use facts::peer::{Peer, Phase};
use facts::{LabelSet, Namespace, NetworkPolicy, Selector};
use serde_json::json;

use crate::compiled::{local_facts, name_of};
use crate::index::PolicyIndex;
use crate::terms::{PodTerm, PolicyTerms};
use crate::{PlainPod, PlainWorld, World};

/// Counts the pods and namespaces that are looked at, and the terms that they are compared with.
struct Counting {
    world: PlainWorld,
    looks: Cell<usize>,
}

impl Counting {
    fn count(&self, more: usize) {
        self.looks.set(self.looks.get() + more);
    }
}

impl World for Counting {
    type Pod<'a> = &'a PlainPod;

    fn pod_at(&self, address: IpAddr) -> Option<&PlainPod> {
        self.count(1);
        self.world.pod_at(address)
    }

    fn is_own_node(&self, pod: &&PlainPod, address: IpAddr) -> bool {
        self.world.is_own_node(pod, address)
    }

    fn namespace_labels(&self, namespace: &str) -> Option<&LabelSet> {
        self.count(1);
        self.world.namespace_labels(namespace)
    }

    fn pods_in<'a>(&'a self, namespace: &str, labels: &Selector) -> impl Iterator<Item = &'a PlainPod> {
        self.world.pods_in(namespace, labels).inspect(|_| self.count(1))
    }

    fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.world.namespaces().inspect(|_| self.count(1))
    }

    fn selects(&self, term: &PodTerm, pod: &&PlainPod) -> bool {
        self.count(1);
        self.world.selects(term, pod)
    }
}

fn pod(namespace: usize, number: usize) -> PlainPod {
    let address = Ipv4Addr::from(0x0a00_0000 + u32::try_from(namespace * 256 + number).unwrap());
    PlainPod {
        namespace: format!("ns{namespace}").into(),
        name: format!("p{number}").into(),
        is_enrolled: false,
        facts: Peer {
            node: if number == 0 { "n1" } else { "n2" }.into(),
            labels: LabelSet::from_iter([("app", ["a", "b", "c"][number % 3]), ("kind", "pod")]),
            addresses: [address.into()].into(),
            phase: Phase::Running,
            ..Peer::default()
        },
    }
}

/// Opens the pods of a namespace to others of it, and to some of the next namespace. Number 9 is about labels that no other one is about.
fn policy(namespace: usize, number: usize) -> PolicyTerms {
    let app = ["a", "b", "c"][number % 3];
    let labels = if number == 9 { json!({"kind": "pod"}) } else { json!({"app": app}) };
    let next = format!("ns{}", namespace + 1);
    let object = json!({"metadata": {"namespace": format!("ns{namespace}"), "name": format!("n{number}")},
        "spec": {"podSelector": {}, "ingress": [{"from": [
            {"podSelector": {"matchLabels": labels}},
            {"podSelector": {"matchLabels": labels}, "namespaceSelector": {"matchLabels": {"name": next}}},
            {"namespaceSelector": {"matchLabels": {"name": next}}}]}]}});
    PolicyTerms::from(&serde_json::from_value::<NetworkPolicy>(object).unwrap())
}

const NAMESPACES: usize = 80;

/// A cluster of namespaces. The first eight have 8 pods and 4 policies each, and of the first five a pod is on this node. Each other one has
/// so many pods and policies.
fn cluster(pods: usize, policies: usize) -> (Counting, PolicyIndex) {
    let mut world = PlainWorld::default();
    let of = |namespace, others, first| if namespace < 8 { first } else { others };
    for namespace in 0..NAMESPACES {
        let name = format!("ns{namespace}");
        let labels = LabelSet::from_iter([("name", &*name)]);
        world.put_namespace(&name, Namespace { labels });
        (0..of(namespace, pods, 8)).for_each(|number| world.put_pod(pod(namespace, number)));
    }
    let (world, mut index) = (Counting { world, looks: Cell::new(0) }, PolicyIndex::default());
    for namespace in 0..NAMESPACES {
        for number in 0..of(namespace, policies, 4) {
            let terms = policy(namespace, number);
            index.policy(&world, &terms.name.clone(), Some(terms));
        }
        let pod = pod(namespace, 0);
        if namespace < 5 {
            index.local_pod(&world, &name_of(&pod), Some(local_facts(&pod)));
        }
    }
    (world, index)
}

/// What each kind of event looks at: a peer's other labels, a namespace's, a policy's other rules, a new pod of this node.
fn work(pods: usize, policies: usize) -> [usize; 4] {
    let (mut world, mut index) = cluster(pods, policies);
    let looks = |world: &Counting| world.looks.replace(0);
    looks(&world);
    let mut peer = pod(1, 3);
    peer.facts.labels = LabelSet::from_iter([("app", "b"), ("kind", "pod")]);
    world.world.put_pod(peer.clone());
    let effects = index.pod(&world, &peer.facts.addresses);
    assert!(effects.len() >= 4, "{effects:?}");
    let of_pod = looks(&world);
    world.world.put_namespace("ns1", Namespace::default());
    assert!(!index.namespace(&world, "ns1").is_empty());
    let of_namespace = looks(&world);
    let other = PolicyTerms { ingress: policy(1, 9).ingress, ..policy(1, 0) };
    assert!(!index.policy(&world, &other.name.clone(), Some(other)).is_empty());
    let of_policy = looks(&world);
    let new = pod(1, 4);
    assert!(!index.local_pod(&world, &name_of(&new), Some(local_facts(&new))).is_empty());
    [of_pod, of_namespace, of_policy, looks(&world)]
}

#[test]
fn an_event_costs_the_same_with_ten_times_as_many_pods_and_policies() {
    // 136 pods and 32 policies, 1504 pods and 392 policies.
    let (small, large) = (work(1, 0), work(20, 5));
    assert_eq!(small, large);
    // A policy's new set goes by labels of namespaces, so that each namespace and its labels are looked at.
    let most = [100, 100, 100 + 2 * NAMESPACES, 100];
    assert!(small.iter().zip(most).all(|(looks, most)| (1..most).contains(looks)), "{small:?}");
}
