//! Rules of ours in the network namespace of a sidecar pod: the plan, by the settings that an ADD of this node would take, or those that it took.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use applied::{AppliedRecord, AttachmentRecord, Origin, RecordKey};
use capture::plan::{NoAddress, detect_ipv6, no_rules};
use capture::{PlanInputs, PlanTarget, Settings};
use facts::{Object, PodRef};
use kernel::iptables::Iptables;
use kernel::sockets::Sockets;
use kernel::{Applied, Choice, Kernel, route};
use netns::find::SearchRoots;
use netns::{Inside, Netns, NetnsId};
use ruleset::{Backend, Plan};

use super::Sidecars;
use super::pods::{PodSandbox, SandboxRules};
use crate::backends::Backends;
use crate::finder;
use crate::slots::{Task, UnfinishedAct};
use crate::spare::{Spared, Sparing};

/// What a look into a sandbox shows.
#[derive(Debug)]
pub(super) struct SandboxLook {
    pub(super) sandbox: PodSandbox,
    /// Rules of ours are in it, complete or not.
    pub(super) has_rules: bool,
}

/// Why rules are not looked at, or not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RulesFailure {
    /// The kernel, or a program, has not ended in time.
    #[error(transparent)]
    Unfinished(#[from] UnfinishedAct),
    /// It cannot be entered.
    #[error("enter the network namespace of the pod: {}", fault::chain(.0))]
    Enter(#[from] netns::Error),
    /// It is another pod's by now, or was never this one's.
    #[error(transparent)]
    NotThePods(#[from] netns::find::NotThePods),
    /// It has no network yet.
    #[error(transparent)]
    NoAddress(#[from] NoAddress),
    /// Something of ours is left.
    #[error(transparent)]
    Left(#[from] kernel::Incomplete),
    /// Nobody can tell what was loaded.
    #[error(transparent)]
    Records(#[from] applied::Error),
    /// The kernel did not load them, or did not say which are there.
    #[error("program redirection: {}", fault::chain(.0))]
    Kernel(#[from] kernel::Error),
    /// The proxy runs and does not listen: rules would lead the pod's traffic nowhere.
    #[error(
        "nobody listens on port {0} of the pod yet, where its proxy should; its rules come when somebody does"
    )]
    NoListener(u16),
}

/// What came of loading rules.
#[derive(Debug)]
pub(super) struct LoadedRules {
    pub(super) plan: Plan,
    pub(super) applied: Applied,
    /// What could not be done for open connections, or written down.
    pub(super) warnings: Vec<String>,
}

/// Where rules are loaded, and which.
#[derive(Debug, Clone)]
pub(super) struct Loading {
    pub(super) pod: PodRef,
    pub(super) origin: Origin,
    pub(super) sandbox: PodSandbox,
    /// Something of the pod may run already, so that connections may be open and the proxy has to listen.
    pub(super) runs: bool,
    /// The plan whose rules are there and give way to others.
    pub(super) replaces: Option<Arc<Plan>>,
}

impl Sidecars {
    /// Looks which rules are in a namespace; `settings` are those of the pod's annotations.
    pub(super) async fn look(
        &self,
        pod: &Object,
        netns: Arc<Netns>,
        roots: &SearchRoots,
        settings: &Settings,
    ) -> Result<SandboxLook, RulesFailure> {
        let (backends, choice) = (self.backends.clone(), self.parts.choice);
        let (run_dir, settings) = (self.parts.run_dir.clone(), settings.clone());
        let (origin, host) = (origin(pod, &netns), roots.host);
        let look = move || -> Result<SandboxLook, RulesFailure> {
            netns::find::belongs_to(&netns, host, &origin.addresses, &finder::addresses)?;
            let recorded = recorded(&run_dir, &origin);
            let (inputs, has_rules) = netns.enter(|inside| -> Result<_, RulesFailure> {
                let kernel = backends.kernel();
                let inputs = match recorded.as_ref().and_then(|record| PlanInputs::from_text(&record.inputs))
                {
                    Some(inputs) => inputs,
                    None => inputs_of(inside, kernel, settings, recorded.as_ref(), choice)?,
                };
                let has_rules = kernel.exists(inside, &inputs.plan())?;
                Ok((inputs, has_rules))
            })??;
            let drain = backends.kernel().record(&inputs.plan_drain());
            let rules = match &recorded {
                Some(recorded) if recorded.record == drain => SandboxRules::Draining,
                None if !has_rules => SandboxRules::Never,
                _ => SandboxRules::Had,
            };
            let (plan, inputs) = (Arc::new(inputs.plan()), Arc::new(inputs));
            Ok(SandboxLook { sandbox: PodSandbox { netns, inputs, plan, rules }, has_rules })
        };
        self.slots.run(&pod.pod_ref(), Task::Verify, look).await?
    }

    /// Loads the rules of a pod in one piece, after another look at whose namespace it is.
    pub(super) async fn load(
        &self,
        loading: Loading,
        roots: &SearchRoots,
    ) -> Result<LoadedRules, RulesFailure> {
        let (backends, host, run_dir) = (self.backends.clone(), roots.host, self.parts.run_dir.clone());
        let has_had = loading.sandbox.rules != SandboxRules::Never;
        let choice = if has_had { Choice::Only(loading.sandbox.plan.backend) } else { self.parts.choice };
        let key = loading.pod.clone();
        let load = move || -> Result<LoadedRules, RulesFailure> {
            let Loading { origin, sandbox, runs, replaces, .. } = loading;
            let replacing = replaces
                .map(|plan| Backends::new(|| Iptables::new().replacing(plan.layers.clone()), &run_dir));
            let backends = replacing.as_ref().unwrap_or(&backends);
            netns::find::belongs_to(&sandbox.netns, host, &origin.addresses, &finder::addresses)?;
            let PodSandbox { netns, inputs, .. } = sandbox;
            netns.enter(|inside| {
                let settings = &inputs.settings;
                if runs && !has_had {
                    listens(inside, settings)?;
                }
                let sparing = runs.then(|| sparing(settings).begin(inside));
                let applied = apply(inside, backends.kernel(), choice, &inputs);
                let mut spared = Spared::default();
                if let Some((begun, seen)) = sparing {
                    spared = seen;
                    begun.end(inside, applied.is_ok(), &mut spared);
                }
                let (applied, plan) = applied?;
                let target = PlanTarget { backend: plan.backend, ipv6: inputs.target.ipv6 };
                let inputs = PlanInputs { settings: settings.clone(), target };
                let mut warnings = spared.warnings;
                warnings.extend(keep(&run_dir, backends.kernel(), &plan, &inputs, &origin));
                Ok(LoadedRules { plan, applied, warnings })
            })?
        };
        self.slots.run(&key, Task::Program, load).await?
    }
}

/// What the plugin, or this agent, has written down of what it loaded into this namespace for this pod; the last of several.
pub(super) fn recorded(run_dir: &Path, origin: &Origin) -> Option<AppliedRecord> {
    let of_agent = applied::read(run_dir, RecordKey::Namespace(origin.netns)).ok().flatten();
    if let Some(record) = of_agent.filter(|record| is_of(&record.origin, origin)) {
        return Some(record);
    }
    attachments(run_dir, origin)
        .ok()?
        .into_iter()
        .max_by_key(|attachment| attachment.written)?
        .read()
        .ok()
        .flatten()
}

/// What an ADD of this node would take for the pod now. Rules that are there stay in their backend.
fn inputs_of(
    inside: &Inside,
    kernel: Kernel<'_>,
    settings: Settings,
    recorded: Option<&AppliedRecord>,
    choice: Choice,
) -> Result<PlanInputs, RulesFailure> {
    let addresses = route::addresses(inside).map_err(kernel::Error::from)?;
    let ipv6 = detect_ipv6(&addresses, settings.dual_stack)?;
    let recorded = recorded.and_then(|applied| applied.record.as_ref()).map(|record| record.backend);
    let ours = [no_rules()];
    let backend = match (recorded, choice) {
        (Some(backend), _) => backend,
        _ if kernel.iptables.exists(inside, &ours)? => Backend::Iptables,
        (None, Choice::Only(backend)) if !kernel.nftables.exists(inside, &ours)? => backend,
        _ => Backend::Nftables,
    };
    Ok(PlanInputs { settings, target: PlanTarget { backend, ipv6 } })
}

fn apply(
    inside: &Inside,
    kernel: Kernel<'_>,
    choice: Choice,
    inputs: &PlanInputs,
) -> Result<(Applied, Plan), kernel::Error> {
    let plan = |backend| {
        let target = PlanTarget { backend, ipv6: inputs.target.ipv6 };
        capture::plan(&inputs.settings, target)
    };
    kernel.apply_and_keep(inside, choice, plan)
}

/// Whether the proxy listens where the rules lead.
fn listens(inside: &Inside, settings: &Settings) -> Result<(), RulesFailure> {
    let wanted = [settings.proxy_port, settings.capture_port];
    let ports = Sockets::open(inside).and_then(|mut sockets| sockets.listening(&wanted));
    // A kernel that cannot say so is no reason to leave a pod uncaptured.
    let Ok(ports) = ports else { return Ok(()) };
    let missing = wanted.into_iter().find(|port| !ports.contains(port));
    missing.map_or(Ok(()), |port| Err(RulesFailure::NoListener(port)))
}

/// Nothing is written down: the setting stays until the sandbox ends, as what is open now may be as long.
fn sparing(settings: &Settings) -> Sparing {
    Sparing {
        note: Box::new(|| None),
        ports: vec![settings.proxy_port, settings.capture_port],
        guests: !settings.reroute_interfaces.is_empty(),
    }
}

/// Keeps what was loaded; why it could not.
pub(super) fn keep(
    run_dir: &Path,
    kernel: Kernel<'_>,
    plan: &Plan,
    inputs: &PlanInputs,
    origin: &Origin,
) -> Option<String> {
    let record = kernel.record(plan)?;
    let (key, inputs) = (RecordKey::Namespace(origin.netns), inputs.to_text());
    let wanted =
        AppliedRecord { origin: origin.clone(), record: Some(record.clone()), inputs: inputs.clone() };
    // Its time says since when these are the rules.
    if applied::read(run_dir, key).is_ok_and(|kept| kept.as_ref() == Some(&wanted)) {
        return None;
    }
    // The agent's own comes last: with that there is nothing left to write.
    let replaced = attachments(run_dir, origin)
        .and_then(|its| its.iter().try_for_each(|attachment| attachment.replace(&record, &inputs)));
    let written = replaced.and_then(|()| applied::write(run_dir, key, origin, &record, &inputs));
    written.err().map(|error| format!("CHECK will not know what was loaded into this pod: {error}"))
}

/// Since when a pod whose namespace this is drains; since now where there is no record of that.
pub(super) fn drained_since(run_dir: &Path, netns: NetnsId) -> SystemTime {
    applied::written(run_dir, RecordKey::Namespace(netns)).unwrap_or_else(SystemTime::now)
}

/// Forgets what was loaded into a pod's namespace. What cannot be removed is of a namespace without rules of ours, and goes with its sandbox.
pub(super) fn forget(run_dir: &Path, origin: &Origin) {
    let _ = applied::remove(run_dir, RecordKey::Namespace(origin.netns));
    for attachment in attachments(run_dir, origin).unwrap_or_default() {
        let _ = attachment.remove();
    }
}

/// Whose a namespace is, as its runtime and so the plugin's records name the pod.
pub(super) fn origin(pod: &Object, netns: &Netns) -> Origin {
    Origin {
        netns: netns.id(),
        pod: pod.pod_ref().to_string(),
        uid: pod.runtime_uid().to_owned(),
        interface: String::new(),
        addresses: pod.ips(),
    }
}

/// The plugin's records of a pod's namespace.
fn attachments(run_dir: &Path, origin: &Origin) -> Result<Vec<AttachmentRecord>, applied::Error> {
    let mut all = applied::attachments(run_dir)?;
    all.retain(|attachment| is_of(&attachment.origin, origin));
    Ok(all)
}

/// Whether a record is about this pod in this namespace. Runtimes do not always tell a pod's uid.
fn is_of(record: &Origin, origin: &Origin) -> bool {
    let same_uid = record.uid.is_empty() || origin.uid.is_empty() || record.uid == origin.uid;
    record.netns == origin.netns && record.pod == origin.pod && same_uid
}
