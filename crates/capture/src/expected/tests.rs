use std::collections::BTreeMap;

use super::*;
use crate::annotations::STATUS;
use crate::pod::Container;
use crate::select::{EnablementSelector, Selectors};

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn container(name: &str) -> Container {
    Container { name: name.to_owned(), ..Container::default() }
}

/// With a sidecar, as the injector leaves it.
fn injected() -> Pod {
    Pod {
        namespace: "shop".into(),
        name: "web".into(),
        annotations: map(&[(STATUS, "{}")]),
        containers: vec![container("app"), container("istio-proxy")],
        ..Pod::default()
    }
}

/// Without one, with these labels of its own and of its namespace.
fn plain(labels: &[(&str, &str)], namespace: &[(&str, &str)]) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: "web".into(),
        labels: map(labels),
        containers: vec![container("app")],
        namespace_labels: Some(map(namespace)),
        ..Pod::default()
    }
}

fn of(pod: &Pod) -> Expected {
    expected(pod, &Exclusions::default(), &Enrolment::default(), &NodeSettings::default())
}

fn reason(pod: &Pod) -> Reason {
    match of(pod) {
        Expected::Outside(Outside::Skip(skip)) => skip.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_settings_are_those_of_an_add() {
    let mut pod = injected();
    pod.annotations.insert("traffic.sidecar.istio.io/excludeOutboundPorts".into(), "9090".into());
    let node = NodeSettings::default();
    let added = decide(&pod, &Exclusions::default(), &Enrolment::default(), &node).unwrap();
    let Decision::Sidecar { settings, .. } = added else { panic!("{added:?}") };
    assert_eq!(of(&pod), Expected::Captured(settings));
    pod.annotations.insert("traffic.sidecar.istio.io/excludeOutboundPorts".into(), "x".into());
    assert!(matches!(of(&pod), Expected::Unusable(_)));
}

#[test]
fn who_is_left_alone_is_outside_with_the_reason() {
    let mut pod = injected();
    pod.host_network = true;
    assert_eq!(reason(&pod), Reason::HostNetwork);
    let mut pod = injected();
    pod.annotations.insert("sidecar.istio.io/interceptionMode".into(), "NONE".into());
    assert_eq!(reason(&pod), Reason::InterceptionNone);
    let mut pod = injected();
    pod.init_containers.push(container("istio-init"));
    assert_eq!(of(&pod), Expected::Outside(Outside::Foreign));

    let excluded = Exclusions { excluded_namespaces: vec!["shop".into()], ..Exclusions::default() };
    let disabled = Exclusions { capture_disabled: true, ..Exclusions::default() };
    let agents =
        Exclusions { agent_namespace: "shop".into(), agent_pod_prefix: "we".into(), ..Exclusions::default() };
    for (scope, wanted) in [
        (excluded, Reason::ExcludedNamespace),
        (disabled, Reason::CaptureDisabled),
        (agents, Reason::OwnAgentPod),
    ] {
        let found = expected(&injected(), &scope, &Enrolment::default(), &NodeSettings::default());
        assert!(
            matches!(&found, Expected::Outside(Outside::Skip(skip)) if skip.reason == wanted),
            "{found:?}"
        );
    }
    let everything = Selectors::new(&[EnablementSelector::default()]).unwrap();
    let mesh = Enrolment { selectors: everything, ..Enrolment::default() };
    let found = expected(&plain(&[], &[]), &Exclusions::default(), &mesh, &NodeSettings::default());
    assert_eq!(found, Expected::Outside(Outside::Ambient));
}

#[test]
fn a_pod_that_asks_for_injection_and_has_no_proxy_is_named_with_the_label() {
    // Labels of the pod, labels of its namespace, and the label that asks.
    for (labels, namespace, asks) in [
        (&[(INJECT, "true")][..], &[][..], Some("sidecar.istio.io/inject=true")),
        (&[], &[(INJECTION, "enabled")], Some("istio-injection=enabled")),
        (&[], &[(REVISION, "canary")], Some("istio.io/rev=canary")),
        (&[(REVISION, "canary")], &[], Some("istio.io/rev=canary")),
        (&[(REVISION, "a")], &[(REVISION, "b")], Some("istio.io/rev=b")),
        (&[(INJECT, "false")], &[(INJECTION, "enabled")], None),
        (&[(INJECT, "false")], &[(REVISION, "canary")], None),
        (&[(INJECT, "true")], &[(INJECTION, "disabled")], None),
        (&[(REVISION, "canary")], &[(INJECTION, "disabled")], None),
        (&[(INJECT, "maybe")], &[(INJECTION, "enabled")], Some("istio-injection=enabled")),
        (&[], &[(INJECTION, "maybe")], None),
        (&[], &[(REVISION, "")], None),
        (&[], &[], None),
    ] {
        let pod = plain(labels, namespace);
        match (of(&pod), asks) {
            (Expected::Outside(Outside::NotInjected(text)), Some(asks)) => assert_eq!(text, asks),
            (Expected::Outside(Outside::Skip(skip)), None) => assert_eq!(skip.reason, Reason::NoProxy),
            (found, asks) => panic!("{labels:?} {namespace:?}: {found:?} instead of {asks:?}"),
        }
    }
    let mut pod = plain(&[], &[(INJECTION, "enabled")]);
    pod.annotations.insert(INJECT.into(), "false".into());
    assert_eq!(reason(&pod), Reason::NoProxy);
    pod.labels.insert(INJECT.into(), "true".into());
    assert!(matches!(of(&pod), Expected::Outside(Outside::NotInjected(_))));
    // It has what it asked for.
    let mut pod = injected();
    pod.namespace_labels = Some(map(&[(INJECTION, "enabled")]));
    assert!(matches!(of(&pod), Expected::Captured(_)));
}
