//! What was counted since the last reading, by tenant and hour.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use policy::TrafficDirection;

use crate::class::PeerClass;
use crate::hour::Hour;
use crate::line::{LineRow, PodShare, UsageLine};
use crate::reading::{Amount, PodReading};

/// Pods of a tenant and hour whose part is kept.
const MOST_SHARES: usize = 1_000;
/// Pods that a line names.
const TOP: usize = 10;
/// So many seconds behind its end an hour has more in it than is its: counters are read at its end and at least each ten minutes.
const LATE: u64 = 660;
/// By fewer seconds a clock may be put right.
const BACK: u64 = 3_600;

/// What tells a pod from others of its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodKey(pub Box<str>);

/// A pod whose packets are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedPod {
    /// Its uid.
    pub key: PodKey,
    /// Namespace and name.
    pub name: Box<str>,
    /// Its tenant.
    pub tenant: Box<str>,
    /// The number of its network namespace.
    pub netns: u64,
    /// Whether the counters were made by this agent, so that all they say is news; otherwise they may have been read before.
    pub is_fresh: bool,
}

/// What has come since the last reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageIncrement {
    /// Which way.
    pub direction: TrafficDirection,
    /// What the other end is.
    pub class: PeerClass,
    /// How much.
    pub amount: Amount,
}

/// What is known of the pods' counters, and the sums of the hour. It is kept on disk as JSON after each round of readings: what was counted is in it once,
/// whenever the agent ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageBook {
    node: Box<str>,
    /// Of the machine: the kernel's counters begin anew with each.
    boot: Box<str>,
    /// When it was written, in seconds since 1970.
    saved: u64,
    hour: Hour,
    pods: BTreeMap<PodKey, KnownPod>,
    tenants: BTreeMap<Box<str>, TenantHour>,
    /// Whether the pods that are seen first may have been there while no agent was.
    #[serde(skip)]
    is_restored: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct KnownPod {
    name: Box<str>,
    tenant: Box<str>,
    /// 0 before its counters were read.
    netns: u64,
    /// Until when it is accounted for, in seconds since 1970.
    until: u64,
    last: Vec<LineRow>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct TenantHour {
    expected: u64,
    observed: u64,
    incomplete: bool,
    rows: Vec<LineRow>,
    shares: BTreeMap<Box<str>, u64>,
}

// === impl UsageBook ===

impl UsageBook {
    /// An empty one of a node, since a start of the machine; `now` in seconds since 1970.
    pub fn new(node: &str, boot: &str, now: u64) -> Self {
        Self {
            node: node.into(),
            boot: boot.into(),
            saved: now,
            hour: Hour::of(now),
            pods: BTreeMap::new(),
            tenants: BTreeMap::new(),
            is_restored: false,
        }
    }

    /// That of an earlier agent. After a new start of the machine its pods are gone, with what was not read of them.
    ///
    /// # Errors
    /// It is not what an agent wrote.
    pub fn restore(text: &str, node: &str, boot: &str) -> Result<Self, serde_json::Error> {
        let mut book: Self = serde_json::from_str(text)?;
        book.node = node.into();
        book.is_restored = true;
        if *book.boot != *boot {
            book.boot = boot.into();
            for pod in std::mem::take(&mut book.pods).into_values() {
                book.tenant(&pod.tenant).incomplete = true;
            }
            book.is_restored = false;
        }
        Ok(book)
    }

    /// What an agent kept, to be read only.
    ///
    /// # Errors
    /// It is not what an agent wrote.
    pub fn read_kept(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// For the disk.
    pub fn save(&mut self, now: u64) -> String {
        self.saved = now;
        self.is_restored = false;
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A pod of a tenant is there, whether or not its packets are counted yet.
    pub fn expect(&mut self, now: u64, key: &PodKey, name: &str, tenant: &str) {
        let is_other = self.pods.get(key).is_some_and(|known| *known.tenant != *tenant);
        if is_other {
            // Its namespace went to another tenant. What was not read goes with it; its counters go on.
            if let Some(known) = self.pods.get_mut(key) {
                known.tenant = tenant.into();
            }
        }
        if let Some(known) = self.pods.get_mut(key) {
            // The time in which its counters are waited for shows before they are there.
            if known.netns == 0 {
                let missed = now.saturating_sub(known.until);
                known.until = known.until.max(now);
                self.tenant(tenant).expected += missed;
            }
            return;
        }
        let until = if self.is_restored { self.saved.min(now) } else { now };
        let (name, tenant) = (name.into(), tenant.into());
        self.pods.insert(key.clone(), KnownPod { name, tenant, netns: 0, until, last: Vec::new() });
    }

    /// The counters of a pod were read. Gives what they say more than before.
    pub fn read(&mut self, now: u64, pod: &CountedPod, reading: &PodReading) -> Vec<UsageIncrement> {
        self.expect(now, &pod.key, &pod.name, &pod.tenant);
        let Some(known) = self.pods.get_mut(&pod.key) else { return Vec::new() };
        let (seconds, is_known) = (now.saturating_sub(known.until), known.netns == pod.netns);
        let last = std::mem::take(&mut known.last);
        let before = |direction, class: &PeerClass| {
            let row = last.iter().find(|row| row.direction == direction && row.peer == *class);
            row.map(|row| row.amount).unwrap_or_default()
        };
        let is_less = |direction, class: &PeerClass, amount: &Amount| {
            *class != PeerClass::Denied && amount.since(&before(direction, class)).is_none()
        };
        let is_reset = is_known
            && reading.amounts.iter().any(|((direction, class), now)| is_less(*direction, class, now));
        // Whoever has read them before has counted them.
        let is_news = is_known || pod.is_fresh;
        let mut increments = Vec::new();
        for ((direction, class), amount) in &reading.amounts {
            let before = if is_known && !is_reset { before(*direction, class) } else { Amount::default() };
            let more = amount.since(&before).unwrap_or_default();
            if is_news && !more.is_nothing() {
                increments.push(UsageIncrement { direction: *direction, class: class.clone(), amount: more });
            }
            // What was denied is a difference of two counters, which may seem to become less.
            let is_past = *class == PeerClass::Denied && amount.since(&before).is_none();
            let amount = if is_past { before } else { *amount };
            known.last.push(LineRow { direction: *direction, peer: class.clone(), amount });
        }
        (known.netns, known.until) = (pod.netns, now);
        let tenant = self.tenant(&pod.tenant);
        tenant.expected += seconds;
        if is_known && !is_reset {
            tenant.observed += seconds;
        }
        tenant.incomplete |= is_reset || !is_news;
        tenant.add(&pod.name, &increments);
        increments
    }

    /// A pod is gone. `is_read`: its counters were read when nothing came any more.
    pub fn gone(&mut self, now: u64, key: &PodKey, is_read: bool) {
        let Some(known) = self.pods.remove(key) else { return };
        let tenant = self.tenant(&known.tenant);
        tenant.expected += now.saturating_sub(known.until);
        tenant.incomplete |= !is_read;
    }

    /// Somebody took a pod's counters. Those that are made next begin with nothing.
    pub fn lost(&mut self, key: &PodKey) {
        let Some(known) = self.pods.get_mut(key) else { return };
        (known.netns, known.last) = (0, Vec::new());
        let tenant = known.tenant.clone();
        self.tenant(&tenant).incomplete = true;
    }

    /// The present hour, of which the sums are.
    pub fn hour(&self) -> Hour {
        self.hour
    }

    /// The pods that are accounted for.
    pub fn pods(&self) -> impl Iterator<Item = &PodKey> {
        self.pods.keys()
    }

    /// The lines of the hour, once it is over; to be called after a round of readings. What is read from now on is of the present hour, also where the clock
    /// was set back by more than an hour.
    pub fn close(&mut self, now: u64) -> Vec<UsageLine> {
        let hour = Hour::of(now);
        let is_little_back = hour < self.hour && self.hour.begins().saturating_sub(now) < BACK;
        if hour == self.hour || is_little_back {
            return Vec::new();
        }
        if now > self.hour.ends().saturating_add(LATE) {
            // What was read last is partly of hours in which no agent was here.
            self.tenants.values_mut().for_each(|one| one.incomplete = true);
        }
        let lines = self.lines();
        self.hour = hour;
        self.tenants.clear();
        lines
    }

    /// The lines of the hour so far.
    pub fn lines(&self) -> Vec<UsageLine> {
        self.tenants.iter().map(|(tenant, sums)| sums.line(&self.node, self.hour, tenant)).collect()
    }

    /// Of the seconds that the tenants' pods were there in this hour, those in which their packets were counted, and the others.
    pub fn pod_seconds(&self) -> [u64; 2] {
        self.tenants.values().fold([0, 0], |[observed, missed], one| {
            [observed + one.observed, missed + one.expected.saturating_sub(one.observed)]
        })
    }

    fn tenant(&mut self, name: &str) -> &mut TenantHour {
        self.tenants.entry(name.into()).or_default()
    }
}

// === impl TenantHour ===

impl TenantHour {
    fn add(&mut self, pod: &str, increments: &[UsageIncrement]) {
        for one in increments {
            let is_it = |row: &&mut LineRow| row.direction == one.direction && row.peer == one.class;
            match self.rows.iter_mut().find(is_it) {
                Some(row) => row.amount += one.amount,
                None => self.rows.push(LineRow {
                    direction: one.direction,
                    peer: one.class.clone(),
                    amount: one.amount,
                }),
            }
            let bytes = if one.class == PeerClass::Denied { 0 } else { one.amount.bytes };
            if let Some(share) = self.shares.get_mut(pod) {
                *share = share.saturating_add(bytes);
            } else if self.shares.len() < MOST_SHARES {
                self.shares.insert(pod.into(), bytes);
            }
        }
    }

    fn line(&self, node: &str, hour: Hour, tenant: &str) -> UsageLine {
        let mut rows = self.rows.clone();
        rows.sort_by(|one, other| (one.direction, &one.peer).cmp(&(other.direction, &other.peer)));
        let shares = self.shares.iter().filter(|(_, bytes)| **bytes > 0);
        let mut top: Vec<PodShare> =
            shares.map(|(pod, bytes)| PodShare { pod: pod.clone(), bytes: *bytes }).collect();
        top.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.pod.cmp(&other.pod)));
        top.truncate(TOP);
        UsageLine {
            node: node.into(),
            hour,
            tenant: tenant.into(),
            measured_at: "pod".into(),
            pod_seconds: self.expected,
            observed_pod_seconds: self.observed,
            incomplete: self.incomplete,
            rows,
            top,
        }
    }
}
