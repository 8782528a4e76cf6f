use super::*;

fn parse(text: &str) -> Value {
    Value::parse(text.as_bytes()).unwrap()
}

#[test]
fn keys_match_in_any_case_and_the_last_that_is_not_null_counts() {
    let tree = parse(r#"{"name":"a","NAME":"b","Name":null,"other":1}"#);
    assert_eq!(tree.get("name"), Some(&Value::String("b".into())));
    assert_eq!(tree.get("absent"), None);
    assert_eq!(parse("[1]").get("name"), None);
}

#[test]
fn errors_name_the_place_and_both_types() {
    let tree = parse(r#"{"a":{"b":[{"c":1},{"c":"x"}]}}"#);
    let root = JsonNode::root(&tree, "");
    let error = root.required("a").unwrap().list("b", |item| item.text_or_empty("c")).unwrap_err();
    assert_eq!(error.to_string(), "a.b[0].c: expected a text, found a number");
    let error = root.required("x").err().unwrap();
    assert_eq!(error.to_string(), "x: missing");
    assert_eq!(
        JsonNode::root(&Value::Null, "conf").field("a").err().unwrap().to_string(),
        "conf: expected an object, found null"
    );
}

#[test]
fn integers_reject_fractions_and_overflow() {
    for text in ["1.0", "9223372036854775808", "1e3"] {
        let tree = parse(&format!(r#"{{"n":{text}}}"#));
        let error = JsonNode::root(&tree, "").maybe_integer("n").unwrap_err();
        assert_eq!(error.to_string(), "n: not a 64-bit whole number", "{text}");
    }
}

#[test]
fn deep_nesting_is_an_error_not_a_stack_overflow() {
    assert!(Value::parse("[".repeat(1 << 20).as_bytes()).is_err());
    let deep = format!("{}{}", r#"{"a":"#.repeat(5000), "1");
    assert!(Value::parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
}

#[test]
fn conversion_to_serde_keeps_the_last_duplicate() {
    let value = serde_json::Value::from(&parse(r#"{"a":1,"a":[true,null,"x",1.5]}"#));
    assert_eq!(value, serde_json::json!({"a": [true, null, "x", 1.5]}));
}
