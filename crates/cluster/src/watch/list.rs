//! The shapes of a list and of a watch, and what is kept of their objects.

use facts::Object;
use facts::object::{Header, Metadata};
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::What;
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
}

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
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
        }
    }

    /// Such as `pods of node n1`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Pods { node } => format!("pods of node {node}"),
            Self::Namespaces => "namespaces".into(),
        }
    }

    fn request(&self) -> Request {
        Request::new(match self {
            Self::Pods { .. } => "/api/v1/pods",
            Self::Namespaces => "/api/v1/namespaces",
        })
    }

    fn fields(&self) -> Option<String> {
        match self {
            Self::Pods { node } => Some(format!("spec.nodeName={node}")),
            Self::Namespaces => None,
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
        }
    }

    pub(super) fn commit(&self, index: &mut Index) -> Vec<PodKey> {
        match self {
            Self::Pods { .. } => index.commit_pods(),
            Self::Namespaces => index.commit_namespaces(),
        }
    }

    pub(super) fn apply(&self, index: &mut Index, object: Object) -> Vec<PodKey> {
        match self {
            Self::Pods { .. } => index.apply_pod(object),
            Self::Namespaces => {
                let metadata = object.metadata.unwrap_or_default();
                let labels = metadata.labels.unwrap_or_default();
                index.apply_namespace(&metadata.name.unwrap_or_default(), &labels)
            }
        }
    }

    pub(super) fn delete(&self, index: &mut Index, object: &Object) -> Vec<PodKey> {
        match self {
            Self::Pods { .. } => {
                index.delete_pod(object.namespace(), object.name(), object.uid().unwrap_or_default())
            }
            Self::Namespaces => index.delete_namespace(object.name()),
        }
    }

    /// What was known of an object stays, because what is said of it now cannot be read.
    pub(super) fn keep(&self, index: &mut Index, metadata: &Metadata) {
        let name = metadata.name.as_deref().unwrap_or_default();
        match self {
            Self::Pods { .. } => index.keep_pod(metadata.namespace.as_deref().unwrap_or("default"), name),
            Self::Namespaces => index.keep_namespace(name),
        }
    }

    /// What is kept of an object, and its version.
    pub(super) fn read(&self, text: &RawValue) -> Result<(Object, String), Misfit> {
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
        if matches!(self, Self::Pods { .. }) {
            // the items of a list carry no kind of their own
            object.kind = Some("Pod".into());
        }
        Ok((tight(object), version.unwrap_or_default()))
    }
}

/// What is kept of an object, without the spare room that parsing and trimming leave in its lists: a clone has none.
pub(super) fn tight(object: Object) -> Object {
    let trimmed = object.trimmed();
    Object::clone(&trimmed)
}
