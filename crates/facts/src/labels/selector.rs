//! Label selectors (Kubernetes `metav1.LabelSelector`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};

use crate::mapping::Mapping;

/// A selector: all of its requirements hold. Without any it selects everything.
///
/// Requirements and their values are sorted and there once, so that selectors that say the same are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Box<[Requirement]>);

/// What one label has to be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// Its key.
    pub key: Box<str>,
    /// What is required of it.
    pub operator: Operator,
}

/// How a label is looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// It is there and has one of these values. `matchLabels` is this with one value.
    In(Box<[Box<str>]>),
    /// It has none of these values, or is not there.
    NotIn(Box<[Box<str>]>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// A requirement that the API server would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// `In` or `NotIn` without values.
    #[error("{0} needs values")]
    NoValues(&'static str),
    /// `Exists` or `DoesNotExist` with values.
    #[error("{0} takes no values")]
    Values(&'static str),
    /// Another operator.
    #[error("an operator is not In, NotIn, Exists or DoesNotExist")]
    Operator,
    /// An expression without a key.
    #[error("an expression has no key")]
    NoKey,
}

/// A selector as it is written. [`Self::read`] gives what it means.
#[derive(Debug, Clone, Default)]
pub struct WireSelector(Fields);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    match_labels: Option<BTreeMap<String, Option<String>>>,
    match_expressions: Option<Vec<Mapping<Expression>>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Expression {
    key: Option<String>,
    operator: Option<String>,
    values: Option<Vec<String>>,
}

// === impl Selector ===

impl Selector {
    /// Of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut all: Vec<Requirement> = requirements.into_iter().collect();
        all.sort_unstable();
        all.dedup();
        Self(all.into())
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// Whether an object with these labels is selected; `label` gives a label's value, if it is there.
    pub fn selects<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| requirement.operator.holds(label(&requirement.key)))
    }
}

/// As `kubectl get -l` takes it: `app=web,tier in (a,b),!test`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, Requirement { key, operator }) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

impl Operator {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_one_of = |values: &[Box<str>]| {
            value.is_some_and(|value| values.binary_search_by(|one| (**one).cmp(value)).is_ok())
        };
        match self {
            Self::In(values) => is_one_of(values),
            Self::NotIn(values) => !is_one_of(values),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }
}

// === impl WireSelector ===

impl WireSelector {
    /// What it selects by, and the requirements that are left out because the API server would refuse them.
    pub fn read(self) -> (Selector, Vec<SelectorError>) {
        let labels = self.0.match_labels.into_iter().flatten().map(|(key, value)| Requirement {
            key: key.into(),
            operator: Operator::In([value.unwrap_or_default().into()].into()),
        });
        let (mut requirements, mut refused): (Vec<Requirement>, _) = (labels.collect(), Vec::new());
        for Mapping(expression) in self.0.match_expressions.into_iter().flatten() {
            match expression.read() {
                Ok(requirement) => requirements.push(requirement),
                Err(error) => refused.push(error),
            }
        }
        (Selector::new(requirements), refused)
    }

    /// What it selects by, if the API server would take all of it.
    ///
    /// # Errors
    /// The first requirement that it would refuse.
    pub fn read_whole(self) -> Result<Selector, SelectorError> {
        let (selector, refused) = self.read();
        refused.into_iter().next().map_or(Ok(selector), Err)
    }

    /// How many requirements and values are written in it.
    pub fn size(&self) -> usize {
        let expressions = self.0.match_expressions.iter().flatten();
        let values = expressions.map(|one| 1 + one.0.values.as_ref().map_or(0, Vec::len)).sum::<usize>();
        values + self.0.match_labels.as_ref().map_or(0, BTreeMap::len)
    }
}

impl<'de> Deserialize<'de> for WireSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Mapping::deserialize(deserializer).map(|Mapping(fields)| Self(fields))
    }
}

impl Expression {
    fn read(self) -> Result<Requirement, SelectorError> {
        let key = self.key.filter(|key| !key.is_empty()).ok_or(SelectorError::NoKey)?;
        let mut values: Vec<Box<str>> =
            self.values.into_iter().flatten().map(String::into_boxed_str).collect();
        values.sort_unstable();
        values.dedup();
        let operator = match (self.operator.as_deref(), values.is_empty()) {
            (Some("In"), true) => return Err(SelectorError::NoValues("In")),
            (Some("NotIn"), true) => return Err(SelectorError::NoValues("NotIn")),
            (Some("Exists"), false) => return Err(SelectorError::Values("Exists")),
            (Some("DoesNotExist"), false) => return Err(SelectorError::Values("DoesNotExist")),
            (Some("In"), false) => Operator::In(values.into()),
            (Some("NotIn"), false) => Operator::NotIn(values.into()),
            (Some("Exists"), true) => Operator::Exists,
            (Some("DoesNotExist"), true) => Operator::DoesNotExist,
            _ => return Err(SelectorError::Operator),
        };
        Ok(Requirement { key: key.into(), operator })
    }
}
