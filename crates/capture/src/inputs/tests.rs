use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::settings::{DnsCapture, Mode, OwnerGroups, PortChoice, Prefixes, Ranges};

fn ports() -> impl Strategy<Value = PortChoice> {
    let some = proptest::collection::btree_set(any::<u16>(), 0..6);
    prop_oneof![Just(PortChoice::All), some.prop_map(|ports| PortChoice::Only(ports.into_iter().collect()))]
}

fn prefixes() -> impl Strategy<Value = Prefixes> {
    let v4 = proptest::collection::hash_set((any::<u32>(), 0..=32_u8), 0..4);
    let v6 = proptest::collection::hash_set((any::<u128>(), 0..=128_u8), 0..4);
    (v4, v6).prop_map(|(v4, v6)| Prefixes {
        v4: v4.into_iter().filter_map(|(ip, bits)| ipnet::Ipv4Net::new(ip.into(), bits).ok()).collect(),
        v6: v6.into_iter().filter_map(|(ip, bits)| ipnet::Ipv6Net::new(ip.into(), bits).ok()).collect(),
    })
}

fn dns() -> impl Strategy<Value = DnsCapture> {
    let servers =
        (proptest::collection::vec(any::<u32>(), 1..3), proptest::collection::vec(any::<u128>(), 0..3));
    prop_oneof![
        Just(DnsCapture::Off),
        Just(DnsCapture::All),
        servers.prop_map(|(v4, v6)| DnsCapture::Servers {
            v4: v4.into_iter().map(Ipv4Addr::from).collect(),
            v6: v6.into_iter().map(Ipv6Addr::from).collect(),
        }),
    ]
}

fn inputs() -> impl Strategy<Value = PlanInputs> {
    let groups = proptest::collection::vec(any::<u32>(), 0..4);
    let names = || proptest::collection::btree_set("[a-z][a-z0-9._-]{0,14}", 0..3);
    let first = (1..=u16::MAX, ports(), ports(), ports(), ports(), any::<bool>(), prefixes(), prefixes());
    let second = (any::<bool>(), groups, names(), names(), dns(), any::<[bool; 4]>(), 8..=32_u8);
    (first, second).prop_map(|(first, second)| {
        let (port, inbound, inbound_out, outbound, outbound_out, all_ranges, ranges, ranges_out) = first;
        let (all_groups, groups, guests, excluded, dns, [tproxy, dual_stack, drop_invalid, ipv6], bits) =
            second;
        let settings = Settings {
            proxy_port: port,
            proxy_uids: vec![u32::from(port), 1337],
            mode: if tproxy { Mode::Tproxy } else { Mode::Redirect },
            inbound_ports: inbound,
            inbound_ports_excluded: inbound_out,
            outbound_ports: outbound,
            outbound_ports_excluded: outbound_out,
            outbound_ranges: if all_ranges { Ranges::All } else { Ranges::Only(ranges) },
            outbound_ranges_excluded: ranges_out,
            owner_groups: if all_groups { OwnerGroups::AllBut(groups) } else { OwnerGroups::Only(groups) },
            reroute_interfaces: guests.into_iter().collect(),
            excluded_interfaces: excluded.into_iter().collect(),
            dns,
            drop_invalid,
            dual_stack,
            loopback_v4: ipnet::Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, bits),
            ..Settings::default()
        };
        let backend = if tproxy { Backend::Iptables } else { Backend::Nftables };
        PlanInputs { settings, target: PlanTarget { backend, ipv6 } }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(inputs in inputs()) {
        let text = inputs.to_text();
        prop_assert_eq!(PlanInputs::from_text(&text), Some(inputs), "{}", text);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(([a-z6-]{1,30}|envoy-port|ipv6|backend) [ -~]{0,20}\n){0,6}") {
        let _ = PlanInputs::from_text(&text);
    }
}

#[test]
fn what_an_earlier_version_did_not_write_is_the_default_and_what_a_later_one_adds_is_not_guessed() {
    let target = PlanTarget { backend: Backend::Nftables, ipv6: true };
    let default = PlanInputs { settings: Settings::default(), target };
    assert_eq!(PlanInputs::from_text("backend nftables\nipv6 true\n"), Some(default));
    for text in [
        "",
        "backend nftables\n",
        "backend nftables\nipv6 true\nquic-port 15010\n",
        "backend pf\nipv6 true\n",
    ] {
        assert_eq!(PlanInputs::from_text(text), None, "{text:?}");
    }
}

#[test]
fn a_change_names_the_setting_and_both_values() {
    let old = Settings::default();
    let new = Settings {
        outbound_ports_excluded: PortChoice::Only(vec![15020, 9090]),
        excluded_interfaces: vec!["net1".to_owned()],
        drop_invalid: true,
        ..old.clone()
    };
    let changes: Vec<String> = setting_changes(&old, &new).iter().map(ToString::to_string).collect();
    let expected = [
        "istio-local-outbound-ports-exclude: 15020 → 15020,9090",
        "istio-exclude-interfaces: none → net1",
        "drop-invalid: false → true",
    ];
    assert_eq!(changes, expected);
    assert_eq!(setting_changes(&new, &new), []);
}
