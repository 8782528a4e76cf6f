//! The node's namespace.

use ruleset::listed::{ListedTable, Lister, parse_line};
use ruleset::{Backend, ChainKind, Family, Hook, Plan};

use super::{conflicts, found};
use crate::sample::{AGE, foreign, node, saved};
use crate::{ConflictId, ObservedNetns, Resolution, Severity};

fn with(backend: Backend, tables: Vec<ListedTable>) -> (ObservedNetns, Plan) {
    let (mut observed, plan) = node(backend);
    observed.tables.extend(tables);
    (observed, plan)
}

#[test]
fn rules_of_ours_alone_are_no_conflict() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let (observed, plan) = node(backend);
        let examined = super::examine(&observed, &plan);
        assert_eq!(examined.conflicts, [], "{backend}");
        // Programs of the node are not asked for.
        assert_eq!((examined.not_looked_at, examined.out_of_sight), (Vec::new(), Vec::new()), "{backend}");
    }
}

/// Such as firewalld loads: everything is dropped that nothing allows.
fn firewall(hook: Hook, rules: &[&str]) -> ListedTable {
    let mut table = foreign("firewalld", ChainKind::Filter, hook, 10, rules);
    table.chains[0].drops = true;
    table
}

#[test]
fn a_firewall_that_drops_probes_is_told_with_the_rule_that_helps() {
    for (hook, rules, policy) in [
        (Hook::Output, &["-o lo -j ACCEPT", "-d 192.0.2.0/24 -j ACCEPT"][..], "policy of chain output: drop"),
        (Hook::Postrouting, &["-s 192.0.2.0/24 -j ACCEPT"], "policy of chain postrouting: drop"),
        (
            Hook::Input,
            &["-i lo -j ACCEPT", "-p tcp -m tcp --dport 22 -j ACCEPT"],
            "policy of chain input: drop",
        ),
    ] {
        let (observed, plan) = with(Backend::Nftables, vec![firewall(hook, rules)]);
        let told = conflicts(&observed, &plan);
        let [conflict] = &told[..] else { panic!("{told:?}") };
        assert_eq!((conflict.id, conflict.severity), (ConflictId::H1, Severity::Error));
        assert_eq!(conflict.foreign, policy);
        assert!(conflict.advice.contains("nft insert rule ip firewalld"), "{}", conflict.advice);
        // What is suggested in iptables' words, which this table can be given here.
        let rule = conflict.advice.rsplit("iptables' words `").next().unwrap().trim_end_matches('`');
        let mut helped = firewall(hook, rules);
        helped.chains[0].rules.insert(0, parse_line(rule, Family::V4));
        let (observed, plan) = with(Backend::Nftables, vec![helped]);
        assert_eq!(found(&observed, &plan), [""; 0], "{rule}");
    }
    let (observed, plan) = with(Backend::Nftables, vec![firewall(Hook::Output, &["-p tcp -j DROP"])]);
    let told = conflicts(&observed, &plan);
    assert_eq!((told[0].foreign.as_str(), told.len()), ("-p tcp -j DROP", 1), "the very rule");
    let allows = firewall(Hook::Input, &["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]);
    let (observed, plan) = with(Backend::Nftables, vec![allows]);
    assert_eq!(found(&observed, &plan), [""; 0], "answers are let through");
}

#[test]
fn another_source_for_probes_is_told_with_what_ours_can_do() {
    let masquerade = |priority, age| ListedTable {
        age: Some(age),
        ..foreign("x", ChainKind::Nat, Hook::Postrouting, priority, &["-p tcp -j MASQUERADE"])
    };
    for (table, wanted) in
        [(masquerade(99, AGE + 1), Resolution::None), (masquerade(100, AGE + 1), Resolution::Reregister)]
    {
        let (observed, plan) = with(Backend::Nftables, vec![table]);
        let told = conflicts(&observed, &plan);
        let [conflict] = &told[..] else { panic!("{told:?}") };
        assert_eq!(
            (conflict.id, conflict.severity, conflict.resolution),
            (ConflictId::H2, Severity::Error, wanted)
        );
    }
    let (observed, plan) = with(Backend::Nftables, vec![masquerade(101, AGE + 1)]);
    assert_eq!(found(&observed, &plan), [""; 0], "ours comes first");
    let (mut observed, plan) = node(Backend::Iptables);
    let nat = observed.tables.iter_mut().find(|table| table.name == "ip nat").unwrap();
    let chain = nat.chains.iter_mut().find(|chain| chain.name == "POSTROUTING").unwrap();
    chain.rules.insert(0, parse_line("-j SNAT --to-source 192.0.2.1", Family::V4));
    let told = conflicts(&observed, &plan);
    assert_eq!((told[0].id, told[0].resolution), (ConflictId::H2, Resolution::MoveToHead), "{told:?}");
    assert!(told[0].affects.contains("192.0.2.1"), "{}", told[0].affects);
}

#[test]
fn policies_of_the_network_that_drop_probes_are_told_as_such() {
    let text = "*filter\n:OUTPUT ACCEPT [0:0]\n:cali-OUTPUT - [0:0]\n:cali-to-wl-dispatch - [0:0]\n-A OUTPUT -j cali-OUTPUT\n\
        -A cali-OUTPUT -j cali-to-wl-dispatch\n-A cali-to-wl-dispatch -p tcp -j DROP\nCOMMIT\n";
    let (observed, plan) = with(Backend::Nftables, saved(Lister::IptablesNft, text));
    let told = conflicts(&observed, &plan);
    let [conflict] = &told[..] else { panic!("{told:?}") };
    assert_eq!((conflict.id, &*conflict.place.chain), (ConflictId::H4, "cali-to-wl-dispatch"));
    assert!(conflict.advice.contains("169.254.7.127"), "{}", conflict.advice);
}

#[test]
fn marks_on_the_node_are_no_conflict() {
    let mark = "-j MARK --set-xmark 0x539/0xffffffff";
    for hook in [Hook::Output, Hook::Prerouting, Hook::Forward] {
        let (observed, plan) =
            with(Backend::Nftables, vec![foreign("x", ChainKind::Filter, hook, -150, &[mark])]);
        assert_eq!(found(&observed, &plan), [""; 0]);
    }
}

#[test]
fn neighbours_on_the_node_are_told_apart() {
    let kube_proxy = foreign(
        "kube-proxy",
        ChainKind::Nat,
        Hook::Postrouting,
        100,
        &["-m mark --mark 0x4000/0x4000 -j MASQUERADE"],
    );
    let (observed, plan) = with(Backend::Nftables, vec![kube_proxy]);
    assert_eq!(found(&observed, &plan), ["CF-H10 info"]);
    let cache = foreign(
        "x",
        ChainKind::Filter,
        Hook::Output,
        -300,
        &["-s 169.254.20.10/32 -p udp -m udp --sport 53 -j NOTRACK"],
    );
    let (observed, plan) = with(Backend::Nftables, vec![cache]);
    assert_eq!(found(&observed, &plan), ["CF-H7 info"]);
    let upstream = "*nat\n:POSTROUTING ACCEPT [0:0]\n:ISTIO_POSTRT - [0:0]\n-A POSTROUTING -j ISTIO_POSTRT\n\
        -A ISTIO_POSTRT -p tcp -m owner --socket-exists -m set --match-set istio-inpod-probes-v4 dst -j SNAT --to-source 169.254.7.127\nCOMMIT\n";
    let (observed, plan) = with(Backend::Nftables, saved(Lister::IptablesNft, upstream));
    assert!(found(&observed, &plan).contains(&"CF-H14 error".to_owned()));
}

#[test]
fn settings_of_the_node_are_told() {
    let (mut observed, plan) = node(Backend::Nftables);
    observed.sysctls.insert("net/ipv4/conf/veth1/rp_filter".to_owned(), "1".to_owned());
    assert_eq!(found(&observed, &plan), ["CF-H9 warning"]);
}
