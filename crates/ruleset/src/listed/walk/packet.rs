//! Packets, and what connection tracking knows of them.

use std::net::IpAddr;

use super::super::{Condition, Field, OWN_ADDRESS, number_of, state};
use crate::rule::Family;

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstPacket {
    /// Family.
    pub family: Family,
    /// Source address.
    pub source: u128,
    /// Destination address.
    pub destination: u128,
    /// IANA number of the transport protocol.
    pub protocol: u8,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The interface that it came in by; 0 when it was sent here.
    pub in_interface: u128,
    /// The interface that it leaves by; 0 when it arrived.
    pub out_interface: u128,
    /// Whether the destination is an address of the interface that it came in by.
    pub own_destination: bool,
    /// User and group of the sending socket, when a process of this namespace sent it.
    pub owner: Option<(u32, u32)>,
    /// A rule gave it the socket of a listener (TPROXY, which sets `skb->sk`): whose that is is not known.
    pub socket_given: bool,
    /// Packet mark.
    pub mark: u32,
}

/// Whether connection tracking has seen a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tracking {
    /// Not yet.
    #[default]
    NotYet,
    /// It has.
    Yes,
    /// A rule keeps it from that.
    Never,
}

/// What connection tracking knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackedConnection {
    /// Whether it knows anything.
    pub tracking: Tracking,
    /// Its state once it is tracked, one of [`state`].
    pub state: u128,
    /// Mark of the connection.
    pub mark: u32,
    /// Whether the packet answers the one that began the connection.
    pub reply: bool,
    /// Where the first packet wanted to go, if that is not where this one goes.
    pub original: Option<(u128, u16)>,
    /// Whether it is decided what becomes of the connection's destination, and of its source: each happens once.
    pub translated: (bool, bool),
}

impl Default for TrackedConnection {
    /// Of a packet that begins one.
    fn default() -> Self {
        Self {
            tracking: Tracking::NotYet,
            state: state::NEW,
            mark: 0,
            reply: false,
            original: None,
            translated: (false, false),
        }
    }
}

impl TrackedConnection {
    /// Comes to the place where connections are looked up.
    pub fn track(&mut self) {
        if self.tracking == Tracking::NotYet {
            self.tracking = Tracking::Yes;
        }
    }

    /// Whether the nat chains see the packet that begins a connection, or one that another announced.
    pub fn is_begun(&self) -> bool {
        self.tracking == Tracking::Yes && matches!(self.state, state::NEW | state::RELATED)
    }
}

impl FirstPacket {
    /// Whether it goes to one of the addresses.
    pub fn goes_to(&self, addresses: &[IpAddr]) -> bool {
        addresses.iter().any(|address| number_of(*address) == self.destination)
    }

    /// Whether a condition holds; `None`: it could not be read.
    pub(super) fn meets(
        &self,
        connection: &TrackedConnection,
        condition: &Condition,
        iptables: bool,
    ) -> Option<bool> {
        let Condition::In { field, mask, ranges, not } = condition else { return None };
        if self.socket_given && matches!(field, Field::Uid | Field::Gid | Field::Socket) {
            return None;
        }
        let Some(value) = self.value(connection, *field) else {
            // The owner match of iptables answers as for an owner that is nobody's (xt_owner.c).
            return Some(*not && iptables && matches!(field, Field::Uid | Field::Gid));
        };
        let inside = match field {
            Field::CtState => ranges.iter().any(|(bits, _)| value & bits != 0),
            _ => ranges.iter().any(|(low, high)| (*low..=*high).contains(&(value & mask))),
        };
        Some(inside != *not)
    }

    /// `None`: the packet has no such thing, so that no condition about it holds.
    fn value(&self, connection: &TrackedConnection, field: Field) -> Option<u128> {
        let tracked = connection.tracking == Tracking::Yes;
        Some(match field {
            Field::Family if self.family == Family::V4 => 2,
            Field::Family => 10,
            Field::Protocol => self.protocol.into(),
            Field::Source(family) if family == self.family => self.source,
            Field::Destination(family) if family == self.family => self.destination,
            Field::Source(_) | Field::Destination(_) => return None,
            Field::SourcePort => self.source_port.into(),
            Field::DestinationPort => self.destination_port.into(),
            Field::InInterface => self.in_interface,
            Field::OutInterface => self.out_interface,
            Field::Uid => self.owner?.0.into(),
            Field::Gid => self.owner?.1.into(),
            Field::Mark => self.mark.into(),
            Field::CtState => match connection.tracking {
                Tracking::NotYet => state::INVALID,
                Tracking::Yes => connection.state,
                Tracking::Never => state::UNTRACKED,
            },
            Field::DestinationType if self.own_destination => OWN_ADDRESS,
            // Of another sort, whichever.
            Field::DestinationType => 0,
            Field::Socket => u128::from(self.owner.is_some()),
            // A packet that fits no connection has none to be asked.
            _ if !tracked || connection.state == state::INVALID => return None,
            Field::CtMark => connection.mark.into(),
            Field::OriginalDestination(family) if family == self.family => {
                connection.original.map_or(self.destination, |(address, _)| address)
            }
            Field::OriginalDestination(_) => return None,
            Field::OriginalPort => connection.original.map_or(self.destination_port, |(_, port)| port).into(),
            Field::Reply => connection.reply.into(),
        })
    }
}
