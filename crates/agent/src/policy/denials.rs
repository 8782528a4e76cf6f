//! Hears what rules of policies log, and tells it: in the log, as Events, in the metrics, and to whoever asks at the agent's socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use cluster::Cluster;
use enforcement::{
    CountedDenials, DenialBatch, DenialBook, DenialEvents, DeniedPacket, EnforcementPoint, Policies,
};
use kernel::nflog::{LogRead, LoggedHeader, LoggedPacket, PacketLog};
use netns::Host;
use policy::compile::{LOG_GROUP, LogMark};
use rundir::denials::DenialRecord;
use telemetry::Scope;
use tokio::sync::mpsc::Receiver;
use tokio::time::MissedTickBehavior;

use super::audit::AuditTrail;
use super::cuts::{FlowCutter, NarrowedAddresses};
use super::denial_counts::{CountError, DenialCounts};
use crate::ambient::{AmbientConfig, open_host};
use crate::events::Events;
use crate::verification::NetnsWatch;
use metrics::Metrics;

/// `reason` of Events about pods.
const DENIED: &str = "NetworkPolicyDenied";
const CROSS_TENANT: &str = "CrossTenantDenied";
/// Pause between two batches. The kernel keeps what comes meanwhile.
const BETWEEN_BATCHES: Duration = Duration::from_millis(20);
/// How often counters are read of policies that deny without a log.
const COUNT: Duration = Duration::from_secs(2);
/// Pause before a log is asked for again that cannot be had.
const RETRY: Duration = Duration::from_secs(30);
/// Most records of a batch that are told in the agent's own log.
const MOST_LINES: usize = 20;

/// What it needs of the agent.
pub(crate) struct DenialParts {
    pub(crate) policies: Policies,
    pub(crate) book: Arc<DenialBook>,
    pub(crate) cluster: Cluster,
    /// Says where the node's network namespace is.
    pub(crate) config: AmbientConfig,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of connections that end when they are denied; nothing where they go on.
    pub(crate) narrowed: Option<Arc<NarrowedAddresses>>,
    /// Writes them to a file; nothing where that is not asked for.
    pub(crate) audit: Option<Arc<AuditTrail>>,
    pub(crate) log: Scope,
}

/// See the module.
pub(crate) struct DenialReader {
    parts: DenialParts,
    told: Mutex<DenialEvents>,
}

/// The log of one namespace.
struct DenialSource {
    point: EnforcementPoint,
    socket: PacketLog,
    counts: DenialCounts,
    /// Addresses of the own node.
    node: Arc<[IpAddr]>,
}

/// Why a log is not heard.
#[derive(Debug, thiserror::Error)]
enum DeafError {
    #[error("enter the network namespace: {0}")]
    Netns(#[from] netns::Error),
    #[error("listen to group {LOG_GROUP} of nfnetlink_log: {0}")]
    Log(kernel::NetlinkError),
    #[error("choose who reads counters of rules: {0}")]
    Backend(String),
    #[error("{0}")]
    Counts(#[from] CountError),
    #[error("{0}")]
    Addresses(#[from] kernel::route::Error),
    #[error("wait for what rules log: {0}")]
    Wait(#[from] std::io::Error),
    #[error("{0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the agent ends")]
    Ended,
}

// === impl DenialReader ===

impl DenialReader {
    pub(crate) fn new(parts: DenialParts) -> Arc<Self> {
        Arc::new(Self { parts, told: Mutex::default() })
    }

    /// Who ends connections that are denied from now on.
    pub(crate) fn cutter(&self) -> Option<Arc<FlowCutter>> {
        let DenialParts { policies, narrowed, config, log, .. } = &self.parts;
        let (policies, config, log) = (policies.clone(), config.clone(), log.clone());
        Some(Arc::new(FlowCutter { policies, narrowed: narrowed.clone()?, config, log }))
    }

    /// What is known of denials.
    pub(crate) fn book(&self) -> &Arc<DenialBook> {
        &self.parts.book
    }

    /// Who writes them to a file.
    pub(crate) fn audit(&self) -> Option<Arc<AuditTrail>> {
        self.parts.audit.clone()
    }

    /// Hears logs until it is aborted.
    pub(crate) async fn live(self: Arc<Self>) {
        loop {
            let error = match NetnsWatch::start() {
                Ok((watch, events)) => self.hear_all(&watch, events).await,
                Err(error) => error.into(),
            };
            let error = fault::chain(&error);
            let text =
                "what policies deny is not heard, so that it is only counted by the rules; it is tried again";
            self.parts.log.warn(text, &[("path", &"denials"), ("error", &error)]);
            self.parts.book.hears(Some(error));
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Until a log cannot be read any more.
    async fn hear_all(&self, watch: &NetnsWatch, mut events: Receiver<u64>) -> DeafError {
        let mut sources = BTreeMap::new();
        match self.open_node().await {
            Ok((place, source)) => {
                if let Err(error) = watch.wait_for(source.socket.as_fd(), place) {
                    return error.into();
                }
                sources.insert(place, source);
            }
            Err(error) => return error,
        }
        self.parts.book.hears(None);
        self.parts.log.settled(&[("path", &"denials")]);
        let mut count = tokio::time::interval(COUNT);
        count.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let places: Vec<u64> = tokio::select! {
                place = events.recv() => match place {
                    Some(place) => vec![place],
                    None => return DeafError::Ended,
                },
                _ = count.tick() => self.parts.book.active(Instant::now()),
            };
            for place in places {
                let Some(source) = sources.remove(&place) else { continue };
                match self.hear(place, source).await {
                    Ok(source) => _ = sources.insert(place, source),
                    Err(error) => return error,
                }
            }
        }
    }

    async fn open_node(&self) -> Result<(u64, DenialSource), DeafError> {
        let DenialParts { config, book, log, audit, .. } = &self.parts;
        let (config, book, log, audit) = (config.clone(), book.clone(), log.clone(), audit.clone());
        let open = move || {
            let host = open_host(&config)?;
            let place = host.id().ino;
            let (source, counted) = DenialSource::open(host, &config, &log)?;
            if let Some(audit) = audit {
                audit.begin(place, &counted);
            }
            book.begin(place, counted);
            Ok((place, source))
        };
        tokio::task::spawn_blocking(open).await?
    }

    /// Takes all that was logged in a namespace, and what was denied there without a log.
    async fn hear(&self, place: u64, mut source: DenialSource) -> Result<DenialSource, DeafError> {
        loop {
            let began = Instant::now();
            let mut batch = DenialBatch::new(source.point, place, source.node.clone());
            let read = source.read(&mut batch)?;
            batch.hear(began, !read.has_more);
            self.parts.book.lose(read.lost);
            if let Some(audit) = &self.parts.audit {
                audit.lose(read.lost);
            }
            // Something of them may be in the log still.
            let silent = if read.has_more { Vec::new() } else { self.parts.book.silent(place, began) };
            if batch.is_empty() && silent.is_empty() {
                return Ok(source);
            }
            let counting = move || {
                let counted = source.count(&mut batch, &silent);
                (source, batch, counted)
            };
            let (after, batch, counted) = tokio::task::spawn_blocking(counting).await?;
            source = after;
            let counted = counted?;
            let is_empty = batch.is_empty();
            if !is_empty {
                // Without the task of policies the agent ends.
                let Some((batch, records)) = self.parts.policies.denied(batch).await else {
                    return Err(DeafError::Ended);
                };
                let (records, more) = self.parts.book.take(&batch, records, Instant::now());
                self.tell(&records, &more);
            }
            // After the packets that these have counted.
            for (mark, packets) in counted {
                let (record, more) = self.parts.book.count(place, mark, packets, [began, Instant::now()]);
                self.tell(record.as_slice(), more.as_slice());
            }
            if !is_empty {
                tokio::time::sleep(BETWEEN_BATCHES).await;
            }
            if !read.has_more {
                return Ok(source);
            }
        }
    }

    fn tell(&self, records: &[DenialRecord], counted: &[CountedDenials]) {
        let DenialParts { metrics, log, .. } = &self.parts;
        for CountedDenials { is_tried_out, direction, namespace, policies, packets } in counted {
            match is_tried_out {
                false => metrics.policy_denied(direction, namespace, policies, *packets),
                true => metrics.policy_would_deny(direction, namespace, policies, *packets),
            }
        }
        if let Some(audit) = &self.parts.audit {
            audit.take(records);
        }
        records.iter().take(MOST_LINES).for_each(|record| tell_line(log, record));
        for record in records {
            self.write_event(record);
        }
    }

    /// Nothing waits for it.
    fn write_event(&self, record: &DenialRecord) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(event) = told.take(record, Instant::now()) else { return };
        drop(told);
        let index = self.parts.cluster.index();
        let Some(pod) = index.pod(&event.namespace, &event.name).map(|pod| pod.pod_ref()) else { return };
        drop(index);
        let events = self.parts.events.clone();
        tokio::spawn(async move {
            let reason = if event.is_cross_tenant { CROSS_TENANT } else { DENIED };
            events.warn(&pod, reason, &event.message).await
        });
    }
}

fn tell_line(log: &Scope, record: &DenialRecord) {
    let policies = record.policy.selecting.join(", ");
    let (Some(source), Some(destination)) = (&record.connection.source, &record.connection.destination)
    else {
        let text = match record.is_tried_out() {
            false => "policies have denied more packets than were logged",
            true => "policies that are only tried out would have denied more packets than were logged",
        };
        let labels: [telemetry::Label<'_>; 3] = [
            ("direction", &record.traffic_direction),
            ("policies", &policies),
            ("suppressed", &record.suppressed),
        ];
        return log.warn(text, &labels);
    };
    let (from, to) = (source.told_without_port(), destination.told());
    let is_egress = record.traffic_direction == "EGRESS";
    let pod = if is_egress { source } else { destination }.told_without_port();
    let near = record
        .policy
        .nearest_miss
        .as_ref()
        .map(|near| format!("rule {} of {}, by its {}", near.rule, near.policy, near.missed));
    let near = near.unwrap_or_else(|| "no rule".to_owned());
    let text = match record.is_tried_out() {
        false => "policies deny a connection",
        true => "policies that are only tried out would deny a connection",
    };
    log.warn(
        text,
        &[
            ("pod", &pod),
            ("direction", &record.traffic_direction),
            ("source", &from),
            ("destination", &to),
            ("protocol", &record.connection.protocol),
            ("policies", &policies),
            ("nearest", &near),
            ("point", &record.point),
            ("packets", &record.packets),
            ("suppressed", &record.suppressed),
        ],
    );
}

fn packet(logged: &LoggedPacket<'_>) -> Option<DeniedPacket> {
    let header = LoggedHeader::read(logged.packet)?;
    Some(DeniedPacket {
        mark: LogMark::read(&logged.prefix),
        source: header.source,
        destination: header.destination,
        protocol: header.protocol,
        ports: header.ports,
        icmp: header.icmp.map(|icmp| (icmp.kind, icmp.code)),
        tcp_flags: header.tcp_flags.map(|flags| flags.to_string()).unwrap_or_default(),
    })
}

// === impl DenialSource ===

impl DenialSource {
    /// Listens in the node's namespace; with what rules there have counted already, which is not told again.
    fn open(
        host: Host,
        config: &AmbientConfig,
        log: &Scope,
    ) -> Result<(Self, BTreeMap<LogMark, u64>), DeafError> {
        let netns = host.netns().clone();
        let backend = host.enter(|inside| config.backend(inside, log))?.map_err(DeafError::Backend)?;
        let mut counts = DenialCounts::open(host, backend, config.iptables())?;
        // Before the log: what is logged in between is told as suppressed.
        let counted = counts.all()?;
        let (socket, node) = netns.enter(|inside| -> Result<_, DeafError> {
            let socket = PacketLog::open(inside, LOG_GROUP).map_err(DeafError::Log)?;
            Ok((socket, kernel::route::link_addresses(inside)?.into()))
        })??;
        Ok((Self { point: EnforcementPoint::Node, socket, counts, node }, counted))
    }

    /// Puts what was logged into a batch.
    fn read(&mut self, batch: &mut DenialBatch) -> Result<LogRead, DeafError> {
        let now = SystemTime::now();
        let take = |logged: LoggedPacket<'_>| {
            if let Some(packet) = packet(&logged) {
                batch.add(packet, now);
            }
        };
        self.socket.read(&mut PacketLog::buffer(), take).map_err(DeafError::Log)
    }

    /// Tells a batch what its classes have denied in all, and gives the same of others.
    fn count(
        &mut self,
        batch: &mut DenialBatch,
        others: &[LogMark],
    ) -> Result<BTreeMap<LogMark, u64>, CountError> {
        let marks: BTreeSet<LogMark> = batch.marks().collect();
        let all: Vec<LogMark> = marks.iter().copied().chain(others.iter().copied()).collect();
        let mut counted = self.counts.of(&all)?;
        for mark in marks {
            if let Some(packets) = counted.remove(&mark) {
                batch.count(mark, packets);
            }
        }
        Ok(counted)
    }
}
