//! Enablement selectors: which labels of pod and namespace ambient mode looks for. What else counts is in [`crate::decide`].

use std::collections::BTreeMap;

use crate::annotations::STATUS;
use crate::values::Quoted;

/// One entry of `enablement_selectors` as it is written; both halves have to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnablementSelector {
    /// `podSelector`
    pub pod: LabelSelector,
    /// `namespaceSelector`
    pub namespace: LabelSelector,
}

/// A Kubernetes `LabelSelector` as it is written; an empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// `matchLabels`
    pub match_labels: BTreeMap<String, String>,
    /// `matchExpressions`
    pub match_expressions: Vec<WrittenRequirement>,
}

/// One of a selector's `matchExpressions` as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WrittenRequirement {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`, if it is one that means something.
    pub operator: String,
    /// Values for `In` and `NotIn`.
    pub values: Vec<String>,
}

/// A selector that means nothing. With another one in its place other pods would be in the mesh, so nothing goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry} of the enablement selectors, {half}: {problem}")]
pub struct EnablementSelectorError {
    /// From 1.
    entry: usize,
    half: &'static str,
    problem: String,
}

/// Selectors that mean something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selectors(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    pod: Vec<Condition>,
    namespace: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Condition {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// The labels of something, by key.
pub type Labels<'a> = &'a dyn Fn(&str) -> Option<&'a str>;

/// What the selectors say of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// An entry matches.
    Selected,
    /// The labels of its namespace decide, and they are not known.
    NeedsNamespace,
    /// No entry matches.
    NotSelected,
}

// === impl Selectors ===

impl Selectors {
    /// # Errors
    /// The first part that means nothing in Kubernetes.
    pub fn new(entries: &[EnablementSelector]) -> Result<Self, EnablementSelectorError> {
        let half = |number: usize, half: &'static str, selector: &LabelSelector| {
            compile(selector).map_err(|problem| EnablementSelectorError { entry: number + 1, half, problem })
        };
        let entry = |(number, entry): (usize, &EnablementSelector)| {
            Ok(Entry {
                pod: half(number, "podSelector", &entry.pod)?,
                namespace: half(number, "namespaceSelector", &entry.namespace)?,
            })
        };
        entries.iter().enumerate().map(entry).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an entry matches the labels of a pod and those of its namespace, where they are known.
    pub fn select(&self, pod: Labels<'_>, namespace: Option<Labels<'_>>) -> Selection {
        let mut unknown = false;
        for entry in self.0.iter().filter(|entry| holds(&entry.pod, pod)) {
            match namespace {
                Some(labels) if holds(&entry.namespace, labels) => return Selection::Selected,
                None if entry.namespace.is_empty() => return Selection::Selected,
                None => unknown = true,
                Some(_) => {}
            }
        }
        if unknown { Selection::NeedsNamespace } else { Selection::NotSelected }
    }

    /// Whether a namespace as such is in the mesh: an entry looks at namespaces and matches this one.
    pub fn selects_namespace(&self, labels: Labels<'_>) -> bool {
        self.0.iter().any(|entry| !entry.namespace.is_empty() && holds(&entry.namespace, labels))
    }

    /// Whether there are none, so that no pod is ever in the mesh.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether `sidecar.istio.io/status` is among a pod's annotations.
pub fn is_injected<'a>(mut keys: impl Iterator<Item = &'a str>) -> bool {
    keys.any(|key| key == STATUS)
}

fn holds(conditions: &[Condition], labels: Labels<'_>) -> bool {
    conditions.iter().all(|condition| {
        let value = labels(&condition.key);
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        match &condition.test {
            Test::In(values) => among(values),
            // An absent label is in no set.
            Test::NotIn(values) => !among(values),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
        }
    })
}

fn compile(selector: &LabelSelector) -> Result<Vec<Condition>, String> {
    let mut conditions = Vec::new();
    for (key, value) in &selector.match_labels {
        conditions.push(condition(key, Test::In(vec![value.clone()]))?);
    }
    for WrittenRequirement { key, operator, values } in &selector.match_expressions {
        let test = match operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                return Err(format!("{operator} of {} needs values", Quoted::new(key)));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                return Err(format!("{operator} of {} has no values", Quoted::new(key)));
            }
            "In" => Test::In(values.clone()),
            "NotIn" => Test::NotIn(values.clone()),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            other => {
                let other = Quoted::new(other);
                return Err(format!("operator {other} is not In, NotIn, Exists or DoesNotExist"));
            }
        };
        conditions.push(condition(key, test)?);
    }
    Ok(conditions)
}

fn condition(key: &str, test: Test) -> Result<Condition, String> {
    if !is_label_key(key) {
        return Err(format!("{} is not the key of a label", Quoted::new(key)));
    }
    if let Test::In(values) | Test::NotIn(values) = &test
        && let Some(value) = values.iter().find(|value| !is_label_value(value))
    {
        return Err(format!("{} is not the value of a label", Quoted::new(value)));
    }
    Ok(Condition { key: key.to_owned(), test })
}

/// Kubernetes' qualified name: `[prefix/]name`, the prefix a DNS subdomain (`IsQualifiedName` in apimachinery's `util/validation`).
pub fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_dns_subdomain) && !name.is_empty() && is_label_value(name)
}

/// At most 63 letters, digits, `-`, `_` and `.`, a letter or digit at either end; or nothing.
pub fn is_label_value(value: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    value.len() <= 63 && edge(value.chars().next()) && edge(value.chars().last()) && value.chars().all(inner)
}

/// The name of a node or a pod: DNS labels with dots between, at most 253 bytes (RFC 1123). A label in a prefix may have any length, as in
/// Kubernetes.
pub fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_part)
}

/// The name of a namespace: at most 63 small letters, digits and `-`, a letter or digit at either end (RFC 1123).
pub fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_part(name)
}

fn is_part(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let edge = |c: Option<char>| c.is_some_and(alphanumeric);
    edge(part.chars().next())
        && edge(part.chars().last())
        && part.chars().all(|c| alphanumeric(c) || c == '-')
}

#[cfg(test)]
mod tests;
