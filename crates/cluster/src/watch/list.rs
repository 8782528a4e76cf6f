//! The shapes of a list and of a watch, and what is kept of their objects.

mod page;

use facts::object::{Header, Metadata};
use facts::{Object, PodRef};
use kube::core::Request;
use kube::core::params::{GetParams, ListParams, VersionMatch, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Change, Told, What};
use crate::daemonset::{self, DaemonSet, Node};
use crate::error::place;
use crate::index::{Ahead, Index};
use crate::write::segment;
pub(super) use page::{Page, PageMetadata};

/// Objects in a page of a list that the API server reads from its store, as many as a node has pods.
const PAGE: u32 = 500;

/// What is listed and watched.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// The pods of a node.
    Pods {
        /// Its name.
        node: String,
    },
    /// All namespaces.
    Namespaces,
    /// The agent's DaemonSet.
    DaemonSet {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The node's own object.
    Node {
        /// Its name.
        name: String,
    },
}

/// What is kept of an object.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "each is used at once; a box would be an allocation for each pod"
)]
pub(super) enum Item {
    Object(Object),
    DaemonSet(DaemonSet),
    Node(Node),
}

/// How current a list has to be. The first two come from the API server's cache, which answers a list of a node's pods without reading those of
/// the cluster from the store; a limit would keep it from that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Since {
    /// As the server has it.
    Any,
    /// Not older than this version, which a watch has reached.
    Version(String),
    /// As the store has it.
    Now,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type")]
    pub(super) change: Tidings,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Tidings {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// What an `ERROR` line carries.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) code: u16,
    #[serde(default)]
    pub(super) message: String,
}

/// An object that does not have the shape of its kind.
#[derive(Debug)]
pub(super) struct Misfit {
    /// The name, as far as it can be read, and the parser's words.
    pub(super) reason: String,
    /// The version that a watch goes on from, and who it is.
    pub(super) metadata: Option<Box<Metadata>>,
}

impl Kind {
    pub(super) fn what(&self) -> What {
        match self {
            Self::Pods { .. } => What::Pods,
            Self::Namespaces => What::Namespaces,
            Self::DaemonSet { .. } => What::DaemonSet,
            Self::Node { .. } => What::Node,
        }
    }

    /// Such as `pods of node n1`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Pods { node } => format!("pods of node {node}"),
            Self::Namespaces => "namespaces".into(),
            Self::DaemonSet { namespace, name } => format!("DaemonSet {namespace}/{name}"),
            Self::Node { name } => format!("node {name}"),
        }
    }

    /// Whether a page is of a list of these. That a DaemonSet is not in it is evidence, so it is looked at closely.
    pub(super) fn is_list(&self, page: &Page) -> bool {
        match self {
            Self::Pods { .. } | Self::Namespaces | Self::Node { .. } => true,
            Self::DaemonSet { .. } => page.kind == "DaemonSetList" && page.items.is_some(),
        }
    }

    /// Whether there is one object of it, which the API server reads by its key. Its list is read from the store: that it is not there must not be what a
    /// stale cache says.
    pub(super) fn is_single(&self) -> bool {
        matches!(self, Self::DaemonSet { .. } | Self::Node { .. })
    }

    fn request(&self) -> Request {
        Request::new(match self {
            Self::Pods { .. } => "/api/v1/pods".to_owned(),
            Self::Namespaces => "/api/v1/namespaces".to_owned(),
            Self::DaemonSet { namespace, .. } => daemonset::look::path(namespace),
            Self::Node { .. } => "/api/v1/nodes".to_owned(),
        })
    }

    fn fields(&self) -> Option<String> {
        match self {
            Self::Pods { node } => Some(format!("spec.nodeName={node}")),
            Self::Namespaces => None,
            // With this selector the API server reads one key; a role that names the object allows it.
            Self::DaemonSet { name, .. } | Self::Node { name } => Some(format!("metadata.name={name}")),
        }
    }

    /// The request for a page; `next` is empty for the first.
    pub(super) fn list(
        &self,
        since: &Since,
        next: &str,
    ) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
        let mut params = ListParams { field_selector: self.fields(), ..ListParams::default() };
        match (next, since) {
            ("", Since::Any) => params = params.match_any(),
            ("", Since::Version(version)) => params = params.at(version).matching(VersionMatch::NotOlderThan),
            ("", Since::Now) => params = params.limit(PAGE),
            (next, _) => params = params.limit(PAGE).continue_token(next),
        }
        self.request().list(&params)
    }

    /// The request for one object, as the store has it.
    pub(super) fn get(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
        let request = match self {
            Self::Pods { .. } => Request::new(format!("/api/v1/namespaces/{}/pods", segment(namespace))),
            _ => self.request(),
        };
        request.get(&segment(name), &GetParams::default())
    }

    /// The request for what happens after `version`, for at most `seconds`.
    pub(super) fn watch(
        &self,
        version: &str,
        seconds: u32,
    ) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
        let params = WatchParams {
            field_selector: self.fields(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        self.request().watch(&params, version)
    }

    pub(super) fn begin(&self, index: &mut Index) {
        if let Some(ahead) = self.ahead(index) {
            ahead.begin();
        }
        match self {
            Self::Pods { .. } => index.begin_pods(),
            Self::Namespaces => index.begin_namespaces(),
            Self::DaemonSet { name, .. } => index.begin_daemonset(name),
            Self::Node { .. } => index.begin_node(),
        }
    }

    /// The list of this version is complete.
    pub(super) fn commit(&self, index: &mut Index, version: u64) -> Vec<PodRef> {
        for (namespace, name) in self.ahead(index).map(|ahead| ahead.beyond(version)).unwrap_or_default() {
            self.keep(index, &namespace, &name);
        }
        self.reached(index, version);
        match self {
            Self::Pods { .. } => index.commit_pods(),
            Self::Namespaces => index.commit_namespaces(),
            Self::DaemonSet { .. } => index.commit_daemonset(),
            Self::Node { .. } => index.commit_node(),
        }
    }

    /// What the lists since the last complete one have added goes again; where `most` is given only if it is more than that.
    pub(super) fn abandon(&self, index: &mut Index, most: Option<usize>) -> Vec<PodRef> {
        match self {
            Self::Pods { .. } => index.abandon_pods(most),
            Self::Namespaces => index.abandon_namespaces(most),
            Self::DaemonSet { .. } | Self::Node { .. } => Vec::new(),
        }
    }

    /// What a list or watch says of an object; `version` is the object's.
    pub(super) fn apply(&self, index: &mut Index, item: Item, version: u64) -> Vec<PodRef> {
        let (namespace, name) = self.key(&item);
        if self.ahead(index).is_some_and(|ahead| !ahead.admits(&namespace, &name, version)) {
            self.keep(index, &namespace, &name);
            return Vec::new();
        }
        self.set(index, item)
    }

    /// What there is to tell of an object that a list or a watch has, before it is applied; of one that a list has, too, only if the list before had
    /// another one or none. Only pods and namespaces are told of.
    pub(super) fn told(&self, index: &Index, item: &Item, tidings: Option<Tidings>) -> Option<Told> {
        let Item::Object(object) = item else { return None };
        let is_pod = matches!(self, Self::Pods { .. });
        let known = match is_pod {
            true => index.has_pod(object.namespace(), object.name(), object.uid().unwrap_or_default()),
            false => index.has_namespace(object.name()),
        };
        let change = match tidings {
            Some(Tidings::Deleted) => Change::Deleted,
            Some(Tidings::Modified) => Change::Updated,
            None if known => Change::Updated,
            _ => Change::Added,
        };
        let namespace = (!is_pod).then(|| (object.name().to_owned(), index.labels(object.name())));
        Some(Told { change, namespace })
    }

    /// What a single question brought of an object. Nothing happens if the watch has told of that version already.
    pub(super) fn fetched(&self, index: &mut Index, item: Item, version: u64) -> Vec<PodRef> {
        let (namespace, name) = self.key(&item);
        let Some(ahead) = self.ahead(index) else { return Vec::new() };
        let is_awaited = ahead.is_awaited(&namespace, &name);
        if !ahead.insert(namespace.clone(), name.clone(), version) {
            return Vec::new();
        }
        let changed = self.set(index, item);
        if is_awaited {
            // The list's end takes it away, unless the list has it too, or is older than it.
            match self {
                Self::Pods { .. } => index.doubt_pod(&namespace, &name),
                _ => index.doubt_namespace(&name),
            }
        }
        match self {
            Self::Pods { .. } => index.vouch_for_pod(&namespace, &name),
            _ => index.vouch_for_namespace(&name),
        }
        changed
    }

    /// What a watch says: an object is gone since this version.
    pub(super) fn delete(&self, index: &mut Index, item: &Item, version: u64) -> Vec<PodRef> {
        let (namespace, name) = self.key(item);
        if self.ahead(index).is_some_and(|ahead| !ahead.admits(&namespace, &name, version)) {
            return Vec::new();
        }
        match item {
            Item::Object(object) if matches!(self, Self::Pods { .. }) => {
                index.delete_pod(&namespace, &name, object.uid().unwrap_or_default())
            }
            Item::Object(_) => index.delete_namespace(&name),
            Item::DaemonSet(_) => index.delete_daemonset(),
            Item::Node(_) => index.delete_node(),
        }
    }

    /// All that happened up to a version has been applied.
    pub(super) fn reached(&self, index: &mut Index, version: u64) {
        if let Some(ahead) = self.ahead(index) {
            ahead.reached(version);
        }
    }

    fn set(&self, index: &mut Index, item: Item) -> Vec<PodRef> {
        match item {
            Item::Object(object) if matches!(self, Self::Pods { .. }) => index.apply_pod(object),
            Item::Object(object) => {
                let metadata = object.metadata.unwrap_or_default();
                let labels = metadata.labels.unwrap_or_default();
                index.apply_namespace(&metadata.name.unwrap_or_default(), &labels)
            }
            Item::DaemonSet(set) => index.apply_daemonset(set),
            Item::Node(node) => index.apply_node(node),
        }
    }

    /// What was fetched one by one; objects of the other kinds are not.
    fn ahead<'a>(&self, index: &'a mut Index) -> Option<&'a mut Ahead> {
        match self {
            Self::Pods { .. } => Some(&mut index.pods_ahead),
            Self::Namespaces => Some(&mut index.namespaces_ahead),
            Self::DaemonSet { .. } | Self::Node { .. } => None,
        }
    }

    /// Namespace, empty where there is none, and name; of what can be fetched.
    fn key(&self, item: &Item) -> (String, String) {
        let Item::Object(object) = item else { return Default::default() };
        let namespace = if matches!(self, Self::Pods { .. }) { object.namespace() } else { "" };
        (namespace.to_owned(), object.name().to_owned())
    }

    /// What was known of an object stays, because what is said of it now cannot be read.
    pub(super) fn keep(&self, index: &mut Index, namespace: &str, name: &str) {
        match self {
            Self::Pods { .. } => index.keep_pod(namespace, name),
            Self::Namespaces => index.keep_namespace(name),
            Self::DaemonSet { .. } => index.keep_daemonset(),
            Self::Node { .. } => index.keep_node(),
        }
    }

    /// What is kept of an object, and its version.
    pub(super) fn read(&self, text: &RawValue) -> Result<(Item, String), Misfit> {
        let misfit = |reason: String| {
            let header = serde_json::from_str::<Header>(text.get()).ok();
            let metadata = header.and_then(|header| header.metadata);
            let name = metadata.as_ref().and_then(|metadata| metadata.name.as_deref());
            // only what may stand in a name, and no longer than one
            let name: String = name.unwrap_or("?").chars().filter(|c| !c.is_control()).take(253).collect();
            Misfit { reason: format!("{name}: {reason}"), metadata: metadata.map(Box::new) }
        };
        let mut object: Object = serde_json::from_str(text.get()).map_err(|error| misfit(place(&error)))?;
        if object.name().is_empty() {
            return Err(misfit("has no metadata.name".into()));
        }
        let version = object.metadata.as_mut().and_then(|metadata| metadata.resource_version.take());
        let item = match self {
            Self::Pods { .. } => {
                // the items of a list carry no kind of their own
                object.kind = Some("Pod".into());
                Item::Object(tight(object))
            }
            Self::Namespaces => Item::Object(tight(object)),
            Self::DaemonSet { .. } => {
                Item::DaemonSet(serde_json::from_str(text.get()).map_err(|error| misfit(place(&error)))?)
            }
            Self::Node { .. } => {
                Item::Node(serde_json::from_str(text.get()).map_err(|error| misfit(place(&error)))?)
            }
        };
        Ok((item, version.unwrap_or_default()))
    }
}

// === impl Since ===

impl Since {
    /// Whether a list of this version is older than asked for. Versions that are no numbers cannot be compared.
    pub(super) fn is_older(&self, version: &str) -> bool {
        let Self::Version(wanted) = self else { return false };
        matches!((version.parse::<u64>(), wanted.parse::<u64>()), (Ok(version), Ok(wanted)) if version < wanted)
    }
}

/// What is kept of an object, without the spare room that parsing and trimming leave in its lists: a clone has none.
pub(super) fn tight(object: Object) -> Object {
    let trimmed = object.trimmed();
    Object::clone(&trimmed)
}
