//! Policies of a pod that starts. Where they may isolate it, it is guarded before anything of it runs; the agent puts them into force, and the guard goes.
//! Without an agent, what one knew last says whether a policy selects the pod.

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _};
use std::os::fd::AsFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use applied::sandbox::Sandbox;
use capture::{Pod, Reason};
use cni::{PluginConf, UnpreparedPod};
use facts::networkpolicy::Isolation;
use netns::Netns;
use policy::guard::{Admitted, no_rules, plan_guard};
use policy::snapshot::{MAX_HEAD, PodIsolation, SnapshotError, SubjectPod, find_isolation};
use ruleset::{Backend, Plan, Ruleset};
use rundir::policy::{EnforcedAt, PolicyOutcome, PrepareAnswer, PrepareRequest, ReleaseRequest, ReleasedPod};
use telemetry::Logger;
use trusted::Links;

use crate::failure::OperationFailure;
use crate::job::Job;
use crate::plugin;
use crate::sources::{self, Sources};

/// How long the agent may take. It answers from memory, after it has written some elements.
const LIMIT: Duration = Duration::from_secs(1);
/// How long it may take to forget pods that are gone.
const RELEASE_LIMIT: Duration = Duration::from_millis(500);

/// What is known so far of the policies of a pod.
#[derive(Debug, Default)]
pub(crate) struct PodPolicies(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The pod's labels, once they were asked for, if they are known.
    labels: Option<Option<BTreeMap<String, String>>>,
    /// The pod uses the node's network.
    is_of_node: bool,
    /// What was known last.
    known: Option<PodIsolation>,
    /// What the agent answered before anything guarded the pod; `Err` says why it is not in force.
    early: Option<Result<PrepareAnswer, String>>,
    /// What the pod is guarded in, and by which backend.
    guarded: Option<(Isolation, Backend)>,
}

// === impl PodPolicies ===

impl PodPolicies {
    /// Notes facts of the pod; `assumed`: its labels are not among them.
    pub(crate) fn note(&self, pod: &Pod, assumed: bool) {
        let mut state = self.state();
        state.labels = Some((!assumed).then(|| pod.labels.clone()));
        state.is_of_node = pod.host_network;
    }

    /// Notes that the layers of [`Job::guard`] are in force.
    pub(crate) fn guarded(&self, isolation: Isolation, backend: Backend) {
        self.state().guarded = Some((isolation, backend));
    }

    /// Whole between any two statements.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Job ===

impl Job {
    /// Whether policies are enforced and may select the pod. The node agent's own pod must start when nothing else does.
    fn is_policed(&self) -> bool {
        let is_never = |reason| matches!(reason, Reason::OwnAgentPod | Reason::NotKubernetes);
        self.conf.policy_enforcement && !self.skip().is_some_and(|skip| is_never(skip.reason))
    }

    /// The directions in which policies that were known last isolate the pod, and the layer that guards it, which comes before others.
    ///
    /// None where the agent has them in force at the node: nothing of the pod runs before the ADD is over, and a guard that goes again costs
    /// milliseconds.
    pub(crate) fn guard(&self) -> Isolation {
        if !self.is_policed() {
            return Isolation::default();
        }
        let isolation = self.known().isolation;
        if isolation.is_none() || self.is_in_force() { Isolation::default() } else { isolation }
    }

    /// Asks the agent, once.
    fn is_in_force(&self) -> bool {
        if self.policies.state().early.is_none() {
            // The failure is told when the pod is guarded.
            let answer = self.open_netns().map_err(|error| error.to_string());
            let answer = answer.and_then(|netns| self.prepare(&netns));
            self.policies.state().early = Some(answer);
        }
        matches!(&self.policies.state().early, Some(Ok(answer)) if is_at_node(answer))
    }

    /// Says where the pod is, and has its policies put into force.
    fn prepare(&self, netns: &Netns) -> Result<PrepareAnswer, String> {
        self.note_policed(netns);
        self.progress.wait_for("the node agent to put the pod's policies into force");
        let agent = sources::agent(&self.conf).ok_or("the run directory is not named by an absolute path")?;
        agent.prepare(&self.request(), netns.as_fd(), LIMIT).map_err(|error| error.to_string())
    }

    /// The guard, as a layer.
    pub(crate) fn guard_layer(&self, isolation: Isolation, backend: Backend) -> Ruleset {
        let node = self.known().node;
        let probes: &[_] = &[capture::ambient::PROBE_V4.into(), capture::ambient::PROBE_V6.into()];
        let probes = if self.conf.ambient_enabled { probes } else { &[] };
        plan_guard(isolation, Admitted { node: &node, probes }, backend)
    }

    /// Guards a pod before it comes into the mesh. The agent is asked afterwards: rules for the tunnel come only then, and take the guard's place.
    pub(crate) fn guard_for_mesh(&self, netns: &Netns) -> Result<(), OperationFailure> {
        let isolation = if self.is_policed() { self.known().isolation } else { Isolation::default() };
        if isolation.is_none() { Ok(()) } else { self.load_guard(netns, isolation) }
    }

    /// Guards a pod whose rules did not bring the guard with them.
    fn ensure_guard(&self, netns: &Netns) -> Result<(), OperationFailure> {
        if self.policies.state().guarded.is_some() {
            return Ok(());
        }
        let isolation = self.guard();
        if isolation.is_none() { Ok(()) } else { self.load_guard(netns, isolation) }
    }

    /// The policies of a pod whose capture is settled: they are in force when this returns, or the pod is guarded.
    pub(crate) fn police(&self) -> Result<PolicyOutcome, OperationFailure> {
        if !self.is_policed() {
            return Ok(PolicyOutcome::Off);
        }
        self.progress.wait_for("the kernel to guard the pod until its policies are in force");
        let netns = self.open_netns()?;
        let known = self.known();
        if self.policies.state().is_of_node {
            return Ok(PolicyOutcome::Off);
        }
        self.ensure_guard(&netns)?;
        let early = self.policies.state().early.take();
        let answer = match early {
            Some(Ok(answer)) if !is_at_node(&answer) => self.prepare(&netns),
            Some(early) => early,
            None => self.prepare(&netns),
        };
        match answer {
            Ok(answer) => self.settle(&netns, answer),
            Err(why) => self.unprepared(&netns, known.isolation, &why),
        }
    }

    fn settle(&self, netns: &Netns, answer: PrepareAnswer) -> Result<PolicyOutcome, OperationFailure> {
        let guarded = self.policies.state().guarded;
        match (answer.in_force, answer.point) {
            // The agent's own rules have taken the guard's place.
            (true, EnforcedAt::Pod | EnforcedAt::Both)
                if !answer.isolation.is_none()
                    || !answer.ingress_class.is_empty()
                    || !answer.egress_class.is_empty() => {}
            (true, _) => self.lift_guard(netns)?,
            (false, _) if answer.isolation.is_none() => {
                // Nor is there anything else of ours, unless the agent has loaded it already.
                if guarded.is_some() || (answer.ingress_class.is_empty() && answer.egress_class.is_empty()) {
                    self.lift_guard(netns)?;
                }
            }
            (false, _) => {
                if guarded.is_none_or(|(isolation, _)| isolation != answer.isolation) {
                    if !answer.node.is_empty() {
                        self.policies.state().known =
                            Some(PodIsolation { isolation: answer.isolation, node: answer.node });
                    }
                    self.load_guard(netns, answer.isolation)?;
                }
                return Ok(self.stays_guarded(
                    answer.isolation,
                    "the node agent cannot put its policies into force yet",
                ));
            }
        }
        self.log.debug(
            "the pod's policies are in force",
            &[
                ("isolation", &answer.isolation),
                ("ingress_class", &answer.ingress_class),
                ("egress_class", &answer.egress_class),
            ],
        );
        Ok(PolicyOutcome::Prepared)
    }

    fn unprepared(
        &self,
        netns: &Netns,
        isolation: Isolation,
        why: &str,
    ) -> Result<PolicyOutcome, OperationFailure> {
        if isolation.is_none() {
            // What an agent or an earlier ADD left in this namespace may be newer than what is known here, so it stays.
            self.log.info(&format!("no policy that was known last selects the pod: {why}"), &[]);
            return Ok(PolicyOutcome::Unselected);
        }
        match self.conf.policy_unprepared {
            UnpreparedPod::Closed => Ok(self.stays_guarded(isolation, why)),
            UnpreparedPod::Fail => Err(OperationFailure::Unprepared { isolation, why: why.to_owned() }),
            UnpreparedPod::Open => {
                self.lift_guard(netns)?;
                let text = format!(
                    "pod starts WITHOUT ITS POLICIES, which isolate its {isolation}, as policy_unprepared: open allows: {why}"
                );
                self.log.error(&text, &[]);
                Ok(PolicyOutcome::Open)
            }
        }
    }

    fn stays_guarded(&self, isolation: Isolation, why: &str) -> PolicyOutcome {
        let text = format!(
            "pod starts isolated ({isolation}) until the node agent puts its policies into force: {why}"
        );
        self.log.warn(&text, &[]);
        PolicyOutcome::Guarded
    }

    fn load_guard(&self, netns: &Netns, isolation: Isolation) -> Result<(), OperationFailure> {
        let plan = |backend| Plan::of_layer(backend, self.guard_layer(isolation, backend));
        let choice = plugin::choice(&self.conf);
        let applied = netns.enter(|inside| self.kernel().apply(inside, choice, plan))??;
        self.policies.guarded(isolation, applied.backend);
        Ok(())
    }

    /// Also what an earlier ADD left that ended before its agent answered.
    fn lift_guard(&self, netns: &Netns) -> Result<(), OperationFailure> {
        let backend = self.policies.state().guarded.take().map(|(_, backend)| backend);
        netns.enter(|inside| -> Result<(), kernel::Error> {
            let (kernel, owner) = (self.kernel(), [no_rules()]);
            for (of, store) in [(Backend::Nftables, kernel.nftables), (Backend::Iptables, kernel.iptables)] {
                if backend.is_none_or(|backend| backend == of)
                    && (backend.is_some() || store.exists(inside, &owner)?)
                {
                    store.cleanup(inside, &owner)?;
                }
            }
            Ok(())
        })??;
        Ok(())
    }

    fn request(&self) -> PrepareRequest {
        let state = self.policies.state();
        PrepareRequest {
            uid: self.id.uid.clone(),
            namespace: self.id.namespace.clone(),
            name: self.id.name.clone(),
            container: self.container.clone(),
            labels: state.labels.clone().flatten(),
            addresses: self.result.ips.iter().map(|ip| ip.address.addr()).collect(),
            interface: self.ifname.clone(),
            host_interface: self.host_interface(),
            guarded: state.guarded.map(|(isolation, _)| isolation).unwrap_or_default(),
        }
    }

    /// A bridge comes before the interface that is in it.
    fn host_interface(&self) -> String {
        let of_node = |interface: &&cni::Interface| interface.sandbox.is_empty();
        self.result
            .interfaces
            .iter()
            .rfind(of_node)
            .map(|interface| interface.name.clone())
            .unwrap_or_default()
    }

    /// What was known last of policies, by what is known of the pod.
    fn known(&self) -> PodIsolation {
        if let Some(known) = &self.policies.state().known {
            return known.clone();
        }
        let labels = self.labels();
        let pod = SubjectPod { namespace: &self.id.namespace, labels: labels.as_ref() };
        let known = read_snapshot(&self.conf, &pod).unwrap_or_else(|why| {
            // It was there, so policies may select the pod.
            self.log.error(&format!("what was known last of policies cannot be used, so the pod is taken to be isolated: {why}"), &[]);
            PodIsolation { isolation: Isolation::BOTH, ..PodIsolation::default() }
        });
        self.policies.state().known = Some(known.clone());
        known
    }

    /// The pod's labels. A pod that is left alone by its name has not been asked about yet.
    fn labels(&self) -> Option<BTreeMap<String, String>> {
        if let Some(labels) = &self.policies.state().labels {
            return labels.clone();
        }
        match Sources::new(&self.conf, &self.log, &self.progress).pod(&self.id) {
            Ok(found) => self.note_labels(&found.pod),
            Err(error) => {
                let text = "the pod's labels are not known, so each policy of its namespace counts as if it selected the pod";
                self.log.warn(&format!("{text}: {error}"), &[]);
                self.policies.state().labels = Some(None);
            }
        }
        self.policies.state().labels.clone().flatten()
    }

    /// Notes the labels that facts of the pod have.
    pub(crate) fn note_labels(&self, pod: &Pod) {
        if self.conf.policy_enforcement {
            self.policies.note(pod, self.progress.facts_source() == sources::ANNOTATIONS);
        }
    }

    /// Says where the pod is: for the next agent, and so that its addresses are known at its end.
    fn note_policed(&self, netns: &Netns) {
        let Some(run_dir) = self.run_dir() else { return };
        let sandbox = Sandbox { origin: self.origin(netns.id()), path: netns.path().to_owned() };
        if let Err(error) = applied::policed::write(run_dir, &self.container, &self.ifname, &sandbox) {
            let text = "an agent that starts later finds this pod only by a look at all processes";
            self.log.warn(&format!("{text}: {error}"), &[]);
        }
    }
}

/// Whether nothing in the pod's own namespace is to isolate it.
fn is_at_node(answer: &PrepareAnswer) -> bool {
    answer.in_force && answer.point == EnforcedAt::Node
}

/// No file: as if there were no policy.
fn read_snapshot(conf: &PluginConf, pod: &SubjectPod<'_>) -> Result<PodIsolation, String> {
    let Some(dir) = sources::absolute(&conf.state_dir) else { return Ok(PodIsolation::default()) };
    let path = dir.join(rundir::POLICIES_NAME);
    match trusted::open(&path, Links::Refused) {
        Ok(file) => {
            let found = find_isolation(BufReader::new(file.take(MAX_HEAD as u64)), pod);
            found.map_err(|error: SnapshotError| format!("{}: {error}", path.display()))
        }
        Err(error) if error.is_not_found() => Ok(PodIsolation::default()),
        Err(error) => Err(error.to_string()),
    }
}

/// Tells the agent that pods are gone. Without it what they had stays until the next ADD with one of their addresses.
pub(crate) fn release(conf: &PluginConf, gone: Vec<Sandbox>, log: &Logger) {
    if gone.is_empty() || !conf.policy_enforcement {
        return;
    }
    let Some(agent) = sources::agent(conf) else { return };
    let pods = gone.into_iter().map(|Sandbox { origin, .. }| {
        let (namespace, name) = origin.pod.split_once('/').unwrap_or_default();
        ReleasedPod {
            uid: origin.uid,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            addresses: origin.addresses,
        }
    });
    if let Err(error) = agent.release(&ReleaseRequest { pods: pods.collect() }, RELEASE_LIMIT) {
        log.info(
            &format!("policies of pods that are gone stay until their addresses are used again: {error}"),
            &[],
        );
    }
}
