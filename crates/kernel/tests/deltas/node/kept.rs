//! What is there stays where what is wanted may be older.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::*;

#[test]
fn what_may_be_newer_stays_and_what_is_said_of_an_address_is_written() {
    let way = Way::Nft;
    let mut lab = Lab::isolated(way, settings(way));
    let supplement = |lab: &mut Lab, addresses: &[&str]| {
        let (rules, contents) = (lab.ruleset(), lab.rules.contents(&lab.index));
        let addresses: BTreeSet<IpAddr> = addresses.iter().map(|one| one.parse().unwrap()).collect();
        lab.table.supplement(&rules, &contents, &addresses, Thoroughness::Everything).unwrap()
    };
    let b_in = |ports: Value| {
        json!({"podSelector": {"matchLabels": {"app": "b"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": ports}]})
    };
    // The kernel has gone on: another port, another peer, and a policy more.
    lab.put_policy("b-in", b_in(json!([{"port": 9090}])));
    lab.put_peer("far", "192.0.2.9", &json!({"app": "a"}));
    lab.put_policy("b-more", json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": []}));
    let before = listed(&lab.node, way).0;
    // What is known is older.
    lab.is_loaded = false;
    lab.put_policy("b-in", b_in(json!([{"port": 8080}])));
    lab.put_peer("far", "192.0.2.9", &json!({"app": "other"}));
    let effects = lab.index.policy(
        &lab.world,
        &policy::PolicyName {
            section: policy::Section::NetworkPolicy,
            namespace: "x".into(),
            name: "b-more".into(),
        },
        None,
    );
    lab.apply(&effects);
    assert_eq!(
        supplement(&mut lab, &[]),
        Change::Replaced,
        "the class of b without the new policy is not there"
    );
    let held = listed(&lab.node, way).0;
    let is_kept = |line: &&str| !line.trim().is_empty() && !held.contains(line.trim());
    let gone: Vec<&str> = before.lines().filter(is_kept).collect();
    assert_eq!(gone, Vec::<&str>::new(), "all that was there is there still, with its handles");
    assert_eq!(supplement(&mut lab, &[]), Change::None);
    assert!(lab.reaches(&lab.outside, "10.1.0.3:9090") && !lab.reaches(&lab.outside, "10.1.0.3:8080"));
    // A pod starts with an address that another one had.
    lab.put_pod("c", "192.0.2.9", &json!({"app": "c"}));
    assert_eq!(supplement(&mut lab, &["192.0.2.9"]), Change::Replaced);
    assert!(!lab.reaches(&lab.outside, "10.1.0.3:9090"), "it has none of its rights");
    assert!(lab.reaches(&lab.node, "10.1.0.3:9090"));
    assert_eq!(supplement(&mut lab, &["192.0.2.9"]), Change::None);
    // Without a table all is made.
    sh(&lab.node, &format!("nft delete table {TABLE}"));
    assert_eq!(supplement(&mut lab, &[]), Change::Fresh);
    assert!(lab.reaches(&lab.a, "10.1.0.3:8080") && !lab.reaches(&lab.a, "10.1.0.3:9090"));
}

/// What somebody has emptied is filled again, in both backends; who looks again finds nothing to do.
#[test]
fn what_was_emptied_is_made_again() {
    at_once(&Way::ALL, |way| {
        let mut lab = Lab::isolated(way, settings(way));
        let supplement = |lab: &mut Lab| {
            let (rules, contents) = (lab.ruleset(), lab.rules.contents(&lab.index));
            let everything = Thoroughness::Everything;
            lab.table.supplement(&rules, &contents, &BTreeSet::new(), everything).unwrap()
        };
        let content = |lab: &Lab| {
            let lines = listed(&lab.node, way).0;
            lines
                .lines()
                .map(|line| line.split(" # handle").next().unwrap().to_owned())
                .collect::<BTreeSet<_>>()
        };
        let before = content(&lab);
        // Another agent's table, and this one's first look at it: of what only this node says it is known what was there.
        let isolates = match way {
            Way::Nft => format!(
                "nft flush map {TABLE} $(nft list table {TABLE} | sed -n 's/^.map \\([^ ]*\\) {{/\\1/p' | head -n 1); nft flush set {TABLE} istio-np-local-v4"
            ),
            Way::Iptables(_) => "ipset flush istio-np-ingress-v4; ipset flush istio-np-local-v4".to_owned(),
        };
        sh(&lab.node, &isolates);
        assert_ne!(content(&lab), before, "{way:?} {isolates}");
        assert_ne!(supplement(&mut lab), Change::None, "{way:?} {isolates}");
        assert_eq!(content(&lab), before, "{way:?} {isolates}");
        assert_eq!(supplement(&mut lab), Change::None, "{way:?}");
        let empty = match way {
            Way::Nft => [
                format!(
                    "for chain in $(nft list table {TABLE} | sed -n 's/^.chain \\([^ ]*\\) {{/\\1/p'); do nft flush chain {TABLE} $chain; done"
                ),
                format!(
                    "for map in $(nft list table {TABLE} | sed -n 's/^.map \\([^ ]*\\) {{/\\1/p'); do nft flush map {TABLE} $map; done"
                ),
                format!(
                    "for set in $(nft list table {TABLE} | sed -n 's/^.set \\([^ ]*\\) {{/\\1/p'); do nft flush set {TABLE} $set; done"
                ),
            ],
            Way::Iptables(variant) => [
                format!("iptables-{variant} -t mangle -F"),
                "ipset flush".to_owned(),
                format!(
                    "iptables-{variant} -t mangle -F ISTIO_NP_INGRESS && ipset flush istio-np-ingress-v4"
                ),
            ],
        };
        for line in empty {
            sh(&lab.node, &line);
            assert_ne!(content(&lab), before, "{line}");
            assert_ne!(supplement(&mut lab), Change::None, "{way:?} {line}");
            assert_eq!(content(&lab), before, "{way:?} {line}");
            assert_eq!(supplement(&mut lab), Change::None, "{way:?} {line}");
        }
        assert_isolated(&lab);
    });
}
