use proptest::prelude::*;

use super::*;

fn decode(text: &str, config: SpecVersion) -> Result<CniResult, ResultError> {
    CniResult::decode(&Value::parse(text.as_bytes()).unwrap(), config)
}

fn through(text: &str, config: SpecVersion) -> String {
    String::from_utf8(decode(text, config).unwrap().render(config).unwrap()).unwrap()
}

/// A result with every member that any version knows, plus unknown ones and empty lists' worth of noise.
fn full(version: &str) -> String {
    format!(
        r#"{{
    "cniVersion": "{version}", "unknown": {{"x": [1]}},
    "interfaces": [
        {{"name": "br0", "extra": 1}},
        {{"sandbox": "/var/run/netns/a", "pciID": "0000:00:1f.6", "socketPath": "/s", "mtu": 1450,
          "mac": "aa:bb:cc:dd:ee:ff", "name": "eth0"}}],
    "ips": [
        {{"address": "10.1.2.3/16", "gateway": "10.1.0.1", "interface": 0, "version": "4"}},
        {{"address": "FD00:0:0:0:0::00a1/64", "version": "6"}},
        {{"address": "10.9.9.9/32", "gateway": ""}}],
    "routes": [
        {{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 0, "scope": 253}},
        {{"dst": "::/0", "gw": "fd00::1", "mtu": 0}},
        {{"dst": "10.8.0.1/8"}}],
    "dns": {{"search": ["a.b"], "options": ["ndots:5"], "nameservers": ["10.0.0.10"], "domain": "c.d"}}
}}"#
    )
}

#[test]
fn current_versions_print_sorted_keys_and_all_members() {
    for version in ["1.0.0", "1.1.0"] {
        let expected = r#"{
    "cniVersion": "VERSION",
    "dns": {
        "domain": "c.d",
        "nameservers": [
            "10.0.0.10"
        ],
        "options": [
            "ndots:5"
        ],
        "search": [
            "a.b"
        ]
    },
    "interfaces": [
        {
            "name": "br0"
        },
        {
            "mac": "aa:bb:cc:dd:ee:ff",
            "mtu": 1450,
            "name": "eth0",
            "pciID": "0000:00:1f.6",
            "sandbox": "/var/run/netns/a",
            "socketPath": "/s"
        }
    ],
    "ips": [
        {
            "address": "10.1.2.3/16",
            "gateway": "10.1.0.1",
            "interface": 0
        },
        {
            "address": "fd00::a1/64"
        },
        {
            "address": "10.9.9.9/32"
        }
    ],
    "routes": [
        {
            "advmss": 1360,
            "dst": "0.0.0.0/0",
            "gw": "10.1.0.1",
            "mtu": 1400,
            "priority": 5,
            "scope": 253,
            "table": 0
        },
        {
            "dst": "::/0",
            "gw": "fd00::1"
        },
        {
            "dst": "10.8.0.1/8"
        }
    ]
}"#;
        let output = through(&full(version), SpecVersion::supported(version).unwrap());
        assert_eq!(output, expected.replace("VERSION", version));
    }
}

#[test]
fn list_versions_print_declared_order_and_drop_newer_interface_members() {
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        let expected = r#"{
    "cniVersion": "VERSION",
    "interfaces": [
        {
            "name": "br0"
        },
        {
            "name": "eth0",
            "mac": "aa:bb:cc:dd:ee:ff",
            "sandbox": "/var/run/netns/a"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 0,
            "address": "10.1.2.3/16",
            "gateway": "10.1.0.1"
        },
        {
            "version": "6",
            "address": "fd00::a1/64"
        },
        {
            "version": "4",
            "address": "10.9.9.9/32"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "10.1.0.1",
            "mtu": 1400,
            "advmss": 1360,
            "priority": 5,
            "table": 0,
            "scope": 253
        },
        {
            "dst": "::/0",
            "gw": "fd00::1"
        },
        {
            "dst": "10.8.0.1/8"
        }
    ],
    "dns": {
        "nameservers": [
            "10.0.0.10"
        ],
        "domain": "c.d",
        "search": [
            "a.b"
        ],
        "options": [
            "ndots:5"
        ]
    }
}"#;
        let output = through(&full(version), SpecVersion::supported(version).unwrap());
        assert_eq!(output, expected.replace("VERSION", version));
    }
}

#[test]
fn single_versions_keep_one_address_per_family() {
    let input = r#"{"cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.2.3/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "mtu": 9}]},
        "ip6": {"ip": "fd00::1/64", "routes": [{"dst": "::/0", "gw": "fd00::f"}]}}"#;
    let expected = r#"{
    "cniVersion": "VERSION",
    "ip4": {
        "ip": "10.1.2.3/16",
        "gateway": "10.1.0.1",
        "routes": [
            {
                "dst": "0.0.0.0/0"
            }
        ]
    },
    "ip6": {
        "ip": "fd00::1/64",
        "routes": [
            {
                "dst": "::/0",
                "gw": "fd00::f"
            }
        ]
    },
    "dns": {}
}"#;
    for version in [SpecVersion::V0_1_0, SpecVersion::V0_2_0] {
        assert_eq!(through(input, version), expected.replace("VERSION", &version.to_string()));
    }
}

#[test]
fn converting_down_to_single_takes_the_first_of_each_family_and_their_routes() {
    let result = decode(&full("1.1.0"), SpecVersion::V1_1_0).unwrap();
    let old = String::from_utf8(result.render(SpecVersion::V0_2_0).unwrap()).unwrap();
    let back = decode(&old, SpecVersion::V0_2_0).unwrap();
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let addresses: Vec<_> = back.ips.iter().map(|entry| entry.address).collect();
    assert_eq!(addresses, [net("10.1.2.3/16"), net("fd00::a1/64")]);
    let routes: Vec<_> = back.routes.iter().map(|route| route.dst).collect();
    assert_eq!(routes, [net("0.0.0.0/0"), net("10.8.0.1/8"), net("::/0")]);

    let only_v6 =
        CniResult { ips: vec![result.ips[1].clone()], routes: result.routes, ..CniResult::default() };
    let old = String::from_utf8(only_v6.render(SpecVersion::V0_1_0).unwrap()).unwrap();
    assert!(!old.contains("0.0.0.0/0") && old.contains("::/0"), "{old}");
}

#[test]
fn nothing_prints_as_the_version_alone_where_the_version_can_say_so() {
    let empty = CniResult::default();
    for version in SpecVersion::SUPPORTED {
        let output = empty.render(version).map(|text| String::from_utf8(text).unwrap());
        let expected = match version.family() {
            ResultShape::Single => Err(ResultError::NoAddress),
            ResultShape::Lists => {
                Ok(format!("{{\n    \"cniVersion\": \"{version}\",\n    \"dns\": {{}}\n}}"))
            }
            ResultShape::Current => Ok(format!("{{\n    \"cniVersion\": \"{version}\"\n}}")),
        };
        assert_eq!(output, expected);
    }
    let noise =
        r#"{"cniVersion":"1.0.0","interfaces":[],"ips":null,"routes":[],"dns":{"search":[],"domain":""}}"#;
    assert_eq!(decode(noise, SpecVersion::V1_0_0).unwrap(), empty);
}

#[test]
fn the_inner_version_has_to_be_of_the_configs_family() {
    for config in SpecVersion::SUPPORTED {
        for inner in SpecVersion::SUPPORTED {
            let got = decode(&format!(r#"{{"cniversion":"{inner}"}}"#), config);
            if inner.family() == config.family() {
                assert_eq!(got, Ok(CniResult::default()), "{config} {inner}");
            } else {
                let message = got.unwrap_err().to_string();
                assert!(
                    message.starts_with("could not parse prevResult: result type supports ["),
                    "{message}"
                );
                assert!(
                    message.ends_with(&format!("] but unmarshalled CNIVersion is \"{inner}\"")),
                    "{message}"
                );
                assert!(message.contains(&config.to_string()), "{message}");
            }
        }
        for lenient in ["{}", r#"{"cniVersion":""}"#, r#"{"cniVersion":null}"#] {
            assert_eq!(decode(lenient, config), Ok(CniResult::default()), "{config} {lenient}");
        }
        assert!(matches!(decode(r#"{"cniVersion":"9.9.9"}"#, config), Err(ResultError::WrongFamily { .. })));
    }
}

#[test]
fn a_newer_result_under_a_1_0_0_config_is_printed_as_1_0_0() {
    let output = through(&full("1.1.0"), SpecVersion::V1_0_0);
    assert!(
        output.starts_with("{\n    \"cniVersion\": \"1.0.0\"") && output.contains("\"mtu\": 1450"),
        "{output}"
    );
}

#[test]
fn broken_members_are_named() {
    for (members, message) in [
        (r#""ips":[{}]"#, "prevResult.ips[0].address: missing"),
        (r#""ips":[{"address":"10.0.0.1"}]"#, "prevResult.ips[0].address: \"10.0.0.1\" is not an address"),
        (r#""ips":[{"address":"10.0.0.1/33"}]"#, "prevResult.ips[0].address: \"10.0.0.1/33\""),
        (r#""ips":[{"address":"10.0.0.1/+8"}]"#, "prevResult.ips[0].address: \"10.0.0.1/+8\""),
        (r#""ips":[null]"#, "prevResult.ips[0]: expected an object, found null"),
        (
            r#""ips":[{"address":"::1/128","interface":"0"}]"#,
            "prevResult.ips[0].interface: expected a number",
        ),
        (
            r#""ips":[{"address":"::1/128","gateway":"x"}]"#,
            "prevResult.ips[0].gateway: \"x\" is not an IP address",
        ),
        (r#""routes":{}"#, "prevResult.routes: expected an array, found an object"),
        (r#""routes":[{"dst":7}]"#, "prevResult.routes[0].dst: expected a text, found a number"),
        (
            r#""interfaces":[{"mtu":1.5,"name":"a"}]"#,
            "prevResult.interfaces[0].mtu: not a 64-bit whole number",
        ),
        (r#""dns":[]"#, "prevResult.dns: expected an object, found an array"),
    ] {
        let got = decode(&format!(r#"{{"cniVersion":"1.0.0",{members}}}"#), SpecVersion::V1_0_0);
        let got = got.unwrap_err().to_string();
        assert!(got.starts_with(&format!("could not parse prevResult: {message}")), "{got}");
    }
}

#[test]
fn mapped_addresses_become_ipv4() {
    let net = |text: &str| parse_net(text).unwrap().to_string();
    assert_eq!(net("::ffff:10.0.0.1/120"), "10.0.0.1/24");
    assert_eq!(net("::ffff:10.0.0.1/64"), "10.0.0.1/0");
    assert_eq!(net("::FFFF:0/112"), "::ffff:0/112");
}

// === round trips ===

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[ -~]{0,8}", any::<String>()]
}

fn address() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical())
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), 0u8..=128).prop_map(|(ip, length)| {
        let length = if ip.is_ipv4() { length % 33 } else { length };
        IpNet::new(ip, length).unwrap()
    })
}

prop_compose! {
    fn interface()(name in text(), mac in text(), mtu in any::<i64>(), sandbox in text(), socket_path in text(),
                   pci_id in text()) -> Interface {
        Interface { name, mac, mtu, sandbox, socket_path, pci_id }
    }
}

prop_compose! {
    fn ip_config()(interface in any::<Option<i64>>(), address in net(), gateway in prop::option::of(address()))
                   -> IpConfig {
        IpConfig { interface, address, gateway }
    }
}

prop_compose! {
    fn route()(dst in net(), gw in prop::option::of(address()), mtu in any::<i64>(), advmss in any::<i64>(),
               priority in any::<i64>(), table in any::<Option<i64>>(), scope in any::<Option<i64>>()) -> Route {
        Route { dst, gw, mtu, advmss, priority, table, scope }
    }
}

prop_compose! {
    fn result()(interfaces in prop::collection::vec(interface(), 0..4), ips in prop::collection::vec(ip_config(), 0..4),
                routes in prop::collection::vec(route(), 0..4), nameservers in prop::collection::vec(text(), 0..3),
                domain in text(), search in prop::collection::vec(text(), 0..3),
                options in prop::collection::vec(text(), 0..3)) -> CniResult {
        CniResult { interfaces, ips, routes, dns: Dns { nameservers, domain, search, options } }
    }
}

/// What a result keeps when it goes through `version`.
fn restricted(mut result: CniResult, version: SpecVersion) -> CniResult {
    match version.family() {
        ResultShape::Current => {}
        ResultShape::Lists => {
            for entry in &mut result.interfaces {
                *entry = Interface {
                    name: entry.name.clone(),
                    mac: entry.mac.clone(),
                    sandbox: entry.sandbox.clone(),
                    ..Interface::default()
                };
            }
        }
        ResultShape::Single => {
            let is_v4 = |net: &IpNet| net.addr().is_ipv4();
            let mut kept = CniResult { dns: result.dns, ..CniResult::default() };
            for v4 in [true, false] {
                let Some(entry) = result.ips.iter().find(|entry| is_v4(&entry.address) == v4) else {
                    continue;
                };
                kept.ips.push(IpConfig { interface: None, ..entry.clone() });
                let routes = result.routes.iter().filter(|route| is_v4(&route.dst) == v4);
                kept.routes.extend(routes.map(|route| Route::new(route.dst, route.gw)));
            }
            result = kept;
        }
    }
    result
}

proptest! {
    #[test]
    fn every_version_reads_back_what_it_printed(result in result(), index in 0..SpecVersion::SUPPORTED.len()) {
        let version = SpecVersion::SUPPORTED[index];
        let expected = restricted(result.clone(), version);
        match result.render(version) {
            Err(error) => {
                prop_assert_eq!(error, ResultError::NoAddress);
                prop_assert!(version.family() == ResultShape::Single && result.ips.is_empty());
            }
            Ok(first) => {
                prop_assert!(!first.ends_with(b"\n"));
                let read = CniResult::decode(&Value::parse(&first).unwrap(), version).unwrap();
                prop_assert_eq!(&read, &expected);
                prop_assert_eq!(read.render(version).unwrap(), first);
            }
        }
    }
}
