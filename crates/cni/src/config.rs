//! The network configuration: what the administrator wrote for this plugin, as the runtime hands it over.

mod decision;
mod duration;
mod selector;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

pub use duration::parse_duration;
pub use selector::{EnablementSelector, LabelSelector, WrittenRequirement};

use crate::json::{DecodeError, JsonNode, Value};
use crate::result::Dns;

/// The run directory when `cni_agent_run_dir` is absent, the agent's default too.
pub const RUN_DIR: &str = "/var/run/istio-cni";
/// The state directory when `state_dir` is absent, the agent's default too. It outlives the run directory, which is in memory on most nodes.
pub const STATE_DIR: &str = "/var/lib/istio-cni";
/// How long the search for a pod's facts may take when `facts_timeout` is absent.
pub const DEFAULT_FACTS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an ADD may take in all when `add_timeout` is absent. Well under kubelet's limit for a sandbox, which is 4 minutes.
pub const DEFAULT_ADD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest timeout that is accepted; no runtime waits longer for a sandbox.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

/// The typed configuration. A text is empty and a list is empty when the key is absent or `null`; unknown keys are
/// ignored. `cniVersion` and `name` are in the [`crate::Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConf {
    /// `type`: the plugin's file name.
    pub plugin_type: String,
    /// `capabilities`: what the plugin wants to find in `runtimeConfig`.
    pub capabilities: BTreeMap<String, bool>,
    /// `ipam.type`; unused.
    pub ipam_type: String,
    /// `dns`; unused.
    pub dns: Dns,
    /// `plugin_log_level`, as written.
    pub plugin_log_level: String,
    /// `cni_agent_run_dir`: kubeconfig, log socket and log file live here. [`RUN_DIR`] where it is absent or empty.
    pub cni_agent_run_dir: PathBuf,
    /// `state_dir`: the last known facts are here, too. [`STATE_DIR`] where it is absent or empty.
    pub state_dir: PathBuf,
    /// `ambient_enabled`
    pub ambient_enabled: bool,
    /// `enablement_selectors`; ambient only.
    pub enablement_selectors: Vec<EnablementSelector>,
    /// `exclude_namespaces`: exact names.
    pub exclude_namespaces: Vec<String>,
    /// `pod_namespace`: where the node agent runs.
    pub pod_namespace: String,
    /// `agent_pod_prefix`: what the names of the node agent's pods begin with; empty for the usual.
    pub agent_pod_prefix: String,
    /// `native_nftables`: true for nf_tables, false for iptables, absent for what the kernel offers.
    pub native_nftables: Option<bool>,
    /// `enable_ambient_detection_retry`; ambient only.
    pub enable_ambient_detection_retry: bool,
    /// `facts_timeout`: total time for finding the pod's facts, all tries together. More than zero.
    pub facts_timeout: Duration,
    /// `add_timeout`: total time for an ADD. More than zero.
    pub add_timeout: Duration,
    /// `failure_policy`: what becomes of a pod that cannot be set up.
    pub failure_policy: FailurePolicy,
    /// `capture`: false is the kill switch, with which no pod is captured.
    pub capture: bool,
    /// `policy_enforcement`: NetworkPolicies are enforced on this node.
    pub policy_enforcement: bool,
    /// `policy_unprepared`: what becomes of a pod that a policy selects and whose policies no agent puts into force.
    pub policy_unprepared: UnpreparedPod,
    /// `strict_status`: STATUS succeeds only where a pod could be captured now, not wherever one may ever be.
    pub strict_status: bool,
    /// `kernel_network_runtime_classes`: names of runtime classes whose pods use the kernel's network stack, whatever sandbox their names
    /// stand for.
    pub kernel_network_runtime_classes: Vec<String>,
    /// `pod_source`: where the pod's facts come from.
    pub pod_source: PodSourceConfig,
    /// `runtimeConfig["io.kubernetes.cri.pod-annotations"]`: `None` when the runtime did not send it.
    pub pod_annotations: Option<BTreeMap<String, String>>,
}

/// What becomes of a pod that cannot be set up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// ADD fails, and the runtime tries again: nothing runs outside of the mesh.
    #[default]
    Closed,
    /// The pod starts without capture, and is reported.
    Open,
}

/// What becomes of a pod that a policy selects and whose policies no agent puts into force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnpreparedPod {
    /// It starts isolated, until an agent does so.
    #[default]
    Closed,
    /// ADD fails, and the runtime tries again.
    Fail,
    /// It starts without them, and is reported.
    Open,
}

/// Where a pod's facts come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodSourceConfig {
    /// The Kubernetes API, with the kubeconfig in the run directory.
    Kubernetes,
    /// A directory of Kubernetes manifests.
    Manifests(PathBuf),
}

/// One entry of `cni.dev/valid-attachments`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// `containerID`
    pub container_id: String,
    /// `ifname`
    pub ifname: String,
}

impl PluginConf {
    /// Reads the configuration.
    ///
    /// # Errors
    ///
    /// A key that is known has a value of the wrong type, or one that means nothing.
    pub fn decode(value: &Value) -> Result<Self, DecodeError> {
        let root = JsonNode::root(value, "");
        // Decoded later, with the version; only its type belongs to the configuration.
        root.map("prevResult", |_| Ok(()))?;
        Ok(Self {
            plugin_type: root.text_or_empty("type")?,
            capabilities: root.map("capabilities", JsonNode::boolean)?,
            ipam_type: match root.field("ipam")? {
                Some(ipam) => ipam.text_or_empty("type")?,
                None => String::new(),
            },
            dns: Dns::decode_in(&root)?,
            plugin_log_level: root.text_or_empty("plugin_log_level")?,
            cni_agent_run_dir: directory(root.text_or_empty("cni_agent_run_dir")?, RUN_DIR),
            state_dir: directory(root.text_or_empty("state_dir")?, STATE_DIR),
            ambient_enabled: root.bool_or_false("ambient_enabled")?,
            enablement_selectors: root.list("enablement_selectors", selector::decode)?,
            exclude_namespaces: root.texts("exclude_namespaces")?,
            pod_namespace: root.text_or_empty("pod_namespace")?,
            agent_pod_prefix: root.text_or_empty("agent_pod_prefix")?,
            native_nftables: root.field("native_nftables")?.map(|node| node.boolean()).transpose()?,
            enable_ambient_detection_retry: root.bool_or_false("enable_ambient_detection_retry")?,
            facts_timeout: timeout(&root, "facts_timeout", DEFAULT_FACTS_TIMEOUT)?,
            add_timeout: timeout(&root, "add_timeout", DEFAULT_ADD_TIMEOUT)?,
            failure_policy: one_of(
                &root,
                "failure_policy",
                &[("closed", FailurePolicy::Closed), ("open", FailurePolicy::Open)],
            )?,
            capture: one_of(&root, "capture", &[("enabled", true), ("disabled", false)])?,
            policy_enforcement: one_of(&root, "policy_enforcement", &[("off", false), ("on", true)])?,
            policy_unprepared: one_of(
                &root,
                "policy_unprepared",
                &[
                    ("closed", UnpreparedPod::Closed),
                    ("fail", UnpreparedPod::Fail),
                    ("open", UnpreparedPod::Open),
                ],
            )?,
            strict_status: root.bool_or_false("strict_status")?,
            kernel_network_runtime_classes: root.texts("kernel_network_runtime_classes")?,
            pod_source: PodSourceConfig::decode_in(&root)?,
            pod_annotations: pod_annotations(&root)?,
        })
    }
}

impl PodSourceConfig {
    fn decode_in(root: &JsonNode<'_>) -> Result<Self, DecodeError> {
        let Some(node) = root.field("pod_source")? else { return Ok(Self::Kubernetes) };
        match node.text_or_empty("manifests")? {
            directory if !directory.is_empty() => Ok(Self::Manifests(directory.into())),
            // A misspelt key must not silently mean "ask the API server".
            _ => {
                Err(node
                    .invalid("names no source; write {\"manifests\": \"<directory>\"} or leave the key out"))
            }
        }
    }
}

impl Attachment {
    /// The attachments that a GC call declares valid, `None` when it declares nothing at all.
    ///
    /// The key is `cni.dev/valid-attachments`; the text of CNI 1.1.0 also calls it `cni.dev/attachments`, and runtimes
    /// send both, so that one is read when the first is absent.
    pub fn decode_valid(value: &Value) -> Result<Option<Vec<Self>>, DecodeError> {
        let root = JsonNode::root(value, "");
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            if root.field(key)?.is_some() {
                return root.list(key, Self::decode).map(Some);
            }
        }
        Ok(None)
    }

    fn decode(node: &JsonNode<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            container_id: node.required("containerID")?.text()?.to_owned(),
            ifname: node.required("ifname")?.text()?.to_owned(),
        })
    }
}

fn timeout(root: &JsonNode<'_>, key: &str, default: Duration) -> Result<Duration, DecodeError> {
    let Some(node) = root.field(key)? else { return Ok(default) };
    let duration = parse_duration(node.text()?).map_err(|error| node.invalid(error.to_string()))?;
    if duration.is_zero() || duration > MAX_TIMEOUT {
        return Err(node.invalid("has to be more than zero and at most 1h"));
    }
    Ok(duration)
}

/// One of a few words; the first is the default. A misspelt one must not silently mean it.
fn one_of<T: Copy, const N: usize>(
    root: &JsonNode<'_>,
    key: &str,
    words: &[(&str, T); N],
) -> Result<T, DecodeError> {
    let Some(node) = root.field(key)? else { return Ok(words[0].1) };
    let text = node.text()?;
    words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
        node.invalid(format!("is not one of {}", words.map(|(word, _)| format!("{word:?}")).join(", ")))
    })
}

fn pod_annotations(root: &JsonNode<'_>) -> Result<Option<BTreeMap<String, String>>, DecodeError> {
    const KEY: &str = "io.kubernetes.cri.pod-annotations";
    let Some(runtime_config) = root.field("runtimeConfig")? else { return Ok(None) };
    if runtime_config.field(KEY)?.is_none() {
        return Ok(None);
    }
    runtime_config.map(KEY, |node| Ok(node.text()?.to_owned())).map(Some)
}

fn directory(text: String, default: &str) -> PathBuf {
    if text.is_empty() { default.into() } else { text.into() }
}

#[cfg(test)]
mod tests;
