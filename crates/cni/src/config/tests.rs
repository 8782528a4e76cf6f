use super::*;

fn decode(text: &str) -> Result<PluginConf, DecodeError> {
    PluginConf::decode(&Value::parse(text.as_bytes()).unwrap())
}

fn empty() -> PluginConf {
    PluginConf {
        plugin_type: String::new(),
        capabilities: BTreeMap::new(),
        ipam_type: String::new(),
        dns: Dns::default(),
        plugin_log_level: String::new(),
        cni_agent_run_dir: RUN_DIR.into(),
        state_dir: STATE_DIR.into(),
        ambient_enabled: false,
        enablement_selectors: Vec::new(),
        exclude_namespaces: Vec::new(),
        pod_namespace: String::new(),
        agent_pod_prefix: String::new(),
        native_nftables: None,
        enable_ambient_detection_retry: false,
        facts_timeout: Duration::from_secs(30),
        add_timeout: Duration::from_secs(60),
        failure_policy: FailurePolicy::Closed,
        capture: true,
        policy_enforcement: false,
        policy_unprepared: UnpreparedPod::Closed,
        strict_status: false,
        kernel_network_runtime_classes: Vec::new(),
        pod_source: PodSourceConfig::Kubernetes,
        pod_annotations: None,
    }
}

fn map<T: Clone>(entries: &[(&str, T)]) -> BTreeMap<String, T> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

#[test]
fn absent_null_and_unknown_keys_give_the_defaults() {
    assert_eq!(decode("{}").unwrap(), empty());
    let nulls = r#"{"type":null,"capabilities":null,"ipam":null,"dns":null,"prevResult":null,"plugin_log_level":null,
        "cni_agent_run_dir":null,"state_dir":null,"ambient_enabled":null,"enablement_selectors":null,"exclude_namespaces":null,
        "pod_namespace":null,"native_nftables":null,"enable_ambient_detection_retry":null,"facts_timeout":null,
        "pod_source":null,"add_timeout":null,"failure_policy":null,"capture":null,"strict_status":null,
        "policy_enforcement":null,"policy_unprepared":null,
        "kernel_network_runtime_classes":null,"runtimeConfig":null,"log_level":7,"kubernetes":[],"args":{}}"#;
    assert_eq!(decode(nulls).unwrap(), empty());
}

#[test]
fn every_key_is_read() {
    let conf = decode(
        r#"{"cniVersion":"1.0.0","name":"net","type":"istio-cni",
        "capabilities":{"io.kubernetes.cri.pod-annotations":true,"portMappings":null},
        "ipam":{"type":"host-local","subnet":1},"dns":{"nameservers":["10.0.0.1"]},"prevResult":{},
        "plugin_log_level":"debug","cni_agent_run_dir":"/var/run/istio-cni","state_dir":"/var/lib/cni-state","ambient_enabled":true,
        "enablement_selectors":[{"podSelector":{"matchLabels":{"a":"b"},"matchExpressions":
            [{"key":"k","operator":"In","values":["x","y"]}]}},{}],
        "exclude_namespaces":["kube-system","istio-system"],"pod_namespace":"istio-system","agent_pod_prefix":"mesh-agent-","native_nftables":false,
        "enable_ambient_detection_retry":true,"facts_timeout":"1m30s","pod_source":{"manifests":"/pods"},
        "add_timeout":"20s","failure_policy":"open","capture":"disabled","kernel_network_runtime_classes":["kata-host"],
        "policy_enforcement":"on","policy_unprepared":"fail","strict_status":true,"runtimeConfig":{"portMappings":[],"io.kubernetes.cri.pod-annotations":{"a/b":"c","n":null}}}"#,
    );
    let selector = LabelSelector {
        match_labels: map(&[("a", "b".to_owned())]),
        match_expressions: vec![WrittenRequirement {
            key: "k".into(),
            operator: "In".into(),
            values: vec!["x".into(), "y".into()],
        }],
    };
    let expected = PluginConf {
        plugin_type: "istio-cni".into(),
        capabilities: map(&[("io.kubernetes.cri.pod-annotations", true)]),
        ipam_type: "host-local".into(),
        dns: Dns { nameservers: vec!["10.0.0.1".into()], ..Dns::default() },
        plugin_log_level: "debug".into(),
        cni_agent_run_dir: "/var/run/istio-cni".into(),
        state_dir: "/var/lib/cni-state".into(),
        ambient_enabled: true,
        enablement_selectors: vec![
            EnablementSelector { pod: selector, namespace: LabelSelector::default() },
            EnablementSelector::default(),
        ],
        exclude_namespaces: vec!["kube-system".into(), "istio-system".into()],
        pod_namespace: "istio-system".into(),
        agent_pod_prefix: "mesh-agent-".into(),
        native_nftables: Some(false),
        enable_ambient_detection_retry: true,
        facts_timeout: Duration::from_secs(90),
        add_timeout: Duration::from_secs(20),
        failure_policy: FailurePolicy::Open,
        capture: false,
        policy_enforcement: true,
        policy_unprepared: UnpreparedPod::Fail,
        strict_status: true,
        kernel_network_runtime_classes: vec!["kata-host".into()],
        pod_source: PodSourceConfig::Manifests("/pods".into()),
        pod_annotations: Some(map(&[("a/b", "c".to_owned())])),
    };
    assert_eq!(conf.unwrap(), expected);
}

#[test]
fn keys_match_in_any_case_and_later_ones_win() {
    let conf =
        decode(r#"{"Pod_Namespace":"a","pod_namespace":"b","POD_NAMESPACE":"c","Native_NFTables":true}"#);
    let conf = conf.unwrap();
    assert_eq!((conf.pod_namespace.as_str(), conf.native_nftables), ("c", Some(true)));
}

#[test]
fn wrong_types_and_values_name_the_key() {
    for (text, message) in [
        (
            r#"{"kernel_network_runtime_classes":"kata"}"#,
            "kernel_network_runtime_classes: expected an array, found a text",
        ),
        (r#"{"type":1}"#, "type: expected a text, found a number"),
        (r#"{"capabilities":{"a":"yes"}}"#, "capabilities.a: expected a boolean, found a text"),
        (r#"{"ipam":"x"}"#, "ipam: expected an object, found a text"),
        (r#"{"dns":{"search":"x"}}"#, "dns.search: expected an array, found a text"),
        (r#"{"prevResult":"x"}"#, "prevResult: expected an object, found a text"),
        (r#"{"plugin_log_level":true}"#, "plugin_log_level: expected a text, found a boolean"),
        (r#"{"cni_agent_run_dir":[]}"#, "cni_agent_run_dir: expected a text, found an array"),
        (r#"{"state_dir":1}"#, "state_dir: expected a text, found a number"),
        (r#"{"ambient_enabled":"true"}"#, "ambient_enabled: expected a boolean, found a text"),
        (r#"{"enablement_selectors":[1]}"#, "enablement_selectors[0]: expected an object, found a number"),
        (r#"{"exclude_namespaces":["a",2]}"#, "exclude_namespaces[1]: expected a text, found a number"),
        (r#"{"agent_pod_prefix":1}"#, "agent_pod_prefix: expected a text, found a number"),
        (r#"{"pod_namespace":{}}"#, "pod_namespace: expected a text, found an object"),
        (r#"{"native_nftables":"false"}"#, "native_nftables: expected a boolean, found a text"),
        (r#"{"facts_timeout":30}"#, "facts_timeout: expected a text, found a number"),
        (r#"{"facts_timeout":"30"}"#, "facts_timeout: \"30\" is not a duration; write numbers with a unit"),
        (r#"{"add_timeout":"0s"}"#, "add_timeout: has to be more than zero and at most 1h"),
        (r#"{"failure_policy":"Open"}"#, "failure_policy: is not one of \"closed\", \"open\""),
        (r#"{"failure_policy":false}"#, "failure_policy: expected a text, found a boolean"),
        (r#"{"capture":"off"}"#, "capture: is not one of \"enabled\", \"disabled\""),
        (r#"{"strict_status":"true"}"#, "strict_status: expected a boolean, found a text"),
        (r#"{"facts_timeout":"0s"}"#, "facts_timeout: has to be more than zero and at most 1h"),
        (r#"{"facts_timeout":"1h1ms"}"#, "facts_timeout: has to be more than zero and at most 1h"),
        (r#"{"pod_source":"x"}"#, "pod_source: expected an object, found a text"),
        (r#"{"pod_source":{"manifest":"/x"}}"#, "pod_source: names no source; write {\"manifests\""),
        (r#"{"runtimeConfig":[]}"#, "runtimeConfig: expected an object, found an array"),
        (
            r#"{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":1}}}"#,
            "runtimeConfig.io.kubernetes.cri.pod-annotations.a: expected a text, found a number",
        ),
    ] {
        let got = decode(text).unwrap_err().to_string();
        assert!(got.starts_with(message), "{text}: {got}");
    }
}

#[test]
fn durations() {
    for (text, millis) in
        [("30s", 30_000), ("1m30s", 90_000), ("500ms", 500), ("1h", 3_600_000), ("1s500ms", 1500), ("0s", 0)]
    {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in
        ["", "s", "30", "30 s", "-1s", "1.5s", "1d", "30s1", "99999999999999999999s", "18446744073709551615h"]
    {
        assert!(parse_duration(text).unwrap_err().to_string().contains("such as 30s"), "{text}");
    }
}

#[test]
fn attachments_come_under_either_key() {
    let decode = |text: &str| Attachment::decode_valid(&Value::parse(text.as_bytes()).unwrap());
    let entry = |id: &str| Attachment { container_id: id.into(), ifname: "eth0".into() };
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let text = format!(r#"{{"{key}":[{{"containerID":"a","ifname":"eth0"}}]}}"#);
        assert_eq!(decode(&text), Ok(Some(vec![entry("a")])));
        assert_eq!(decode(&format!(r#"{{"{key}":[]}}"#)), Ok(Some(vec![])));
        assert_eq!(decode(&format!(r#"{{"{key}":null}}"#)), Ok(None));
        let error = decode(&format!(r#"{{"{key}":[{{"containerID":"a"}}]}}"#)).unwrap_err();
        assert_eq!(error.to_string(), format!("{key}[0].ifname: missing"));
    }
    let both =
        r#"{"cni.dev/attachments":[],"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]}"#;
    assert_eq!(decode(both), Ok(Some(vec![entry("b")])));
}
