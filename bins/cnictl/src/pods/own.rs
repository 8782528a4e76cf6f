//! The pods of this node by a look of this program, without the agent: decided from files, compared with the kernel.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use capture::decide::{self, sandbox_of_class};
use capture::expected::injection_label;
use conflicts::{Examined, ObservedNetns};
use facts::{Facts, PodRef};
use kernel::sockets::Sockets;
use netns::Inside;
use netns::find::MissingNetns;
use ruleset::listed::beside::{only_judges, take_out};
use rundir::pods::{ConflictReport, PodReport};
use verification::{UnverifiableReason, VerificationState};

use super::disk::{PodsOnDisk, described};
use super::live::{self, LiveNetns, NodeProcesses};
use super::locate::{Hint, LocatedNetns, Locator};
use super::parallel::in_parallel;
use super::select::SelectArgs;
use crate::look::{backend_in, rules_of_ours, texts, translates};
use crate::subject::{By, Captured, Decider, PodOutcome, PodSubject};

/// Looks at pods.
pub(crate) struct OwnLook<'a> {
    pub(super) decider: &'a Decider,
    pub(super) proc_root: PathBuf,
    /// When to stop; what has not been looked at then is not known.
    pub(super) deadline: Option<Instant>,
    /// What the agent says of the pods, where it answers.
    pub(super) known: &'a [PodReport],
    /// What was read of namespaces is wanted, too, which is much where there are many pods.
    pub(super) keeps_observed: bool,
}

/// A pod after a look.
#[derive(Debug)]
pub(crate) struct LookedPod {
    pub(crate) report: PodReport,
    /// Its namespace.
    pub(crate) place: Option<LocatedNetns>,
    /// Its plan, where it should be captured.
    pub(crate) captured: Option<Box<Captured>>,
    /// `metadata.annotations`, as far as they are kept.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Absent where the namespace was not read, or no plan is there that others could be in conflict with.
    pub(crate) conflicts: Option<PodConflicts>,
    /// What is in the namespace, where that was read and is wanted.
    pub(crate) observed: Option<Box<ObservedNetns>>,
}

/// What others have in a pod's namespace that changes what its rules do.
#[derive(Debug)]
pub(crate) struct PodConflicts {
    pub(crate) conflicts: Vec<ConflictReport>,
    /// What could not be looked at, and why.
    pub(crate) not_looked_at: Vec<String>,
    /// The same, where no later look will show it.
    pub(crate) out_of_sight: Vec<String>,
}

/// All pods that are meant, and whether some are missing.
#[derive(Debug, Default)]
pub(crate) struct OwnLooked {
    pub(crate) pods: Vec<LookedPod>,
    /// Files that could not be used.
    pub(crate) unusable: Vec<String>,
    /// The time was over before all were looked at.
    pub(crate) out_of_time: bool,
}

impl OwnLook<'_> {
    /// Looks at the pods that are meant.
    ///
    /// # Errors
    /// Nothing can be looked at.
    pub(crate) fn look(&self, select: &SelectArgs) -> Result<OwnLooked> {
        let configuration = &self.decider.configuration;
        let on_disk = PodsOnDisk::read(configuration)?;
        let mut locator = Locator::new(configuration.run_dir(), self.proc_root.clone())?;
        for report in self.known {
            locator.learn(&report.pod(), Hint::of_report(report));
        }
        let is_meant = |facts: &&Facts| select.selects(&facts.pod.pod_ref(), &facts.pod.labels());
        let pods: Vec<&Facts> = on_disk.pods.iter().filter(is_meant).collect();
        let classes = &configuration.plugin.kernel_network_runtime_classes;
        let places = locator.locate(&pods, classes);
        let processes = NodeProcesses::read()?;
        let look = |(facts, place): (&&Facts, _)| self.look_at(facts, place, &locator, &processes);
        let inode = |place: &Result<LocatedNetns, MissingNetns>| Some(place.as_ref().ok()?.netns.id().ino);
        let meant: Vec<_> =
            pods.iter().zip(places).filter(|(_, place)| select.selects_netns(inode(place))).collect();
        let count = meant.len();
        let looked = in_parallel(meant.into_iter(), self.deadline, &look);
        Ok(OwnLooked { out_of_time: looked.len() < count, unusable: on_disk.unusable, pods: looked })
    }

    fn look_at(
        &self,
        facts: &Facts,
        place: Result<LocatedNetns, MissingNetns>,
        locator: &Locator,
        processes: &NodeProcesses,
    ) -> LookedPod {
        let mut report = head(facts);
        report.addresses = locator.addresses(facts);
        if let Ok(place) = &place {
            report.inode = Some(place.netns.id().ino);
            report.netns.clone_from(&place.how);
        }
        let (place, missing) = match place {
            Ok(place) => (Some(place), MissingNetns::NoProcess),
            Err(missing) => (None, missing),
        };
        let mut looked = LookedPod {
            report,
            place: None,
            captured: None,
            annotations: facts.pod.annotations(),
            conflicts: None,
            observed: None,
        };
        match &place {
            None => self.decide(&mut looked, facts, Err(&missing), processes),
            Some(place) => {
                // Once for all: to enter a namespace takes a thread.
                let entered =
                    place.netns.enter(|inside| self.decide(&mut looked, facts, Ok(inside), processes));
                if let Err(error) = entered {
                    let failed = MissingNetns::Failed(fault::chain(&error));
                    self.decide(&mut looked, facts, Err(&failed), processes);
                }
            }
        }
        LookedPod { place, ..looked }
    }

    /// Decides about the pod, and compares its namespace with that.
    fn decide(
        &self,
        looked: &mut LookedPod,
        facts: &Facts,
        inside: Result<&Inside, &MissingNetns>,
        processes: &NodeProcesses,
    ) {
        let report = &mut looked.report;
        let decided = described(facts, report.addresses.clone()).and_then(|pod| {
            let found = |plan: &ruleset::Plan| backend_in(inside.ok()?, plan);
            self.decider.decide_in(pod, &found, &|| inside.is_ok_and(translates))
        });
        match decided {
            Ok(PodSubject { outcome: PodOutcome::Captured(captured), .. }) => {
                wanted(report, &captured);
                match self.readable(facts, inside) {
                    Ok(inside) => {
                        if let Some((conflicts, observed)) = compare(report, &captured, inside, processes) {
                            looked.conflicts = Some(conflicts);
                            looked.observed = self.keeps_observed.then(|| Box::new(observed));
                        }
                    }
                    Err((reason, why)) => unverifiable(report, reason, &why),
                }
                looked.captured = Some(captured);
            }
            Ok(PodSubject { outcome: PodOutcome::Skipped(skip), .. }) => {
                report.wanted = "none".to_owned();
                report.decided_by = skip.reason.name().to_owned();
                report.decision = skip.text();
                not_wanted(report, facts, inside.ok());
            }
            Err(error) => {
                report.wanted = "unknown".to_owned();
                report.decided_by = "settings-invalid".to_owned();
                report.state = VerificationState::Unverifiable(UnverifiableReason::Kernel).label().to_owned();
                report.problem = format!("what becomes of the pod cannot be decided: {error:#}");
            }
        }
    }

    /// The pod's namespace, or why it says nothing about the pod.
    fn readable<'i>(
        &self,
        facts: &Facts,
        inside: Result<&'i Inside, &MissingNetns>,
    ) -> Result<&'i Inside, (UnverifiableReason, String)> {
        let classes = &self.decider.configuration.plugin.kernel_network_runtime_classes;
        let class = facts.pod.runtime_class().filter(|class| !classes.iter().any(|fine| fine == class));
        if let Some(sandbox) = class.and_then(sandbox_of_class) {
            return Err((UnverifiableReason::Sandbox, MissingNetns::Sandbox(sandbox).to_string()));
        }
        inside.map_err(|missing| match missing {
            // Its object on disk has no status.
            MissingNetns::NoAddress => (UnverifiableReason::NoAddress, NO_ADDRESS.to_owned()),
            missing => (reason(missing), missing.to_string()),
        })
    }
}

/// Compares the pod's namespace with its plan, and looks for conflicts.
fn compare(
    report: &mut PodReport,
    captured: &Captured,
    inside: &Inside,
    processes: &NodeProcesses,
) -> Option<(PodConflicts, ObservedNetns)> {
    let missing = missing_listeners(inside, &captured.listeners());
    report.listening = missing.as_ref().map(Vec::is_empty);
    let LiveNetns { observed, differences } = match live::read(inside, Some(captured), processes) {
        Ok(read) => read,
        Err(error) => {
            unverifiable(report, UnverifiableReason::Kernel, &format!("{error:#}"));
            return None;
        }
    };
    let pod = report.pod();
    let Examined { conflicts: found, not_looked_at, out_of_sight } =
        match differences.iter().any(is_elsewhere) {
            // What ours of the other variant do to a packet would be taken for what others do.
            true => Examined { not_looked_at: vec![ELSEWHERE.to_owned()], ..Examined::default() },
            false => {
                let mut others = observed.clone();
                take_out(&mut others.tables, &usage::owners(), only_judges);
                conflicts::examine(&others, &captured.plan)
            }
        };
    let of_pod = |conflict| ConflictReport { pod: Some(pod.clone()), ..ConflictReport::from(conflict) };
    let conflicts: Vec<ConflictReport> = found.into_iter().map(of_pod).collect();
    report.drift = texts(&differences);
    let is_bad = report.note_conflicts(&conflicts);
    if !differences.is_empty() {
        report.state = VerificationState::Drifted.label().to_owned();
        report.problem = format!("{}; the agent repairs it when it runs", first_of(&report.drift));
    } else if is_bad {
        let why = report.problem.clone();
        unverifiable(report, UnverifiableReason::Conflict, &why);
    } else {
        as_planned(report, captured, &missing.unwrap_or_default());
    }
    Some((PodConflicts { conflicts, not_looked_at, out_of_sight }, observed))
}

/// The rules are there, and nothing of others is in their way.
fn as_planned(report: &mut PodReport, captured: &Captured, missing: &[u16]) {
    report.last_verified = Some(now());
    match captured.by {
        // The agent knows whether ztunnel has the pod; without it nobody here does.
        By::Ztunnel(_) => {
            report.state = VerificationState::Unacknowledged.label().to_owned();
            report.problem =
                "the rules are as planned; whether ztunnel has the pod only the agent can tell".to_owned();
        }
        By::Sidecar { .. } => {
            report.state = VerificationState::Verified.label().to_owned();
            report.note_missing_listeners(missing);
        }
    }
}

/// Those of the ports on which nobody listens; nothing where the kernel does not tell.
fn missing_listeners(inside: &Inside, ports: &[u16]) -> Option<Vec<u16>> {
    let found = Sockets::open(inside).and_then(|mut sockets| sockets.listening(ports)).ok()?;
    Some(ports.iter().copied().filter(|port| !found.contains(port)).collect())
}

/// Why no conflicts are told.
const ELSEWHERE: &str = "rules of others: rules of ours are in another backend than planned; when the agent has removed them, others' can be told from them";

fn is_elsewhere(difference: &kernel::Difference) -> bool {
    matches!(difference, kernel::Difference::OtherBackend { .. })
}

/// Without the agent, addresses of pods are in records of what was loaded for them only.
const NO_ADDRESS: &str = "nothing in the run directory says which address it has, so its network namespace cannot be told from others; the agent knows";

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn head(facts: &Facts) -> PodReport {
    let PodRef { namespace, name, uid } = facts.pod.pod_ref();
    PodReport { namespace, name, uid, labels: facts.pod.labels(), ..PodReport::default() }
}

fn wanted(report: &mut PodReport, captured: &Captured) {
    let row = match captured.by {
        By::Sidecar { .. } => "sidecar",
        By::Ztunnel(_) => "ambient",
    };
    report.wanted = row.to_owned();
    report.decided_by = row.to_owned();
    report.decision = captured.summary();
    report.mode = captured.mode().to_owned();
    report.backend = captured.facts.backend.to_string();
}

/// A pod that should not be captured: what is there all the same, or missing by mistake.
fn not_wanted(report: &mut PodReport, facts: &Facts, inside: Option<&Inside>) {
    let is_without_proxy = report.decided_by == decide::Reason::NoProxy.name();
    let asks = described(facts, Vec::new()).ok().and_then(|described| injection_label(&described.pod));
    if let Some(label) = asks.filter(|_| is_without_proxy) {
        report.note_not_injected(&label);
        return;
    }
    // Those of istio-init have the same names as ours.
    let Some(inside) = inside.filter(|_| report.decided_by != decide::Reason::IstioInitPresent.name()) else {
        return;
    };
    let left = rules_of_ours(inside).unwrap_or_default();
    if let Some(first) = left.first() {
        report.problem = format!("{first}; the agent removes what a record shows that it loaded");
        report.drift = left;
    }
}

fn unverifiable(report: &mut PodReport, reason: UnverifiableReason, why: &str) {
    report.state = VerificationState::Unverifiable(reason).label().to_owned();
    report.reason = reason.label().to_owned();
    report.problem = why.to_owned();
}

fn reason(missing: &MissingNetns) -> UnverifiableReason {
    match missing {
        MissingNetns::NoProcess | MissingNetns::HostNetwork => UnverifiableReason::NoNamespace,
        MissingNetns::NoAddress => UnverifiableReason::NoAddress,
        MissingNetns::OtherAddress | MissingNetns::Several(_) => UnverifiableReason::WrongNamespace,
        MissingNetns::OtherOwner => UnverifiableReason::UserNamespace,
        MissingNetns::Sandbox(_) => UnverifiableReason::Sandbox,
        MissingNetns::Failed(_) => UnverifiableReason::Permission,
    }
}

fn first_of(differences: &[String]) -> String {
    match differences {
        [] => String::new(),
        [only] => only.clone(),
        [first, more @ ..] => format!("{first} (and {} more)", more.len()),
    }
}
