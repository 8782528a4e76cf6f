use super::*;

fn only(ports: &[u16]) -> PortChoice {
    PortChoice::Only(ports.to_vec())
}

#[test]
fn ports_are_trimmed_deduplicated_and_strict() {
    assert_eq!(parse_ports("*"), Ok(PortChoice::All));
    assert_eq!(parse_ports(""), Ok(PortChoice::none()));
    assert_eq!(parse_ports("  "), Ok(PortChoice::none()));
    assert_eq!(parse_ports(" 80, 443 ,80"), Ok(only(&[80, 443])));
    assert_eq!(parse_ports("0,65535"), Ok(only(&[0, 65535])));
    for bad in
        ["80,", ",80", "80,,81", "65536", "-1", "+80", "8 0", "80;443", "80\n-j ACCEPT", "http", "*,80", "٣"]
    {
        let error = parse_ports(bad).expect_err(bad).to_string();
        assert!(error.contains("port list"), "{bad:?}: {error}");
        assert!(!error.contains('\n'), "{error:?} would break a log line");
    }
}

#[test]
fn a_megabyte_of_ports_is_refused_with_its_size() {
    let list = "80,".repeat(350_000);
    let error = parse_ports(&list).unwrap_err().to_string();
    assert_eq!(error, "1050000 bytes are too long a list; at most 65536 are read");
    assert!(parse_prefixes(&list).is_err() && parse_interfaces(&list).is_err() && parse_ids(&list).is_err());
}

#[test]
fn cidrs_are_strict_and_keep_host_bits() {
    let prefixes = parse_prefixes("10.1.2.3/8,2001:db8::1/32,10.1.2.3/8").unwrap();
    assert_eq!(prefixes.v4, ["10.1.2.3/8".parse().unwrap()]);
    assert_eq!(prefixes.v6, ["2001:db8::1/32".parse().unwrap()]);
    assert_eq!(parse_prefixes("::ffff:1.2.3.4/128").unwrap().v6.len(), 1, "v4-mapped counts as IPv6");
    for bad in [
        "10.0.0.0",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/08",
        "010.0.0.0/8",
        "10.0.0.0/8, 11.0.0.0/8",
        "fe80::1%eth0/64",
        "10.0.0.0/-1",
        "10.0.0.0/",
        "/8",
        "10.0.0.0/8,",
        "*,10.0.0.0/8",
        "$(reboot)/8",
    ] {
        assert!(parse_prefixes(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_prefixes("*"), Err(ValueError::Wildcard));
    assert_eq!(parse_ranges("*"), Ok(Ranges::All));
    assert_eq!(parse_ranges(""), Ok(Ranges::Only(Prefixes::default())));
}

#[test]
fn interface_names_follow_the_kernel_and_nothing_else() {
    assert_eq!(parse_interfaces("").unwrap(), Vec::<String>::new());
    assert_eq!(parse_interfaces(" eth0 ,net1.5,eth0").unwrap(), ["eth0", "net1.5"]);
    assert_eq!(parse_interfaces("abcdefghijklmno").unwrap().len(), 1, "15 characters");
    for (bad, says) in [
        ("abcdefghijklmnop", "too long (max 15 chars)"),
        ("eth0,,eth1", "empty interface name"),
        (" ", "empty interface name"),
        ("0eth", "invalid characters"),
        ("_eth", "invalid characters"),
        ("eth0;reboot", "invalid characters"),
        ("eth0 -j", "invalid characters"),
        ("eth+", "invalid characters"),
        ("ethé", "invalid characters"),
        ("eth\n0", "invalid characters"),
    ] {
        let error = parse_interfaces(bad).expect_err(bad).to_string();
        assert!(error.contains(says), "{bad:?}: {error}");
    }
}

#[test]
fn groups_are_numbers_or_known_names() {
    let resolve = |name: &str| (name == "java").then_some(500);
    assert_eq!(parse_owner_groups("*", "888,java", &resolve), Ok(OwnerGroups::AllBut(vec![888, 500])));
    assert_eq!(parse_owner_groups("java,202", "1", &resolve), Ok(OwnerGroups::Only(vec![500, 202])));
    assert_eq!(parse_owner_groups("", "", &resolve), Ok(OwnerGroups::Only(vec![])));
    assert!(
        parse_owner_groups("nobody-knows", "", &resolve).unwrap_err().1.to_string().contains("nobody-knows")
    );
    let many = (0..65).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(
        parse_owner_groups(&many, "", &resolve),
        Err((GroupList::Include, ValueError::TooManyGroups { count: 65 }))
    );
}

#[test]
fn loopback_ranges() {
    assert_eq!(parse_loopback("127.0.0.1/8").unwrap().to_string(), "127.0.0.1/8");
    for bad in ["127.0.0.1/7", "10.0.0.0/8", "::1/128", "127.0.0.1", ""] {
        assert!(parse_loopback(bad).is_err(), "{bad}");
    }
}

#[test]
fn booleans_are_those_of_go() {
    assert_eq!(["1", "t", "T", "TRUE", "true", "True"].map(parse_bool), [Some(true); 6]);
    assert_eq!(["0", "f", "F", "FALSE", "false", "False"].map(parse_bool), [Some(false); 6]);
    assert_eq!(["", "yes", "tRUE", " true"].map(parse_bool), [None; 4]);
}
