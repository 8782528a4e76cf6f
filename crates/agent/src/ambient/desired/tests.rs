#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use capture::select::{EnablementSelector, LabelSelector, Selectors};
use serde_json::{Value, json};

use super::*;

fn rules() -> DesiredRules {
    let ambient = LabelSelector {
        match_labels: [("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())].into(),
        ..LabelSelector::default()
    };
    DesiredRules {
        scope: Exclusions { excluded_namespaces: vec!["kube-system".into()], ..Exclusions::default() },
        enrolment: Enrolment {
            selectors: Selectors::new(&[EnablementSelector {
                namespace: ambient,
                ..EnablementSelector::default()
            }])
            .unwrap(),
            ztunnel_namespace: "istio-system".into(),
        },
    }
}

fn facts(mut pod: Value, labels: Option<&[(&str, &str)]>) -> Facts {
    pod["kind"] = json!("Pod");
    let namespace_labels =
        labels.map(|labels| labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect());
    Facts { pod: Arc::new(serde_json::from_value(pod).unwrap()), namespace_labels }
}

const AMBIENT: &[(&str, &str)] = &[("istio.io/dataplane-mode", "ambient")];

#[test]
fn where_a_pod_belongs() {
    let of = |pod: Value, labels| rules().desired(&facts(pod, labels));
    let web = |extra: Value| {
        let mut pod = json!({"metadata": {"name": "web", "namespace": "shop"}});
        pod.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod
    };
    assert_eq!(of(web(json!({})), Some(AMBIENT)), Desired::In);
    assert_eq!(of(web(json!({})), None), Desired::Unknown);
    assert!(matches!(of(web(json!({})), Some(&[])), Desired::Out(_)));
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(of(web(json!({"status": {"phase": phase}})), Some(AMBIENT)), Desired::Ended);
        assert_eq!(of(web(json!({"status": {"phase": phase}})), None), Desired::Ended);
    }
    assert_eq!(of(web(json!({"status": {"phase": "Running"}})), Some(AMBIENT)), Desired::In);
    let excluded = json!({"metadata": {"name": "dns", "namespace": "kube-system"}});
    assert!(matches!(of(excluded, Some(AMBIENT)), Desired::Out(reason) if reason.contains("kube-system")));
    let ztunnel = |namespace: &str| json!({"metadata": {"name": "z", "namespace": namespace, "labels": {"app": "ztunnel"}}});
    assert!(
        matches!(of(ztunnel("istio-system"), Some(AMBIENT)), Desired::Out(reason) if reason.contains("ztunnel"))
    );
    assert_eq!(of(ztunnel("shop"), Some(AMBIENT)), Desired::In, "only in the system namespace");
}
