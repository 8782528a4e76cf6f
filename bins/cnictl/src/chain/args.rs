//! The command lines of the verbs, and what each does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cni::SpecVersion;
use netns::Netns;
use serde_json::Value;

use super::attachment::{PodAttachment, check_netns, netns_path, raise_loopback};
use super::cache::{Cache, CacheEntry};
use super::conflist::Conflist;
use super::report::ChainReport;
use super::run::{ChainJournal, PluginChain};
use crate::look::Looked;
use crate::output::{Format, Usage, VerbAnswer, columns, printable, structured};
use crate::pod::{self, DescribedPod};
use crate::subject::DecisionArgs;

const ADD_EXAMPLES: &str = "\
Examples:
  # With the time and the peak memory of each plugin
  cnictl add --conf 10-net.conflist --pod web.yaml --netns web --stats

  # From other directories, the result as JSON
  cnictl add --conf 10-net.conflist --pod web.yaml --netns /proc/4711/ns/net --cni-path ./bin:/usr/lib/cni -o json

A plugin that fails makes the chain's DEL run, as runtimes do. Exit codes: 0 done, 1 failed, 2 wrong command line";

const CHECK_EXAMPLES: &str = "\
Examples:
  # Is what kubelet's pod has in the kernel what it should have, by the configuration of this node?
  kubectl get pod web -n shop -o yaml | cnictl check --pod - --netns /proc/4711/ns/net

  # In ambient mode the labels of the pod's namespace decide, too
  kubectl get namespace,pod -n shop -o yaml | cnictl check --pod - --pod-name web --netns /proc/4711/ns/net

  # The chain's CHECK of a pod that cnictl add has attached
  cnictl check --conf 10-net.conflist --pod web.yaml

Exit codes: 0 as decided, 1 not, or failed, 2 wrong command line";

/// What every verb that runs plugins needs.
#[derive(Debug, clap::Args)]
pub(super) struct ChainArgs {
    /// Network configuration list, or a configuration of a single plugin
    #[arg(long, value_name = "CONFLIST")]
    conf: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

/// How plugins are run and what is told about it.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Directories with the plugins, separated by colons
    #[arg(long, value_name = "DIRS", env = "CNI_PATH", default_value = "/opt/cni/bin")]
    cni_path: String,
    /// How long one plugin may take, in seconds; the default is how long kubelet waits for a runtime
    #[arg(long, value_name = "SECONDS", default_value = "240", value_parser = seconds)]
    timeout: Duration,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Show time and peak memory of each plugin in the table (as -o wide)
    #[arg(long)]
    pub(crate) stats: bool,
    /// Show what the plugins write to standard error
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Which pod, and which of its interfaces.
#[derive(Debug, clap::Args)]
pub(super) struct PodArgs {
    /// Kubernetes manifest of the pod (YAML or JSON); - for standard input
    #[arg(long, value_name = "MANIFEST")]
    pod: PathBuf,
    /// Which pod, where the manifest has several
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pod_name: Option<String>,
    /// Name of the sandbox [default: cnictl-NAMESPACE-NAME]
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    ifname: String,
    /// Where results are kept for check and del [default: cnictl/results below XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

/// Attach a pod to a network: run the chain's ADD
#[derive(Debug, clap::Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    pod: PodArgs,
    /// Network namespace: a path, or a name as in `ip netns`
    #[arg(long, value_name = "PATH")]
    netns: String,
    /// Run although an earlier ADD of the same attachment was not followed by a DEL; a failure is not undone then
    #[arg(long)]
    force: bool,
    /// Leave what a failing ADD has done, instead of running the chain's DEL
    #[arg(long)]
    keep_failed: bool,
}

/// Check a pod: what is in the kernel for it, against what is decided about it; with --conf, run the chain's CHECK before
///
/// Without --conf the pod may be of any runtime. Its rules are compared with those of today's manifest and options. Of a pod of ambient mode that
/// is also done with the node's rules and the node's sets of probe addresses. With --conf the pod is one that `cnictl add` has attached.
#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    pod: PodArgs,
    /// Network namespace: a path, or a name as in `ip netns`; with --conf only if it is not the one of the ADD
    #[arg(long, value_name = "PATH", required_unless_present = "conf")]
    netns: Option<String>,
    #[command(flatten)]
    decision: DecisionArgs,
}

/// Detach a pod: run the chain's DEL in reverse order, with the result of the ADD
#[derive(Debug, clap::Args)]
pub(crate) struct DelArgs {
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    pod: PodArgs,
    /// Network namespace, if it is not the one of the ADD; it may be gone
    #[arg(long, value_name = "PATH")]
    netns: Option<String>,
}

/// Let every plugin remove what belongs to no attachment (CNI 1.1)
///
/// Plugins release the addresses of all attachments of the network that are not named, also those of the container runtime.
#[derive(Debug, clap::Args)]
pub(crate) struct GcArgs {
    #[command(flatten)]
    chain: ChainArgs,
    /// An attachment that stays (repeat)
    #[arg(long = "valid", value_name = "CONTAINERID/IFNAME", required_unless_present = "none_valid", value_parser = attachment)]
    valid: Vec<(String, String)>,
    /// No attachment stays
    #[arg(long, conflicts_with = "valid")]
    none_valid: bool,
}

/// Print the version of this program and, with --conf, what the plugins of a chain support
#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// Network configuration list
    #[arg(long, value_name = "CONFLIST")]
    conf: Option<PathBuf>,
    /// Print the number only
    #[arg(short, long, conflicts_with_all = ["conf", "output"])]
    short: bool,
    /// Directories with the plugins, separated by colons
    #[arg(long, value_name = "DIRS", env = "CNI_PATH", default_value = "/opt/cni/bin")]
    cni_path: String,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// A time on the command line.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| "not a number of seconds above 0".to_owned())
}

fn attachment(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((id, ifname)) if !id.is_empty() && !ifname.is_empty() => Ok((id.to_owned(), ifname.to_owned())),
        _ => Err("write CONTAINERID/IFNAME, such as 4711/eth0".to_owned()),
    }
}

impl ChainArgs {
    fn load(&self) -> Result<PluginChain> {
        self.run.load(&self.conf)
    }

    fn answer(&self, report: &ChainReport) -> Result<VerbAnswer> {
        self.run.answer(report)
    }
}

impl RunArgs {
    pub(super) fn load(&self, conf: &Path) -> Result<PluginChain> {
        PluginChain::new(Conflist::load(conf)?, &self.cni_path, self.timeout)
    }

    /// Asks every plugin whether it could serve an ADD (CNI 1.1).
    pub(crate) fn status(&self, conf: &Path) -> Result<VerbAnswer> {
        let chain = self.load(conf)?;
        needs_1_1(&chain.conflist, "STATUS")?;
        self.answer(&ChainReport::new(&chain.conflist.name, None, chain.status()))
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The command line by which another process runs plugins in the same way.
    pub(super) fn same(&self) -> [String; 4] {
        let seconds = self.timeout.as_secs_f64().to_string();
        ["--cni-path".to_owned(), self.cni_path.clone(), "--timeout".to_owned(), seconds]
    }

    /// As [`Self::answer`], always with time and memory.
    pub(super) fn answer_timed(&self, report: &ChainReport) -> Result<VerbAnswer> {
        if self.verbose {
            eprint!("{}", printable(&report.logs()));
        }
        report.answer(self.output, true)
    }

    fn answer(&self, report: &ChainReport) -> Result<VerbAnswer> {
        if self.verbose {
            eprint!("{}", printable(&report.logs()));
        }
        report.answer(self.output, self.stats)
    }
}

impl PodArgs {
    fn load(&self) -> Result<(PodAttachment, Cache)> {
        let (_, attachment, cache) = self.load_described()?;
        Ok((attachment, cache))
    }

    fn load_described(&self) -> Result<(DescribedPod, PodAttachment, Cache)> {
        let described = self.described()?;
        let attachment = PodAttachment::new(&described.pod, self.container_id.as_deref(), &self.ifname)?;
        Ok((described, attachment, Cache::new(self.cache_dir.as_deref())?))
    }

    fn described(&self) -> Result<DescribedPod> {
        pod::load(&self.pod, self.pod_name.as_deref())
    }
}

impl AddArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let chain = self.chain.load()?;
        let (mut attachment, cache) = self.pod.load()?;
        let network = chain.conflist.name.clone();
        let netns = netns_path(&self.netns);
        check_netns(&netns)?;
        attachment.netns = netns.display().to_string();
        if !self.force && cache.load(&network, &attachment)?.is_some() {
            bail!(
                "container {} already has {} in network {network}: run cnictl del first, or add with --force",
                attachment.container_id,
                attachment.ifname
            );
        }
        raise_loopback(&netns)?;
        let journal = chain.add(&attachment);
        let Some(result) = &journal.result else {
            let report = ChainReport::new(&network, Some(&attachment), journal);
            // After --force, a DEL would take down what the earlier ADD made.
            let keep = self.keep_failed || self.force;
            let report = if keep { report } else { report.with_rollback(chain.del(&attachment, None)) };
            return self.chain.answer(&report);
        };
        let entry = CacheEntry {
            network: network.clone(),
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            netns: attachment.netns.clone(),
            result: result.clone(),
        };
        if let Err(error) = cache.store(&entry, &attachment) {
            // Without it no later CHECK or DEL would know what was done.
            let undone = chain.del(&attachment, Some(result)).problem();
            let undone = undone.unwrap_or_else(|| "the attachment was removed again".to_owned());
            return Err(error.context(undone));
        }
        self.chain.answer(&ChainReport::new(&network, Some(&attachment), journal))
    }
}

/// The attachment as it was made, where something is known about that.
fn made(attachment: &mut PodAttachment, entry: Option<&CacheEntry>, netns: Option<&str>) {
    attachment.netns = match (netns, entry) {
        (Some(netns), _) => netns_path(netns).display().to_string(),
        (None, Some(entry)) => entry.netns.clone(),
        (None, None) => String::new(),
    };
}

impl CheckArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let Some(conf) = self.decision.conf() else { return self.look_only() };
        let chain = self.run.load(conf)?;
        let (described, mut attachment, cache) = self.pod.load_described()?;
        let network = &chain.conflist.name;
        if chain.conflist.version < SpecVersion::V0_4_0 {
            bail!("cniVersion {} of network {network} has no CHECK; 0.4.0 has", chain.conflist.version);
        }
        let entry = cache.load(network, &attachment)?;
        made(&mut attachment, entry.as_ref(), self.netns.as_deref());
        if chain.conflist.disable_check {
            let report = ChainReport::new(network, Some(&attachment), ChainJournal::default());
            return self.run.answer(&report.with_note("disableCheck is set, nothing was checked"));
        }
        let entry = entry.with_context(|| {
            format!(
                "container {} has no {} in network {network} that was made here: run cnictl add first, with the same --cache-dir",
                attachment.container_id, attachment.ifname
            )
        })?;
        let journal = chain.check(&attachment, &entry.result);
        let mut report = ChainReport::new(network, Some(&attachment), journal);
        // A chain without the plugin captures nothing.
        if chain.conflist.plugins.iter().any(|plugin| plugin.kind == install::PLUGIN) {
            let netns = Netns::open(&attachment.netns).context("use the namespace of the pod")?;
            report = report.with_look(Looked::look(&self.decision.load()?, described, &netns)?);
        }
        self.run.answer(&report)
    }

    fn look_only(&self) -> Result<VerbAnswer> {
        if self.run.stats || self.run.verbose {
            return Err(Usage("--stats and --verbose are about plugins: give their --conf".to_owned()).into());
        }
        let netns = netns_path(self.netns.as_deref().unwrap_or_default());
        check_netns(&netns)?;
        let netns = Netns::open(&netns).context("use the namespace of --netns")?;
        let looked = Looked::look(&self.decision.load()?, self.pod.described()?, &netns)?;
        let text = match self.run.output {
            Format::Json | Format::Yaml => structured(self.run.output, &looked)?,
            Format::Table | Format::Wide => looked.table(),
        };
        Ok(looked
            .problem()
            .map_or_else(|| VerbAnswer::text(text.clone()), |p| VerbAnswer::failed(text.clone(), p)))
    }
}

impl DelArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let chain = self.chain.load()?;
        let (mut attachment, cache) = self.pod.load()?;
        let network = &chain.conflist.name;
        let entry = cache.load(network, &attachment)?;
        made(&mut attachment, entry.as_ref(), self.netns.as_deref());
        let result: Option<&Value> = entry.as_ref().map(|entry| &entry.result);
        let journal = chain.del(&attachment, result);
        let report = ChainReport::new(network, Some(&attachment), journal);
        let answer = self.chain.answer(&report)?;
        if answer.exit == 0 {
            cache.remove(network, &attachment)?;
        }
        Ok(answer)
    }
}

/// CNI before 1.1 has neither STATUS nor GC.
fn needs_1_1(conflist: &Conflist, verb: &str) -> Result<()> {
    if conflist.version < SpecVersion::V1_1_0 {
        bail!("cniVersion {} of network {} has no {verb}; 1.1.0 has", conflist.version, conflist.name);
    }
    Ok(())
}

impl GcArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let chain = self.chain.load()?;
        needs_1_1(&chain.conflist, "GC")?;
        if chain.conflist.disable_gc {
            let report = ChainReport::new(&chain.conflist.name, None, ChainJournal::default());
            return self.chain.answer(&report.with_note("disableGC is set, nothing was removed"));
        }
        self.chain.answer(&ChainReport::new(&chain.conflist.name, None, chain.gc(&self.valid)))
    }
}

impl VersionArgs {
    pub(crate) fn run(&self) -> Result<VerbAnswer> {
        let own = env!("CARGO_PKG_VERSION");
        if self.short {
            return Ok(VerbAnswer::text(format!("{own}\n")));
        }
        let chain = match &self.conf {
            Some(conf) => {
                Some(PluginChain::new(Conflist::load(conf)?, &self.cni_path, Duration::from_secs(10))?)
            }
            None => None,
        };
        let plugins = chain.map(|chain| chain.versions()).unwrap_or_default();
        let problem = plugins.iter().find_map(|(run, _)| run.problem());
        let text = match self.output {
            Format::Json | Format::Yaml => {
                let list = |(run, versions): &(super::run::PluginRun, Vec<String>)| serde_json::json!({"plugin": run.plugin, "path": run.path, "supported_versions": versions});
                let plugins: Vec<Value> = plugins.iter().map(list).collect();
                structured(self.output, &serde_json::json!({"cnictl": own, "plugins": plugins}))?
            }
            Format::Table | Format::Wide => {
                let rows = plugins.iter().map(|(run, versions)| vec![run.plugin.clone(), versions.join(" ")]);
                format!("cnictl {own}\n{}", columns(&rows.collect::<Vec<_>>()))
            }
        };
        Ok(match problem {
            None => VerbAnswer::text(text),
            Some(problem) => VerbAnswer::failed(text, problem),
        })
    }
}
