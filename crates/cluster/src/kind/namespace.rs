//! Namespaces and their labels.

use facts::Namespace;
use facts::object::METADATA_NAME;

use super::{Kind, Resource};
use crate::news::ObjectKey;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Namespaces;

impl Kind for Namespaces {
    type Object = Namespace;
    const RESOURCE: Resource =
        Resource { api: "/api/v1", kind: "Namespace", plural: "namespaces", namespaced: false };

    fn completed(key: &ObjectKey, object: Namespace) -> Result<Namespace, &'static str> {
        let mut labels = object.labels.to_map();
        labels.insert(METADATA_NAME.to_owned(), key.name.to_string());
        Ok(Namespace { labels: (&labels).into() })
    }
}
