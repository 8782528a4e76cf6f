use std::collections::BTreeMap;

use facts::endpointslice::{Endpoint, EndpointPort};
use facts::service::ServicePort;
use facts::{EndpointSlice, Service};
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
    PolicySnapshot { pods, services: services(world), ..PolicySnapshot::of(index, node, namespaces, seen) }
}

/// A Service that leads to the pods of the world, where it has any.
fn services(world: &PlainWorld) -> Option<SnapshotServices> {
    let pods = pods(world);
    let first = pods.first()?;
    let (protocol, name) = (PolicyProtocol::Tcp, Box::<str>::from("a b"));
    let endpoint = |pod: &PlainPod| Endpoint {
        addresses: pod.facts.addresses.clone(),
        ready: !pod.facts.is_deleting,
        serving: pod.is_enrolled,
        terminating: pod.facts.is_deleting,
    };
    let ports = [None, Some(8080)].map(|number| EndpointPort { name: name.clone(), protocol, number });
    let slice = EndpointSlice {
        service: "web".into(),
        endpoints: pods.iter().map(endpoint).collect(),
        ports: ports.into(),
    };
    let service = Service {
        addresses: first.facts.addresses.clone(),
        ports: [ServicePort { name, protocol, number: 80 }].into(),
        ..Service::default()
    };
    let slices = vec![(first.namespace.clone(), "web-1".into(), slice.into())];
    Some(SnapshotServices { services: vec![(first.namespace.clone(), "web".into(), service.into())], slices })
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
            let is_guarded = |class: &Option<std::sync::Arc<crate::index::PolicyClass>>| {
                class.as_ref().is_some_and(|class| index.guards(class))
            };
            let labels = pod.facts.labels.to_map();
            let known = SubjectPod { namespace: &pod.namespace, labels: Some(&labels) };
            let found = find_isolation(&*bytes, &known).unwrap();
            let expected = (is_guarded(&classes.ingress), is_guarded(&classes.egress));
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
    for other in
        ["", "istio-cni policies 3x", "istio-cni policies 30", "istio-cni policies 2", "istio-cni policies 4"]
    {
        let text = PINNED.replacen(MAGIC, other, 1);
        assert_eq!(read(&text), SnapshotError::Version, "{other:?}");
        assert_eq!(find_isolation(text.as_bytes(), &none), Err(SnapshotError::Version), "{other:?}");
    }
    assert_eq!(read(MAGIC), SnapshotError::Version, "a line has an end");
    for (lines, error) in [
        ("", SnapshotError::Cut(1)),
        ("end 2\n", SnapshotError::Cut(1)),
        ("seen\nend 2\nend 3\n", SnapshotError::Cut(2)),
        ("node 10.0.0.1 x\n", SnapshotError::Line(2)),
        ("policy np x n yes no named x 1 a in\n", SnapshotError::Line(2)),
        ("policy np x n yes no named x 0\nrule 0 egress accept % any any any\n", SnapshotError::Line(3)),
        ("set pods named x 0 18446744073709551615 10.0.0.1\n", SnapshotError::Line(2)),
    ] {
        assert_eq!(read(&format!("{MAGIC}\n{lines}")), error, "{lines:?}");
    }
    let head = |lines: &str| find_isolation(format!("{MAGIC}\n{lines}").as_bytes(), &none);
    assert_eq!(head("node 10.0.0.1\n"), Err(SnapshotError::Cut(2)));
    assert_eq!(head("node 10.0.0.1 x\nseen\n"), Err(SnapshotError::Line(2)));
    assert_eq!(head("policy np y n yes no whatever\nseen\n"), Ok(PodIsolation::default()), "it is of others");
}

/// Of a namespace that is not known any tenant may be the one.
#[test]
fn a_pod_of_a_tenant_is_guarded() {
    let pod = SubjectPod { namespace: "x", labels: None };
    for (lines, ingress, egress) in [
        ("namespace x 0\npolicy tenant % t yes yes named x 0", true, true),
        ("namespace x 0\npolicy tenant % t yes no named x 0", true, false),
        ("namespace x 0\npolicy tenant % t try try named x 0", false, false),
        ("namespace x 0\npolicy tenant % t yes yes named y 0", false, false),
        ("namespace y 0\npolicy tenant % t yes yes named y 0", true, true),
        ("namespace y 0\npolicy tenant % t try try named y 0", false, false),
        ("namespace y 0\npolicy np y n yes yes named y 0", false, false),
    ] {
        let found = find_isolation(format!("{MAGIC}\n{lines}\nseen\n").as_bytes(), &pod).unwrap().isolation;
        assert_eq!((found.ingress, found.egress), (ingress, egress), "{lines}");
    }
}

/// A file with a line of each kind, and in these whatever words there are. Where this has to change, the number in its first line changes with it.
const PINNED: &str = "\
istio-cni policies 3
node 192.0.2.1 2001:db8::1
namespace x 1 kubernetes.io/metadata.name x
policy admin % a no yes labelled 2 k exists l absent 0
policy tenant % t yes no named x 0
policy np x p yes try named x 2 app in 2 a b tier notin 1 c
policy baseline % z yes no named x 0
seen pods 12
rule 0 egress deny no any 2 block 10.0.0.0/8 1 10.1.0.0/16 outside 1 10.2.0.0/16 3 all TCP range UDP 80 90 name SCTP dns
rule 1 ingress next % 1 pods named x 0 any any
rule 1 ingress audit % any any any
rule 2 ingress accept % any 1 pods named x 0 any
set pods named x 0 1 10.0.0.1
set ports dns SCTP any 1 10.0.0.1 53
set ports dns SCTP named x 0 0
set own http TCP 1 10.0.0.1 8080
pod x a n1 running eh 7 1 10.0.0.1 1 http TCP 8080 1 app a
services
service x s 1 10.96.0.10 1 http TCP 80
slice x s-1 s 1 http TCP 8080 1 rs 1 10.0.0.1
end 20
";

/// Another version of this reads it as it is, so its words stay what they are.
#[test]
fn the_words_of_a_version_do_not_change() {
    let read = PolicySnapshot::from_bytes(PINNED.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(read.to_bytes()).unwrap(), PINNED);
}
