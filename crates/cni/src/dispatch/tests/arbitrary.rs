//! Whatever comes in, what goes out has the agreed form.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Values near the ones that mean something, and any text at all.
fn value() -> impl Strategy<Value = String> {
    let near = vec![
        "ADD",
        "DEL",
        "CHECK",
        "STATUS",
        "GC",
        "VERSION",
        "add",
        "",
        "eth0",
        "c0ffee",
        "..",
        "/proc/1/ns/net",
        "1",
        "TRUE",
        "IgnoreUnknown=1;K8S_POD_NAME=a",
        "K8S_POD_NAME=a;",
        "=;=",
    ];
    prop_oneof![4 => select(near).prop_map(str::to_owned), 1 => any::<String>()]
}

fn environment() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let names = vec![
        "CNI_CONTAINERID",
        "CNI_NETNS",
        "CNI_IFNAME",
        "CNI_ARGS",
        "CNI_PATH",
        "CNI_COMMAND",
        "CNI_NETNS_OVERRIDE",
    ];
    prop::collection::vec((select(names), value()), 0..5)
}

/// JSON with keys that the crate knows and values of any type.
fn json(depth: u32) -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value as Json;
    let words = vec![
        "",
        "net",
        "0.1.0",
        "0.2.0",
        "0.3.1",
        "0.4.0",
        "1.0.0",
        "1.1.0",
        "1.2.0",
        "1.1",
        "1.1.0.0",
        "10.0.0.1/24",
        "fd00::1/64",
        "10.0.0.1",
        "30s",
        "a/b",
    ];
    let keys = vec![
        "cniVersion",
        "cniversion",
        "name",
        "NAME",
        "type",
        "capabilities",
        "ipam",
        "dns",
        "prevResult",
        "interfaces",
        "ips",
        "routes",
        "ip4",
        "ip6",
        "ip",
        "address",
        "gateway",
        "interface",
        "dst",
        "gw",
        "mtu",
        "search",
        "exclude_namespaces",
        "facts_timeout",
        "pod_source",
        "manifests",
        "runtimeConfig",
        "native_nftables",
        "io.kubernetes.cri.pod-annotations",
        "cni.dev/valid-attachments",
        "containerID",
        "ifname",
    ];
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        select(words).prop_map(Json::from),
        any::<String>().prop_map(Json::from),
    ];
    leaf.prop_recursive(depth, 48, 6, move |inner| {
        let key = prop_oneof![9 => select(keys.clone()).prop_map(str::to_owned), 1 => any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

/// Bytes, JSON, and JSON that gets past the first checks.
fn stdin() -> impl Strategy<Value = Vec<u8>> {
    let versions = SpecVersion::SUPPORTED.map(|version| version.to_string()).to_vec();
    let valid = (json(4), select(versions)).prop_map(|(mut tree, version)| {
        if let Some(object) = tree.as_object_mut() {
            object.insert("name".into(), "net".into());
            object.insert("cniVersion".into(), version.into());
        }
        tree.to_string().into_bytes()
    });
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..64),
        2 => json(4).prop_map(|tree| tree.to_string().into_bytes()),
        6 => valid,
    ]
}

fn check_form(
    vars: Vars<'_>,
    stdin: &[u8],
    netns: Result<NetnsRelation, String>,
) -> Result<(), TestCaseError> {
    let mut plugin = Scripted { netns, ..Scripted::default() };
    let mut input = stdin;
    let seen = run_with(vars, &mut input, &mut plugin);
    let panicked = seen.stdout.contains("panicked");
    prop_assert!(!panicked || String::from_utf8_lossy(stdin).contains("panicked"), "{}", seen.stdout);
    let success = seen.outcome.exit == 0;
    prop_assert_eq!(success, seen.outcome.error.is_none());
    prop_assert!(seen.outcome.exit <= 1);
    prop_assert!(plugin.calls.len() <= 1);
    if seen.stdout.is_empty() {
        prop_assert!(success, "an error has to be printed");
        return Ok(());
    }
    let answer: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&seen.stdout)
        .map_err(|error| TestCaseError::fail(format!("not one object: {error}: {}", seen.stdout)))?;
    let version = answer["cniVersion"].as_str().and_then(SpecVersion::supported);
    prop_assert!(version.is_some(), "{}", seen.stdout);
    prop_assert_eq!(answer.contains_key("code"), !success);
    prop_assert!(seen.stdout.len() < 64 * 1024);
    Ok(())
}

fn relation() -> impl Strategy<Value = Result<NetnsRelation, String>> {
    select(vec![
        Ok(NetnsRelation::Different),
        Ok(NetnsRelation::Unknown),
        Ok(NetnsRelation::Same),
        Err("no".to_owned()),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_input_gives_one_object_or_nothing(vars in environment(), stdin in stdin(), netns in relation()) {
        let vars: Vec<_> = vars.iter().map(|(key, value)| (*key, value.as_str())).collect();
        check_form(&vars, &stdin, netns)?;
    }

    #[test]
    fn any_configuration_under_a_good_environment_too(
        verb in select(vec!["ADD", "DEL", "CHECK", "STATUS", "GC"]), stdin in stdin(), netns in relation(),
    ) {
        check_form(&env_for(verb), &stdin, netns)?;
    }
}
