//! The shapes of a list and of a watch, and what is kept of their objects.

use facts::Object;
use facts::object::{Header, Metadata};
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::What;
use crate::daemonset::{self, DaemonSet, Node};
use crate::error::place;
use crate::index::{Index, PodKey};

/// Objects in a page of a list. What is read at once decides over the peak of the agent's memory.
const PAGE: u32 = 100;

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

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    kind: String,
    pub(super) metadata: PageMetadata,
    /// Each as it stands: one that does not fit must not make the others unreadable.
    #[serde(borrow)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMetadata {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Line<'a> {
    #[serde(rename = "type")]
    pub(super) change: Change,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Change {
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
    pub(super) fn is_list(&self, page: &Page<'_>) -> bool {
        match self {
            Self::Pods { .. } | Self::Namespaces | Self::Node { .. } => true,
            Self::DaemonSet { .. } => page.kind == "DaemonSetList" && page.items.is_some(),
        }
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
    pub(super) fn list(&self, next: &str) -> Result<http::Request<Vec<u8>>, kube::core::request::Error> {
        let params = ListParams { field_selector: self.fields(), limit: Some(PAGE), ..ListParams::default() };
        self.request().list(&if next.is_empty() { params } else { params.continue_token(next) })
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
        match self {
            Self::Pods { .. } => index.begin_pods(),
            Self::Namespaces => index.begin_namespaces(),
            Self::DaemonSet { name, .. } => index.begin_daemonset(name),
            Self::Node { .. } => index.begin_node(),
        }
    }

    pub(super) fn commit(&self, index: &mut Index) -> Vec<PodKey> {
        match self {
            Self::Pods { .. } => index.commit_pods(),
            Self::Namespaces => index.commit_namespaces(),
            Self::DaemonSet { .. } => index.commit_daemonset(),
            Self::Node { .. } => index.commit_node(),
        }
    }

    pub(super) fn apply(&self, index: &mut Index, item: Item) -> Vec<PodKey> {
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

    pub(super) fn delete(&self, index: &mut Index, item: &Item) -> Vec<PodKey> {
        match item {
            Item::Object(object) if matches!(self, Self::Pods { .. }) => {
                index.delete_pod(object.namespace(), object.name(), object.uid().unwrap_or_default())
            }
            Item::Object(object) => index.delete_namespace(object.name()),
            Item::DaemonSet(_) => index.delete_daemonset(),
            Item::Node(_) => index.delete_node(),
        }
    }

    /// What was known of an object stays, because what is said of it now cannot be read.
    pub(super) fn keep(&self, index: &mut Index, metadata: &Metadata) {
        let name = metadata.name.as_deref().unwrap_or_default();
        match self {
            Self::Pods { .. } => index.keep_pod(metadata.namespace.as_deref().unwrap_or("default"), name),
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

/// What is kept of an object, without the spare room that parsing and trimming leave in its lists: a clone has none.
pub(super) fn tight(object: Object) -> Object {
    let trimmed = object.trimmed();
    Object::clone(&trimmed)
}
