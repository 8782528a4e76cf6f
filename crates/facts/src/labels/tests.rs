use super::*;

fn selector(text: &str) -> Selector {
    serde_json::from_str::<WireSelector>(text).unwrap().read_whole().unwrap()
}

fn labels(text: &str) -> LabelSet {
    serde_json::from_str(text).unwrap()
}

#[test]
fn labels_are_sorted_and_null_is_empty() {
    let set = labels(r#"{"b": "2", "a": null, "c": ""}"#);
    assert_eq!(set.iter().collect::<Vec<_>>(), [("a", ""), ("b", "2"), ("c", "")]);
    assert_eq!((set.get("a"), set.get("b"), set.get("d"), set.len()), (Some(""), Some("2"), None, 3));
    assert!(labels("null").is_empty() && labels("{}").is_empty());
    assert!(serde_json::from_str::<LabelSet>(r#"{"a": 1}"#).is_err());
}

/// Each requirement against a label that has a value, another value, the empty value, and is not there.
#[test]
fn requirements_hold_as_in_kubernetes() {
    let one = |operator: &str, values: &str| {
        selector(&format!(
            r#"{{"matchExpressions": [{{"key": "app", "operator": "{operator}", "values": {values}}}]}}"#
        ))
    };
    let sets = [r#"{"app": "web"}"#, r#"{"app": "db"}"#, r#"{"app": ""}"#, r#"{"other": "web"}"#].map(labels);
    for (selector, expected) in [
        (selector("{}"), [true; 4]),
        (selector(r#"{"matchLabels": {"app": "web"}}"#), [true, false, false, false]),
        (selector(r#"{"matchLabels": {"app": null}}"#), [false, false, true, false]),
        (one("In", r#"["web", "x", "web"]"#), [true, false, false, false]),
        (one("In", r#"["web", "db"]"#), [true, true, false, false]),
        (one("NotIn", r#"["web"]"#), [false, true, true, true]),
        (one("Exists", "[]"), [true, true, true, false]),
        (one("DoesNotExist", "null"), [false, false, false, true]),
        (
            selector(
                r#"{"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "other", "operator": "Exists"}]}"#,
            ),
            [false; 4],
        ),
    ] {
        let selected = sets.each_ref().map(|set| selector.selects(|key| set.get(key)));
        assert_eq!(selected, expected, "{selector:?}");
    }
}

#[test]
fn selectors_that_say_the_same_are_equal() {
    let one = selector(
        r#"{"matchLabels": {"a": "1", "b": "2"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}]}"#,
    );
    let other = selector(
        r#"{"matchExpressions": [
            {"key": "c", "operator": "In", "values": ["x", "y", "x"]}, {"key": "b", "operator": "In", "values": ["2"]},
            {"key": "a", "operator": "In", "values": ["1"]}, {"key": "a", "operator": "In", "values": ["1"]}]}"#,
    );
    assert_eq!(one, other);
    assert!(selector("{}").is_everything() && !one.is_everything() && one.requirements().len() == 3);
}

#[test]
fn what_the_api_server_would_refuse_is_named_and_the_rest_is_read() {
    for (expression, error) in [
        (r#"{"key": "a", "operator": "In"}"#, SelectorError::NoValues("In")),
        (r#"{"key": "a", "operator": "NotIn", "values": []}"#, SelectorError::NoValues("NotIn")),
        (r#"{"key": "a", "operator": "Exists", "values": ["x"]}"#, SelectorError::Values("Exists")),
        (
            r#"{"key": "a", "operator": "DoesNotExist", "values": ["x"]}"#,
            SelectorError::Values("DoesNotExist"),
        ),
        (r#"{"key": "a", "operator": "in", "values": ["x"]}"#, SelectorError::Operator),
        (r#"{"key": "a"}"#, SelectorError::Operator),
        (r#"{"operator": "Exists"}"#, SelectorError::NoKey),
    ] {
        let text = format!(r#"{{"matchLabels": {{"app": "web"}}, "matchExpressions": [{expression}]}}"#);
        let wire: WireSelector = serde_json::from_str(&text).unwrap();
        assert_eq!(wire.clone().read_whole(), Err(error.clone()), "{expression}");
        assert_eq!(wire.read(), (selector(r#"{"matchLabels": {"app": "web"}}"#), vec![error]));
    }
}
