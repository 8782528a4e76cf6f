//! The schema that is shipped, and what is printed, compared: every member that is printed is described, every member that must be there is.

use std::path::Path;

use serde_json::Value;

/// The document that a call prints, which the schema describes.
#[track_caller]
pub(crate) fn document(run: &crate::Run) -> Value {
    let document = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    assert_described(&document);
    document
}

/// Asserts that a document is one of those that the schema describes.
#[track_caller]
pub(crate) fn assert_described(document: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema/cnictl-v1.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let kinds = schema["oneOf"].as_array().unwrap();
    let errors: Vec<String> = kinds.iter().map(|kind| misfit(&schema, kind, document, "")).collect();
    let fitting = errors.iter().filter(|error| error.is_empty()).count();
    assert_eq!(fitting, 1, "{errors:#?}: {document:#}");
}

/// Why a value does not fit; empty where it does. The part of JSON Schema that the file uses.
fn misfit(schema: &Value, part: &Value, value: &Value, at: &str) -> String {
    let part = match part["$ref"].as_str() {
        Some(name) => &schema["$defs"][name.trim_start_matches("#/$defs/")],
        None => part,
    };
    assert!(part.is_object(), "the schema has no part for {at}");
    if part.get("const").is_some_and(|wanted| wanted != value) {
        return format!("{at}: {value} is not {}", part["const"]);
    }
    if let Some(allowed) = part["enum"].as_array()
        && !allowed.contains(value)
    {
        return format!("{at}: {value} is not one of {allowed:?}");
    }
    let is_kind = match part["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some(other) => panic!("the schema has a type {other} at {at}"),
    };
    if !is_kind {
        return format!("{at}: {value} is not of type {}", part["type"]);
    }
    let missing = part["required"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|name| value.get(name.as_str().unwrap()).is_none());
    if let Some(missing) = missing {
        return format!("{at}: {missing} is missing");
    }
    let items = value
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| misfit(schema, &part["items"], item, &format!("{at}[]")));
    let members = value.as_object().into_iter().flatten().map(|(name, value)| {
        let described = part["properties"].get(name).or_else(|| part.get("additionalProperties"));
        let place = format!("{at}.{name}");
        described
            .map_or_else(|| format!("{place} is not described"), |part| misfit(schema, part, value, &place))
    });
    items.chain(members).find(|error| !error.is_empty()).unwrap_or_default()
}

#[test]
fn what_does_not_fit_the_schema_is_noticed() {
    let list = |item: Value| {
        serde_json::json!({"apiVersion": "cnictl.istio-cni.io/v1", "kind": "ConflictList", "not_looked_at": [],
            "evidence": {"by": "agent", "at": 1.5, "agent_version": "1"}, "items": [item]})
    };
    assert_described(&list(
        serde_json::json!({"id": "CF-P1", "severity": "error", "affects": "x", "handle": 7}),
    ));
    for bad in [
        serde_json::json!({"id": "CF-P1", "severity": "bad", "affects": "x"}),
        serde_json::json!({"id": "CF-P1", "severity": "error"}),
        serde_json::json!({"id": "CF-P1", "severity": "error", "affects": "x", "colour": "red"}),
        serde_json::json!({"id": "CF-P1", "severity": "error", "affects": 5}),
    ] {
        let document = list(bad);
        assert!(std::panic::catch_unwind(|| assert_described(&document)).is_err(), "{document}");
    }
}
