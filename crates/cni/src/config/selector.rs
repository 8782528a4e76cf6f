//! Kubernetes label selectors, as far as the configuration holds them.

use std::collections::BTreeMap;

use crate::json::{DecodeError, Node};

/// One entry of `enablement_selectors`; both halves have to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnablementSelector {
    /// `podSelector`
    pub pod: LabelSelector,
    /// `namespaceSelector`
    pub namespace: LabelSelector,
}

/// A Kubernetes `LabelSelector`; an empty one matches everything. Not checked beyond its JSON types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// `matchLabels`
    pub match_labels: BTreeMap<String, String>,
    /// `matchExpressions`
    pub match_expressions: Vec<Requirement>,
}

/// One of a selector's `matchExpressions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`, as written.
    pub operator: String,
    /// Values for `In` and `NotIn`.
    pub values: Vec<String>,
}

impl EnablementSelector {
    pub(super) fn decode(node: &Node<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            pod: LabelSelector::decode_in(node, "podSelector")?,
            namespace: LabelSelector::decode_in(node, "namespaceSelector")?,
        })
    }
}

impl LabelSelector {
    fn decode_in(parent: &Node<'_>, key: &str) -> Result<Self, DecodeError> {
        let Some(node) = parent.field(key)? else { return Ok(Self::default()) };
        Ok(Self {
            match_labels: node.map("matchLabels", |value| Ok(value.text()?.to_owned()))?,
            match_expressions: node.list("matchExpressions", Requirement::decode)?,
        })
    }
}

impl Requirement {
    fn decode(node: &Node<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            key: node.text_or_empty("key")?,
            operator: node.text_or_empty("operator")?,
            values: node.texts("values")?,
        })
    }
}
