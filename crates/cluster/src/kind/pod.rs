//! Pods, with what decides about their capture.

use facts::Object;
use facts::object::NO_CONTAINERS;

use super::{Kind, Resource};
use crate::news::ObjectKey;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Pods;

impl Kind for Pods {
    type Object = Object;
    const RESOURCE: Resource = Resource { api: "/api/v1", kind: "Pod", plural: "pods", namespaced: true };

    fn kept(mut object: Object) -> Object {
        // The items of a list carry no kind of their own.
        object.kind = Some(Self::RESOURCE.kind.to_owned());
        if let Some(metadata) = &mut object.metadata {
            metadata.resource_version = None;
        }
        // Without the spare room that parsing and trimming leave in its lists: a clone has none.
        let trimmed = object.trimmed();
        Object::clone(&trimmed)
    }

    fn completed(_: &ObjectKey, object: Object) -> Result<Object, &'static str> {
        if object.has_containers() { Ok(object.completed()) } else { Err(NO_CONTAINERS) }
    }
}
