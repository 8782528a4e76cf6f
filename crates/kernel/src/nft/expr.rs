//! The instructions of the nf_tables machine, as far as rules of ours use them.
//!
//! All use register 1: `load` puts something there, `cmp` and `lookup` end the rule unless it fits, `set`, `redir` and `tproxy`
//! take it from there.

use std::borrow::Cow;
use std::fmt;

use super::uapi::{ADDRESS_GIVEN, LOOKUP_INVERTED, ORIGINAL, SNAT, expr as uapi, set};
use crate::netlink::wire::{Attribute, Attributes, Writer};

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expr<'a> {
    /// Loads a property of the packet, `NFT_META_*`.
    MetaLoad(u32),
    /// Sets a property of the packet.
    MetaSet(u32),
    /// Loads a property of the connection, `NFT_CT_*`.
    CtLoad(u32),
    /// Loads a property of the connection's first packet.
    CtOriginal(u32),
    /// Sets a property of the connection.
    CtSet(u32),
    /// Loads bytes of the packet.
    Payload { base: u32, offset: u32, len: u32 },
    /// Register and mask, exclusive-or xor.
    Bitwise { mask: Value, xor: Value },
    /// Goes on when the register compares so with the data.
    Cmp { op: u32, data: Value },
    /// Goes on when the register is in the set.
    Lookup { set: Cow<'a, str>, inverted: bool },
    /// As [`Self::MetaLoad`], to another register: a part of a key of several parts.
    MetaLoadTo { register: u32, key: u32 },
    /// As [`Self::Payload`], to another register.
    PayloadTo { register: u32, base: u32, offset: u32, len: u32 },
    /// Does what the map says of the register.
    Verdicts { map: Cow<'a, str> },
    /// Loads a constant.
    Load(Value),
    /// Ends the rule.
    Verdict { code: i32, chain: Option<Cow<'a, str>> },
    /// Counts packets and bytes.
    Counter,
    /// Redirects to the loaded port.
    Redir { flags: u32 },
    /// Changes the source address to the loaded one of the family.
    Snat { family: u32 },
    /// Hands over to the transparent socket on the loaded port.
    Tproxy { family: u32 },
    /// An instruction by its name, with its operands as they come, in the order of their kinds: what needs no more of ours, and all that
    /// only rules of others have, the above with operands that ours lack among it.
    Raw { name: Cow<'a, str>, operands: Vec<(u16, Vec<u8>)> },
}

/// Up to 16 bytes, what a register holds.
#[derive(Clone, Copy)]
pub(super) struct Value {
    bytes: [u8; 16],
    len: u8,
}

// === impl Value ===

impl Value {
    /// `None` when it is longer than a register.
    pub(super) fn new(data: &[u8]) -> Option<Self> {
        let mut bytes = [0; 16];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(Self { bytes, len: u8::try_from(data.len()).ok()? })
    }

    /// The first `len` bytes, at most 16.
    pub(super) fn prefix(bytes: [u8; 16], len: u8) -> Self {
        let mut kept = [0; 16];
        let len = len.min(16);
        kept[..usize::from(len)].copy_from_slice(&bytes[..usize::from(len)]);
        Self { bytes: kept, len }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl From<[u8; 1]> for Value {
    fn from([a]: [u8; 1]) -> Self {
        let mut bytes = [0; 16];
        bytes[0] = a;
        Self { bytes, len: 1 }
    }
}

impl From<[u8; 2]> for Value {
    fn from(two: [u8; 2]) -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&two);
        Self { bytes, len: 2 }
    }
}

impl From<[u8; 4]> for Value {
    fn from(four: [u8; 4]) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&four);
        Self { bytes, len: 4 }
    }
}

impl From<[u8; 16]> for Value {
    fn from(bytes: [u8; 16]) -> Self {
        Self { bytes, len: 16 }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Value {}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.as_slice().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

// === impl Expr ===

impl Expr<'_> {
    /// The kernel's name of the instruction.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::MetaLoad(_) | Self::MetaLoadTo { .. } | Self::MetaSet(_) => "meta",
            Self::CtLoad(_) | Self::CtOriginal(_) | Self::CtSet(_) => "ct",
            Self::Payload { .. } | Self::PayloadTo { .. } => "payload",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Lookup { .. } | Self::Verdicts { .. } => "lookup",
            Self::Load(_) | Self::Verdict { .. } => "immediate",
            Self::Counter => "counter",
            Self::Redir { .. } => "redir",
            Self::Snat { .. } => "nat",
            Self::Tproxy { .. } => "tproxy",
            Self::Raw { name, .. } => name,
        }
    }

    /// Writes it as an item of `NFTA_RULE_EXPRESSIONS`. `set_ids` are those that the batch gave to the rule's anonymous sets, in
    /// the order of their lookups.
    pub(super) fn encode(&self, w: &mut Writer, set_ids: &mut impl Iterator<Item = u32>) {
        w.nest(uapi::ITEM, |w| {
            w.text(uapi::NAME, self.name());
            w.nest(uapi::DATA, |w| self.encode_operands(w, set_ids));
        });
    }

    fn encode_operands(&self, w: &mut Writer, set_ids: &mut impl Iterator<Item = u32>) {
        const R: u32 = uapi::REGISTER;
        match self {
            Self::MetaLoad(key) => numbers(w, &[(2, *key), (1, R)]),
            Self::MetaSet(key) => numbers(w, &[(2, *key), (3, R)]),
            Self::CtLoad(key) => numbers(w, &[(2, *key), (1, R)]),
            Self::CtOriginal(key) => {
                numbers(w, &[(2, *key), (1, R)]);
                w.attribute(3, &[ORIGINAL]);
            }
            Self::CtSet(key) => numbers(w, &[(2, *key), (4, R)]),
            Self::MetaLoadTo { register, key } => numbers(w, &[(2, *key), (1, *register)]),
            Self::Payload { base, offset, len } => numbers(w, &[(1, R), (2, *base), (3, *offset), (4, *len)]),
            Self::PayloadTo { register, base, offset, len } => {
                numbers(w, &[(1, *register), (2, *base), (3, *offset), (4, *len)]);
            }
            Self::Bitwise { mask, xor } => {
                numbers(w, &[(1, R), (2, R), (3, u32::from(mask.len))]);
                value(w, 4, mask);
                value(w, 5, xor);
            }
            Self::Cmp { op, data } => {
                numbers(w, &[(1, R), (2, *op)]);
                value(w, 3, data);
            }
            Self::Lookup { set, inverted } => {
                numbers(w, &[(2, R)]);
                w.text(1, set);
                if let Some(id) = (set == set::ANONYMOUS_NAME).then(|| set_ids.next()).flatten() {
                    w.be32(4, id);
                }
                if *inverted {
                    w.be32(5, LOOKUP_INVERTED);
                }
            }
            Self::Verdicts { map } => {
                w.text(1, map);
                numbers(w, &[(2, R), (3, 0)]);
            }
            Self::Load(data) => {
                numbers(w, &[(1, R)]);
                value(w, 2, data);
            }
            Self::Verdict { code, chain } => {
                numbers(w, &[(1, 0)]);
                w.nest(2, |w| {
                    w.nest(uapi::DATA_VERDICT, |w| {
                        w.attribute(uapi::VERDICT_CODE, &code.to_be_bytes());
                        if let Some(chain) = chain {
                            w.text(uapi::VERDICT_CHAIN, chain);
                        }
                    });
                });
            }
            Self::Redir { flags } => numbers(w, &[(1, R), (3, *flags)]),
            Self::Snat { family } => numbers(w, &[(1, SNAT), (2, *family), (3, R)]),
            Self::Tproxy { family } => numbers(w, &[(1, *family), (3, R)]),
            Self::Raw { operands, .. } => operands.iter().for_each(|(kind, data)| w.attribute(*kind, data)),
            Self::Counter => {}
        }
    }
}

impl Expr<'static> {
    /// Reads an item of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn decode(item: &Attribute<'_>) -> Self {
        let name = item.nested().find(uapi::NAME).map(|a| a.text().into_owned()).unwrap_or_default();
        let operands = || item.nested().find(uapi::DATA).map(|a| a.nested());
        let known = operands().and_then(Operands::read).and_then(|operands| operands.decode(&name));
        known.unwrap_or_else(|| {
            // Those without data only fill a gap.
            let data = operands().into_iter().flatten().filter(|a| !a.data.is_empty());
            let mut operands: Vec<(u16, Vec<u8>)> = data.map(|a| (a.kind, a.data.to_vec())).collect();
            operands.sort_unstable();
            Self::Raw { name: name.into(), operands }
        })
    }
}

fn numbers(w: &mut Writer, list: &[(u16, u32)]) {
    for (kind, number) in list {
        w.be32(*kind, *number);
    }
}

fn value(w: &mut Writer, kind: u16, value: &Value) {
    w.nest(kind, |w| w.attribute(uapi::DATA_VALUE, value.as_slice()));
}

/// The attributes of an instruction by their kinds, all of which are below 8 for ours.
struct Operands<'a>([Option<Attribute<'a>>; 8]);

impl<'a> Operands<'a> {
    /// `None` when there is an attribute that we do not know, and so a meaning that we would miss.
    fn read(attributes: Attributes<'a>) -> Option<Self> {
        let mut slots = [None; 8];
        for attribute in attributes {
            *slots.get_mut(usize::from(attribute.kind))? = Some(attribute);
        }
        Some(Self(slots))
    }

    fn number(&self, kind: usize) -> Option<u32> {
        self.0[kind].and_then(|a| a.be32())
    }

    fn value(&self, kind: usize) -> Option<Value> {
        self.0[kind].and_then(|a| a.nested().find(uapi::DATA_VALUE)).and_then(|a| Value::new(a.data))
    }

    /// Whether only attributes of these kinds are there.
    fn only(&self, kinds: &[usize]) -> Option<()> {
        let all = self.0.iter().enumerate().all(|(kind, slot)| slot.is_none() || kinds.contains(&kind));
        all.then_some(())
    }

    /// Whether the attribute is our register.
    fn register(&self, kind: usize) -> Option<()> {
        (self.number(kind)? == uapi::REGISTER).then_some(())
    }

    /// `None`: not one of ours.
    fn decode(&self, name: &str) -> Option<Expr<'static>> {
        match name {
            "meta" => {
                let load_to = |register, key| Expr::MetaLoadTo { register, key };
                self.load_or_set(3, Expr::MetaLoad, Some(load_to), Expr::MetaSet)
            }
            "ct" if self.0[3].is_some() => {
                self.only(&[1, 2, 3])?;
                self.register(1)?;
                (self.0[3]?.data == [ORIGINAL]).then_some(Expr::CtOriginal(self.number(2)?))
            }
            "ct" => self.load_or_set(4, Expr::CtLoad, None, Expr::CtSet),
            "payload" => {
                self.only(&[1, 2, 3, 4])?;
                let (base, offset, len) = (self.number(2)?, self.number(3)?, self.number(4)?);
                Some(match self.number(1)? {
                    uapi::REGISTER => Expr::Payload { base, offset, len },
                    register => Expr::PayloadTo { register, base, offset, len },
                })
            }
            "bitwise" => self.bitwise(),
            "cmp" => {
                self.only(&[1, 2, 3])?;
                self.register(1)?;
                Some(Expr::Cmp { op: self.number(2)?, data: self.value(3)? })
            }
            "lookup" => self.lookup(),
            "immediate" => self.immediate(),
            "counter" => Some(Expr::Counter),
            "redir" => {
                // The kernel shows the first port of the range as the last one too.
                self.only(&[1, 2, 3])?;
                self.register(1)?;
                self.0[2].map_or(Some(()), |_| self.register(2))?;
                Some(Expr::Redir { flags: self.number(3)? })
            }
            "nat" => {
                // The kernel shows the first address of the range as the last one too, and that there is one.
                self.only(&[1, 2, 3, 4, 7])?;
                self.register(3)?;
                self.0[4].map_or(Some(()), |_| self.register(4))?;
                let plain = self.0[7].is_none() || self.number(7) == Some(ADDRESS_GIVEN);
                (plain && self.number(1)? == SNAT).then_some(Expr::Snat { family: self.number(2)? })
            }
            "tproxy" => {
                self.only(&[1, 3])?;
                self.register(3)?;
                Some(Expr::Tproxy { family: self.number(1)? })
            }
            _ => None,
        }
    }

    fn load_or_set(
        &self,
        source: usize,
        load: fn(u32) -> Expr<'static>,
        load_to: Option<fn(u32, u32) -> Expr<'static>>,
        set: fn(u32) -> Expr<'static>,
    ) -> Option<Expr<'static>> {
        let key = self.number(2)?;
        if self.0[source].is_some() {
            self.only(&[2, source])?;
            self.register(source)?;
            Some(set(key))
        } else {
            self.only(&[1, 2])?;
            match self.number(1)? {
                uapi::REGISTER => Some(load(key)),
                register => load_to.map(|load_to| load_to(register, key)),
            }
        }
    }

    fn bitwise(&self) -> Option<Expr<'static>> {
        self.only(&[1, 2, 3, 4, 5, 6])?;
        self.register(1)?;
        self.register(2)?;
        // Kernels before 5.6 have no operation; 0 is the only one with mask and xor.
        let plain = self.0[6].is_none() || self.number(6) == Some(0);
        let (mask, xor) = (self.value(4)?, self.value(5)?);
        let len = self.number(3)?;
        (plain && len == u32::from(mask.len) && mask.len == xor.len).then_some(Expr::Bitwise { mask, xor })
    }

    fn lookup(&self) -> Option<Expr<'static>> {
        self.only(&[1, 2, 3, 4, 5])?;
        self.register(2)?;
        let set = Cow::Owned(self.0[1]?.text().into_owned());
        let flags = self.0[5].map_or(Some(0), |a| a.be32())?;
        if self.0[3].is_some() {
            // To the register of the verdict.
            return (self.number(3)? == 0 && flags == 0).then_some(Expr::Verdicts { map: set });
        }
        (flags & !LOOKUP_INVERTED == 0).then_some(Expr::Lookup { set, inverted: flags != 0 })
    }

    fn immediate(&self) -> Option<Expr<'static>> {
        self.only(&[1, 2])?;
        let data = self.0[2]?.nested();
        let Some(verdict) = data.find(uapi::DATA_VERDICT) else {
            self.register(1)?;
            return self.value(2).map(Expr::Load);
        };
        let code = verdict.nested().find(uapi::VERDICT_CODE)?.be32()?;
        let chain = verdict.nested().find(uapi::VERDICT_CHAIN).map(|a| Cow::Owned(a.text().into_owned()));
        (self.number(1)? == 0).then_some(Expr::Verdict { code: code.cast_signed(), chain })
    }
}

impl fmt::Display for Expr<'_> {
    /// About what `nft --debug=netlink` shows, with the kernel's numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MetaLoad(key) => write!(f, "[meta load {key}]"),
            Self::MetaSet(key) => write!(f, "[meta set {key}]"),
            Self::CtLoad(key) => write!(f, "[ct load {key}]"),
            Self::CtOriginal(key) => write!(f, "[ct load original {key}]"),
            Self::CtSet(key) => write!(f, "[ct set {key}]"),
            Self::Payload { base, offset, len } => write!(f, "[payload {len} bytes at {base}+{offset}]"),
            Self::Bitwise { mask, xor } => write!(f, "[bitwise & {mask} ^ {xor}]"),
            Self::Cmp { op, data } => {
                let op = ["==", "!=", "<", "<=", ">", ">="].get(*op as usize).unwrap_or(&"?");
                write!(f, "[cmp {op} {data}]")
            }
            Self::Lookup { set, inverted } => {
                write!(f, "[lookup {}{set}]", if *inverted { "not in " } else { "" })
            }
            Self::MetaLoadTo { register, key } => write!(f, "[meta load {key} to {register}]"),
            Self::PayloadTo { register, base, offset, len } => {
                write!(f, "[payload {len} bytes at {base}+{offset} to {register}]")
            }
            Self::Verdicts { map } => write!(f, "[verdicts {map}]"),
            Self::Load(value) => write!(f, "[load {value}]"),
            Self::Verdict { code, chain: None } => write!(f, "[verdict {code}]"),
            Self::Verdict { code, chain: Some(chain) } => write!(f, "[verdict {code} {chain}]"),
            Self::Redir { .. } => f.write_str("[redir]"),
            Self::Snat { family } => write!(f, "[snat {family}]"),
            Self::Tproxy { family } => write!(f, "[tproxy {family}]"),
            Self::Counter => f.write_str("[counter]"),
            Self::Raw { name, operands } => {
                write!(f, "[{name}")?;
                operands.iter().try_for_each(|(kind, data)| write_operand(f, *kind, data))?;
                f.write_str("]")
            }
        }
    }
}

/// As text where it is one, else as a number.
fn write_operand(f: &mut fmt::Formatter<'_>, kind: u16, data: &[u8]) -> fmt::Result {
    let text = data.strip_suffix(&[0]).filter(|text| text.iter().all(u8::is_ascii_graphic));
    match text.and_then(|text| str::from_utf8(text).ok()).filter(|text| !text.is_empty()) {
        Some(text) => write!(f, " {kind}: \"{text}\""),
        None => {
            write!(f, " {kind}: 0x")?;
            data.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
}
