//! Puts records of the same ends together, and sees to it that all lines of a rule come to what the rule has counted.
//!
//! The first packet between two ends is a line at once; what follows is one line at the end of each window. What a rule has counted and not logged is
//! shared out between the ends that were logged in that window.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rundir::denials::{DenialEnd, DenialRecord, DeniedConnection};

use crate::event::{AddressMask, AuditEvent, RuleKey, new_uuid};

/// Ends of a rule that are told apart in a window, and of all rules.
const MOST_OF_RULE: usize = 1000;
const MOST_ENDS: usize = 10_000;
/// Destinations that are counted where ends are not told apart any more.
const MOST_DISTINCT: usize = 20_000;
/// Rules whose counters are kept in mind.
const MOST_RULES: usize = 20_000;

/// What of it may be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerConfig {
    /// How long packets between the same ends are put together.
    pub window: Duration,
    /// Lines of first packets a second; what is more waits for the end of its window.
    pub rate: u32,
    /// Of addresses outside of the cluster.
    pub mask: Option<AddressMask>,
}

/// See the module.
#[derive(Debug)]
pub struct AuditLedger {
    config: LedgerConfig,
    rules: BTreeMap<RuleKey, RuleWindow>,
    /// What each rule had counted of which records have been taken.
    counted: BTreeMap<RuleKey, u64>,
    ends: usize,
    /// Packets that found no room in the kernel, not told yet.
    lost: u64,
    /// Lines that may be written at once, and since when.
    tokens: (f64, Instant),
}

#[derive(Debug)]
struct RuleWindow {
    began: Instant,
    flows: HashMap<FlowKey, FlowWindow>,
    /// What is in no flow of its own.
    many: Option<FlowWindow>,
    distinct: HashSet<IpAddr>,
    limited: u64,
    /// The last record of it.
    like: AuditEvent,
}

type FlowKey = (String, String, String, Option<u16>);

#[derive(Debug)]
struct FlowWindow {
    /// What is not written yet; of no packets where all is.
    event: AuditEvent,
    waiting: u64,
    /// All of this window.
    logged: u64,
}

// === impl AuditLedger ===

impl AuditLedger {
    /// Without records.
    pub fn new(config: LedgerConfig, now: Instant) -> Self {
        let tokens = (f64::from(config.rate), now);
        let (rules, counted) = (BTreeMap::new(), BTreeMap::new());
        Self { config, rules, counted, ends: 0, lost: 0, tokens }
    }

    /// What a rule had counted of which lines tell already.
    pub fn begin(&mut self, rule: RuleKey, counted: u64) {
        self.counted.insert(rule, counted);
    }

    /// So many packets found no room in the kernel. They are among those that rules have counted.
    pub fn lose(&mut self, packets: u64) {
        self.lost += packets;
    }

    /// Takes a record; gives a line that is to be written at once.
    pub fn take(&mut self, record: &DenialRecord, now: Instant) -> Option<AuditEvent> {
        let event = AuditEvent::of(record, self.config.mask);
        let rule = RuleKey { netns: record.netns, id: record.policy.id.clone() };
        if !rule.id.is_empty() && (self.counted.len() < MOST_RULES || self.counted.contains_key(&rule)) {
            self.counted.insert(rule.clone(), record.accounted);
        }
        let window = self.rules.entry(rule).or_insert_with(|| RuleWindow::new(now, &event));
        window.limited += record.suppressed;
        let (Some(source), Some(destination)) = (&event.connection.source, &event.connection.destination)
        else {
            return None;
        };
        let key = (
            source.told_without_port(),
            destination.told_without_port(),
            event.connection.protocol.clone(),
            destination.port,
        );
        if let Some(flow) = window.flows.get_mut(&key) {
            flow.add(&event, record.packets);
            return None;
        }
        if window.flows.len() >= MOST_OF_RULE || self.ends >= MOST_ENDS {
            window.add_many(&event, record.packets);
            return None;
        }
        self.ends += 1;
        let event = AuditEvent { packets: Some(record.packets), limited: 0, sampled: false, ..event };
        let flow = FlowWindow { event: event.clone(), waiting: record.packets, logged: record.packets };
        let flow = window.flows.entry(key).or_insert(flow);
        let (tokens, since) = self.tokens;
        let rate = f64::from(self.config.rate);
        let tokens = (tokens + now.duration_since(since).as_secs_f64() * rate).min(rate);
        let is_at_once = tokens >= 1.0;
        self.tokens = (if is_at_once { tokens - 1.0 } else { tokens }, now);
        if is_at_once {
            flow.waiting = 0;
        }
        is_at_once.then_some(event)
    }

    /// The lines of windows that have ended; of all, where `is_end`.
    pub fn tick(&mut self, now: Instant, is_end: bool) -> Vec<AuditEvent> {
        let window = self.config.window;
        let ended = |rule: &RuleWindow| is_end || now.duration_since(rule.began) >= window;
        let keys: Vec<RuleKey> =
            self.rules.iter().filter(|(_, rule)| ended(rule)).map(|(key, _)| key.clone()).collect();
        let mut lines = Vec::new();
        for key in keys {
            let Some(mut rule) = self.rules.remove(&key) else { continue };
            let flows = rule.flows.len();
            let lost = rule.limited.min(self.lost);
            if lost > 0 {
                let of = AuditEvent::gap(&rule.like.node, &key, lost, "kernel");
                lines.push(AuditEvent { policy: rule.like.policy.clone(), ..of });
                self.lost -= lost;
                rule.limited -= lost;
            }
            rule.close(&mut lines);
            // Between the same ends the next packet is no first one.
            rule.flows.retain(|_, flow| flow.logged > 0);
            rule.flows.values_mut().for_each(|flow| flow.logged = 0);
            self.ends -= flows - rule.flows.len();
            if !rule.flows.is_empty() && !is_end {
                self.rules.insert(key, RuleWindow { began: now, limited: 0, ..rule });
            }
        }
        lines
    }

    /// What each rule has counted of which lines were given.
    pub fn written(&self) -> impl Iterator<Item = (&RuleKey, u64)> {
        self.counted.iter().map(|(key, counted)| {
            let waiting = self.rules.get(key).map_or(0, RuleWindow::waiting);
            (key, counted.saturating_sub(waiting))
        })
    }
}

impl RuleWindow {
    fn new(now: Instant, event: &AuditEvent) -> Self {
        let like = AuditEvent { connection: DeniedConnection::default(), ..event.clone() };
        let (flows, many, distinct) = (HashMap::new(), None, HashSet::new());
        Self { began: now, flows, many, distinct, limited: 0, like }
    }

    fn waiting(&self) -> u64 {
        let flows = self.flows.values().chain(&self.many);
        self.limited + flows.map(|flow| flow.waiting).sum::<u64>()
    }

    /// Adds packets to those that are not told apart.
    fn add_many(&mut self, event: &AuditEvent, packets: u64) {
        let to = event.connection.destination.as_ref().and_then(|end| end.ip);
        if let Some(to) = to.filter(|_| self.distinct.len() < MOST_DISTINCT) {
            self.distinct.insert(to);
        }
        let many =
            self.many.get_or_insert_with(|| FlowWindow { event: event.clone(), waiting: 0, logged: 0 });
        many.add(event, packets);
        let before = many.event.connection.clone();
        let (connection, now) = (&mut many.event.connection, &event.connection);
        let tenant = |of: &Option<DenialEnd>| of.as_ref().map(|end| end.tenant.clone()).unwrap_or_default();
        // What all of them have in common.
        let common = |before: &Option<DenialEnd>, now: &Option<DenialEnd>| match tenant(before) {
            before if before == tenant(now) => before,
            _ => String::new(),
        };
        let is_other = before.source.as_ref().map(DenialEnd::told_without_port)
            != now.source.as_ref().map(DenialEnd::told_without_port);
        connection.source = match is_other {
            true => Some(DenialEnd {
                kind: "many".to_owned(),
                tenant: common(&before.source, &now.source),
                ..DenialEnd::default()
            }),
            false => before.source,
        };
        connection.destination = Some(DenialEnd {
            kind: "many".to_owned(),
            tenant: common(&before.destination, &now.destination),
            distinct: self.distinct.len(),
            ..DenialEnd::default()
        });
        if before.protocol != now.protocol {
            connection.protocol.clear();
        }
        connection.icmp = before.icmp.filter(|icmp| now.icmp.as_ref() == Some(icmp));
        if before.tcp_flags != now.tcp_flags {
            connection.tcp_flags.clear();
        }
    }

    /// Gives what is to be written, with what was limited shared out by what was logged.
    fn close(&mut self, lines: &mut Vec<AuditEvent>) {
        let logged: u64 = self.flows.values().chain(&self.many).map(|flow| flow.logged).sum();
        let mut left = self.limited;
        let share = |flow: &FlowWindow| match logged {
            0 => 0,
            all => (u128::from(self.limited) * u128::from(flow.logged) / u128::from(all)) as u64,
        };
        for flow in self.flows.values_mut().chain(&mut self.many) {
            let share = share(flow);
            left -= share;
            flow.give(share, lines);
        }
        self.many = None;
        self.distinct.clear();
        // What rounding has left goes to one of them; without any, it has no ends.
        let rest =
            lines.last_mut().filter(|line| line.accounted().map(|(key, _)| key) == self.key() && logged > 0);
        match rest.filter(|line| line.lost.is_none()) {
            Some(line) if left > 0 => {
                line.packets = line.packets.map(|packets| packets + left);
                line.limited += left;
                line.sampled = true;
            }
            _ if left > 0 => {
                let event = AuditEvent::plain(&self.like.kind, &self.like.node);
                let (time, end_time) = (event.time.clone(), event.time);
                let like = self.like.clone();
                let packets = Some(left);
                lines.push(AuditEvent {
                    time,
                    end_time,
                    uuid: event.uuid,
                    packets,
                    limited: left,
                    sampled: true,
                    ..like
                });
            }
            _ => {}
        }
        self.limited = 0;
    }

    fn key(&self) -> Option<RuleKey> {
        self.like.accounted().map(|(key, _)| key)
    }
}

impl FlowWindow {
    fn add(&mut self, event: &AuditEvent, packets: u64) {
        if self.waiting == 0 {
            self.event = event.clone();
        }
        self.event.end_time.clone_from(&event.end_time);
        self.waiting += packets;
        self.logged += packets;
    }

    fn give(&mut self, limited: u64, lines: &mut Vec<AuditEvent>) {
        let packets = self.waiting + limited;
        if packets > 0 {
            let uuid = if self.waiting == 0 { new_uuid() } else { self.event.uuid.clone() };
            let event = self.event.clone();
            lines.push(AuditEvent { uuid, packets: Some(packets), limited, sampled: limited > 0, ..event });
        }
        self.waiting = 0;
    }
}

#[cfg(test)]
mod tests;
