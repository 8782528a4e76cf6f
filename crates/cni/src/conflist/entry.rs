//! What the node agent writes for the plugin.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::config::{EnablementSelector, LabelSelector};

/// `type` of our plugin: the name of its program.
pub const ENTRY_TYPE: &str = "istio-cni";

/// `cniVersion` of the standalone file, the original's. A list has its own.
const STANDALONE_VERSION: &str = "0.3.1";

/// The plugin's options, as [`crate::PluginConf`] reads them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PluginEntry {
    /// `plugin_log_level`
    pub plugin_log_level: String,
    /// `cni_agent_run_dir`, as the host sees it.
    pub cni_agent_run_dir: PathBuf,
    /// `ambient_enabled`
    pub ambient_enabled: bool,
    /// `enablement_selectors`
    pub enablement_selectors: Vec<EnablementSelector>,
    /// `exclude_namespaces`
    pub exclude_namespaces: Vec<String>,
    /// `pod_namespace`: where the node agent runs.
    pub pod_namespace: String,
    /// `native_nftables`; left out where the choice is the node's.
    pub native_nftables: Option<bool>,
    /// `enable_ambient_detection_retry`
    pub enable_ambient_detection_retry: bool,
    /// Options that upstream does not have, such as `facts_timeout` and `capabilities`. Leave out what has its default: an upstream
    /// plugin may read this too.
    pub extra: Map<String, Value>,
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryPlace {
    /// In a list, which has the version.
    Member,
    /// Alone in a file.
    Standalone,
}

impl PluginEntry {
    /// The file of the standalone mode.
    pub fn render_standalone(&self) -> Vec<u8> {
        super::layout::pretty(&self.text(EntryPlace::Standalone))
    }

    /// JSON text, keys in upstream's order.
    pub(super) fn text(&self, place: EntryPlace) -> String {
        let members: Vec<_> =
            self.members(place).into_iter().map(|(key, value)| (key, value.to_string())).collect();
        super::object(members.iter().map(|(key, value)| (*key, value.as_str())))
    }

    pub(super) fn value(&self, place: EntryPlace) -> Value {
        Value::Object(self.members(place).into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    fn members(&self, place: EntryPlace) -> Vec<(&str, Value)> {
        let namespaces = &self.exclude_namespaces;
        let version = (place == EntryPlace::Standalone).then(|| ("cniVersion", STANDALONE_VERSION.into()));
        let head = [
            ("name", ENTRY_TYPE.into()),
            ("type", ENTRY_TYPE.into()),
            ("ipam", json!({})),
            ("dns", json!({})),
            ("plugin_log_level", self.plugin_log_level.as_str().into()),
            ("cni_agent_run_dir", self.cni_agent_run_dir.to_string_lossy().into()),
            ("ambient_enabled", self.ambient_enabled.into()),
            ("enablement_selectors", self.enablement_selectors.iter().map(selector).collect()),
            // upstream's own form of an empty list
            ("exclude_namespaces", if namespaces.is_empty() { Value::Null } else { json!(namespaces) }),
            ("pod_namespace", self.pod_namespace.as_str().into()),
        ];
        let backend = self.native_nftables.map(|native| ("native_nftables", native.into()));
        let retry = ("enable_ambient_detection_retry", self.enable_ambient_detection_retry.into());
        let extra = self.extra.iter().map(|(key, value)| (key.as_str(), value.clone()));
        version.into_iter().chain(head).chain(backend).chain([retry]).chain(extra).collect()
    }
}

fn selector(selector: &EnablementSelector) -> Value {
    json!({ "podSelector": labels(&selector.pod), "namespaceSelector": labels(&selector.namespace) })
}

fn labels(selector: &LabelSelector) -> Value {
    let mut members = Map::new();
    if !selector.match_labels.is_empty() {
        members.insert("matchLabels".to_owned(), json!(selector.match_labels));
    }
    if !selector.match_expressions.is_empty() {
        let requirements = selector.match_expressions.iter().map(|requirement| {
            let mut members = Map::new();
            members.insert("key".to_owned(), requirement.key.as_str().into());
            members.insert("operator".to_owned(), requirement.operator.as_str().into());
            if !requirement.values.is_empty() {
                members.insert("values".to_owned(), json!(requirement.values));
            }
            Value::Object(members)
        });
        members.insert("matchExpressions".to_owned(), requirements.collect());
    }
    Value::Object(members)
}
