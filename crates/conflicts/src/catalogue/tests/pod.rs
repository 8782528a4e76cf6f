//! Rules of others in a pod's namespace.

use ruleset::listed::{ListedTable, Lister, attribute, planned};
use ruleset::{Backend, ChainKind, Family, Hook};

use super::{above_info, examine, found, kinds, one, with};
use crate::sample::{AGE, ambient, foreign, pod_with, saved, sidecar};
use crate::{ConflictId, ObservedNetns, Resolution, RoutingRule, RuleLookup, Severity, conflicts};

const REDIRECT: &str = "-p tcp -j REDIRECT --to-ports 9999";

fn nat(priority: i32) -> ListedTable {
    foreign("x", ChainKind::Nat, Hook::Output, priority, &[REDIRECT])
}

fn filter(hook: Hook, priority: i32, rules: &[&str]) -> ListedTable {
    foreign("x", ChainKind::Filter, hook, priority, rules)
}

#[test]
fn rules_of_ours_alone_are_no_conflict() {
    for backend in [Backend::Nftables, Backend::Iptables] {
        let (observed, plan) = ambient(backend);
        assert_eq!(found(&observed, &plan), [""; 0], "{backend}");
        for tproxy in [false, true] {
            let plan = sidecar(backend, tproxy);
            assert_eq!(found(&pod_with(&plan), &plan), [""; 0], "{backend}");
        }
    }
}

/// The fifteen settings whose effect on a connection was measured: those that changed it are told with their rule, and of the others nothing
/// worse than `info`.
#[test]
fn each_foreign_setting_that_changed_a_connection_is_told() {
    let before = one(nat(-101));
    assert_eq!(
        (before.id, before.severity, before.resolution),
        (ConflictId::P1, Severity::Error, Resolution::None)
    );
    assert_eq!((&*before.foreign, &*before.place.table, before.place.priority), (REDIRECT, "x", Some(-101)));
    assert!(before.affects.contains("goes by this rule instead of to port 15001"), "{}", before.affects);
    let equal = one(nat(-100));
    assert_eq!(
        (equal.id, equal.severity, equal.resolution),
        (ConflictId::P1, Severity::Error, Resolution::Reregister)
    );
    let older = with(ListedTable { age: Some(AGE - 1), ..nat(-100) });
    assert_eq!(kinds(&older), ["CF-P2 info"], "it was there before ours");
    for lister in [Lister::IptablesLegacy, Lister::IptablesNft] {
        let text = format!("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT {REDIRECT}\nCOMMIT\n");
        let [table] = &saved(lister, &text)[..] else { panic!("one table") };
        assert_eq!(kinds(&with(table.clone())), ["CF-P1 error"], "after ours");
        let older = with(ListedTable { age: Some(AGE - 1), ..table.clone() });
        assert_eq!(above_info(&older), [""; 0], "before ours");
        let unknown = with(ListedTable { age: None, ..table.clone() });
        assert_eq!(kinds(&unknown), ["CF-P1 warning"], "nobody knows when it came");
    }
    assert_eq!(above_info(&with(foreign("x", ChainKind::Nat, Hook::Output, -101, &["-j ACCEPT"]))), [""; 0]);
    assert_eq!(kinds(&with(filter(Hook::Output, -300, &["-j NOTRACK"]))), ["CF-P5 error"]);
    assert_eq!(
        kinds(&with(filter(Hook::Output, 0, &["-p tcp -m tcp --dport 15001 -j DROP"]))),
        ["CF-P3 error"]
    );
    assert_eq!(kinds(&with(filter(Hook::Output, -200, &["-j ACCEPT"]))), [""; 0]);
    for mark in ["0x539", "0x4539", "0x111"] {
        let rule = format!("-j MARK --set-xmark {mark}/0xffffffff");
        assert_eq!(kinds(&with(filter(Hook::Output, -150, &[&rule]))), ["CF-P6 error"], "{mark}");
    }
    let mut closed = filter(Hook::Input, 0, &["-i eth0 -j ACCEPT"]);
    closed.chains[0].drops = true;
    assert_eq!(kinds(&with(closed)), ["CF-P3 error"]);
    let (mut observed, plan) = ambient(Backend::Nftables);
    observed.rules.push(rule_to_main(100));
    let [conflict] = &conflicts(&observed, &plan)[..] else { panic!("one conflict") };
    assert_eq!((conflict.id, conflict.severity), (ConflictId::P12, Severity::Error));
    assert_eq!(conflict.foreign, "ip rule 100: from all lookup main");
}

fn rule_to_main(preference: u32) -> RoutingRule {
    RoutingRule {
        family: Family::V4,
        preference,
        mark: None,
        from: None,
        to: None,
        in_interface: None,
        out_interface: None,
        not: false,
        asks_more: false,
        lookup: RuleLookup::Table(254),
        text: format!("{preference}: from all lookup main"),
    }
}

#[test]
fn an_iptables_rule_before_our_jump_can_be_moved_behind_it() {
    let (mut observed, plan) = ambient(Backend::Iptables);
    let nat = observed.tables.iter_mut().find(|table| table.name == "ip nat").unwrap();
    let output = nat.chains.iter_mut().find(|chain| chain.name == "OUTPUT").unwrap();
    output.rules.insert(0, ruleset::listed::parse_line(REDIRECT, Family::V4));
    let [conflict] = &conflicts(&observed, &plan)[..] else { panic!("one conflict") };
    assert_eq!((conflict.id, conflict.resolution), (ConflictId::P1, Resolution::MoveToHead));
}

#[test]
fn a_pod_that_leads_a_foreign_address_elsewhere_is_left_to_it() {
    let dnat = "-d 203.0.113.9/32 -p tcp -j DNAT --to-destination 198.51.100.7:80";
    let table = foreign("x", ChainKind::Nat, Hook::Output, -100, &[dnat]);
    assert_eq!(kinds(&with(table)), ["CF-P1 info"]);
}

#[test]
fn the_missing_accept_rule_is_told_in_both_notations_and_helps() {
    let mut closed = filter(Hook::Input, 0, &["-i eth0 -j ACCEPT"]);
    closed.chains[0].drops = true;
    let conflict = one(closed.clone());
    assert!(
        conflict.advice.contains("`nft insert rule ip x input iifname \"lo\" tcp dport 15001 accept`"),
        "{}",
        conflict.advice
    );
    assert!(conflict.advice.contains("`-i lo -p tcp --dport 15001 -j ACCEPT`"), "{}", conflict.advice);
    let accept = ["-i lo -p tcp --dport 15001 -j ACCEPT", "-i lo -p udp --dport 15053 -j ACCEPT"];
    for line in accept {
        closed.chains[0].rules.insert(0, ruleset::listed::parse_line(line, Family::V4));
    }
    closed.chains[0]
        .rules
        .push(ruleset::listed::parse_line("-i lo -p tcp --dport 15053 -j ACCEPT", Family::V4));
    assert_eq!(kinds(&with(closed)), [""; 0]);
}

/// What would not get through without the mesh either is a firewall that does its work.
#[test]
fn a_firewall_that_drops_with_and_without_the_mesh_is_no_conflict() {
    let refuses = filter(
        Hook::Input,
        0,
        &["-i eth0 -p tcp -m tcp --dport 15006 -s 192.0.2.1/32 -j DROP", "-s 192.0.2.0/24 -j DROP"],
    );
    assert_eq!(above_info(&with(refuses)), [""; 0]);
    let early = filter(Hook::Prerouting, -300, &["-s 192.0.2.0/24 -j DROP"]);
    assert_eq!(kinds(&with(early)), ["CF-P4 warning"], "ours never see it, which may be meant");
}

#[test]
fn untracked_name_resolution_says_nothing_of_other_traffic() {
    let notrack = "-d 10.0.0.0/8 -p udp -m udp --dport 53 -j NOTRACK";
    let found = with(filter(Hook::Output, -300, &[notrack]));
    assert!(found.iter().all(|conflict| !conflict.affects.contains("TCP")), "{found:?}");
    assert_eq!(found.len(), 1, "name resolution itself escapes: {found:?}");
    let (mut observed, plan) = ambient(Backend::Nftables);
    observed.tables.push(filter(Hook::Output, -300, &["-d 10.0.0.0/8 -p tcp -m tcp --dport 53 -j NOTRACK"]));
    let found = conflicts(&observed, &plan);
    assert!(found.iter().all(|conflict| !conflict.affects.contains(":80")), "{found:?}");
}

#[test]
fn what_could_not_be_read_is_a_warning_at_most() {
    for rule in [
        "-j MYSTERY",
        "-m string --string x -j MYSTERY",
        "-m string --string x -j DROP",
        "-m bpf --bytecode x -j NOTRACK",
    ] {
        for (kind, hook, priority) in [
            (ChainKind::Nat, Hook::Output, -101),
            (ChainKind::Filter, Hook::Output, -300),
            (ChainKind::Filter, Hook::Input, 0),
        ] {
            let found = with(foreign("x", kind, hook, priority, &[rule]));
            assert!(found.iter().all(|conflict| conflict.severity < Severity::Error), "{rule}: {found:?}");
        }
    }
}

#[test]
fn other_meshes_are_named_in_every_variant() {
    let linkerd = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:PROXY_INIT_OUTPUT - [0:0]\n:PROXY_INIT_REDIRECT - [0:0]\n\
        -A PREROUTING -m comment --comment \"proxy-init/install-proxy-init-prerouting\" -j PROXY_INIT_REDIRECT\n\
        -A OUTPUT -m comment --comment \"proxy-init/install-proxy-init-output\" -j PROXY_INIT_OUTPUT\n\
        -A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN\n-A PROXY_INIT_OUTPUT -o lo -j RETURN\n\
        -A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-ports 4140\n\
        -A PROXY_INIT_REDIRECT -p tcp -m multiport --dports 4190,4191 -j RETURN\n\
        -A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-ports 4143\nCOMMIT\n";
    let kuma = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:KUMA_MESH_INBOUND - [0:0]\n:KUMA_MESH_OUTBOUND - [0:0]\n\
        -A PREROUTING -p tcp -j KUMA_MESH_INBOUND\n-A OUTPUT -p tcp -j KUMA_MESH_OUTBOUND\n\
        -A KUMA_MESH_INBOUND -p tcp -j REDIRECT --to-ports 15006\n-A KUMA_MESH_OUTBOUND -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
    let consul = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:CONSUL_PROXY_INBOUND - [0:0]\n:CONSUL_PROXY_OUTPUT - [0:0]\n\
        -A PREROUTING -p tcp -j CONSUL_PROXY_INBOUND\n-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT\n\
        -A CONSUL_PROXY_INBOUND -p tcp -j REDIRECT --to-ports 20000\n-A CONSUL_PROXY_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
    for (mesh, text) in [("linkerd", linkerd), ("kuma", kuma), ("consul", consul)] {
        for lister in [Lister::IptablesNft, Lister::IptablesLegacy] {
            for backend in [Backend::Nftables, Backend::Iptables] {
                let (mut observed, plan) = ambient(backend);
                observed.tables.extend(saved(lister, text));
                let told = conflicts(&observed, &plan);
                let named = |conflict: &&crate::Conflict| conflict.id == ConflictId::P8;
                let told = told.iter().find(named).unwrap_or_else(|| panic!("{mesh} {lister:?}: {told:?}"));
                assert!(told.severity == Severity::Error && told.affects.starts_with(mesh), "{told:?}");
            }
        }
    }
    let nft = ListedTable::nft("inet consul_tproxy", ruleset::Families::Both);
    let chains = nat(-100).chains;
    let told = with(ListedTable { chains, age: Some(AGE + 1), ..nft });
    assert!(
        told.iter().any(|conflict| conflict.id == ConflictId::P8 && conflict.affects.starts_with("consul"))
    );
}

#[test]
fn chains_of_docker_are_worth_knowing_and_no_more() {
    let docker = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
        -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n-A DOCKER -i docker0 -j RETURN\nCOMMIT\n\
        *filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n\
        -A FORWARD -o docker0 -j DOCKER\n-A DOCKER-USER -j RETURN\nCOMMIT\n";
    let (mut observed, plan) = ambient(Backend::Nftables);
    observed.tables.extend(saved(Lister::IptablesNft, docker));
    assert_eq!(found(&observed, &plan), ["CF-P9 info"]);
}

#[test]
fn rules_of_istio_init_beside_ours_are_told() {
    let plan = sidecar(Backend::Iptables, false);
    let text: Vec<ListedTable> = planned(&plan.layers, Family::V4)
        .into_iter()
        .map(|mut table| {
            table.ours = false;
            table.chains.iter_mut().flat_map(|chain| &mut chain.rules).for_each(|rule| rule.why = None);
            ListedTable { age: Some(AGE - 1), ..table }
        })
        .collect();
    let ours = sidecar(Backend::Nftables, false);
    let mut observed = pod_with(&ours);
    observed.tables.extend(text);
    assert!(found(&observed, &ours).contains(&"CF-P7 error".to_owned()));
}

#[test]
fn rules_of_the_plan_are_known_in_tables_that_everybody_has() {
    let (mut observed, plan) = ambient(Backend::Iptables);
    for table in &mut observed.tables {
        table.ours = false;
        table.chains.iter_mut().flat_map(|chain| &mut chain.rules).for_each(|rule| rule.why = None);
    }
    let own: Vec<ListedTable> =
        [Family::V4, Family::V6].into_iter().flat_map(|family| planned(&plan.layers, family)).collect();
    attribute(&mut observed.tables, &own);
    assert!(observed.tables.iter().all(|table| table.ours));
    assert_eq!(found(&observed, &plan), [""; 0]);
}

#[test]
fn both_families_are_told_by_themselves() {
    let mut six = nat(-101);
    six.families = ruleset::Families::Only(Family::V6);
    six.name = "ip6 x".to_owned();
    let conflict = one(six);
    assert_eq!(conflict.place.family, "ip6");
    assert!(conflict.affects.contains("[2001:db8::4d]"), "{}", conflict.affects);
}

#[test]
fn twenty_thousand_rules_of_others_are_bounded_and_said_to_be() {
    let lines: Vec<String> = (0..20_000u32)
        .map(|n| format!("-s 192.{}.{}.{}/32 -p tcp -j DROP", n >> 16, (n >> 8) & 0xff, n & 0xff))
        .collect();
    let rules: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (mut observed, plan) = ambient(Backend::Nftables);
    observed.tables.push(filter(Hook::Prerouting, -300, &rules));
    observed.tables.push(nat(-101));
    let begin = std::time::Instant::now();
    let examined = examine(&observed, &plan);
    // The bound is ten times this in a build that is optimized.
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    assert!(examined.conflicts.iter().any(|conflict| conflict.id == ConflictId::P1));
    assert!(
        examined.not_looked_at.iter().any(|why| why.contains("more rules")),
        "{:?}",
        examined.not_looked_at
    );
}

#[test]
fn what_was_not_looked_at_is_said() {
    let (observed, plan) = ambient(Backend::Nftables);
    let observed = ObservedNetns { not_looked_at: vec!["table x is too large".to_owned()], ..observed };
    let examined = examine(&observed, &plan);
    assert_eq!(examined.not_looked_at, ["table x is too large"]);
    // A container does not see the control groups of others: no later look shows more.
    assert!(matches!(&*examined.out_of_sight, [why] if why.contains("connect(2)")), "{examined:?}");
}
