//! Required node affinity, evaluated as the scheduler does (Kubernetes `component-helpers/scheduling/corev1/nodeaffinity`).

use std::collections::BTreeMap;

use serde::Deserialize;

/// `requiredDuringSchedulingIgnoredDuringExecution`: one term has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeSelector {
    #[serde(default)]
    node_selector_terms: Vec<Term>,
}

/// All requirements have to hold; without any the term never does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Term {
    match_expressions: Option<Vec<Requirement>>,
    match_fields: Option<Vec<Requirement>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Requirement {
    key: String,
    operator: NodeOperator,
    #[serde(default)]
    values: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum NodeOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
}

/// What is selected by.
#[derive(Debug, Clone, Copy)]
pub(super) struct SelectedNode<'a> {
    pub(super) name: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
}

/// A requirement that means nothing. The API server lets none be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Senseless {
    #[error("{operator:?} of {key} needs {needs}")]
    Values { key: String, operator: NodeOperator, needs: &'static str },
    #[error("field {0} cannot be selected by; only metadata.name with In or NotIn and one value can")]
    Field(String),
}

impl NodeSelector {
    /// Whether the node is selected. All terms are checked for sense, also those that do not matter.
    pub(super) fn matches(&self, node: &SelectedNode<'_>) -> Result<bool, Senseless> {
        let mut any = false;
        for term in &self.node_selector_terms {
            any |= term.matches(node)?;
        }
        Ok(any)
    }
}

impl Term {
    fn matches(&self, node: &SelectedNode<'_>) -> Result<bool, Senseless> {
        let expressions = self.match_expressions.as_deref().unwrap_or_default();
        let fields = self.match_fields.as_deref().unwrap_or_default();
        let mut all = !(expressions.is_empty() && fields.is_empty());
        for expression in expressions {
            all &= expression.holds(node.labels.get(&expression.key).map(String::as_str))?;
        }
        for field in fields {
            let one = field.values.as_ref().is_some_and(|values| values.len() == 1);
            if field.key != "metadata.name"
                || !one
                || !matches!(field.operator, NodeOperator::In | NodeOperator::NotIn)
            {
                return Err(Senseless::Field(field.key.clone()));
            }
            all &= field.holds(Some(node.name))?;
        }
        Ok(all)
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> Result<bool, Senseless> {
        let values = self.values.as_deref().unwrap_or_default();
        let needs = |needs| Senseless::Values { key: self.key.clone(), operator: self.operator, needs };
        let listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
        match self.operator {
            NodeOperator::In | NodeOperator::NotIn if values.is_empty() => Err(needs("values")),
            NodeOperator::In => Ok(listed()),
            NodeOperator::NotIn => Ok(!listed()),
            NodeOperator::Exists | NodeOperator::DoesNotExist if !values.is_empty() => {
                Err(needs("no values"))
            }
            NodeOperator::Exists => Ok(value.is_some()),
            NodeOperator::DoesNotExist => Ok(value.is_none()),
            NodeOperator::Gt | NodeOperator::Lt => {
                let bound = match values {
                    [bound] => bound.parse::<i64>().ok(),
                    _ => None,
                };
                let bound = bound.ok_or_else(|| needs("one integer"))?;
                // a label that is no number is neither greater nor less
                let number = value.and_then(|value| value.parse::<i64>().ok());
                let holds =
                    |number| if self.operator == NodeOperator::Gt { number > bound } else { number < bound };
                Ok(number.is_some_and(holds))
            }
        }
    }
}

#[cfg(test)]
mod tests;
