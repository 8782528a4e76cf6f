use super::*;

use crate::settings::{DnsCapture, Prefixes, Ranges};
use proptest::prelude::*;
use ruleset::{Family, Ruleset, check, iptables};

const NFT: PlanTarget = PlanTarget { backend: Backend::Nftables, ipv6: false };

fn tproxy() -> Settings {
    Settings { mode: Mode::Tproxy, ..Settings::default() }
}

fn rules(settings: &Settings, facts: PlanTarget) -> Ruleset {
    let [rules] = <[Ruleset; 1]>::try_from(plan(settings, facts).layers).expect("a plan has one layer");
    rules
}

/// The rules of a chain as nft has them, without comments.
fn chain(ruleset: &Ruleset, table: TableKind, name: &str) -> Vec<String> {
    let text = |rule: &Rule| {
        ruleset::nft::render_rule(rule).split(" comment ").next().unwrap_or_default().to_owned()
    };
    let chain = ruleset.table(table).and_then(|table| table.chain(name));
    chain.map(|chain| chain.rules.iter().map(text).collect()).unwrap_or_default()
}

#[test]
fn the_family_follows_the_pods_addresses() {
    for (addresses, single, dual) in [
        (&["10.0.0.1"][..], Ok(false), Ok(false)),
        (&["2001:db8::1"], Ok(true), Ok(true)),
        (&["10.0.0.1", "2001:db8::1"], Ok(false), Ok(true)),
        (&["2001:db8::1", "10.0.0.1"], Ok(true), Ok(true)),
        (&["127.0.0.1", "169.254.7.7", "10.0.0.1", "::1", "fe80::1"], Ok(false), Ok(false)),
        (&["127.0.0.1", "::1", "fe80::1", "2001:db8::1"], Ok(true), Ok(true)),
        (&["::ffff:10.0.0.1"], Ok(false), Ok(false)),
        (&["::ffff:127.0.0.1", "fd00::1"], Ok(true), Ok(true)),
        (
            &["127.0.0.1", "169.254.7.7", "fe80::1", "::1", "ff02::1", "224.0.0.5", "0.0.0.0", "::"],
            Err(NoAddress),
            Err(NoAddress),
        ),
        (&["ff12::1", "ff02::1"], Err(NoAddress), Err(NoAddress)),
        (&[], Err(NoAddress), Err(NoAddress)),
    ] {
        let parsed: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(detect_ipv6(&parsed, false), single, "{addresses:?}");
        assert_eq!(detect_ipv6(&parsed, true), dual, "{addresses:?} dual stack");
    }
    assert!(NoAddress.to_string().starts_with("no valid local IP address found"));
}

#[test]
fn routing_is_planned_only_where_it_is_needed() {
    let routing = |settings: &Settings, ipv6| plan(settings, PlanTarget { ipv6, ..NFT }).routing;
    assert_eq!(routing(&Settings::default(), false), []);
    assert!(matches!(routing(&Settings::default(), true)[..], [Routing::LoopbackAddress(address)]
        if address == PASSTHROUGH_V6.addr()));
    assert!(matches!(
        routing(&tproxy(), false)[..],
        [
            Routing::Rule { family: Family::V4, mark: 1337, mask: ALL_BITS, table: 133, priority: 32765 },
            Routing::LocalRoute { family: Family::V4, table: 133 }
        ]
    ));
    let both = routing(&tproxy(), true);
    assert!(matches!(both[..], [Routing::LoopbackAddress(_), ..]) && both.len() == 5);
    let nothing = Settings { inbound_ports: PortChoice::none(), ..tproxy() };
    assert_eq!(routing(&nothing, false), [], "nothing inbound is captured");
    let other = Settings { tproxy_mark: 42, tproxy_table: 200, ..tproxy() };
    assert!(matches!(routing(&other, false)[0], Routing::Rule { mark: 42, table: 200, .. }));
}

/// Whatever was captured: nothing is redirected, connection tracking stays on, and answers find back to the proxy.
#[test]
fn a_pod_that_drains_keeps_what_open_connections_need() {
    for mode in [Mode::Redirect, Mode::Tproxy] {
        for backend in [Backend::Nftables, Backend::Iptables] {
            let settings = Settings {
                mode,
                excluded_interfaces: vec!["net1".to_owned()],
                drop_invalid: true,
                ..Settings::default()
            };
            let facts = PlanTarget { backend, ipv6: true };
            let (plan, drain) = (plan(&settings, facts), plan_drain(&settings, facts));
            assert_eq!((drain.backend, &drain.routing), (backend, &plan.routing));
            let [rules] = &drain.layers[..] else { panic!("one layer") };
            check(rules).unwrap();
            let chains = rules.tables.iter().flat_map(|table| &table.chains);
            let captures = |rule: &&Rule| {
                matches!(rule.action, Action::Redirect { .. } | Action::Tproxy { .. } | Action::Drop)
            };
            assert_eq!(chains.flat_map(|chain| &chain.rules).find(captures), None);
            assert_eq!(
                chain(rules, TableKind::Nat, "istio-output"),
                ["ct state related,established counter return"]
            );
            let answers = |rules: &Ruleset| chain(rules, TableKind::Mangle, "output").last().cloned();
            assert_eq!(answers(rules), answers(&plan.layers[0]).filter(|_| mode == Mode::Tproxy));
        }
    }
}

#[test]
fn a_table_is_there_only_with_rules() {
    let tables = |settings: &Settings| rules(settings, NFT).tables.iter().map(|t| t.kind).collect::<Vec<_>>();
    use TableKind::{Mangle, Nat, Raw};
    assert_eq!(tables(&Settings::default()), [Nat]);
    assert_eq!(tables(&Settings { drop_invalid: true, ..Settings::default() }), [Nat, Mangle]);
    assert_eq!(tables(&Settings { dns: DnsCapture::All, ..Settings::default() }), [Nat, Raw]);
    assert_eq!(tables(&Settings { dns: DnsCapture::All, ..tproxy() }), [Nat, Mangle, Raw]);
}

/// Every chain that a plan may have is one that cleaning up knows.
#[test]
fn no_chain_is_unknown_to_cleanup() {
    let settings = Settings {
        dns: DnsCapture::All,
        drop_invalid: true,
        reroute_interfaces: vec!["tap0".to_owned()],
        excluded_interfaces: vec!["net1".to_owned()],
        ..tproxy()
    };
    for settings in [settings.clone(), Settings { mode: Mode::Redirect, ..settings }] {
        for table in rules(&settings, PlanTarget { ipv6: true, ..NFT }).tables {
            let (_, known) = CHAINS.iter().find(|(kind, _)| *kind == table.kind).unwrap();
            for chain in &table.chains {
                assert!(known.contains(&chain.name.as_ref()), "{}/{}", table.kind, chain.name);
            }
        }
    }
}

#[test]
fn drop_invalid_is_for_tcp_in_nftables_and_for_all_in_iptables() {
    let settings = Settings { drop_invalid: true, ..Settings::default() };
    let nft = rules(&settings, NFT);
    assert_eq!(
        chain(&nft, TableKind::Mangle, "prerouting"),
        ["meta l4proto tcp ct state invalid counter jump istio-drop"]
    );
    let iptables = rules(&settings, PlanTarget { backend: Backend::Iptables, ipv6: false });
    assert_eq!(
        chain(&iptables, TableKind::Mangle, "prerouting"),
        ["ct state invalid counter jump istio-drop"]
    );
    assert_eq!(chain(&nft, TableKind::Mangle, "istio-drop"), ["counter drop"]);
}

/// Families of which a layer has rules, all of them in built-in chains of iptables.
pub(crate) fn families_without_own_chain(layer: &Ruleset) -> Vec<Family> {
    let has = |family| {
        let chains = || layer.tables.iter().flat_map(|table| &table.chains);
        let has_rules = chains().any(|chain| iptables::rules(chain, family).next().is_some());
        let has_own = layer.tables.iter().any(|table| iptables::own_chains(table, family).next().is_some());
        layer.families().contains(&family) && has_rules && !has_own
    };
    [Family::V4, Family::V6].into_iter().filter(|family| has(*family)).collect()
}

/// The iptables backend knows by the names of chains whether anything of ours is there, and lists rules only then.
#[test]
fn where_a_plan_has_rules_it_has_a_chain_of_its_own() {
    let none = PortChoice::none;
    let mut all = vec![
        Settings::default(),
        Settings { inbound_ports: none(), ..Settings::default() },
        Settings { outbound_ranges: Ranges::Only(Prefixes::default()), ..Settings::default() },
        Settings {
            inbound_ports: none(),
            outbound_ranges: Ranges::Only(Prefixes::default()),
            ..Settings::default()
        },
        Settings {
            reroute_interfaces: vec!["tap0".to_owned()],
            excluded_interfaces: vec!["net1".to_owned()],
            ..Settings::default()
        },
    ];
    for settings in all.clone() {
        all.push(Settings { dns: DnsCapture::All, drop_invalid: true, ..settings });
    }
    for settings in all.clone() {
        all.push(Settings { mode: Mode::Tproxy, ..settings });
    }
    for settings in all {
        for backend in [Backend::Nftables, Backend::Iptables] {
            for ipv6 in [true, false] {
                let target = PlanTarget { backend, ipv6 };
                for layer in
                    [plan(&settings, target), plan_drain(&settings, target)].iter().flat_map(|p| &p.layers)
                {
                    assert_eq!(families_without_own_chain(layer), [], "{settings:?} {target:?}\n{layer:?}");
                }
            }
        }
    }
}

/// nf_tables goes on behind a tproxy rule whose port has no listener; iptables drops.
#[test]
fn with_nf_tables_a_drop_stands_behind_the_tproxy_rule_of_each_family() {
    let listed = Settings { inbound_ports: PortChoice::Only(vec![80, 443]), ..tproxy() };
    for settings in [tproxy(), listed] {
        let ruleset = rules(&settings, PlanTarget { ipv6: true, ..NFT });
        assert_eq!(
            chain(&ruleset, TableKind::Mangle, "istio-tproxy"),
            [
                "meta l4proto tcp ip daddr != 127.0.0.1/32 tproxy ip to :15006 meta mark set 1337 counter accept",
                "meta l4proto tcp ip daddr != 127.0.0.1/32 counter drop",
                "meta l4proto tcp ip6 daddr != ::1/128 tproxy ip6 to :15006 meta mark set 1337 counter accept",
                "meta l4proto tcp ip6 daddr != ::1/128 counter drop",
            ]
        );
        let iptables = rules(&settings, PlanTarget { backend: Backend::Iptables, ipv6: true });
        assert_eq!(chain(&iptables, TableKind::Mangle, "istio-tproxy").len(), 2);
    }
}

#[test]
fn excluded_inbound_ports_count_only_where_all_are_captured() {
    let to_proxy = |settings: &Settings, table| {
        let jumps =
            |rule: &&String| rule.contains("jump istio-in-redirect") || rule.contains("jump istio-tproxy");
        chain(&rules(settings, NFT), table, "istio-inbound").iter().filter(jumps).count()
    };
    for mode in [Mode::Redirect, Mode::Tproxy] {
        let table = if mode == Mode::Tproxy { TableKind::Mangle } else { TableKind::Nat };
        let with = |inbound_ports, inbound_ports_excluded| {
            to_proxy(&Settings { mode, inbound_ports, inbound_ports_excluded, ..Settings::default() }, table)
        };
        let list = || PortChoice::Only(vec![7000, 7001]);
        for excluded in [PortChoice::none(), list(), PortChoice::Only(vec![9]), PortChoice::All] {
            assert_eq!(with(list(), excluded), 2, "{mode:?}");
        }
        assert_eq!(with(PortChoice::All, list()), 1, "{mode:?}");
        assert_eq!(with(PortChoice::All, PortChoice::All), 0, "{mode:?}");
        assert_eq!(with(PortChoice::none(), PortChoice::none()), 0, "{mode:?}");
    }
}

/// TPROXY leaves the traffic of these interfaces to nat.
#[test]
fn the_last_range_of_a_rerouted_interface_comes_first() {
    let ranges = crate::values::parse_ranges("10.0.0.0/8,192.168.0.0/16").unwrap();
    let settings = Settings {
        reroute_interfaces: vec!["tap0".to_owned(), "tap1".to_owned()],
        outbound_ranges: ranges,
        ..tproxy()
    };
    let ruleset = rules(&settings, NFT);
    assert_eq!(
        chain(&ruleset, TableKind::Nat, "prerouting"),
        [
            "iifname \"tap1\" ip daddr 192.168.0.0/16 counter jump istio-redirect",
            "iifname \"tap0\" ip daddr 192.168.0.0/16 counter jump istio-redirect",
            "iifname \"tap1\" ip daddr 10.0.0.0/8 counter jump istio-redirect",
            "iifname \"tap0\" ip daddr 10.0.0.0/8 counter jump istio-redirect",
            "iifname \"tap1\" counter return",
            "iifname \"tap0\" counter return",
        ]
    );
    assert_eq!(
        chain(&ruleset, TableKind::Mangle, "prerouting")[..3],
        [
            "iifname \"tap0\" counter return",
            "iifname \"tap1\" counter return",
            "meta l4proto tcp counter jump istio-inbound"
        ]
    );
    assert_eq!(ruleset.table(TableKind::Nat).unwrap().chain("prerouting").unwrap().leading, 6);
}

#[test]
fn ports_that_stand_for_all() {
    let all = Settings { outbound_ports_excluded: PortChoice::All, ..Settings::default() };
    assert_eq!(
        chain(&rules(&all, NFT), TableKind::Nat, "istio-output")[..2],
        ["meta l4proto tcp counter return", "meta l4proto udp counter return"]
    );
    let none_inbound = Settings { inbound_ports_excluded: PortChoice::All, ..Settings::default() };
    assert!(chain(&rules(&none_inbound, NFT), TableKind::Nat, "prerouting").is_empty());
    let every = Settings {
        outbound_ports: PortChoice::All,
        outbound_ranges: crate::settings::Ranges::Only(Default::default()),
        ..Settings::default()
    };
    assert_eq!(
        chain(&rules(&every, NFT), TableKind::Nat, "istio-output").last().unwrap(),
        "meta l4proto tcp counter jump istio-redirect"
    );
}

#[test]
fn the_tunnel_at_the_dns_port_is_one_port_to_compare_with() {
    let settings = Settings { tunnel_port: 53, dns: DnsCapture::All, ..Settings::default() };
    let ruleset = rules(&settings, NFT);
    assert_eq!(check(&ruleset), Ok(()));
    assert!(
        chain(&ruleset, TableKind::Nat, "istio-output")
            .iter()
            .any(|rule| rule.contains("tcp dport != { 53 }"))
    );
}

/// A reason becomes an nft comment, and a cut or escaped one would not say what was meant.
#[test]
fn reasons_fit_into_comments() {
    let settings = Settings {
        dns: DnsCapture::All,
        drop_invalid: true,
        reroute_interfaces: vec!["abcdefghijklmno".to_owned()],
        excluded_interfaces: vec!["abcdefghijklmno".to_owned()],
        outbound_ranges: crate::values::parse_ranges("2001:db8:1111:2222:3333:4444:5555:6666/128").unwrap(),
        ..tproxy()
    };
    for table in rules(&settings, PlanTarget { ipv6: true, ..NFT }).tables {
        for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
            assert!(!rule.why.is_empty() && rule.why.len() <= ruleset::nft::COMMENT_MAX, "{:?}", rule.why);
        }
    }
}

proptest! {
    #[test]
    fn detection_takes_any_addresses(v4 in proptest::collection::vec(any::<u32>(), 0..4), v6 in proptest::collection::vec(any::<u128>(), 0..4), dual: bool) {
        let addresses: Vec<IpAddr> = v4
            .into_iter()
            .map(|bits| IpAddr::V4(bits.into()))
            .chain(v6.into_iter().map(|bits| IpAddr::V6(bits.into())))
            .collect();
        let found = detect_ipv6(&addresses, dual);
        prop_assert!(found != Ok(true) || addresses.iter().any(IpAddr::is_ipv6));
        prop_assert!(found.is_err() || !addresses.is_empty());
    }
}
