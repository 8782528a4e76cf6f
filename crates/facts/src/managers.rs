//! Who wrote labels and annotations of an object, as the API server notes it (`metadata.managedFields`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

type Fields = Option<BTreeMap<String, IgnoredAny>>;

#[derive(Deserialize)]
struct ManagedObject {
    metadata: ManagedMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManagedMetadata {
    managed_fields: Option<Vec<ManagedEntry>>,
}

#[derive(Deserialize)]
struct ManagedEntry {
    manager: Option<String>,
    /// RFC 3339 in UTC and whole seconds: in the order of their texts.
    time: Option<String>,
    #[serde(rename = "fieldsV1")]
    fields: Option<FieldsV1>,
}

#[derive(Deserialize)]
struct FieldsV1 {
    #[serde(rename = "f:metadata")]
    metadata: Option<MetadataFields>,
}

#[derive(Deserialize)]
struct MetadataFields {
    #[serde(rename = "f:labels")]
    labels: Fields,
    #[serde(rename = "f:annotations")]
    annotations: Fields,
}

/// The manager that was the last to write a label or an annotation of these keys; of those that it has removed nothing is noted. `object` is JSON.
///
/// # Errors
/// It is no object, or has other managed fields than the API server writes.
pub fn last_manager(object: &[u8], keys: &[&str]) -> Result<Option<String>, serde_json::Error> {
    let ManagedObject { metadata } = serde_json::from_slice(object)?;
    let its = metadata.managed_fields.into_iter().flatten().filter(|entry| entry.has_one_of(keys));
    Ok(its.max_by(|a, b| a.time.cmp(&b.time)).and_then(|entry| entry.manager))
}

// === impl ManagedEntry ===

impl ManagedEntry {
    fn has_one_of(&self, keys: &[&str]) -> bool {
        let metadata = self.fields.as_ref().and_then(|fields| fields.metadata.as_ref());
        let fields = metadata.into_iter().flat_map(|fields| [&fields.labels, &fields.annotations]);
        fields
            .flatten()
            .flat_map(BTreeMap::keys)
            .any(|field| field.strip_prefix("f:").is_some_and(|field| keys.contains(&field)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_wrote_one_of_the_fields_is_named() {
        let object = br#"{"metadata": {"managedFields": [
            {"manager": "kubectl-annotate", "time": "2026-08-01T09:30:01Z",
             "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, "f:a/ports": {}}}}},
            {"manager": "kubelet", "time": "2026-08-01T09:31:00Z", "subresource": "status", "fieldsV1": {"f:status": {}}},
            {"manager": "injector", "time": "2026-08-01T09:29:00Z",
             "fieldsV1": {"f:metadata": {"f:annotations": {"f:a/ports": {}, "f:a/mode": {}}, "f:labels": {"f:a/on": {}}}}},
            {"manager": "empty", "fieldsV1": null}]}}"#;
        for (keys, manager) in [
            (&["a/ports", "a/mode"][..], Some("kubectl-annotate")),
            (&["a/mode"], Some("injector")),
            (&["a/on"], Some("injector")),
            (&["a/other"], None),
            (&[], None),
        ] {
            assert_eq!(last_manager(object, keys).unwrap().as_deref(), manager, "{keys:?}");
        }
        assert_eq!(last_manager(br#"{"metadata": {}}"#, &["a/on"]).unwrap(), None);
        for text in ["", "7", r#"{"metadata": {"managedFields": [{"fieldsV1": 7}]}}"#] {
            assert!(last_manager(text.as_bytes(), &["a/on"]).is_err(), "{text}");
        }
    }
}
