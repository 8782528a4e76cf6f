//! The options as this agent uses them: text becomes types here, and nowhere else.

mod values;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capture::annotations::NodeSettings;
use capture::select::is_dns_subdomain;
use cluster::OwnPod;
use cni::conflist::PluginEntry;
use enforcement::PolicyConfig;
use install::{InstallMode, InstallOptions, KubeconfigOptions};
use kernel::Choice;
use ruleset::{Backend, Ruleset};
use serde_json::Map;

use crate::ambient::config::AmbientConfig;
use crate::conflicts::{self, ConflictResolution};
use crate::periodic::CheckConfig;
use crate::policy::AuditConfig;
use crate::sidecars;
use crate::taint::TaintMode;
use crate::verification::VerifyConfig;
pub(crate) use options::agent::BadOption;
use options::agent::{Lookup, Options, Setting};
use values::{
    absolute_dir, address, broken_pod_label, checked, cleanup, program_at_end, repair, sidecar_settings,
};
pub(crate) use values::{
    duration, excluded_namespaces, kernel_network_runtime_classes, levels, live_updates, namespace,
    native_nftables, selectors,
};

/// Key in `runtimeConfig` under which containerd hands over a pod's annotations, and the capability that asks for it.
const ANNOTATIONS_CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

/// Key of the plugin's entry that names a directory of manifests.
pub(crate) const POD_SOURCE: &str = "pod_source";

/// Everything that this process does.
#[derive(Debug, Clone)]
pub(crate) struct AgentConfig {
    /// How often the counters of tenants' pods are read; absent where their traffic is not counted.
    pub(crate) usage: Option<Duration>,
    /// What is installed.
    pub(crate) install: InstallOptions,
    /// Where pods come from.
    pub(crate) pods: PodsOrigin,
    /// Directory of the sockets.
    pub(crate) run_dir: PathBuf,
    /// Directory of what outlives a restart of the machine.
    pub(crate) state_dir: PathBuf,
    /// Address of /metrics.
    pub(crate) monitoring: Option<SocketAddr>,
    /// Address of /healthz and /readyz.
    pub(crate) health: Option<SocketAddr>,
    /// Name of this node.
    pub(crate) node: String,
    /// This agent's pod; what is not known of it is empty.
    pub(crate) pod: OwnPod,
    /// When everything is removed at the end.
    pub(crate) cleanup: CleanupAtEnd,
    /// Which sidecar pods ask for capture.
    pub(crate) older: sidecars::SuspectRules,
    /// This agent's pod, where its DaemonSet decides that.
    pub(crate) own_pod: Option<OwnPod>,
    /// What is done about sidecar pods that run without capture.
    pub(crate) repair: sidecars::RepairOptions,
    /// What the environment says of sidecars' settings, for every pod of the node.
    pub(crate) sidecar_settings: NodeSettings,
    /// Which backend an ADD of this node takes for a sidecar.
    pub(crate) choice: Choice,
    /// Runtime classes that use the kernel's network stack (`KERNEL_NETWORK_RUNTIME_CLASSES`).
    pub(crate) kernel_network_runtime_classes: Vec<String>,
    /// Label of a pod that started without capture: key and value.
    pub(crate) broken_pod_label: (String, String),
    /// The node's procfs, as far as this process has it.
    pub(crate) proc_root: PathBuf,
    /// What is done about the node's taint, and its key.
    pub(crate) taint: (TaintMode, String),
    /// How pods are verified.
    pub(crate) verify: VerifyConfig,
    /// How often the node is checked.
    pub(crate) checks: CheckConfig,
    /// What is done about conflicts with rules of others.
    pub(crate) conflict_resolution: ConflictResolution,
    /// Conflicts in the node's namespace make the agent unready.
    pub(crate) conflicts_block_ready: bool,
    /// How NetworkPolicies are enforced; nothing where they are not.
    pub(crate) policy: Option<PolicyConfig>,
    /// Where it is written what policies deny; nothing where it is not, or where they are not enforced.
    pub(crate) audit: Option<AuditConfig>,
    /// Ambient mode, on or off.
    pub(crate) ambient: AmbientConfig,
    /// Where the node's files are.
    pub(crate) host_root: PathBuf,
    /// Files that follow a ConfigMap.
    pub(crate) config_dir: Option<PathBuf>,
}

/// Where pods come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodsOrigin {
    /// The API server.
    Kubernetes(cluster::Access),
    /// A directory.
    Manifests {
        /// Which.
        dir: PathBuf,
        /// The API server, where this agent runs in a cluster all the same: it knows the agent's DaemonSet.
        cluster: Option<cluster::Access>,
    },
}

/// When everything is removed at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CleanupAtEnd {
    /// Unless a new version of this agent is to follow.
    Auto,
    /// At every end.
    Always,
    /// At none.
    Never,
}

impl AgentConfig {
    /// Whose rules of ours stand beside those that capture: they are compared where policies are enforced, and removed where they are not.
    pub(crate) fn owners_beside(&self) -> Vec<Ruleset> {
        self.policy.iter().flat_map(|_| usage::owners()).collect()
    }

    /// # Errors
    /// The first option that means nothing.
    pub(crate) fn new(options: &Options, env: Lookup<'_>) -> Result<Self, BadOption> {
        let text = |setting| options.text(setting);
        let run_dir = absolute_dir(options, Setting::CniAgentRunDir, "cni-agent-run-dir")?;
        let service_account = PathBuf::from(text(Setting::ServiceAccountDir));
        let pods = pod_source(options, env, &service_account)?;
        let kubeconfig = match pods {
            PodsOrigin::Kubernetes(_) => Some(kubeconfig(options, env, service_account)?),
            PodsOrigin::Manifests { .. } => None,
        };
        let install = InstallOptions {
            net_dir: text(Setting::MountedCniNetDir).into(),
            conf_name: Some(text(Setting::CniConfName).to_owned()).filter(|name| !name.is_empty()),
            mode: mode(options, env),
            group_read: options.on(Setting::CniConfGroupRead),
            bin_source: text(Setting::CniBinSourceDir).into(),
            bin_targets: options.list(Setting::MountedCniBinDirs).into_iter().map(PathBuf::from).collect(),
            run_dir: run_dir.clone(),
            kubeconfig,
            entry: plugin_entry(options, env)?,
            program_at_end: program_at_end(options)?,
        };
        let (namespace, cleanup) =
            (namespace(options, Setting::PodNamespace, "pod-namespace")?, cleanup(options)?);
        let name = env("POD_NAME").filter(|name| is_dns_subdomain(name)).unwrap_or_default();
        // Beside manifests only an agent that is a pod itself has a DaemonSet.
        let has_server = match &pods {
            PodsOrigin::Kubernetes(_) => true,
            PodsOrigin::Manifests { cluster, .. } => cluster.is_some() && !name.is_empty(),
        };
        let decided_by_daemonset = cleanup == CleanupAtEnd::Auto && !namespace.is_empty() && has_server;
        let pod = OwnPod { namespace, name };
        let node = node_name(env)?;
        Ok(Self {
            install,
            pods,
            run_dir,
            state_dir: absolute_dir(options, Setting::StateDir, "state-dir")?,
            monitoring: address(options, Setting::MonitoringPort, "monitoring-port")?,
            health: address(options, Setting::HealthPort, "health-port")?,
            repair: repair(options, &node)?,
            node,
            own_pod: decided_by_daemonset.then(|| pod.clone()),
            pod,
            cleanup,
            older: older_rules(options, env)?,
            sidecar_settings: sidecar_settings(env)?,
            choice: native_nftables(options)?.map_or(Choice::Auto, |nftables| {
                Choice::Only(if nftables { Backend::Nftables } else { Backend::Iptables })
            }),
            kernel_network_runtime_classes: kernel_network_runtime_classes(options)?,
            broken_pod_label: broken_pod_label(options)?,
            proc_root: Path::new(text(Setting::HostRoot)).join("proc"),
            taint: values::taint(options)?,
            verify: VerifyConfig::new(options)?,
            checks: CheckConfig::new(options)?,
            conflict_resolution: ConflictResolution::new(options)?,
            conflicts_block_ready: conflicts::blocks_ready(options)?,
            audit: AuditConfig::new(options)?.filter(|_| options.text(Setting::PolicyEnforcement) == "on"),
            usage: values::usage(options)?,
            policy: PolicyConfig::new(options)?,
            ambient: AmbientConfig::new(options, scope(options, env)?)?,
            host_root: text(Setting::HostRoot).into(),
            config_dir: Some(text(Setting::ConfigDir)).filter(|dir| !dir.is_empty()).map(PathBuf::from),
        })
    }
}

/// The plugin's entry in the CNI configuration. What upstream does not have is written only where it is said, since an upstream plugin may
/// read it too.
///
/// # Errors
/// The first option that means nothing.
pub(crate) fn plugin_entry(options: &Options, env: Lookup<'_>) -> Result<PluginEntry, BadOption> {
    let mut extra = Map::new();
    for (setting, name, key) in [
        (Setting::FailurePolicy, "failure-policy", "failure_policy"),
        (Setting::Capture, "capture", "capture"),
        (Setting::AddTimeout, "add-timeout", "add_timeout"),
        (Setting::FactsTimeout, "facts-timeout", "facts_timeout"),
    ] {
        let value = options.text(setting);
        if !value.is_empty() {
            extra.insert(key.to_owned(), value.into());
            checked(name, value, &extra)?;
        }
    }
    let state_dir = options.text(Setting::StateDir);
    if state_dir != cni::config::STATE_DIR {
        extra.insert("state_dir".to_owned(), state_dir.into());
    }
    let classes = kernel_network_runtime_classes(options)?;
    if !classes.is_empty() {
        extra.insert("kernel_network_runtime_classes".to_owned(), classes.into());
    }
    if let Some(dir) = options.text(Setting::PodSource).strip_prefix("manifests:") {
        extra.insert(POD_SOURCE.to_owned(), serde_json::json!({ "manifests": dir }));
    }
    if let Some(prefix) = agent_pod_prefix(env) {
        extra.insert("agent_pod_prefix".to_owned(), prefix.into());
    }
    if options.text(Setting::PolicyEnforcement) == "on" {
        extra.insert("policy_enforcement".to_owned(), "on".into());
        let unprepared = options.text(Setting::PolicyUnprepared);
        extra.insert("policy_unprepared".to_owned(), unprepared.into());
        checked("policy-unprepared", unprepared, &extra)?;
    }
    if options.on(Setting::StrictStatus) {
        extra.insert("strict_status".to_owned(), true.into());
    }
    if options.on(Setting::RuntimeAnnotations) {
        extra.insert("capabilities".to_owned(), serde_json::json!({ ANNOTATIONS_CAPABILITY: true }));
    }
    Ok(PluginEntry {
        plugin_log_level: levels(options)?.of("cni-plugin").as_str().to_owned(),
        cni_agent_run_dir: options.text(Setting::CniAgentRunDir).into(),
        ambient_enabled: options.on(Setting::AmbientEnabled),
        enablement_selectors: selectors(options)?,
        exclude_namespaces: excluded_namespaces(options)?,
        pod_namespace: namespace(options, Setting::PodNamespace, "pod-namespace")?,
        native_nftables: native_nftables(options)?,
        enable_ambient_detection_retry: options.on(Setting::EnableAmbientDetectionRetry),
        extra,
    })
}

/// What the names of this agent's pods begin with, where that is not the usual: the plugin starts these without asking anybody. An agent on the
/// pod network would otherwise wait for itself after a reboot.
fn agent_pod_prefix(env: Lookup<'_>) -> Option<String> {
    // `alphanums` of apimachinery's `util/rand`, by which a DaemonSet names its pods.
    const RANDOM: &str = "bcdfghjklmnpqrstvwxz2456789";
    let name = env("POD_NAME").filter(|name| is_dns_subdomain(name))?;
    let (daemonset, random) = name.rsplit_once('-')?;
    let is_random = random.len() == 5 && random.chars().all(|c| RANDOM.contains(c));
    let prefix = format!("{daemonset}-");
    (is_random && prefix != capture::decide::AGENT_POD_PREFIX).then_some(prefix)
}

/// Which pods are left alone by their names, as the plugin sees it.
fn scope(options: &Options, env: Lookup<'_>) -> Result<capture::Exclusions, BadOption> {
    Ok(capture::Exclusions {
        agent_namespace: namespace(options, Setting::PodNamespace, "pod-namespace")?,
        agent_pod_prefix: agent_pod_prefix(env).unwrap_or_default(),
        excluded_namespaces: excluded_namespaces(options)?,
        // The plugin's entry says what the word may be.
        capture_disabled: options.text(Setting::Capture) == "disabled",
    })
}

fn older_rules(options: &Options, env: Lookup<'_>) -> Result<sidecars::SuspectRules, BadOption> {
    Ok(sidecars::SuspectRules {
        scope: scope(options, env)?,
        check: options.text(Setting::RepairInitContainerName).to_owned(),
    })
}

fn mode(options: &Options, env: Lookup<'_>) -> InstallMode {
    let owned = options.on(Setting::IstioOwnedCniConfig) && options.on(Setting::AmbientEnabled);
    if !options.on(Setting::ChainedCniPlugin) {
        InstallMode::Standalone
    } else if owned {
        let name = options.text(Setting::IstioOwnedCniConfigFilename).to_owned();
        // The original's chart sets a variable that the original does not read.
        let of_chart = || env("ISTIO_OWNED_CNI_CONF_FILENAME").filter(|name| !name.is_empty());
        let name = Some(name).filter(|name| !name.is_empty()).or_else(of_chart);
        InstallMode::Owned { file_name: name.unwrap_or_else(|| install::options::OWNED_NAME.to_owned()) }
    } else {
        InstallMode::Chained
    }
}

/// As Kubernetes' own clients do: a file that is named outright goes before the account of the pod.
fn access(env: Lookup<'_>, service_account: &Path) -> cluster::Access {
    let of = |name: &str| env(name).filter(|value| !value.is_empty());
    match of("KUBECONFIG") {
        Some(path) => cluster::Access::Kubeconfig(path.into()),
        None => {
            let host = of("KUBERNETES_SERVICE_HOST").unwrap_or_default();
            let port = of("KUBERNETES_SERVICE_PORT").unwrap_or_default();
            cluster::Access::in_cluster(&host, &port, service_account)
        }
    }
}

fn pod_source(options: &Options, env: Lookup<'_>, service_account: &Path) -> Result<PodsOrigin, BadOption> {
    const NAME: &str = "pod-source";
    let text = options.text(Setting::PodSource);
    let of = |name: &str| env(name).filter(|value| !value.is_empty());
    match text.split_once(':') {
        None if text == "kubernetes" || text.is_empty() => {
            Ok(PodsOrigin::Kubernetes(access(env, service_account)))
        }
        Some(("manifests", dir)) if Path::new(dir).is_absolute() => {
            let in_cluster = of("KUBECONFIG").or_else(|| of("KUBERNETES_SERVICE_HOST")).is_some();
            let cluster = in_cluster.then(|| access(env, service_account));
            Ok(PodsOrigin::Manifests { dir: dir.into(), cluster })
        }
        Some(("manifests", _)) => Err(BadOption::new(NAME, text, "does not name an absolute directory")),
        _ => Err(BadOption::new(NAME, text, "is neither kubernetes nor manifests:<directory>")),
    }
}

fn kubeconfig(
    options: &Options,
    env: Lookup<'_>,
    service_account_dir: PathBuf,
) -> Result<KubeconfigOptions, BadOption> {
    let mode = options.number(Setting::KubeconfigMode);
    let mode = u32::try_from(mode).ok().filter(|mode| (1..=0o777).contains(mode)).ok_or_else(|| {
        BadOption::new("kubeconfig-mode", options.text(Setting::KubeconfigMode), "is not a mode such as 0600")
    })?;
    let of = |name: &str| env(name).unwrap_or_default();
    Ok(KubeconfigOptions {
        protocol: Some(of("KUBERNETES_SERVICE_PROTOCOL"))
            .filter(|text| !text.is_empty())
            .unwrap_or("https".into()),
        host: of("KUBERNETES_SERVICE_HOST"),
        port: of("KUBERNETES_SERVICE_PORT"),
        ca_file: Some(PathBuf::from(options.text(Setting::KubeCaFile)))
            .filter(|file| !file.as_os_str().is_empty()),
        skip_tls_verify: options.on(Setting::SkipTlsVerify),
        service_account_dir,
        mode,
    })
}

/// As pods of the original have it, else as the machine calls itself.
fn node_name(env: Lookup<'_>) -> Result<String, BadOption> {
    for variable in ["NODE_NAME", "KUBERNETES_NODE_NAME"] {
        let Some(name) = env(variable).filter(|value| !value.is_empty()) else { continue };
        // No pod is on a node of another name, and an agent without pods seems to be well.
        let good = is_dns_subdomain(&name);
        return if good {
            Ok(name)
        } else {
            Err(BadOption::new(variable, &name, "is not the name of a node"))
        };
    }
    Ok(rustix::system::uname().nodename().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests;
