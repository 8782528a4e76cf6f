//! What the API server gives an object that is written without it: for objects of manifests, which no API server has seen.

use std::collections::BTreeMap;

use super::{Metadata, Object, REDIRECTION};

/// The label that the API server gives every namespace: its name (Kubernetes `corev1.LabelMetadataName`).
pub const METADATA_NAME: &str = "kubernetes.io/metadata.name";
/// The service account of a pod that names none (Kubernetes' admission controller `ServiceAccount`).
const SERVICE_ACCOUNT: &str = "default";

/// The labels of a namespace as an API server would have them; of one that is nowhere described, its name only.
pub fn namespace_labels(name: &str, namespace: Option<Object>) -> BTreeMap<String, String> {
    let mut labels = namespace.map(|object| object.labels()).unwrap_or_default();
    labels.insert(METADATA_NAME.to_owned(), name.to_owned());
    labels
}

impl Object {
    /// A manifest's pod as it is kept: with a uid and a service account, and without what it may say of another time, if it was once read from
    /// an API server.
    #[must_use]
    pub fn completed(mut self) -> Self {
        self.status = None;
        let uid = self.uid().map_or_else(|| self.made_uid(), str::to_owned);
        let metadata = self.metadata.get_or_insert_default();
        metadata.uid = Some(uid);
        if let Some(annotations) = &mut metadata.annotations {
            annotations.remove(REDIRECTION);
        }
        let account = &mut self.spec.get_or_insert_default().service_account_name;
        if account.as_deref().unwrap_or_default().is_empty() {
            *account = Some(SERVICE_ACCOUNT.to_owned());
        }
        self
    }

    /// The same pod with the uid that it has when its manifest has none.
    #[must_use]
    pub fn with_made_uid(mut self) -> Self {
        let uid = self.made_uid();
        self.metadata.get_or_insert_default().uid = Some(uid);
        self
    }

    /// Whether the uid is made of the names.
    pub fn has_made_uid(&self) -> bool {
        self.uid().is_some_and(|uid| uid == self.made_uid())
    }

    /// A uid in the form of others (RFC 9562, version 8), made of namespace and name only: a manifest that changes is the same pod.
    fn made_uid(&self) -> String {
        let name =
            self.metadata.as_ref().and_then(|Metadata { name, .. }| name.as_deref()).unwrap_or_default();
        let hash = fnv1a(self.namespace().bytes().chain(*b"/").chain(name.bytes()));
        // The places of version and variant.
        let bits = (hash & !(0xf << 76) & !(0b11 << 62)) | (0x8 << 76) | (0b10 << 62);
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// FNV-1a of 128 bits (draft-eastlake-fnv): the same in every version of ours. Whoever can choose two names of one value writes the manifests,
/// and could as well write the same uid into both.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> Object {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_uid_is_made_of_the_names_only() {
        let one = pod(r#"{"kind": "Pod", "metadata": {"name": "web", "labels": {"a": "1"}}}"#).completed();
        let uid = one.uid().unwrap().to_owned();
        // Another value would be another pod to the agent that finds what the one before left.
        assert_eq!(uid, "3ad17846-0d2e-8a8a-96fd-14e214b038ab");
        assert!(one.has_made_uid());
        for same in [
            r#"{"kind": "Pod", "metadata": {"name": "web", "namespace": "default", "uid": ""}, "spec": {"nodeName": "x"}}"#,
            r#"{"kind": "Pod", "metadata": {"name": "web", "namespace": ""}}"#,
        ] {
            assert_eq!(pod(same).completed().uid(), Some(&*uid), "{same}");
        }
        for other in
            [r#"{"metadata": {"name": "web", "namespace": "shop"}}"#, r#"{"metadata": {"name": "we"}}"#]
        {
            assert_ne!(pod(other).completed().uid(), Some(&*uid), "{other}");
        }
        let own = pod(r#"{"metadata": {"name": "web", "uid": "1-2"}}"#).completed();
        assert!(own.uid() == Some("1-2") && !own.has_made_uid());
        assert_eq!(own.with_made_uid().uid(), Some(&*uid));
    }

    #[test]
    fn what_was_true_elsewhere_is_dropped_and_what_is_usual_is_added() {
        let exported = r#"{"kind": "Pod", "metadata": {"name": "web", "uid": "1",
            "annotations": {"ambient.istio.io/redirection": "enabled", "istio.io/other": "kept"}},
            "spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Failed", "podIP": "10.0.0.1"}}"#;
        let kept = pod(exported).completed();
        assert!(!kept.is_terminal() && kept.ips().is_empty());
        assert_eq!(kept.annotation(REDIRECTION), None);
        assert_eq!((kept.annotation("istio.io/other"), kept.service_account()), (Some("kept"), "default"));
        let own = pod(r#"{"metadata": {"name": "w"}, "spec": {"serviceAccountName": "pay"}}"#).completed();
        assert_eq!(own.service_account(), "pay");
    }

    #[test]
    fn namespaces_have_their_name_for_a_label() {
        let of = |object| namespace_labels("shop", object);
        assert_eq!(of(None), BTreeMap::from([(METADATA_NAME.to_owned(), "shop".to_owned())]));
        let described = pod(
            r#"{"kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": null, "kubernetes.io/metadata.name": "x"}}}"#,
        );
        let labels = of(Some(described));
        assert_eq!((&*labels["a"], &*labels[METADATA_NAME]), ("", "shop"));
    }
}
