//! Kubernetes label selectors, as far as the configuration holds them.

pub use capture::select::{EnablementSelector, LabelSelector, WrittenRequirement};

use crate::json::{DecodeError, JsonNode};

/// Only the JSON types are checked; [`capture::select::Selectors`] checks what they say.
pub(super) fn decode(node: &JsonNode<'_>) -> Result<EnablementSelector, DecodeError> {
    Ok(EnablementSelector {
        pod: labels(node, "podSelector")?,
        namespace: labels(node, "namespaceSelector")?,
    })
}

fn labels(parent: &JsonNode<'_>, key: &str) -> Result<LabelSelector, DecodeError> {
    let Some(node) = parent.field(key)? else { return Ok(LabelSelector::default()) };
    Ok(LabelSelector {
        match_labels: node.map("matchLabels", |value| Ok(value.text()?.to_owned()))?,
        match_expressions: node.list("matchExpressions", requirement)?,
    })
}

fn requirement(node: &JsonNode<'_>) -> Result<WrittenRequirement, DecodeError> {
    Ok(WrittenRequirement {
        key: node.text_or_empty("key")?,
        operator: node.text_or_empty("operator")?,
        values: node.texts("values")?,
    })
}
