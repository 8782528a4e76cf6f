//! Counts the traffic of tenants' pods: what counts is kept in their network namespaces (`place.rs`), read each minute and at each pod's end, and written
//! down by hour (`records.rs`). Where it is turned off, what an earlier agent left of it goes (`leave.rs`).

mod leave;
mod place;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::Cluster;
use enforcement::{MeterError, Policies, UsageMeter, UsageOverview};
use metrics::Metrics;
use policy::index::LocalName;
use telemetry::Scope;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};
use usage::{CountedPod, Hour, PodKey, UsageIncrement, UsagePlan};

use super::pod_point::{PodPointFailure, PodPointKeeper};
use crate::slots::Slots;
pub(super) use leave::leave;
use place::PodToCount;
use records::UsageRecords;
pub(super) use records::has_state;

/// The least between two looks at which pods there are.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Of the time, what these looks and what follows them may take: one part of so many.
const SHARE: u32 = 20;
/// The most between two of them: a pod in which they wait for the kernel is not to keep others from being counted.
const MOST_BETWEEN_LOOKS: Duration = Duration::from_secs(15);
/// How soon it is tried again to find a pod's namespace: its processes may come.
const AGAIN: Duration = Duration::from_secs(2);
/// How often, before it is left to the next reading.
const MOST_TRIES: u32 = 30;

/// What is needed of the agent.
pub(crate) struct UsageParts {
    pub(crate) keeper: Arc<PodPointKeeper>,
    pub(crate) cluster: Cluster,
    pub(crate) slots: Arc<Slots>,
    /// In how many pods' namespaces it is worked at once.
    pub(crate) turn: Semaphore,
    pub(crate) node: String,
    /// Where lines and what is known of counters are kept.
    pub(crate) dir: PathBuf,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Scope,
}

/// Counts until it is aborted.
pub(crate) struct UsageKeeper {
    parts: Arc<UsageParts>,
    policies: Policies,
    /// How often counters are read.
    interval: Duration,
    records: UsageRecords,
    /// By tenant.
    plans: BTreeMap<Box<str>, Arc<UsagePlan>>,
    pods: BTreeMap<LocalName, MeteredPod>,
    /// Pods that are not counted, and how often it was tried.
    missing: BTreeMap<LocalName, (PodKey, u32)>,
    crowded: BTreeSet<Box<str>>,
}

/// A pod with what counts in its namespace.
struct MeteredPod {
    counted: CountedPod,
    meter: UsageMeter,
}

/// Why a pod's traffic is not counted.
#[derive(Debug, thiserror::Error)]
enum UsageFailure {
    #[error(transparent)]
    Place(#[from] PodPointFailure),
    #[error(transparent)]
    Meter(#[from] MeterError),
}

// === impl UsageKeeper ===

impl UsageKeeper {
    pub(crate) fn new(parts: UsageParts, policies: Policies, interval: Duration) -> Self {
        let records = UsageRecords::open(parts.dir.clone(), &parts.node, parts.log.clone(), seconds());
        Self {
            parts: Arc::new(parts),
            policies,
            interval,
            records,
            plans: BTreeMap::new(),
            pods: BTreeMap::new(),
            missing: BTreeMap::new(),
            crowded: BTreeSet::new(),
        }
    }

    pub(crate) async fn live(mut self) {
        let mut turns = self.policies.turns();
        let mut due = Instant::now();
        loop {
            let asked = Instant::now();
            turns.mark_unchanged();
            let overview = self.policies.usage().await;
            if let Some(overview) = overview {
                let is_due = Instant::now() >= due;
                self.round(overview, is_due).await;
                if is_due {
                    due = self.next();
                }
            }
            let pause = (asked.elapsed() * SHARE).clamp(BETWEEN_LOOKS, MOST_BETWEEN_LOOKS);
            let not_before = (Instant::now() + pause).min(due.max(asked + BETWEEN_LOOKS));
            let is_missing = self.missing.values().any(|(_, tries)| *tries < MOST_TRIES);
            let wake = if is_missing { due.min(Instant::now() + AGAIN) } else { due };
            // Where the task of policies has ended, nothing changes any more.
            match timeout_at(wake, turns.changed()).await {
                Ok(Err(_)) => return,
                Ok(Ok(())) | Err(_) => sleep_until(not_before).await,
            }
        }
    }

    /// Counters are read at the end of each hour, too, so that an hour has what is its.
    fn next(&self) -> Instant {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = Duration::from_secs(Hour::of(now.as_secs()).ends()).saturating_sub(now);
        Instant::now() + self.interval.min(end)
    }

    async fn round(&mut self, overview: UsageOverview, is_due: bool) {
        let wanted = self.wanted(overview);
        if is_due {
            self.forget_moved(&wanted).await;
        }
        let mut has_news = is_due | self.end_others(&wanted).await;
        let to_read: Vec<LocalName> =
            self.pods.keys().filter(|name| is_due || self.is_changed(name, &wanted)).cloned().collect();
        self.read(to_read).await;
        self.follow(&wanted).await;
        has_news |= self.place(&wanted, is_due).await;
        let there = wanted.values().map(|pod| pod.key.clone()).collect();
        has_news |= self.records.forget_others(seconds(), &there);
        if has_news {
            self.records.keep(seconds()).await;
            self.parts.metrics.usage_pod_seconds(self.records.book().pod_seconds());
        }
    }

    /// The pods that are to be counted, with the same plan as before where it says the same.
    fn wanted(&mut self, overview: UsageOverview) -> BTreeMap<LocalName, PodToCount> {
        let UsageOverview { pods, mut plans, crowded } = overview;
        for tenant in crowded.difference(&self.crowded) {
            let text = "a class of addresses of a tenant is too large to be told from others at its pods; what goes to it is counted as external";
            self.parts.log.warn(text, &[("tenant", tenant)]);
        }
        self.crowded = crowded;
        for (tenant, plan) in &mut plans {
            if let Some(before) = self.plans.get(tenant).filter(|before| *before == plan) {
                *plan = before.clone();
            }
        }
        self.plans = plans;
        let index = self.parts.cluster.index();
        let mut wanted = BTreeMap::new();
        for (name, tenant) in pods {
            let object = index.pod(&name.namespace, &name.name).cloned();
            let object = object.filter(|pod| !pod.is_terminal() && !pod.host_network());
            if let (Some(object), Some(plan)) = (object, self.plans.get(&tenant).cloned()) {
                let key = PodKey(object.uid().unwrap_or_default().into());
                wanted.insert(name, PodToCount { key, object, tenant, plan });
            }
        }
        self.missing.retain(|name, (key, _)| wanted.get(name).is_some_and(|wanted| wanted.key == *key));
        wanted
    }

    /// A pod whose counters are to be read before it is counted otherwise.
    fn is_changed(&self, name: &LocalName, wanted: &BTreeMap<LocalName, PodToCount>) -> bool {
        let (Some(pod), Some(wanted)) = (self.pods.get(name), wanted.get(name)) else { return false };
        pod.counted.tenant != wanted.tenant || !pod.meter.can_follow(&wanted.plan)
    }

    /// Pods that have gone, or that no tenant has any more: what they counted last is read, also where their namespaces have no other holder. Whether there
    /// were any.
    async fn end_others(&mut self, wanted: &BTreeMap<LocalName, PodToCount>) -> bool {
        let is_same = |name: &LocalName, pod: &MeteredPod| {
            wanted.get(name).is_some_and(|now| now.key == pod.counted.key)
        };
        let gone: Vec<LocalName> = self
            .pods
            .iter()
            .filter(|(name, pod)| !is_same(name, pod))
            .map(|(name, _)| name.clone())
            .collect();
        self.read(gone.clone()).await;
        for name in &gone {
            // One whose counters could not be read is not there any more.
            let Some(pod) = self.pods.remove(name) else { continue };
            self.records.book().gone(seconds(), &pod.counted.key, true);
            self.parts.remove(name, &pod.counted.key).await;
            let_go([pod]);
        }
        !gone.is_empty()
    }

    /// Reads counters, on a thread of its own: a kernel may be busy in such a namespace. Pods whose counters are gone are counted anew.
    async fn read(&mut self, names: Vec<LocalName>) {
        let pods: Vec<(LocalName, MeteredPod)> =
            names.into_iter().filter_map(|name| self.pods.remove_entry(&name)).collect();
        if pods.is_empty() {
            return;
        }
        let work = move || pods.into_iter().map(|(name, mut pod)| (pod.meter.read(), name, pod)).collect();
        let read: Vec<(Result<_, MeterError>, LocalName, MeteredPod)> =
            match tokio::task::spawn_blocking(work).await {
                Ok(read) => read,
                Err(error) => {
                    let text =
                        "the reading of tenants' counters panicked; this is a defect, please report it";
                    return self.parts.log.error(text, &[("error", &error)]);
                }
            };
        let now = seconds();
        for (reading, name, pod) in read {
            match reading {
                Ok(reading) => {
                    let increments = self.records.book().read(now, &pod.counted, &reading);
                    count(&self.parts.metrics, &pod.counted.tenant, &increments);
                    self.pods.insert(name, pod);
                }
                Err(error) => {
                    self.records.book().lost(&pod.counted.key);
                    self.parts.tell(&name, &error.into());
                    let_go([pod]);
                }
            }
        }
    }
}

impl Drop for UsageKeeper {
    fn drop(&mut self) {
        let_go(std::mem::take(&mut self.pods).into_values());
    }
}

/// Closes pods' sockets, on a thread of its own: that waits where a kernel is busy in a namespace. Without a thread it is done here.
fn let_go(pods: impl IntoIterator<Item = MeteredPod>) {
    let pods: Vec<MeteredPod> = pods.into_iter().collect();
    if pods.is_empty() {
        return;
    }
    let _ = std::thread::Builder::new().name("pod".to_owned()).spawn(move || drop(pods));
}

fn count(metrics: &Metrics, tenant: &str, increments: &[UsageIncrement]) {
    for one in increments {
        let peer = one.class.tenant(tenant).map_or_else(|| format!("({})", one.class), str::to_owned);
        let amount = [one.amount.bytes, one.amount.packets, one.amount.connections];
        metrics.usage(tenant, &peer, &one.direction.to_string(), amount);
    }
}

fn told(name: &LocalName) -> String {
    format!("{}/{}", name.namespace, name.name)
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
