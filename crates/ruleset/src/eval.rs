//! What rulesets do to a packet.

mod attached;
mod packet;

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::Range;

use crate::plan::Backend;
use crate::rule::{Action, Chain, CtState, Hook, Match, RejectWith, Rule, Ruleset, Table, TableKind};
use crate::set::{MapVerdict, Members, Set, Side};

use attached::{LayerPart, attached};

pub use attached::translations_last;
pub use packet::{Owner, Packet, State};

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
pub struct RulePlace<'a> {
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
pub struct Evaluation<'a> {
    /// Verdict.
    pub verdict: Verdict,
    /// The rule that gave the verdict, or for [`Verdict::Pass`] the one that last ended a chain early; absent when no rule did.
    pub decided_by: Option<RulePlace<'a>>,
    /// The rules by whose jumps the packet came to that one, outermost first.
    pub callers: Vec<RulePlace<'a>>,
    /// Every rule that matched, in order.
    pub trace: Vec<RulePlace<'a>>,
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
) -> Evaluation<'a> {
    let mut outcome = Evaluation {
        verdict: Verdict::Pass,
        decided_by: None,
        callers: Vec::new(),
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
        for LayerPart { owner, table, chain, rules } in attached.parts {
            let (packet, outcome, callers) = (&*packet, &mut outcome, Vec::new());
            let mut walk = Walk { owner, table, backend, packet, members, outcome, callers };
            if !matches!(walk.rules(chain, rules), Flow::Continue) {
                break;
            }
        }
        match outcome.verdict {
            end if end.is_end() => break,
            Verdict::Redirect { port } => packet = Cow::Owned(packet.redirected(hook, port)),
            Verdict::Snat { to } => packet = Cow::Owned(Packet { source: to, ..packet.into_owned() }),
            _ => {}
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
    outcome: &'o mut Evaluation<'r>,
    /// The rules by whose jumps the packet is where it is. Only a circle could make them more than there are chains, and
    /// [`crate::check`] refuses circles.
    callers: Vec<RulePlace<'r>>,
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
            let place = RulePlace { owner: self.owner, table: self.table.kind, chain, index, rule };
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
                    if let Flow::End = self.called(place, target) {
                        return Flow::End;
                    }
                }
                Action::VerdictMap { map, side, .. } => {
                    if let Some(flow) = self.by_map(place, map, *side) {
                        return flow;
                    }
                }
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

    /// The way that a verdict map says; nothing where the chain goes on.
    fn by_map(&mut self, place: RulePlace<'r>, map: &str, side: Side) -> Option<Flow> {
        match self.mapped(map, side) {
            // What is not in the map ends the rule (`NFT_BREAK` in nft_lookup.c).
            None => {
                self.outcome.trace.pop();
                None
            }
            Some(MapVerdict::Jump(target)) => match self.called(place, &target) {
                Flow::End => Some(Flow::End),
                Flow::Continue | Flow::Return => None,
            },
            Some(MapVerdict::Goto(target)) => Some(match self.called(place, &target) {
                Flow::End => Flow::End,
                Flow::Continue | Flow::Return => Flow::Return,
            }),
            Some(MapVerdict::Accept) => Some(self.accepted(place)),
            Some(MapVerdict::Drop) => Some(self.decided(place, Verdict::Drop)),
        }
    }

    /// The way through a chain that a rule leads to.
    fn called(&mut self, by: RulePlace<'r>, target: &str) -> Flow {
        let Some(target) = self.table.chain(target).filter(|_| self.callers.len() < self.table.chains.len())
        else {
            return Flow::Continue;
        };
        self.callers.push(by);
        let flow = self.rules(target, 0..target.rules.len());
        self.callers.pop();
        flow
    }

    fn mapped(&self, map: &str, side: Side) -> Option<MapVerdict> {
        self.set(map)?.leads(self.packet, side, self.members)
    }

    fn accepted(&mut self, place: RulePlace<'r>) -> Flow {
        self.passed_by(place);
        Flow::End
    }

    fn decided(&mut self, place: RulePlace<'r>, verdict: Verdict) -> Flow {
        self.outcome.verdict = verdict;
        (self.outcome.decided_by, self.outcome.callers) = (Some(place), self.callers.clone());
        Flow::End
    }

    fn passed_by(&mut self, place: RulePlace<'r>) {
        if self.outcome.verdict == Verdict::Pass {
            (self.outcome.decided_by, self.outcome.callers) = (Some(place), self.callers.clone());
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
            Match::OwnDestination => packet.own_destination,
            Match::OwnSource => {
                let is_sent = packet.in_interface.is_empty() || self.backend == Backend::Iptables;
                packet.own_source && is_sent
            }
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

impl Verdict {
    /// Whether nothing more becomes of the packet.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Drop | Self::Reject(_))
    }
}

#[cfg(test)]
mod tests;
