//! A packet's way through the chains at a hook, as far as the rules can be read.

mod packet;
mod step;

use super::{ListedAct, ListedChain, ListedRule, ListedTable};
use crate::rule::{Base, ChainKind, Family, Hook};

pub use packet::{FirstPacket, TrackedConnection, Tracking};
pub use step::PacketState;

/// `NF_IP_PRI_CONNTRACK` of linux/netfilter_ipv4.h: where connections are looked up.
pub const CONNTRACK_PRIORITY: i32 = -200;

/// What becomes of a packet at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketEnd {
    /// Goes on to where it was going.
    Pass,
    /// Is gone.
    Dropped,
    /// To a port of this namespace.
    Redirect(u16),
    /// To another destination. `named`: the rules on the way ask for exactly the address that it had.
    Dnat {
        /// Address, where it could be read.
        to: Option<std::net::IpAddr>,
        /// Port.
        port: u16,
        /// See above.
        named: bool,
    },
    /// To a transparent socket.
    Tproxy(u16),
}

/// A rule and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct ListedPlace<'a> {
    /// Table.
    pub table: &'a ListedTable,
    /// Chain.
    pub chain: &'a ListedChain,
    /// The base chain from which it was reached.
    pub base: Base,
    /// Rule.
    pub rule: &'a ListedRule,
}

/// The result of a walk.
#[derive(Debug, Clone, Copy)]
pub struct Fate<'a> {
    /// End.
    pub end: PacketEnd,
    /// The rule by which it ended so: that took it, or that kept it from the rules that would have.
    pub by: Option<ListedPlace<'a>>,
    /// A rule that may have done something else, if it could have been read.
    pub unread: Option<ListedPlace<'a>>,
    /// How many rules it met.
    pub met: usize,
}

/// A base chain of a table.
#[derive(Debug, Clone, Copy)]
pub struct Station<'a> {
    /// Table.
    pub table: &'a ListedTable,
    /// Chain.
    pub chain: &'a ListedChain,
    /// How it is attached.
    pub base: Base,
    /// Its place among all: the kernel's priority, then that of the chain itself.
    pub order: (i32, i32),
    /// See [`ListedTable::matters`].
    matters: bool,
}

/// Where the kernel runs the nat chains of a hook, by their own priorities (`NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`).
pub fn nat_priority(hook: Hook) -> i32 {
    match hook {
        Hook::Prerouting | Hook::Output => -100,
        Hook::Input | Hook::Forward | Hook::Postrouting => 100,
    }
}

/// The base chains at a hook that packets of the family meet, by their priorities; those that are equal as they are listed.
pub fn stations<'a>(
    tables: impl IntoIterator<Item = &'a ListedTable>,
    hook: Hook,
    family: Family,
) -> Vec<Station<'a>> {
    let mut found = Vec::new();
    for table in tables.into_iter().filter(|table| table.families.contains(family)) {
        let matters = table.matters();
        for chain in &table.chains {
            let Some(base) = chain.base.filter(|base| base.hook == hook) else { continue };
            let kernel = if base.kind == ChainKind::Nat { nat_priority(hook) } else { base.priority };
            found.push(Station { table, chain, base, order: (kernel, base.priority), matters });
        }
    }
    let keys: Vec<StationKey> = found.iter().map(|station| (station.order, 0)).collect();
    arrange(&found, &keys)
}

/// A place among stations: their order, and a rank among those of the same.
pub(super) type StationKey = ((i32, i32), u8);

/// Stations by their keys, equal ones as they were. There are some tens, and each instance of the standard library's sorting is some
/// kilobytes of the plugin.
pub(super) fn arrange<'a>(stations: &[Station<'a>], keys: &[StationKey]) -> Vec<Station<'a>> {
    let mut numbers: Vec<usize> = Vec::with_capacity(stations.len());
    for number in 0..stations.len() {
        let before = numbers.iter().take_while(|other| keys[**other] <= keys[number]).count();
        numbers.insert(before, number);
    }
    numbers.into_iter().map(|number| stations[number]).collect()
}

/// Takes the first packet of a connection through chains. A rule that could not be read is taken not to hold.
pub fn walk<'a>(stations: &[Station<'a>], packet: &FirstPacket) -> Fate<'a> {
    let mut state = PacketState::new(packet.clone(), TrackedConnection::default());
    let mut unread = None;
    for station in stations {
        if station.order.0 >= CONNTRACK_PRIORITY {
            state.connection.track();
        }
        state.pass(station, &mut |place| {
            // A packet that is dropped does not escape, and one that is accepted in a table of others has met nothing else there.
            if place.rule.acts.iter().any(|act| *act != ListedAct::Drop) && station.matters {
                unread.get_or_insert(place);
            }
            false
        });
        if state.end == PacketEnd::Dropped {
            break;
        }
    }
    Fate { end: state.end, by: state.by(), unread: state.unread.or(unread), met: state.met }
}
