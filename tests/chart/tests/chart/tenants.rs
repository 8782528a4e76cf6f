//! The definitions of tenants and grants, with the roles and the admission policies that go with them.

use std::collections::BTreeSet;
use std::fs;

use chart::{Objects, render, render_set, root};
use serde_json::Value;

const GROUP: &str = "tenancy.istio-cni.io";

fn enabled() -> Objects {
    render_set(&["tenants.enabled=true"]).unwrap()
}

#[test]
fn they_come_where_they_are_asked_for() {
    let without = render_set(&[]).unwrap().names();
    let added: Vec<String> = enabled().names().into_iter().filter(|name| !without.contains(name)).collect();
    assert_eq!(
        added,
        [
            "ClusterRole/network-tenant-admin",
            "ClusterRole/network-tenant-grants",
            "ClusterRole/network-tenant-view",
            "CustomResourceDefinition/networktenants.tenancy.istio-cni.io",
            "CustomResourceDefinition/tenantgrants.tenancy.istio-cni.io",
            "ValidatingAdmissionPolicy/istio-cni-tenant-labels",
            "ValidatingAdmissionPolicy/istio-cni-tenant-system",
            "ValidatingAdmissionPolicyBinding/istio-cni-tenant-labels",
            "ValidatingAdmissionPolicyBinding/istio-cni-tenant-system",
        ]
    );
    for other in ["global.resourceScope=namespace", "agent.podSource=manifests:/etc/pods"] {
        let objects = render_set(&["tenants.enabled=true", other]).unwrap();
        assert!(!objects.iter().any(|object| object.to_string().contains(GROUP)), "{other}");
    }
    let old = render(&["--kube-version", "1.30.9", "--set", "tenants.enabled=true"]).unwrap_err().to_string();
    assert!(old.contains("tenants.enabled needs Kubernetes 1.31 or later, and this is v1.30.9"), "{old}");
}

#[test]
fn roles_give_what_their_names_say() {
    let objects = enabled();
    let all = "create,delete,deletecollection,get,list,patch,update,watch";
    assert_eq!(
        objects.rights("network-tenant-admin"),
        [format!("{GROUP} networktenants: assign,{all}"), format!("{GROUP} tenantgrants: {all}"),]
    );
    assert_eq!(
        objects.rights("network-tenant-view"),
        [format!("{GROUP} networktenants,tenantgrants: get,list,watch")]
    );
    assert_eq!(objects.rights("network-tenant-grants"), [format!("{GROUP} tenantgrants: {all}")]);
    let aggregated: Vec<&str> = objects
        .iter()
        .filter(|object| {
            object["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "true"
        })
        .map(|object| object["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(aggregated, ["network-tenant-grants"]);
}

#[test]
fn definitions_have_columns_and_a_status_of_their_own() {
    let objects = enabled();
    for (name, short, scope, columns) in [
        (
            "networktenants.tenancy.istio-cni.io",
            "nt",
            "Cluster",
            &[
                "Namespaces",
                "Pods",
                "Enforcement",
                "Accepted",
                "Conflicted",
                "Age",
                "External",
                "Unassigned",
                "DenyMode",
            ][..],
        ),
        ("tenantgrants.tenancy.istio-cni.io", "tg", "Namespaced", &["From", "Accepted", "Age"][..]),
    ] {
        let definition = objects.get("CustomResourceDefinition", name);
        let (spec, version) = (&definition["spec"], &definition["spec"]["versions"][0]);
        assert_eq!((&spec["names"]["shortNames"][0], &spec["scope"]), (&short.into(), &scope.into()));
        assert_eq!(spec["names"]["categories"][0], "istio-cni");
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        assert_eq!(version["subresources"]["status"], serde_json::json!({}));
        let shown = version["additionalPrinterColumns"].as_array().unwrap().iter();
        assert_eq!(shown.map(|column| column["name"].as_str().unwrap()).collect::<Vec<_>>(), columns);
    }
}

/// The messages of the rules anywhere in an object.
fn messages(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            let rules = map.get("x-kubernetes-validations").or_else(|| map.get("validations"));
            let rules = rules.and_then(Value::as_array).into_iter().flatten();
            found.extend(rules.filter_map(|rule| rule["message"].as_str()).map(str::to_owned));
            map.values().for_each(|value| messages(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| messages(value, found)),
        _ => {}
    }
}

/// The samples are judged in the crate `facts`, which has to say the same as an API server does by these rules.
#[test]
fn each_rule_has_a_sample_that_it_refuses_in_the_same_words() {
    let mut rules = BTreeSet::new();
    enabled()
        .iter()
        .filter(|object| object["kind"] != "Namespace")
        .for_each(|object| messages(object, &mut rules));
    let folder = root().join("crates/facts/samples/tenants/invalid");
    let first = |entry: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let samples: Vec<String> = fs::read_dir(folder).unwrap().map(first).collect();
    assert!(rules.len() >= 10, "{rules:?}");
    let missing: Vec<&String> =
        rules.iter().filter(|rule| !samples.iter().any(|sample| sample.ends_with(*rule))).collect();
    assert!(missing.is_empty(), "no sample is refused with: {missing:?}");
}
