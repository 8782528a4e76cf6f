use super::*;

fn message(text: &str) -> String {
    Args::parse(text).unwrap_err().to_string()
}

#[test]
fn nothing_gives_nothing() {
    assert_eq!(Args::parse("").unwrap(), Args::default());
}

#[test]
fn what_containerd_sends() {
    let args = Args::parse(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=ab12;K8S_POD_UID=u-1",
    );
    let expected = Args {
        ignore_unknown: true,
        k8s_pod_name: "web-0".into(),
        k8s_pod_namespace: "shop".into(),
        k8s_pod_infra_container_id: "ab12".into(),
        k8s_pod_uid: "u-1".into(),
    };
    assert_eq!(args.unwrap(), expected);
}

#[test]
fn unknown_keys_need_ignore_unknown_at_any_place() {
    assert_eq!(
        message("FOO=1;K8S_POD_NAME=a;k8s_pod_name=b"),
        r#"ARGS: unknown args ["FOO=1" "k8s_pod_name=b"]"#
    );
    assert_eq!(message("FOO=1;IgnoreUnknown=0"), r#"ARGS: unknown args ["FOO=1"]"#);
    for text in ["IgnoreUnknown=1;FOO=1", "FOO=1;IgnoreUnknown=True", "FOO=1;IgnoreUnknown=1;BAR="] {
        assert!(Args::parse(text).unwrap().ignore_unknown, "{text}");
    }
}

#[test]
fn malformed_pairs_fail_even_with_ignore_unknown() {
    for (text, pair) in [
        ("IgnoreUnknown=1;A=b=c", "A=b=c"),
        ("IgnoreUnknown=1;", ""),
        (";IgnoreUnknown=1", ""),
        ("IgnoreUnknown=1;A", "A"),
        ("==", "=="),
    ] {
        assert_eq!(message(text), format!("ARGS: invalid pair \"{pair}\""));
    }
    assert!(
        message("IgnoreUnknown=yes").starts_with("ARGS: error parsing value of pair \"IgnoreUnknown=yes\"")
    );
}

#[test]
fn messages_stay_short() {
    assert!(message(&"A".repeat(100_000)).len() < 400);
    assert!(message(&["A=1"; 1000].join(";")).len() < 200);
}
