//! The few members of Kubernetes objects that are facts for us, and their conversion.
//!
//! Everything is optional and `null` counts as absent, because Kubernetes' own serializer writes both. Unknown members are skipped, and
//! absent ones are not written.

mod made;
mod spec;
mod status;

use std::collections::BTreeMap;

use crate::PodRef;

use capture::Pod;
use serde::{Deserialize, Serialize};

pub use made::{METADATA_NAME, namespace_labels};
use spec::{ContainerSpec, PodSpec, SecurityContext, containers};
pub(crate) use status::Terminated;
pub(crate) use status::addresses;
pub use status::{PodIp, PodStatus};

/// Any object; only pods and lists have members that we read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Object {
    /// `Pod`, `List`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    /// What it is to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<PodSpec>,
    /// What it is. Only the phase and the addresses are written, by which a running pod is found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PodStatus>,
    /// The objects of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<Object>>,
}

/// Enough of an object to tell whether it is the one wanted, where the whole of it does not fit [`Object`].
#[derive(Debug, Deserialize)]
pub struct Header {
    /// As in [`Object`].
    pub kind: Option<String>,
    /// As in [`Object`].
    pub metadata: Option<Metadata>,
    /// As in [`Object`].
    pub items: Option<Vec<Header>>,
}

/// `metadata` of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Namespace; a manifest without one means `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What tells two objects of one name apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The version that a watch goes on from; never written.
    #[serde(skip_serializing)]
    pub resource_version: Option<String>,
    /// When somebody has asked for its deletion, RFC 3339; never written.
    #[serde(skip_serializing)]
    pub deletion_timestamp: Option<Box<str>>,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, Option<String>>>,
    /// Annotations. Untrusted text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, Option<String>>>,
}

/// An object that is not the pod asked for, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There are no containers.
    #[error("{NO_CONTAINERS}; it seems to be cut off")]
    CutOff,
    /// Another pod under the same name.
    #[error("stale object: the runtime starts the pod with uid {wanted}, the object has uid {found}")]
    Stale {
        /// What the runtime said.
        wanted: String,
        /// What the object has.
        found: String,
    },
}

impl Metadata {
    /// Whether this names the pod; a manifest without a namespace means `default`.
    pub fn names(&self, namespace: &str, name: &str) -> bool {
        self.name.as_deref() == Some(name) && self.namespace() == namespace
    }

    fn namespace(&self) -> &str {
        self.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
    }
}

impl Header {
    /// Whether this or one of its items names the pod.
    pub fn holds(&self, namespace: &str, name: &str) -> bool {
        let named = self.kind.as_deref() == Some(POD)
            && self.metadata.as_ref().is_some_and(|metadata| metadata.names(namespace, name));
        named || self.items.iter().flatten().any(|item| item.holds(namespace, name))
    }

    /// Whether this or one of its items is the namespace.
    pub fn holds_namespace(&self, name: &str) -> bool {
        let named = || self.metadata.as_ref().is_some_and(|metadata| metadata.name.as_deref() == Some(name));
        let is_it = self.kind.as_deref() == Some(NAMESPACE) && named();
        is_it || self.items.iter().flatten().any(|item| item.holds_namespace(name))
    }

    /// What is missing to tell which object this is, if anything: such a document is cut off, or no manifest.
    pub fn gap(&self) -> Option<&'static str> {
        let named = self.metadata.as_ref().is_some_and(|metadata| metadata.name.is_some());
        match self.kind.as_deref() {
            None => Some("has no kind"),
            Some(POD) if !named => Some("has no metadata.name"),
            Some(_) => None,
        }
    }
}

impl Object {
    /// This object or the first of its items that is the named pod.
    ///
    /// The items of a `PodList` as the API writes it carry no kind of their own.
    pub fn find(self, namespace: &str, name: &str) -> Option<Object> {
        let inherited = self.kind.as_deref().and_then(kind_of_items);
        if self.items.is_some() {
            return self.items.into_iter().flatten().find_map(|mut item| {
                if item.kind.is_none() {
                    item.kind = inherited.map(String::from);
                }
                item.find(namespace, name)
            });
        }
        let named = self.metadata.as_ref().is_some_and(|metadata| metadata.names(namespace, name));
        (self.is_pod() && named).then_some(self)
    }

    /// The name, empty if there is none.
    pub fn name(&self) -> &str {
        self.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default()
    }

    /// Adds this object, or those that it lists, if it is a pod or a namespace.
    pub fn unfold(self, found: &mut Vec<Object>) {
        let inherited = self.kind.as_deref().and_then(kind_of_items);
        if let Some(items) = self.items {
            for mut item in items {
                if item.kind.is_none() {
                    item.kind = inherited.map(String::from);
                }
                item.unfold(found);
            }
        } else if self.is_pod() || self.is_namespace() {
            found.push(self);
        }
    }

    /// Whether it is a pod.
    pub fn is_pod(&self) -> bool {
        self.kind.as_deref() == Some(POD)
    }

    /// Whether it is a namespace.
    pub fn is_namespace(&self) -> bool {
        self.kind.as_deref() == Some(NAMESPACE)
    }

    /// `metadata.labels`
    pub fn labels(&self) -> BTreeMap<String, String> {
        texts(self.metadata.as_ref().and_then(|metadata| metadata.labels.clone()))
    }

    /// Whether there are containers. Every pod has some, so an object without them is cut off, and taken for a pod without a sidecar
    /// it would leave the traffic of a pod with one uncaptured.
    pub fn has_containers(&self) -> bool {
        let containers = self.spec.as_ref().and_then(|spec| spec.containers.as_ref());
        containers.is_some_and(|containers| !containers.is_empty())
    }

    /// Drops what nobody reads: annotations of others, the containers' texts where they are no facts. What is left converts into the same
    /// facts, is a fraction of the object's size, and holds no secret that stood in a variable.
    #[must_use]
    pub fn trimmed(mut self) -> Self {
        if let Some(metadata) = &mut self.metadata {
            if let Some(annotations) = &mut metadata.annotations {
                annotations.retain(|key, _| is_read(key));
            }
            let _ = metadata.annotations.take_if(|annotations| annotations.is_empty());
        }
        if let Some(spec) = &mut self.spec {
            SecurityContext::trim(&mut spec.security_context);
            let _ = spec.restart_policy.take_if(|policy| policy != NEVER);
        }
        let containers =
            self.spec.iter_mut().flat_map(|spec| [&mut spec.init_containers, &mut spec.containers]);
        containers.flatten().flatten().for_each(ContainerSpec::trim);
        self.status.iter_mut().for_each(PodStatus::trim);
        self
    }

    /// `metadata.namespace`, `default` if there is none.
    pub fn namespace(&self) -> &str {
        self.metadata.as_ref().map_or("default", Metadata::namespace)
    }

    /// A label, if it is there.
    pub fn label(&self, key: &str) -> Option<&str> {
        value(self.metadata.as_ref()?.labels.as_ref()?, key)
    }

    /// An annotation, if it is there.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        value(self.metadata.as_ref()?.annotations.as_ref()?, key)
    }

    /// All annotations that were kept.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        texts(self.metadata.as_ref().and_then(|metadata| metadata.annotations.clone()))
    }

    /// `spec.hostNetwork`.
    pub fn host_network(&self) -> bool {
        self.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default()
    }

    /// Whether it is on its way out (`metadata.deletionTimestamp`).
    pub fn is_deleting(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.deletion_timestamp.is_some())
    }

    /// Whether the pod has a user namespace of its own (`spec.hostUsers: false`).
    pub fn has_own_users(&self) -> bool {
        self.spec.as_ref().and_then(|spec| spec.host_users) == Some(false)
    }

    /// What kubelet calls a static pod, of which this is the API server's copy: the hash of its manifest.
    pub fn static_hash(&self) -> Option<&str> {
        // Only a node may write the first, anybody the second.
        let [mirror, hash] = STATIC_POD_HASHES.map(|key| self.annotation(key));
        mirror.and(hash).or(mirror).filter(|hash| !hash.is_empty())
    }

    /// By which uid a runtime knows the pod: of a static pod the hash of its manifest.
    pub fn runtime_uid(&self) -> &str {
        self.static_hash().or(self.uid()).unwrap_or_default()
    }

    /// `spec.serviceAccountName`, empty if there is none.
    pub fn service_account(&self) -> &str {
        self.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or_default()
    }

    /// `spec.runtimeClassName`, if there is one.
    pub fn runtime_class(&self) -> Option<&str> {
        self.spec
            .as_ref()
            .and_then(|spec| spec.runtime_class_name.as_deref())
            .filter(|class| !class.is_empty())
    }

    /// Whether a container of the pod that has ended is never started again (`spec.restartPolicy: Never`).
    pub fn never_restarts(&self) -> bool {
        self.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) == Some(NEVER)
    }

    /// Which pod this is.
    pub fn pod_ref(&self) -> PodRef {
        let uid = self.uid().unwrap_or_default().to_owned();
        PodRef { uid, ..PodRef::named(self.namespace(), self.name()) }
    }

    /// `metadata.uid`, if there is one.
    pub fn uid(&self) -> Option<&str> {
        self.metadata.as_ref().and_then(|metadata| metadata.uid.as_deref()).filter(|uid| !uid.is_empty())
    }

    /// Whether it is whole and the incarnation that the runtime starts.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn check(&self, id: &PodRef) -> Result<(), Unfit> {
        if !self.has_containers() {
            return Err(Unfit::CutOff);
        }
        let (Some(wanted), Some(found)) = (id.known_uid(), self.uid()) else {
            return Ok(());
        };
        let annotations = self.metadata.iter().filter_map(|metadata| metadata.annotations.as_ref());
        let mut hashes = annotations.flat_map(|a| STATIC_POD_HASHES.iter().filter_map(|key| a.get(*key)));
        // What was made up here is nothing that a runtime could know.
        if wanted == found || self.has_made_uid() || hashes.any(|hash| hash.as_deref() == Some(wanted)) {
            return Ok(());
        }
        Err(Unfit::Stale { wanted: wanted.into(), found: found.into() })
    }

    /// The facts, after [`Object::check`].
    ///
    /// # Errors
    /// As there.
    pub fn into_pod(self, id: &PodRef) -> Result<Pod, Unfit> {
        self.check(id)?;
        let metadata = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let (run_as_user, run_as_group) = SecurityContext::ids(spec.security_context);
        Ok(Pod {
            namespace: metadata.namespace.filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".into()),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.filter(|uid| !uid.is_empty()),
            labels: texts(metadata.labels),
            annotations: texts(metadata.annotations),
            namespace_labels: None,
            host_network: spec.host_network.unwrap_or_default(),
            runtime_class: spec.runtime_class_name.filter(|class| !class.is_empty()),
            run_as_user,
            run_as_group,
            init_containers: containers(spec.init_containers),
            containers: containers(spec.containers),
        })
    }
}

/// The annotation by which others see whether a pod is in the mesh.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// `spec.restartPolicy` of a pod whose containers run once.
const NEVER: &str = "Never";
const POD: &str = "Pod";
const NAMESPACE: &str = "Namespace";

/// What the items of a list are that have no kind of their own, as the API writes it.
fn kind_of_items(list: &str) -> Option<&'static str> {
    match list {
        "PodList" => Some(POD),
        "NamespaceList" => Some(NAMESPACE),
        _ => None,
    }
}

/// What is said of an object for which [`Object::has_containers`] is false.
pub const NO_CONTAINERS: &str = "has no spec.containers";

/// Annotations by which kubelet links the API's copy of a static pod to the pod that it starts, whose uid is this hash and not the
/// uid of the copy (Kubernetes `pkg/kubelet/types/constants.go`).
const STATIC_POD_HASHES: [&str; 2] = ["kubernetes.io/config.mirror", "kubernetes.io/config.hash"];

/// Whether an annotation is a fact: the mesh's own, and those that tell a static pod.
fn is_read(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    domain == "istio.io" || domain.ends_with(".istio.io") || STATIC_POD_HASHES.contains(&key)
}

/// `null` counts as the empty text, which is what the API server makes of it.
fn value<'a>(map: &'a BTreeMap<String, Option<String>>, key: &str) -> Option<&'a str> {
    map.get(key).map(|value| value.as_deref().unwrap_or_default())
}

fn texts(map: Option<BTreeMap<String, Option<String>>>) -> BTreeMap<String, String> {
    // They come in order, so there is nothing to sort; `collect` would, with code of its own in the plugin.
    let mut texts = BTreeMap::new();
    texts.extend(map.into_iter().flatten().map(|(key, value)| (key, value.unwrap_or_default())));
    texts
}

#[cfg(test)]
mod tests;
