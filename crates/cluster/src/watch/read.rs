//! The text of lists and watches.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::place;
use crate::kind::Kind;
use crate::news::{Item, ObjectKey, Uid};

/// A page of a list, without its objects.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    #[serde(default)]
    pub(super) kind: String,
    pub(super) metadata: PageMetadata,
    /// What is no object, and should not be there.
    #[serde(default)]
    pub(super) items: Option<Vec<serde::de::IgnoredAny>>,
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
pub(super) struct WatchRefusal {
    #[serde(default)]
    pub(super) code: u16,
    #[serde(default)]
    pub(super) message: String,
}

/// An object that does not have the shape of its kind.
#[derive(Debug)]
pub(super) struct ObjectMisfit {
    /// The name, as far as it can be read, and the parser's words.
    pub(super) reason: String,
    /// Who it is, if that can be read.
    pub(super) key: Option<ObjectKey>,
    /// The version that a watch goes on from; empty where there is none.
    pub(super) version: String,
}

/// Enough of an object to tell which it is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub(super) metadata: NamedMetadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct NamedMetadata {
    pub(super) name: Option<Box<str>>,
    pub(super) namespace: Option<Box<str>>,
    pub(super) uid: Option<String>,
    resource_version: Option<String>,
}

// === impl Page ===

impl Page {
    /// From the text around the objects. One that has not ended yet is closed, so that what stands before the objects can be read.
    pub(super) fn parse(text: &[u8], ended: bool) -> Result<Self, String> {
        let closed = [text, if ended { b"" } else { b"]}" }].concat();
        let page: Self = serde_json::from_slice(&closed).map_err(|error| place(&error))?;
        let strangers = page.items.as_ref().is_some_and(|items| !items.is_empty());
        if strangers { Err("has an item that is no object".into()) } else { Ok(page) }
    }
}

/// What is kept of an object, and its version as text.
pub(super) fn object<K: Kind>(text: &RawValue) -> Result<(Item<K::Object>, String), ObjectMisfit> {
    let named: Result<Named, _> = serde_json::from_str(text.get());
    let NamedMetadata { name, namespace, uid, resource_version } = match named {
        Ok(named) => named.metadata,
        Err(error) => {
            let reason = format!("?: {}", place(&error));
            return Err(ObjectMisfit { reason, key: None, version: String::new() });
        }
    };
    let version = resource_version.unwrap_or_default();
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Err(ObjectMisfit { reason: "?: has no metadata.name".into(), key: None, version });
    };
    let key = ObjectKey { namespace: namespace_of::<K>(namespace), name };
    let object = match serde_json::from_str::<K::Object>(text.get()) {
        Ok(object) => K::kept(object),
        Err(error) => {
            let reason = format!("{}: {}", shown(&key.name), place(&error));
            return Err(ObjectMisfit { reason, key: Some(key), version });
        }
    };
    let uid = Uid::new(uid.as_deref().unwrap_or_default());
    Ok((Item { key, uid, version: number(&version), object }, version))
}

/// As the API server has it: `default` where a namespaced object says none.
pub(super) fn namespace_of<K: Kind>(namespace: Option<Box<str>>) -> Box<str> {
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    if K::RESOURCE.namespaced { namespace.unwrap_or_else(|| "default".into()) } else { Box::default() }
}

/// A version that can be compared, or 0.
pub(super) fn number(version: &str) -> u64 {
    version.parse().unwrap_or_default()
}

/// Only what may stand in a name, and no longer than one.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(253).collect()
}

/// The version that a bookmark carries, which carries nothing else; a name is only what it lacks.
pub(super) fn version(text: &RawValue) -> String {
    let named = serde_json::from_str::<Named>(text.get()).ok();
    named.and_then(|named| named.metadata.resource_version).unwrap_or_default()
}
