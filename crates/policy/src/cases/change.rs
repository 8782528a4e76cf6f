//! Changes of a case's objects.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::CaseError;
use crate::{PlainKind, PlainWorld};

/// An object that comes, is replaced, or goes.
#[derive(Debug, Deserialize)]
pub(super) struct ObjectChangeCase {
    op: String,
    kind: String,
    object: Box<RawValue>,
}

impl ObjectChangeCase {
    pub(super) fn apply(&self, world: &mut PlainWorld) -> Result<(), CaseError> {
        let kind = PlainKind::parse(&self.kind).ok_or_else(|| CaseError::Kind(self.kind.clone()))?;
        let done = match self.op.as_str() {
            "put" => kind.put(world, &self.object),
            "delete" => kind.delete(world, &self.object),
            other => return Err(CaseError::Change(other.to_owned())),
        };
        world.settle_tenants();
        done.map_err(|cause| CaseError::object(kind, cause))
    }
}
