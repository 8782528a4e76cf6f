//! The last records, and what was denied beside them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use policy::compile::{LogMark, LoggedFate};
use rundir::denials::{DenialRecord, DenialsReport, DeniedConnection};
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
/// Counters that are remembered without more.
const MOST_BEFORE: usize = 100_000;

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
    /// Namespaces in which it has begun.
    begun: BTreeSet<u64>,
    /// What rules of an earlier agent had counted when this one began.
    before: BTreeMap<(u64, LogMark), u64>,
}

/// What a class has denied in a namespace, or would have.
#[derive(Debug, Default)]
struct ClassTally {
    /// Its counter when it was read last, and when that was.
    counted: u64,
    read: Option<Instant>,
    /// Packets by the counter, also of rules that were made anew; and those of them of which all that was logged has been received.
    by_counter: u64,
    settled: u64,
    /// Packets that records tell, suppressed ones among them. They are ahead of the counter where it was not read since they were received.
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

    /// What rules of a namespace that are there already have counted: who was there before has told of it. Where hearing begins again within the life of
    /// an agent, what was counted meanwhile is told with the next record, also by rules that are there only since.
    pub fn begin(&self, place: u64, counted: impl IntoIterator<Item = (LogMark, u64)>) {
        let mut state = self.state();
        if state.begun.insert(place) {
            state.before.extend(counted.into_iter().map(|(mark, counted)| ((place, mark), counted)));
        }
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
                if batch.is_drained {
                    tally.settle(batch.heard);
                }
                let before = tally.denied();
                if let Some(by_now) = batch.counted.get(&mark) {
                    tally.count(*by_now, now);
                }
                tally.told += received;
                counted.extend(tally.more_than(before));
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

    /// Those classes of a namespace.
    pub fn silent(&self, place: u64, now: Instant) -> Vec<LogMark> {
        let state = self.state();
        let [first, last] = [(u64::MIN, LoggedFate::Dropped), (u64::MAX, LoggedFate::Passed)]
            .map(|(class, fate)| (place, LogMark { class, fate }));
        let of_place = state.tallies.range(first..=last);
        of_place.filter(|(_, tally)| tally.is_silent(now)).map(|((_, mark), _)| *mark).collect()
    }

    /// What the rule of a class has counted by now, where all that was logged before `heard` has been taken. Gives what no record tells of what it had
    /// counted the last time, as a record without ends: the rest may be underway.
    pub fn count(
        &self,
        place: u64,
        mark: LogMark,
        counted: u64,
        [heard, now]: [Instant; 2],
    ) -> (Option<DenialRecord>, Option<CountedDenials>) {
        let mut state = self.state();
        let Some(tally) = state.tallies.get_mut(&(place, mark)) else { return (None, None) };
        tally.settle(heard);
        let before = tally.denied();
        tally.count(counted, now);
        let more = tally.more_than(before);
        let suppressed = tally.suppressed();
        if suppressed == 0 {
            return (None, more);
        }
        let accounted = tally.accounted();
        let (like, now) = (tally.like.clone(), time_text(SystemTime::now()));
        let mut record = DenialRecord {
            time: now.clone(),
            end_time: now,
            connection: DeniedConnection::default(),
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
        state.begun.remove(&place);
    }

    /// Packets that each class has denied since this began, in all namespaces.
    pub fn denied(&self) -> BTreeMap<u64, u64> {
        let mut denied = BTreeMap::new();
        for ((_, mark), tally) in &self.state().tallies {
            // What is only tried out has passed.
            if !mark.is_tried_out() {
                *denied.entry(mark.class).or_default() += tally.denied();
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
            let (now, before) = (Instant::now(), &mut self.before);
            self.tallies.retain(|key, tally| {
                let is_active = tally.heard.is_some_and(|heard| now.duration_since(heard) < ACTIVE);
                // Its counter goes on from there if it denies again.
                if !is_active && before.len() < MOST_BEFORE {
                    before.insert(*key, tally.counted);
                }
                is_active
            });
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
        self.heard.is_some_and(|heard| (SILENT..ACTIVE).contains(&now.saturating_duration_since(heard)))
    }

    /// What no record tells yet, and no packet will that is underway. The next record tells it.
    fn suppressed(&mut self) -> u64 {
        let suppressed = self.settled.saturating_sub(self.told);
        self.told += suppressed;
        suppressed
    }

    /// What of the counter records tell: what it was at the beginning, and what was told since.
    fn accounted(&self) -> u64 {
        (self.counted + self.told).saturating_sub(self.by_counter)
    }

    /// All packets of which it is known, by the counter or because they were received.
    fn denied(&self) -> u64 {
        self.by_counter.max(self.told)
    }

    /// All that was logged before `heard` has been received.
    fn settle(&mut self, heard: Instant) {
        if self.read.is_some_and(|read| heard.saturating_duration_since(read) >= UNDERWAY) {
            self.settled = self.by_counter;
        }
    }

    /// The counter was read and is this. A lower one is of a rule that was made anew.
    fn count(&mut self, counted: u64, now: Instant) {
        self.by_counter += if counted >= self.counted { counted - self.counted } else { counted };
        (self.counted, self.read) = (counted, Some(now));
    }

    /// What is known since so many were.
    fn more_than(&self, before: u64) -> Option<CountedDenials> {
        let more = self.denied() - before;
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
