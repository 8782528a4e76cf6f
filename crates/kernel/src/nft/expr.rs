//! The instructions of the nf_tables machine, as far as rules of ours use them.
//!
//! All use register 1: `load` puts something there, `cmp` and `lookup` end the rule unless it fits, `set`, `redir` and `tproxy`
//! take it from there.

mod decode;
mod value;

use std::borrow::Cow;
use std::fmt;

use super::uapi::{LOOKUP_INVERTED, ORIGINAL, SNAT, expr as uapi, set};
use crate::netlink::wire::MessageWriter;

pub(super) use value::RegisterValue;

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
    Bitwise { mask: RegisterValue, xor: RegisterValue },
    /// Goes on when the register compares so with the data.
    Cmp { op: u32, data: RegisterValue },
    /// Goes on when the register is in the set.
    Lookup { set: Cow<'a, str>, inverted: bool },
    /// As [`Self::MetaLoad`], to another register: a part of a key of several parts.
    MetaLoadTo { register: u32, key: u32 },
    /// As [`Self::Payload`], to another register.
    PayloadTo { register: u32, base: u32, offset: u32, len: u32 },
    /// Does what the map says of the register.
    Verdicts { map: Cow<'a, str> },
    /// Loads a constant.
    Load(RegisterValue),
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
    pub(super) fn encode(&self, w: &mut MessageWriter, set_ids: &mut impl Iterator<Item = u32>) {
        w.nest(uapi::ITEM, |w| {
            w.text(uapi::NAME, self.name());
            w.nest(uapi::DATA, |w| self.encode_operands(w, set_ids));
        });
    }

    fn encode_operands(&self, w: &mut MessageWriter, set_ids: &mut impl Iterator<Item = u32>) {
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

fn numbers(w: &mut MessageWriter, list: &[(u16, u32)]) {
    for (kind, number) in list {
        w.be32(*kind, *number);
    }
}

fn value(w: &mut MessageWriter, kind: u16, value: &RegisterValue) {
    w.nest(kind, |w| w.attribute(uapi::DATA_VALUE, value.as_slice()));
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
