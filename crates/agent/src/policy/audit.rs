//! Writes what policies deny into the audit file: what of it is told, what is missing, and what the rules had counted while no agent heard them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use audit::{
    AUDIT_GAP, AddressMask, AuditEvent, AuditLedger, AuditLog, Before, FileLimits, LedgerConfig, LogConfig,
    RuleKey,
};
use metrics::Metrics;
use options::agent::{BadOption, Options, Setting};
use policy::compile::LogMark;
use rundir::denials::DenialRecord;
use telemetry::Scope;
use tokio::time::MissedTickBehavior;

use crate::boot;
use crate::config::duration;

/// How often windows are closed.
const TICK: Duration = Duration::from_secs(1);
/// How often it is kept what lines tell of the rules' counters, in ticks.
const KEEP: u32 = 10;
/// How long that may hold up the reader of logs.
const KEEP_PATIENCE: Duration = Duration::from_millis(100);
/// How long the first look at the rules' counters waits for the files.
const BEFORE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the end of the agent waits for the disk.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// The options of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditConfig {
    path: Option<PathBuf>,
    to_stdout: bool,
    limits: FileLimits,
    ledger: LedgerConfig,
    /// As they are told in the file.
    told: BTreeMap<String, String>,
}

/// See the module.
pub(crate) struct AuditTrail {
    log: Arc<AuditLog>,
    node: String,
    boot_id: String,
    metrics: Arc<Metrics>,
    scope: Scope,
    state: Mutex<TrailState>,
}

struct TrailState {
    ledger: AuditLedger,
    has_begun: bool,
    /// Whether the next agent finds a note of this one.
    has_kept: bool,
    /// What rules had counted when hearing began, until it is known what lines tell of it.
    at_start: Vec<(RuleKey, u64)>,
    /// Lines that found no room, as far as they are counted.
    lost: u64,
}

// === impl AuditConfig ===

impl AuditConfig {
    /// Nothing where no audit is written.
    ///
    /// # Errors
    /// The first option that means nothing.
    pub(crate) fn new(options: &Options) -> Result<Option<Self>, BadOption> {
        let positive = |setting: Setting, name| {
            let number = u64::try_from(options.number(setting)).ok().filter(|number| *number > 0);
            number.ok_or_else(|| BadOption::new(name, options.text(setting), "is not a number from 1 on"))
        };
        let time = |setting, name| duration(name, options.text(setting));
        let window = time(Setting::AuditWindow, "audit-window")?;
        if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&window) {
            let text = options.text(Setting::AuditWindow);
            return Err(BadOption::new("audit-window", text, "is not a time from 1s to 5m"));
        }
        let mask = match options.text(Setting::AuditMask) {
            "" => None,
            text => Some(AddressMask::parse(text).ok_or_else(|| {
                BadOption::new("audit-mask", text, "is not the lengths of two prefixes, such as /24,/48")
            })?),
        };
        let gid = match options.text(Setting::AuditGid) {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| BadOption::new("audit-gid", text, "is not the number of a group"))?,
            ),
        };
        let files = positive(Setting::AuditLogFiles, "audit-log-files")?;
        let limits = FileLimits {
            bytes: positive(Setting::AuditLogMaxMb, "audit-log-max-mb")? << 20,
            age: time(Setting::AuditLogMaxAge, "audit-log-max-age")?.max(TICK),
            files: usize::try_from(files).unwrap_or(usize::MAX),
            keep: time(Setting::AuditLogKeep, "audit-log-keep")?.max(TICK),
            gid,
        };
        let rate = positive(Setting::AuditNodeRate, "audit-node-rate")?;
        let ledger = LedgerConfig { window, rate: u32::try_from(rate).unwrap_or(u32::MAX), mask };
        let (path, to_stdout) = destinations(options)?;
        let told = [
            ("AUDIT_LOG", Setting::AuditLog),
            ("AUDIT_MASK", Setting::AuditMask),
            ("AUDIT_NODE_RATE", Setting::AuditNodeRate),
            ("AUDIT_WINDOW", Setting::AuditWindow),
        ];
        let told = told.map(|(name, setting)| (name.to_owned(), options.text(setting).to_owned())).into();
        let config = Self { path, to_stdout, limits, ledger, told };
        Ok((config.path.is_some() || to_stdout).then_some(config))
    }
}

/// A file, standard output (`-`), or both.
fn destinations(options: &Options) -> Result<(Option<PathBuf>, bool), BadOption> {
    let text = options.text(Setting::AuditLog);
    let (mut path, mut to_stdout) = (None, false);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let is_file = part.starts_with('/') && part.ends_with(".jsonl") && !part.ends_with("/.jsonl");
        match part {
            "-" => to_stdout = true,
            part if is_file && path.is_none() => path = Some(PathBuf::from(part)),
            _ => {
                let problem =
                    "is not an absolute path that ends in .jsonl, or -, or both with a comma between";
                return Err(BadOption::new("audit-log", text, problem));
            }
        }
    }
    Ok((path, to_stdout))
}

// === impl AuditTrail ===

impl AuditTrail {
    /// Begins to write. A disk that does not let it is tried again and told of.
    ///
    /// # Errors
    /// The machine has no room for another thread.
    pub(crate) fn start(
        config: AuditConfig,
        node: &str,
        metrics: Arc<Metrics>,
        scope: Scope,
    ) -> std::io::Result<Arc<Self>> {
        let boot_id = boot::id();
        let (of_log, path) = (scope.clone(), config.path.clone());
        let tell = move |problem: Option<&str>| {
            let path = path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            match problem {
                Some(error) => {
                    let text = "the audit file cannot be written: packets do not wait for it, and what finds no room until it can be written is stated in \
                                it; look at the disk and the mount of its directory";
                    of_log.warn(text, &[("path", &path), ("error", &error)]);
                }
                None => of_log.info("the audit file is written again", &[("path", &path)]),
            }
        };
        let log = Arc::new(AuditLog::start(LogConfig {
            path: config.path,
            to_stdout: config.to_stdout,
            limits: config.limits,
            node: node.to_owned(),
            boot_id: boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            options: config.told,
            tell: Box::new(tell),
        })?);
        let (standing, gauges) = (log.clone(), Arc::downgrade(&metrics));
        metrics.before_reading(move || {
            let Some(metrics) = gauges.upgrade() else { return };
            let standing = standing.standing();
            let link = standing.link.as_ref();
            metrics.audit_stands(link.map(|link| (link.hash.as_str(), link.seq)), standing.waiting);
        });
        let ledger = AuditLedger::new(config.ledger, Instant::now());
        let state = Mutex::new(TrailState {
            ledger,
            has_begun: false,
            has_kept: false,
            at_start: Vec::new(),
            lost: 0,
        });
        Ok(Arc::new(Self { log, node: node.to_owned(), boot_id, metrics, scope, state }))
    }

    fn state(&self) -> MutexGuard<'_, TrailState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the rules of a namespace have counted before they are heard. What no line tells of it was denied while no agent heard them. Waits for the
    /// files; to be called where that may be.
    pub(crate) fn begin(&self, netns: u64, counted: &BTreeMap<LogMark, u64>) {
        let before = self.log.before(BEFORE_PATIENCE);
        let mut state = self.state();
        // Hearing may begin again within the life of an agent; then records go on where they were.
        if std::mem::replace(&mut state.has_begun, true) {
            return;
        }
        let rules = counted.iter().map(|(mark, counted)| (RuleKey { netns, id: mark.text() }, *counted));
        let rules: Vec<(RuleKey, u64)> = rules.collect();
        rules.iter().for_each(|(rule, counted)| state.ledger.begin(rule.clone(), *counted));
        match before {
            Some(before) => self.tell_missed(&before, &rules),
            // On a full disk: when it is known what lines tell.
            None => state.at_start = rules,
        }
        drop(state);
        // An agent that is killed soon has a successor that goes by it.
        self.keep(KEEP_PATIENCE);
    }

    /// What rules had counted when hearing began, and no line tells.
    fn tell_missed(&self, before: &Before, rules: &[(RuleKey, u64)]) {
        for (rule, counted) in rules.iter().filter(|_| before.is_known) {
            let told = before.rules.get(rule).copied().unwrap_or_default();
            // A lower counter is of a rule that was made anew.
            let lost = counted.checked_sub(told).unwrap_or(*counted);
            if lost > 0 {
                self.push(AuditEvent::gap(&self.node, rule, lost, "agent"));
            }
        }
    }

    /// Takes records, in their order.
    pub(crate) fn take(&self, records: &[DenialRecord]) {
        let now = Instant::now();
        let mut state = self.state();
        for record in records {
            if let Some(event) = state.ledger.take(record, now) {
                self.push(event);
            }
        }
    }

    /// So many packets found no room in the kernel.
    pub(crate) fn lose(&self, packets: u64) {
        if packets > 0 {
            self.state().ledger.lose(packets);
        }
    }

    fn push(&self, event: AuditEvent) {
        if event.kind == AUDIT_GAP {
            self.metrics.audit_lost(&event.place, event.lost.unwrap_or_default());
        } else {
            self.metrics.audit_event(
                &event.kind,
                &event.verdict,
                event.packets.unwrap_or_default(),
                event.limited,
            );
        }
        self.log.push(event);
    }

    /// Closes windows until it is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for turn in 1_u32.. {
            tick.tick().await;
            self.close(false);
            if turn.is_multiple_of(KEEP) || !self.state().has_kept {
                let trail = self.clone();
                let _ = tokio::task::spawn_blocking(move || trail.keep(KEEP_PATIENCE)).await;
            }
        }
    }

    fn close(&self, is_end: bool) {
        let mut state = self.state();
        if !state.at_start.is_empty()
            && let Some(before) = self.log.before(Duration::ZERO)
        {
            self.tell_missed(&before, &std::mem::take(&mut state.at_start));
        }
        state.ledger.tick(Instant::now(), is_end).into_iter().for_each(|event| self.push(event));
        let lost = self.log.standing().lost_events;
        self.metrics.audit_lost("disk", lost - std::mem::replace(&mut state.lost, lost));
    }

    /// Notes for the next agent what lines tell of the rules' counters. Nothing is taken meanwhile, so that both are of one moment.
    fn keep(&self, patience: Duration) {
        let state = self.state();
        if !state.has_begun {
            return;
        }
        // A disk that does not follow: the next agent reads the lines instead.
        let Some(link) = self.log.flush(patience) else { return };
        let rules = state.ledger.written().map(|(rule, packets)| (rule.clone(), packets)).collect();
        // A disk that hangs must not hold up who hears of denials.
        drop(state);
        match self.log.keep(&self.boot_id, &link, rules) {
            Ok(()) => self.state().has_kept = true,
            Err(error) => {
                self.scope.debug("the note beside the audit file is not written", &[("error", &error)]);
            }
        }
    }

    /// Writes all that is known, and the last line.
    pub(crate) fn stop(&self) {
        self.close(true);
        self.keep(STOP_PATIENCE);
        self.log.stop(STOP_PATIENCE);
    }
}
