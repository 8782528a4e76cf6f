//! The last records, and what was denied beside them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use policy::compile::{LogMark, LoggedFate};
use rundir::denials::{DenialRecord, DenialsReport};
use telemetry::time_text;

use super::batch::DenialBatch;

/// Records that are kept.
const KEPT: usize = 4096;
/// A class is asked for its counter until it has denied nothing for so long.
const ACTIVE: Duration = Duration::from_secs(30);
/// What was logged is received after so long at the latest.
const UNDERWAY: Duration = Duration::from_millis(300);
/// For how long a class has to be silent before its counter is read without packets.
const SILENT: Duration = Duration::from_secs(1);
/// Classes whose counters are known, of all namespaces. With one more those are forgotten that deny nothing now.
const MOST_TALLIES: usize = 10_000;

/// See the module. The task that reads logs writes, and whoever is asked reads.
#[derive(Debug)]
pub struct DenialBook {
    node: String,
    run: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<DenialRecord>,
    /// The number of the last record.
    last: u64,
    lost: u64,
    deaf: Option<String>,
    /// By namespace and class.
    tallies: BTreeMap<(u64, LogMark), ClassTally>,
    /// What rules of an earlier agent had counted when this one began.
    before: BTreeMap<(u64, LogMark), u64>,
}

/// What a class has denied in a namespace, or would have.
#[derive(Debug, Default)]
struct ClassTally {
    /// Its counter when it was read last, and when that was.
    counted: u64,
    read: Option<Instant>,
    /// Packets by the counter; those of them of which all that was logged has been received; and those that records tell.
    denied: u64,
    settled: u64,
    told: u64,
    heard: Option<Instant>,
    /// The last record of it, for what is the same in all.
    like: DenialRecord,
}

/// Packets that were denied, or would be, for a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedDenials {
    /// Whether they passed, because the policies are only tried out.
    pub is_tried_out: bool,
    /// `ingress` or `egress`.
    pub direction: String,
    /// Of the pods.
    pub namespace: String,
    /// The names of the policies.
    pub policies: String,
    /// How many.
    pub packets: u64,
}

// === impl DenialBook ===

impl DenialBook {
    /// Without records. `run` tells this run of an agent from others.
    pub fn new(node: &str, run: String) -> Self {
        Self { node: node.to_owned(), run, state: Mutex::default() }
    }

    /// What a rule that is there already has counted: who was there before has told of it.
    pub fn begin(&self, place: u64, mark: LogMark, counted: u64) {
        self.state().before.insert((place, mark), counted);
    }

    /// So many packets found no room on their way to a reader.
    pub fn lose(&self, packets: u64) {
        self.state().lost += packets;
    }

    /// Whether logs are heard; if not, why.
    pub fn hears(&self, deaf: Option<String>) {
        self.state().deaf = deaf;
    }

    /// Numbers the records of a batch, adds what was suppressed, and keeps them. Gives them, and what was counted since.
    pub fn take(
        &self,
        batch: &DenialBatch,
        mut records: Vec<DenialRecord>,
        now: Instant,
    ) -> (Vec<DenialRecord>, Vec<CountedDenials>) {
        let mut state = self.state();
        let mut counted = Vec::new();
        let mut marks = batch.flows.keys().map(|flow| flow.mark);
        for record in &mut records {
            let Some(mark) = marks.next().flatten() else { continue };
            let received = batch.received.get(&mark).copied().unwrap_or_default();
            let tally = state.tally((batch.place, mark));
            // The first of its records in this batch.
            if tally.heard != Some(now) {
                (tally.heard, tally.like) = (Some(now), record.clone());
                if tally.read.is_some_and(|read| now - read >= UNDERWAY) {
                    tally.settled = tally.denied;
                }
                counted.extend(match batch.counted.get(&mark) {
                    Some(by_now) => tally.count(*by_now, Some(now)),
                    // Until the counter is read those are known that were received.
                    None => tally.count(tally.counted + received, None),
                });
                tally.told += received;
                record.suppressed = tally.suppressed();
                record.sampled = record.suppressed > 0;
            }
            record.accounted = tally.accounted();
        }
        records.iter_mut().for_each(|record| state.keep(record));
        (records, counted)
    }

    /// The namespaces with classes whose counters are to be read: that have logged lately.
    pub fn active(&self, now: Instant) -> Vec<u64> {
        let state = self.state();
        let active = state.tallies.iter().filter(|(_, tally)| tally.is_silent(now));
        let places: BTreeSet<u64> = active.map(|((place, _), _)| *place).collect();
        places.into_iter().collect()
    }

    /// Those classes of a namespace. Nothing of them is underway.
    pub fn silent(&self, place: u64, now: Instant) -> Vec<LogMark> {
        let state = self.state();
        let [first, last] = [(u64::MIN, LoggedFate::Dropped), (u64::MAX, LoggedFate::Passed)]
            .map(|(class, fate)| (place, LogMark { class, fate }));
        let of_place = state.tallies.range(first..=last);
        of_place.filter(|(_, tally)| tally.is_silent(now)).map(|((_, mark), _)| *mark).collect()
    }

    /// What the rule of a class has counted by now. Gives what of it no record tells, as a record without ends.
    pub fn count(
        &self,
        place: u64,
        mark: LogMark,
        counted: u64,
    ) -> (Option<DenialRecord>, Option<CountedDenials>) {
        let mut state = self.state();
        let Some(tally) = state.tallies.get_mut(&(place, mark)) else { return (None, None) };
        let more = tally.count(counted, Some(Instant::now()));
        tally.settled = tally.denied;
        let suppressed = tally.suppressed();
        if suppressed == 0 {
            return (None, more);
        }
        let accounted = tally.accounted();
        let (like, now) = (tally.like.clone(), time_text(SystemTime::now()));
        let mut record = DenialRecord {
            time: now.clone(),
            end_time: now,
            source: None,
            destination: None,
            protocol: String::new(),
            icmp: None,
            tcp_flags: String::new(),
            packets: 0,
            suppressed,
            sampled: true,
            accounted,
            ..like
        };
        record.policy.nearest_miss = None;
        state.keep(&mut record);
        (Some(record), more)
    }

    /// Forgets what was counted in a namespace that is gone.
    pub fn forget(&self, place: u64) {
        let mut state = self.state();
        state.tallies.retain(|(of, _), _| *of != place);
        state.before.retain(|(of, _), _| *of != place);
    }

    /// Packets that each class has denied since this began, in all namespaces.
    pub fn denied(&self) -> BTreeMap<u64, u64> {
        let mut denied = BTreeMap::new();
        for ((_, mark), tally) in &self.state().tallies {
            // What is only tried out has passed.
            if !mark.is_tried_out() {
                *denied.entry(mark.class).or_default() += tally.denied;
            }
        }
        denied
    }

    /// The kept records with a higher number.
    pub fn report(&self, after: u64) -> DenialsReport {
        let state = self.state();
        let newer = state.records.partition_point(|record| record.seq <= after);
        DenialsReport {
            node: self.node.clone(),
            run: self.run.clone(),
            deaf: state.deaf.clone(),
            lost: state.lost,
            records: state.records.range(newer..).cloned().collect(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tally(&mut self, key: (u64, LogMark)) -> &mut ClassTally {
        if self.tallies.len() >= MOST_TALLIES && !self.tallies.contains_key(&key) {
            let now = Instant::now();
            self.tallies.retain(|_, tally| tally.heard.is_some_and(|heard| now - heard < ACTIVE));
        }
        let counted = self.before.remove(&key).unwrap_or_default();
        self.tallies.entry(key).or_insert_with(|| ClassTally { counted, ..ClassTally::default() })
    }

    fn keep(&mut self, record: &mut DenialRecord) {
        self.last += 1;
        record.seq = self.last;
        if self.records.len() >= KEPT {
            self.records.pop_front();
        }
        self.records.push_back(record.clone());
    }
}

impl ClassTally {
    /// Whether it has logged lately, and nothing any more.
    fn is_silent(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| (SILENT..ACTIVE).contains(&(now - heard)))
    }

    /// What no record tells yet, and no packet will that is underway. The next record tells it.
    fn suppressed(&mut self) -> u64 {
        let suppressed = self.settled.saturating_sub(self.told);
        self.told += suppressed;
        suppressed
    }

    /// What of the counter records tell.
    fn accounted(&self) -> u64 {
        (self.counted + self.told).saturating_sub(self.denied)
    }

    /// The counter is this now, if it was read; else that much at least. A lower one is of a rule that was made anew.
    fn count(&mut self, counted: u64, read: Option<Instant>) -> Option<CountedDenials> {
        let more = if counted >= self.counted { counted - self.counted } else { counted };
        (self.counted, self.read) = (counted, read.or(self.read));
        self.denied += more;
        let DenialRecord { traffic_direction, policy, .. } = &self.like;
        let is_tried_out = self.like.is_tried_out();
        let namespace = policy.selecting.first().and_then(|name| name.split_once('/'));
        (more > 0).then(|| CountedDenials {
            is_tried_out,
            direction: traffic_direction.to_ascii_lowercase(),
            namespace: namespace.map(|(namespace, _)| namespace.to_owned()).unwrap_or_default(),
            policies: policy.selecting.join(","),
            packets: more,
        })
    }
}
