//! What others have in the namespaces of pods, and in the node's own, that changes what rules of ours mean: looked for, told, and put right where that
//! takes a change of ours only.
//!
//! A namespace is looked at when its rules were found as planned: at the start, after somebody has changed something in it, and with each full
//! comparison. One that has not changed since is not read again. Rules and settings of others are never changed.

mod known;
mod limits;
mod report;
mod settings;
mod told;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ::conflicts::{Conflict, Examined, NetnsScope, Resolution, Severity};
use capture::ambient::{MARK_MASK, ZTUNNEL_MARK};
use facts::PodRef;
use kernel::observed::{ObservedSubject, PodProcesses, scan_processes};
use kernel::watch::Fingerprint;
use kernel::{Change, Kernel};
use netns::{Inside, NetnsId};
use options::agent::{BadOption, Options, Setting};
use ruleset::listed::Lister;
use ruleset::{Plan, Ruleset};
use telemetry::Scope;

use crate::events::Events;
use crate::health::{Health, HealthPart};
use known::{ConflictsFound, NetnsConflicts, Resolved};
use metrics::Metrics;
pub(crate) use settings::restore;
use told::ToldConflicts;

/// How long a list of the node's processes serves.
const PROCESSES_FOR: Duration = Duration::from_secs(30);
/// What is done about conflicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ConflictResolution {
    /// They are told.
    Off,
    /// Rules of ours are put before those of others that come at the same place.
    #[default]
    Safe,
    /// Settings of a pod's namespace are changed, too, until rules of ours leave it.
    All,
}

/// What it needs of the agent.
pub(crate) struct ConflictParts {
    pub(crate) resolution: ConflictResolution,
    /// The node's procfs.
    pub(crate) proc_root: PathBuf,
    /// Where it is kept how settings were before.
    pub(crate) run_dir: PathBuf,
    /// Whose rules of ours stand beside those of a plan.
    pub(crate) beside: Vec<Ruleset>,
    /// Unready while the node's namespace has a conflict of severity error.
    pub(crate) blocks_ready: Option<Arc<Health>>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Scope,
}

/// The node's processes by their network namespace.
type ProcessesByNetns = Arc<HashMap<NetnsId, PodProcesses>>;

/// Looks for conflicts, and knows those that were found.
pub(crate) struct Conflicts {
    parts: ConflictParts,
    known: Mutex<HashMap<NetnsId, NetnsConflicts>>,
    processes: Mutex<Option<(Instant, ProcessesByNetns)>>,
    told: ToldConflicts,
}

/// A namespace that has the rules of a plan.
pub(crate) struct ConflictLook<'a> {
    /// Whose it is; absent: the node's.
    pub(crate) pod: Option<&'a PodRef>,
    pub(crate) inside: &'a Inside,
    /// What its rules were before anything is read, where the kernel told: what changes meanwhile is looked at again.
    pub(crate) rules: Option<Fingerprint>,
    pub(crate) kernel: Kernel<'a>,
    pub(crate) plan: &'a Plan,
    /// On the node: addresses of pods whose probes its rules are for.
    pub(crate) probed: &'a [IpAddr],
    /// Who changed rules of nf_tables there last, since they were found as planned.
    pub(crate) writer: Option<String>,
    /// Rules of ours may be put before others now.
    pub(crate) may_change: bool,
}

/// Whether conflicts in the node's namespace make the agent unready.
///
/// # Errors
/// The option is none of those.
pub(crate) fn blocks_ready(options: &Options) -> Result<bool, BadOption> {
    match options.text(Setting::ConflictsBlockReady) {
        "" | "off" => Ok(false),
        "node-errors" => Ok(true),
        text => Err(BadOption::new("conflicts-block-ready", text, "is neither off nor node-errors")),
    }
}

impl ConflictResolution {
    /// # Errors
    /// It is none.
    pub(crate) fn new(options: &Options) -> Result<Self, BadOption> {
        match options.text(Setting::ConflictResolution) {
            "off" => Ok(Self::Off),
            "" | "safe" => Ok(Self::Safe),
            "all" => Ok(Self::All),
            text => Err(BadOption::new("conflict-resolution", text, "is not off, safe or all")),
        }
    }
}

impl Conflicts {
    pub(crate) fn new(parts: ConflictParts) -> Arc<Self> {
        let (known, processes) = (Mutex::default(), Mutex::default());
        Arc::new(Self { parts, known, processes, told: ToldConflicts::default() })
    }

    /// Writes Events until the task is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        self.told.write(&self.parts.events).await;
    }

    /// The routing of a namespace has changed: it is read again at the next look.
    pub(crate) fn routing_changed(&self, netns: NetnsId) {
        if let Some(namespace) = self.known().get_mut(&netns) {
            namespace.routing_changed = true;
        }
    }

    /// Forgets how settings were before in namespaces of pods that do not stay. It may wait for the disk.
    ///
    /// # Errors
    /// What is kept cannot be listed.
    pub(crate) fn keep_settings<F: Fn(&applied::Origin) -> bool>(
        &self,
        stays: impl FnOnce() -> F,
    ) -> Result<usize, applied::Error> {
        applied::settings::keep(&self.parts.run_dir, stays)
    }

    /// Forgets namespaces of pods but these.
    pub(crate) fn keep(&self, namespaces: &HashSet<NetnsId>) {
        self.known().retain(|netns, of| of.pod.is_none() || namespaces.contains(netns));
        self.count();
    }

    /// Looks for conflicts, where something may have changed since the last time, and puts right what may be. Gives the number of those that let packets
    /// past rules of ours, or break traffic.
    ///
    /// # Errors
    /// The namespace could not be read, or rules of ours not be put first. What was known before stays.
    pub(crate) fn look(&self, look: &ConflictLook<'_>) -> Result<usize, kernel::Error> {
        let rules = look.rules.as_ref();
        {
            let mut known = self.known();
            let namespace = known.entry(look.inside.id()).or_default();
            if namespace.is_unchanged(look.pod, rules, look.probed, Instant::now()) {
                return Ok(namespace.errors());
            }
        }
        let start = Instant::now();
        let looked = self.find_and_resolve(look, rules.cloned());
        self.parts.metrics.conflict_scan(start.elapsed());
        match looked {
            Ok(looked) => Ok(self.note(look, looked)),
            Err(error) => {
                let text = format!("conflicts with rules of others are not known: {}", fault::chain(&error));
                if self.known().entry(look.inside.id()).or_default().failed(text.clone()) {
                    self.log(look, |labels| self.parts.log.warn(&text, labels));
                }
                Err(error)
            }
        }
    }

    fn find_and_resolve(
        &self,
        look: &ConflictLook<'_>,
        rules: Option<Fingerprint>,
    ) -> Result<ConflictsFound, kernel::Error> {
        let examined = self.find(look, rules.as_ref())?;
        let done = self.resolve(look, &examined.conflicts).unwrap_or_else(|error| {
            let text = format!("a conflict with rules of others is not resolved: {}", fault::chain(&error));
            self.log(look, |labels| self.parts.log.warn(&text, labels));
            None
        });
        let Some(what) = done else {
            return Ok(ConflictsFound { examined, rules, resolved: None });
        };
        let rules = kernel::watch::fingerprint(look.inside).ok();
        let resolved = Some(Resolved { what, before: examined.conflicts });
        Ok(ConflictsFound { examined: self.find(look, rules.as_ref())?, rules, resolved })
    }

    /// `rules`: those before this.
    fn find(&self, look: &ConflictLook<'_>, rules: Option<&Fingerprint>) -> Result<Examined, kernel::Error> {
        let processes = self.processes();
        let none = PodProcesses::default();
        let older = self.known().entry(look.inside.id()).or_default().older.clone();
        let subject = ObservedSubject {
            scope: if look.pod.is_some() { NetnsScope::Pod } else { NetnsScope::Node },
            plan: look.plan,
            beside: &self.parts.beside,
            processes: processes.get(&look.inside.id()).unwrap_or(&none),
            proc_root: &self.parts.proc_root,
            proxy_mark: Some((ZTUNNEL_MARK, MARK_MASK)),
            older: older.as_deref(),
            rules,
        };
        let observed = look.kernel.observed(look.inside, &subject)?;
        let observed = match look.pod {
            Some(_) => observed,
            None => observed.probing(look.probed.to_vec()),
        };
        // Where there is none, whichever comes is younger.
        let has_legacy = observed.tables.iter().any(|table| table.lister == Lister::IptablesLegacy);
        if older.is_none() && !has_legacy {
            self.known().entry(look.inside.id()).or_default().older = Some(Vec::new());
        }
        Ok(::conflicts::examine(&observed, look.plan))
    }

    /// Changes what is ours, where that helps. What was done.
    fn resolve(
        &self,
        look: &ConflictLook<'_>,
        found: &[Conflict],
    ) -> Result<Option<&'static str>, kernel::Error> {
        // The node's rules are put first whenever they are compared.
        let Some(pod) = look.pod.filter(|_| look.may_change) else { return Ok(None) };
        if self.parts.resolution == ConflictResolution::Off {
            return Ok(None);
        }
        let first = self.put_first(look, found)?;
        let set = self.parts.resolution == ConflictResolution::All && self.set(look, pod, found);
        Ok(first.or(set.then_some("a setting of the pod's network namespace was changed")))
    }

    /// Changes settings of the pod's namespace, unless that was tried too often. Whether something was changed.
    fn set(&self, look: &ConflictLook<'_>, pod: &PodRef, found: &[Conflict]) -> bool {
        let is_meant = |conflict: &Conflict| matches!(conflict.resolution, Resolution::Sysctl { .. });
        if !found.iter().any(is_meant) {
            return false;
        }
        if !self.known().entry(look.inside.id()).or_default().setting_limits.allow(Instant::now()) {
            return false;
        }
        let done = settings::set(look.inside, &self.parts.run_dir, pod, found);
        for text in &done {
            let (Ok(text) | Err(text)) = text;
            self.log(look, |labels| self.parts.log.warn(text, labels));
        }
        done.iter().any(Result::is_ok)
    }

    /// Puts rules of ours before those of others, where that helps and was not tried too often.
    fn put_first(
        &self,
        look: &ConflictLook<'_>,
        found: &[Conflict],
    ) -> Result<Option<&'static str>, kernel::Error> {
        let worst = found.iter().find(|conflict| {
            conflict.severity == Severity::Error
                && matches!(conflict.resolution, Resolution::Reregister | Resolution::MoveToHead)
        });
        let Some(worst) = worst else { return Ok(None) };
        let allowed = self.known().entry(look.inside.id()).or_default().limits.allow(Instant::now());
        if !allowed {
            return Ok(None);
        }
        if look.kernel.put_first(look.inside, look.plan)? == Change::None {
            return Ok(None);
        }
        let legacy = kernel::observed::legacy_tables(look.inside).ok();
        self.known().entry(look.inside.id()).or_default().older = legacy;
        let text = format!("rules of ours are put before those of others: {}", report::words(worst));
        self.log(look, |labels| self.parts.log.warn(&text, labels));
        Ok(Some("rules of ours were attached anew, before those of others"))
    }

    /// Keeps what was found, and tells what is new.
    fn note(&self, look: &ConflictLook<'_>, looked: ConflictsFound) -> usize {
        let mut known = self.known();
        let namespace = known.entry(look.inside.id()).or_default();
        let knew = !namespace.findings.is_empty();
        let news = namespace.take(looked, look.writer.as_deref(), SystemTime::now());
        let counts = knew || !namespace.findings.is_empty();
        let errors = namespace.errors();
        let worst = namespace.worst().map(report::words);
        drop(known);
        // Most namespaces never have any, and to count takes a walk over all of them.
        if counts {
            self.count();
        }
        if let Some(health) = self.parts.blocks_ready.as_ref().filter(|_| look.pod.is_none()) {
            match worst {
                None => health.ready(HealthPart::Conflicts),
                Some(words) => health.pending(HealthPart::Conflicts, &words),
            }
        }
        news.found.iter().for_each(|conflict| self.tell(look, conflict));
        for conflict in &news.resolved {
            self.parts.metrics.conflict_resolved(&conflict.id.to_string());
        }
        errors
    }

    fn tell(&self, look: &ConflictLook<'_>, conflict: &Conflict) {
        let text = report::words(conflict);
        self.log(look, |labels| match conflict.severity {
            Severity::Error => self.parts.log.error(&text, labels),
            Severity::Warning => self.parts.log.warn(&text, labels),
            Severity::Info => self.parts.log.debug(&text, labels),
        });
        if conflict.severity != Severity::Info {
            self.told.tell(look.pod, conflict.id, text);
        }
    }

    fn log(&self, look: &ConflictLook<'_>, write: impl Fn(&[telemetry::Label<'_>])) {
        match look.pod {
            Some(pod) => write(&[("pod", pod)]),
            None => write(&[("netns", &"the node's")]),
        }
    }

    /// Sets the metric.
    fn count(&self) {
        let mut counts: HashMap<(&'static str, String, String), i64> = HashMap::new();
        for namespace in self.known().values() {
            let scope = if namespace.pod.is_some() { "pod" } else { "node" };
            for finding in namespace.findings.iter().filter(|finding| !finding.gone) {
                let Conflict { id, severity, .. } = &finding.conflict;
                *counts.entry((scope, id.to_string(), severity.to_string())).or_default() += 1;
            }
        }
        self.parts.metrics.conflicts(&counts);
    }

    /// The node's processes, not older than half a minute. Without them nobody is named.
    fn processes(&self) -> ProcessesByNetns {
        let mut kept = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, processes)) = &*kept
            && at.elapsed() < PROCESSES_FOR
        {
            return processes.clone();
        }
        let processes = Arc::new(scan_processes(&self.parts.proc_root).unwrap_or_default());
        *kept = Some((Instant::now(), processes.clone()));
        processes
    }

    fn known(&self) -> MutexGuard<'_, HashMap<NetnsId, NetnsConflicts>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
