//! Tenants and grants of any JSON: no name and no range comes out that does not look like one, and what is not understood opens nothing.

use facts::networkpolicy::Entries;
use facts::tenant::{GrantTarget, NetworkTenant, TenantGrant, TenantPeer, TenantRule};
use fuzz::{Outcome, Target, of_text};
use proptest::prelude::*;
use proptest::sample::select;

const WORDS: &[&str] = &[
    "\"namespaces\":[\"red\"]",
    "\"namespaceSelector\":{\"matchLabels\":{\"a\":\"b\"}}",
    "\"namespaceSelector\":{\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"In\",\"values\":[\"b\"]}]}",
    "\"allowedIPRanges\":[\"10.0.0.0/8\",\"fd00::/8\"]",
    "\"deniedIPRanges\":[\"10.0.0.1/8\"]",
    "\"allowedServices\":[{\"namespace\":\"a\",\"name\":\"b\",\"ports\":[{\"port\":443}]}]",
    "\"networkPolicy\":{\"ingressRules\":[{\"name\":\"r\",\"action\":\"Deny\",\"peers\":[{\"tenant\":\"blue\"}]}]}",
    "\"networkPolicy\":{\"egressRules\":[{\"name\":\"r\",\"action\":\"Allow\",\"peers\":[{\"entity\":\"World\"}]}]}",
    "\"peers\":[{\"ipBlock\":{\"cidr\":\"10.0.0.0/8\",\"except\":[\"10.0.0.0/9\"]}}]",
    "\"defaults\":{\"external\":\"Allow\",\"unassigned\":\"AllowEgress\"}",
    "\"system\":{\"dns\":\"Deny\"}",
    "\"enforcement\":\"Audit\"",
    "\"from\":[{\"tenant\":\"blue\"}]",
    "\"to\":[{\"kind\":\"Service\",\"name\":\"api\"},{\"kind\":\"Pod\",\"podSelector\":{}}]",
    "\"ports\":[{\"port\":80,\"endPort\":90}]",
    "\"::ffff:10.0.0.0/104\"",
    "\"0.0.0.0/0\"",
    "\"red;drop\"",
    "65536",
    "-1",
    "null",
    "{}",
    "[]",
];

fn generate() -> BoxedStrategy<Vec<u8>> {
    let words = prop::collection::vec(select(WORDS), 0..6).prop_map(|words| words.join(","));
    words
        .prop_map(|spec| format!("{{\"metadata\":{{\"name\":\"red\",\"creationTimestamp\":\"2026-01-01T00:00:00Z\"}},\"spec\":{{{spec}}}}}").into_bytes())
        .boxed()
}

fn run(input: &[u8]) -> Outcome {
    let tenant: NetworkTenant = match serde_json::from_slice(input) {
        Ok(tenant) => tenant,
        Err(error) => return of_text(&error.to_string()),
    };
    let grant: TenantGrant = serde_json::from_slice(input).unwrap();
    assert!(tenant.namespaces.iter().all(|name| is_name(name)), "{tenant:?}");
    assert!(tenant.allowed.iter().all(|net| net.trunc() == *net), "{tenant:?}");
    for rule in tenant.ingress.iter().chain(&tenant.egress) {
        check_rule(rule);
    }
    for service in &tenant.services {
        assert!(is_name(&service.namespace) && is_name(&service.name), "{service:?}");
    }
    assert!(grant.from.iter().all(|name| is_name(name)), "{grant:?}");
    for target in &grant.to {
        if let GrantTarget::Service(Some(name)) | GrantTarget::Pod(name) = target {
            assert!(
                name.len() <= 253 && name.split('.').all(|part| part.bytes().all(is_inner)),
                "{target:?}"
            );
        }
    }
    for faults in [&tenant.faults, &grant.faults] {
        assert_eq!(faults.first.len(), faults.count.min(8), "{faults:?}");
    }
    let lengths = [
        tenant.namespaces.len(),
        tenant.services.len(),
        tenant.ingress.len(),
        tenant.egress.len(),
        grant.to.len(),
    ];
    let first = tenant.faults.first.first().map(ToString::to_string).unwrap_or_default();
    Outcome::of((lengths.map(|length| length.min(2)), tenant.faults.count.min(3), of_text(&first)))
}

/// A rule that denies and of which something is not understood denies at least what it could have meant.
fn check_rule(rule: &TenantRule) {
    assert!(is_name(&rule.name), "{rule:?}");
    let Entries::Of(peers) = &rule.peers else {
        return assert!(rule.denies, "everything is allowed: {rule:?}");
    };
    for peer in peers {
        match peer {
            TenantPeer::Pods { tenant, namespaces, .. } => {
                assert!(tenant.is_some() || namespaces.is_some(), "{peer:?}");
                assert!(
                    tenant.iter().chain(namespaces.iter().flatten()).all(|name| is_name(name)),
                    "{peer:?}"
                );
            }
            TenantPeer::Block(block) => {
                assert!(block.except.iter().all(|part| block.net.contains(part)), "{peer:?}");
            }
            TenantPeer::Entity(_) => {}
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(is_inner)
}

fn is_inner(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
}

const TARGET: Target = Target {
    name: "tenants",
    package: env!("CARGO_PKG_NAME"),
    dictionary: WORDS,
    max_len: 8192,
    memory: 1 << 20,
    generate,
    run,
};

#[test]
fn fuzz_tenants() {
    TARGET.fuzz();
}
