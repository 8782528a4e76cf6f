//! The configuration that a decision goes by: the one that is named, that of this node, or the chart's.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use capture::ambient::{NodeOptions, PROBE_V4, PROBE_V6, ProbeSender};
use capture::decide::{Enrolment, Exclusions};
use cni::PluginConf;
use cni::json::Value;
use podsource::AgentSource;
use rundir::{AmbientOptions, SOCKET_NAME};

use crate::chain::Conflist;
use crate::node::{NodePlaces, directory};

/// The plugin's `type` in a conflist.
const PLUGIN: &str = "istio-cni";
/// How long the agent may take; it answers from memory.
pub(crate) const AGENT_PATIENCE: Duration = Duration::from_secs(2);
/// Where the chart puts ztunnel and agent.
const SYSTEM_NAMESPACE: &str = "istio-system";
/// The plugin's entry as the chart makes it in ambient mode.
const CHART: &[u8] = br#"{"type": "istio-cni", "ambient_enabled": true, "pod_namespace": "istio-system", "exclude_namespaces": ["kube-system"],
  "enablement_selectors": [
    {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}},
    {"podSelector": {"matchExpressions": [{"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]}]},
     "namespaceSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}}]}"#;

#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ConfigurationArgs {
    /// Conflist with the plugin's entry [default: the one by which runtimes of this node call the plugin]
    #[arg(long, value_name = "CONFLIST")]
    conf: Option<PathBuf>,
    /// Directory in which that is looked for [default: /etc/cni/net.d, in the agent's container where it is mounted]
    #[arg(long, value_name = "DIR", value_parser = directory, conflicts_with = "conf")]
    net_dir: Option<PathBuf>,
    /// Directory of the node agent's socket and files: which pods there are, where they are, the options of ambient mode [default: what
    /// the conflist says]
    #[arg(long, value_name = "DIR", value_parser = directory)]
    run_dir: Option<PathBuf>,
}

/// What the node says of its pods.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) plugin: PluginConf,
    run_dir: PathBuf,
    /// Where it is from; `None` for one that the caller has named.
    source: Option<String>,
    is_real: bool,
    /// What the agent said when it was asked first.
    ambient: OnceLock<Option<AmbientOptions>>,
}

impl ConfigurationArgs {
    /// The conflist that is named.
    pub(crate) fn conf(&self) -> Option<&Path> {
        self.conf.as_deref()
    }

    /// The conflist that is named, or the one by which runtimes of this node call the plugin.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn chain_conf(&self) -> Result<PathBuf> {
        if let Some(path) = &self.conf {
            return Ok(path.clone());
        }
        let net_dir = self.places().net_dir;
        let found = of_node(&net_dir)?.map(|(_, path)| path);
        found.with_context(|| {
            format!("{} has no configuration with the plugin; see cnictl status", net_dir.display())
        })
    }

    /// The same with this conflist.
    pub(crate) fn with_conf(&self, conf: &Path) -> Self {
        Self { conf: Some(conf.to_owned()), net_dir: None, run_dir: self.run_dir.clone() }
    }

    /// The node's directories.
    pub(crate) fn places(&self) -> NodePlaces {
        NodePlaces::of_this_machine(self.net_dir.clone(), self.run_dir.clone())
    }

    /// # Errors
    /// The conflist that is named, or the plugin's entry in the node's, cannot be used.
    pub(crate) fn load(&self) -> Result<Configuration> {
        let places = self.places();
        let (plugin, source, is_real) = match &self.conf {
            Some(path) => (of_conflist(&Conflist::load(path)?)?, None, true),
            None => match of_node(&places.net_dir)? {
                Some((plugin, path)) => {
                    let source = format!("the configuration of this node, {} (--conf)", path.display());
                    (plugin, Some(source), true)
                }
                None => {
                    let entry = Value::parse(CHART).context("read the chart's options")?;
                    let source = format!(
                        "the chart's options with ambient mode, because {} has no configuration with the plugin (--conf)",
                        places.net_dir.display()
                    );
                    (PluginConf::decode(&entry)?, Some(source), false)
                }
            },
        };
        let run_dir = match &self.run_dir {
            None if is_real => plugin.cni_agent_run_dir.clone(),
            _ => places.run_dir,
        };
        Ok(Configuration { plugin, run_dir, source, is_real, ambient: OnceLock::new() })
    }
}

impl Configuration {
    /// What is taken for granted about it.
    pub(crate) fn assumed(&self) -> Option<String> {
        self.source.clone()
    }

    /// Whether it was named or found.
    pub(crate) fn is_real(&self) -> bool {
        self.is_real
    }

    /// Which pods are left alone by their names.
    pub(crate) fn scope(&self) -> Exclusions {
        self.plugin.scope()
    }

    /// Which pods are of ambient mode. ztunnel runs where the agent does, as in the chart.
    ///
    /// # Errors
    /// A selector means nothing.
    pub(crate) fn enrolment(&self) -> Result<Enrolment> {
        let namespace = Some(&*self.plugin.pod_namespace).filter(|namespace| !namespace.is_empty());
        let ztunnel_namespace = namespace.unwrap_or(SYSTEM_NAMESPACE).to_owned();
        Ok(Enrolment { ztunnel_namespace, ..self.plugin.enrolment()? })
    }

    /// The agent's options of ambient mode, where an agent answers and has the mode on.
    pub(crate) fn ask_agent(&self) -> Option<AmbientOptions> {
        let ask = || self.agent().status(AGENT_PATIENCE).ok()?.ambient;
        self.ambient.get_or_init(ask).clone()
    }

    /// The node agent, if it is there.
    pub(crate) fn agent(&self) -> AgentSource {
        AgentSource::new(&self.run_dir, env!("CARGO_PKG_VERSION"))
    }

    /// The directory of the agent's socket and files.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Where it was asked.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_NAME)
    }
}

/// What the rules of ambient mode depend on; without an agent's answer the chart's.
pub(crate) fn node_options(ambient: Option<&AmbientOptions>) -> (NodeOptions, ProbeSender) {
    let Some(options) = ambient else {
        let chart = NodeOptions { dns_capture: true, ipv6: true, probe_v4: PROBE_V4, probe_v6: PROBE_V6 };
        return (chart, ProbeSender::AnySocket);
    };
    let AmbientOptions { dns_capture, ipv6, probe_v4, probe_v6, .. } = *options;
    let sender = options.probe_uid.map_or(ProbeSender::AnySocket, ProbeSender::Uid);
    (NodeOptions { dns_capture, ipv6, probe_v4, probe_v6 }, sender)
}

/// The plugin's entry of the file by which runtimes of this node call it: the one that they use, or one of the standalone mode.
fn of_node(net_dir: &Path) -> Result<Option<(PluginConf, PathBuf)>> {
    let installed = install::inspect(net_dir, &[], Path::new("/nonexistent"));
    let active = installed.networks.into_iter().find(|network| network.is_valid);
    let chained = active.and_then(|network| Some((network.entry?, network.path)));
    let standalone = || installed.standalone.into_iter().next().map(|file| (file.entry, file.path));
    let Some((entry, path)) = chained.or_else(standalone) else { return Ok(None) };
    let place = || format!("plugin {PLUGIN} of {}", path.display());
    Ok(Some((PluginConf::decode(&entry).with_context(place)?, path)))
}

/// The plugin's own configuration in a chain.
fn of_conflist(conflist: &Conflist) -> Result<PluginConf> {
    let place = || format!("plugin {PLUGIN} of {}", conflist.path.display());
    let plugin = conflist
        .plugins
        .iter()
        .find(|plugin| plugin.kind == PLUGIN)
        .with_context(|| format!("{} has no plugin of type {PLUGIN}", conflist.path.display()))?;
    let text = serde_json::to_vec(&plugin.conf)?;
    let value = Value::parse(&text).with_context(place)?;
    PluginConf::decode(&value).with_context(place)
}
