//! Rules and sets of the rule language as nf_tables has them.
//!
//! What comes out is what the nft program makes of the text that [`ruleset::nft`] renders, instruction by instruction, with one
//! exception: nft joins comparisons of neighbouring ports (`sport 1 dport 2`) into one of four bytes, also inverted ones,
//! which then mean something else. Here each stays by itself.

mod action;

use std::borrow::Cow;

use ipnet::IpNet;
use ruleset::{ALL_BITS, CtState, Families, Family, Hook, KeyType, Match, Ports, Protocol, Rule, Side};

use super::expr::{Expr, RegisterValue};
use super::uapi::expr::{self, REGISTER};
use super::uapi::{REPLY, cmp, ct, family, fib, meta, payload, set};
use crate::netlink::wire::MessageWriter;

/// A rule for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lowered<'a> {
    /// Instructions. A lookup in an anonymous set names it [`set::ANONYMOUS_NAME`].
    pub(super) exprs: Vec<Expr<'a>>,
    /// The ports of the anonymous sets, sorted, in the order of their lookups.
    pub(super) ports: Vec<Vec<u16>>,
}

/// The kernel's form of a rule.
pub(super) fn lower(rule: &Rule) -> Lowered<'_> {
    let mut lowering = Lowering {
        out: Lowered { exprs: Vec::with_capacity(16), ports: Vec::new() },
        family_known: false,
        protocol: rule.protocol(),
        protocol_known: false,
    };
    if let Families::Only(family) = rule.families
        && !rule.names_family()
    {
        lowering.require_family(family);
    }
    for m in &rule.matches {
        lowering.condition(m);
    }
    lowering.action(rule);
    lowering.out
}

/// The number of a hook, `enum nf_inet_hooks`.
pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

/// A rule on its way.
struct Lowering<'a> {
    out: Lowered<'a>,
    /// Packets of the other family are already out: nft adds that once, where it is first needed.
    family_known: bool,
    protocol: Option<Protocol>,
    protocol_known: bool,
}

impl<'a> Lowering<'a> {
    fn push(&mut self, expr: Expr<'a>) {
        self.out.exprs.push(expr);
    }

    fn raw(&mut self, name: &'static str, operands: &[(u16, &[u8])]) {
        let operands = operands.iter().map(|(kind, data)| (*kind, data.to_vec())).collect();
        self.push(Expr::Raw { name: name.into(), operands });
    }

    fn compare(&mut self, data: RegisterValue, not: bool) {
        self.push(Expr::Cmp { op: if not { cmp::NEQ } else { cmp::EQ }, data });
    }

    fn require_family(&mut self, family: Family) {
        if !std::mem::replace(&mut self.family_known, true) {
            self.push(Expr::MetaLoad(meta::NFPROTO));
            self.compare([family_number(family)].into(), false);
        }
    }

    fn require_protocol(&mut self, protocol: Protocol) {
        self.protocol_known = true;
        self.push(Expr::MetaLoad(meta::L4PROTO));
        self.compare([protocol.number()].into(), false);
    }

    fn condition(&mut self, m: &'a Match) {
        match m {
            Match::InInterface { name, not } => self.interface(meta::IIFNAME, name, *not),
            Match::OutInterface { name, not } => self.interface(meta::OIFNAME, name, *not),
            Match::Protocol(protocol) => self.require_protocol(*protocol),
            Match::Source { net, not } => self.prefix(net, Some(Side::Source), *not),
            Match::Destination { net, not } => self.prefix(net, Some(Side::Destination), *not),
            Match::OriginalDestination { net, not } => self.prefix(net, None, *not),
            Match::OwnDestination => self.is_local(fib::DESTINATION | fib::IN_INTERFACE),
            Match::OwnSource => {
                self.meta_number(meta::IIF, 0, false);
                self.is_local(fib::SOURCE);
            }
            Match::SourceIn { set, keys, not } => self.named_set(set, *keys, Side::Source, *not),
            Match::DestinationIn { set, keys, not } => self.named_set(set, *keys, Side::Destination, *not),
            Match::SourcePort { ports, not } => self.ports(ports, Side::Source, *not),
            Match::DestinationPort { ports, not } => self.ports(ports, Side::Destination, *not),
            Match::Uid { uid, not } => self.meta_number(meta::SKUID, *uid, *not),
            Match::Gid { gid, not } => self.meta_number(meta::SKGID, *gid, *not),
            Match::LocalSocket => self.meta_number(meta::SKUID, ruleset::nft::NOBODYS_ID, true),
            // An expression that reads a port asks for the header itself.
            Match::WholeHeader => {}
            Match::Mark { mark, mask, not } => self.mark(Expr::MetaLoad(meta::MARK), *mark, *mask, *not),
            Match::CtMark { mark, mask, not } => self.mark(Expr::CtLoad(ct::MARK), *mark, *mask, *not),
            Match::CtState(state) => self.state(match state {
                CtState::Invalid => ct::INVALID,
                CtState::RelatedOrEstablished => ct::RELATED | ct::ESTABLISHED,
                CtState::Related => ct::RELATED,
                CtState::Established => ct::ESTABLISHED,
            }),
            Match::Reply => {
                self.push(Expr::CtLoad(ct::DIRECTION));
                self.compare([REPLY].into(), false);
            }
            Match::OriginalPort { ports, not } => {
                self.push(Expr::CtOriginal(ct::PORT_DESTINATION));
                self.compare_ports(ports, *not);
            }
            Match::IcmpType { kind, code } => {
                let len = 1 + u32::from(code.is_some());
                self.push(Expr::Payload { base: payload::TRANSPORT, offset: 0, len });
                self.compare(code.map_or([*kind].into(), |code| [*kind, code].into()), false);
            }
        }
    }

    /// An address of the packet is local, by `NFTA_FIB_F_*`.
    fn is_local(&mut self, of: u32) {
        let numbers = [expr::REGISTER, fib::ADDRESS_TYPE, of];
        let [register, result, of] = numbers.map(u32::to_be_bytes);
        self.raw("fib", &[(fib::REGISTER, &register), (fib::RESULT, &result), (fib::FLAGS, &of)]);
        self.compare(fib::LOCAL.to_ne_bytes().into(), false);
    }

    fn meta_number(&mut self, key: u32, number: u32, not: bool) {
        self.push(Expr::MetaLoad(key));
        self.compare(number.to_ne_bytes().into(), not);
    }

    fn mark(&mut self, load: Expr<'a>, mark: u32, mask: u32, not: bool) {
        self.push(load);
        if mask != ALL_BITS {
            self.push(Expr::Bitwise { mask: mask.to_ne_bytes().into(), xor: [0; 4].into() });
        }
        self.compare(mark.to_ne_bytes().into(), not);
    }

    /// The kernel compares all 16 bytes, so that `eth1` is not the beginning of `eth10`. A name that is too long for any interface
    /// is cut; the planning refuses it.
    fn interface(&mut self, key: u32, name: &str, not: bool) {
        let mut bytes = [0; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.push(Expr::MetaLoad(key));
        self.compare(bytes.into(), not);
    }

    fn state(&mut self, bits: u32) {
        self.push(Expr::CtLoad(ct::STATE));
        self.push(Expr::Bitwise { mask: bits.to_ne_bytes().into(), xor: [0; 4].into() });
        self.compare([0; 4].into(), true);
    }

    fn load_address(&mut self, family: Family, side: Side, bytes: u8) {
        // Offsets of the fields in the IPv4 and the IPv6 header.
        let offset = match (family, side) {
            (Family::V4, Side::Source) => 12,
            (Family::V4, Side::Destination) => 16,
            (Family::V6, Side::Source) => 8,
            (Family::V6, Side::Destination) => 24,
        };
        self.push(Expr::Payload { base: payload::NETWORK, offset, len: u32::from(bytes) });
    }

    /// Whole bytes are loaded and compared as such; only other prefix lengths need a mask. Without a side it is where the connection's first
    /// packet wanted to go, which is there as a whole, and not for packets of the other family (`NFT_BREAK` in nft_ct.c).
    fn prefix(&mut self, net: &IpNet, side: Option<Side>, not: bool) {
        let family = Family::of(net);
        let (network, mask, width) = match net.trunc() {
            IpNet::V4(v4) => (widen(v4.addr().octets()), widen(v4.netmask().octets()), 4),
            IpNet::V6(v6) => (v6.addr().octets(), v6.netmask().octets(), 16),
        };
        let bits = net.prefix_len();
        let whole = bits > 0 && bits.is_multiple_of(8);
        match (side, family) {
            (Some(side), family) => {
                self.require_family(family);
                self.load_address(family, side, if whole { bits / 8 } else { width });
            }
            (None, Family::V4) => self.push(Expr::CtOriginal(ct::DESTINATION_V4)),
            (None, Family::V6) => self.push(Expr::CtOriginal(ct::DESTINATION_V6)),
        }
        if whole {
            self.compare(RegisterValue::prefix(network, bits / 8), not);
        } else {
            self.push(Expr::Bitwise {
                mask: RegisterValue::prefix(mask, width),
                xor: RegisterValue::prefix([0; 16], width),
            });
            self.compare(RegisterValue::prefix(network, width), not);
        }
    }

    fn named_set(&mut self, set: &'a str, keys: KeyType, side: Side, not: bool) {
        self.load_key(keys, side);
        self.push(Expr::Lookup { set: Cow::Borrowed(set), inverted: not });
    }

    /// The parts of a key lie one after the other, each in whole registers of four bytes.
    fn load_key(&mut self, keys: KeyType, side: Side) {
        let family = keys.family();
        self.require_family(family);
        if let KeyType::Arrival(_) = keys {
            return self.push(Expr::MetaLoad(meta::IIFNAME));
        }
        self.load_address(family, side, if family == Family::V4 { 4 } else { 16 });
        if let KeyType::Endpoint(_) = keys {
            let [protocol, port] = if family == Family::V4 { AFTER_V4 } else { AFTER_V6 };
            self.push(Expr::MetaLoadTo { register: protocol, key: meta::L4PROTO });
            let (base, offset) = (payload::TRANSPORT, port_offset(side));
            self.push(Expr::PayloadTo { register: port, base, offset, len: 2 });
        }
    }

    fn ports(&mut self, ports: &Ports, side: Side, not: bool) {
        if let (Some(protocol), false) = (self.protocol, self.protocol_known) {
            self.require_protocol(protocol);
        }
        self.push(Expr::Payload { base: payload::TRANSPORT, offset: port_offset(side), len: 2 });
        self.compare_ports(ports, not);
    }

    fn compare_ports(&mut self, ports: &Ports, not: bool) {
        let list = match ports {
            Ports::One(port) => return self.compare(port.to_be_bytes().into(), not),
            Ports::Range(first, last) if not => {
                let ends = [first, last].map(|port| data(&port.to_be_bytes()));
                let (register, differs) = (REGISTER.to_be_bytes(), cmp::NEQ.to_be_bytes());
                return self.raw("range", &[(1, &register), (2, &differs), (3, &ends[0]), (4, &ends[1])]);
            }
            Ports::Range(first, last) => {
                self.push(Expr::Cmp { op: cmp::GTE, data: first.to_be_bytes().into() });
                return self.push(Expr::Cmp { op: cmp::LTE, data: last.to_be_bytes().into() });
            }
            Ports::AnyOf(list) => list,
        };
        // nft makes a set of one a comparison too.
        if let [port] = list[..] {
            self.compare(port.to_be_bytes().into(), not);
        } else {
            self.out.ports.push(list.clone());
            self.push(Expr::Lookup { set: Cow::Borrowed(set::ANONYMOUS_NAME), inverted: not });
        }
    }

    fn verdict(&mut self, code: i32, chain: Option<&'a str>) {
        self.push(Expr::Verdict { code, chain: chain.map(Cow::Borrowed) });
    }
}

/// The registers of the kernel's names (`enum nft_registers`) that follow an address in register 1.
const AFTER_V4: [u32; 2] = [9, 10];
const AFTER_V6: [u32; 2] = [2, 13];

/// Where a transport header has a port.
fn port_offset(side: Side) -> u32 {
    match side {
        Side::Source => 0,
        Side::Destination => 2,
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => family::IPV4,
        Family::V6 => family::IPV6,
    }
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// A value as an operand: `NFTA_DATA_VALUE` with its length.
fn data(value: &[u8]) -> Vec<u8> {
    let mut w = MessageWriter::default();
    w.attribute(expr::DATA_VALUE, value);
    w.bytes().to_vec()
}

fn widen(four: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&four);
    bytes
}
