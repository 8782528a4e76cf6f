//! JSON patches (RFC 6902) of members of objects: `test`, `add`, `replace` and `remove`.

use serde_json::Value;

/// Applies all operations, or none.
///
/// # Errors
/// Why not.
pub(super) fn apply(target: &mut Value, patch: &Value) -> Result<(), String> {
    let mut changed = target.clone();
    for operation in patch.as_array().ok_or("the patch is no list")? {
        apply_one(&mut changed, operation)?;
    }
    *target = changed;
    Ok(())
}

fn apply_one(target: &mut Value, operation: &Value) -> Result<(), String> {
    let path = operation["path"].as_str().unwrap_or_default();
    let (parent, member) = path.rsplit_once('/').ok_or_else(|| format!("{path:?} names no member"))?;
    let object = target.pointer_mut(parent).and_then(Value::as_object_mut);
    let object = object.ok_or_else(|| format!("there is no object at {parent:?}"))?;
    let is_there = object.contains_key(member);
    match (operation["op"].as_str().unwrap_or_default(), operation.get("value").cloned()) {
        // A member that is not there is null to API servers.
        ("test", Some(value)) if object.get(member).unwrap_or(&Value::Null) == &value => {}
        ("test", Some(_)) => return Err(format!("testing value {path} failed: test failed")),
        ("add", Some(value)) => drop(object.insert(member.to_owned(), value)),
        ("replace", Some(value)) if is_there => drop(object.insert(member.to_owned(), value)),
        ("remove", None) if is_there => drop(object.remove(member)),
        (op, _) => return Err(format!("{op:?} cannot be done at {path}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_changes_where_a_test_fails() {
        let mut node = json!({"spec": {"taints": [{"key": "a"}]}});
        let before = node.clone();
        let test = |value: Value| json!({"op": "test", "path": "/spec/taints", "value": value});
        let add = json!({"op": "add", "path": "/spec/taints", "value": [{"key": "b"}]});
        assert!(apply(&mut node, &json!([add, test(json!([{"key": "a"}]))])).is_err());
        assert_eq!(node, before);
        apply(&mut node, &json!([test(json!([{"key": "a"}])), add])).unwrap();
        assert_eq!(node, json!({"spec": {"taints": [{"key": "b"}]}}));
        apply(&mut node, &json!([{"op": "remove", "path": "/spec/taints"}, test(Value::Null)])).unwrap();
        assert_eq!(node, json!({"spec": {}}));
        assert!(apply(&mut node, &json!([{"op": "remove", "path": "/spec/taints"}])).is_err());
    }
}
