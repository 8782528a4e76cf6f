//! What is kept of a Namespace: its labels.

use serde::{Deserialize, Deserializer};

use crate::labels::LabelSet;

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels. An API server adds `kubernetes.io/metadata.name` to them.
    pub labels: LabelSet,
}

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Metadata {
            labels: LabelSet,
        }
        #[derive(Deserialize)]
        struct Object {
            #[serde(default)]
            metadata: Metadata,
        }
        Ok(Self { labels: Object::deserialize(deserializer)?.metadata.labels })
    }
}
