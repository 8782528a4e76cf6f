use super::*;

fn read_from(vars: &[(&str, &str)]) -> Result<Variables, EnvError> {
    read(&|name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn failure(vars: &[(&str, &str)]) -> Error {
    match read_from(vars) {
        Err(EnvError::Invalid(error)) => error,
        other => panic!("expected an invalid environment, got {other:?}"),
    }
}

#[test]
fn each_verb_asks_for_its_variables_in_order() {
    let all = "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]";
    for (verb, list) in [
        ("ADD", all),
        ("CHECK", all),
        ("DEL", "[CNI_CONTAINERID,CNI_IFNAME,CNI_PATH]"),
        ("GC", "[CNI_PATH]"),
        ("STATUS", "[CNI_PATH]"),
    ] {
        let error = failure(&[("CNI_COMMAND", verb), ("CNI_NETNS", "")]);
        assert_eq!(error, Error::new(4, format!("required env variables {list} missing")), "{verb}");
    }
    assert_eq!(read_from(&[("CNI_COMMAND", "VERSION")]).unwrap().command, Command::Known(Verb::Version));
    assert_eq!(read_from(&[("CNI_COMMAND", "add")]).unwrap().command, Command::Unknown("add".into()));
    assert_eq!(read_from(&[("CNI_COMMAND", ""), ("CNI_PATH", "x")]), Err(EnvError::NoCommand));
}

#[test]
fn malformed_values_fail_before_missing_ones_are_reported() {
    let bad_id = failure(&[("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a/b")]);
    assert_eq!(bad_id, Error::new(4, "invalid characters in containerID").with_details("a/b"));
    let bad_name = failure(&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "..")]);
    assert_eq!(bad_name, Error::new(4, "interface name is . or .."));
    // not required, so not looked at
    assert!(
        read_from(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "p"), ("CNI_CONTAINERID", "-"), ("CNI_IFNAME", "/")])
            .is_ok()
    );
}

#[test]
fn container_ids() {
    for good in ["a", "0", "A_b.c-d", &"f".repeat(64)] {
        assert_eq!(check_container_id(good), Ok(()), "{good}");
    }
    for bad in ["-a", ".a", "_a", "a b", "a\n", "ä", "a\u{fffd}", "a;b"] {
        assert!(check_container_id(bad).is_err(), "{bad}");
    }
}

#[test]
fn interface_names() {
    for good in ["eth0", "a", "...", "123456789012345", "ä"] {
        assert_eq!(check_ifname(good), Ok(()), "{good}");
    }
    for bad in ["1234567890123456", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\n", "a\u{a0}b", "äääääääää"]
    {
        assert!(check_ifname(bad).is_err(), "{bad}");
    }
}

#[test]
fn override_takes_one_and_true_in_any_case() {
    for (value, on) in
        [("1", true), ("TRUE", true), ("tRue", true), ("0", false), ("yes", false), ("", false)]
    {
        let vars = read_from(&[("CNI_COMMAND", "VERSION"), ("CNI_NETNS_OVERRIDE", value)]).unwrap();
        assert_eq!(vars.netns_override, on, "{value}");
    }
}
