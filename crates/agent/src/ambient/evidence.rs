//! What was applied to each pod's namespace, kept in the run directory for the plugin's CHECK (crate `applied`).
//!
//! A record is written with the rules, in the pod's turn, and removed before they go. It is evidence and nothing else: no step of
//! a pod's way depends on it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use applied::{AppliedRecord, Origin, RecordKey};
use kernel::watch::Fingerprint;
use kernel::{Change, Kernel, Record, Shadows};
use netns::{Inside, NetnsId};
use ruleset::listed::ListedTable;
use ruleset::listed::beside::{only_judges, take_out};
use ruleset::{Plan, Ruleset};

use super::members::{Member, MeshMembers};

/// The records of this node's ambient pods.
#[derive(Debug)]
pub(super) struct Evidence {
    run_dir: PathBuf,
    beside: Vec<Ruleset>,
    /// What shadows our rules in a namespace, as it was told last.
    shadowed: Mutex<HashMap<NetnsId, Vec<String>>>,
    /// What the last look at a namespace was about that was complete.
    known: Mutex<HashMap<NetnsId, KnownEvidence>>,
}

/// All that decides what a look at a namespace comes to.
#[derive(Debug)]
pub(super) struct ShadowsOf<'a> {
    /// The rules of everybody there; absent where the kernel does not tell.
    pub(super) rules: Option<&'a Fingerprint>,
    pub(super) plan: &'a Arc<Plan>,
    pub(super) subject: RecordSubject,
}

/// The same, kept, and when the record was written then.
#[derive(Debug)]
struct KnownEvidence {
    rules: Fingerprint,
    plan: Arc<Plan>,
    subject: RecordSubject,
    written: SystemTime,
}

/// What a namespace showed after its rules were programmed.
#[derive(Debug, Default)]
pub(super) struct SeenInNetns {
    /// Why there is no record, or why it was not looked.
    pub(super) warnings: Vec<String>,
    /// What has come to shadow our rules, or may, since the last look.
    pub(super) new: Vec<String>,
    /// What did at the last look does not any more.
    pub(super) over: bool,
}

/// The pod's interface, as runtimes name it.
const INTERFACE: &str = "eth0";
/// The most texts that are told of one namespace.
const TOLD: usize = 8;

/// Whose namespace a record is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RecordSubject {
    pod: String,
    uid: String,
    addresses: Vec<IpAddr>,
}

impl RecordSubject {
    pub(super) fn of(member: &Member) -> Self {
        // By the name that the runtime has for it, as CHECK does.
        Self {
            pod: member.key.to_string(),
            uid: member.called().to_owned(),
            addresses: member.ips().to_vec(),
        }
    }
}

impl Evidence {
    /// `beside`: owners of rules of ours beside those of ambient mode.
    pub(super) fn new(run_dir: &Path, beside: Vec<Ruleset>) -> Self {
        Self { run_dir: run_dir.to_owned(), beside, shadowed: Mutex::default(), known: Mutex::default() }
    }

    /// Whether the last look was about the same, so that another one would come to the same; the record is there as it was written.
    pub(super) fn is_known(&self, netns: NetnsId, of: &ShadowsOf<'_>) -> bool {
        let known = locked(&self.known);
        known.get(&netns).is_some_and(|known| {
            Some(&known.rules) == of.rules
                && known.plan == *of.plan
                && known.subject == of.subject
                && applied::written(&self.run_dir, RecordKey::Namespace(netns)) == Some(known.written)
        })
    }

    /// Notes what a look was about that was complete.
    pub(super) fn note(&self, netns: NetnsId, of: ShadowsOf<'_>) {
        let ShadowsOf { rules, plan, subject } = of;
        // Without the pod's addresses those that were there then decided.
        let Some(rules) = rules.filter(|_| !subject.addresses.is_empty()) else { return };
        let Some(written) = applied::written(&self.run_dir, RecordKey::Namespace(netns)) else { return };
        let known = KnownEvidence { rules: rules.clone(), plan: plan.clone(), subject, written };
        locked(&self.known).insert(netns, known);
    }

    /// Keeps what was applied and, where rules of ours were there before, looks whether others have put theirs before them since.
    pub(super) fn take(
        &self,
        inside: &Inside,
        kernel: Kernel<'_>,
        (plan, change): (&Plan, Change),
        subject: &RecordSubject,
    ) -> SeenInNetns {
        let Some(record) = kernel.record(plan) else { return SeenInNetns::default() };
        let mut seen = SeenInNetns::default();
        seen.warnings.extend(self.record(inside, record.clone(), subject));
        if change == Change::Fresh {
            self.told().remove(&inside.id());
            return seen;
        }
        let owners = [capture::ambient::no_rules()];
        let take_out = |tables: &mut Vec<ListedTable>| take_out(tables, &self.beside, only_judges);
        match kernel.shadows(inside, &record, &owners, &subject.addresses, INTERFACE, &take_out) {
            Ok(Shadows { proven, possible }) => {
                let proven = proven.iter().map(|shadow| format!("packets escape capture: {shadow}"));
                let possible = possible.iter().map(|text| format!("packets may escape capture: {text}"));
                let now: Vec<String> = proven.chain(possible).take(TOLD).collect();
                let mut told = self.told();
                let before = told.remove(&inside.id()).unwrap_or_default();
                seen.over = now.is_empty() && !before.is_empty();
                seen.new = now.iter().filter(|text| !before.contains(text)).cloned().collect();
                if !now.is_empty() {
                    told.insert(inside.id(), now);
                }
            }
            Err(error) => seen.warnings.push(fault::chain(&error)),
        }
        seen
    }

    /// Namespaces in which others shadow our rules, or may.
    pub(super) fn shadowed(&self) -> usize {
        self.told().len()
    }

    fn told(&self) -> MutexGuard<'_, HashMap<NetnsId, Vec<String>>> {
        locked(&self.shadowed)
    }

    /// Keeps a record, unless the same is kept already; why it could not be.
    fn record(&self, inside: &Inside, record: Record, subject: &RecordSubject) -> Option<String> {
        let key = RecordKey::Namespace(inside.id());
        let origin = Origin {
            netns: inside.id(),
            pod: subject.pod.clone(),
            uid: subject.uid.clone(),
            interface: String::new(),
            addresses: subject.addresses.clone(),
        };
        let wanted = AppliedRecord { origin, record: Some(record), inputs: String::new() };
        // Each verification comes here, and hardly any changes something.
        if applied::read(&self.run_dir, key).is_ok_and(|kept| kept.as_ref() == Some(&wanted)) {
            return None;
        }
        let record = wanted.record.as_ref()?;
        let written = applied::write(&self.run_dir, key, &wanted.origin, record, "");
        written.err().map(|error| format!("CHECK will not know what was applied to this pod: {error}"))
    }

    /// Forgets what was applied to a namespace; why it could not.
    pub(super) fn forget(&self, netns: NetnsId) -> Option<String> {
        self.told().remove(&netns);
        locked(&self.known).remove(&netns);
        applied::remove(&self.run_dir, RecordKey::Namespace(netns)).err().map(|error| error.to_string())
    }

    /// Forgets namespaces that are no member's, and no sidecar's. While that of a member is not known, any of them may be its.
    pub(super) fn sweep(&self, members: &MeshMembers) -> Option<String> {
        let valid = || {
            let members = members.all();
            let valid: Option<HashSet<NetnsId>> =
                members.iter().map(|member| member.netns.as_ref().map(|netns| netns.id())).collect();
            if let Some(valid) = &valid {
                self.told().retain(|netns, _| valid.contains(netns));
                locked(&self.known).retain(|netns, _| valid.contains(netns));
            }
            valid
        };
        // Those of sidecars have what their plan was made from.
        let swept = applied::keep_namespaces(&self.run_dir, valid, |head| head.has_inputs);
        swept.err().map(|error| error.to_string())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
