//! Rules of anybody, read as far as they can be: instructions back into conditions and acts.
//!
//! [`super::expr`] knows the instructions of our own rules and takes everything else for different. Here it is the other way round: what
//! is understood is used, whoever wrote it, and the rest is said to be unread.

mod fields;
mod members;

use ruleset::listed::{Condition, Field, ListedAct, ListedRule, address_of, number_of_name};
use ruleset::{Base, ChainKind, Family, Hook};

use fields::{covered, field_number, is_native};
pub(super) use members::members;

use super::uapi::{ORIGINAL, cmp, ct, expr as uapi, family, fib, meta, payload, verdict};
use crate::netlink::wire::Attributes;

/// The number and the name of the one interface whose number is known everywhere: `LOOPBACK_IFINDEX`.
const LOOPBACK: (u32, &str) = (1, "lo");
/// `NFT_META_IIF`, `NFT_META_OIF`: numbers of interfaces.
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
/// `NFT_NAT_DNAT`.
const DNAT: u32 = 1;
/// `NFTA_CT_DIRECTION`.
const CT_DIRECTION: u16 = 3;
/// `NFT_GOTO`.
const GOTO: i32 = -4;
/// `NFTA_LOOKUP_*`.
const LOOKUP_SET: u16 = 1;
const LOOKUP_SOURCE: u16 = 2;
const LOOKUP_DATA: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;

/// The members of the sets that a table's rules may ask for: keys as the kernel has them, in ranges. Absent: could not be read.
pub(super) type SetRanges = std::collections::HashMap<String, Option<Vec<(Vec<u8>, Vec<u8>)>>>;

/// What a register holds.
#[derive(Clone)]
enum Register {
    /// A field of the packet, under a mask. `bytes` is how many of them were loaded.
    Field {
        field: Field,
        bytes: usize,
        mask: u128,
        xor: u128,
    },
    /// The number of an interface.
    Index(Field),
    Constant(Vec<u8>),
}

#[derive(Default)]
struct Reader {
    registers: Vec<(u32, Register)>,
    rule: ListedRule,
}

/// Reads `NFTA_RULE_EXPRESSIONS`.
pub(super) fn rule(expressions: Attributes<'_>, sets: &SetRanges) -> ListedRule {
    let mut reader = Reader::default();
    for item in expressions {
        let name = item.nested().find(uapi::NAME).map(|name| name.text()).unwrap_or_default();
        let operands = item.nested().find(uapi::DATA).map_or(Attributes::new(&[]), |data| data.nested());
        if reader.step(&name, operands, sets).is_none() {
            reader.rule.conditions.push(Condition::Unread);
        }
    }
    reader.rule
}

/// Registers of 16 bytes are four of those of 4 (`enum nft_registers`).
fn register(number: u32) -> u32 {
    if (1..=4).contains(&number) { 8 + (number - 1) * 4 } else { number }
}

fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.find(kind)?.be32()
}

fn data(attributes: Attributes<'_>, kind: u16) -> Option<Vec<u8>> {
    Some(attributes.find(kind)?.nested().find(uapi::DATA_VALUE)?.data.to_vec())
}

impl Reader {
    fn load(&mut self, at: u32, value: Option<Register>) {
        self.registers.retain(|(number, _)| *number != register(at));
        self.registers.extend(value.map(|value| (register(at), value)));
    }

    fn get(&self, at: u32) -> Option<Register> {
        self.registers.iter().find(|(number, _)| *number == register(at)).map(|(_, value)| value.clone())
    }

    fn act(&mut self, act: ListedAct) -> Option<()> {
        self.rule.acts.push(act);
        Some(())
    }

    /// `None`: a condition that was not understood.
    fn step(&mut self, name: &str, a: Attributes<'_>, sets: &SetRanges) -> Option<()> {
        match name {
            // What does nothing to the packet's way.
            "counter" | "log" | "last" | "dup" | "objref" | "dynset" => Some(()),
            "masq" => self.act(ListedAct::Masquerade),
            "meta" => self.meta(a),
            "ct" => self.ct(a),
            "fib" => self.fib(a),
            "payload" => self.payload(a),
            "immediate" => self.immediate(a),
            "bitwise" => self.bitwise(a),
            "cmp" => self.compare(a),
            "range" => self.range(a),
            "lookup" => self.lookup(a, sets),
            "redir" => {
                let port = number(a, 1).and_then(|at| self.port(at));
                self.act(if number(a, 1).is_some() && port.is_none() {
                    ListedAct::Unread
                } else {
                    ListedAct::Redirect { port }
                })
            }
            "tproxy" => {
                let port = number(a, 3).and_then(|at| self.port(at));
                self.act(ListedAct::Tproxy { port })
            }
            "nat" if number(a, 1)? == DNAT => {
                let to = number(a, 3).and_then(|at| self.get(at)).and_then(|value| address(&value));
                let port = number(a, 5).and_then(|at| self.port(at));
                self.act(ListedAct::Dnat { to, port })
            }
            "nat" => {
                let to = number(a, 3).and_then(|at| self.get(at)).and_then(|value| address(&value));
                self.act(ListedAct::Snat { to })
            }
            "notrack" => self.act(ListedAct::Notrack),
            "limit" => None,
            // Nothing of the packet gets through, whatever the answer.
            "reject" => self.act(ListedAct::Drop),
            "queue" | "fwd" | "synproxy" => self.act(ListedAct::Unread),
            // Of iptables: its own programs print them.
            "target" => self.act(ListedAct::Unread),
            _ => {
                self.registers.clear();
                None
            }
        }
    }

    fn port(&self, at: u32) -> Option<u16> {
        match self.get(at)? {
            Register::Constant(bytes) => Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?)),
            _ => None,
        }
    }

    fn meta(&mut self, a: Attributes<'_>) -> Option<()> {
        let key = number(a, 2)?;
        if let Some(source) = number(a, 3) {
            return match (key, self.get(source)) {
                (meta::MARK, Some(value)) => self.set(&value, Field::Mark),
                (meta::MARK, None) => self.act(ListedAct::Unread),
                _ => Some(()),
            };
        }
        let field = |field, bytes| Register::Field { field, bytes, mask: u128::MAX, xor: 0 };
        let value = match key {
            meta::MARK => Some(field(Field::Mark, 4)),
            meta::IIFNAME => Some(field(Field::InInterface, 16)),
            meta::OIFNAME => Some(field(Field::OutInterface, 16)),
            META_IIF => Some(Register::Index(Field::InInterface)),
            META_OIF => Some(Register::Index(Field::OutInterface)),
            meta::SKUID => Some(field(Field::Uid, 4)),
            meta::SKGID => Some(field(Field::Gid, 4)),
            meta::NFPROTO => Some(field(Field::Family, 1)),
            meta::L4PROTO => Some(field(Field::Protocol, 1)),
            _ => None,
        };
        self.load(number(a, 1)?, value);
        Some(())
    }

    fn ct(&mut self, a: Attributes<'_>) -> Option<()> {
        let key = number(a, 2)?;
        if let Some(source) = number(a, 4) {
            return match (key, self.get(source)) {
                (ct::MARK, Some(value)) => self.set(&value, Field::CtMark),
                (ct::MARK, None) => self.act(ListedAct::Unread),
                (ct::ZONE, Some(Register::Constant(bytes))) => {
                    self.act(ListedAct::SetZone(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?)))
                }
                _ => Some(()),
            };
        }
        let original = a.find(CT_DIRECTION).is_some_and(|direction| direction.data == [ORIGINAL]);
        let field = match (key, original) {
            (ct::MARK, _) => Some((Field::CtMark, 4)),
            (ct::STATE, _) => Some((Field::CtState, 4)),
            (ct::DIRECTION, _) => Some((Field::Reply, 1)),
            (ct::PORT_DESTINATION, true) => Some((Field::OriginalPort, 2)),
            (ct::DESTINATION_V4, true) => Some((Field::OriginalDestination(Family::V4), 4)),
            (ct::DESTINATION_V6, true) => Some((Field::OriginalDestination(Family::V6), 16)),
            _ => None,
        };
        let value = field.map(|(field, bytes)| Register::Field { field, bytes, mask: u128::MAX, xor: 0 });
        self.load(number(a, 1)?, value);
        Some(())
    }

    /// Sets a mark from a register.
    fn set(&mut self, value: &Register, what: Field) -> Option<()> {
        let packet = what == Field::Mark;
        let act = match value {
            Register::Constant(bytes) => {
                let xor = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
                if packet {
                    ListedAct::SetMark { keep: 0, xor }
                } else {
                    ListedAct::SetCtMark { keep: 0, xor }
                }
            }
            Register::Field { field, mask, xor, .. } if *field == what => {
                let (keep, xor) = ((*mask & u128::from(u32::MAX)) as u32, *xor as u32);
                if packet { ListedAct::SetMark { keep, xor } } else { ListedAct::SetCtMark { keep, xor } }
            }
            Register::Field { field: Field::CtMark, mask: u128::MAX, .. } if packet => ListedAct::RestoreMark,
            Register::Field { field: Field::Mark, mask: u128::MAX, .. } if !packet => ListedAct::SaveMark,
            _ => ListedAct::Unread,
        };
        self.act(act)
    }

    fn fib(&mut self, a: Attributes<'_>) -> Option<()> {
        let asked = (number(a, fib::RESULT)?, number(a, fib::FLAGS)?);
        let known = asked == (fib::ADDRESS_TYPE, fib::DESTINATION | fib::IN_INTERFACE);
        let field = Register::Field { field: Field::DestinationType, bytes: 4, mask: u128::MAX, xor: 0 };
        self.load(number(a, fib::REGISTER)?, known.then_some(field));
        Some(())
    }

    fn payload(&mut self, a: Attributes<'_>) -> Option<()> {
        // With a source register it writes to the packet.
        let Some(to) = number(a, 1) else { return self.act(ListedAct::Unread) };
        let (base, offset, bytes) = (number(a, 2)?, number(a, 3)?, number(a, 4)? as usize);
        let field = match (base, offset, bytes) {
            (payload::NETWORK, 9, 1) | (payload::NETWORK, 6, 1) => Some(Field::Protocol),
            (payload::NETWORK, 12, 1..=4) => Some(Field::Source(Family::V4)),
            (payload::NETWORK, 16, 1..=4) => Some(Field::Destination(Family::V4)),
            // One byte there is the time to live of IPv4.
            (payload::NETWORK, 8, 2..=16) => Some(Field::Source(Family::V6)),
            (payload::NETWORK, 24, 1..=16) => Some(Field::Destination(Family::V6)),
            (payload::TRANSPORT, 0, 2) => Some(Field::SourcePort),
            (payload::TRANSPORT, 2, 2) => Some(Field::DestinationPort),
            _ => None,
        };
        self.load(to, field.map(|field| Register::Field { field, bytes, mask: u128::MAX, xor: 0 }));
        Some(())
    }

    fn immediate(&mut self, a: Attributes<'_>) -> Option<()> {
        let nested = a.find(2)?.nested();
        let Some(verdict) = nested.find(uapi::DATA_VERDICT) else {
            let value = nested.find(uapi::DATA_VALUE).map(|value| Register::Constant(value.data.to_vec()));
            self.load(number(a, 1)?, value);
            return Some(());
        };
        let code = number(verdict.nested(), uapi::VERDICT_CODE)?.cast_signed();
        let chain = verdict.nested().find(uapi::VERDICT_CHAIN).map(|a| a.text().into_owned());
        self.act(match (code, chain) {
            (verdict::ACCEPT, _) => ListedAct::Accept,
            (verdict::DROP, _) => ListedAct::Drop,
            (verdict::RETURN, _) => ListedAct::Return,
            (verdict::JUMP, Some(chain)) => ListedAct::Jump(chain),
            (GOTO, Some(chain)) => ListedAct::Goto(chain),
            // NFT_CONTINUE
            (-1, _) => return Some(()),
            _ => ListedAct::Unread,
        })
    }

    fn bitwise(&mut self, a: Attributes<'_>) -> Option<()> {
        let (from, to) = (number(a, 1)?, number(a, 2)?);
        let plain = number(a, 6).unwrap_or(0) == 0;
        let value = match (self.get(from), data(a, 4), data(a, 5)) {
            (Some(Register::Field { field, bytes, mask, xor }), Some(keep), Some(change)) if plain => {
                let keep = field_number(field, bytes, &keep);
                let change = field_number(field, bytes, &change);
                Some(Register::Field { field, bytes, mask: mask & keep, xor: (xor & keep) ^ change })
            }
            _ => None,
        };
        self.load(to, value);
        Some(())
    }

    fn compare(&mut self, a: Attributes<'_>) -> Option<()> {
        let (value, op, bytes) = (self.get(number(a, 1)?)?, number(a, 2)?, data(a, 3)?);
        let not = op == cmp::NEQ;
        if let (Register::Index(field), Ok(index)) = (&value, <[u8; 4]>::try_from(&*bytes)) {
            let (number, name) = (u32::from_ne_bytes(index), number_of_name(LOOPBACK.1));
            let known = number == LOOPBACK.0 && matches!(op, cmp::EQ | cmp::NEQ);
            return known.then(|| self.condition(*field, u128::MAX, vec![(name, name)], not));
        }
        let Register::Field { field, bytes: loaded, mask, xor } = value else { return None };
        let low = field_number(field, loaded.min(bytes.len()), &bytes) ^ xor;
        let ranges = match op {
            cmp::EQ | cmp::NEQ => vec![covered(field, loaded.min(bytes.len()), low)],
            // The register's order is the number's only in network order.
            _ if xor != 0 || is_native(field) => return None,
            2 => vec![(0, low.checked_sub(1)?)],
            3 => vec![(0, low)],
            4 => vec![(low.checked_add(1)?, u128::MAX)],
            5 => vec![(low, u128::MAX)],
            _ => return None,
        };
        self.condition(field, mask, ranges, not);
        Some(())
    }

    fn range(&mut self, a: Attributes<'_>) -> Option<()> {
        let (value, op) = (self.get(number(a, 1)?)?, number(a, 2)?);
        let Register::Field { field, bytes, mask, xor: 0 } = value else { return None };
        let (low, high) = (data(a, 3)?, data(a, 4)?);
        if is_native(field) {
            return None;
        }
        let range = (field_number(field, bytes, &low), field_number(field, bytes, &high));
        self.condition(field, mask, vec![range], op == 1);
        Some(())
    }

    fn lookup(&mut self, a: Attributes<'_>, sets: &SetRanges) -> Option<()> {
        let name = a.find(LOOKUP_SET)?.text();
        if a.find(LOOKUP_DATA).is_some() {
            // A map: to a value, or to a verdict.
            return self.act(ListedAct::Unread);
        }
        let value = self.get(number(a, LOOKUP_SOURCE)?)?;
        let Register::Field { field, bytes, mask, xor: 0 } = value else { return None };
        let members = sets.get(name.as_ref())?.as_ref()?;
        // A key of several parts, of which this register has the first.
        if members.iter().any(|(low, _)| low.len() > bytes) {
            return None;
        }
        let ordered = !is_native(field) || members.iter().all(|(low, high)| low == high);
        let ranges = members.iter().map(|(low, high)| {
            let (low, high) = (field_number(field, bytes, low), field_number(field, bytes, high));
            if low == high { covered(field, bytes, low) } else { (low, high) }
        });
        let not = number(a, LOOKUP_FLAGS).unwrap_or(0) & 1 != 0;
        let ranges = ranges.collect();
        ordered.then(|| self.condition(field, mask, ranges, not))
    }

    fn condition(&mut self, field: Field, mask: u128, mut ranges: Vec<(u128, u128)>, not: bool) {
        // A range may be written as two comparisons.
        if let (
            Some(Condition::In { field: last, mask: u128::MAX, ranges: before, not: false }),
            u128::MAX,
            false,
        ) = (self.rule.conditions.last(), mask, not)
            && *last == field
            && let ([(low, high)], [(other_low, other_high)]) = (&before[..], &ranges[..])
        {
            let both = (*low.max(other_low), *high.min(other_high));
            if both.0 <= both.1 {
                ranges = vec![both];
                self.rule.conditions.pop();
            }
        }
        self.rule.conditions.push(match field {
            // A state is a set of bits that is masked and compared with nothing.
            Field::CtState if ranges == [(0, 0)] && not => {
                Condition::In { field, mask: u128::MAX, ranges: vec![(mask, mask)], not: false }
            }
            Field::CtState if ranges == [(0, 0)] => {
                Condition::In { field, mask: u128::MAX, ranges: vec![(mask, mask)], not: true }
            }
            Field::CtState => Condition::Unread,
            field => Condition::In { field, mask, ranges, not },
        });
    }
}

fn address(value: &Register) -> Option<std::net::IpAddr> {
    let Register::Constant(bytes) = value else { return None };
    match bytes.len() {
        4 => Some(address_of(u32::from_be_bytes(bytes[..4].try_into().ok()?).into(), Family::V4)),
        16 => Some(address_of(u128::from_be_bytes(bytes[..16].try_into().ok()?), Family::V6)),
        _ => None,
    }
}

/// The families whose packets meet the chains of a table of this `NFPROTO_*`; absent for families with hooks of other kinds.
pub(super) fn families(number: u8) -> Option<(ruleset::Families, &'static str)> {
    match number {
        family::INET => Some((ruleset::Families::Both, "inet")),
        family::IPV4 => Some((ruleset::Families::Only(Family::V4), "ip")),
        family::IPV6 => Some((ruleset::Families::Only(Family::V6), "ip6")),
        _ => None,
    }
}

/// How a chain is attached; absent for kinds and hooks that packets of a pod's connections do not meet.
pub(super) fn base(kind: &str, hook: u32, priority: i32) -> Option<Base> {
    let kind = match kind {
        "nat" => ChainKind::Nat,
        "route" => ChainKind::Route,
        "filter" => ChainKind::Filter,
        _ => return None,
    };
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    let hook = hooks.into_iter().find(|known| super::lower::hook_number(*known) == hook)?;
    Some(Base { kind, hook, priority })
}
