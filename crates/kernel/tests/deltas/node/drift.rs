//! Others change a node's rules.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::*;

#[test]
fn whatever_others_do_to_a_nodes_rules_is_put_right() {
    at_once(&Way::ALL, is_put_right);
}

fn is_put_right(way: Way) {
    let mut lab = Lab::isolated(way, settings(way));
    let drifts = match way {
        Way::Nft => drifts_of_nftables(&lab),
        Way::Iptables(variant) => drifts_of_iptables(&lab, variant),
    };
    for (drift, thoroughness) in drifts {
        sh(&lab.node, &drift);
        assert_ne!(lab.ensure(thoroughness), Change::None, "{way:?}: {drift}");
        assert_eq!(lab.ensure(Thoroughness::Everything), Change::None, "{way:?}: after {drift}");
    }
    assert_isolated(&lab);
}

fn drifts_of_nftables(lab: &Lab) -> Vec<(String, Thoroughness)> {
    let map = sh(&lab.node, &format!("nft list map {TABLE} istio-np-ingress-v4"));
    let chain = map.split("jump ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let drifts = [
        (format!("flush table {TABLE}"), Thoroughness::Rules),
        (format!("flush chain {TABLE} {chain}"), Thoroughness::Rules),
        (format!("insert rule {TABLE} {chain} accept"), Thoroughness::Rules),
        (format!("add set {TABLE} theirs {{ type ipv4_addr ; }}"), Thoroughness::Rules),
        (format!("add chain {TABLE} theirs\nadd rule {TABLE} {chain} jump theirs"), Thoroughness::Rules),
        (format!("insert rule {TABLE} postrouting accept"), Thoroughness::Rules),
        (format!("delete chain {TABLE} postrouting-late"), Thoroughness::Rules),
        (format!("flush map {TABLE} istio-np-egress-v4"), Thoroughness::Everything),
        (
            format!(
                "delete element {TABLE} istio-np-ingress-v4 {{ 10.1.0.3 }}\n\
                 add element {TABLE} istio-np-ingress-v4 {{ 10.1.0.3 : accept, 10.9.9.9 : accept }}"
            ),
            Thoroughness::Everything,
        ),
        (format!("delete table {TABLE}"), Thoroughness::Rules),
        ("add table inet istio-policy-mangle { flags dormant ; }".to_owned(), Thoroughness::Rules),
    ];
    drifts.into_iter().map(|(drift, how)| (format!("nft -f - <<'END'\n{drift}\nEND"), how)).collect()
}

fn drifts_of_iptables(lab: &Lab, variant: Variant) -> Vec<(String, Thoroughness)> {
    let (four, six) = (format!("iptables-{variant} -t mangle"), format!("ip6tables-{variant} -t mangle"));
    let chains = sh(&lab.node, &format!("{four} -S ISTIO_NP_INGRESS"));
    let led = chains.lines().last().unwrap();
    let (set, chain) = (led.split_whitespace().nth(5).unwrap(), led.split_whitespace().last().unwrap());
    let everything = format!(
        "{four} -F; {four} -X; {six} -F; {six} -X; for set in $(ipset list -n); do ipset destroy $set; done"
    );
    [
        (format!("{four} -F {chain}"), Thoroughness::Rules),
        (format!("{six} -I {chain} -j RETURN"), Thoroughness::Rules),
        (format!("{four} -D POSTROUTING -j ISTIO_NP_POSTROUTING"), Thoroughness::Rules),
        (format!("{four} -A OUTPUT -j ISTIO_NP_POSTROUTING"), Thoroughness::Rules),
        (format!("{four} -N ISTIO_NP_THEIRS; {four} -A {chain} -j ISTIO_NP_THEIRS"), Thoroughness::Rules),
        (format!("{four} -D ISTIO_NP_INGRESS -m set --match-set {set} dst -j {chain}"), Thoroughness::Rules),
        (format!("{six} -I INPUT -j ACCEPT"), Thoroughness::Everything),
        (format!("{six} -D INPUT -j ACCEPT; ipset add {set} 10.9.9.9"), Thoroughness::Everything),
        (format!("ipset del {set} 10.1.0.3"), Thoroughness::Everything),
        ("ipset flush istio-np-egress-v4".to_owned(), Thoroughness::Everything),
        ("ipset create istio-np-theirs hash:ip".to_owned(), Thoroughness::Everything),
        (everything.clone(), Thoroughness::Rules),
        (format!("{everything}; ipset create {set} hash:net"), Thoroughness::Rules),
        (format!("{four} -F; ipset flush"), Thoroughness::Rules),
    ]
    .into()
}

#[test]
fn a_flush_is_heard_and_repaired_at_once() {
    at_once(&[Way::Nft, Way::Iptables(Variant::Nft)], is_heard);
}

fn is_heard(way: Way) {
    let mut lab = Lab::isolated(way, settings(way));
    lab.table.heard().unwrap();
    sh(&lab.node, "nft flush ruleset");
    let begun = Instant::now();
    let timeout = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    let ready =
        poll(&mut [PollFd::from_borrowed_fd(lab.table.descriptor().unwrap(), PollFlags::IN)], Some(&timeout));
    assert_eq!(ready.unwrap(), 1);
    assert!(lab.table.heard().unwrap().commits.iter().any(|commit| !commit.is_own()));
    assert_ne!(lab.ensure(Thoroughness::Rules), Change::None);
    let took = begun.elapsed();
    println!("{way:?}: repaired in {took:?}");
    // Milliseconds on an idle machine.
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!lab.reaches(&lab.outside, "10.1.0.3:8080") && lab.reaches(&lab.a, "10.1.0.3:8080"));
    if way != Way::Nft {
        // What a service proxy does all the time needs no program to be looked at.
        assert_eq!(lab.ensure(Thoroughness::Rules), Change::None);
        sh(&lab.node, "iptables-nft -t nat -N OTHERS");
        assert!(lab.table.is_undisturbed().unwrap());
        sh(&lab.node, "iptables-nft -t mangle -F ISTIO_NP_INPUT");
        assert!(!lab.table.is_undisturbed().unwrap());
        assert_eq!(lab.ensure(Thoroughness::Rules), Change::Replaced);
    }
    // Transactions of its own are no news; those of a program are.
    assert!(
        way != Way::Nft
            || lab.table.heard().unwrap().commits.iter().all(kernel::watch::RulesetCommit::is_own)
    );
}
