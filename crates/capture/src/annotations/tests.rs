use super::*;

use proptest::prelude::*;

/// The result of a pod with these annotations, whose proxy has these variables.
fn read_with(annotations: &[(&str, &str)], env: &[(&str, &str)]) -> Result<PodSettings, AnnotationError> {
    let pod = Pod {
        namespace: "shop".to_owned(),
        name: "cart-1".to_owned(),
        annotations: owned(annotations).into_iter().collect(),
        ..Pod::default()
    };
    let proxy = Container { env: owned(env), ..Container::default() };
    parse_settings(&pod, &[&proxy], &NodeSettings::default())
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn captured(result: Result<PodSettings, AnnotationError>) -> (Settings, Vec<String>) {
    match result {
        Ok(PodSettings::Capture { settings, warnings }) => (*settings, warnings),
        other => panic!("not captured: {other:?}"),
    }
}

fn read(annotations: &[(&str, &str)]) -> (Settings, Vec<String>) {
    captured(read_with(annotations, &[]))
}

/// Settings that differ from the default in what `change` does.
fn but(change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = Settings::default();
    change(&mut settings);
    settings
}

fn only(ports: &[u16]) -> PortChoice {
    PortChoice::Only(ports.to_vec())
}

#[test]
fn a_pod_that_says_nothing_has_the_defaults() {
    let (settings, warnings) = read(&[]);
    assert_eq!((settings, warnings), (Settings::default(), vec![]));
    let Settings { proxy_port, capture_port, tunnel_port, tproxy_mark, tproxy_table, .. } =
        Settings::default();
    assert_eq!(
        (proxy_port, capture_port, tunnel_port, tproxy_mark, tproxy_table),
        (15001, 15006, 15008, 1337, 133)
    );
    assert_eq!(Settings::default().inbound_ports_excluded, only(&[15020, 15021, 15090]));
    assert_eq!(Settings::default().outbound_ports_excluded, only(&[15020]));
}

/// What becomes different from the default.
type Change = fn(&mut Settings);

/// What one annotation does: the setting's name in messages, the settings when it is empty, a value with its settings, and values
/// that are refused, each with a part of the message.
struct Line {
    annotation: &'static str,
    setting: &'static str,
    empty: Result<Change, &'static str>,
    values: &'static [(&'static str, Change)],
    bad: &'static [(&'static str, &'static str)],
}

const LINES: &[Line] = &[
    Line {
        annotation: MODE,
        setting: "redirectMode",
        empty: Err("interceptionMode invalid: \"\""),
        values: &[("REDIRECT", |_| ()), ("TPROXY", |s| s.mode = Mode::Tproxy)],
        bad: &[
            ("redirect", "interceptionMode invalid: \"redirect\""),
            (" TPROXY", "interceptionMode invalid"),
        ],
    },
    Line {
        annotation: INCLUDE_RANGES,
        setting: "includeIPCidrs",
        empty: Ok(|s| s.outbound_ranges = Ranges::Only(Prefixes::default())),
        values: &[
            ("*", |_| ()),
            ("10.0.0.0/8,2001:db8::/32", |s| {
                s.outbound_ranges = Ranges::Only(Prefixes {
                    v4: vec!["10.0.0.0/8".parse().unwrap()],
                    v6: vec!["2001:db8::/32".parse().unwrap()],
                });
            }),
        ],
        bad: &[
            ("10.0.0.0/8,bad", "\"bad\" is not a CIDR"),
            ("10.0.0.0/8,*", "\"*\" is not a CIDR"),
            (" ", "is not a CIDR"),
        ],
    },
    Line {
        annotation: EXCLUDE_RANGES,
        setting: "excludeIPCidrs",
        empty: Ok(|_| ()),
        values: &[("10.1.2.3/8", |s| s.outbound_ranges_excluded.v4 = vec!["10.1.2.3/8".parse().unwrap()])],
        bad: &[("*", "\"*\" is not possible here"), ("10.0.0.0/33", "over 32")],
    },
    Line {
        annotation: EXCLUDE_INBOUND,
        setting: "excludeInboundPorts",
        empty: Ok(|_| ()),
        values: &[
            ("3306", |s| s.inbound_ports_excluded = only(&[3306, 15020, 15021, 15090])),
            ("*", |s| s.inbound_ports_excluded = PortChoice::All),
        ],
        bad: &[("80,,81", "port list \"80,,81\": item \"\""), ("80,", "item \"\"")],
    },
    Line {
        annotation: INCLUDE_INBOUND,
        setting: "includeInboundPorts",
        empty: Ok(|s| s.inbound_ports = PortChoice::none()),
        values: &[("*", |_| ()), (" 80 , 443 ", |s| s.inbound_ports = only(&[80, 443]))],
        bad: &[("80,65536", "port list \"80,65536\": item \"65536\""), ("-1", "item \"-1\"")],
    },
    Line {
        annotation: EXCLUDE_OUTBOUND,
        setting: "excludeOutboundPorts",
        empty: Ok(|s| s.outbound_ports_excluded = PortChoice::none()),
        values: &[
            ("9200,9300", |s| s.outbound_ports_excluded = only(&[9200, 9300])),
            ("*", |s| s.outbound_ports_excluded = PortChoice::All),
        ],
        bad: &[("http", "item \"http\"")],
    },
    Line {
        annotation: INCLUDE_OUTBOUND,
        setting: "includeOutboundPorts",
        empty: Ok(|_| ()),
        values: &[
            ("0,65535", |s| s.outbound_ports = only(&[0, 65535])),
            ("*", |s| s.outbound_ports = PortChoice::All),
        ],
        bad: &[("80\n-j ACCEPT", "item \"80\\n-j ACCEPT\"")],
    },
    Line {
        annotation: EXCLUDE_INTERFACES,
        setting: "excludeInterfaces",
        empty: Ok(|_| ()),
        values: &[("net1, net2", |s| s.excluded_interfaces = vec!["net1".to_owned(), "net2".to_owned()])],
        bad: &[
            ("net1,", "empty interface name"),
            ("abcdefghijklmnop", "too long (max 15 chars)"),
            ("net1;reboot", "contains invalid characters"),
        ],
    },
    Line {
        annotation: REROUTE_INTERFACES,
        setting: "reroute-virtual-interfaces",
        empty: Ok(|_| ()),
        values: &[("tap0", |s| s.reroute_interfaces = vec!["tap0".to_owned()])],
        bad: &[("0tap", "contains invalid characters"), ("_tap", "contains invalid characters")],
    },
    Line {
        annotation: KUBEVIRT_INTERFACES,
        setting: "kubevirtInterfaces",
        empty: Ok(|_| ()),
        values: &[("tap0", |s| s.reroute_interfaces = vec!["tap0".to_owned()])],
        bad: &[("$(x)", "contains invalid characters")],
    },
    Line {
        annotation: OUTBOUND_PORT,
        setting: "outboundInterceptPort",
        empty: Err("\"\" is not a port from 1 to 65535"),
        values: &[("15101", |s| s.proxy_port = 15101)],
        bad: &[("0", "is not a port"), ("65536", "is not a port"), ("15101,15102", "is not a port")],
    },
    Line {
        annotation: INBOUND_PORT,
        setting: "inboundInterceptPort",
        empty: Err("\"\" is not a port from 1 to 65535"),
        values: &[("15106", |s| s.capture_port = 15106)],
        bad: &[("x", "\"x\" is not a port")],
    },
    Line {
        annotation: PROXY_UID,
        setting: "proxyUID",
        empty: Err("\"\" is not an id"),
        values: &[("2000", |s| s.proxy_uids = vec![2000]), ("0", |_| ())],
        bad: &[("root", "\"root\" is not an id"), ("-1", "is not an id"), ("4294967296", "is not an id")],
    },
    Line {
        annotation: PROXY_GID,
        setting: "proxyGID",
        empty: Err("\"\" is not an id"),
        values: &[("2000", |s| s.proxy_gids = vec![2000])],
        bad: &[("1e3", "is not an id")],
    },
];

#[test]
fn each_annotation_empty_valid_and_invalid() {
    for Line { annotation, setting, empty, values, bad } in LINES {
        match empty {
            Ok(change) => assert_eq!(read(&[(annotation, "")]).0, but(change), "{annotation} empty"),
            Err(says) => refused(annotation, "", setting, says),
        }
        for (text, change) in *values {
            assert_eq!(read(&[(annotation, text)]).0, but(change), "{annotation} {text:?}");
        }
        for (text, says) in *bad {
            refused(annotation, text, setting, says);
        }
    }
}

fn refused(annotation: &str, text: &str, setting: &str, says: &str) {
    let error =
        read_with(&[(annotation, text)], &[]).expect_err(&format!("{annotation} {text:?}")).to_string();
    let start = format!("annotation value error for value {setting}; annotationFound = true: ");
    assert!(error.starts_with(&start), "{error}");
    for part in [says, annotation, "pod shop/cart-1"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    assert!(!error.contains(char::is_control), "{error:?}");
}

#[test]
fn of_several_wrong_annotations_the_first_of_the_table_is_named() {
    let all: Vec<_> = LINES.iter().map(|line| (line.annotation, line.bad[0].0)).collect();
    // Upstream's order; the older forms come after it.
    let order = [
        MODE,
        INCLUDE_RANGES,
        EXCLUDE_RANGES,
        EXCLUDE_INBOUND,
        INCLUDE_INBOUND,
        EXCLUDE_OUTBOUND,
        INCLUDE_OUTBOUND,
        EXCLUDE_INTERFACES,
        REROUTE_INTERFACES,
    ];
    for (at, annotation) in order.iter().enumerate() {
        let rest: Vec<_> = all.iter().copied().filter(|(name, _)| !order[..at].contains(name)).collect();
        assert_eq!(read_with(&rest, &[]).unwrap_err().annotation, *annotation);
    }
}

/// The original refuses the mode that its own injector writes.
#[test]
fn mode_none_means_no_rules_whatever_else_is_said() {
    assert_eq!(read_with(&[(MODE, "NONE")], &[]), Ok(PodSettings::None));
    assert_eq!(read_with(&[(MODE, "NONE"), (INCLUDE_RANGES, "bad")], &[]), Ok(PodSettings::None));
    assert!(read_with(&[(MODE, "None")], &[]).is_err());
}

/// The text that upstream builds is a list here, without the duplicates.
#[test]
fn excluded_inbound_ports_are_merged_in_order() {
    for (text, ports) in [
        ("", &[15020, 15021, 15090][..]),
        ("3306", &[3306, 15020, 15021, 15090]),
        ("15021", &[15021, 15020, 15090]),
        ("15020,15020", &[15020, 15021, 15090]),
        (" 15020", &[15020, 15021, 15090]),
        ("15090,80,15020", &[15090, 80, 15020, 15021]),
    ] {
        assert_eq!(read(&[(EXCLUDE_INBOUND, text)]).0.inbound_ports_excluded, only(ports), "{text:?}");
    }
}

#[test]
fn the_newer_interface_annotation_hides_the_older_one() {
    for newer in ["", "tap1"] {
        let (settings, warnings) = read(&[(REROUTE_INTERFACES, newer), (KUBEVIRT_INTERFACES, "tap0")]);
        let expected: &[&str] = if newer.is_empty() { &[] } else { &["tap1"] };
        assert_eq!(
            (&settings.reroute_interfaces[..], warnings.len()),
            (&expected.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..], 0)
        );
    }
    assert!(
        read_with(&[(REROUTE_INTERFACES, ""), (KUBEVIRT_INTERFACES, "0")], &[]).is_ok(),
        "not even looked at"
    );
    let (_, warnings) = read(&[(KUBEVIRT_INTERFACES, "tap0")]);
    assert_eq!(
        warnings,
        [format!("annotation {KUBEVIRT_INTERFACES} is deprecated; use {REROUTE_INTERFACES}")]
    );
}

#[test]
fn each_older_form_is_used_and_warned_about() {
    for (annotation, value) in [(PROXY_UID, "7"), (PROXY_GID, "7"), (INBOUND_PORT, "7"), (OUTBOUND_PORT, "7")]
    {
        let (_, warnings) = read(&[(annotation, value)]);
        assert!(warnings.len() == 1 && warnings[0].contains(annotation), "{warnings:?}");
    }
}

#[test]
fn the_proxys_ids() {
    let ids = |user: Option<i64>, group: Option<i64>, annotations: &[(&str, &str)]| {
        let pod = Pod { annotations: owned(annotations).into_iter().collect(), ..Pod::default() };
        let proxy = Container { run_as_user: user, run_as_group: group, ..Container::default() };
        let (settings, warnings) = captured(parse_settings(&pod, &[&proxy], &NodeSettings::default()));
        (settings.proxy_uids[0], settings.proxy_gids[0], warnings.len())
    };
    assert_eq!(ids(None, None, &[]), (1337, 1337, 0));
    assert_eq!(ids(Some(0), Some(0), &[]), (1337, 1337, 0));
    assert_eq!(ids(Some(2000), Some(3000), &[]), (2000, 3000, 0));
    assert_eq!(ids(Some(2000), None, &[]), (2000, 1337, 0));
    assert_eq!(ids(Some(i64::from(u32::MAX)), None, &[]).0, u32::MAX);
    assert_eq!(ids(Some(-1), Some(i64::MAX), &[]), (1337, 1337, 0), "what Kubernetes would not admit");
    // The pod's count where the container has none, each by itself.
    let of_pod = |pod_ids: (i64, i64), user, group, annotations: &[(&str, &str)]| {
        let pod = Pod {
            annotations: owned(annotations).into_iter().collect(),
            run_as_user: Some(pod_ids.0),
            run_as_group: Some(pod_ids.1),
            ..Pod::default()
        };
        let proxy = Container { run_as_user: user, run_as_group: group, ..Container::default() };
        let settings = captured(parse_settings(&pod, &[&proxy], &NodeSettings::default())).0;
        (settings.proxy_uids[0], settings.proxy_gids[0])
    };
    assert_eq!(of_pod((50, 60), None, None, &[]), (50, 60));
    assert_eq!(of_pod((50, 60), Some(7), None, &[]), (7, 60));
    assert_eq!(of_pod((50, 60), None, Some(8), &[]), (50, 8));
    assert_eq!(of_pod((50, 60), Some(7), Some(8), &[]), (7, 8));
    assert_eq!(of_pod((50, 60), Some(0), Some(0), &[]), (1337, 1337), "it runs as 0, whatever the pod says");
    assert_eq!(of_pod((0, 0), None, None, &[]), (1337, 1337));
    for mode in ["REDIRECT", "TPROXY"] {
        assert_eq!(of_pod((0, 60), None, None, &[(MODE, mode)]), (1337, 60), "{mode}");
    }
    // The container's id is the one that the kernel sees.
    assert_eq!(ids(Some(2000), None, &[(PROXY_UID, "7")]), (2000, 1337, 1));
    assert_eq!(ids(Some(0), Some(0), &[(PROXY_UID, "7"), (PROXY_GID, "8")]), (7, 8, 2));
}

#[test]
fn the_proxys_variables() {
    let dns = |s: &mut Settings| s.dns = DnsCapture::All;
    let dual = |s: &mut Settings| s.dual_stack = true;
    let drop = |s: &mut Settings| s.drop_invalid = true;
    let variables: [(&str, Change); 3] =
        [("ISTIO_META_DNS_CAPTURE", dns), ("ISTIO_DUAL_STACK", dual), ("INVALID_DROP", drop)];
    for (name, change) in variables {
        for yes in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(captured(read_with(&[], &[(name, yes)])), (but(change), vec![]), "{name}={yes}");
        }
        for no in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(captured(read_with(&[], &[(name, no)])), (Settings::default(), vec![]), "{name}={no}");
        }
        for other in ["yes", "", " true", "on\n"] {
            let (settings, warnings) = captured(read_with(&[], &[(name, other)]));
            assert_eq!(settings, Settings::default(), "{name}={other:?}");
            let expected =
                format!("proxy variable {name} is {other:?}, which is not a boolean; taken as false");
            assert_eq!(warnings, [expected]);
        }
        assert_eq!(
            captured(read_with(&[], &[(name, "false"), (name, "true")])).0,
            but(change),
            "the last one counts"
        );
    }
}

#[test]
fn the_nodes_variables() {
    let read = |pairs: &[(&str, &str)]| {
        let pairs = owned(pairs);
        NodeSettings::from_env(
            &|name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()),
            &|name| (name == "java").then_some(500),
        )
    };
    assert_eq!(read(&[]), Ok(NodeSettings::default()));
    let groups = |value| read(&[("ISTIO_OUTBOUND_OWNER_GROUPS", value)]).map(|node| node.owner_groups);
    assert_eq!(groups("*"), Ok(OwnerGroups::AllBut(vec![])));
    assert_eq!(groups("java,202"), Ok(OwnerGroups::Only(vec![500, 202])));
    assert_eq!(groups(""), Ok(OwnerGroups::Only(vec![])));
    let excluded = read(&[("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "888")]).unwrap().owner_groups;
    assert_eq!(excluded, OwnerGroups::AllBut(vec![888]));
    let loopback = read(&[("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8")]).unwrap().loopback_v4;
    assert_eq!(loopback.to_string(), "127.0.0.0/8");
    for (variable, value) in [
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "nobody-knows"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "nobody-knows"),
        ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "10.0.0.0/8"),
    ] {
        let error = read(&[(variable, value)]).unwrap_err().to_string();
        assert!(error.contains(variable) && error.contains(value), "{error}");
    }
    // The pod's own variables of the same names do not count.
    let own = [("ISTIO_OUTBOUND_OWNER_GROUPS", "500"), ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8")];
    assert_eq!(captured(read_with(&[], &own)), (Settings::default(), vec![]));
}

proptest! {
    /// Any text gives settings or a message that can stand in a log line and a pod's event.
    #[test]
    fn no_text_is_too_strange(
        which in 0..LINES.len(),
        text in prop_oneof!["[\\x00-\\xff\\u{202e}]{0,60}", "[0-9a-f:./,* \\-\n\u{7f}]{0,40}"],
        pod in "[\\x00-\\xff\\u{202e}]{0,60}",
    ) {
        let pod = Pod {
            name: pod,
            annotations: [(LINES[which].annotation.to_owned(), text.clone())].into(),
            ..Pod::default()
        };
        let proxy = Container { env: vec![("INVALID_DROP".to_owned(), text)], ..Container::default() };
        let said = match parse_settings(&pod, &[&proxy], &NodeSettings::default()) {
            Ok(PodSettings::None) => String::new(),
            Ok(PodSettings::Capture { warnings, .. }) => warnings.concat(),
            Err(error) => error.to_string(),
        };
        prop_assert!(!said.contains(char::is_control) && said.len() < 4096, "{:?}", said);
    }
}
