use facts::{LabelSet, NetworkTenant};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use super::super::{ClaimState, TenantMembership};

const TENANTS: [&str; 4] = ["red", "blue", "green", "amber"];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    /// A tenant is created or updated: when it was created, its namespaces, and the team that it selects.
    Tenant(&'static str, u8, Vec<&'static str>, Option<&'static str>),
    TenantGone(&'static str),
    Namespace(&'static str, Option<&'static str>),
    NamespaceGone(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let team = || prop::option::of(select(&["x", "y"][..]));
    let names = prop::collection::vec(select(&NAMESPACES[..]), 0..3);
    prop_oneof![
        4 => (select(&TENANTS[..]), 0..3_u8, names, team()).prop_map(|(name, age, names, team)| Step::Tenant(name, age, names, team)),
        1 => select(&TENANTS[..]).prop_map(Step::TenantGone),
        2 => (select(&NAMESPACES[..]), team()).prop_map(|(name, team)| Step::Namespace(name, team)),
        1 => select(&NAMESPACES[..]).prop_map(Step::NamespaceGone),
    ]
}

fn tenant(name: &str, age: u8, names: &[&str], team: Option<&str>) -> NetworkTenant {
    let mut spec = json!({"namespaces": names});
    if let Some(team) = team {
        spec["namespaceSelector"] = json!({"matchLabels": {"team": team}});
    }
    let created = format!("2026-01-01T00:00:0{age}Z");
    serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": created}, "spec": spec}))
        .unwrap()
}

/// What there is, to be looked at as a whole.
#[derive(Default)]
struct Objects {
    tenants: std::collections::BTreeMap<&'static str, (u8, Vec<&'static str>, Option<&'static str>)>,
    namespaces: std::collections::BTreeMap<&'static str, Option<&'static str>>,
}

impl Objects {
    fn claimants(&self, namespace: &str) -> Vec<&'static str> {
        let team = self.namespaces.get(namespace).copied().flatten();
        let claims = |(_, names, selects): &(u8, Vec<&str>, Option<&str>)| {
            names.contains(&namespace) || (selects.is_some() && *selects == team)
        };
        let mut found: Vec<_> =
            self.tenants.iter().filter(|(_, one)| claims(one)).map(|(name, one)| (one.0, *name)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, name)| name).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is created, changed and deleted in whichever order: after each step a namespace that is claimed is in one tenant, the oldest of those that
    /// claim it, all others are told who has it, and the events say each change of owner and no other.
    #[test]
    fn a_claimed_namespace_is_in_one_tenant_at_every_step(steps in prop::collection::vec(step(), 1..25)) {
        let (mut membership, mut objects) = (TenantMembership::default(), Objects::default());
        for step in steps {
            let before: Vec<_> = NAMESPACES.map(|name| membership.owner(name).map(str::to_owned)).into();
            let changed: Vec<Box<str>> = match &step {
                Step::Tenant(name, age, names, team) => {
                    objects.tenants.insert(name, (*age, names.clone(), *team));
                    membership.tenant(name, Some(&tenant(name, *age, names, *team)))
                }
                Step::TenantGone(name) => {
                    objects.tenants.remove(name);
                    membership.tenant(name, None)
                }
                Step::Namespace(name, team) => {
                    objects.namespaces.insert(name, *team);
                    let labels: LabelSet = team.iter().map(|team| ("team", *team)).collect();
                    membership.namespace(name, Some(labels)).then(|| (*name).into()).into_iter().collect()
                }
                Step::NamespaceGone(name) => {
                    objects.namespaces.remove(name);
                    membership.namespace(name, None).then(|| (*name).into()).into_iter().collect()
                }
            };
            for (namespace, before) in NAMESPACES.into_iter().zip(before) {
                let claimants = objects.claimants(namespace);
                let owner = membership.owner(namespace);
                prop_assert_eq!(owner, claimants.first().copied(), "{} after {:?}", namespace, &step);
                prop_assert_eq!(changed.iter().any(|one| **one == *namespace), before.as_deref() != owner, "{} after {:?}", namespace, &step);
                for tenant in TENANTS {
                    let claim = membership.claims(tenant).into_iter().find(|claim| *claim.namespace == *namespace);
                    let expected = claimants.contains(&tenant).then(|| match owner {
                        Some(owner) if owner != tenant => ClaimState::Refused(owner.into()),
                        _ if objects.namespaces.contains_key(namespace) => ClaimState::Member,
                        _ => ClaimState::Missing,
                    });
                    prop_assert_eq!(claim.map(|claim| claim.state), expected, "{} of {} after {:?}", namespace, tenant, &step);
                }
                let told = membership.labels(namespace).map(|labels| labels.get(super::super::TENANT_LABEL).map(str::to_owned));
                let expected = objects.namespaces.contains_key(namespace).then(|| owner.map(str::to_owned));
                prop_assert_eq!(told, expected);
            }
        }
    }
}

#[test]
fn nobody_can_write_the_label_of_a_tenant() {
    let mut membership = TenantMembership::default();
    let forged: LabelSet = [(super::super::TENANT_LABEL, "red"), ("team", "x")].into_iter().collect();
    membership.namespace("a", Some(forged));
    let told: Vec<(String, String)> = membership
        .labels("a")
        .unwrap()
        .iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(told, [("team".to_owned(), "x".to_owned())]);
}
