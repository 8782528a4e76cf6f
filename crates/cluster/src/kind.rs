//! Kinds of objects as data: where a kind is in the API, and what is kept of its objects. Everything else is the same for all of them.
//!
//! A kind that is added is a file beside the others here, and in `facts` one with the fields that are kept.

mod daemonset;
mod endpointslice;
mod namespace;
mod networkpolicy;
mod node;
mod peer;
mod pod;
mod service;
mod tenant;

use kube::core::Request;
use kube::core::params::{GetParams, ListParams, VersionMatch, WatchParams};
use serde::de::DeserializeOwned;

pub use daemonset::DaemonSets;
pub use endpointslice::EndpointSlices;
pub use namespace::Namespaces;
pub use networkpolicy::NetworkPolicies;
pub use node::{Nodes, NodesByAddress};
pub use peer::PeerPods;
pub use pod::Pods;
pub use service::Services;
pub use tenant::{NetworkTenants, TenantGrants};

use crate::readiness::WatchName;
use crate::write::segment;

/// Objects in a page of a list that the API server reads from its store, as many as a node has pods.
const PAGE: u32 = 500;

/// A kind of object.
pub trait Kind: 'static {
    /// What is kept of an object: the fields that this reads, and no others.
    type Object: DeserializeOwned + PartialEq + Send + Sync + 'static;
    /// Where it is in the API.
    const RESOURCE: Resource;
    /// Whether a cluster may not have the kind: it is a definition of our own. Then there are no objects of it, until it comes.
    const IS_OPTIONAL: bool = false;
    /// Its name in logs and metrics.
    const WATCH: WatchName = WatchName::of(Self::RESOURCE.plural);

    /// The last step of reading one.
    fn kept(object: Self::Object) -> Self::Object {
        object
    }

    /// What the API server adds to an object that is written without it; for those of manifests, which no API server has seen.
    ///
    /// # Errors
    /// It lacks what every object of the kind has, so that it is cut off.
    fn completed(_key: &crate::news::ObjectKey, object: Self::Object) -> Result<Self::Object, &'static str> {
        Ok(object)
    }
}

/// Where a kind is in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// The path of its group and version, such as `/apis/apps/v1`.
    pub api: &'static str,
    /// Its name in objects, such as `DaemonSet`.
    pub kind: &'static str,
    /// Its name in paths, such as `daemonsets`.
    pub plural: &'static str,
    /// Whether its objects belong to namespaces.
    pub namespaced: bool,
}

/// Which objects of a kind are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectSelection {
    /// Those of one namespace.
    namespace: Option<String>,
    /// A field selector and what it says in words.
    fields: Option<(String, String)>,
    /// The one of this name.
    name: Option<String>,
}

/// How current a list has to be. The first two come from the API server's cache, which answers a list of a node's pods without reading those of
/// the cluster from the store; a limit would keep it from that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Since {
    /// As the server has it.
    Any,
    /// Not older than this version, which a watch has reached.
    Version(String),
    /// As the store has it.
    Now,
}

/// The requests for the objects of a selection.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    resource: Resource,
    selection: ObjectSelection,
}

type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

// === impl ObjectSelection ===

impl ObjectSelection {
    /// All of them.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those of a namespace.
    pub fn in_namespace(namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..Self::default() }
    }

    /// Those that a field selector selects, such as `spec.nodeName=n1`; `words` say the same after the kind's name.
    pub fn fields(selector: impl Into<String>, words: impl Into<String>) -> Self {
        Self { fields: Some((selector.into(), words.into())), ..Self::default() }
    }

    /// One of them. The API server reads it by its key, and a role that names it is enough for that.
    pub fn one(namespace: Option<&str>, name: &str) -> Self {
        Self { namespace: namespace.map(str::to_owned), fields: None, name: Some(name.to_owned()) }
    }

    /// Whether it is one object. Its list is read from the store: that it is not there must not be what a stale cache says.
    pub(crate) fn is_single(&self) -> bool {
        self.name.is_some()
    }
}

// === impl Resource ===

impl Resource {
    fn request(&self, namespace: Option<&str>) -> Request {
        let Self { api, plural, .. } = self;
        Request::new(match namespace {
            Some(namespace) => format!("{api}/namespaces/{}/{plural}", segment(namespace)),
            None => format!("{api}/{plural}"),
        })
    }

    /// The request for one object, as the store has it.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Built {
        let namespace = self.namespaced.then_some(namespace);
        self.request(namespace).get(&segment(name), &GetParams::default())
    }
}

// === impl Requests ===

impl Requests {
    pub(crate) fn new(resource: Resource, selection: ObjectSelection) -> Self {
        Self { resource, selection }
    }

    /// Such as `pods of node n1`.
    pub(crate) fn name(&self) -> String {
        let Resource { kind, plural, .. } = self.resource;
        let ObjectSelection { namespace, fields, name } = &self.selection;
        match (name, namespace, fields) {
            (Some(name), Some(namespace), _) => format!("{kind} {namespace}/{name}"),
            (Some(name), None, _) => format!("{} {name}", kind.to_lowercase()),
            (None, Some(namespace), _) => format!("{plural} of namespace {namespace}"),
            (None, None, Some((_, words))) => format!("{plural} {words}"),
            (None, None, None) => plural.to_owned(),
        }
    }

    pub(crate) fn is_single(&self) -> bool {
        self.selection.is_single()
    }

    /// The name of the list as an object.
    pub(crate) fn list_kind(&self) -> String {
        format!("{}List", self.resource.kind)
    }

    fn request(&self) -> Request {
        self.resource.request(self.selection.namespace.as_deref())
    }

    fn fields(&self) -> Option<String> {
        let name = self.selection.name.as_ref().map(|name| format!("metadata.name={name}"));
        name.or_else(|| self.selection.fields.as_ref().map(|(selector, _)| selector.clone()))
    }

    /// The request for a page; `next` is empty for the first.
    pub(crate) fn list(&self, since: &Since, next: &str) -> Built {
        let mut params = ListParams { field_selector: self.fields(), ..ListParams::default() };
        match (next, since) {
            ("", Since::Any) => params = params.match_any(),
            ("", Since::Version(version)) => params = params.at(version).matching(VersionMatch::NotOlderThan),
            ("", Since::Now) => params = params.limit(PAGE),
            (next, _) => params = params.limit(PAGE).continue_token(next),
        }
        self.request().list(&params)
    }

    /// The request for what happens after `version`, for at most `seconds`.
    pub(crate) fn watch(&self, version: &str, seconds: u32) -> Built {
        let params = WatchParams {
            field_selector: self.fields(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        self.request().watch(&params, version)
    }
}

// === impl Since ===

impl Since {
    /// Whether a list of this version is older than asked for. Versions that are no numbers cannot be compared.
    pub(crate) fn is_older(&self, version: &str) -> bool {
        let Self::Version(wanted) = self else { return false };
        matches!((version.parse::<u64>(), wanted.parse::<u64>()), (Ok(version), Ok(wanted)) if version < wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(resource: Resource, selection: ObjectSelection) -> (String, String) {
        let requests = Requests::new(resource, selection);
        let list = requests.list(&Since::Any, "").unwrap();
        (list.uri().to_string(), requests.name())
    }

    #[test]
    fn a_kind_is_a_path() {
        for (resource, selection, path, name) in [
            (
                Pods::RESOURCE,
                ObjectSelection::fields("spec.nodeName=n1", "of node n1"),
                "/api/v1/pods?&resourceVersion=0&fieldSelector=spec.nodeName%3Dn1",
                "pods of node n1",
            ),
            (
                Namespaces::RESOURCE,
                ObjectSelection::all(),
                "/api/v1/namespaces?&resourceVersion=0",
                "namespaces",
            ),
            (
                DaemonSets::RESOURCE,
                ObjectSelection::one(Some("a"), "b"),
                "/apis/apps/v1/namespaces/a/daemonsets?&resourceVersion=0&fieldSelector=metadata.name%3Db",
                "DaemonSet a/b",
            ),
            (
                Nodes::RESOURCE,
                ObjectSelection::one(None, "n1"),
                "/api/v1/nodes?&resourceVersion=0&fieldSelector=metadata.name%3Dn1",
                "node n1",
            ),
            (
                NetworkPolicies::RESOURCE,
                ObjectSelection::all(),
                "/apis/networking.k8s.io/v1/networkpolicies?&resourceVersion=0",
                "networkpolicies",
            ),
            (
                Services::RESOURCE,
                ObjectSelection::in_namespace("a"),
                "/api/v1/namespaces/a/services?&resourceVersion=0",
                "services of namespace a",
            ),
            (
                EndpointSlices::RESOURCE,
                ObjectSelection::all(),
                "/apis/discovery.k8s.io/v1/endpointslices?&resourceVersion=0",
                "endpointslices",
            ),
            (PeerPods::RESOURCE, ObjectSelection::all(), "/api/v1/pods?&resourceVersion=0", "pods"),
            (
                NetworkTenants::RESOURCE,
                ObjectSelection::all(),
                "/apis/tenancy.istio-cni.io/v1alpha1/networktenants?&resourceVersion=0",
                "networktenants",
            ),
            (
                TenantGrants::RESOURCE,
                ObjectSelection::all(),
                "/apis/tenancy.istio-cni.io/v1alpha1/tenantgrants?&resourceVersion=0",
                "tenantgrants",
            ),
        ] {
            let (listed, said) = paths(resource, selection);
            // Parameters come in any order.
            let sorted = |path: &str| {
                let (path, query) = path.split_once('?').unwrap();
                let mut query: Vec<String> =
                    query.split('&').filter(|one| !one.is_empty()).map(str::to_owned).collect();
                query.sort_unstable();
                (
                    path.to_owned(),
                    query
                        .into_iter()
                        .filter(|one| !one.starts_with("resourceVersionMatch"))
                        .collect::<Vec<_>>(),
                )
            };
            assert_eq!((sorted(&listed), said.as_str()), (sorted(path), name));
        }
        let get = |resource: Resource| resource.get("a", "b").unwrap().uri().to_string();
        assert_eq!(get(Pods::RESOURCE).trim_end_matches('?'), "/api/v1/namespaces/a/pods/b");
        assert_eq!(get(Namespaces::RESOURCE).trim_end_matches('?'), "/api/v1/namespaces/b");
    }
}
