//! The parts of an agent, each with what it needs of the others.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::{Cluster, Writer};
use enforcement::{DenialBook, PointChoice, Policies, PolicyParts, PolicyPoint, PolicyWatches};
use kernel::Choice;
use ruleset::Backend;
use telemetry::{Journal, Scope};
use tokio::sync::Notify;

use crate::ambient::{Ambient, AmbientParts, open_host};
use crate::backends::Backends;
use crate::config::{AgentConfig, PodsOrigin};
use crate::conflicts::{ConflictParts, Conflicts};
use crate::events::Events;
use crate::health::{Health, HealthPart};
use crate::kept_facts::KeptFacts;
use crate::policy::{
    AuditTrail, DenialParts, DenialReader, NarrowedAddresses, NodePoint, PodPointKeeper, PodPointParts,
    PodPolicyPoint, PolicyLeaver, PolicyTeller, PolicyTunnels, node_settings, started,
};
use crate::policy_file;
use crate::sidecars::{self, Sidecars};
use crate::slots::Slots;
use crate::verification::{PodVerifier, VerifierParts};
use metrics::Metrics;

/// How long policies wait until it is known which pods are in the mesh, where the node cannot be made ready for that.
const KNOWN_LIMIT: Duration = Duration::from_secs(10);

/// The namespace that the mesh's own installation takes.
const MESH: &str = "istio-system";

/// What several of them share.
pub(super) struct SharedParts<'a> {
    pub(super) config: &'a AgentConfig,
    pub(super) journal: &'a Journal,
    pub(super) health: &'a Arc<Health>,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) cluster: &'a Cluster,
    pub(super) writer: &'a Option<Writer>,
    pub(super) events: &'a Arc<Events>,
    pub(super) facts: &'a Arc<KeptFacts>,
    pub(super) slots: Arc<Slots>,
    /// Addresses whose connections policies may deny by now.
    pub(super) narrowed: Arc<NarrowedAddresses>,
}

impl SharedParts<'_> {
    pub(super) fn verifier(&self) -> Arc<PodVerifier> {
        let conflicts = ConflictParts {
            resolution: self.config.conflict_resolution,
            proc_root: self.config.proc_root.clone(),
            run_dir: self.config.run_dir.clone(),
            beside: self.config.owners_beside(),
            blocks_ready: self.config.conflicts_block_ready.then(|| self.health.clone()),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            log: self.journal.scope("conflicts"),
        };
        PodVerifier::new(VerifierParts {
            conflicts: Conflicts::new(conflicts),
            config: self.config.verify.clone(),
            proc_root: self.config.proc_root.clone(),
            probe: kernel::watch::probe,
            slots: self.slots.clone(),
            cluster: self.cluster.clone(),
            events: self.events.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            log: self.journal.scope("verification"),
        })
    }

    pub(super) fn ambient(&self, verifier: &Arc<PodVerifier>) -> Arc<Ambient> {
        let config = self.config;
        Ambient::new(AmbientParts {
            config: config.ambient.clone(),
            log: self.journal.scope("ambient"),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            cluster: self.cluster.clone(),
            manifests: matches!(config.pods, PodsOrigin::Manifests { .. }),
            writer: self.writer.clone(),
            events: self.events.clone(),
            slots: self.slots.clone(),
            backends: Arc::new(Backends::new(|| config.ambient.iptables(), &config.run_dir)),
            verifier: verifier.clone(),
            beside: self.config.owners_beside(),
            run_dir: config.run_dir.clone(),
            facts: self.facts.clone(),
        })
    }

    /// Nothing where policies are not enforced.
    pub(super) fn policies(
        &self,
        watches: PolicyWatches,
        mesh: &Arc<Ambient>,
    ) -> Option<(Policies, Arc<PodPointKeeper>)> {
        let policy = self.config.policy.clone()?;
        let (disturbed, log) = (Arc::new(Notify::new()), self.journal.scope("policy"));
        let (ambient, settings, of_node) = (self.config.ambient.clone(), node_settings(&policy), log.clone());
        let told = disturbed.clone();
        let node_point = move || -> Box<dyn PolicyPoint> {
            Box::new(NodePoint::new(ambient.clone(), settings, told.clone(), of_node.clone()))
        };
        let (ambient, told) = (self.config.ambient.clone(), disturbed.clone());
        let entry = move || {
            let ambient = ambient.clone();
            enforcement::EntryPoint::new(Box::new(move || open_host(&ambient)), told.clone())
        };
        let keeper = PodPointKeeper::new(PodPointParts {
            cluster: self.cluster.clone(),
            slots: self.slots.clone(),
            backends: Arc::new(Backends::new(|| self.config.ambient.iptables(), &self.config.run_dir)),
            choice: self.config.choice,
            most_elements: policy.pod_point_max,
            answer: settings.answer,
            kernel_network_runtime_classes: self.config.kernel_network_runtime_classes.clone(),
            started: started(self.config.run_dir.clone()),
            proc_root: self.config.proc_root.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            log: log.clone(),
        });
        let (pod_point, tunnelled, judges_tunnel) = (keeper.clone(), mesh.clone(), policy.judges_tunnel);
        let parts = PolicyParts {
            tunnels: Arc::new(move || match judges_tunnel {
                true => tunnelled.tunnelled(KNOWN_LIMIT),
                false => Some(Vec::new()),
            }),
            config: policy,
            node: self.config.node.clone(),
            manifests: matches!(self.config.pods, PodsOrigin::Manifests { .. }),
            cluster: self.cluster.clone(),
            started: started(self.config.run_dir.clone()),
            memory: policy_file::memory(&self.config.state_dir, &log),
            node_point: Box::new(node_point),
            pod_point: Box::new(move || Box::new(PodPolicyPoint::new(pod_point.clone()))),
            entry: Box::new(entry),
            disturbed,
            told: self.policy_teller(log.clone()).listener(),
            log,
        };
        let policies = Policies::new(parts, watches);
        self.tunnels(mesh, &policies, &keeper);
        Some((policies, keeper))
    }

    fn policy_teller(&self, log: Scope) -> PolicyTeller {
        PolicyTeller {
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            events: self.events.clone(),
            cluster: self.cluster.clone(),
            log,
            narrowed: self.narrowed(),
            written: Mutex::default(),
            remembered: Mutex::default(),
        }
    }

    /// Connections end only where rules of the node judge them.
    fn narrowed(&self) -> Option<Arc<NarrowedAddresses>> {
        let policy = self.config.policy.as_ref()?;
        (policy.cuts && policy.point != PointChoice::Pod).then(|| self.narrowed.clone())
    }

    /// What hears of denials, where policies are enforced.
    pub(super) fn denials(&self, policies: Option<&Policies>) -> Option<Arc<DenialReader>> {
        let policies = policies?.clone();
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = format!("{}-{}", std::process::id(), begun.as_micros());
        Some(DenialReader::new(DenialParts {
            policies,
            book: Arc::new(DenialBook::new(&self.config.node, run)),
            cluster: self.cluster.clone(),
            config: self.config.ambient.clone(),
            narrowed: self.narrowed(),
            audit: self.audit(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            log: self.journal.scope("policy"),
        }))
    }

    /// What writes the audit file, where one is asked for.
    fn audit(&self) -> Option<Arc<AuditTrail>> {
        let config = self.config.audit.clone()?;
        let log = self.journal.scope("policy");
        let started = AuditTrail::start(config, &self.config.node, self.metrics.clone(), log.clone());
        let tell = |error: &std::io::Error| {
            log.error("the audit file is not written: there is no thread for it", &[("error", error)]);
        };
        started.inspect_err(tell).ok()
    }

    pub(super) fn leaver(&self) -> Arc<PolicyLeaver> {
        let config = self.config;
        Arc::new(PolicyLeaver {
            cluster: self.cluster.clone(),
            facts: self.facts.clone(),
            slots: self.slots.clone(),
            backends: Arc::new(Backends::new(|| config.ambient.iptables(), &config.run_dir)),
            config: config.ambient.clone(),
            kernel_network_runtime_classes: config.kernel_network_runtime_classes.clone(),
            run_dir: config.run_dir.clone(),
            state_dir: config.state_dir.clone(),
            health: self.health.clone(),
            enforces: config.policy.is_some(),
            has_begun: AtomicBool::new(false),
            log: self.journal.scope("policy"),
        })
    }

    /// Joins policies and ambient mode, where what is inside tunnels is judged.
    fn tunnels(&self, mesh: &Arc<Ambient>, policies: &Policies, keeper: &Arc<PodPointKeeper>) {
        let judges = self.config.policy.as_ref().is_some_and(|policy| policy.judges_tunnel);
        if !judges || self.config.ambient.is_off {
            return;
        }
        let told = policies.clone();
        keeper.on_tunnel_loaded(move |pod| told.tunnel_loaded(pod));
        let log = self.journal.scope("policy");
        mesh.judge_tunnels(PolicyTunnels { policies: policies.clone(), keeper: keeper.clone(), log });
    }

    pub(super) fn sidecars(
        &self,
        ambient: &Arc<Ambient>,
        verifier: &Arc<PodVerifier>,
        log: &Scope,
    ) -> Arc<Sidecars> {
        let config = self.config;
        Sidecars::new(sidecars::Parts {
            run_dir: config.run_dir.clone(),
            rules: config.older.clone(),
            repair: config.repair.clone(),
            live_updates: config.ambient.live_updates,
            drain_timeout: config.ambient.drain_timeout,
            node: config.sidecar_settings.clone(),
            choice: config.choice,
            kernel_network_runtime_classes: config.kernel_network_runtime_classes.clone(),
            proc_root: config.proc_root.clone(),
            label: config.broken_pod_label.clone(),
            cluster: self.cluster.clone(),
            writer: self.writer.clone(),
            ambient: ambient.clone(),
            health: self.health.clone(),
            metrics: self.metrics.clone(),
            events: self.events.clone(),
            slots: self.slots.clone(),
            verifier: verifier.clone(),
            log: log.clone(),
        })
    }
}

/// Where the mesh's control plane may be: by its own name, or beside this agent.
pub(super) fn mesh_namespaces(own: &str) -> Vec<Box<str>> {
    let mut all: Vec<Box<str>> =
        [MESH, own].into_iter().filter(|name| !name.is_empty()).map(Into::into).collect();
    all.dedup();
    all
}

/// What readiness waits for.
fn health_parts(config: &AgentConfig) -> Vec<HealthPart> {
    let mut parts = vec![
        HealthPart::NodeLock,
        HealthPart::Node,
        HealthPart::Install,
        HealthPart::Cluster,
        HealthPart::PluginSocket,
        HealthPart::LogSocket,
        HealthPart::Backend,
    ];
    parts.extend(config.config_dir.as_ref().map(|_| HealthPart::Configuration));
    if !config.ambient.is_off {
        parts.extend([HealthPart::Ambient, HealthPart::EventSocket]);
    }
    if config.conflicts_block_ready {
        parts.push(HealthPart::Conflicts);
    }
    parts.extend(config.policy.as_ref().map(|_| HealthPart::Policies));
    parts
}

/// How ready the agent is at first.
pub(super) fn health(config: &AgentConfig) -> Health {
    let health = Health::of(&health_parts(config));
    health.ready(HealthPart::Configuration);
    if config.conflicts_block_ready {
        // Until one is found.
        health.ready(HealthPart::Conflicts);
    }
    health
}

/// What runs here, for those who compare nodes.
pub(super) fn tell_build(config: &AgentConfig, metrics: &Metrics) {
    let backend = match config.choice {
        Choice::Auto => "auto",
        Choice::Only(Backend::Nftables) => "nftables",
        Choice::Only(Backend::Iptables) => "iptables",
    };
    let mode = if config.ambient.is_off { "sidecar" } else { "ambient" };
    let commit = option_env!("ISTIO_CNI_COMMIT").unwrap_or("unknown");
    metrics.build_info(env!("CARGO_PKG_VERSION"), commit, backend, mode);
}
