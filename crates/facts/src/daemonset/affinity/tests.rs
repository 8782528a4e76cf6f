use serde_json::{Value, json};

use super::*;

fn evaluate(terms: &Value) -> Result<bool, String> {
    let labels = [("zone", "a"), ("cores", "8"), ("empty", "")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let selector: NodeSelector =
        serde_json::from_value(json!({"nodeSelectorTerms": terms})).map_err(|error| error.to_string())?;
    selector.matches(&SelectedNode { name: "n1", labels: &labels }).map_err(|error| error.to_string())
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}])
}

#[test]
fn operators() {
    type Case = (&'static str, &'static str, &'static [&'static str], Result<bool, &'static str>);
    let table: &[Case] = &[
        ("zone", "In", &["b", "a"], Ok(true)),
        ("zone", "In", &["b"], Ok(false)),
        ("none", "In", &["a"], Ok(false)),
        ("empty", "In", &[""], Ok(true)),
        ("zone", "In", &[], Err("In of zone needs values")),
        ("zone", "NotIn", &["b"], Ok(true)),
        ("zone", "NotIn", &["a"], Ok(false)),
        ("none", "NotIn", &["a"], Ok(true)),
        ("zone", "NotIn", &[], Err("NotIn of zone needs values")),
        ("zone", "Exists", &[], Ok(true)),
        ("none", "Exists", &[], Ok(false)),
        ("zone", "Exists", &["a"], Err("Exists of zone needs no values")),
        ("none", "DoesNotExist", &[], Ok(true)),
        ("zone", "DoesNotExist", &[], Ok(false)),
        ("zone", "DoesNotExist", &["a"], Err("DoesNotExist of zone needs no values")),
        ("cores", "Gt", &["7"], Ok(true)),
        ("cores", "Gt", &["8"], Ok(false)),
        ("cores", "Lt", &["9"], Ok(true)),
        ("cores", "Lt", &["-1"], Ok(false)),
        ("zone", "Gt", &["1"], Ok(false)),
        ("none", "Lt", &["1"], Ok(false)),
        ("cores", "Gt", &["many"], Err("Gt of cores needs one integer")),
        ("cores", "Lt", &["1", "2"], Err("Lt of cores needs one integer")),
        ("cores", "Gt", &[], Err("Gt of cores needs one integer")),
    ];
    for (key, operator, values, expected) in table {
        let result = evaluate(&expression(key, operator, values));
        assert_eq!(result, expected.map_err(String::from), "{key} {operator} {values:?}");
    }
    assert!(evaluate(&expression("zone", "Like", &["a"])).unwrap_err().contains("Like"));
}

#[test]
fn fields_select_by_name_only() {
    let field = |key: &str, operator: &str, values: &[&str]| {
        evaluate(&json!([{"matchFields": [{"key": key, "operator": operator, "values": values}]}]))
    };
    assert_eq!(field("metadata.name", "In", &["n1"]), Ok(true));
    assert_eq!(field("metadata.name", "In", &["n2"]), Ok(false));
    assert_eq!(field("metadata.name", "NotIn", &["n2"]), Ok(true));
    for (key, operator, values) in [
        ("metadata.name", "In", &["n1", "n2"][..]),
        ("metadata.name", "Exists", &[]),
        ("spec.x", "In", &["n1"]),
    ] {
        assert!(
            field(key, operator, values).unwrap_err().contains("cannot be selected by"),
            "{key} {operator}"
        );
    }
}

#[test]
fn terms_are_alternatives_and_their_requirements_are_not() {
    let zone = |value| json!({"key": "zone", "operator": "In", "values": [value]});
    let table = [
        (json!([]), false),
        (json!([{}]), false),
        (json!([{"matchExpressions": [], "matchFields": null}]), false),
        (json!([{}, {"matchExpressions": [zone("a")]}]), true),
        (json!([{"matchExpressions": [zone("a"), zone("b")]}]), false),
        (json!([{"matchExpressions": [zone("b")]}, {"matchExpressions": [zone("a")]}]), true),
        (
            json!([{"matchExpressions": [zone("a")],
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]),
            false,
        ),
    ];
    for (terms, expected) in table {
        assert_eq!(evaluate(&terms), Ok(expected), "{terms}");
    }
    let broken =
        json!([{"matchExpressions": [zone("a")]}, {"matchExpressions": [{"key": "zone", "operator": "In"}]}]);
    assert!(evaluate(&broken).is_err(), "also where another term holds");
}
