//! The samples, which an API server judges by the definitions in the chart, judged here; and what is made of what is not understood.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// Name, first line and object of each sample.
fn samples(folder: &str) -> Vec<(String, String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples/tenants").join(folder);
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let first = text.lines().next().unwrap_or_default().to_owned();
        (
            path.file_stem().unwrap().to_string_lossy().into_owned(),
            first,
            serde_saphyr::from_str(&text).unwrap(),
        )
    };
    fs::read_dir(folder).unwrap().map(read).collect()
}

fn faults(object: Value) -> TenantFaults {
    match object["kind"].as_str() {
        Some("TenantGrant") => serde_json::from_value::<TenantGrant>(object).unwrap().faults,
        _ => serde_json::from_value::<NetworkTenant>(object).unwrap().faults,
    }
}

#[test]
fn all_of_a_valid_sample_is_understood() {
    let all = samples("valid");
    assert_eq!(all.len(), 20);
    for (name, _, object) in all {
        assert_eq!(faults(object), TenantFaults::default(), "{name}");
    }
}

#[test]
fn the_first_fault_of_an_invalid_sample_is_what_its_first_line_says() {
    let all = samples("invalid");
    assert_eq!(all.len(), 40);
    for (name, first, object) in all {
        let found = faults(object);
        let expected = first.strip_prefix("# refused: ").unwrap_or_else(|| panic!("{name}: {first}"));
        assert_eq!(found.first.first().map(ToString::to_string).as_deref(), Some(expected), "{name}");
    }
}

fn tenant(spec: Value) -> NetworkTenant {
    let mut object = json!({"metadata": {"name": "red"}});
    object["spec"] = spec;
    serde_json::from_value(object).unwrap()
}

fn rules(rules: Value) -> Box<[TenantRule]> {
    let mut spec = json!({"namespaces": ["red"], "networkPolicy": {}});
    spec["networkPolicy"]["ingressRules"] = rules;
    tenant(spec).ingress
}

#[test]
fn what_is_not_understood_allows_nothing_and_denies_everything() {
    let odd_peer = json!([{"tenant": "blue"}, {"serviceAccount": "x"}]);
    let allowing = rules(json!([{"name": "a", "action": "Allow", "peers": odd_peer}]));
    assert!(matches!(&allowing[0].peers, Entries::Of(peers) if peers.len() == 1), "{allowing:?}");
    let denying = rules(json!([{"name": "a", "action": "Deny", "peers": odd_peer, "ports": [{"port": 1}]}]));
    assert_eq!(denying[0].peers, Entries::Any);
    assert!(matches!(&denying[0].ports, Entries::Of(ports) if ports.len() == 1), "{denying:?}");
    let odd_ports = json!([{"port": 1}, {"port": "http"}]);
    for (action, expected) in [("Allow", 1), ("Deny", 0)] {
        let rule =
            &rules(json!([{"name": "a", "action": action, "peers": [{"tenant": "b"}], "ports": odd_ports}]))
                [0];
        let count = if let Entries::Of(ports) = &rule.ports { ports.len() } else { 0 };
        assert_eq!(count, expected, "{action}: {rule:?}");
    }
    let unknown_field =
        json!([{"name": "a", "action": "Allow", "peers": [{"tenant": "b"}], "when": "night"}]);
    assert_eq!(rules(unknown_field)[0].peers, Entries::Of([].into()));
    for odd in [
        json!([{"name": "a", "action": "Log", "peers": [{"tenant": "b"}]}]),
        json!("all"),
        Value::Array(
            (0..65)
                .map(|n| json!({"name": format!("r{n}"), "action": "Allow", "peers": [{"tenant": "b"}]}))
                .collect(),
        ),
    ] {
        let last = rules(odd).last().unwrap().clone();
        assert_eq!((last.denies, last.peers, last.ports), (true, Entries::Any, Entries::Any));
    }
    let odd = tenant(
        json!({"namespaces": ["red"], "deniedIPRanges": ["10.0.0.0/8", "10.0.0.1/8"], "allowedIPRanges": ["10.0.0.0/8", 7],
        "defaults": {"external": "Perhaps", "unassigned": 1}, "enforcement": "Perhaps", "system": {"dns": "Perhaps"}}),
    );
    assert_eq!((odd.denied, odd.allowed.len(), odd.external), (Entries::Any, 1, TenantDefault::Deny));
    assert_eq!(
        (odd.enforcement, odd.allows_dns, odd.allows_api_server),
        (TenantEnforcement::Enforce, false, true)
    );
    assert_eq!(odd.faults.count, 6);
}

#[test]
fn a_large_object_ends_at_its_bound() {
    let peers: Vec<Value> =
        (0..16).map(|n| json!({"tenant": "b", "namespaces": (0..32).map(|m| format!("{}-{n}-{m}", "x".repeat(50))).collect::<Vec<_>>()})).collect();
    let all: Vec<Value> =
        (0..64).map(|n| json!({"name": format!("r{n}"), "action": "Allow", "peers": peers})).collect();
    let large = rules(json!(all));
    let last = large.last().unwrap();
    assert_eq!((last.denies, &last.peers), (true, &Entries::Any), "what has no place may deny");
}

#[test]
fn the_samples_mean_what_they_say() {
    let all = samples("valid");
    let read = |name: &str| -> NetworkTenant {
        let (_, _, object) = all.iter().find(|(known, ..)| known == name).unwrap();
        serde_json::from_value(object.clone()).unwrap()
    };
    let found = read("tenant-ingress-rule");
    let [rule] = &*found.ingress else { panic!("{found:?}") };
    let ports = Entries::Of([Port::Range(crate::networkpolicy::PolicyProtocol::Tcp, (8443, 8443))].into());
    let peer = TenantPeer::Pods {
        tenant: Some("blue".into()),
        namespaces: Some(["blue-api".into()].into()),
        labels: Selector::default(),
    };
    let expected =
        TenantRule { name: "from-blue-api".into(), denies: false, peers: Entries::Of([peer].into()), ports };
    assert_eq!((rule, &*found.egress), (&expected, &[][..]));
    assert_eq!(
        (found.deny_mode, found.external, found.allows_dns),
        (DenyMode::Reject, TenantDefault::Deny, true)
    );
    let Entries::Of(peers) = &read("tenant-peers-of-each-kind").egress[0].peers else { panic!("any peer") };
    assert_eq!(peers.len(), 8);
    let audited = read("tenant-audited");
    assert_eq!(
        (audited.enforcement, read("tenant-off").enforcement),
        (TenantEnforcement::Audit, TenantEnforcement::Off)
    );
    assert_eq!(read("tenant-defaults").unassigned, TenantDefault::AllowEgress);
}
