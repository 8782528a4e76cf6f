use facts::object::Object;

fn reason(text: &str) -> String {
    super::from_slice::<Object>(text.as_bytes()).unwrap_err().reason
}

#[test]
fn misfits_name_field_and_types_and_quote_nothing() {
    for (text, expected) in [
        (
            r#"{"metadata":{"annotations":{"traffic.sidecar.istio.io/excludeOutboundPorts":8675309}}}"#,
            r#"metadata.annotations["traffic.sidecar.istio.io/excludeOutboundPorts"] is a number, must be text; write it in quotes"#,
        ),
        (
            r#"{"spec":{"containers":[{},{"env":[{"name":"A","value":true}]}]}}"#,
            "spec.containers[1].env[0].value is true or false, must be text; write it in quotes",
        ),
        (
            r#"{"spec":{"containers":[{"env":[{"value":"hunter2"}]}]}}"#,
            "spec.containers[0].env[0] has no name",
        ),
        (
            r#"{"spec":{"containers":[{"args":"hunter2"}]}}"#,
            "spec.containers[0].args is text, must be a list",
        ),
        (
            r#"{"spec":{"containers":[{"args":[1.5]}]}}"#,
            "spec.containers[0].args[0] is a number, must be text; write it in quotes",
        ),
        (
            r#"{"spec":{"containers":[{"args":[{"hunter2":1}]}]}}"#,
            "spec.containers[0].args[0] is a mapping, must be text",
        ),
        (
            r#"{"spec":{"hostNetwork":"hunter2, expected nothing at line 7"}}"#,
            "spec.hostNetwork is text, must be true or false",
        ),
        (r#"{"spec":{"initContainers":["hunter2"]}}"#, "spec.initContainers[0] is text, must be a mapping"),
        (
            r#"{"spec":{"containers":[{"securityContext":{"runAsUser":99999999999999999999}}]}}"#,
            "spec.containers[0].securityContext.runAsUser is a number, must be a whole number",
        ),
        (r#"{"kind":"Pod","kind":"hunter2"}"#, "a field of the object is there twice"),
        (r#""hunter2""#, "the object is text, must be a mapping"),
        (r#"{"kind":"hunter2"#, "EOF while parsing a string"),
        (r#"{"kind":"Pod"} hunter2"#, "trailing characters"),
    ] {
        assert_eq!(reason(text), expected, "{text}");
    }
}

/// The path that a deserializer finds that keeps it as it goes.
fn kept(text: &str) -> String {
    let parser = &mut serde_json::Deserializer::from_str(text);
    let error = serde_path_to_error::deserialize::<_, Object>(parser).unwrap_err();
    let path = error.path().iter().filter_map(|segment| match segment {
        serde_path_to_error::Segment::Seq { index } => Some(format!("[{index}]")),
        serde_path_to_error::Segment::Map { key } => Some(format!("/{key}")),
        _ => None,
    });
    path.collect()
}

/// The same path in the form of these tests.
fn found(text: &str) -> String {
    let error = serde_json::from_str::<Object>(text).unwrap_err();
    let place = super::place::at(text.as_bytes(), error.line(), error.column());
    if place == "the object" { String::new() } else { place }
}

/// Every value of an object with each of these in its place, or without it; as one line and over many.
fn damaged(object: &serde_json::Value) -> Vec<String> {
    use serde_json::{Value, json};
    fn pointers(value: &Value, at: String, all: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    pointers(value, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all);
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    pointers(value, format!("{at}/{index}"), all);
                }
            }
            _ => {}
        }
        all.push(at);
    }
    let (mut all, mut texts) = (Vec::new(), Vec::new());
    pointers(object, String::new(), &mut all);
    for pointer in &all {
        for other in
            [json!(true), json!(-1.5), json!(7), json!("x,]}"), json!([{}, 1]), json!({"a": [1]}), json!({})]
        {
            let mut changed = object.clone();
            *changed.pointer_mut(pointer).unwrap() = other;
            texts.extend([changed.to_string(), serde_json::to_string_pretty(&changed).unwrap()]);
        }
        let Some((parent, name)) = pointer.rsplit_once('/') else { continue };
        let mut changed = object.clone();
        if let Some(Value::Object(map)) = changed.pointer_mut(parent) {
            map.remove(&name.replace("~1", "/").replace("~0", "~"));
            texts.extend([changed.to_string(), serde_json::to_string_pretty(&changed).unwrap()]);
        }
    }
    texts
}

#[test]
fn the_place_is_the_one_that_a_deserializer_keeps() {
    let pod = serde_json::json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "labels": {"app": "a\"b", "x/y": "z"},
            "annotations": {"sidecar.istio.io/status": "{}", "k\\[": "v"}},
        "spec": {"hostNetwork": false, "serviceAccountName": "s", "nodeName": "n",
            "securityContext": {"runAsUser": 1},
            "containers": [{"name": "a", "env": [{"name": "A", "value": "1"}, {"name": "B"}], "args": ["x", "y"]},
                {"name": "istio-proxy", "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}}],
            "initContainers": [{"name": "i"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
    });
    let mut compared = 0;
    for text in damaged(&pod) {
        if serde_json::from_str::<Object>(&text).is_ok() {
            continue;
        }
        let expected = kept(&text);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '[' || c == ']' || c == '/';
        if !expected.chars().all(plain) || expected.contains("x/y") || expected.contains("istio.io/status") {
            // Keys that are written in brackets; the table above has one.
            continue;
        }
        let expected = expected.trim_start_matches('/').replace('/', ".");
        assert_eq!(found(&text), expected, "{text}");
        compared += 1;
    }
    assert!(compared > 200, "{compared}");
}
