//! Field selectors of pods as people write them (`kubectl --field-selector`), for the fields that are kept of a pod.

use crate::Object;

/// Fields that a pod has to have. The default selects every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    field: &'static str,
    value: String,
    /// It must not have the value.
    not: bool,
}

/// What a field's text is of a pod.
type Field = fn(&Object) -> String;

const FIELDS: &[(&str, Field)] = &[
    ("metadata.name", |pod| pod.name().to_owned()),
    ("metadata.namespace", |pod| pod.namespace().to_owned()),
    ("spec.serviceAccountName", |pod| pod.service_account().to_owned()),
    ("spec.hostNetwork", |pod| pod.host_network().to_string()),
    ("status.phase", |pod| pod.phase().to_owned()),
    ("status.podIP", |pod| pod.ips().first().map(ToString::to_string).unwrap_or_default()),
];

impl FieldSelector {
    /// Reads `field=value,field!=value`; nothing selects every pod.
    ///
    /// # Errors
    /// It is none, or of a field that is not kept.
    pub fn parse(text: &str) -> Result<Self, String> {
        let terms = text.split(',').map(str::trim).filter(|term| !term.is_empty());
        terms.map(FieldTerm::parse).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the pod is selected.
    pub fn selects(&self, pod: &Object) -> bool {
        let of = |name: &str| FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| field(pod));
        self.0.iter().all(|term| (of(term.field).as_ref() == Some(&term.value)) != term.not)
    }
}

impl FieldTerm {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, value, not) = match (text.split_once("!="), text.split_once("==")) {
            (Some((name, value)), _) => (name, value, true),
            (None, Some((name, value))) => (name, value, false),
            (None, None) => match text.split_once('=') {
                Some((name, value)) => (name, value, false),
                None => return Err(format!("{text:?} is not FIELD=VALUE or FIELD!=VALUE")),
            },
        };
        let field = FIELDS.iter().find(|(known, _)| *known == name.trim());
        let Some((field, _)) = field else {
            let known: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
            return Err(format!("field {:?} is none of {}", name.trim(), known.join(", ")));
        };
        Ok(Self { field, value: value.trim().to_owned(), not })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_compared_as_text() {
        let pod = r#"{"kind": "Pod", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"serviceAccountName": "pay"}, "status": {"phase": "Pending", "podIP": "10.0.0.1"}}"#;
        let pod: Object = serde_json::from_str(pod).unwrap();
        for (text, selected) in [
            ("", true),
            ("metadata.name=web", true),
            ("metadata.namespace!=kube-system, status.phase==Pending", true),
            ("metadata.namespace=other", false),
            ("spec.serviceAccountName=pay,spec.hostNetwork=false,status.podIP=10.0.0.1", true),
            ("metadata.name=web,status.phase!=Pending", false),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap().selects(&pod), selected, "{text}");
        }
        for text in ["metadata.name", "spec.schedulerName=x", "=x"] {
            assert!(FieldSelector::parse(text).is_err(), "{text}");
        }
    }
}
