use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::compiled::{local_facts, name_of};
use crate::index::PolicyIndex;
use crate::tests::sample::{SampleFlow, SampleWorld};
use crate::{PlainPod, PlainWorld, PolicyWorld as _, World as _, verdict};

fn pods(world: &PlainWorld) -> Vec<PlainPod> {
    let everything = facts::Selector::default();
    let all = world.namespaces().flat_map(|name| world.pods_in(name, &everything).collect::<Vec<_>>());
    all.filter(|pod| &*pod.facts.node == "n1").cloned().collect()
}

fn indexed(world: &PlainWorld) -> PolicyIndex {
    let mut index = PolicyIndex::default();
    for policy in world.policies() {
        index.policy(world, &policy.name, Some(policy.clone()));
    }
    for pod in pods(world) {
        index.local_pod(world, &name_of(&pod), Some(local_facts(&pod)));
    }
    index
}

fn snapshot(world: &PlainWorld, index: &PolicyIndex) -> PolicySnapshot {
    let node = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
    let labels = |name: &str| Some((name.into(), world.namespace_labels(name)?.clone()));
    let namespaces = world.namespaces().filter_map(labels).collect();
    let seen = BTreeMap::from([("pods".into(), "12 %\n".into()), ("policies".into(), "".into())]);
    let owns = |pod: &PlainPod, address: &IpAddr| {
        world
            .pod_at(*address)
            .is_some_and(|owner| (&owner.namespace, &owner.name) == (&pod.namespace, &pod.name))
    };
    let mut pods = pods(world);
    for pod in &mut pods {
        let own = pod.facts.addresses.iter().filter(|address| owns(pod, address)).copied().collect();
        pod.facts.addresses = own;
    }
    PolicySnapshot { pods, ..PolicySnapshot::of(index, node, namespaces, seen) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// All of it is read again, and the plugin finds the directions that the index finds.
    #[test]
    fn what_is_written_is_read(world in SampleWorld::any()) {
        let world = world.plain();
        let index = indexed(&world);
        let (kept, bytes) = { let kept = snapshot(&world, &index); (kept.clone(), kept.to_bytes()) };
        prop_assert_eq!(PolicySnapshot::from_bytes(&bytes), Ok(kept.clone()));
        for pod in pods(&world) {
            let name = name_of(&pod);
            let classes = index.classes_of(&name).unwrap();
            let is_isolated = |class: &Option<std::sync::Arc<crate::index::PolicyClass>>| {
                class.as_ref().is_some_and(|class| index.isolates(class))
            };
            let labels = pod.facts.labels.to_map();
            let known = SubjectPod { namespace: &pod.namespace, labels: Some(&labels) };
            let found = find_isolation(&*bytes, &known).unwrap();
            let expected = (is_isolated(&classes.ingress), is_isolated(&classes.egress));
            prop_assert_eq!((found.isolation.ingress, found.isolation.egress), expected);
            prop_assert_eq!(&found.node, &kept.node);
            // Without its labels it is isolated by no fewer.
            let unknown = SubjectPod { namespace: &pod.namespace, labels: None };
            let without = find_isolation(&*bytes, &unknown).unwrap().isolation;
            prop_assert_eq!(without, without.or(found.isolation));
        }
    }

    /// Of the pods of this node it tells as much as the cluster does: who else there is is in the sets.
    #[test]
    fn it_judges_connections_of_this_nodes_pods_as_the_cluster_does(
        sample in SampleWorld::any(),
        flows in prop::collection::vec(SampleFlow::any(), 40),
    ) {
        let world = sample.plain();
        let mut kept = snapshot(&world, &indexed(&world));
        kept.node = world.node("n1").unwrap_or_default().to_vec();
        let known = kept.world(None);
        let is_nodes = |address| kept.node.contains(&address);
        for flow in flows.iter().map(SampleFlow::flow) {
            let (told, wanted) = (verdict(&known, &flow), verdict(&world, &flow));
            let is_local = |address| world.pod_at(address).is_some_and(|pod| &*pod.facts.node == "n1");
            if is_local(flow.source) {
                prop_assert_eq!(&told.egress, &wanted.egress, "{:?}", flow);
            }
            // A pod of another node with this node's address is not told from the node.
            if is_local(flow.destination) && (is_local(flow.source) || !is_nodes(flow.source)) {
                prop_assert_eq!(&told.ingress, &wanted.ingress, "{:?}", flow);
            }
        }
    }

    #[test]
    fn a_part_of_it_is_no_snapshot(world in SampleWorld::any(), part in 0..1_000_usize) {
        let world = world.plain();
        let bytes = snapshot(&world, &indexed(&world)).to_bytes();
        let end = bytes.len() * part / 1_000;
        prop_assert!(PolicySnapshot::from_bytes(&bytes[..end]).is_err());
        prop_assert!(PolicySnapshot::from_bytes(&[&*bytes, b"node\n"].concat()).is_err());
    }
}

#[test]
fn names_from_manifests_end_no_word_and_no_line() {
    let odd = ["", "%", "a b", "a\nend 1", "ü%41", "…"];
    let labels: LabelSet = odd.iter().map(|text| (*text, *text)).collect();
    let namespaces = odd.iter().map(|text| (Box::from(*text), labels.clone())).collect();
    let snapshot = PolicySnapshot { namespaces, ..PolicySnapshot::default() };
    assert_eq!(PolicySnapshot::from_bytes(&snapshot.to_bytes()), Ok(snapshot));
}

#[test]
fn what_is_no_snapshot_says_why() {
    let read = |text: &str| PolicySnapshot::from_bytes(text.as_bytes()).unwrap_err();
    let none = SubjectPod { namespace: "x", labels: None };
    for text in ["", "istio-cni policies 1", "istio-cni policies 2\nend 1\n"] {
        assert_eq!(read(text), SnapshotError::Version, "{text:?}");
    }
    assert_eq!(find_isolation(&b"istio-cni policies 2\nseen\n"[..], &none), Err(SnapshotError::Version));
    for (lines, error) in [
        ("", SnapshotError::Cut(1)),
        ("end 2\n", SnapshotError::Cut(1)),
        ("seen\nend 2\nend 3\n", SnapshotError::Cut(2)),
        ("node 10.0.0.1 x\n", SnapshotError::Line(2)),
        ("policy np x n yes no named x 1 a in\n", SnapshotError::Line(2)),
        ("policy np x n yes no named x 0\nrule 0 egress accept % any any any\n", SnapshotError::Line(3)),
        ("set pods named x 0 18446744073709551615 10.0.0.1\n", SnapshotError::Line(2)),
    ] {
        assert_eq!(read(&format!("istio-cni policies 1\n{lines}")), error, "{lines:?}");
    }
    let head = |lines: &str| find_isolation(format!("istio-cni policies 1\n{lines}").as_bytes(), &none);
    assert_eq!(head("node 10.0.0.1\n"), Err(SnapshotError::Cut(2)));
    assert_eq!(head("node 10.0.0.1 x\nseen\n"), Err(SnapshotError::Line(2)));
    assert_eq!(head("policy np y n yes no whatever\nseen\n"), Ok(PodIsolation::default()), "it is of others");
}
