//! The pod that `render` and `explain` are about: whether it is captured, and its plan.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use capture::annotations::NodeSettings;
use capture::plan::detect_ipv6;
use capture::decide::{Mode, refuse};
use capture::{Decision, Enrolment, Facts, Pod, Settings, Skip, decide};
use clap::ValueEnum;
use cni::PluginConf;
use ruleset::{Backend, Plan};
use serde::Serialize;

use crate::chain::Conflist;
use crate::pod;

/// The plugin's `type` in a conflist.
const PLUGIN: &str = "istio-cni";

#[derive(Debug, clap::Args)]
pub(crate) struct SubjectArgs {
    /// Kubernetes manifest of the pod as it runs, after injection (YAML or JSON)
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// Which pod, where the manifest has several
    #[arg(long, visible_alias = "pod", value_name = "[NAMESPACE/]NAME")]
    pod_name: Option<String>,
    /// Conflist with the plugin's entry; gives the excluded namespaces, the agent's namespace and the backend
    #[arg(long, value_name = "CONFLIST")]
    conf: Option<PathBuf>,
    /// Kernel interface; without it what the conflist says, else nftables
    #[arg(long, value_enum)]
    backend: Option<BackendName>,
    /// Address of the pod; decides as on the node whether IPv6 is captured (repeat, in the order of `ip addr`)
    #[arg(long = "pod-ip", value_name = "IP", value_delimiter = ',')]
    pub(crate) pod_ips: Vec<IpAddr>,
    /// IPv6 is captured, whatever the pod's addresses
    #[arg(long)]
    ipv6: bool,
    /// A namespace whose pods are never captured, besides those of the conflist (repeat)
    #[arg(long = "exclude-namespace", value_name = "NAMESPACE", value_delimiter = ',')]
    excluded_namespaces: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendName {
    Nftables,
    Iptables,
}

/// A pod by name, for reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// What is decided about the pod.
#[derive(Debug)]
pub(crate) enum Subject {
    /// It is left alone.
    Skipped {
        /// Pod.
        pod: PodName,
        /// The row of the decision table, and what was found.
        skip: Skip,
    },
    /// It is captured.
    Captured(Box<Captured>),
}

/// A captured pod.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) pod: PodName,
    pub(crate) settings: Settings,
    pub(crate) native_sidecar: bool,
    /// Whether the rules capture all that its owner expects of them; the warnings say what they do not.
    pub(crate) complete: bool,
    pub(crate) warnings: Vec<String>,
    pub(crate) facts: Facts,
    pub(crate) plan: Plan,
}

impl SubjectArgs {
    /// Decides and plans. `ipv6` is what to assume of the pod's addresses where the command line says nothing.
    ///
    /// # Errors
    /// The manifest, the conflist or an annotation cannot be used.
    pub(crate) fn subject(&self, ipv6: bool) -> Result<Subject> {
        let pod = pod::load(&self.manifest, self.pod_name.as_deref())?;
        let conf = self.conf.as_deref().map(Conflist::load).transpose()?;
        let conf = conf.map(|conflist| plugin_conf(&conflist)).transpose()?;
        let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
        match self.decide(&pod, conf.as_ref())? {
            Decision::Skip(skip) => Ok(Subject::Skipped { pod: name, skip }),
            Decision::Ambient | Decision::Unknown(_) => bail!("pod {name} is of ambient mode"),
            Decision::Sidecar { settings, native_sidecar, warnings, gaps } => {
                let gaps: Vec<String> = refused(&pod, conf.as_ref()).into_iter().chain(gaps).collect();
                let complete = gaps.is_empty();
                let warnings = gaps.into_iter().chain(warnings).collect();
                let facts = Facts {
                    backend: self.backend(conf.as_ref()),
                    ipv6: self.captures_ipv6(&settings, ipv6)?,
                };
                let plan = capture::plan(&settings, facts);
                let settings = *settings;
                let captured =
                    Captured { pod: name, settings, native_sidecar, complete, warnings, facts, plan };
                Ok(Subject::Captured(Box::new(captured)))
            }
        }
    }

    fn decide(&self, pod: &Pod, conf: Option<&PluginConf>) -> Result<Decision> {
        let mut scope = conf.map(PluginConf::scope).unwrap_or_default();
        scope.excluded_namespaces.extend(self.excluded_namespaces.iter().cloned());
        let node = NodeSettings::from_env(&|name| std::env::var(name).ok(), &|_| None)?;
        Ok(decide(pod, &scope, &Enrolment::default(), &node)?)
    }

    fn backend(&self, conf: Option<&PluginConf>) -> Backend {
        match (self.backend, conf.and_then(|conf| conf.native_nftables)) {
            (Some(BackendName::Iptables), _) | (None, Some(false)) => Backend::Iptables,
            (Some(BackendName::Nftables), _) | (None, _) => Backend::Nftables,
        }
    }

    fn captures_ipv6(&self, settings: &Settings, assumed: bool) -> Result<bool> {
        if self.ipv6 {
            return Ok(true);
        }
        if self.pod_ips.is_empty() {
            return Ok(assumed || settings.dual_stack);
        }
        detect_ipv6(&self.pod_ips, settings.dual_stack).context("use the addresses of --pod-ip")
    }
}

/// Why the plugin refuses the pod, if it does.
fn refused(pod: &Pod, conf: Option<&PluginConf>) -> Option<String> {
    let kernel_classes = conf.map_or(&[][..], |conf| &conf.kernel_network_runtime_classes);
    let refusal = refuse(Mode::Sidecar, pod.runtime_class.as_deref(), kernel_classes, &[]).err()?;
    Some(format!("the plugin refuses the pod: {refusal}"))
}

/// The plugin's own configuration in a chain.
fn plugin_conf(conflist: &Conflist) -> Result<PluginConf> {
    let place = || format!("plugin {PLUGIN} of {}", conflist.path.display());
    let plugin = conflist
        .plugins
        .iter()
        .find(|plugin| plugin.kind == PLUGIN)
        .with_context(|| format!("{} has no plugin of type {PLUGIN}", conflist.path.display()))?;
    let text = serde_json::to_vec(&plugin.conf)?;
    let value = cni::json::Value::parse(&text).with_context(place)?;
    PluginConf::decode(&value).with_context(place)
}

impl Captured {
    /// How inbound connections are captured, in the annotation's words.
    pub(crate) fn mode(&self) -> &'static str {
        match self.settings.mode {
            capture::settings::Mode::Redirect => "REDIRECT",
            capture::settings::Mode::Tproxy => "TPROXY",
        }
    }

    /// `captured through its sidecar (REDIRECT, nftables, IPv4)`.
    pub(crate) fn summary(&self) -> String {
        let families = if self.facts.ipv6 { "IPv4 and IPv6" } else { "IPv4" };
        let sidecar = if self.native_sidecar { "native sidecar" } else { "sidecar" };
        let state = if self.complete { "captured" } else { "NOT ALL captured" };
        format!("{state} through its {sidecar} ({}, {}, {families})", self.mode(), self.facts.backend)
    }
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
