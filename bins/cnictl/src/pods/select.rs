//! Which pods are meant.

use std::collections::BTreeMap;

use clap::builder::NonEmptyStringValueParser;
use facts::labels::{Operator, Requirement};
use facts::{PodRef, Selector};

/// Names of pods, their namespace, labels and uid. Without any of them: all pods of the node.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct SelectArgs {
    /// Names of pods, or NAMESPACE/NAME
    #[arg(value_name = "POD", value_parser = NonEmptyStringValueParser::new())]
    pods: Vec<String>,
    /// Pods of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Pods of all namespaces (the default)
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Pods with these labels, such as app=web,tier!=db,env in (a,b),!old
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = parse_selector)]
    selector: Option<Selector>,
    /// The pod of this uid
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
}

impl SelectArgs {
    /// Whether the pod is meant.
    pub(crate) fn selects(&self, pod: &PodRef, labels: &BTreeMap<String, String>) -> bool {
        let named = |name: &String| match name.split_once('/') {
            Some((namespace, name)) => pod.namespace == namespace && pod.name == name,
            None => pod.name == *name,
        };
        let in_namespace = self.namespace.as_ref().is_none_or(|namespace| pod.namespace == *namespace);
        let has_uid = self.uid.as_ref().is_none_or(|uid| pod.uid == *uid);
        let has_labels = self
            .selector
            .as_ref()
            .is_none_or(|selector| selector.selects(|key| labels.get(key).map(String::as_str)));
        in_namespace && has_uid && has_labels && (self.pods.is_empty() || self.pods.iter().any(named))
    }

    /// What was asked for, for a message that there is no such pod.
    pub(crate) fn text(&self) -> String {
        let mut parts: Vec<String> = self.pods.clone();
        parts.extend(self.namespace.as_ref().map(|namespace| format!("namespace {namespace}")));
        parts.extend(self.uid.as_ref().map(|uid| format!("uid {uid}")));
        parts.extend(self.selector.as_ref().map(|_| "these labels".to_owned()));
        if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
    }
}

/// A selector as kubectl takes it: requirements with commas between, all of which hold.
pub(crate) fn parse_selector(text: &str) -> Result<Selector, String> {
    let requirements: Vec<Requirement> = parts(text).map(requirement).collect::<Result<_, _>>()?;
    if requirements.is_empty() {
        return Err("no requirement; write KEY=VALUE".to_owned());
    }
    Ok(Selector::new(requirements))
}

/// The text between commas that are outside of parentheses.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let is_end = move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    text.split(is_end).map(str::trim).filter(|part| !part.is_empty())
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let one = |value: &str| [value.trim().into()].into();
    let (key, operator) = if let Some(key) = text.strip_prefix('!') {
        (key, Operator::DoesNotExist)
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, Operator::NotIn(one(value)))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Operator::In(one(value)))
    } else if let Some((head, values)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        let mut values: Vec<Box<str>> = values.split(',').map(|value| value.trim().into()).collect();
        values.sort_unstable();
        values.dedup();
        match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => (key, Operator::In(values.into())),
            Some((key, "notin")) => (key, Operator::NotIn(values.into())),
            _ => return Err(format!("{text:?} is not KEY in (A,B) or KEY notin (A,B)")),
        }
    } else {
        (text, Operator::Exists)
    };
    let key = key.trim();
    if !capture::select::is_label_key(key) {
        return Err(format!("{key:?} is not the key of a label; write KEY=VALUE, KEY in (A,B) or !KEY"));
    }
    Ok(Requirement { key: key.into(), operator })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn selectors_are_those_of_kubectl() {
        let web = labels(&[("app", "web"), ("tier", "front")]);
        for (text, selected) in [
            ("app=web", true),
            ("app==web,tier=front", true),
            ("app!=web", false),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("missing notin (x)", true),
            ("tier", true),
            ("!tier", false),
            ("!missing,app", true),
            ("example.com/x=", false),
        ] {
            let selector = parse_selector(text).unwrap();
            assert_eq!(selector.selects(|key| web.get(key).map(String::as_str)), selected, "{text}");
        }
        for text in ["", ",", "=x", "app near (x)", "a b=c", "app in x)"] {
            assert!(parse_selector(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn everything_that_is_said_has_to_hold() {
        let pod = PodRef { uid: "u1".to_owned(), ..PodRef::named("shop", "web") };
        let args = |pods: &[&str], namespace: Option<&str>, uid: Option<&str>| SelectArgs {
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            namespace: namespace.map(str::to_owned),
            uid: uid.map(str::to_owned),
            ..SelectArgs::default()
        };
        let selects = |args: SelectArgs| args.selects(&pod, &BTreeMap::new());
        assert!(selects(SelectArgs::default()));
        assert!(selects(args(&["db", "web"], Some("shop"), Some("u1"))));
        assert!(selects(args(&["shop/web"], None, None)));
        assert!(!selects(args(&["other/web"], None, None)));
        assert!(!selects(args(&["web"], Some("other"), None)));
        assert!(!selects(args(&[], None, Some("u2"))));
        assert_eq!(args(&["web"], Some("shop"), None).text(), ": web, namespace shop");
    }
}
