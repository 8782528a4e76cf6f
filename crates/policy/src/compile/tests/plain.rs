//! Rules of single policies.

use facts::NetworkPolicy;
use serde_json::{Value, json};

use super::*;
use crate::tests::sample::Labels;

/// A world with one pod, `x/p0`, on the node, and these NetworkPolicies of its namespace, which select it.
fn world_of(policies: &[(&str, Value)]) -> PlainWorld {
    let mut world = PlainWorld::default();
    let pod = crate::tests::sample::SamplePod {
        namespace: "x",
        labels: Labels::new(),
        addresses: vec!["10.0.0.1"],
        node: "n1",
        phase: "Running",
        host_network: false,
        deleting: false,
        ports: vec![],
    };
    world.put_pod(pod.plain(0));
    for (name, spec) in policies {
        let object = json!({"metadata": {"namespace": "x", "name": name}, "spec": spec});
        let policy: NetworkPolicy = serde_json::from_value(object).unwrap();
        assert_eq!(policy.refused.count, 0, "{:?}", policy.refused);
        world.put_networkpolicy(&policy);
    }
    world
}

fn compiled(world: &PlainWorld) -> CompiledPod {
    let index = indexed(world);
    let name = LocalName { namespace: "x".into(), name: "p0".into() };
    let rules = compile_pod(&index, index.classes_of(&name).unwrap(), &[], Backend::Nftables);
    assert_eq!(ruleset::check(&rules.rules), Ok(()));
    rules
}

fn opened_to(app: &str) -> Value {
    json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]})
}

#[test]
fn a_set_keeps_its_name_when_another_policy_comes_before() {
    let names = |policies: &[(&str, Value)]| -> Vec<(String, Arc<PeerSet>)> {
        let kept = compiled(&world_of(policies)).kept.into_iter();
        kept.map(|(name, _, set)| (name, set)).collect()
    };
    let alone = names(&[("n", opened_to("b"))]);
    let both = names(&[("m", opened_to("a")), ("n", opened_to("b"))]);
    assert_eq!((alone.len(), both.len()), (2, 4));
    for (name, set) in alone {
        let found: Vec<_> = both.iter().filter(|(other, of)| *other == name || *of == set).collect();
        assert!(
            found.len() == 2 && found.iter().any(|one| **one == (name.clone(), set.clone())),
            "{found:?}"
        );
        assert!(found.iter().all(|(_, of)| *of == set), "{name} has another meaning: {found:?}");
    }
}

#[test]
fn chains_of_different_classes_have_different_names() {
    let both = || json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    let chains = |policies: &[(&str, Value)]| -> Vec<String> {
        let tables = compiled(&world_of(policies)).rules.tables;
        let chains = tables.iter().flat_map(|table| &table.chains).filter(|chain| chain.base.is_none());
        chains.map(|chain| chain.name.to_string()).collect()
    };
    let mut all = [chains(&[("m", both())]), chains(&[("n", both())])].concat();
    all.extend(chains(&[("m", both()), ("n", both())]));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 6, "{all:?}");
}
