//! Packets of one moment, put together.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use policy::compile::LogMark;

use crate::point::EnforcementPoint;

/// Most connections that are told apart in a batch. The packets of others are counted by the rules as any.
const MOST_FLOWS: usize = 1000;

/// A packet that a rule has logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeniedPacket {
    /// The class of policies that the rule is of; nothing if it is no rule of ours.
    pub mark: Option<LogMark>,
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Of source and destination.
    pub ports: Option<(u16, u16)>,
    /// Type and code.
    pub icmp: Option<(u8, u8)>,
    /// Of a TCP segment, such as `SYN`.
    pub tcp_flags: String,
}

/// Packets that were logged in one namespace within a moment.
#[derive(Debug)]
pub struct DenialBatch {
    pub(super) point: EnforcementPoint,
    /// The namespace, for what its rules have counted.
    pub(super) place: u64,
    /// Addresses of the own node.
    pub(super) node: Arc<[IpAddr]>,
    pub(super) flows: BTreeMap<DeniedFlow, FlowTally>,
    pub(super) received: BTreeMap<LogMark, u64>,
    pub(super) counted: BTreeMap<LogMark, u64>,
    /// What was logged before that time has been received, with this batch, if nothing of it is left in the log.
    pub(super) heard: Instant,
    pub(super) is_drained: bool,
}

/// What is told as one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DeniedFlow {
    pub(super) mark: Option<LogMark>,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Of the destination.
    pub(super) port: Option<u16>,
    pub(super) icmp: Option<(u8, u8)>,
}

/// The packets of it.
#[derive(Debug)]
pub(super) struct FlowTally {
    pub(super) packets: u64,
    pub(super) first: SystemTime,
    pub(super) last: SystemTime,
    /// The source's port and the flags of the first of them.
    pub(super) source_port: Option<u16>,
    pub(super) tcp_flags: String,
}

// === impl DenialBatch ===

impl DenialBatch {
    /// Without packets. `place` is the namespace; `node` the addresses of the own node.
    pub fn new(point: EnforcementPoint, place: u64, node: Arc<[IpAddr]>) -> Self {
        let (flows, received, counted) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (heard, is_drained) = (Instant::now(), true);
        Self { point, place, node, flows, received, counted, heard, is_drained }
    }

    /// When reading the log began from which it is, and whether nothing is left there.
    pub fn hear(&mut self, began: Instant, is_drained: bool) {
        (self.heard, self.is_drained) = (began, is_drained);
    }

    /// One more packet.
    pub fn add(&mut self, packet: DeniedPacket, at: SystemTime) {
        let DeniedPacket { mark, source, destination, protocol, ports, icmp, tcp_flags } = packet;
        let (source_port, port) = ports.unzip();
        let flow = DeniedFlow { mark, source, destination, protocol, port, icmp };
        if let Some(tally) = self.flows.get_mut(&flow) {
            tally.packets += 1;
            tally.last = at;
        } else if self.flows.len() < MOST_FLOWS {
            let tally = FlowTally { packets: 1, first: at, last: at, source_port, tcp_flags };
            self.flows.insert(flow, tally);
        } else {
            return;
        }
        if let Some(mark) = mark {
            *self.received.entry(mark).or_default() += 1;
        }
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The classes whose rules logged them.
    pub fn marks(&self) -> impl Iterator<Item = LogMark> + '_ {
        self.received.keys().copied()
    }

    /// What a class has denied in all, or would have, by the counter of its rule, read after the packets.
    pub fn count(&mut self, mark: LogMark, packets: u64) {
        self.counted.insert(mark, packets);
    }
}
