//! The plugin's options in a configuration, as the plugin reads them.

use std::path::PathBuf;

use cni::config::{FailurePolicy, PodSourceConfig};
use cni::json::Value;
use serde::Serialize;

/// What an operator asks about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct StatusOptions {
    /// Where the plugin looks for the agent.
    pub(super) run_dir: PathBuf,
    pub(super) failure_policy: &'static str,
    /// `disabled` is the kill switch.
    pub(super) capture: &'static str,
    pub(super) backend: &'static str,
    /// `kubernetes`, or `manifests:<directory>`.
    pub(super) pod_source: String,
    pub(super) exclude_namespaces: Vec<String>,
}

impl StatusOptions {
    /// # Errors
    /// What the plugin would refuse.
    pub(super) fn parse(entry: &Value) -> Result<Self, String> {
        let conf = cni::PluginConf::decode(entry).map_err(|error| error.to_string())?;
        Ok(Self {
            run_dir: conf.cni_agent_run_dir,
            failure_policy: match conf.failure_policy {
                FailurePolicy::Closed => "closed",
                FailurePolicy::Open => "open",
            },
            capture: if conf.capture { "enabled" } else { "disabled" },
            backend: match conf.native_nftables {
                Some(true) => "nftables",
                Some(false) => "iptables",
                None => "auto",
            },
            pod_source: match conf.pod_source {
                PodSourceConfig::Kubernetes => "kubernetes".to_owned(),
                PodSourceConfig::Manifests(dir) => format!("manifests:{}", dir.display()),
            },
            exclude_namespaces: conf.exclude_namespaces,
        })
    }

    /// Whether the plugin needs a kubeconfig when the agent does not answer.
    pub(super) fn needs_kubeconfig(&self) -> bool {
        self.pod_source == "kubernetes"
    }

    pub(super) fn text(&self) -> String {
        let Self { failure_policy, capture, backend, pod_source, .. } = self;
        let run_dir = self.run_dir.display();
        let excluded = match self.exclude_namespaces.as_slice() {
            [] => String::new(),
            names => format!(", without namespaces {}", names.join(" ")),
        };
        format!(
            "capture {capture}, failure policy {failure_policy}, backend {backend}, pods from {pod_source}, agent in {run_dir}{excluded}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<StatusOptions, String> {
        StatusOptions::parse(&Value::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn options_are_read_as_the_plugin_reads_them() {
        let options = parse(
            r#"{"type": "istio-cni", "cni_agent_run_dir": "/run/x", "native_nftables": true, "failure_policy": "open",
                "capture": "disabled", "pod_source": {"manifests": "/m"}, "exclude_namespaces": ["a", "b"]}"#,
        );
        let options = options.unwrap();
        assert_eq!(
            options.text(),
            "capture disabled, failure policy open, backend nftables, pods from manifests:/m, agent in /run/x, without namespaces a b"
        );
        assert!(!options.needs_kubeconfig());
        let default = parse(r#"{"type": "istio-cni"}"#).unwrap();
        assert_eq!((default.capture, default.failure_policy, default.backend), ("enabled", "closed", "auto"));
        assert!(default.needs_kubeconfig());
        assert!(parse(r#"{"capture": "no"}"#).unwrap_err().contains("capture"));
    }
}
