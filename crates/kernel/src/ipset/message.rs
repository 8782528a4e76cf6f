//! Messages and elements of ipset. Numbers are those of `linux/netfilter/ipset/ip_set.h`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use ruleset::iptables::ipset::{kernel_keys, type_name};
use ruleset::{Element, Family, Key, KeyType, Protocol, Set, TransportAddress};

use crate::netlink::wire::{self, Attribute, MessageWriter};
use crate::netlink::{self, flags};
use crate::sets::{address, octets};

/// `NFNL_SUBSYS_IPSET`, the upper byte of a message's type.
const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const FLUSH: u16 = SUBSYSTEM | 4;
const SWAP: u16 = SUBSYSTEM | 6;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DEL: u16 = SUBSYSTEM | 10;
const HEADER: u16 = SUBSYSTEM | 12;

/// `IPSET_PROTOCOL_MIN`: spoken by every kernel since 2.6.39.
const PROTOCOL: u8 = 6;
/// `IPSET_FLAG_WITH_COMMENT`.
const WITH_COMMENT: u32 = 1 << 4;
/// `IPSET_FLAG_LIST_SETNAME`: nothing but the name.
const LIST_NAME: u32 = 1 << 1;
/// `IPSET_FLAG_LIST_HEADER`: without the elements.
const LIST_HEADER: u32 = 1 << 2;

/// `IPSET_ATTR_*` of a command.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_SETNAME2: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
/// `IPSET_ATTR_*` of an element or of a set that is made.
const ATTR_IP: u16 = 1;
const ATTR_CIDR: u16 = 3;
const ATTR_PORT: u16 = 4;
const ATTR_PROTO: u16 = 7;
const ATTR_CADT_FLAGS: u16 = 8;
const ATTR_MAXELEM: u16 = 19;
const ATTR_COMMENT: u16 = 26;
/// `IPSET_ATTR_IPADDR_IPV4`, `IPSET_ATTR_IPADDR_IPV6`, with `NLA_F_NET_BYTEORDER`.
const NET_ORDER: u16 = 0x4000;
const IPADDR_V4: u16 = 1;
const IPADDR_V6: u16 = 2;

/// Length of `struct nfgenmsg`.
const NFGEN: usize = 4;

/// The kernel's error numbers; those of ipset are larger than any other.
pub(super) mod error {
    pub(crate) const NO_SET: i32 = 2;
    pub(crate) const EXISTS: i32 = 17;
    pub(crate) const INVALID: i32 = 22;
    pub(crate) const UNSUPPORTED: i32 = 95;
    /// `IPSET_ERR_BUSY`.
    pub(crate) const BUSY: i32 = 4100;
    /// `IPSET_ERR_TYPE_MISMATCH`.
    pub(crate) const OTHER_TYPE: i32 = 4102;
    /// `IPSET_ERR_EXIST`: an element that is there, or, to be removed, that is not.
    pub(crate) const ELEMENT_EXISTS: i32 = 4103;
    /// `IPSET_ERR_HASH_FULL`.
    pub(crate) const FULL: i32 = 4352;
}

/// What a set is, as the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SetHeader {
    type_name: String,
    family: u8,
    commented: bool,
}

/// A command about one element.
pub(super) enum ElementCommand<'a> {
    /// Where it is there already, `exclusive` is refused, and otherwise its comment is written over.
    Add {
        element: &'a Element,
        exclusive: bool,
    },
    Remove {
        key: &'a Key,
    },
}

/// Where one element is in the kernel's terms.
struct Item {
    address: std::net::IpAddr,
    cidr: Option<u8>,
    port: Option<(Protocol, u16)>,
}

// === impl SetHeader ===

impl SetHeader {
    pub(super) fn read(part: &wire::Message<'_>) -> Option<Self> {
        let attributes = part.attributes(NFGEN);
        let data = attributes.find(ATTR_DATA);
        let flags = data.and_then(|data| data.nested().find(ATTR_CADT_FLAGS)).and_then(|flags| flags.be32());
        Some(Self {
            type_name: attributes.find(ATTR_TYPENAME)?.text().into_owned(),
            family: *attributes.find(ATTR_FAMILY)?.data.first()?,
            commented: flags.unwrap_or_default() & WITH_COMMENT != 0,
        })
    }

    /// Whether rules and changes of the planned set work with it.
    pub(super) fn fits(&self, set: &Set) -> bool {
        self.type_name == type_name(set.keys)
            && self.family == family_number(set.family())
            && (self.commented || !set.commented)
    }
}

/// The revision of a type since which its elements have comments.
fn revision(keys: KeyType) -> u8 {
    match keys {
        KeyType::Address(_) | KeyType::Endpoint(_) | KeyType::Arrival(_) => 3,
        KeyType::Prefix(_) => 4,
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn command(kind: u16, flags: u16, name: &str, body: impl FnOnce(&mut MessageWriter)) -> Vec<u8> {
    let mut w = MessageWriter::with_capacity(128);
    write_command(&mut w, kind, flags, 1, name, body);
    w.bytes().to_vec()
}

fn write_command(
    w: &mut MessageWriter,
    kind: u16,
    flags: u16,
    sequence: u32,
    name: &str,
    body: impl FnOnce(&mut MessageWriter),
) {
    // The end of a list is told anyway, and the failure of one that is to be acknowledged twice (`ip_set_dump_start`).
    let ack = if kind == LIST { 0 } else { flags::ACK };
    w.message(kind, flags::REQUEST | ack | flags, sequence, &[2, 0, 0, 0], |w| {
        w.attribute(ATTR_PROTOCOL, &[PROTOCOL]);
        w.text(ATTR_SETNAME, name);
        body(w);
    });
}

pub(super) fn look_for(name: &str) -> Vec<u8> {
    command(HEADER, 0, name, |_| {})
}

/// Without [`flags::EXCL`] one that is the same is no error.
pub(super) fn create(name: &str, set: &Set, room: usize) -> Vec<u8> {
    command(CREATE, flags::CREATE, name, |w| {
        w.text(ATTR_TYPENAME, type_name(set.keys));
        w.attribute(ATTR_REVISION, &[revision(set.keys)]);
        w.attribute(ATTR_FAMILY, &[family_number(set.family())]);
        w.nest(ATTR_DATA, |w| {
            let room = u32::try_from(room).unwrap_or(u32::MAX);
            w.attribute(ATTR_MAXELEM | NET_ORDER, &room.to_be_bytes());
            if set.commented {
                w.attribute(ATTR_CADT_FLAGS | NET_ORDER, &WITH_COMMENT.to_be_bytes());
            }
        });
    })
}

pub(super) fn swap(one: &str, other: &str) -> Vec<u8> {
    command(SWAP, 0, one, |w| w.text(ATTR_SETNAME2, other))
}

pub(super) fn flush(name: &str) -> Vec<u8> {
    command(FLUSH, 0, name, |_| {})
}

pub(super) fn destroy(name: &str) -> Vec<u8> {
    command(DESTROY, 0, name, |_| {})
}

pub(super) fn list(name: &str, header: bool) -> Vec<u8> {
    command(LIST, flags::DUMP, name, |w| {
        if header {
            w.attribute(ATTR_FLAGS | NET_ORDER, &LIST_HEADER.to_be_bytes());
        }
    })
}

/// Of all sets.
pub(super) fn list_names() -> Vec<u8> {
    let mut w = MessageWriter::with_capacity(64);
    w.message(LIST, flags::REQUEST | flags::DUMP, 1, &[2, 0, 0, 0], |w| {
        w.attribute(ATTR_PROTOCOL, &[PROTOCOL]);
        w.attribute(ATTR_FLAGS | NET_ORDER, &LIST_NAME.to_be_bytes());
    });
    w.bytes().to_vec()
}

/// The name of the set that a part of a list is about.
pub(super) fn name(part: &wire::Message<'_>) -> Option<String> {
    Some(part.attributes(NFGEN).find(ATTR_SETNAME)?.text().into_owned())
}

// === impl ElementCommand ===

impl ElementCommand<'_> {
    /// Writes it, as several commands where the kernel takes no such key.
    pub(super) fn write(&self, w: &mut MessageWriter, set: &Set, sequence: u32) {
        let (kind, extra, key, comment) = match self {
            Self::Add { element, exclusive: true } => (ADD, flags::EXCL, &element.key, &*element.comment),
            Self::Add { element, exclusive: false } => (ADD, 0, &element.key, &*element.comment),
            Self::Remove { key } => (DEL, flags::EXCL, *key, ""),
        };
        for item in kernel_keys(key).iter().map(item_of) {
            write_command(w, kind, extra, sequence, &set.name, |w| {
                w.nest(ATTR_DATA, |w| {
                    let of = if item.address.is_ipv4() { IPADDR_V4 } else { IPADDR_V6 };
                    w.nest(ATTR_IP, |w| w.attribute(of | NET_ORDER, &octets(item.address)));
                    if let Some(cidr) = item.cidr {
                        w.attribute(ATTR_CIDR, &[cidr]);
                    }
                    if let Some((protocol, port)) = item.port {
                        w.attribute(ATTR_PORT | NET_ORDER, &port.to_be_bytes());
                        w.attribute(ATTR_PROTO, &[protocol.number()]);
                    }
                    if kind == ADD && set.commented {
                        w.text(ATTR_COMMENT, comment);
                    }
                });
            });
        }
    }
}

fn item_of(key: &Key) -> Item {
    match key {
        // There are no such sets.
        Key::Arrival(_) => Item { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), cidr: None, port: None },
        Key::Address(address) => Item { address: *address, cidr: None, port: None },
        Key::Prefix(net) => Item { address: net.network(), cidr: Some(net.prefix_len()), port: None },
        Key::Endpoint(TransportAddress { address, protocol, port }) => {
            Item { address: *address, cidr: None, port: Some((*protocol, *port)) }
        }
    }
}

/// The elements in a part of a list.
pub(super) fn items<'a>(part: &wire::Message<'a>) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
    part.attributes(NFGEN).find(ATTR_ADT).into_iter().flat_map(|list| list.nested())
}

/// Whether an element may be that of an address. Of a long list most are seen to be others without being read: an element begins with its
/// address.
pub(super) fn may_be(item: &Attribute<'_>, address: &[u8]) -> bool {
    /// The heads of two attributes, one in the other.
    const HEADS: usize = 8;
    let first = item.nested().next();
    first.is_none_or(|first| first.kind != ATTR_IP)
        || item.data.get(HEADS..HEADS + address.len()).is_none_or(|bytes| bytes == address)
}

/// Reads an element; absent for what does not fit the set's keys.
pub(super) fn read(set: &Set, item: &Attribute<'_>) -> Option<Element> {
    let attributes = item.nested();
    let ip = address(attributes.find(ATTR_IP)?.nested().next()?.data)?;
    let key = match set.keys {
        KeyType::Address(_) | KeyType::Arrival(_) => Key::Address(ip),
        KeyType::Prefix(_) => {
            let whole = if ip.is_ipv4() { 32 } else { 128 };
            let cidr = attributes.find(ATTR_CIDR).and_then(|cidr| cidr.data.first().copied());
            Key::Prefix(IpNet::new(ip, cidr.unwrap_or(whole)).ok()?)
        }
        KeyType::Endpoint(_) => {
            let port = u16::from_be_bytes(attributes.find(ATTR_PORT)?.data.try_into().ok()?);
            let number = *attributes.find(ATTR_PROTO)?.data.first()?;
            let protocol = Protocol::ALL.into_iter().find(|known| known.number() == number)?;
            Key::Endpoint(TransportAddress { address: ip, protocol, port })
        }
    };
    let comment = attributes.find(ATTR_COMMENT).map(|text| text.text().into_owned());
    let element = Element { comment: comment.unwrap_or_default(), ..key.into() };
    set.keys.takes(&element.key).then_some(element)
}

/// Puts the two halves together that stand for a prefix of no length at all.
pub(super) fn whole(mut elements: Vec<Element>) -> Vec<Element> {
    let half = |element: &Element| matches!(element.key, Key::Prefix(net) if net.prefix_len() == 1);
    if elements.iter().filter(|element| half(element)).count() == 2 {
        let first = elements.iter().find(|element| half(element));
        if let Some(Key::Prefix(all)) = first.map(|element| element.key) {
            elements.retain(|element| !half(element));
            elements.extend(all.supernet().map(|all| Key::Prefix(all).into()));
        }
    }
    elements
}

/// The kernel's error number.
pub(super) fn code(error: &netlink::Error) -> Option<i32> {
    match error {
        netlink::Error::Refused { source, .. } => source.raw_os_error(),
        _ => None,
    }
}
