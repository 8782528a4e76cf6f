//! The agent's life, stage by stage.

mod ending;
mod following;
mod parts;
mod process;
mod sockets;
mod source;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use cluster::{Cluster, Outlook, Source, Wanted, Writer};
use enforcement::{Policies, PolicyWatches};
use install::{Installer, OptionsError};
use telemetry::{Journal, Scope};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::ambient::Ambient;
use crate::config::{AgentConfig, BadOption};
use crate::events::Events;
use crate::health::Health;
use crate::kept_facts::KeptFacts;
use crate::node_lock::NodeLock;
use crate::policy::{DenialReader, PodPointKeeper, PolicyLeaver};
use crate::shutdown::ShutdownOutcome;
use crate::sidecars::Sidecars;
use crate::taint::NodeTaint;
use crate::verification::PodVerifier;
use crate::{config_dir, observe, own_node, ports, shutdown};
pub(crate) use ending::ProcessEnd;
use metrics::Metrics;
use options::agent::{Flags, Options, without_newlines};
use parts::SharedParts;

/// How long to wait before another try for a socket.
const RETRY: Duration = Duration::from_secs(2);
/// How long an end waits for answers to those who have asked, in any case.
const LAST_ANSWERS: Duration = Duration::from_millis(1500);
/// Tasks wait most of the time; two threads keep questions of plugins flowing while a long list is read.
const THREADS: usize = 2;
/// Work in the node's network namespace and on files, which is short. What is done in pods' namespaces has threads of its own.
const BLOCKING_THREADS: usize = 4;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}; correct the DaemonSet's arguments or the ConfigMap istio-cni-config")]
    Option(#[from] BadOption),
    #[error("{0}; correct the DaemonSet's arguments or the ConfigMap istio-cni-config")]
    Install(#[from] OptionsError),
    #[error("{0}; correct the ConfigMap istio-cni-config")]
    ConfigDir(#[from] config_dir::Unreadable),
    #[error("make the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("open {path} for the log: {cause}")]
    Log { path: String, cause: std::io::Error },
    #[error("the installer has panicked; nothing is cleaned up; this is a defect, please report it")]
    Installer,
    #[error("start over: {0}; kubelet starts the container again")]
    StartOver(#[from] shutdown::NotStarted),
    #[error("start the runtime: {0}; the node is out of processes, memory or descriptors")]
    Runtime(std::io::Error),
}

/// Everything that the stages share.
pub(crate) struct Agent {
    pub(crate) config: AgentConfig,
    pub(crate) log: Scope,
    pub(crate) health: Arc<Health>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) cluster: Cluster,
    /// Absent where pods are manifests.
    pub(crate) writer: Option<Writer>,
    /// Asks about this agent's DaemonSet; absent where that decides nothing.
    pub(crate) own_set: Option<Writer>,
    pub(crate) events: Arc<Events>,
    /// Facts of pods on disk, and which start of the machine they are of.
    pub(crate) kept_facts: Arc<KeptFacts>,
    pub(crate) missing_ports: ports::Missing,
    /// In sidecar mode it only lets go of what it has left on the node.
    pub(crate) ambient: Arc<Ambient>,
    /// Looks whether the kernel has what it should.
    pub(crate) verifier: Arc<PodVerifier>,
    /// Those of sidecar mode that started without capture.
    pub(crate) sidecars: Arc<Sidecars>,
    /// Absent where NetworkPolicies are not enforced.
    pub(crate) policies: Option<Policies>,
    pub(crate) pod_point: Option<Arc<PodPointKeeper>>,
    pub(crate) denials: Option<Arc<DenialReader>>,
    /// Removes what enforces policies where they are not enforced any more.
    pub(crate) leaver: Arc<PolicyLeaver>,
    /// The node's taint.
    pub(crate) taint: NodeTaint,
    /// What becomes of this agent, by what was seen last.
    pub(crate) outlook: watch::Sender<Option<Outlook>>,
    /// Whether this agent ends and answers only who has asked already.
    ends: watch::Sender<bool>,
    journal: Journal,
    options: config_dir::OptionsReader,
    options_at_start: Options,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(flags: Flags) -> ExitCode {
    let lived = Agent::new(flags).and_then(|(agent, source)| {
        process::log_panics(&agent.log);
        let journal = agent.journal.clone();
        let lived = agent.live(source);
        journal.finish(process::LAST_LINES);
        lived
    });
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::last_words(format!("install-cni: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| without_newlines(value.to_string_lossy().into_owned()))
}

fn tell_start(log: &Scope, options: &Options, node: &str) {
    for (name, value) in options.iter() {
        log.debug("option", &[("name", &name), ("value", &value)]);
    }
    log.info("install-cni starts", &[("version", &env!("CARGO_PKG_VERSION")), ("node", &node)]);
}

impl Agent {
    fn new(flags: Flags) -> Result<(Self, Source), Error> {
        let mut reader = config_dir::OptionsReader::new(flags);
        let options = reader.read(&variable)?;
        let journal = process::journal(&options)?;
        let log = journal.scope("cni-agent");
        process::raise_open_files(&log);
        let config = AgentConfig::new(&options, &variable)?;
        tell_start(&log, &options, &config.node);
        let health = Arc::new(parts::health(&config));
        let metrics = Arc::new(Metrics::new(!config.ambient.is_off, journal.clone())?);
        parts::tell_build(&config, &metrics);
        let (source, writer, own_set) = source::source(&config, &log);
        let mut wanted = Wanted::default();
        let watches = config.policy.as_ref().map(|policy| {
            PolicyWatches::new(&mut wanted, policy, parts::mesh_namespaces(&config.pod.namespace))
        });
        let cluster = Cluster::wanting(wanted);
        let kept_facts = Arc::new(KeptFacts::new(&config, cluster.clone(), log.clone()));
        let events = Arc::new(Events::new(writer.clone(), config.pod.clone(), log.clone()));
        let shared = SharedParts {
            config: &config,
            journal: &journal,
            health: &health,
            metrics: &metrics,
            cluster: &cluster,
            writer: &writer,
            events: &events,
            facts: &kept_facts,
            slots: Arc::default(),
            narrowed: Arc::default(),
        };
        let (verifier, leaver) = (shared.verifier(), shared.leaver());
        let ambient = shared.ambient(&verifier);
        let sidecars = shared.sidecars(&ambient, &verifier, &log);
        let (policies, pod_point) = watches.and_then(|watches| shared.policies(watches, &ambient)).unzip();
        let denials = shared.denials(policies.as_ref());
        verifier.verify(vec![ambient.clone(), sidecars.clone()]);
        verifier.answer_metrics()?;
        let agent = Self {
            taint: NodeTaint::new(&config.taint),
            config,
            log,
            health,
            metrics,
            cluster,
            writer,
            own_set,
            events,
            kept_facts,
            missing_ports: ports::Missing::default(),
            ambient,
            verifier,
            sidecars,
            policies,
            pod_point,
            denials,
            leaver,
            outlook: watch::Sender::default(),
            ends: watch::Sender::default(),
            journal,
            options: reader,
            options_at_start: options,
        };
        Ok((agent, source))
    }

    fn live(self, source: Source) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_all()
            .build()
            .map_err(Error::Runtime)?;
        let agent = Arc::new(self);
        runtime.block_on(async {
            let mut end = ProcessEnd::new().map_err(Error::Runtime)?;
            let mut tasks = JoinSet::new();
            agent.serve_ports(&mut tasks);
            let Some(lock) = agent.take_node(&mut end).await else { return Ok(()) };
            tasks.spawn(own_node::look(agent.clone()));
            let mut sockets = JoinSet::new();
            agent.serve_sockets(&mut tasks, &mut sockets)?;
            agent.begin_boot();
            tasks.spawn(observe::cluster(agent.clone(), source, agent.kept_facts.keep()));
            tasks.spawn(agent.clone().remember_facts());
            tasks.spawn(NodeTaint::live(agent.clone()));
            tasks.spawn(agent.sidecars.clone().live());
            tasks.spawn(agent.verifier.clone().live());
            tasks.spawn(crate::periodic::live(agent.clone()));
            tasks.spawn(agent.verifier.tell_conflicts());
            let enforces = agent.enforce_policies(&mut tasks);
            let ambient = tokio::spawn(agent.ambient.clone().live());
            let outcome = agent.install_until_told(&mut end, &lock).await;
            if let Ok((ShutdownOutcome::Deleted, installer)) = outcome {
                agent.sidecars.plugin_goes();
                agent.taint.end(&agent).await;
                enforces.iter().for_each(AbortHandle::abort);
                agent.leaver.leave_all().await;
                agent.clean_up_and_wait(installer, ambient, &mut end, [tasks, sockets]).await?;
                lock.remove();
                return Ok(());
            }
            // Sockets go first, unless another agent has put its own there already. Who has asked is answered by tasks that work still.
            agent.ends.send_replace(true);
            while sockets.join_next().await.is_some() {}
            tasks.shutdown().await;
            agent.end_audit().await;
            let (outcome, installer) = outcome?;
            if outcome == ShutdownOutcome::Leave {
                return installer.join().map(drop).map_err(|_| Error::Installer);
            }
            agent.taint.end(&agent).await;
            agent.leaver.leave_all().await;
            agent.take_plugin_off(installer).await?;
            agent.leaver.finish().await;
            agent.ambient.clone().clean_up(ambient).await;
            lock.remove();
            Ok(())
        })
    }

    /// Notes which start of the machine this is, and says so where the machine has started again.
    fn begin_boot(&self) {
        let boot = &self.kept_facts.boot;
        if boot.has_rebooted() {
            let text = "the machine has started again since an agent ran last: every pod is looked at anew";
            self.log.info(text, &[("reboots", &boot.reboots())]);
        }
        self.metrics.reboots(boot.reboots());
        if let Err(error) = boot.begin() {
            let text = "the state directory cannot be written, so facts of pods do not outlive a restart of the machine; mount it for the agent, or \
                        set STATE_DIR";
            let dir = self.config.state_dir.display();
            self.log.warn(text, &[("path", &dir), ("error", &error)]);
        }
    }

    /// What an earlier agent knew counts while the API server is away. In ambient mode the take-over of its pods begins with that.
    async fn remember_facts(self: Arc<Self>) {
        if self.config.ambient.is_off && !self.kept_facts.are_listed_in_time().await {
            self.kept_facts.remember().await;
            self.sidecars.all_changed();
        }
    }

    /// Installs on a thread of its own until a signal comes or the DaemonSet is deleted. The thread is about to end then.
    async fn install_until_told(
        self: &Arc<Self>,
        end: &mut ProcessEnd,
        lock: &NodeLock,
    ) -> Result<(ShutdownOutcome, JoinHandle<Installer>), Error> {
        let mut installer =
            Installer::new(self.config.install.clone(), Box::new(observe::Installation::new(self.clone())))?;
        let handle = installer.handle();
        self.follow_options(handle.clone());
        let thread = std::thread::Builder::new().name("installer".into()).spawn(move || {
            installer.run();
            installer
        });
        let thread = thread.map_err(Error::Runtime)?;
        let outcome = tokio::select! {
            signal = end.told() => {
                self.log.info("ending", &[("signal", &signal)]);
                shutdown::outcome(self, lock).await
            }
            () = shutdown::is_deleted(self, lock) => ShutdownOutcome::Deleted,
        };
        handle.stop();
        Ok((outcome, thread))
    }
}

#[cfg(test)]
mod tests;
