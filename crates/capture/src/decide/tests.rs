#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;

use super::sidecar::{INIT_CONTAINER, TABLE};
use super::*;
use crate::annotations::{INJECT, STATUS};
use crate::pod::Container;
use crate::select::{EnablementSelector, LabelSelector, WrittenRequirement};

/// A pod that reaches the last row: it is captured.
fn sidecar_pod() -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: "cart-1".to_owned(),
        annotations: [(STATUS.to_owned(), "{}".to_owned())].into(),
        containers: vec![container("app"), container(PROXY_CONTAINER)],
        ..Pod::default()
    }
}

fn container(name: &str) -> Container {
    Container { name: name.to_owned(), ..Container::default() }
}

fn proxy(pod: &mut Pod) -> &mut Container {
    pod.containers.iter_mut().find(|c| c.name == PROXY_CONTAINER).expect("the pod has a proxy")
}

fn env(pod: &mut Pod, name: &str, value: &str) {
    proxy(pod).env.push((name.to_owned(), value.to_owned()));
}

fn args(pod: &mut Pod, args: &[&str]) {
    proxy(pod).args = args.iter().map(ToString::to_string).collect();
}

/// The decision on a node without ambient mode that leaves no name alone.
fn of_sidecar(pod: &Pod) -> Result<Decision, AnnotationError> {
    decide(
        pod,
        &Exclusions { agent_namespace: "-".into(), ..Exclusions::default() },
        &Enrolment::default(),
        &NodeSettings::default(),
    )
}

/// The row that decides, or none when the pod is captured.
fn reason(pod: &Pod) -> Option<Reason> {
    match of_sidecar(pod).expect("the pod's annotations are valid") {
        Decision::Skip(skip) => Some(skip.reason),
        Decision::Sidecar { .. } => None,
        other => panic!("{other:?}"),
    }
}

fn captured(change: impl FnOnce(&mut Pod)) -> Option<Reason> {
    let mut pod = sidecar_pod();
    change(&mut pod);
    reason(&pod)
}

/// Makes a row's condition true, and nothing else.
type Break = fn(&mut Pod);

/// The rows in order.
const ROWS: &[(Reason, Break)] = &[
    (Reason::HostNetwork, |pod| pod.host_network = true),
    (Reason::IstioInitPresent, |pod| pod.init_containers.push(container(INIT_CONTAINER))),
    (Reason::EnvoyDisabled, |pod| env(pod, "DISABLE_ENVOY", "true")),
    (Reason::NoProxy, |pod| pod.containers.retain(|c| c.name != PROXY_CONTAINER)),
    (Reason::NotASidecar, |pod| args(pod, &["proxy", "router"])),
    (Reason::InjectFalse, |pod| drop(pod.labels.insert(INJECT.to_owned(), "false".to_owned()))),
    (Reason::NoStatus, |pod| drop(pod.annotations.remove(STATUS))),
    (Reason::InterceptionNone, |pod| {
        drop(pod.annotations.insert("sidecar.istio.io/interceptionMode".to_owned(), "NONE".to_owned()));
    }),
];

#[test]
fn each_row_decides_alone() {
    assert_eq!(captured(|_| ()), None);
    for (row, make) in ROWS {
        assert_eq!(captured(make), Some(*row));
    }
}

#[test]
fn of_two_rows_the_first_decides() {
    for (at, (first, one)) in ROWS.iter().enumerate() {
        for (second, other) in &ROWS[at + 1..] {
            // A pod without a proxy has no variables and no arguments of it.
            if (*first, *second) == (Reason::EnvoyDisabled, Reason::NoProxy)
                || *first == Reason::NoProxy && *second == Reason::NotASidecar
            {
                continue;
            }
            let found = captured(|pod| {
                one(pod);
                other(pod);
            });
            assert_eq!(found, Some(*first), "{first:?} and {second:?}");
        }
    }
}

#[test]
fn the_table_has_the_rows_in_this_order() {
    let order: Vec<Reason> = [Reason::HostNetwork]
        .into_iter()
        .chain(TABLE.iter().map(|(reason, _)| *reason))
        .chain([Reason::InterceptionNone])
        .collect();
    assert_eq!(order, ROWS.iter().map(|(reason, _)| *reason).collect::<Vec<_>>());
}

#[test]
fn what_is_known_by_name_alone() {
    let scope = Exclusions {
        agent_namespace: "istio-system".to_owned(),
        excluded_namespaces: vec!["kube-system".to_owned()],
        ..Exclusions::default()
    };
    let renamed = Exclusions { agent_pod_prefix: "mesh-agent-".to_owned(), ..scope.clone() };
    let nowhere = Exclusions::default();
    for (scope, namespace, name, row) in [
        (&scope, "shop", "cart-1", None),
        // The agent's own pod is told before missing names and excluded namespaces.
        (&scope, "istio-system", "istio-cni-node-x7", Some(Reason::OwnAgentPod)),
        (&scope, "shop", "istio-cni-node-x7", None),
        (&scope, "istio-system", "istio-cni-nod", None),
        (&scope, "istio-system", "my-istio-cni-node-x7", None),
        (&scope, "kube-system", "istio-cni-node-x7", Some(Reason::ExcludedNamespace)),
        (&renamed, "istio-system", "mesh-agent-x7", Some(Reason::OwnAgentPod)),
        (&renamed, "istio-system", "istio-cni-node-x7", None),
        (&renamed, "shop", "mesh-agent-x7", None),
        // A call without a name or namespace is not Kubernetes'.
        (&scope, "", "cart-1", Some(Reason::NotKubernetes)),
        (&scope, "shop", "", Some(Reason::NotKubernetes)),
        (&scope, "kube-system", "", Some(Reason::NotKubernetes)),
        // An excluded namespace is the whole name, in this letter case.
        (&scope, "kube-system", "dns", Some(Reason::ExcludedNamespace)),
        (&scope, "kube-system-2", "dns", None),
        (&scope, "Kube-System", "dns", None),
        // No namespace on either side is the same namespace.
        (&nowhere, "", "istio-cni-node-x7", Some(Reason::OwnAgentPod)),
        (&nowhere, "", "", Some(Reason::NotKubernetes)),
        (&nowhere, "istio-system", "istio-cni-node-x7", None),
    ] {
        assert_eq!(decide_by_name(namespace, name, scope).map(|skip| skip.reason), row, "{namespace}/{name}");
    }
    let own = Exclusions { agent_namespace: "kube-system".to_owned(), ..scope };
    assert_eq!(
        decide_by_name("kube-system", "istio-cni-node-1", &own).unwrap().reason,
        Reason::OwnAgentPod,
        "the agent's pod is the first row"
    );
}

#[test]
fn istio_init_counts_in_both_lists() {
    assert_eq!(captured(|pod| pod.containers.push(container("istio-init"))), Some(Reason::IstioInitPresent));
    assert_eq!(captured(|pod| pod.init_containers.push(container("istio-validation"))), None);
    assert_eq!(captured(|pod| pod.init_containers.push(container("istio-init2"))), None);
}

#[test]
fn disable_envoy_is_a_boolean_of_the_proxy() {
    for text in ["1", "t", "T", "TRUE", "true", "True"] {
        assert_eq!(captured(|pod| env(pod, "DISABLE_ENVOY", text)), Some(Reason::EnvoyDisabled), "{text}");
    }
    for text in ["0", "false", "yes", "", " true", "tRUE"] {
        assert_eq!(captured(|pod| env(pod, "DISABLE_ENVOY", text)), None, "{text}");
    }
    let last =
        |values: [&str; 2]| captured(|pod| values.iter().for_each(|value| env(pod, "DISABLE_ENVOY", value)));
    assert_eq!(last(["false", "true"]), Some(Reason::EnvoyDisabled), "the last entry counts");
    assert_eq!(last(["true", "false"]), None);
    let other = captured(|pod| pod.containers[0].env.push(("DISABLE_ENVOY".to_owned(), "true".to_owned())));
    assert_eq!(other, None, "the application's variables say nothing");
}

#[test]
fn the_proxy_type_is_the_word_after_proxy() {
    for (words, row) in [
        (&["proxy", "sidecar", "--domain"][..], None),
        (&["proxy", "router"], Some(Reason::NotASidecar)),
        (&["proxy", "ingress"], Some(Reason::NotASidecar)),
        (&["proxy", ""], Some(Reason::NotASidecar)),
        (&["proxy"], None),
        (&["router", "proxy"], None),
        (&["agent", "router"], None),
        (&[], None),
    ] {
        assert_eq!(captured(|pod| args(pod, words)), row, "{words:?}");
    }
}

#[test]
fn the_inject_label_hides_the_annotation() {
    let decided = |label: Option<&str>, annotation: Option<&str>| {
        captured(|pod| {
            pod.labels.extend(label.map(|text| (INJECT.to_owned(), text.to_owned())));
            pod.annotations.extend(annotation.map(|text| (INJECT.to_owned(), text.to_owned())));
        })
    };
    for no in ["0", "f", "F", "FALSE", "false", "False"] {
        assert_eq!(decided(Some(no), None), Some(Reason::InjectFalse), "{no}");
        assert_eq!(decided(None, Some(no)), Some(Reason::InjectFalse), "{no}");
    }
    assert_eq!(decided(Some("true"), Some("false")), None);
    assert_eq!(decided(Some("false"), Some("true")), Some(Reason::InjectFalse));
    assert_eq!(decided(Some(""), Some("false")), None, "an empty label hides it too");
    for other in ["disabled", "no", "", "fALSE", "true"] {
        assert_eq!(decided(Some(other), None), None, "{other}");
        assert_eq!(decided(None, Some(other)), None, "{other}");
    }
}

#[test]
fn any_status_counts_as_present() {
    for text in ["", "{}", "injected", "\u{0}"] {
        assert_eq!(captured(|pod| drop(pod.annotations.insert(STATUS.to_owned(), text.to_owned()))), None);
    }
}

#[test]
fn a_native_sidecar_is_captured() {
    let native = |restarts_always| {
        let mut pod = sidecar_pod();
        pod.containers.retain(|c| c.name != PROXY_CONTAINER);
        pod.init_containers.push(Container { restarts_always, ..container(PROXY_CONTAINER) });
        of_sidecar(&pod).unwrap()
    };
    let Decision::Sidecar { native_sidecar: true, warnings, .. } = native(true) else {
        panic!("{:?}", native(true))
    };
    assert_eq!(warnings, Vec::<String>::new());
    let Decision::Sidecar { native_sidecar: false, warnings, .. } = native(false) else {
        panic!("{:?}", native(false))
    };
    assert!(warnings[0].contains("restartPolicy Always"), "{warnings:?}");
    let Decision::Sidecar { native_sidecar: false, warnings, .. } = of_sidecar(&sidecar_pod()).unwrap()
    else {
        panic!("the usual sidecar is captured");
    };
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn of_two_proxies_the_later_one_counts_where_it_says_something() {
    let mut pod = sidecar_pod();
    pod.init_containers.push(Container {
        run_as_user: Some(7),
        run_as_group: Some(8),
        args: vec!["proxy".to_owned(), "router".to_owned()],
        ..container(PROXY_CONTAINER)
    });
    proxy(&mut pod).run_as_user = Some(9);
    args(&mut pod, &["proxy", "sidecar"]);
    let Decision::Sidecar { settings, .. } = of_sidecar(&pod).unwrap() else {
        panic!("the last container says sidecar");
    };
    assert_eq!((&settings.proxy_uids[..], &settings.proxy_gids[..]), (&[9][..], &[8][..]));
}

#[test]
fn the_detail_says_what_was_found() {
    let detail = |change: Break| {
        let mut pod = sidecar_pod();
        change(&mut pod);
        match of_sidecar(&pod).unwrap() {
            Decision::Skip(skip) => skip.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(detail(ROWS[3].1), "no-proxy (containers: app)");
    assert_eq!(detail(ROWS[4].1), "not-a-sidecar (proxy type \"router\")");
    assert_eq!(detail(ROWS[5].1), "inject-false (label sidecar.istio.io/inject is false)");
    assert_eq!(detail(ROWS[6].1), "no-status (annotation sidecar.istio.io/status is absent)");
}

#[test]
fn each_reason_has_one_name_and_one_text_and_the_document_has_the_same() {
    for (at, (reason, name, text)) in REASONS.iter().enumerate() {
        assert_eq!((*reason as usize, reason.name(), reason.text()), (at, *name, *text));
        assert!(!REASONS[..at].iter().any(|(_, other, same)| other == name || same == text), "{name}");
    }
    let document = include_str!("../../../../docs/decision.md");
    let (_, table) = document.split_once("The rows, in order:").unwrap();
    let rows: Vec<(&str, &str)> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter_map(|(name, rest)| Some((name, rest.split(" | ").next()?)))
        .collect();
    let table: Vec<(&str, &str)> = REASONS.iter().map(|(_, name, text)| (*name, *text)).collect();
    assert_eq!(rows, table);
}

const MODE: &str = "istio.io/dataplane-mode";

/// The selectors of the chart, and a ztunnel in istio-system.
fn chart() -> Enrolment {
    let labels = |value: &str| LabelSelector {
        match_labels: [(MODE.into(), value.into())].into(),
        ..Default::default()
    };
    let not_none =
        WrittenRequirement { key: MODE.into(), operator: "NotIn".into(), values: vec!["none".to_owned()] };
    let not_none = LabelSelector { match_expressions: vec![not_none], ..Default::default() };
    let entries = [
        EnablementSelector { pod: labels("ambient"), ..Default::default() },
        EnablementSelector { pod: not_none, namespace: labels("ambient") },
    ];
    Enrolment { selectors: Selectors::new(&entries).unwrap(), ztunnel_namespace: "istio-system".into() }
}

/// What a case sets; the rest is a plain pod in namespace shop of a node with the chart's options.
#[derive(Default)]
struct Case {
    namespace: &'static str,
    name: &'static str,
    /// Labels of the pod and of its namespace by the key of the mode; `unknown` for a namespace that is not known.
    pod: &'static str,
    of_namespace: &'static str,
    change: Option<fn(&mut Pod)>,
    disabled: bool,
    in_mesh: bool,
}

impl Case {
    fn pod(&self) -> Pod {
        let label = |value: &str| -> BTreeMap<String, String> {
            if value.is_empty() { BTreeMap::new() } else { [(MODE.to_owned(), value.to_owned())].into() }
        };
        let or =
            |text: &'static str, usual: &'static str| if text.is_empty() { usual } else { text }.to_owned();
        let mut pod = Pod {
            namespace: or(self.namespace, "shop"),
            name: or(self.name, "web"),
            labels: label(self.pod),
            namespace_labels: (self.of_namespace != "unknown").then(|| label(self.of_namespace)),
            containers: vec![container("app")],
            ..Pod::default()
        };
        self.change.into_iter().for_each(|change| change(&mut pod));
        pod
    }

    fn scope(&self) -> Exclusions {
        Exclusions {
            agent_namespace: "istio-system".to_owned(),
            excluded_namespaces: vec!["kube-system".to_owned()],
            capture_disabled: self.disabled,
            ..Exclusions::default()
        }
    }

    /// What the agent decides by: the first two stages.
    fn membership(&self) -> Membership {
        let pod = self.pod();
        let labels = |key: &str| pod.labels.get(key).map(String::as_str);
        let of_namespace = pod.namespace_labels.clone().unwrap_or_default();
        let of_namespace = |key: &str| of_namespace.get(key).map(String::as_str);
        let subject = Subject {
            namespace: &pod.namespace,
            name: &pod.name,
            host_network: pod.host_network,
            injected: pod.annotations.contains_key(STATUS),
            labels: &labels,
            namespace_labels: pod.namespace_labels.is_some().then_some(&of_namespace),
            in_mesh: self.in_mesh,
        };
        membership(&subject, &self.scope(), &chart())
    }

    fn decision(&self) -> Decision {
        decide(&self.pod(), &self.scope(), &chart(), &NodeSettings::default()).unwrap()
    }
}

fn with_sidecar(pod: &mut Pod) {
    pod.annotations.insert(STATUS.to_owned(), "{}".to_owned());
    pod.containers.push(container(PROXY_CONTAINER));
}

/// The word for an outcome: `in`, `unknown`, `sidecar`, or the reason's name.
fn word_of(decision: &Decision) -> &'static str {
    match decision {
        Decision::Ambient => "in",
        Decision::Unknown(_) => "unknown",
        Decision::Sidecar { .. } => "sidecar",
        Decision::Skip(skip) => skip.reason.name(),
    }
}

/// The case, what the agent says of it, what plugin and `cnictl` say.
#[rustfmt::skip]
fn cases() -> Vec<(Case, &'static str, &'static str)> {
    let case = Case::default;
    vec![
        // Labels of the namespace, of the pod, of both.
        (Case { of_namespace: "ambient", ..case() }, "in", "in"),
        (Case { pod: "ambient", ..case() }, "in", "in"),
        (Case { pod: "ambient", of_namespace: "unknown", ..case() }, "in", "in"),
        (Case { pod: "none", of_namespace: "ambient", ..case() }, "not-selected", "no-proxy"),
        (Case { pod: "none", of_namespace: "unknown", ..case() }, "not-selected", "no-proxy"),
        (Case { ..case() }, "not-selected", "no-proxy"),
        (Case { of_namespace: "unknown", ..case() }, "unknown", "unknown"),
        // Sidecars, injected or by hand.
        (Case { pod: "ambient", change: Some(with_sidecar), ..case() }, "injected", "sidecar"),
        (Case { of_namespace: "unknown", change: Some(with_sidecar), ..case() }, "injected", "sidecar"),
        (Case { of_namespace: "ambient", change: Some(|pod| pod.containers.push(container(PROXY_CONTAINER))), ..case() }, "in", "in"),
        (Case { change: Some(|pod| pod.containers.push(container(PROXY_CONTAINER))), ..case() }, "not-selected", "no-status"),
        // The node's network, and names.
        (Case { pod: "ambient", change: Some(|pod| pod.host_network = true), ..case() }, "host-network", "host-network"),
        (Case { of_namespace: "unknown", change: Some(|pod| pod.host_network = true), ..case() }, "host-network", "host-network"),
        (Case { pod: "ambient", namespace: "kube-system", ..case() }, "excluded-namespace", "excluded-namespace"),
        (Case { namespace: "istio-system", name: "istio-cni-node-x7", of_namespace: "ambient", ..case() }, "own-agent-pod", "own-agent-pod"),
        (Case { namespace: "istio-system", of_namespace: "ambient", change: Some(|pod| drop(pod.labels.insert("app".into(), "ztunnel".into()))), ..case() }, "ztunnel", "ztunnel"),
        (Case { of_namespace: "ambient", change: Some(|pod| drop(pod.labels.insert("app".into(), "ztunnel".into()))), ..case() }, "in", "in"),
        // The kill switch leaves alone what is in.
        (Case { pod: "ambient", disabled: true, ..case() }, "capture-disabled", "capture-disabled"),
        (Case { of_namespace: "unknown", disabled: true, ..case() }, "capture-disabled", "capture-disabled"),
        (Case { pod: "ambient", disabled: true, in_mesh: true, ..case() }, "in", "capture-disabled"),
        (Case { pod: "none", disabled: true, in_mesh: true, ..case() }, "not-selected", "capture-disabled"),
        (Case { change: Some(with_sidecar), disabled: true, ..case() }, "capture-disabled", "capture-disabled"),
        (Case { pod: "ambient", namespace: "kube-system", disabled: true, in_mesh: true, ..case() }, "excluded-namespace", "excluded-namespace"),
    ]
}

#[test]
fn agent_and_plugin_decide_by_the_same_table() {
    for (at, (case, agent, plugin)) in cases().into_iter().enumerate() {
        let membership = match case.membership() {
            Membership::In => "in",
            Membership::Out(skip) => skip.reason.name(),
            Membership::Unknown(_) => "unknown",
        };
        assert_eq!((membership, word_of(&case.decision())), (agent, plugin), "case {at}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let case = Case { of_namespace: "unknown", ..Case::default() };
    let Decision::Unknown(need) = case.decision() else { panic!("{:?}", case.decision()) };
    assert_eq!(need, Need::NamespaceLabels("shop".to_owned()));
    assert_eq!(need.to_string(), "the labels of namespace shop");
}

#[test]
fn where_ambient_mode_is_on_a_pod_without_a_proxy_hears_why_it_is_not_in() {
    let Decision::Skip(skip) = Case::default().decision() else { panic!() };
    assert_eq!(
        skip.text(),
        "it has no container istio-proxy: containers: app; no enablement selector matches the labels of pod and namespace"
    );
}

#[test]
fn an_annotation_is_only_read_of_a_pod_that_is_captured() {
    let bad = |pod: &mut Pod| {
        pod.annotations.insert("sidecar.istio.io/interceptionMode".to_owned(), "bad".to_owned());
    };
    let mut pod = sidecar_pod();
    bad(&mut pod);
    assert!(of_sidecar(&pod).is_err());
    for (row, make) in &ROWS[..ROWS.len() - 1] {
        let mut pod = sidecar_pod();
        bad(&mut pod);
        make(&mut pod);
        assert_eq!(reason(&pod), Some(*row));
    }
}

proptest::proptest! {
    /// Whatever a pod says, the decision comes to an end, and what people read has no control characters.
    #[test]
    fn texts_of_a_decision_can_be_logged(
        words in proptest::collection::vec("[\\x00-\\xff\\u{202e}]{0,24}", 8),
        which in 0..ROWS.len() + 1,
    ) {
        let mut pod = sidecar_pod();
        if let Some((_, make)) = ROWS.get(which) {
            make(&mut pod);
        }
        pod.name.clone_from(&words[0]);
        pod.namespace.clone_from(&words[1]);
        pod.containers[0].name.clone_from(&words[2]);
        pod.containers[0].run_as_user = Some(1337);
        pod.labels.insert(INJECT.to_owned(), words[3].clone());
        pod.annotations.insert("sidecar.istio.io/proxUID".to_owned(), words[4].clone());
        let name = format!("{AGENT_POD_PREFIX}{}", words[0]);
        for scope in [
            Exclusions { agent_namespace: words[1].clone(), ..Exclusions::default() },
            Exclusions { excluded_namespaces: vec![words[1].clone()], ..Exclusions::default() },
        ] {
            let text = decide_by_name(&words[1], &name, &scope).map(|skip| skip.to_string()).unwrap_or_default();
            proptest::prop_assert!(!text.contains(char::is_control), "{:?}", text);
        }
        let text = match of_sidecar(&pod) {
            Ok(Decision::Skip(skip)) => skip.to_string(),
            Ok(Decision::Sidecar { warnings, gaps, .. }) => [warnings, gaps].concat().concat(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => error.to_string(),
        };
        proptest::prop_assert!(!text.contains(char::is_control), "{:?}", text);
    }
}
