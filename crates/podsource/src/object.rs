//! The few members of Kubernetes objects that are facts for us, and their conversion.
//!
//! Everything is optional and `null` counts as absent, because Kubernetes' own serializer writes both. Unknown members are skipped.

use std::collections::BTreeMap;

use capture::{Container, Pod, PodId};
use serde::Deserialize;

use crate::error::Cause;

/// Any object; only pods and lists have members that we read.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Object {
    pub(crate) kind: Option<String>,
    pub(crate) metadata: Option<Metadata>,
    spec: Option<Spec>,
    pub(crate) items: Option<Vec<Object>>,
}

/// Enough of an object to tell whether it is the one wanted, where the whole of it does not fit [`Object`].
#[derive(Debug, Deserialize)]
pub(crate) struct Header {
    pub(crate) kind: Option<String>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) items: Option<Vec<Header>>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    annotations: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    host_network: Option<bool>,
    init_containers: Option<Vec<ContainerSpec>>,
    containers: Option<Vec<ContainerSpec>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerSpec {
    name: Option<String>,
    args: Option<Vec<String>>,
    env: Option<Vec<EnvVar>>,
    security_context: Option<SecurityContext>,
    restart_policy: Option<String>,
}

#[derive(Debug, Deserialize)]
struct EnvVar {
    name: String,
    value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
}

impl Metadata {
    /// Whether this names the pod; a manifest without a namespace means `default`.
    pub(crate) fn names(&self, namespace: &str, name: &str) -> bool {
        let own = self.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or("default");
        self.name.as_deref() == Some(name) && own == namespace
    }
}

impl Header {
    /// Whether this or one of its items names the pod.
    pub(crate) fn holds(&self, namespace: &str, name: &str) -> bool {
        let named = self.kind.as_deref() == Some("Pod")
            && self.metadata.as_ref().is_some_and(|metadata| metadata.names(namespace, name));
        named || self.items.iter().flatten().any(|item| item.holds(namespace, name))
    }

    /// What is missing to tell which object this is, if anything: such a document is cut off, or no manifest.
    pub(crate) fn gap(&self) -> Option<&'static str> {
        let named = self.metadata.as_ref().is_some_and(|metadata| metadata.name.is_some());
        match self.kind.as_deref() {
            None => Some("has no kind"),
            Some("Pod") if !named => Some("has no metadata.name"),
            Some(_) => None,
        }
    }

    /// Whether this or one of its items is a pod.
    pub(crate) fn holds_any(&self) -> bool {
        let is_pod = matches!(self.kind.as_deref(), Some("Pod" | "PodList"));
        is_pod || self.items.iter().flatten().any(Self::holds_any)
    }
}

impl Object {
    /// This object or the first of its items that is the named pod.
    ///
    /// The items of a `PodList` as the API writes it carry no kind of their own.
    pub(crate) fn find(self, namespace: &str, name: &str) -> Option<Object> {
        let Object { kind, items, .. } = &self;
        let inherited = (kind.as_deref() == Some("PodList")).then_some("Pod");
        if items.is_some() {
            return self.items.into_iter().flatten().find_map(|mut item| {
                if item.kind.is_none() {
                    item.kind = inherited.map(String::from);
                }
                item.find(namespace, name)
            });
        }
        let named = self.metadata.as_ref().is_some_and(|metadata| metadata.names(namespace, name));
        (self.kind.as_deref() == Some("Pod") && named).then_some(self)
    }

    /// The name, empty if there is none.
    pub(crate) fn name(&self) -> &str {
        self.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default()
    }

    /// Adds this object or those of its items that are pods.
    pub(crate) fn pods(self, found: &mut Vec<Object>) {
        let inherited = (self.kind.as_deref() == Some("PodList")).then_some("Pod");
        if let Some(items) = self.items {
            for mut item in items {
                if item.kind.is_none() {
                    item.kind = inherited.map(String::from);
                }
                item.pods(found);
            }
        } else if self.kind.as_deref() == Some("Pod") {
            found.push(self);
        }
    }

    /// Whether there are containers. Every pod has some, so an object without them is cut off, and taken for a pod without a sidecar
    /// it would leave the traffic of a pod with one uncaptured.
    pub(crate) fn has_containers(&self) -> bool {
        let containers = self.spec.as_ref().and_then(|spec| spec.containers.as_ref());
        containers.is_some_and(|containers| !containers.is_empty())
    }

    /// The facts, after checking that they are whole and those of the incarnation that the runtime starts.
    pub(crate) fn into_pod(self, id: &PodId) -> Result<Pod, Cause> {
        if !self.has_containers() {
            return Err(Cause::NotThePod(format!("{NO_CONTAINERS}; it seems to be cut off")));
        }
        let metadata = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let pod = Pod {
            namespace: metadata.namespace.filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".into()),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.filter(|uid| !uid.is_empty()),
            labels: texts(metadata.labels),
            annotations: texts(metadata.annotations),
            host_network: spec.host_network.unwrap_or_default(),
            init_containers: containers(spec.init_containers),
            containers: containers(spec.containers),
        };
        check_uid(id, &pod)?;
        Ok(pod)
    }
}

/// What is said of an object for which [`Object::has_containers`] is false.
pub(crate) const NO_CONTAINERS: &str = "has no spec.containers";

/// Annotations by which kubelet links the API's copy of a static pod to the pod that it starts, whose uid is this hash and not the
/// uid of the copy (Kubernetes `pkg/kubelet/types/constants.go`).
const STATIC_POD_HASHES: [&str; 2] = ["kubernetes.io/config.mirror", "kubernetes.io/config.hash"];

fn check_uid(id: &PodId, pod: &Pod) -> Result<(), Cause> {
    let (Some(wanted), Some(found)) = (id.uid.as_deref().filter(|uid| !uid.is_empty()), &pod.uid) else {
        return Ok(());
    };
    let mirrored =
        || STATIC_POD_HASHES.iter().any(|key| pod.annotations.get(*key).is_some_and(|hash| hash == wanted));
    if wanted == found || mirrored() {
        return Ok(());
    }
    Err(Cause::Stale { wanted: wanted.into(), found: found.clone() })
}

fn texts(map: Option<BTreeMap<String, Option<String>>>) -> BTreeMap<String, String> {
    map.into_iter().flatten().map(|(key, value)| (key, value.unwrap_or_default())).collect()
}

fn containers(specs: Option<Vec<ContainerSpec>>) -> Vec<Container> {
    specs.into_iter().flatten().map(Container::from).collect()
}

impl From<ContainerSpec> for Container {
    fn from(spec: ContainerSpec) -> Self {
        let (run_as_user, run_as_group) =
            spec.security_context.map_or((None, None), |context| (context.run_as_user, context.run_as_group));
        Container {
            name: spec.name.unwrap_or_default(),
            args: spec.args.unwrap_or_default(),
            env: spec
                .env
                .into_iter()
                .flatten()
                .map(|var| (var.name, var.value.unwrap_or_default()))
                .collect(),
            run_as_user,
            run_as_group,
            restarts_always: spec.restart_policy.as_deref() == Some("Always"),
        }
    }
}
