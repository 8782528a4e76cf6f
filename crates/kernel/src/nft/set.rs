//! Named sets and verdict maps as nf_tables has them.

#[cfg(test)]
mod tests;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use ruleset::{
    ArrivalKey, Content, Family, InterfaceName, Key, KeyType, MapVerdict, Protocol, Set, TransportAddress,
};

use super::batch::push_comment;
use super::list::number;
use super::uapi::{element, expr, set, verdict};
use crate::netlink::wire::{Attribute, Attributes, MessageWriter};
use crate::sets::{address, octets};

/// Elements in one message: an attribute holds less than 64 KiB, an element with key, verdict and the longest comment at most 256 bytes.
pub(super) const AT_A_TIME: usize = 200;

/// Bytes of an interface's name in the kernel, `IFNAMSIZ`.
const NAME_LEN: u32 = 16;

/// What makes two sets of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SetType {
    /// `NFT_SET_*`.
    pub(super) flags: u32,
    /// Datatype of nft; those of several parts have six bits for each.
    pub(super) key_type: u32,
    /// Bytes of a key.
    pub(super) key_len: u32,
    /// What a map's keys lead to; 0 for a set.
    pub(super) data_type: u32,
}

/// An element: a key, or one end of an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WireElement {
    pub(super) key: Vec<u8>,
    /// The first key that is no longer in the interval.
    pub(super) end: bool,
    /// The interval goes up to the last address and so has no end.
    pub(super) open: bool,
    pub(super) verdict: Option<VerdictTarget>,
    pub(super) comment: String,
}

/// The value of a verdict map: a code, and a chain for those that lead to one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct VerdictTarget {
    pub(super) code: i32,
    pub(super) chain: Option<String>,
}

// === impl SetType ===

impl SetType {
    /// Prefixes need intervals, everything else is hashed. Of a set that is part of the plan the kernel lets nobody change the members.
    pub(super) fn of(set: &Set) -> Self {
        let (address, len) = match set.family() {
            Family::V4 => (set::TYPE_IPV4, 4),
            Family::V6 => (set::TYPE_IPV6, 16),
        };
        let (key_type, key_len) = match set.keys {
            KeyType::Address(_) | KeyType::Prefix(_) => (address, len),
            // Each part fills whole registers of four bytes.
            KeyType::Arrival(_) => (set::TYPE_INTERFACE, NAME_LEN),
            KeyType::Endpoint(_) => ((address << 6 | set::TYPE_PROTOCOL) << 6 | set::TYPE_PORT, len + 8),
        };
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let flags = flag(matches!(set.keys, KeyType::Prefix(_)), set::INTERVAL)
            | flag(!set.is_kept(), set::CONSTANT)
            | flag(set.is_map(), set::MAP);
        Self { flags, key_type, key_len, data_type: flag(set.is_map(), set::VERDICTS) }
    }

    /// What nft is told of the order of its keys' bytes.
    pub(super) fn key_order(self) -> [u8; 6] {
        if self.key_type == set::TYPE_INTERFACE { set::NATIVE_KEYS } else { set::BIG_ENDIAN_KEYS }
    }

    /// Whether keys lead to verdicts.
    pub(super) fn is_map(self) -> bool {
        self.flags & set::MAP != 0
    }

    /// Reads the attributes of a set.
    pub(super) fn listed(attributes: Attributes<'_>) -> Self {
        Self {
            flags: number(attributes, set::FLAGS),
            key_type: number(attributes, set::KEY_TYPE),
            key_len: number(attributes, set::KEY_LEN),
            data_type: number(attributes, set::DATA_TYPE),
        }
    }

    pub(super) fn write(self, w: &mut MessageWriter) {
        w.be32(set::FLAGS, self.flags);
        w.be32(set::KEY_TYPE, self.key_type);
        w.be32(set::KEY_LEN, self.key_len);
        if self.data_type != 0 {
            w.be32(set::DATA_TYPE, self.data_type);
        }
    }

    /// Whether the members are part of the plan.
    pub(super) fn is_fixed(self) -> bool {
        self.flags & set::CONSTANT != 0
    }
}

// === impl WireElement ===

/// The elements of a fixed set; of intervals both ends in ascending order, beginning with what is before the first.
pub(super) fn fixed(set: &Set) -> Vec<WireElement> {
    let Content::Fixed(elements) = &set.content else { return Vec::new() };
    let KeyType::Prefix(_) = set.keys else {
        return elements.iter().flat_map(WireElement::of).collect();
    };
    let prefixes = set.merged_prefixes();
    let ends: Vec<WireElement> = prefixes.iter().flat_map(interval).collect();
    let first = ends.first().filter(|first| first.key.iter().any(|byte| *byte != 0));
    let before = first.map(|first| WireElement { end: true, ..WireElement::plain(vec![0; first.key.len()]) });
    before.into_iter().chain(ends).collect()
}

fn interval(net: &IpNet) -> Vec<WireElement> {
    let (first, end) = match net.trunc() {
        IpNet::V4(v4) => (
            v4.addr().octets().to_vec(),
            u32::from(v4.broadcast()).checked_add(1).map(|end| end.to_be_bytes().to_vec()),
        ),
        IpNet::V6(v6) => (
            v6.addr().octets().to_vec(),
            u128::from(v6.broadcast()).checked_add(1).map(|end| end.to_be_bytes().to_vec()),
        ),
    };
    let first = WireElement { open: end.is_none(), ..WireElement::plain(first) };
    std::iter::once(first)
        .chain(end.map(|end| WireElement { end: true, ..WireElement::plain(end) }))
        .collect()
}

impl WireElement {
    pub(super) fn plain(key: Vec<u8>) -> Self {
        Self { key, end: false, open: false, verdict: None, comment: String::new() }
    }

    /// An element of the rule language: of a prefix both ends.
    pub(super) fn of(planned: &ruleset::Element) -> Vec<Self> {
        let verdict = planned.verdict.as_ref().map(VerdictTarget::of);
        match &planned.key {
            Key::Prefix(net) => interval(net),
            Key::Address(address) => {
                vec![Self { verdict, comment: planned.comment.clone(), ..Self::plain(octets(*address)) }]
            }
            Key::Endpoint(TransportAddress { address, protocol, port }) => {
                let [high, low] = port.to_be_bytes();
                let rest = [protocol.number(), 0, 0, 0, high, low, 0, 0];
                let key = [octets(*address), rest.to_vec()].concat();
                vec![Self { verdict, comment: planned.comment.clone(), ..Self::plain(key) }]
            }
            Key::Arrival(arrival) => {
                let mut key = arrival.name.as_str().as_bytes().to_vec();
                key.resize(NAME_LEN as usize, 0);
                vec![Self { verdict, comment: planned.comment.clone(), ..Self::plain(key) }]
            }
        }
    }

    pub(super) fn write(&self, w: &mut MessageWriter) {
        w.nest(element::ITEM, |w| {
            if self.end {
                w.be32(element::FLAGS, element::INTERVAL_END);
            }
            w.nest(element::KEY, |w| w.attribute(expr::DATA_VALUE, &self.key));
            if let Some(target) = &self.verdict {
                w.nest(element::DATA, |w| target.write(w));
            }
            if self.open {
                w.attribute(element::USERDATA, &element::OPEN_INTERVAL);
            }
            let mut data = Vec::new();
            push_comment(&mut data, element::USERDATA_COMMENT, &self.comment);
            if !data.is_empty() {
                w.attribute(element::USERDATA, &data);
            }
        });
    }

    /// Reads an item of `NFTA_SET_ELEM_LIST_ELEMENTS`.
    pub(super) fn read(item: &Attribute<'_>) -> Self {
        let attributes = item.nested();
        let key = attributes.find(element::KEY).and_then(|key| key.nested().find(expr::DATA_VALUE));
        let data = attributes.find(element::DATA).and_then(|data| data.nested().find(expr::DATA_VERDICT));
        let comment = attributes.find(element::USERDATA).and_then(|data| comment(data.data));
        Self {
            key: key.map(|key| key.data.to_vec()).unwrap_or_default(),
            end: number(attributes, element::FLAGS) & element::INTERVAL_END != 0,
            open: false,
            verdict: data.map(|data| VerdictTarget::read(&data)),
            comment: comment.unwrap_or_default(),
        }
    }

    /// What is compared with a plan: all but what is for people.
    pub(super) fn compared(&self) -> (&[u8], bool, Option<&VerdictTarget>) {
        (&self.key, self.end, self.verdict.as_ref())
    }
}

// === impl VerdictTarget ===

impl VerdictTarget {
    /// In the rule language; absent for a verdict that that lacks.
    fn planned(&self) -> Option<MapVerdict> {
        Some(match (self.code, &self.chain) {
            (verdict::ACCEPT, None) => MapVerdict::Accept,
            (verdict::DROP, None) => MapVerdict::Drop,
            (verdict::JUMP, Some(chain)) => MapVerdict::Jump(chain.clone().into()),
            (verdict::GOTO, Some(chain)) => MapVerdict::Goto(chain.clone().into()),
            _ => return None,
        })
    }

    fn of(planned: &MapVerdict) -> Self {
        let code = match planned {
            MapVerdict::Accept => verdict::ACCEPT,
            MapVerdict::Drop => verdict::DROP,
            MapVerdict::Jump(_) => verdict::JUMP,
            MapVerdict::Goto(_) => verdict::GOTO,
        };
        Self { code, chain: planned.chain().map(ToString::to_string) }
    }

    fn write(&self, w: &mut MessageWriter) {
        w.nest(expr::DATA_VERDICT, |w| {
            w.attribute(expr::VERDICT_CODE, &self.code.to_be_bytes());
            if let Some(chain) = &self.chain {
                w.text(expr::VERDICT_CHAIN, chain);
            }
        });
    }

    fn read(verdict: &Attribute<'_>) -> Self {
        Self {
            code: number(verdict.nested(), expr::VERDICT_CODE).cast_signed(),
            chain: verdict.nested().find(expr::VERDICT_CHAIN).map(|chain| chain.text().into_owned()),
        }
    }
}

/// Writes what names a set, and some of its elements.
pub(super) fn write_elements(w: &mut MessageWriter, table: &str, set: &str, elements: &[WireElement]) {
    w.text(element::LIST_TABLE, table);
    w.text(element::LIST_SET, set);
    w.nest(element::LIST_ELEMENTS, |w| elements.iter().for_each(|element| element.write(w)));
}

/// Elements of the kernel's as members of a set with such keys; what is of another type is left out.
pub(super) fn members_of(keys: KeyType, elements: Vec<WireElement>) -> Vec<ruleset::Element> {
    if let KeyType::Prefix(family) = keys {
        return prefixes(family, &elements).into_iter().map(|net| Key::from(net).into()).collect();
    }
    let member = |element: WireElement| {
        let key = key_of(keys, &element.key)?;
        let verdict = element.verdict.as_ref().and_then(VerdictTarget::planned);
        Some(ruleset::Element { key, verdict, comment: element.comment })
    };
    elements.into_iter().filter_map(member).collect()
}

fn key_of(keys: KeyType, bytes: &[u8]) -> Option<Key> {
    if let KeyType::Arrival(family) = keys {
        let text = std::str::from_utf8(bytes).ok()?;
        return Some(ArrivalKey { family, name: InterfaceName::new(text.trim_end_matches('\0'))? }.into());
    }
    let len = if keys.family() == Family::V4 { 4 } else { 16 };
    let (ip, rest) = bytes.split_at_checked(len)?;
    let address = address(ip)?;
    match (keys, rest) {
        (KeyType::Address(_), []) => Some(address.into()),
        (KeyType::Endpoint(_), [protocol, _, _, _, high, low, _, _]) => {
            let protocol = Protocol::ALL.into_iter().find(|known| known.number() == *protocol)?;
            Some(TransportAddress { address, protocol, port: u16::from_be_bytes([*high, *low]) }.into())
        }
        _ => None,
    }
}

/// The prefixes of intervals. One that is not a prefix gives several.
fn prefixes(family: Family, elements: &[WireElement]) -> Vec<IpNet> {
    let len = if family == Family::V4 { 4 } else { 16 };
    let number = |element: &WireElement| {
        let mut wide = [0; 16];
        wide[16 - len..].copy_from_slice(&element.key);
        u128::from_be_bytes(wide)
    };
    let keys = |end: bool| elements.iter().filter(move |e| e.end == end && e.key.len() == len).map(number);
    let (mut firsts, mut ends): (Vec<u128>, Vec<u128>) = (keys(false).collect(), keys(true).collect());
    firsts.sort_unstable();
    ends.sort_unstable();
    let last_of_all = if family == Family::V4 { u128::from(u32::MAX) } else { u128::MAX };
    let nets = |first: u128| -> Vec<IpNet> {
        let end = ends[ends.partition_point(|end| *end <= first)..].first();
        let last = end.map_or(last_of_all, |end| end - 1);
        match (family, u32::try_from(first), u32::try_from(last)) {
            (Family::V4, Ok(first), Ok(last)) => {
                Ipv4Subnets::new(first.into(), last.into(), 0).map(IpNet::from).collect()
            }
            (Family::V4, ..) => Vec::new(),
            (Family::V6, ..) => Ipv6Subnets::new(first.into(), last.into(), 0).map(IpNet::from).collect(),
        }
    };
    firsts.into_iter().flat_map(nets).collect()
}

/// In the order of keys.
pub(super) fn sort(elements: &mut Vec<WireElement>) {
    elements.sort_unstable_by(|a, b| (&a.key, a.end).cmp(&(&b.key, b.end)));
    // "Nothing up to the first address" is an aid of nft for itself: the kernel may or may not keep it.
    if elements.first().is_some_and(|first| first.end && first.key.iter().all(|byte| *byte == 0)) {
        elements.remove(0);
    }
}

/// The comment among what nft keeps with an element; anything may stand there.
pub(super) fn comment(mut data: &[u8]) -> Option<String> {
    while let Some((&[kind, len], rest)) = data.split_first_chunk::<2>() {
        let (value, rest) = rest.split_at_checked(usize::from(len))?;
        if kind == element::USERDATA_COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        data = rest;
    }
    None
}
