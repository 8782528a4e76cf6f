//! Rules of single policies.

use facts::NetworkPolicy;
use serde_json::{Value, json};

use super::*;
use crate::tests::sample::{Labels, SamplePod};

/// A world with one pod, `x/p0`, on the node, and these NetworkPolicies of its namespace, which select it.
pub(super) fn world_of(policies: &[(&str, Value)]) -> PlainWorld {
    let mut world = PlainWorld::default();
    let pod = SamplePod::running(Labels::new());
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
    let rules =
        compile_pod(&index, index.classes_of(&name).unwrap(), &PodPoint::default(), Backend::Nftables);
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

fn chain_sizes(rules: &CompiledPod) -> Vec<usize> {
    let chains = rules.rules.tables.iter().flat_map(|table| &table.chains);
    chains.filter(|chain| chain.base.is_none()).map(|chain| chain.rules.len()).collect()
}

/// Peers of the pods of one namespace, and ports that do not touch.
fn entries(peers: usize, ports: usize) -> Value {
    let peer = |number| json!({"podSelector": {"matchLabels": {"app": format!("a{number}")}}});
    let port = |number| json!({"port": 1000 + 2 * number});
    let (peers, ports): (Vec<Value>, Vec<Value>) =
        ((0..peers).map(peer).collect(), (0..ports).map(port).collect());
    json!({"podSelector": {}, "ingress": [{"from": peers, "ports": ports}]})
}

#[test]
fn peers_and_ports_add_up_and_do_not_multiply() {
    let rules = compiled(&world_of(&[("n", entries(100, 200))]));
    // The denial at the end, a jump for each port; a set for each family.
    assert_eq!((chain_sizes(&rules), rules.left_out), (vec![201, 200], vec![]));
    assert_eq!(chain_sizes(&compiled(&world_of(&[("n", entries(1, 3))]))), [7], "one peer needs no chain");
}

#[test]
fn a_rule_that_is_too_much_for_packets_matches_nothing_and_is_told() {
    let rules = compiled(&world_of(&[("m", entries(1, 17_000)), ("n", entries(2, 2)), ("o", entries(1, 1))]));
    assert_eq!(chain_sizes(&rules), [5, 4]);
    let told: Vec<String> = rules.left_out.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 1);
    assert!(
        told[0].starts_with("x/m ingress[0]: with it a packet would meet more than 32768 rules"),
        "{told:?}"
    );
}

#[test]
fn a_block_that_is_too_many_prefixes_matches_nothing_and_is_told() {
    let except: Vec<String> = (0..40_000u32).map(|n| format!("2001:db8:{n:x}::1/128")).collect();
    let blocks = json!([{"ipBlock": {"cidr": "2001:db8::/32", "except": except}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]);
    let rules = compiled(&world_of(&[("n", json!({"podSelector": {}, "ingress": [{"from": blocks}]}))]));
    assert_eq!(chain_sizes(&rules), [2], "the other block counts");
    assert_eq!(rules.left_out.iter().map(|one| one.reason).collect::<Vec<_>>(), [LeftOutReason::Prefixes]);
}

#[test]
fn less_of_a_denial_denies_everything() {
    let mut world = world_of(&[("n", entries(1, 17_000))]);
    let mut terms = world.policies().next().unwrap().clone();
    world.remove_networkpolicy("x", "n");
    terms.name.section = Section::Admin;
    for action in [crate::terms::RuleAction::Deny, crate::terms::RuleAction::Next] {
        terms.ingress.rules[0].action = action;
        world.put_policy(terms.clone());
        let rules = compiled(&world);
        let chains = rules.rules.tables.iter().flat_map(|table| &table.chains);
        let written: Vec<&Rule> =
            chains.filter(|chain| chain.base.is_none()).flat_map(|chain| &chain.rules).collect();
        assert_eq!((written.len(), rules.left_out.len()), (1, 1));
        assert!(written[0].matches.is_empty() && written[0].action == Action::Drop, "{written:?}");
    }
}

#[test]
fn the_number_of_a_rule_stands_in_its_comment_however_long_the_names_are() {
    let name = "n".repeat(252) + "o";
    let two = json!({"podSelector": {}, "ingress": [{}, {"ports": [{"port": 1}]}]});
    let rules = compiled(&world_of(&[(&name, two)]));
    let chains = rules.rules.tables.iter().flat_map(|table| &table.chains);
    let rules: Vec<&Rule> =
        chains.filter(|chain| chain.base.is_none()).flat_map(|chain| &chain.rules).collect();
    for (number, rule) in rules[..2].iter().enumerate() {
        let comment = ruleset::nft::comment(rule);
        assert!(comment.starts_with("np:x/nnn") && comment.ends_with(&format!("no#{number}")), "{comment}");
    }
}

#[test]
fn names_of_ports_of_too_many_peers_have_no_sets_and_are_told() {
    let peer = |number: usize| json!({"podSelector": {"matchLabels": {"app": format!("a{number}")}}});
    let named = |number: usize| json!({"port": format!("p{number}")});
    let rule = |peers: usize, names: usize| -> Value {
        let (peers, ports): (Vec<Value>, Vec<Value>) =
            ((0..peers).map(peer).collect(), (0..names).map(named).collect());
        json!({"to": peers, "ports": ports})
    };
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule(200, 200), rule(2, 3)]});
    let world = world_of(&[("n", spec)]);
    assert_eq!(indexed(&world).sets().count(), 8);
    let rules = compiled(&world);
    assert_eq!(chain_sizes(&rules), [13]);
    let told: Vec<_> = rules.left_out.iter().map(|one| (one.rule, one.reason)).collect();
    assert_eq!(told, [(0, LeftOutReason::Rules)]);
}
