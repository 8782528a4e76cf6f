//! A packet's way through all chains at a hook, as far as the rules can be read.

use super::{Condition, Field, ListedAct, ListedChain, ListedRule, ListedTable, number_of, state};
use crate::rule::{ChainKind, Family, Hook};

/// `NF_IP_PRI_CONNTRACK` of linux/netfilter_ipv4.h: where connections are looked up.
const CONNTRACK_PRIORITY: i32 = -200;
/// Where the kernel runs the nat chains that change destinations, by their own priorities (`NF_IP_PRI_NAT_DST`).
const NAT_PRIORITY: i32 = -100;
/// How deep chains may call one another (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;
/// The most rules that one packet meets. Chains that call one another often can make very many of few.
const MAX_RULES: usize = 20_000;

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
    /// User and group of the sending socket, when a process of this namespace sent it.
    pub owner: Option<(u32, u32)>,
    /// Packet mark.
    pub mark: u32,
}

/// What becomes of it.
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
    /// Its place among all: the kernel's priority, then that of the chain itself.
    pub order: (i32, i32),
    /// See [`ListedTable::matters`].
    matters: bool,
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
            let kernel = if base.kind == ChainKind::Nat { NAT_PRIORITY } else { base.priority };
            found.push(Station { table, chain, order: (kernel, base.priority), matters });
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

/// Takes the first packet of a connection through chains.
pub fn walk<'a>(stations: &[Station<'a>], packet: &FirstPacket) -> Fate<'a> {
    let mut walk = Walk {
        packet: packet.clone(),
        ct_mark: 0,
        tracking: Tracking::NotYet,
        kind: ChainKind::Filter,
        matters: true,
        end: PacketEnd::Pass,
        taker: None,
        untracked_by: None,
        marked_by: None,
        ended_by: None,
        unread: None,
        met: 0,
    };
    for station in stations {
        let priority = station.order.0;
        walk.matters = station.matters;
        walk.kind = station.chain.base.map_or(ChainKind::Filter, |base| base.kind);
        if priority >= CONNTRACK_PRIORITY && walk.tracking == Tracking::NotYet {
            walk.tracking = Tracking::Yes;
        }
        if walk.kind == ChainKind::Nat && (walk.tracking != Tracking::Yes || walk.end != PacketEnd::Pass) {
            continue;
        }
        let flow = walk.chain(station.table, station.chain, false, 0);
        if flow == Flow::Next && station.chain.drops {
            walk.end = PacketEnd::Dropped;
        }
        if walk.end == PacketEnd::Dropped {
            break;
        }
    }
    let by = match walk.end {
        PacketEnd::Pass => walk.untracked_by.or(walk.marked_by).or(walk.ended_by),
        _ => walk.taker,
    };
    Fate { end: walk.end, by, unread: walk.unread, met: walk.met }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracking {
    NotYet,
    Yes,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// On with the caller, or the policy.
    Next,
    /// The base chain is done.
    Stop,
}

struct Walk<'a> {
    packet: FirstPacket,
    ct_mark: u32,
    tracking: Tracking,
    kind: ChainKind,
    matters: bool,
    end: PacketEnd,
    taker: Option<ListedPlace<'a>>,
    untracked_by: Option<ListedPlace<'a>>,
    marked_by: Option<ListedPlace<'a>>,
    ended_by: Option<ListedPlace<'a>>,
    unread: Option<ListedPlace<'a>>,
    met: usize,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, table: &'a ListedTable, chain: &'a ListedChain, named: bool, depth: usize) -> Flow {
        for rule in &chain.rules {
            let place = ListedPlace { table, chain, rule };
            self.met += 1;
            if self.met > MAX_RULES {
                self.unread.get_or_insert(place);
                return Flow::Stop;
            }
            match self.holds(rule) {
                Some(false) => continue,
                Some(true) => {}
                None => {
                    // A packet that is dropped does not escape, and one that is accepted in a table of others has met nothing else there.
                    if rule.acts.iter().any(|act| *act != ListedAct::Drop) && self.matters {
                        self.unread.get_or_insert(place);
                    }
                    continue;
                }
            }
            let named = named || self.names_destination(rule);
            for act in &rule.acts {
                match self.act(act, place, named, depth) {
                    Step::On => {}
                    Step::Leave(flow) => return flow,
                }
            }
        }
        Flow::Next
    }

    fn act(&mut self, act: &ListedAct, place: ListedPlace<'a>, named: bool, depth: usize) -> Step {
        let leave = Step::Leave;
        match act {
            ListedAct::Accept => {
                self.ended_by.get_or_insert(place);
                return leave(Flow::Stop);
            }
            ListedAct::Drop => {
                self.end = PacketEnd::Dropped;
                return leave(Flow::Stop);
            }
            ListedAct::Return => {
                self.ended_by = self.ended_by.or(Some(place).filter(|_| depth == 0));
                return leave(Flow::Next);
            }
            ListedAct::Jump(target) | ListedAct::Goto(target) => {
                let Some(next) = place.table.chain(target).filter(|_| depth < MAX_DEPTH) else {
                    self.unread.get_or_insert(place);
                    return Step::On;
                };
                let flow = self.chain(place.table, next, named, depth + 1);
                let goes_back = matches!(act, ListedAct::Jump(_));
                if flow == Flow::Stop || !goes_back {
                    return leave(flow);
                }
            }
            ListedAct::Dnat { .. } | ListedAct::Redirect { .. } if self.kind != ChainKind::Nat => {}
            ListedAct::Dnat { to, port } => {
                let port = port.unwrap_or(self.packet.destination_port);
                return self.taken(PacketEnd::Dnat { to: *to, port, named }, place);
            }
            ListedAct::Redirect { port } => {
                let port = port.unwrap_or(self.packet.destination_port);
                return self.taken(PacketEnd::Redirect(port), place);
            }
            ListedAct::Tproxy { port } => {
                if self.end == PacketEnd::Pass {
                    self.end = PacketEnd::Tproxy(port.unwrap_or(self.packet.destination_port));
                    self.taker = Some(place);
                }
            }
            ListedAct::Notrack => {
                if self.tracking == Tracking::NotYet {
                    self.tracking = Tracking::Never;
                    self.untracked_by = Some(place);
                }
            }
            ListedAct::SetMark { keep, xor } => self.mark((self.packet.mark & keep) ^ xor, place),
            ListedAct::RestoreMark if self.tracking == Tracking::Yes => self.mark(self.ct_mark, place),
            ListedAct::SetCtMark { keep, xor } if self.tracking == Tracking::Yes => {
                self.ct_mark = (self.ct_mark & keep) ^ xor;
            }
            ListedAct::SaveMark if self.tracking == Tracking::Yes => self.ct_mark = self.packet.mark,
            ListedAct::RestoreMark | ListedAct::SetCtMark { .. } | ListedAct::SaveMark => {}
            // Nothing here asks for the source afterwards, or for the zone.
            ListedAct::Snat { .. } | ListedAct::Masquerade | ListedAct::SetZone(_) => {}
            ListedAct::Unread => {
                self.unread.get_or_insert(place);
            }
        }
        Step::On
    }

    fn taken(&mut self, end: PacketEnd, place: ListedPlace<'a>) -> Step {
        self.end = end;
        self.taker = Some(place);
        Step::Leave(Flow::Stop)
    }

    fn mark(&mut self, mark: u32, place: ListedPlace<'a>) {
        if self.packet.mark != mark {
            self.packet.mark = mark;
            self.marked_by = Some(place);
        }
    }

    /// Whether a condition asks for the very address that the packet goes to.
    fn names_destination(&self, rule: &ListedRule) -> bool {
        let wanted = (self.packet.destination, self.packet.destination);
        rule.conditions.iter().any(|condition| {
            matches!(condition, Condition::In { field: Field::Destination(_), mask: u128::MAX, ranges, not: false }
                if ranges[..] == [wanted])
        })
    }

    /// `None`: not to be told.
    fn holds(&self, rule: &ListedRule) -> Option<bool> {
        let mut known = true;
        for condition in &rule.conditions {
            match condition {
                Condition::Unread => known = false,
                Condition::In { field, mask, ranges, not } => {
                    let holds = self.value(*field).is_some_and(|value| {
                        let inside = if *field == Field::CtState {
                            ranges.iter().any(|(bits, _)| value & bits != 0)
                        } else {
                            ranges.iter().any(|(low, high)| (*low..=*high).contains(&(value & mask)))
                        };
                        inside != *not
                    });
                    if !holds {
                        return Some(false);
                    }
                }
            }
        }
        known.then_some(true)
    }

    /// `None`: the packet has no such thing, so that no condition about it holds.
    fn value(&self, field: Field) -> Option<u128> {
        let packet = &self.packet;
        Some(match field {
            Field::Family if packet.family == Family::V4 => 2,
            Field::Family => 10,
            Field::Protocol => packet.protocol.into(),
            Field::Source(family) if family == packet.family => packet.source,
            Field::Destination(family) if family == packet.family => packet.destination,
            Field::Source(_) | Field::Destination(_) => return None,
            Field::SourcePort => packet.source_port.into(),
            Field::DestinationPort => packet.destination_port.into(),
            Field::InInterface => packet.in_interface,
            Field::OutInterface => packet.out_interface,
            Field::Uid => packet.owner?.0.into(),
            Field::Gid => packet.owner?.1.into(),
            Field::Mark => packet.mark.into(),
            Field::CtMark if self.tracking == Tracking::Yes => self.ct_mark.into(),
            Field::CtMark => return None,
            Field::CtState => match self.tracking {
                Tracking::NotYet => state::INVALID,
                Tracking::Yes => state::NEW,
                Tracking::Never => state::UNTRACKED,
            },
            // The packet is the first of its connection.
            Field::OriginalDestination(_) | Field::OriginalPort | Field::Reply
                if self.tracking != Tracking::Yes =>
            {
                return None;
            }
            Field::OriginalDestination(family) if family == packet.family => packet.destination,
            Field::OriginalDestination(_) => return None,
            Field::OriginalPort => packet.destination_port.into(),
            Field::Reply => 0,
            Field::Socket => u128::from(packet.owner.is_some()),
        })
    }
}

enum Step {
    On,
    Leave(Flow),
}

impl FirstPacket {
    /// Whether it goes to one of the addresses.
    pub fn goes_to(&self, addresses: &[std::net::IpAddr]) -> bool {
        addresses.iter().any(|address| number_of(*address) == self.destination)
    }
}
