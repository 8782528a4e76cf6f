//! Whether the parts of a rule go together, and whether both backends have them.

use std::mem::discriminant;

use super::is_name;
use crate::rule::{
    Action, Counting, Families, Family, Limit, Match, Ports, Protocol, RejectWith, Rule, Table,
};

/// What is wrong with a rule of the table.
pub(super) fn rule_problem(table: &Table, rule: &Rule) -> Option<&'static str> {
    let mut protocol = None;
    for (at, m) in rule.matches.iter().enumerate() {
        if stands_once(m) && rule.matches[..at].iter().any(|other| discriminant(other) == discriminant(m)) {
            return Some("two matches of one port or of the type, which iptables lacks");
        }
        if let Some(family) = m.family()
            && rule.families != Families::Only(family)
        {
            return Some("a match of another family than the rule's");
        }
        match m {
            Match::Protocol(_) if protocol.is_some() => return Some("two protocols"),
            Match::Protocol(asked) => protocol = Some(*asked),
            Match::SourcePort { .. }
            | Match::DestinationPort { .. }
            | Match::OriginalPort { .. }
            | Match::WholeHeader
                if !protocol.is_some_and(Protocol::has_ports) =>
            {
                return Some("a match of a port or a header without a protocol with ports before it");
            }
            Match::OriginalPort { ports: Ports::AnyOf(_), .. } => {
                return Some("a set of original ports, which iptables lacks");
            }
            Match::SourcePort { ports, .. }
            | Match::DestinationPort { ports, .. }
            | Match::OriginalPort { ports, .. } => {
                if let Some(problem) = ports_problem(ports) {
                    return Some(problem);
                }
            }
            Match::IcmpType { .. }
                if protocol.is_none_or(|asked| Match::Protocol(asked).family().is_none()) =>
            {
                return Some("a type of ICMP without that protocol before it");
            }
            Match::InInterface { name, .. } | Match::OutInterface { name, .. } => {
                if let Some(problem) = interface_problem(name) {
                    return Some(problem);
                }
            }
            Match::SourceIn { set, keys, .. } | Match::DestinationIn { set, keys, .. } => {
                let Some(set) = table.sets.iter().find(|s| s.name == *set) else {
                    return Some("a look-up in a set that the table does not have");
                };
                if set.is_map() {
                    return Some("a look-up in a verdict map as in a set");
                }
                if set.family() != keys.family() {
                    return Some("a look-up in a set of the other family");
                }
                if set.keys != *keys {
                    return Some("a look-up in a set with keys of another type");
                }
            }
            Match::Mark { mark, mask, .. } | Match::CtMark { mark, mask, .. } if mark & !mask != 0 => {
                return Some("a mark with bits outside of its mask");
            }
            _ => {}
        }
    }
    action_problem(rule, protocol)
}

fn stands_once(m: &Match) -> bool {
    matches!(m, Match::SourcePort { .. } | Match::DestinationPort { .. } | Match::IcmpType { .. })
}

/// No such name can be given to an interface, or it would be more than a name in the text for iptables.
fn interface_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 15 {
        return Some("an interface name that is empty or longer than 15 bytes");
    }
    let blank = |c: char| c.is_whitespace() || c.is_control() || "/\"'`".contains(c);
    name.contains(blank).then_some("an interface name with blanks, slashes or quotes")
}

fn ports_problem(ports: &Ports) -> Option<&'static str> {
    match ports {
        // As many as `multiport` of iptables holds.
        Ports::AnyOf(list) if list.is_empty() || list.len() > 15 || !list.is_sorted_by(|a, b| a < b) => {
            Some("a port set that is empty, longer than 15, not sorted, or has duplicates")
        }
        Ports::Range(first, last) if first >= last => Some("a range of ports that does not ascend"),
        Ports::Range(0, u16::MAX) => Some("a range of all ports, which is the whole header"),
        _ => None,
    }
}

fn action_problem(rule: &Rule, protocol: Option<Protocol>) -> Option<&'static str> {
    match &rule.counting {
        Counting::Named(name) if !is_name(name) => {
            return Some("the name of a counter is not lower-case letters, digits and hyphens");
        }
        _ => {}
    }
    match rule.action {
        Action::Reject(RejectWith::TcpReset) if protocol != Some(Protocol::Tcp) => {
            Some("a TCP reset without TCP")
        }
        Action::Log { ref prefix, limit, .. } => log_problem(prefix, limit),
        Action::Redirect { .. } if !protocol.is_some_and(Protocol::has_ports) => {
            Some("redirect without a protocol that has ports")
        }
        Action::Tproxy { .. } if !matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) => {
            Some("tproxy without TCP or UDP")
        }
        Action::Tproxy { .. } if rule.families == Families::Both => {
            Some("tproxy for both families in one rule")
        }
        Action::Snat { to } if rule.families != Families::Only(Family::of_address(to)) => {
            Some("a new source address of another family than the rule's")
        }
        Action::SetCtMark { mark, mask } if mark & !mask != 0 => Some("a mark with bits outside of its mask"),
        _ => None,
    }
}

fn log_problem(prefix: &str, limit: Option<Limit>) -> Option<&'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":._/-".contains(c);
    if prefix.is_empty() || prefix.len() > Action::PREFIX_MAX || !prefix.chars().all(plain) {
        return Some(
            "a log prefix that is empty, longer than 63 bytes, or has more than letters, digits and :._/-",
        );
    }
    let Limit { per_second, burst } = limit?;
    // The legacy variant keeps the time between two packets in units of 100 µs (`XT_LIMIT_SCALE`), and shows that as a rate.
    let between = 10_000u32.checked_div(per_second).unwrap_or_default();
    let exact = between > 0 && 10_000 / between == per_second && 10_000 % between <= per_second;
    if !exact || !(1..=10_000).contains(&burst) {
        return Some(
            "a limit that iptables would round: up to 100 each second, and a burst up to 10000, are exact",
        );
    }
    None
}
