//! Rules in words, about as the nft program prints them.

use std::fmt;

use super::{Condition, Field, ListedAct, ListedRule, address_of};
use crate::rule::Family;

/// The longest text of a rule that a message holds, in bytes.
const LONGEST: usize = 160;

impl fmt::Display for ListedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.text.is_empty() {
            let end = self.text.floor_char_boundary(LONGEST);
            f.write_str(&self.text[..end])?;
            return f.write_str(if end < self.text.len() { "…" } else { "" });
        }
        let mut space = "";
        for condition in &self.conditions {
            write!(f, "{space}{condition}")?;
            space = " ";
        }
        for act in &self.acts {
            write!(f, "{space}{act}")?;
            space = " ";
        }
        Ok(())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::In { field, mask, ranges, not } = self else { return f.write_str("(…)") };
        f.write_str(match field {
            Field::Family => "nfproto",
            Field::Protocol => "meta l4proto",
            Field::Source(Family::V4) => "ip saddr",
            Field::Source(Family::V6) => "ip6 saddr",
            Field::Destination(Family::V4) => "ip daddr",
            Field::Destination(Family::V6) => "ip6 daddr",
            Field::SourcePort => "th sport",
            Field::DestinationPort => "th dport",
            Field::InInterface => "iifname",
            Field::OutInterface => "oifname",
            Field::Uid => "meta skuid",
            Field::Gid => "meta skgid",
            Field::Mark => "meta mark",
            Field::CtMark => "ct mark",
            Field::CtState => "ct state",
            Field::OriginalDestination(Family::V4) => "ct original ip daddr",
            Field::OriginalDestination(Family::V6) => "ct original ip6 daddr",
            Field::OriginalPort => "ct original proto-dst",
            Field::Reply => "ct direction",
            Field::Socket => "socket",
            Field::DestinationType => "fib daddr . iif type",
        })?;
        if *mask != u128::MAX {
            write!(f, " & {mask:#x}")?;
        }
        f.write_str(if *not { " != " } else { " " })?;
        for (at, (low, high)) in ranges.iter().take(8).enumerate() {
            f.write_str(if at == 0 { "" } else { "," })?;
            value(f, *field, *low)?;
            if high != low {
                f.write_str("-")?;
                value(f, *field, *high)?;
            }
        }
        f.write_str(if ranges.len() > 8 { ",…" } else { "" })
    }
}

fn value(f: &mut fmt::Formatter<'_>, field: Field, number: u128) -> fmt::Result {
    match (field, number) {
        (Field::Source(family) | Field::Destination(family) | Field::OriginalDestination(family), number) => {
            write!(f, "{}", address_of(number, family))
        }
        (Field::InInterface | Field::OutInterface, number) => {
            let bytes = number.to_be_bytes();
            let len = bytes.iter().position(|byte| matches!(byte, 0 | 0xff)).unwrap_or(16);
            write!(f, "\"{}\"", String::from_utf8_lossy(&bytes[..len]))
        }
        (Field::Protocol, 6) => f.write_str("tcp"),
        (Field::Protocol, 17) => f.write_str("udp"),
        (Field::Reply, 0) => f.write_str("original"),
        (Field::Reply, _) => f.write_str("reply"),
        (Field::Mark | Field::CtMark | Field::CtState, number) => write!(f, "{number:#x}"),
        (_, number) => write!(f, "{number}"),
    }
}

impl fmt::Display for ListedAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Dnat { to, port } => {
                f.write_str("dnat")?;
                to.iter().try_for_each(|to| write!(f, " to {to}"))?;
                port.iter().try_for_each(|port| write!(f, " port {port}"))
            }
            Self::Redirect { port: Some(port) } => write!(f, "redirect to :{port}"),
            Self::Redirect { port: None } => f.write_str("redirect"),
            Self::Tproxy { port: Some(port) } => write!(f, "tproxy to :{port}"),
            Self::Tproxy { port: None } => f.write_str("tproxy"),
            Self::Snat { to } => {
                f.write_str("snat")?;
                to.iter().try_for_each(|to| write!(f, " to {to}"))
            }
            Self::Masquerade => f.write_str("masquerade"),
            Self::Notrack => f.write_str("notrack"),
            Self::SetZone(zone) => write!(f, "ct zone set {zone}"),
            Self::SetMark { keep: 0, xor } => write!(f, "meta mark set {xor:#x}"),
            Self::SetMark { keep, xor } => write!(f, "meta mark set mark & {keep:#x} ^ {xor:#x}"),
            Self::SetCtMark { keep: 0, xor } => write!(f, "ct mark set {xor:#x}"),
            Self::SetCtMark { keep, xor } => write!(f, "ct mark set ct mark & {keep:#x} ^ {xor:#x}"),
            Self::RestoreMark => f.write_str("meta mark set ct mark"),
            Self::SaveMark => f.write_str("ct mark set meta mark"),
            Self::Unread => f.write_str("…"),
        }
    }
}
