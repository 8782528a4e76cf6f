//! What a pod's counters say.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use policy::TrafficDirection;

use crate::class::PeerClass;
use crate::plan::{CounterMeaning, UsagePlan};

/// How much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    /// From the header of the network on.
    pub bytes: u64,
    /// Packets as the kernel has them there: large ones that a card takes apart are one.
    pub packets: u64,
    /// Packets that begin a connection.
    pub connections: u64,
}

/// A counter of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterCount {
    /// Its name.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the counters of a pod say at a time, since they are there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodReading {
    pub(crate) amounts: BTreeMap<(TrafficDirection, PeerClass), Amount>,
}

// === impl Amount ===

impl Amount {
    /// Whether it is nothing.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What it is more than before; nothing where one of the numbers is less.
    pub(crate) fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            bytes: self.bytes.checked_sub(before.bytes)?,
            packets: self.packets.checked_sub(before.packets)?,
            connections: self.connections.checked_sub(before.connections)?,
        })
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.packets = self.packets.saturating_add(other.packets);
        self.connections = self.connections.saturating_add(other.connections);
    }
}

// === impl PodReading ===

impl PodReading {
    /// Of counters that a plan has made. Others are not looked at.
    pub fn new(plan: &UsagePlan, counters: impl IntoIterator<Item = CounterCount>) -> Self {
        let meanings = plan.counters();
        let mut amounts: BTreeMap<(TrafficDirection, PeerClass), Amount> = BTreeMap::new();
        let (mut attempted, mut passed) = (BTreeMap::new(), BTreeMap::new());
        for CounterCount { name, packets, bytes } in counters {
            let Some((direction, meaning)) = meanings.get(&name) else { continue };
            let amount = Amount { bytes, packets, connections: 0 };
            match meaning {
                CounterMeaning::Attempted => drop(attempted.insert(*direction, amount)),
                CounterMeaning::Passed => drop(passed.insert(*direction, amount)),
                CounterMeaning::Traffic(class) => {
                    let of_class = amounts.entry((*direction, class.clone())).or_default();
                    (of_class.bytes, of_class.packets) = (bytes, packets);
                }
                CounterMeaning::Connections(class) => {
                    amounts.entry((*direction, class.clone())).or_default().connections = packets;
                }
            }
        }
        for (direction, attempted) in attempted {
            // They are not read at one moment: less than nothing was not denied.
            let passed = passed.remove(&direction).unwrap_or_default();
            let denied = attempted.since(&passed).unwrap_or_default();
            amounts.insert((direction, PeerClass::Denied), denied);
        }
        Self { amounts }
    }

    /// How much, of a direction and a class.
    pub fn amount(&self, direction: TrafficDirection, class: &PeerClass) -> Amount {
        self.amounts.get(&(direction, class.clone())).copied().unwrap_or_default()
    }
}
