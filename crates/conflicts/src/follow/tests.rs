use ruleset::listed::{ListedTable, Lister};
use ruleset::{Backend, ChainKind, Hook};

use super::{LiveEnd, follow};
use crate::ObservedNetns;
use crate::sample::{AGE, ambient, foreign, inbound, outbound, saved};

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

/// The end in short: what and by which rule.
fn end(observed: &ObservedNetns, packet: &ruleset::eval::Packet) -> String {
    match follow(observed, packet).end {
        LiveEnd::Captured { port } => format!("captured {port}"),
        LiveEnd::Bypass { by } => format!("bypass by {} {}", by.why.map_or("foreign", |_| "ours"), by.text),
        LiveEnd::Dropped { by } => format!("dropped by {} {}", by.why.map_or("foreign", |_| "ours"), by.text),
        LiveEnd::Delivered => "delivered".to_owned(),
        LiveEnd::Unknown { by } => format!("unknown by {}", by.text),
    }
}

fn with(table: ListedTable) -> ObservedNetns {
    let (mut observed, _) = ambient(Backend::Nftables);
    observed.tables.push(table);
    observed
}

fn sent_with(table: ListedTable) -> String {
    end(&with(table), &outbound("203.0.113.9:80"))
}

#[test]
fn rules_of_ours_alone_capture() {
    for backend in BACKENDS {
        let (observed, _) = ambient(backend);
        for (packet, wanted) in [
            (outbound("203.0.113.9:80"), "captured 15001"),
            (outbound("[2001:db8::9]:80"), "captured 15001"),
            (outbound("203.0.113.9:53"), "captured 15053"),
            (inbound("10.0.0.9:8080"), "captured 15006"),
            (inbound("[fd00::9]:8080"), "captured 15006"),
        ] {
            assert_eq!(end(&observed, &packet), wanted, "{backend}");
        }
        let ztunnel = ruleset::eval::Packet { mark: 0x539, ..outbound("203.0.113.9:80") };
        assert!(
            end(&observed, &ztunnel).starts_with("bypass by ours") || end(&observed, &ztunnel) == "delivered"
        );
        let path = follow(&observed, &outbound("203.0.113.9:80"));
        let hooks: Vec<Hook> = path.stops.iter().map(|stop| stop.hook).collect();
        assert_eq!(hooks, [Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input]);
        assert!(
            path.stops[0].rules.iter().any(|rule| rule.why.as_deref().is_some_and(|why| !why.is_empty()))
        );
    }
}

/// What each setting of others did to a connection in a real kernel.
#[test]
fn each_foreign_setting_does_what_it_did_in_the_kernel() {
    let redirect = "-p tcp -j REDIRECT --to-ports 9999";
    let nat = |priority| foreign("x", ChainKind::Nat, Hook::Output, priority, &[redirect]);
    let filter = |hook, priority, rule: &str| foreign("x", ChainKind::Filter, hook, priority, &[rule]);
    let taken = format!("bypass by foreign {redirect}");
    assert_eq!(sent_with(nat(-101)), taken);
    assert_eq!(sent_with(nat(-100)), taken, "it came later, so it runs first");
    assert_eq!(sent_with(nat(-99)), "captured 15001");
    let accept = foreign("x", ChainKind::Nat, Hook::Output, -101, &["-j ACCEPT"]);
    assert_eq!(sent_with(accept), "captured 15001");
    assert_eq!(sent_with(filter(Hook::Output, -300, "-j NOTRACK")), "bypass by foreign -j NOTRACK");
    assert_eq!(sent_with(filter(Hook::Output, -199, "-j NOTRACK")), "captured 15001");
    let drop = "-p tcp -m tcp --dport 15001 -j DROP";
    assert_eq!(sent_with(filter(Hook::Output, 0, drop)), format!("dropped by foreign {drop}"));
    assert_eq!(sent_with(filter(Hook::Output, -200, "-j ACCEPT")), "captured 15001");
    for mark in ["0x539", "0x4539"] {
        let rule = format!("-j MARK --set-xmark {mark}/0xffffffff");
        assert_eq!(sent_with(filter(Hook::Output, -150, &rule)), format!("bypass by foreign {rule}"));
    }
    let mut closed = filter(Hook::Input, 0, "-i eth0 -j ACCEPT");
    closed.chains[0].drops = true;
    assert_eq!(sent_with(closed), "dropped by foreign policy of chain input: drop");
}

#[test]
fn chains_of_one_priority_whose_order_is_not_shown_leave_the_end_unknown() {
    let table = |age| ListedTable {
        age,
        ..foreign("x", ChainKind::Nat, Hook::Output, -100, &["-p tcp -j REDIRECT --to-ports 9999"])
    };
    for age in [Some(AGE - 1), None] {
        let told = sent_with(table(age));
        assert!(told.starts_with("unknown by whether chain output runs before or after"), "{told}");
    }
    let harmless =
        ListedTable { age: None, ..foreign("x", ChainKind::Nat, Hook::Output, -100, &["-j ACCEPT"]) };
    assert_eq!(sent_with(harmless), "captured 15001");
}

#[test]
fn what_could_not_be_read_may_hold_or_not() {
    let nat = |rule: &str| sent_with(foreign("x", ChainKind::Nat, Hook::Output, -101, &[rule]));
    let rule = "-p tcp -m string --string x -j REDIRECT --to-ports 9999";
    assert_eq!(nat(rule), format!("unknown by {rule}"));
    assert_eq!(nat("-m string --string x -j ACCEPT"), "captured 15001", "whether it holds or not");
    assert_eq!(nat("-p udp -m string --string x -j REDIRECT --to-ports 9"), "captured 15001");
    assert_eq!(nat("-m string --string x -j LOG"), "captured 15001");
    assert_eq!(nat("-j MYSTERY"), "unknown by -j MYSTERY");
}

#[test]
fn many_rules_that_cannot_be_read_are_bounded() {
    let accept = ["-m string --string x -j ACCEPT"; 60];
    let marks = ["-m string --string x -j MARK --set-xmark 0x1/0x1"; 60];
    assert_eq!(sent_with(foreign("x", ChainKind::Filter, Hook::Output, 0, &accept)), "captured 15001");
    let told = sent_with(foreign("x", ChainKind::Filter, Hook::Output, 0, &marks));
    assert!(told.contains("unknown by chain output has more rules"), "{told}");
}

#[test]
fn both_variants_of_iptables_are_followed_beside_nf_tables() {
    let text = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -j REDIRECT --to-ports 9999\nCOMMIT\n";
    for lister in [Lister::IptablesNft, Lister::IptablesLegacy] {
        let (mut observed, _) = ambient(Backend::Nftables);
        observed.tables.extend(saved(lister, text));
        let to = outbound("203.0.113.9:80");
        assert_eq!(end(&observed, &to), "bypass by foreign -p tcp -j REDIRECT --to-ports 9999");
        assert_eq!(end(&observed, &outbound("[2001:db8::9]:80")), "captured 15001", "it is for IPv4");
    }
}

#[test]
fn a_route_chain_that_marks_leads_the_packet_by_policy_routing() {
    let mark = |kind| foreign("x", kind, Hook::Output, -150, &["-j MARK --set-xmark 0x111/0xffffffff"]);
    let path = follow(&with(mark(ChainKind::Route)), &outbound("203.0.113.9:80"));
    assert!(matches!(path.end, LiveEnd::Bypass { .. }), "ours take it for an answer to ztunnel");
    let marked = foreign("x", ChainKind::Route, Hook::Output, 10, &["-j MARK --set-xmark 0x111/0xffffffff"]);
    let ztunnel = ruleset::eval::Packet { mark: 0x539, ..outbound("203.0.113.9:80") };
    let path = follow(&with(marked), &ztunnel);
    let hooks: Vec<Hook> = path.stops.iter().map(|stop| stop.hook).collect();
    assert_eq!(hooks.last(), Some(&Hook::Input), "the mark is routed here");
}

#[test]
fn what_is_translated_to_elsewhere_is_passed_on_only_where_the_namespace_forwards() {
    let dnat = "-d 10.0.0.9/32 -p tcp -j DNAT --to-destination 198.51.100.7:80";
    let mut observed = with(foreign("x", ChainKind::Nat, Hook::Prerouting, -101, &[dnat]));
    assert!(end(&observed, &inbound("10.0.0.9:80")).starts_with("dropped by foreign it is for elsewhere"));
    observed.sysctls.insert("net/ipv4/ip_forward".to_owned(), "1".to_owned());
    assert_eq!(end(&observed, &inbound("10.0.0.9:80")), format!("bypass by foreign {dnat}"));
}

#[test]
fn name_resolution_by_udp_is_captured() {
    let (observed, _) = ambient(Backend::Nftables);
    let packet = ruleset::eval::Packet { protocol: ruleset::Protocol::Udp, ..outbound("10.0.0.1:53") };
    assert_eq!(end(&observed, &packet), "captured 15053");
}

#[test]
fn a_legacy_table_of_unknown_age_may_come_before_or_after_ours() {
    let text =
        "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -j DNAT --to-destination 10.77.0.1:8080\nCOMMIT\n";
    let (mut observed, _) = ambient(Backend::Nftables);
    observed.tables.extend(
        saved(Lister::IptablesLegacy, text).into_iter().map(|table| ListedTable { age: None, ..table }),
    );
    let told = end(&observed, &outbound("203.0.113.9:80"));
    assert!(told.starts_with("unknown by whether"), "{told}");
    let empty = "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
    let older =
        saved(Lister::IptablesNft, empty).into_iter().map(|table| ListedTable { age: Some(1), ..table });
    observed.tables.extend(older);
    let told = end(&observed, &outbound("203.0.113.9:80"));
    assert!(told.starts_with("unknown by whether"), "with a third table: {told}");
}

/// TPROXY gives a packet the socket of a listener, by whose owner a rule of nf_tables may let it in.
#[test]
fn the_owner_of_a_socket_that_a_rule_gave_is_not_known() {
    let tproxy = "-p tcp -j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff";
    let (mut observed, _) = ambient(Backend::Nftables);
    observed.tables.push(foreign("x", ChainKind::Filter, Hook::Prerouting, -150, &[tproxy]));
    let of_proxy = "-m owner --uid-owner 1337 -j ACCEPT";
    let mut closed = foreign("y", ChainKind::Filter, Hook::Input, 0, &[of_proxy]);
    closed.chains[0].drops = true;
    observed.tables.push(closed);
    let packet = ruleset::eval::Packet { listening: true, ..inbound("10.0.0.9:8080") };
    assert_eq!(end(&observed, &packet), format!("unknown by {of_proxy}"));
}
