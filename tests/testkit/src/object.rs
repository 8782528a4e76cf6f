//! Pods as Kubernetes describes them.

use std::net::IpAddr;

use serde_json::{Value, json};

/// A pod as the API server or a manifest has it. It begins with the least that a pod has: a name, a namespace and a container `app`.
///
/// ```no_run
/// use testkit::PodObject;
/// let web = PodObject::named("web").in_namespace("shop").label("app", "web").sidecar().json();
/// assert_eq!(web["spec"]["containers"][1]["name"], "istio-proxy");
/// ```
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct PodObject(Value);

impl PodObject {
    /// A pod of namespace `default`.
    pub fn named(name: &str) -> Self {
        Self(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "app"}]},
        }))
    }

    /// In another namespace.
    pub fn in_namespace(self, namespace: &str) -> Self {
        self.with("/metadata/namespace", namespace)
    }

    /// With this `metadata.uid`.
    pub fn uid(self, uid: &str) -> Self {
        self.with("/metadata/uid", uid)
    }

    /// With a label.
    pub fn label(self, key: &str, value: &str) -> Self {
        self.labels(&[(key, value)])
    }

    /// With these labels, beside those that it has.
    pub fn labels(mut self, labels: &[(&str, &str)]) -> Self {
        for (key, value) in labels {
            self.0["metadata"]["labels"][*key] = json!(value);
        }
        self
    }

    /// With an annotation.
    pub fn annotation(self, key: &str, value: &str) -> Self {
        self.annotations(&[(key, value)])
    }

    /// With these annotations, beside those that it has.
    pub fn annotations(mut self, annotations: &[(&str, &str)]) -> Self {
        for (key, value) in annotations {
            self.0["metadata"]["annotations"][*key] = json!(value);
        }
        self
    }

    /// Scheduled to a node.
    pub fn on_node(self, node: &str) -> Self {
        self.with("/spec/nodeName", node)
    }

    /// With another first container than `app`.
    pub fn container(self, name: &str) -> Self {
        self.with("/spec/containers/0/name", name)
    }

    /// As the injector leaves it: with the proxy's container and the annotation that says so.
    pub fn sidecar(mut self) -> Self {
        let proxy = json!({"name": "istio-proxy", "args": ["proxy", "sidecar"]});
        if let Some(containers) = self.0["spec"]["containers"].as_array_mut() {
            containers.push(proxy);
        }
        self.annotation("sidecar.istio.io/status", "{}")
    }

    /// Owned by the DaemonSet of this name.
    pub fn of_daemonset(self, name: &str) -> Self {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "controller": true}]);
        self.with("/metadata/ownerReferences", owner)
    }

    /// Running, with these addresses.
    pub fn running(mut self, addresses: &[IpAddr]) -> Self {
        self.0["status"]["phase"] = json!("Running");
        if let Some(first) = addresses.first() {
            self.0["status"]["podIP"] = json!(first);
            self.0["status"]["podIPs"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        }
        self
    }

    /// Started at this time, as Kubernetes writes it.
    pub fn started(self, time: &str) -> Self {
        self.with("/status/startTime", time)
    }

    /// With a condition that holds since this time.
    pub fn condition(mut self, kind: &str, since: &str) -> Self {
        let conditions = &mut self.0["status"]["conditions"];
        if conditions.is_null() {
            *conditions = json!([]);
        }
        if let Some(conditions) = conditions.as_array_mut() {
            conditions.push(json!({"type": kind, "status": "True", "lastTransitionTime": since}));
        }
        self
    }

    /// With variables of the proxy's container.
    pub fn proxy_env(self, variables: &[(&str, &str)]) -> Self {
        let env: Vec<_> =
            variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        self.with("/spec/containers/1/env", env)
    }

    /// With any field, such as `/spec/hostNetwork`; the object that it belongs to is made where it is not there.
    pub fn with(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let mut at = &mut self.0;
        for key in pointer.split('/').skip(1) {
            at = match key.parse::<usize>() {
                Ok(index) if at.is_array() => &mut at[index],
                _ => &mut at[key],
            };
        }
        *at = value.into();
        self
    }

    /// The object.
    #[must_use]
    pub fn json(self) -> Value {
        self.0
    }
}

impl From<PodObject> for Value {
    fn from(pod: PodObject) -> Self {
        pod.0
    }
}
