//! What rulesets do to a packet.

mod attached;

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::plan::Backend;
use crate::rule::{
    Action, Chain, CtState, Family, Hook, Match, Protocol, RejectWith, Rule, Ruleset, Table, TableKind,
};
use crate::set::{MapVerdict, Members, Set, Side};

use attached::{Part, attached};

pub use attached::translations_last;

/// A packet and what the kernel knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source address; gives the family.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// The interface that it came in by; empty when it was sent here.
    pub in_interface: String,
    /// The interface that it leaves by; empty when it arrived.
    pub out_interface: String,
    /// Owner of the sending socket, when it was sent here by a process.
    pub owner: Option<Owner>,
    /// Packet mark.
    pub mark: u32,
    /// Mark of its connection.
    pub ct_mark: u32,
    /// Connection tracking state.
    pub state: State,
    /// Whether it answers the packet that began its connection.
    pub reply: bool,
    /// Where its connection's first packet wanted to go, if that is not where this one goes.
    pub original: Option<SocketAddr>,
    /// Type and code of an ICMP or ICMPv6 message, which has no ports.
    pub icmp: (u8, u8),
    /// Whether a transparent socket takes the packet where a TPROXY rule leads it.
    pub listening: bool,
}

/// The ids that own a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Connection tracking state of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The first packet of a connection.
    New,
    /// A later one.
    Established,
    /// First packet of a connection that another one announced; the nat tables see it as they see [`State::New`], and no others.
    Related,
    /// Fits no connection.
    Invalid,
}

/// What became of the packet at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Goes on to where it was going.
    Pass,
    /// Is gone.
    Drop,
    /// Is gone, and its sender is told.
    Reject(RejectWith),
    /// Goes to a port of this namespace by address translation.
    Redirect {
        /// Port.
        port: u16,
    },
    /// Goes to a transparent socket on a port, addresses unchanged.
    Tproxy {
        /// Port.
        port: u16,
    },
    /// Goes to where it was going, from another source address.
    Snat {
        /// The address.
        to: IpAddr,
    },
}

/// A rule and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Owner of the layer.
    pub owner: &'a str,
    /// Table.
    pub table: TableKind,
    /// Chain.
    pub chain: &'a Chain,
    /// Position in the chain, from 0.
    pub index: usize,
    /// The rule.
    pub rule: &'a Rule,
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// Verdict.
    pub verdict: Verdict,
    /// The rule that gave the verdict, or for [`Verdict::Pass`] the one that last ended a chain early; absent when no rule did.
    pub decided_by: Option<Place<'a>>,
    /// Every rule that matched, in order.
    pub trace: Vec<Place<'a>>,
    /// The packet's mark afterwards.
    pub mark: u32,
    /// The connection's mark afterwards.
    pub ct_mark: u32,
    /// The conntrack zone that was set.
    pub zone: Option<u16>,
}

/// Takes a packet through what all layers have at a hook, in the kernel's order ([`attached`]).
///
/// `nat` says whether the nat chains see it: they do for a connection's first packet, unless an earlier hook has translated or
/// passed it already, as on the second half of a way over the loopback interface. `members` knows what is in kept sets.
pub fn evaluate<'a>(
    layers: &'a [Ruleset],
    backend: Backend,
    packet: &Packet,
    hook: Hook,
    nat: bool,
    members: &dyn Members,
) -> Outcome<'a> {
    let mut outcome = Outcome {
        verdict: Verdict::Pass,
        decided_by: None,
        trace: Vec::new(),
        mark: packet.mark,
        ct_mark: packet.ct_mark,
        zone: None,
    };
    let mut packet = Cow::Borrowed(packet);
    for attached in attached(layers, backend, packet.family(), hook) {
        if attached.kind == TableKind::Nat {
            // The first nat chain that translates is the last (`nf_nat_inet_fn` in nf_nat_core.c).
            let translated = matches!(outcome.verdict, Verdict::Redirect { .. } | Verdict::Snat { .. });
            if !nat || translated || !matches!(packet.state, State::New | State::Related) {
                continue;
            }
        }
        for Part { owner, table, chain, rules } in attached.parts {
            let depth = table.chains.len();
            let mut walk =
                Walk { owner, table, backend, packet: &packet, members, outcome: &mut outcome, depth };
            if !matches!(walk.rules(chain, rules), Flow::Continue) {
                break;
            }
        }
        match outcome.verdict {
            Verdict::Drop | Verdict::Reject(_) => break,
            Verdict::Redirect { port } => packet = Cow::Owned(packet.redirected(hook, port)),
            Verdict::Snat { to } => packet = Cow::Owned(Packet { source: to, ..packet.into_owned() }),
            Verdict::Pass | Verdict::Tproxy { .. } => {}
        }
    }
    outcome
}

/// A way through one table.
struct Walk<'r, 'p, 'o> {
    owner: &'r str,
    table: &'r Table,
    backend: Backend,
    packet: &'p Packet,
    members: &'p dyn Members,
    outcome: &'o mut Outcome<'r>,
    /// Chains left to go down; only a circle could use them up, and [`crate::check`] refuses circles.
    depth: usize,
}

/// Whether a chain's caller goes on.
enum Flow {
    Continue,
    /// Back to the caller, whatever follows in the chain.
    Return,
    End,
}

impl<'r> Walk<'r, '_, '_> {
    /// The way through some of a chain's rules.
    fn rules(&mut self, chain: &'r Chain, range: Range<usize>) -> Flow {
        for (index, rule) in chain.rules.iter().enumerate().take(range.end).skip(range.start) {
            if !self.matches(rule) {
                continue;
            }
            let place = Place { owner: self.owner, table: self.table.kind, chain, index, rule };
            self.outcome.trace.push(place);
            match &rule.action {
                Action::SetMark(mark) => self.outcome.mark = *mark,
                Action::SetCtMark { mark, mask } => {
                    self.outcome.ct_mark = self.outcome.ct_mark & !mask | mark;
                }
                Action::SaveMark => self.outcome.ct_mark = self.outcome.mark,
                Action::RestoreMark => self.outcome.mark = self.outcome.ct_mark,
                // Both backends leave a packet alone that has a connection or a zone already (xt_CT.c, nft_ct.c): the first counts.
                Action::SetZone(zone) => self.outcome.zone = self.outcome.zone.or(Some(*zone)),
                Action::Return => {
                    self.passed_by(place);
                    return Flow::Return;
                }
                Action::Jump(target) => {
                    if let Flow::End = self.called(target) {
                        return Flow::End;
                    }
                }
                Action::VerdictMap { map, side, .. } => match self.mapped(map, *side) {
                    // What is not in the map ends the rule (`NFT_BREAK` in nft_lookup.c).
                    None => drop(self.outcome.trace.pop()),
                    Some(MapVerdict::Jump(target)) => {
                        if let Flow::End = self.called(&target) {
                            return Flow::End;
                        }
                    }
                    Some(MapVerdict::Goto(target)) => {
                        return if let Flow::End = self.called(&target) { Flow::End } else { Flow::Return };
                    }
                    Some(MapVerdict::Accept) => return self.accepted(place),
                    Some(MapVerdict::Drop) => return self.decided(place, Verdict::Drop),
                },
                Action::Accept => return self.accepted(place),
                Action::Drop => return self.decided(place, Verdict::Drop),
                Action::Reject(with) => return self.decided(place, Verdict::Reject(*with)),
                // One packet is within its limit.
                Action::Log { .. } => {}
                // The packet has its socket already; another address does not lead it elsewhere.
                Action::Redirect { .. } if matches!(self.outcome.verdict, Verdict::Tproxy { .. }) => {
                    return Flow::End;
                }
                Action::Redirect { port } => return self.decided(place, Verdict::Redirect { port: *port }),
                Action::Snat { to } => return self.decided(place, Verdict::Snat { to: *to }),
                // Nobody listens: nf_tables ends the rule (`NFT_BREAK` in nft_tproxy.c), iptables the packet (xt_TPROXY.c).
                Action::Tproxy { .. } if !self.packet.listening => {
                    if self.backend == Backend::Iptables {
                        return self.decided(place, Verdict::Drop);
                    }
                    self.outcome.trace.pop();
                }
                Action::Tproxy { port, mark } => {
                    self.outcome.mark = *mark;
                    return self.decided(place, Verdict::Tproxy { port: *port });
                }
            }
        }
        Flow::Continue
    }

    /// The way through a chain that a rule leads to.
    fn called(&mut self, target: &str) -> Flow {
        let (Some(target), true) = (self.table.chain(target), self.depth > 0) else { return Flow::Continue };
        self.depth -= 1;
        let flow = self.rules(target, 0..target.rules.len());
        self.depth += 1;
        flow
    }

    fn mapped(&self, map: &str, side: Side) -> Option<MapVerdict> {
        self.set(map)?.leads(self.packet, side, self.members)
    }

    fn accepted(&mut self, place: Place<'r>) -> Flow {
        self.passed_by(place);
        Flow::End
    }

    fn decided(&mut self, place: Place<'r>, verdict: Verdict) -> Flow {
        self.outcome.verdict = verdict;
        self.outcome.decided_by = Some(place);
        Flow::End
    }

    fn passed_by(&mut self, place: Place<'r>) {
        if self.outcome.verdict == Verdict::Pass {
            self.outcome.decided_by = Some(place);
        }
    }

    fn matches(&self, rule: &Rule) -> bool {
        rule.families.contains(self.packet.family()) && rule.matches.iter().all(|m| self.holds(m))
    }

    fn holds(&self, m: &Match) -> bool {
        let packet = self.packet;
        match m {
            Match::InInterface { name, not } => (packet.in_interface == *name) != *not,
            Match::OutInterface { name, not } => (packet.out_interface == *name) != *not,
            Match::Protocol(protocol) => packet.protocol == *protocol,
            Match::Source { net, not } => net.contains(&packet.source) != *not,
            Match::Destination { net, not } => net.contains(&packet.destination) != *not,
            Match::SourceIn { set, not, .. } => self.is_in(set, Side::Source) != *not,
            Match::DestinationIn { set, not, .. } => self.is_in(set, Side::Destination) != *not,
            Match::SourcePort { ports, not } => ports.contains(packet.source_port) != *not,
            Match::DestinationPort { ports, not } => ports.contains(packet.destination_port) != *not,
            Match::Uid { uid, not } => self.owned(packet.owner.map(|owner| owner.uid == *uid), *not),
            Match::Gid { gid, not } => self.owned(packet.owner.map(|owner| owner.gid == *gid), *not),
            Match::WholeHeader => true,
            Match::LocalSocket => packet.owner.is_some(),
            Match::Mark { mark, mask, not } => (self.outcome.mark & mask == *mark) != *not,
            Match::CtMark { mark, mask, not } => (self.outcome.ct_mark & mask == *mark) != *not,
            Match::IcmpType { kind, code } => {
                packet.icmp.0 == *kind && code.is_none_or(|code| packet.icmp.1 == code)
            }
            Match::CtState(state) => match packet.state {
                State::New => false,
                State::Invalid => *state == CtState::Invalid,
                State::Established => matches!(state, CtState::Established | CtState::RelatedOrEstablished),
                State::Related => matches!(state, CtState::Related | CtState::RelatedOrEstablished),
            },
            // A packet that fits no connection has none to be asked.
            Match::Reply | Match::OriginalDestination { .. } | Match::OriginalPort { .. }
                if packet.state == State::Invalid =>
            {
                false
            }
            Match::Reply => packet.reply,
            Match::OriginalDestination { net, not } => net.contains(&packet.original().ip()) != *not,
            Match::OriginalPort { ports, not } => ports.contains(packet.original().port()) != *not,
        }
    }

    /// Without a socket, nf_tables ends the rule (`NFT_BREAK` in nft_meta.c), while the owner match of iptables answers as for an
    /// owner that is nobody's (xt_owner.c).
    fn owned(&self, equal: Option<bool>, not: bool) -> bool {
        match (equal, self.backend) {
            (Some(equal), _) => equal != not,
            (None, Backend::Nftables) => false,
            (None, Backend::Iptables) => not,
        }
    }

    fn is_in(&self, name: &str, side: Side) -> bool {
        self.set(name).is_some_and(|set| set.has(self.packet, side, self.members))
    }

    fn set(&self, name: &str) -> Option<&'r Set> {
        self.table.sets.iter().find(|set| set.name == name)
    }
}

impl Packet {
    /// Family of the addresses.
    pub fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// As it is after a redirect at a hook: what was sent here goes to the loopback address, and what arrived to the first address of its
    /// interface (`nf_nat_redirect.c`), which is taken to be the one that it came for.
    #[must_use]
    pub fn redirected(&self, hook: Hook, port: u16) -> Self {
        let loopback: IpAddr = match self.family() {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        let destination = if hook == Hook::Output { loopback } else { self.destination };
        let original = self.original.or(Some((self.destination, self.destination_port).into()));
        Self { destination, destination_port: port, original, ..self.clone() }
    }

    /// Where the first packet of its connection wanted to go.
    fn original(&self) -> SocketAddr {
        self.original.unwrap_or_else(|| (self.destination, self.destination_port).into())
    }
}

#[cfg(test)]
mod tests;
