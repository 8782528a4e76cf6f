//! Changes of a case's objects.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{CaseError, objects};
use crate::PlainWorld;

/// An object that comes, is replaced, or goes.
#[derive(Debug, Deserialize)]
pub(super) struct ObjectChangeCase {
    op: String,
    kind: String,
    object: Box<RawValue>,
}

impl ObjectChangeCase {
    pub(super) fn apply(&self, world: &mut PlainWorld) -> Result<(), CaseError> {
        let kind = objects::CaseKind::parse(&self.kind).ok_or_else(|| CaseError::Kind(self.kind.clone()))?;
        match self.op.as_str() {
            "put" => kind.put(world, &self.object),
            "delete" => kind.delete(world, &self.object),
            other => Err(CaseError::Change(other.to_owned())),
        }
    }
}
