//! A packet's way through one base chain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::{Condition, Field, ListedAct, ListedChain, ListedRule, ListedTable, number_of};
use super::packet::{FirstPacket, TrackedConnection, Tracking};
use super::{ListedPlace, PacketEnd, Station};
use crate::rule::{ChainKind, Family, Hook};

/// How deep chains may call one another (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;
/// The most rules that one packet meets. Chains that call one another often can make very many of few.
const MAX_RULES: usize = 65_536;

/// A packet at a hook, and what rules have done to it there.
#[derive(Debug, Clone)]
pub struct PacketState<'a> {
    /// The packet as it is now.
    pub packet: FirstPacket,
    /// What connection tracking knows of it now.
    pub connection: TrackedConnection,
    /// Addresses that a redirect leads to where the packet has arrived; without one it keeps its own.
    pub redirected_to: Option<IpAddr>,
    /// Whether a transparent socket takes what a rule leads to it.
    pub listening: bool,
    /// What becomes of it.
    pub end: PacketEnd,
    /// The rule that took it.
    pub taker: Option<ListedPlace<'a>>,
    /// The rule that decided its source.
    pub source_by: Option<ListedPlace<'a>>,
    /// The rule that keeps it from connection tracking.
    pub untracked_by: Option<ListedPlace<'a>>,
    /// The rule that changed its mark last.
    pub marked_by: Option<ListedPlace<'a>>,
    /// The rule that ended a chain first.
    pub ended_by: Option<ListedPlace<'a>>,
    /// The base chain whose policy dropped it.
    pub dropped_by_policy_of: Option<Station<'a>>,
    /// A rule that may have done anything to it: one whose acts could not be read.
    pub unread: Option<ListedPlace<'a>>,
    /// Every rule that held, in order.
    pub held: Vec<ListedPlace<'a>>,
    /// How many rules it met.
    pub met: usize,
}

/// Whether a chain's caller goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// On with the caller, or the policy.
    Next,
    /// The base chain is done.
    Stop,
}

/// What follows an act.
enum Step {
    /// The rule's next act, or the next rule.
    On,
    /// The chain's next rule.
    NextRule,
    Leave(Flow),
}

impl<'a> PacketState<'a> {
    /// A packet that no rule has done anything to yet.
    pub fn new(packet: FirstPacket, connection: TrackedConnection) -> Self {
        Self {
            packet,
            connection,
            redirected_to: None,
            listening: true,
            end: PacketEnd::Pass,
            taker: None,
            source_by: None,
            untracked_by: None,
            marked_by: None,
            ended_by: None,
            dropped_by_policy_of: None,
            unread: None,
            held: Vec::new(),
            met: 0,
        }
    }

    /// Takes the packet through a base chain. `holds` says of a rule with a condition that could not be read whether it holds.
    pub fn pass(&mut self, station: &Station<'a>, holds: &mut dyn FnMut(ListedPlace<'a>) -> bool) {
        if station.base.kind == ChainKind::Nat && !self.is_translated_at(station.base.hook) {
            return;
        }
        let mut walk = Walk { station: *station, holds, state: self };
        let flow = walk.chain(station.chain, false, 0);
        if flow == Flow::Next && station.chain.drops {
            self.end = PacketEnd::Dropped;
            self.dropped_by_policy_of = Some(*station);
        }
    }

    /// Whether nat chains of the hook see it: what becomes of a connection's destination is decided once, and of its source once.
    fn is_translated_at(&self, hook: Hook) -> bool {
        let (destination, source) = self.connection.translated;
        let done = match hook {
            Hook::Prerouting | Hook::Output => destination,
            Hook::Input | Hook::Forward | Hook::Postrouting => source,
        };
        self.connection.is_begun() && !done
    }

    /// The rule by which it is as it is: that took it, or that kept it from the rules that would have.
    pub fn by(&self) -> Option<ListedPlace<'a>> {
        match self.end {
            PacketEnd::Pass => self.untracked_by.or(self.marked_by).or(self.ended_by),
            _ => self.taker,
        }
    }

    fn translate(&mut self, address: Option<IpAddr>, port: u16) {
        let packet = &mut self.packet;
        self.connection.original.get_or_insert((packet.destination, packet.destination_port));
        if let Some(address) = address {
            packet.destination = number_of(address);
        }
        packet.destination_port = port;
        self.connection.translated.0 = true;
    }

    /// Whether a condition asks for the very address that the packet goes to.
    fn names_destination(&self, rule: &ListedRule) -> bool {
        let wanted = (self.packet.destination, self.packet.destination);
        rule.conditions.iter().any(|condition| {
            matches!(condition, Condition::In { field: Field::Destination(_), mask: u128::MAX, ranges, not: false }
                if ranges[..] == [wanted])
        })
    }

    fn mark(&mut self, mark: u32, place: ListedPlace<'a>) {
        if self.packet.mark != mark {
            self.packet.mark = mark;
            self.marked_by = Some(place);
        }
    }
}

struct Walk<'a, 's, 'h> {
    station: Station<'a>,
    holds: &'h mut dyn FnMut(ListedPlace<'a>) -> bool,
    state: &'s mut PacketState<'a>,
}

impl<'a> Walk<'a, '_, '_> {
    fn table(&self) -> &'a ListedTable {
        self.station.table
    }

    fn chain(&mut self, chain: &'a ListedChain, named: bool, depth: usize) -> Flow {
        for rule in &chain.rules {
            let place = ListedPlace { table: self.table(), chain, base: self.station.base, rule };
            self.state.met += 1;
            if self.state.met > MAX_RULES {
                self.state.unread.get_or_insert(place);
                return Flow::Stop;
            }
            match self.meets(rule) {
                Some(true) => {}
                None if !rule.acts.is_empty() && (self.holds)(place) => {}
                _ => continue,
            }
            let named = named || self.state.names_destination(rule);
            self.state.held.push(place);
            for act in &rule.acts {
                match self.act(act, place, named, depth) {
                    Step::On => {}
                    Step::NextRule => {
                        self.state.held.pop();
                        break;
                    }
                    Step::Leave(flow) => return flow,
                }
            }
        }
        Flow::Next
    }

    /// `None`: not to be told.
    fn meets(&self, rule: &ListedRule) -> Option<bool> {
        let iptables = self.table().lister.is_iptables();
        let mut known = true;
        for condition in &rule.conditions {
            match self.state.packet.meets(&self.state.connection, condition, iptables) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => known = false,
            }
        }
        known.then_some(true)
    }

    fn act(&mut self, act: &ListedAct, place: ListedPlace<'a>, named: bool, depth: usize) -> Step {
        let leave = Step::Leave;
        match act {
            ListedAct::Accept => {
                self.state.ended_by.get_or_insert(place);
                return leave(Flow::Stop);
            }
            ListedAct::Drop => return self.dropped(place),
            ListedAct::Return => {
                self.state.ended_by = self.state.ended_by.or(Some(place).filter(|_| depth == 0));
                return leave(Flow::Next);
            }
            ListedAct::Jump(target) | ListedAct::Goto(target) => {
                let Some(next) = place.table.chain(target).filter(|_| depth < MAX_DEPTH) else {
                    self.state.unread.get_or_insert(place);
                    return Step::On;
                };
                let flow = self.chain(next, named, depth + 1);
                let goes_back = matches!(act, ListedAct::Jump(_));
                if flow == Flow::Stop || !goes_back {
                    return leave(flow);
                }
            }
            // The kernel takes each only where it can be done.
            ListedAct::Dnat { .. } | ListedAct::Redirect { .. } if !self.translates(true) => {}
            ListedAct::Snat { .. } | ListedAct::Masquerade if !self.translates(false) => {}
            ListedAct::Dnat { to, port } => return self.dnat(*to, *port, place, named),
            ListedAct::Redirect { port } => return self.redirect(*port, place),
            ListedAct::Snat { .. } | ListedAct::Masquerade => return self.snat(act, place),
            ListedAct::Tproxy { port } => return self.tproxy(*port, place),
            ListedAct::Notrack => {
                if self.state.connection.tracking == Tracking::NotYet {
                    self.state.connection.tracking = Tracking::Never;
                    self.state.untracked_by = Some(place);
                }
            }
            ListedAct::SetMark { keep, xor } => self.state.mark((self.state.packet.mark & keep) ^ xor, place),
            ListedAct::RestoreMark if self.is_tracked() => {
                self.state.mark(self.state.connection.mark, place);
            }
            ListedAct::SetCtMark { keep, xor } if self.is_tracked() => {
                self.state.connection.mark = (self.state.connection.mark & keep) ^ xor;
            }
            ListedAct::SaveMark if self.is_tracked() => {
                self.state.connection.mark = self.state.packet.mark;
            }
            ListedAct::RestoreMark | ListedAct::SetCtMark { .. } | ListedAct::SaveMark => {}
            // Another zone is another connection, which begins alike.
            ListedAct::SetZone(_) => {}
            ListedAct::Unread => {
                self.state.unread.get_or_insert(place);
            }
        }
        Step::On
    }

    /// Whether rules of the chain can change a connection's destination, or its source.
    fn translates(&self, destination: bool) -> bool {
        let early = matches!(self.station.base.hook, Hook::Prerouting | Hook::Output);
        self.station.base.kind == ChainKind::Nat && early == destination
    }

    fn is_tracked(&self) -> bool {
        self.state.connection.tracking == Tracking::Yes
    }

    fn dropped(&mut self, place: ListedPlace<'a>) -> Step {
        self.state.end = PacketEnd::Dropped;
        self.state.taker = Some(place);
        Step::Leave(Flow::Stop)
    }

    fn dnat(&mut self, to: Option<IpAddr>, port: Option<u16>, place: ListedPlace<'a>, named: bool) -> Step {
        let port = port.unwrap_or(self.state.packet.destination_port);
        self.state.translate(to, port);
        self.taken(PacketEnd::Dnat { to, port, named }, place)
    }

    /// What was sent here goes to the loopback address, and what arrived to the first address of its interface (`nf_nat_redirect.c`).
    fn redirect(&mut self, port: Option<u16>, place: ListedPlace<'a>) -> Step {
        let port = port.unwrap_or(self.state.packet.destination_port);
        let to = match (self.station.base.hook, self.state.packet.family) {
            (Hook::Output, Family::V4) => Some(Ipv4Addr::LOCALHOST.into()),
            (Hook::Output, Family::V6) => Some(Ipv6Addr::LOCALHOST.into()),
            _ => self.state.redirected_to,
        };
        self.state.translate(to, port);
        self.taken(PacketEnd::Redirect(port), place)
    }

    fn snat(&mut self, act: &ListedAct, place: ListedPlace<'a>) -> Step {
        if let ListedAct::Snat { to: Some(to) } = act {
            self.state.packet.source = number_of(*to);
        }
        self.state.connection.translated.1 = true;
        self.state.source_by = Some(place);
        self.state.ended_by.get_or_insert(place);
        Step::Leave(Flow::Stop)
    }

    /// A packet that has its socket is led nowhere else by another address.
    fn taken(&mut self, end: PacketEnd, place: ListedPlace<'a>) -> Step {
        if self.state.end == PacketEnd::Pass {
            self.state.end = end;
            self.state.taker = Some(place);
        }
        Step::Leave(Flow::Stop)
    }

    /// Where nobody listens nf_tables ends the rule (`NFT_BREAK` in nft_tproxy.c), iptables the packet (xt_TPROXY.c).
    fn tproxy(&mut self, port: Option<u16>, place: ListedPlace<'a>) -> Step {
        match (self.state.listening, self.table().lister.is_iptables()) {
            (true, _) => {}
            (false, true) => return self.dropped(place),
            (false, false) => return Step::NextRule,
        }
        if self.state.end == PacketEnd::Pass {
            self.state.end = PacketEnd::Tproxy(port.unwrap_or(self.state.packet.destination_port));
            self.state.taker = Some(place);
        }
        Step::On
    }
}
