//! Objects against the types of Kubernetes' API, strictly: a field that the type does not have is an error.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Kinds whose types come with other software (Multus, the operator of Prometheus), so that only their fields' presence is known.
const FOREIGN: [(&str, &str); 3] = [
    ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
];

/// Whether the object has the shape that its kind has in the API.
///
/// # Errors
/// Names the first field that is unknown, missing or of another type, or a kind that nobody expects.
pub fn check_fields(object: &Value) -> Result<()> {
    let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    match (version, kind) {
        ("v1", "ConfigMap") => check::<ConfigMap>(object),
        ("v1", "ResourceQuota") => check::<ResourceQuota>(object),
        ("v1", "Service") => check::<Service>(object),
        ("v1", "ServiceAccount") => check::<ServiceAccount>(object),
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy") => {
            check::<ValidatingAdmissionPolicy>(object)
        }
        ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding") => {
            check::<ValidatingAdmissionPolicyBinding>(object)
        }
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => check::<CustomResourceDefinition>(object),
        ("apps/v1", "DaemonSet") => check::<DaemonSet>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => check::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check::<ClusterRoleBinding>(object),
        other if FOREIGN.contains(&other) => Ok(()),
        (version, kind) => bail!("nobody expects a {version} {kind}"),
    }
    .with_context(|| format!("{kind}/{}", object["metadata"]["name"]))
}

fn check<T: DeserializeOwned>(object: &Value) -> Result<()> {
    let mut unknown = Vec::new();
    let _: T = serde_ignored::deserialize(object, |path| unknown.push(path.to_string()))?;
    ensure!(unknown.is_empty(), "unknown fields: {}", unknown.join(", "));
    Ok(())
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::check_fields;

    #[test]
    fn unknown_wrong_and_unexpected_things_are_named() {
        let good =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"K": "v"}});
        check_fields(&good).unwrap();
        for (change, message) in [
            (json!({"dataa": {}}), "unknown fields: dataa"),
            (json!({"data": {"K": true}}), "invalid type: boolean"),
            (json!({"kind": "Secret"}), "nobody expects a v1 Secret"),
        ] {
            let mut bad = good.clone();
            bad.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let error = format!("{:#}", check_fields(&bad).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
