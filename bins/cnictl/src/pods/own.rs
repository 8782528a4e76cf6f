//! The pods of this node by a look of this program, without the agent: decided from files, compared with the kernel.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use capture::decide::{self, sandbox_of_class};
use capture::expected::injection_label;
use facts::{Facts, PodRef};
use kernel::sockets::Sockets;
use netns::Netns;
use netns::find::MissingNetns;
use rundir::pods::PodReport;
use verification::{UnverifiableReason, VerificationState};

use super::disk::{PodsOnDisk, described};
use super::locate::{Hint, LocatedNetns, Locator};
use super::select::SelectArgs;
use crate::look::{backend_in, differences_in_pod, rules_of_ours};
use crate::subject::{By, Captured, Decider, PodOutcome, PodSubject};

/// Looks at pods.
pub(crate) struct OwnLook<'a> {
    pub(super) decider: &'a Decider,
    pub(super) proc_root: PathBuf,
    /// When to stop; what has not been looked at then is not known.
    pub(super) deadline: Option<Instant>,
    /// What the agent says of the pods, where it answers.
    pub(super) known: &'a [PodReport],
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
        let mut looked = OwnLooked { unusable: on_disk.unusable, ..OwnLooked::default() };
        for (facts, place) in pods.iter().zip(places) {
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                looked.out_of_time = true;
                break;
            }
            looked.pods.push(self.look_at(facts, place, &locator));
        }
        Ok(looked)
    }

    fn look_at(
        &self,
        facts: &Facts,
        place: Result<LocatedNetns, MissingNetns>,
        locator: &Locator,
    ) -> LookedPod {
        let mut report = head(facts);
        report.addresses = locator.addresses(facts);
        if let Ok(place) = &place {
            report.inode = Some(place.netns.id().ino);
            report.netns.clone_from(&place.how);
        }
        let decided = described(facts, report.addresses.clone()).and_then(|pod| {
            let found = |plan: &ruleset::Plan| backend_in(&place.as_ref().ok()?.netns, plan);
            self.decider.decide_in(pod, &found)
        });
        let captured = match decided {
            Ok(PodSubject { outcome: PodOutcome::Captured(captured), .. }) => {
                wanted(&mut report, &captured);
                self.compare(&mut report, facts, &captured, &place);
                Some(captured)
            }
            Ok(PodSubject { outcome: PodOutcome::Skipped(skip), .. }) => {
                report.wanted = "none".to_owned();
                report.decided_by = skip.reason.name().to_owned();
                report.decision = skip.text();
                not_wanted(&mut report, facts, place.as_ref().ok());
                None
            }
            Err(error) => {
                report.wanted = "unknown".to_owned();
                report.decided_by = "settings-invalid".to_owned();
                report.state = VerificationState::Unverifiable(UnverifiableReason::Kernel).label().to_owned();
                report.problem = format!("what becomes of the pod cannot be decided: {error:#}");
                None
            }
        };
        LookedPod { report, place: place.ok(), captured, annotations: facts.pod.annotations() }
    }

    /// Compares the pod's namespace with its plan.
    fn compare(
        &self,
        report: &mut PodReport,
        facts: &Facts,
        captured: &Captured,
        place: &Result<LocatedNetns, MissingNetns>,
    ) {
        let classes = &self.decider.configuration.plugin.kernel_network_runtime_classes;
        let class = facts.pod.runtime_class().filter(|class| !classes.iter().any(|fine| fine == class));
        if let Some(sandbox) = class.and_then(sandbox_of_class) {
            return unverifiable(
                report,
                UnverifiableReason::Sandbox,
                &MissingNetns::Sandbox(sandbox).to_string(),
            );
        }
        let place = match place {
            Ok(place) => place,
            // Its object on disk has no status.
            Err(MissingNetns::NoAddress) => {
                return unverifiable(report, UnverifiableReason::NoAddress, NO_ADDRESS);
            }
            Err(missing) => return unverifiable(report, reason(missing), &missing.to_string()),
        };
        let missing = missing_listeners(&place.netns, &captured.listeners());
        report.listening = missing.as_ref().map(Vec::is_empty);
        match differences_in_pod(&place.netns, captured) {
            Err(error) => unverifiable(report, UnverifiableReason::Kernel, &format!("{error:#}")),
            Ok(differences) if differences.is_empty() => {
                report.last_verified = Some(now());
                // The agent knows whether ztunnel has the pod; without it nobody here does.
                if matches!(captured.by, By::Ztunnel(_)) {
                    report.state = VerificationState::Unacknowledged.label().to_owned();
                    report.problem =
                        "the rules are as planned; whether ztunnel has the pod only the agent can tell"
                            .to_owned();
                } else {
                    report.state = VerificationState::Verified.label().to_owned();
                    report.note_missing_listeners(&missing.unwrap_or_default());
                }
            }
            Ok(differences) => {
                report.state = VerificationState::Drifted.label().to_owned();
                report.problem = format!("{}; the agent repairs it when it runs", first_of(&differences));
                report.drift = differences;
            }
        }
    }
}

/// Those of the ports on which nobody listens; nothing where the kernel does not tell.
fn missing_listeners(netns: &Netns, ports: &[u16]) -> Option<Vec<u16>> {
    let found = netns.enter(|inside| Sockets::open(inside)?.listening(ports)).ok()?.ok()?;
    Some(ports.iter().copied().filter(|port| !found.contains(port)).collect())
}

/// Without the agent, addresses of pods are in records of what was loaded for them only.
const NO_ADDRESS: &str = "nothing in the run directory says which address it has, so its network namespace cannot be told from others; the agent knows";

/// Seconds since 1970.
pub(super) fn now() -> f64 {
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
fn not_wanted(report: &mut PodReport, facts: &Facts, place: Option<&LocatedNetns>) {
    let is_without_proxy = report.decided_by == decide::Reason::NoProxy.name();
    let asks = described(facts, Vec::new()).ok().and_then(|described| injection_label(&described.pod));
    if let Some(label) = asks.filter(|_| is_without_proxy) {
        report.note_not_injected(&label);
        return;
    }
    // Those of istio-init have the same names as ours.
    let Some(place) = place.filter(|_| report.decided_by != decide::Reason::IstioInitPresent.name()) else {
        return;
    };
    let left = rules_of_ours(&place.netns).unwrap_or_default();
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
