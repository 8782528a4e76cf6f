use super::*;

use crate::settings::{OwnerGroups, PortChoice, Prefixes, Ranges};
use proptest::prelude::*;

/// The flags as `istio-iptables` has them by default.
fn flags() -> IptablesFlags {
    let text = str::to_owned;
    IptablesFlags {
        proxy_port: text("15001"),
        inbound_capture_port: text("15006"),
        inbound_tunnel_port: text("15008"),
        proxy_uid: text("1337"),
        proxy_gid: text("1337"),
        inbound_interception_mode: text(""),
        inbound_tproxy_mark: text("1337"),
        inbound_tproxy_route_table: text("133"),
        inbound_ports_include: text(""),
        inbound_ports_exclude: text(""),
        owner_groups_include: text("*"),
        owner_groups_exclude: text(""),
        outbound_ports_include: text(""),
        outbound_ports_exclude: text(""),
        outbound_ip_ranges_include: text(""),
        outbound_ip_ranges_exclude: text(""),
        reroute_virtual_interfaces: text(""),
        exclude_interfaces: text(""),
        host_ipv4_loopback_cidr: text("127.0.0.1/32"),
        redirect_dns: false,
        capture_all_dns: false,
        drop_invalid: false,
        dual_stack: false,
        dns_servers: Vec::new(),
    }
}

fn parsed(change: impl FnOnce(&mut IptablesFlags)) -> Settings {
    let mut flags = flags();
    change(&mut flags);
    parse_flags(&flags, &|_| None).expect("the flags are valid").0
}

fn error(change: impl FnOnce(&mut IptablesFlags)) -> String {
    let mut flags = flags();
    change(&mut flags);
    parse_flags(&flags, &|_| None).expect_err("a flag is wrong").to_string()
}

fn only(ports: &[u16]) -> PortChoice {
    PortChoice::Only(ports.to_vec())
}

#[test]
fn empty_lists_capture_nothing() {
    let settings = parsed(|_| ());
    assert_eq!(settings.inbound_ports, PortChoice::none());
    assert_eq!(settings.outbound_ranges, Ranges::Only(Prefixes::default()));
    assert_eq!(
        settings.inbound_ports_excluded,
        PortChoice::none(),
        "only annotations have the ports of Istio's agent added"
    );
    let rest = Settings {
        inbound_ports: PortChoice::All,
        outbound_ranges: Ranges::All,
        inbound_ports_excluded: Settings::default().inbound_ports_excluded,
        outbound_ports_excluded: Settings::default().outbound_ports_excluded,
        ..settings
    };
    assert_eq!(rest, Settings::default());
}

#[test]
fn empty_items_are_dropped() {
    for (text, ports) in [("80,", &[80][..]), (",80,,443,", &[80, 443]), (",", &[]), ("", &[])] {
        assert_eq!(
            parsed(|f| f.inbound_ports_include = text.to_owned()).inbound_ports,
            only(ports),
            "{text:?}"
        );
        assert_eq!(
            parsed(|f| f.outbound_ports_exclude = text.to_owned()).outbound_ports_excluded,
            only(ports)
        );
    }
    let ranges = parsed(|f| f.outbound_ip_ranges_include = "10.0.0.0/8,,::1/128,".to_owned()).outbound_ranges;
    let Ranges::Only(Prefixes { v4, v6 }) = ranges else { panic!("{ranges:?}") };
    assert_eq!((v4.len(), v6.len()), (1, 1));
    assert_eq!(parsed(|f| f.exclude_interfaces = "net1,".to_owned()).excluded_interfaces, ["net1"]);
    assert_eq!(parsed(|f| f.proxy_uid = "1337,".to_owned()).proxy_uids, [1337]);
    assert_eq!(parsed(|f| f.proxy_gid = String::new()).proxy_gids, Vec::<u32>::new());
    assert_eq!(
        parsed(|f| f.owner_groups_include = "1,,2,".to_owned()).owner_groups,
        OwnerGroups::Only(vec![1, 2])
    );
}

#[test]
fn wildcards() {
    assert_eq!(parsed(|f| f.inbound_ports_include = "*".to_owned()).inbound_ports, PortChoice::All);
    assert_eq!(parsed(|f| f.outbound_ip_ranges_include = "*".to_owned()).outbound_ranges, Ranges::All);
    let refused = error(|f| f.outbound_ip_ranges_exclude = "*".to_owned());
    assert_eq!(refused, "--istio-service-exclude-cidr: \"*\" is not possible here; give CIDRs");
}

#[test]
fn only_tproxy_is_tproxy() {
    for (text, mode) in [
        ("TPROXY", Mode::Tproxy),
        ("REDIRECT", Mode::Redirect),
        ("", Mode::Redirect),
        ("tproxy", Mode::Redirect),
    ] {
        assert_eq!(parsed(|f| f.inbound_interception_mode = text.to_owned()).mode, mode, "{text:?}");
    }
}

#[test]
fn dns_needs_all_or_a_server() {
    let v4 = "10.96.0.10".parse().unwrap();
    let v6 = "fd00::a".parse().unwrap();
    let both = DnsCapture::Servers { v4: vec![[10, 96, 0, 10].into()], v6: vec!["fd00::a".parse().unwrap()] };
    for (redirect, all, servers, expected, warned) in [
        (false, false, vec![v4], DnsCapture::Off, false),
        (false, true, vec![v4], DnsCapture::Off, false),
        (true, true, vec![], DnsCapture::All, false),
        (true, true, vec![v4], DnsCapture::All, false),
        (true, false, vec![v4, v6], both, false),
        (true, false, vec![], DnsCapture::Off, true),
    ] {
        let flags =
            IptablesFlags { redirect_dns: redirect, capture_all_dns: all, dns_servers: servers, ..flags() };
        let (settings, warning) = parse_flags(&flags, &|_| None).unwrap();
        assert_eq!((&settings.dns, warning.is_some()), (&expected, warned), "{redirect} {all}");
    }
}

#[test]
fn nameservers_of_resolv_conf() {
    let text = "# comment\n; other\nsearch svc.cluster.local\nnameserver 10.96.0.10\nnameserver\tfd00::a # kube\n\
                nameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n nameserver 10.0.0.1\nnameservers 10.0.0.2\r\n";
    let found: Vec<String> = parse_nameservers(text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["10.96.0.10", "fd00::a", "10.0.0.1"]);
    assert!(parse_nameservers("").is_empty());
}

#[test]
fn each_error_names_its_flag() {
    type Set = fn(&mut IptablesFlags, String);
    let changes: [(&str, Set); 17] = [
        ("envoy-port", |f, bad| f.proxy_port = bad),
        ("inbound-capture-port", |f, bad| f.inbound_capture_port = bad),
        ("inbound-tunnel-port", |f, bad| f.inbound_tunnel_port = bad),
        ("proxy-uid", |f, bad| f.proxy_uid = bad),
        ("proxy-gid", |f, bad| f.proxy_gid = bad),
        ("istio-inbound-tproxy-mark", |f, bad| f.inbound_tproxy_mark = bad),
        ("istio-inbound-tproxy-route-table", |f, bad| f.inbound_tproxy_route_table = bad),
        ("istio-inbound-ports", |f, bad| f.inbound_ports_include = bad),
        ("istio-local-exclude-ports", |f, bad| f.inbound_ports_exclude = bad),
        ("istio-outbound-owner-groups", |f, bad| f.owner_groups_include = bad),
        ("istio-outbound-ports", |f, bad| f.outbound_ports_include = bad),
        ("istio-local-outbound-ports-exclude", |f, bad| f.outbound_ports_exclude = bad),
        ("istio-service-cidr", |f, bad| f.outbound_ip_ranges_include = bad),
        ("istio-service-exclude-cidr", |f, bad| f.outbound_ip_ranges_exclude = bad),
        ("kube-virt-interfaces", |f, bad| f.reroute_virtual_interfaces = bad),
        ("istio-exclude-interfaces", |f, bad| f.exclude_interfaces = bad),
        ("istio-outbound-ipv4-loopback-cidr", |f, bad| f.host_ipv4_loopback_cidr = bad),
    ];
    for (name, change) in changes {
        for bad in ["$(reboot)", "\n-j", "80-90", "\u{1b}[2J"] {
            let error = error(|flags| change(flags, bad.to_owned()));
            assert!(error.starts_with(&format!("--{name}: ")), "{name}: {error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
        let long = "1,".repeat(40_000);
        assert!(
            !error(|flags| change(flags, long))
                .contains("1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"),
            "{name}"
        );
    }
}

#[test]
fn group_names_are_looked_up() {
    let named = IptablesFlags { owner_groups_exclude: "java,202".to_owned(), ..flags() };
    let (settings, _) = parse_flags(&named, &|name| (name == "java").then_some(500)).unwrap();
    assert_eq!(settings.owner_groups, OwnerGroups::AllBut(vec![500, 202]));
    assert!(parse_flags(&named, &|_| None).is_err());
}

proptest! {
    #[test]
    fn any_text_gives_settings_or_an_error_of_one_line(text in prop_oneof!["[\\x00-\\xff\\u{202e}]{0,60}", "[0-9a-f:./,* \n]{0,40}"]) {
        let all = IptablesFlags {
            inbound_ports_include: text.clone(),
            outbound_ip_ranges_include: text.clone(),
            exclude_interfaces: text.clone(),
            ..flags()
        };
        let each = [
            IptablesFlags { inbound_ports_include: text.clone(), ..flags() },
            IptablesFlags { outbound_ip_ranges_include: text.clone(), ..flags() },
            IptablesFlags { exclude_interfaces: text.clone(), ..flags() },
            IptablesFlags { owner_groups_include: text.clone(), ..flags() },
            IptablesFlags { host_ipv4_loopback_cidr: text.clone(), ..flags() },
            all,
        ];
        for flags in each {
            if let Err(error) = parse_flags(&flags, &|_| None) {
                let said = error.to_string();
                prop_assert!(!said.contains(char::is_control) && said.len() < 4096, "{:?}", said);
            }
        }
        parse_nameservers(&text);
    }
}
