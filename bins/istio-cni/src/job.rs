//! One pod's way: facts → decision → plan → apply, or compare.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use applied::sandbox::Sandbox;
use capture::annotations::{EnvironmentError, NodeSettings};
use capture::decide::{CaptureMode, refuse};
use capture::{Decision, Need, PlanInputs, PlanTarget, Pod, Reason, Settings, Skip};
use cni::{CniResult, PluginConf, Request};
use facts::PodRef;
use kernel::{Applied, Change, Choice, Difference, Kernel, route};
use netns::{Inside, Netns, NetnsId};
use ruleset::{Backend, Plan};
use telemetry::Logger;

use crate::failure::OperationFailure;
use crate::handover::Announcement;
use crate::plugin::SharedBackends;
use crate::policies::PodPolicies;
use crate::progress::{EndedPhase, Progress};
use crate::sources::{FoundPod, Sources, run_dir};
use crate::{check, groups, plugin};

/// How long a call may take in all that an agent is to end which seems to have been removed: the pod is decided upon within 2 s.
const ABANDONED: Duration = Duration::from_millis(1600);

/// A call for one pod. It owns what it works with, because the thread that works is left behind when the time is over.
pub(crate) struct Job {
    pub(crate) netns: Option<String>,
    pub(crate) conf: PluginConf,
    pub(crate) log: Logger,
    pub(crate) backends: Arc<SharedBackends>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) id: PodRef,
    /// What the plugins before this one made.
    pub(crate) result: CniResult,
    /// CNI_CONTAINERID.
    pub(crate) container: String,
    /// CNI_IFNAME.
    pub(crate) ifname: String,
    pub(crate) policies: PodPolicies,
}

/// What came of an ADD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// The pod's traffic goes through its proxy.
    Captured,
    /// The pod is not captured.
    Skipped,
}

/// A pod that is to be captured.
pub(crate) struct Target {
    netns: Netns,
    way: Way,
}

/// How it is captured.
enum Way {
    /// By rules of this plugin, to the proxy in the pod.
    Sidecar(Box<Settings>),
    /// By the node agent, to ztunnel. See [`FoundPod`].
    Ambient { abandoned: bool },
}

impl Job {
    /// A call for the pod that CNI_ARGS name.
    pub(crate) fn new(
        request: &Request,
        conf: PluginConf,
        log: Logger,
        backends: Arc<SharedBackends>,
        progress: Arc<Progress>,
    ) -> Result<Self, cni::Error> {
        let id = plugin::pod_id(&request.args()?);
        let result = request.prev_result()?.unwrap_or_default();
        let (container, ifname) = (request.container_id.clone(), request.ifname.clone());
        Ok(Self {
            netns: request.netns.clone(),
            conf,
            log,
            backends,
            progress,
            id,
            result,
            container,
            ifname,
            policies: PodPolicies::default(),
        })
    }

    pub(crate) fn kernel(&self) -> Kernel<'_> {
        self.backends.kernel()
    }

    /// Captures the pod, if it is one to capture.
    pub(crate) fn add(&self) -> Result<Added, OperationFailure> {
        let Some(target) = self.target()? else {
            self.note_sandbox();
            return Ok(Added::Skipped);
        };
        let settings = match target.way {
            Way::Sidecar(settings) => settings,
            Way::Ambient { abandoned } => {
                self.guard_for_mesh(&target.netns)?;
                let added = self.hand_over(&target.netns, abandoned)?;
                self.note_sandbox();
                return Ok(added);
            }
        };
        self.progress.wait_for("the kernel to take the rules");
        let applied = target.netns.enter(|inside| self.apply(inside, &settings))??;
        let apply_ms = self.progress.ended(EndedPhase::Apply);
        self.log_applied(&applied, apply_ms);
        Ok(Added::Captured)
    }

    /// The agent takes the pod, or the call fails and the runtime makes another.
    fn hand_over(&self, netns: &Netns, abandoned: bool) -> Result<Added, OperationFailure> {
        self.progress.wait_for("the node agent to take the pod into the mesh");
        let pod = Announcement { conf: &self.conf, id: &self.id, netns, result: &self.result };
        // An agent that was removed does not come back. One that is replaced may be away as well when its token is over.
        let limit = if abandoned { ABANDONED.min(self.conf.add_timeout) } else { self.conf.add_timeout };
        let end = self.progress.end_of(limit);
        pod.hand_over(end, |error| {
            self.progress.wait_for(error.waits_for());
            self.log.warn(&format!("{error}; waiting for it"), &[]);
        })?;
        let ms = format!("{:.3}", self.progress.ended(EndedPhase::Apply));
        let source = self.progress.facts_source();
        self.log.info(
            "pod is in the mesh: the node agent has taken it",
            &[("facts_source", &source), ("ms", &ms)],
        );
        Ok(Added::Captured)
    }

    /// Says where a manifest's pod is. Nobody else does, and its labels may take it into the mesh later.
    fn note_sandbox(&self) {
        let is_from_manifest = matches!(self.conf.pod_source, cni::PodSourceConfig::Manifests(_));
        let Some(run_dir) = self.run_dir().filter(|_| is_from_manifest && self.conf.ambient_enabled) else {
            return;
        };
        // The node's own namespace is no pod's.
        let Ok(netns) = self.open_netns() else { return };
        let sandbox = Sandbox { origin: self.origin(netns.id()), path: netns.path().to_owned() };
        if let Err(error) = applied::sandbox::write(run_dir, &self.container, &self.ifname, &sandbox) {
            let text = "labels will not take this pod into the mesh before it is restarted: ";
            self.log.warn(&format!("{text}{error}"), &[]);
        }
    }

    pub(crate) fn origin(&self, netns: NetnsId) -> applied::Origin {
        applied::Origin {
            netns,
            pod: self.id.to_string(),
            uid: self.id.uid.clone(),
            interface: self.ifname.clone(),
            addresses: self.result.ips.iter().map(|ip| ip.address.addr()).collect(),
        }
    }

    /// The part of the decision that needs no facts.
    pub(crate) fn skip(&self) -> Option<Skip> {
        capture::decide_by_name(&self.id.namespace, &self.id.name, &self.conf.scope())
    }

    /// Whether the kill switch alone leaves the pod alone.
    pub(crate) fn is_disabled(&self) -> bool {
        self.skip().is_some_and(|skip| skip.reason == Reason::CaptureDisabled)
    }

    /// The decision; nothing for a pod that is left alone.
    pub(crate) fn target(&self) -> Result<Option<Target>, OperationFailure> {
        self.progress.ended(EndedPhase::Parse);
        if let Some(skip) = self.skip() {
            self.log_skip(&skip);
            return Ok(None);
        }
        let sources = Sources::new(&self.conf, &self.log, &self.progress);
        let FoundPod { mut pod, abandoned } = sources.pod(&self.id)?;
        self.note_labels(&pod);
        // A wrong variable concerns the pods that it is for; the others start.
        let node = node_settings();
        let decision = self.decide(&sources, &mut pod, node.as_ref().unwrap_or(&NodeSettings::default()))?;
        self.progress.ended(EndedPhase::Decide);
        match decision {
            Decision::Skip(skip) => {
                self.log_skip(&skip);
                Ok(None)
            }
            Decision::Ambient => {
                Ok(Some(Target { netns: self.open_netns()?, way: Way::Ambient { abandoned } }))
            }
            Decision::Unknown(need) => Err(OperationFailure::Labels(format!("{need} are not known"))),
            Decision::Sidecar { settings, native_sidecar, warnings, gaps } => {
                node?;
                let kernel_classes = &self.conf.kernel_network_runtime_classes;
                refuse(CaptureMode::Sidecar, pod.runtime_class.as_deref(), kernel_classes, &[])?;
                for warning in warnings.iter().chain(&gaps) {
                    self.log.warn(warning, &[]);
                }
                self.progress.set_gaps(&gaps);
                self.log.debug(&format!("captured: {settings:?}"), &[("native_sidecar", &native_sidecar)]);
                Ok(Some(Target { netns: self.open_netns()?, way: Way::Sidecar(settings) }))
            }
        }
    }

    /// The decision, with the labels of the pod's namespace where they decide. Where those cannot be had the call fails: the original goes on
    /// as if the pod were not of ambient mode, and lets it start outside of the mesh.
    fn decide(
        &self,
        sources: &Sources<'_>,
        pod: &mut Pod,
        node: &NodeSettings,
    ) -> Result<Decision, OperationFailure> {
        let (scope, enrolment) = (self.conf.scope(), self.conf.enrolment()?);
        let decision = capture::decide(pod, &scope, &enrolment, node)?;
        let Decision::Unknown(Need::NamespaceLabels(_)) = decision else {
            self.progress.ended(EndedPhase::Facts);
            return Ok(decision);
        };
        self.progress.wait_for("the labels of the pod's namespace");
        let labels = sources.namespace_labels(&self.id);
        pod.namespace_labels = Some(labels.map_err(|error| OperationFailure::Labels(error.to_string()))?);
        self.progress.ended(EndedPhase::Facts);
        Ok(capture::decide(pod, &scope, &enrolment, node)?)
    }

    /// How a pod's namespace differs from what an ADD would make of it by today's facts.
    pub(crate) fn compare_by_facts(&self, target: &Target) -> Result<Vec<Difference>, OperationFailure> {
        target.netns.enter(|inside| match &target.way {
            Way::Sidecar(settings) => self.compare_settings(inside, settings),
            Way::Ambient { .. } => self.look_for_ambient(inside),
        })?
    }

    /// The run directory. A plugin's working directory is not its own, so a relative path is not used.
    pub(crate) fn run_dir(&self) -> Option<&Path> {
        run_dir(&self.conf)
    }

    /// The agent's options are not known here, and CHECK never asks it: whether there are rules of ambient mode at all can be told.
    fn look_for_ambient(&self, inside: &Inside) -> Result<Vec<Difference>, OperationFailure> {
        let none = [capture::ambient::no_rules()];
        let kernel = self.kernel();
        if kernel.nftables.exists(inside, &none)? || kernel.iptables.exists(inside, &none)? {
            return Ok(Vec::new());
        }
        Ok(vec![Difference::MissingTable { table: none[0].nft_table(ruleset::TableKind::Nat) }])
    }

    pub(crate) fn open_netns(&self) -> Result<Netns, OperationFailure> {
        let path = self.netns.as_ref().ok_or(OperationFailure::NoNetns)?;
        let netns = Netns::open(path)?;
        // The protocol layer has compared with our own namespace, unless CNI_NETNS_OVERRIDE told it not to, as a runtime does that
        // starts plugins inside the pod's. The node's is that of init, or, where init may not be asked, of the runtime.
        let of = |process: u32| Netns::open(format!("/proc/{process}/ns/net"));
        let node = of(1).or_else(|_| of(std::os::unix::process::parent_id()));
        if node.is_ok_and(|node| node == netns) {
            return Err(OperationFailure::HostNetns { path: path.clone() });
        }
        Ok(netns)
    }

    /// Loads the rules and keeps a record of them.
    fn apply(&self, inside: &Inside, settings: &Settings) -> Result<Applied, OperationFailure> {
        let ipv6 = ipv6(inside, settings)?;
        let guard = self.guard();
        let plan = |backend| {
            let mut plan = capture::plan(settings, PlanTarget { backend, ipv6 });
            if !guard.is_none() {
                plan.layers.insert(0, self.guard_layer(guard, backend));
            }
            plan
        };
        let choice = plugin::choice(&self.conf);
        let (applied, mut plan) =
            self.kernel().apply_and_keep(inside, choice, plan).map_err(|cause| match choice {
                Choice::Only(backend) if cause.is_backend_missing() => {
                    OperationFailure::OnlyBackend { backend, cause }
                }
                _ => cause.into(),
            })?;
        if !guard.is_none() {
            self.policies.guarded(guard, plan.backend);
            // It goes again; the record is of what stays.
            plan.layers.remove(0);
        }
        let target = PlanTarget { backend: plan.backend, ipv6 };
        let inputs = PlanInputs { settings: settings.clone(), target };
        self.record(inside, &plan, &inputs, applied.rules);
        Ok(applied)
    }

    /// Without a record a later CHECK proves nothing; the pod is captured all the same. In a namespace that had rules of ours before,
    /// others may have put theirs before them since.
    fn record(&self, inside: &Inside, plan: &Plan, inputs: &PlanInputs, change: Change) {
        let Some(record) = self.kernel().record(plan) else { return };
        let origin = self.origin(inside.id());
        let key = applied::RecordKey::Attachment { container: &self.container, interface: &self.ifname };
        if let Some(run_dir) = self.run_dir()
            && let Err(error) = applied::write(run_dir, key, &origin, &record, &inputs.to_text())
        {
            self.log.warn(&format!("CHECK will not know what was applied to this pod: {error}"), &[]);
        }
        if change == Change::Fresh {
            return;
        }
        let Some(owners) = check::owners_of(&record) else { return };
        match self.shadows(inside, &record, &owners, &origin) {
            Ok(shadows) if shadows.is_empty() => {}
            Ok(shadows) => {
                let text = check::shadowed(&shadows);
                self.log.error(&text, &[]);
                self.progress.set_remark(text);
            }
            Err(error) => self.log.warn(&fault::chain(&error), &[]),
        }
    }

    fn compare_settings(
        &self,
        inside: &Inside,
        settings: &Settings,
    ) -> Result<Vec<Difference>, OperationFailure> {
        let ipv6 = ipv6(inside, settings)?;
        let plan = |backend| capture::plan(settings, PlanTarget { backend, ipv6 });
        let plan = match plugin::choice(&self.conf) {
            Choice::Only(backend) => plan(backend),
            // An ADD took the one or the other, depending on the kernel: the one that has something is the one to compare with.
            Choice::Auto => {
                let iptables = plan(Backend::Iptables);
                if self.kernel().iptables.exists(inside, &iptables.layers)? {
                    iptables
                } else {
                    plan(Backend::Nftables)
                }
            }
        };
        Ok(self.kernel().observe(inside, &plan)?)
    }

    fn log_skip(&self, skip: &Skip) {
        let source = self.progress.facts_source();
        let labels: [telemetry::Label<'_>; 2] = [("reason", &skip.reason.name()), ("facts_source", &source)];
        self.log.info(
            &format!("pod is left alone: {skip}"),
            if source.is_empty() { &labels[..1] } else { &labels },
        );
    }

    fn log_applied(&self, applied: &Applied, apply_ms: f64) {
        if let Some(warning) = &applied.warning {
            self.log.warn(&format!("the other backend may still hold rules of ours: {warning}"), &[]);
        }
        if applied.moved {
            self.log.warn("rules of ours in the other backend were removed", &[]);
        }
        let change = match applied.rules {
            Change::None => "unchanged",
            Change::Fresh => "added",
            Change::Replaced => "replaced",
        };
        let facts_ms = format!("{:.3}", self.progress.phases().facts.unwrap_or_default() * 1000.0);
        let apply_ms = format!("{apply_ms:.3}");
        let complete = self.progress.gaps().is_empty();
        // The last says why it is iptables where the choice was left to the node: that is no fault of the pod's, so no warning.
        let fallback = applied.fallback.as_deref().unwrap_or_default();
        let facts_source = self.progress.facts_source();
        let labels: [telemetry::Label<'_>; 7] = [
            ("backend", &applied.backend),
            ("rules", &change),
            ("routing_steps", &applied.routing),
            ("facts_source", &facts_source),
            ("facts_ms", &facts_ms),
            ("apply_ms", &apply_ms),
            ("no_nftables", &fallback),
        ];
        self.log.info(
            if complete {
                "pod is captured"
            } else {
                "pod has its rules, but not all of its traffic is captured"
            },
            if fallback.is_empty() { &labels[..6] } else { &labels },
        );
    }
}

/// What the runtime's environment says for every pod of the node.
pub(crate) fn node_settings() -> Result<NodeSettings, EnvironmentError> {
    NodeSettings::from_env(&|name| std::env::var(name).ok(), &groups::resolve)
}

/// Whether IPv6 is captured, from the namespace's own addresses.
fn ipv6(inside: &Inside, settings: &Settings) -> Result<bool, OperationFailure> {
    let addresses = route::addresses(inside).map_err(kernel::Error::from)?;
    Ok(capture::plan::detect_ipv6(&addresses, settings.dual_stack)?)
}
