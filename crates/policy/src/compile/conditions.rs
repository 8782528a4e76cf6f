//! Conditions of rules, and what rules are called.

use facts::networkpolicy::Port;
use ruleset::nft::COMMENT_MAX;
use ruleset::{Family, KeyType, Match, Protocol, Side};

use crate::index::protocol;
use crate::terms::{PolicyName, RuleTerms, TrafficDirection};

/// A condition of a rule on one side, for a family or for both.
pub(super) type RuleCondition = (Option<Family>, Vec<Match>);

/// Two conditions that both hold, for each pair of them that some packet can meet.
pub(super) fn both(one: &[RuleCondition], other: &[RuleCondition]) -> Vec<RuleCondition> {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
    let of_a_packet = pairs.filter(|(one, other)| one.0.is_none() || other.0.is_none() || one.0 == other.0);
    of_a_packet.map(|(one, other)| (one.0.or(other.0), [&*one.1, &*other.1].concat())).collect()
}

/// Policy and rule for the rule's comment. The middle of a name gives way where they are too long together.
pub(super) fn why(policy: &PolicyName, number: usize, rule: &RuleTerms) -> String {
    let called = if rule.name.is_empty() { number.to_string() } else { rule.name.to_string() };
    let end = format!("#{}", shortened(called, COMMENT_MAX / 2));
    let room = COMMENT_MAX - "np:".len() - end.len();
    format!("np:{}{end}", shortened(policy.to_string(), room))
}

fn shortened(name: String, room: usize) -> String {
    const CUT: &str = "...";
    if name.len() <= room {
        return name;
    }
    let half = (room - CUT.len()) / 2;
    let (first, last) = (name.floor_char_boundary(half), name.ceil_char_boundary(name.len() - half));
    format!("{}{CUT}{}", &name[..first], &name[last..])
}

pub(super) fn numbered(port: &Option<Port>) -> RuleCondition {
    (
        None,
        match port {
            Some(Port::All(of)) => vec![Match::Protocol(protocol(*of)), Match::WholeHeader],
            Some(Port::Range(of, (first, last))) => range(protocol(*of), *first, *last),
            // A name is no number; see `PortParts`.
            Some(Port::Named(..)) | None => Vec::new(),
        },
    )
}

/// No condition.
pub(super) fn anything() -> Vec<RuleCondition> {
    vec![(None, Vec::new())]
}

/// The side of a packet that is the policies' pod.
pub(super) fn own_side(direction: TrafficDirection) -> Side {
    match direction {
        TrafficDirection::Egress => Side::Source,
        TrafficDirection::Ingress => Side::Destination,
    }
}

/// The side of a packet that is the peer's.
pub(super) fn side(direction: TrafficDirection) -> Side {
    match direction {
        TrafficDirection::Egress => Side::Destination,
        TrafficDirection::Ingress => Side::Source,
    }
}

pub(super) fn is_in(side: Side, name: String, keys: KeyType, not: bool) -> Match {
    match side {
        Side::Source => Match::SourceIn { set: name.into(), keys, not },
        Side::Destination => Match::DestinationIn { set: name.into(), keys, not },
    }
}

fn range(protocol: Protocol, first: u16, last: u16) -> Vec<Match> {
    // Port 0 is of no packet, so that all ports are those from 1.
    let ports = if first == last { ruleset::Ports::One(first) } else { ruleset::Ports::Range(first, last) };
    vec![Match::Protocol(protocol), Match::DestinationPort { ports, not: false }]
}

/// The opposite of [`is_in`].
pub(super) fn inverted(of: Match) -> Match {
    match of {
        Match::SourceIn { set, keys, not } => Match::SourceIn { set, keys, not: !not },
        Match::DestinationIn { set, keys, not } => Match::DestinationIn { set, keys, not: !not },
        other => other,
    }
}
