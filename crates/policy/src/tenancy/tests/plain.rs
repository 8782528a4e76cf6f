//! Single tenants.

use ruleset::{Action, Rule};
use serde_json::json;

use super::sample::{
    PODS, SampleGrant, SampleTarget, SampleTenant, TenancyFlow, TenancyPeer, TenancyRule, TenancySample,
};
use crate::compile::{AUDIT_PREFIX, EnforcementSettings, LOG_PREFIX, compile_node};
use crate::compiled::indexed;
use crate::index::PeerSet;
use crate::index::PolicyEffect;
use crate::terms::PodTerm;
use crate::{PlainWorld, verdict};

fn tenant(name: &'static str, namespaces: &[&'static str]) -> SampleTenant {
    SampleTenant {
        name,
        namespaces: namespaces.to_vec(),
        team: None,
        allowed: Vec::new(),
        denied: Vec::new(),
        services: Vec::new(),
        rules: Default::default(),
        external: "Deny",
        unassigned: "Deny",
        system: [true, true],
        enforcement: "Enforce",
    }
}

fn sample(tenants: Vec<SampleTenant>, grants: Vec<SampleGrant>) -> TenancySample {
    TenancySample { tenants, grants, apps: vec!["x"; PODS.len()], teams: vec!["v"; 5], closed: false }
}

fn rules_of_node(world: &PlainWorld) -> Vec<Rule> {
    let node = compile_node(&indexed(world, "n1"), EnforcementSettings::default());
    node.rules.tables.into_iter().flat_map(|table| table.chains).flat_map(|chain| chain.rules).collect()
}

#[test]
fn a_grant_is_for_pods_of_its_own_namespace_wherever_its_service_points() {
    let grant = SampleGrant {
        namespace: "d",
        from: vec!["blue"],
        to: SampleTarget::Service(Some("odd")),
        ports: Vec::new(),
    };
    let mut blue = tenant("blue", &["b"]);
    blue.rules[0] = vec![TenancyRule {
        denies: false,
        peers: vec![TenancyPeer::Pods { tenant: Some("red"), namespaces: Vec::new(), app: None }],
        ports: Vec::new(),
    }];
    let world = sample(vec![tenant("red", &["a", "d"]), blue], vec![grant]).world();
    for (destination, allowed) in [("10.0.3.1", true), ("10.0.0.2", false)] {
        let (source, destination) = ("10.0.1.1".parse().unwrap(), destination.parse().unwrap());
        let flow = TenancyFlow { source, destination, port: Some(("TCP", 8080)) };
        let found = verdict(&world, &flow.flow());
        assert!(found.egress.is_allowed(), "{found}");
        assert_eq!(found.ingress.is_allowed(), allowed, "{found}");
    }
}

#[test]
fn what_a_tenant_denies_is_logged_at_the_node_under_the_names_of_its_rules() {
    let mut red = tenant("red", &["a"]);
    red.denied = vec!["203.0.113.9/32"];
    for (enforcement, prefix, end) in
        [("Enforce", LOG_PREFIX, Action::Drop), ("Audit", AUDIT_PREFIX, Action::Return)]
    {
        red.enforcement = enforcement;
        let world = sample(vec![red.clone()], Vec::new()).world();
        let (rules, index) = (rules_of_node(&world), indexed(&world, "n1"));
        let tried_out = index.classes().filter(|class| index.tried_out(class).count() == 1).count();
        assert_eq!(tried_out == 2, enforcement == "Audit", "{tried_out} of the tenant's classes only log");
        for name in ["deniedIPRanges", "defaults.other"] {
            let why = format!("np:tenant red#{name}");
            let found: Vec<&Rule> = rules.iter().filter(|rule| rule.why == why).collect();
            let is_told = |pair: &[&Rule]| {
                let is_log =
                    matches!(&pair[0].action, Action::Log { prefix: log, .. } if log.starts_with(prefix));
                is_log && pair[1].action == end && pair[0].matches == pair[1].matches
            };
            // To the pods and from them; the first for one family.
            assert_eq!(found.len(), 4, "{found:?}");
            assert!(found.chunks(2).all(is_told), "{found:?}");
        }
        let drops = rules.iter().filter(|rule| rule.action == Action::Drop).count();
        assert_eq!(drops > 0, enforcement == "Enforce", "{drops} rules drop");
    }
    red.enforcement = "Off";
    assert!(
        rules_of_node(&sample(vec![red], Vec::new()).world()).iter().all(|rule| !rule.why.starts_with("np:"))
    );
}

#[test]
fn other_tenants_pods_are_in_a_set_only_where_ranges_may_have_them() {
    let all = PeerSet::Pods(PodTerm::everything());
    let mut red = tenant("red", &["a"]);
    let has_all = |red: &SampleTenant| {
        indexed(&sample(vec![red.clone()], Vec::new()).world(), "n1").set(&all).is_some()
    };
    assert!(!has_all(&red), "everybody else is another tenant, and that needs no set");
    red.allowed = vec!["203.0.113.0/24"];
    assert!(has_all(&red));
}

#[test]
fn a_namespace_that_comes_to_a_tenant_changes_members_of_sets_and_no_rules() {
    let red = |namespaces: &[&'static str]| {
        sample(vec![tenant("red", namespaces), tenant("blue", &["b"])], Vec::new())
    };
    let (before, after) = (red(&["a"]), red(&["a", "c"]));
    let mut index = indexed(&before.world(), "n1");
    let world = after.world();
    let name =
        crate::PolicyName { section: crate::Section::Tenant, namespace: "".into(), name: "red".into() };
    let mut effects = index.policy(&world, &name, after.terms(&world, "red"));
    assert_eq!(effects, [], "what the tenant says of its pods is the same");
    effects.extend(index.namespace(&world, "c"));
    let counts = |is: fn(&PolicyEffect) -> bool| effects.iter().filter(|effect| is(effect)).count();
    assert_eq!(counts(|one| matches!(one, PolicyEffect::ClassChanges(_))), 0, "{effects:?}");
    assert_eq!(
        counts(|one| matches!(one, PolicyEffect::SetGains(_, members) if members.len() == 4)),
        1,
        "{effects:?}"
    );
    assert_eq!(counts(|one| matches!(one, PolicyEffect::PodChanges { .. })), 2, "{effects:?}");
    assert_eq!(effects.len(), 3, "{effects:?}");
}

#[test]
fn rules_say_how_long_names_are_called() {
    let long = "n".repeat(63);
    let object = json!({"metadata": {"name": long}, "spec": {"namespaces": ["a"],
        "networkPolicy": {"egressRules": [{"name": long, "action": "Deny", "peers": [{"tenant": long}]}]}}});
    let tenant: facts::NetworkTenant = serde_json::from_value(object).unwrap();
    let mut membership = crate::tenancy::TenantMembership::default();
    membership.namespace("a", Some(facts::LabelSet::default()));
    membership.tenant(&long, Some(&tenant));
    let mut world = sample(Vec::new(), Vec::new()).world();
    world.put_namespace("a", facts::Namespace { labels: membership.labels("a").unwrap() });
    let around = crate::tenancy::TenantSurroundings::of(&world, "n1");
    world.put_policy(crate::tenancy::tenant_section(&tenant, &[], &around, &world).unwrap());
    let rules = rules_of_node(&world);
    let texts: Vec<String> = rules.iter().map(|rule| ruleset::nft::comment(rule).into()).collect();
    assert!(texts.iter().any(|text| text.contains("#nnn") && text.ends_with("nnn")), "{texts:?}");
}
