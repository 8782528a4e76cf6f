//! What events change, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ruleset::Contents;

use super::sample::{NAMESPACES, TENANTS, TenancySample};
use crate::compile::{EnforcementSettings, NodeRules};
use crate::compiled::indexed;
use crate::index::{PeerMember, PeerSet, PodClasses, PolicyIndex};
use crate::{PolicyName, Section};

type KnownSets = BTreeMap<PeerSet, BTreeSet<PeerMember>>;

/// The sets of an index with their members, and the classes of its pods.
fn known(index: &PolicyIndex) -> (KnownSets, Vec<(String, PodClasses)>) {
    let sets = index.sets().map(|(set, members)| ((**set).clone(), members.collect())).collect();
    let pods = index.pods().map(|(pod, _, classes)| (format!("{pod:?}"), classes.clone())).collect();
    (sets, pods)
}

/// The chains and sets of a node's rules, whatever their order.
fn sorted(node: &NodeRules, index: &PolicyIndex) -> (Vec<String>, Contents) {
    let tables = node.rules(index).tables;
    let chains = tables.iter().flat_map(|table| &table.chains).map(|chain| format!("{chain:?}"));
    let mut all: Vec<String> =
        chains.chain(tables.iter().flat_map(|table| &table.sets).map(|set| format!("{set:?}"))).collect();
    all.sort_unstable();
    (all, node.contents(index))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Tenants, grants and namespaces that change come to the same as if they had been so from the beginning, in the index and in the rules that
    /// follow its effects.
    #[test]
    fn changes_of_tenants_come_to_what_is_made_at_once(before in TenancySample::any(), after in TenancySample::any()) {
        let after = TenancySample { apps: before.apps.clone(), closed: before.closed, ..after };
        let mut index = indexed(&before.world(), "n1");
        let settings = EnforcementSettings::default();
        let mut node = NodeRules::of(&index, settings, &|_| true);
        let world = after.world();
        for namespace in NAMESPACES {
            let effects = index.namespace(&world, namespace);
            node.apply(&effects, &index);
        }
        for tenant in TENANTS {
            let name = PolicyName { section: Section::Tenant, namespace: "".into(), name: tenant.into() };
            let effects = index.policy(&world, &name, after.terms(&world, tenant));
            node.apply(&effects, &index);
        }
        let fresh = indexed(&world, "n1");
        prop_assert_eq!(known(&index), known(&fresh));
        prop_assert_eq!(sorted(&node, &index), sorted(&NodeRules::of(&fresh, settings, &|_| true), &fresh));
    }
}
