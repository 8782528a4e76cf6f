//! A set of addresses of the iptables world, over netlink. Numbers are those of `linux/netfilter/ipset/ip_set.h`.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use netns::InsideHost;
use ruleset::Family;

use crate::netlink::wire::{Attribute, Writer};
use crate::netlink::{self, Socket, flags};
use crate::sets::{Error, Member, Set, address, octets};

/// `NFNL_SUBSYS_IPSET`, the upper byte of a message's type.
const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const FLUSH: u16 = SUBSYSTEM | 4;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const DEL: u16 = SUBSYSTEM | 10;
const HEADER: u16 = SUBSYSTEM | 12;

/// `IPSET_PROTOCOL_MIN`: spoken by every kernel since 2.6.39.
const PROTOCOL: u8 = 6;
/// Revision of `hash:ip` since which elements have comments.
const REVISION: u8 = 3;
/// `IPSET_FLAG_WITH_COMMENT`.
const WITH_COMMENT: u32 = 1 << 4;
/// The type of our sets. One holds 65536 elements by default, which is more than the pods of any node.
const TYPE: &str = "hash:ip";

/// `IPSET_ATTR_*` of a command.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
/// `IPSET_ATTR_*` of an element or of a set that is made.
const ATTR_IP: u16 = 1;
const ATTR_CADT_FLAGS: u16 = 8;
const ATTR_COMMENT: u16 = 26;
/// `IPSET_ATTR_IPADDR_IPV4`, `IPSET_ATTR_IPADDR_IPV6`, with `NLA_F_NET_BYTEORDER`.
const NET_ORDER: u16 = 0x4000;
const IPADDR_V4: u16 = 1;
const IPADDR_V6: u16 = 2;

/// Length of `struct nfgenmsg`.
const NFGEN: usize = 4;
/// Errors of the kernel's that mean "no such set" and "no ipset at all".
const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
/// `IPSET_ERR_EXIST`: an element that is not there.
const ERR_EXIST: i32 = 4103;

/// A set of type `hash:ip` with comments.
pub(crate) struct IpSet {
    socket: Socket,
    name: String,
    family: Family,
    /// What it held when it was last listed, and what this process did since. Good for saying whether an addition changed something; never
    /// for whose an address is, because another agent may write to the set during an update of the node's.
    members: Option<HashMap<IpAddr, String>>,
}

// === impl IpSet ===

impl IpSet {
    pub(crate) fn new(_: &InsideHost<'_>, name: &str, family: Family) -> Result<Self, Error> {
        let socket = Socket::netfilter().map_err(|source| Error::Kernel {
            operation: "speak to ipset".to_owned(),
            hint: "",
            source,
        })?;
        Ok(Self { socket, name: name.to_owned(), family, members: None })
    }

    /// Whether the kernel has it, of whatever type.
    pub(crate) fn exists(&mut self) -> Result<bool, Error> {
        let request = self.message(HEADER, flags::REQUEST | flags::ACK, |_| {});
        match self.socket.get(&request, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if matches!(code(&error), Some(ENOENT | EINVAL | EOPNOTSUPP)) => Ok(false),
            Err(error) => Err(self.failed("look for", error)),
        }
    }

    fn message(&self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut w = Writer::with_capacity(128);
        let header = [if self.family == Family::V4 { 2 } else { 10 }, 0, 0, 0];
        w.message(kind, flags, 1, &header, |w| {
            w.attribute(ATTR_PROTOCOL, &[PROTOCOL]);
            w.text(ATTR_SETNAME, &self.name);
            body(w);
        });
        w.bytes().to_vec()
    }

    /// Without [`flags::EXCL`] an addition writes over what is there, its comment included, and a removal of nothing is no error.
    fn element(&self, kind: u16, extra: u16, ip: IpAddr, uid: Option<&str>) -> Vec<u8> {
        self.message(kind, flags::REQUEST | flags::ACK | extra, |w| {
            w.nest(ATTR_DATA, |w| {
                let of = if ip.is_ipv4() { IPADDR_V4 } else { IPADDR_V6 };
                w.nest(ATTR_IP, |w| w.attribute(of | NET_ORDER, &octets(ip)));
                if let Some(uid) = uid {
                    w.text(ATTR_COMMENT, uid);
                }
            });
        })
    }

    fn failed(&self, what: &str, source: netlink::Error) -> Error {
        let hint = match code(&source) {
            Some(1) => " (this needs CAP_NET_ADMIN)",
            Some(EINVAL | EOPNOTSUPP) => " (does this kernel have ip_set and ip_set_hash_ip?)",
            Some(ENOENT) => " (the set is missing; the next verification makes it)",
            Some(4100) => " (a rule still looks addresses up in it)",
            Some(17 | 4102) => " (a set of that name and another type is there; see `ipset list`)",
            _ => "",
        };
        Error::Kernel { operation: format!("{what} ipset {}", self.name), hint, source }
    }

    /// Hands each element's address and comment to `take`; `None` at the start, and again where the list begins anew.
    fn dump(&mut self, mut take: impl FnMut(Option<(&[u8], Option<Attribute<'_>>)>)) -> Result<(), Error> {
        let request = self.message(LIST, flags::REQUEST | flags::DUMP | flags::ACK, |_| {});
        let result = self.socket.dump(&request, |part| {
            let Some(part) = part else { return take(None) };
            let list = part.attributes(NFGEN).find(ATTR_ADT);
            for item in list.iter().flat_map(|list| list.nested()) {
                let ip = item.nested().find(ATTR_IP).and_then(|ip| ip.nested().next());
                if let Some(ip) = ip {
                    take(Some((ip.data, item.nested().find(ATTR_COMMENT))));
                }
            }
        });
        result.map_err(|error| self.failed("list", error))
    }

    fn known(&mut self) -> Result<&mut HashMap<IpAddr, String>, Error> {
        if self.members.is_none() {
            self.list()?;
        }
        Ok(self.members.get_or_insert_default())
    }
}

impl Set for IpSet {
    fn ensure(&mut self) -> Result<(), Error> {
        let family = if self.family == Family::V4 { 2 } else { 10 };
        let request = self.message(CREATE, flags::REQUEST | flags::ACK | flags::CREATE, |w| {
            w.text(ATTR_TYPENAME, TYPE);
            w.attribute(ATTR_REVISION, &[REVISION]);
            w.attribute(ATTR_FAMILY, &[family]);
            w.nest(ATTR_DATA, |w| w.attribute(ATTR_CADT_FLAGS | NET_ORDER, &WITH_COMMENT.to_be_bytes()));
        });
        self.socket.get(&request, |_| {}).map_err(|error| self.failed("make", error))
    }

    /// By the whole list: ipset cannot be asked for the comment of one element.
    fn get(&mut self, ip: IpAddr) -> Result<Option<String>, Error> {
        let (wanted, mut found) = (octets(ip), None);
        self.dump(|part| match part {
            None => found = None,
            Some((bytes, comment)) => {
                if bytes == wanted {
                    found = Some(comment.map(|text| text.text().into_owned()).unwrap_or_default());
                }
            }
        })?;
        Ok(found)
    }

    fn upsert(&mut self, member: Member) -> Result<bool, Error> {
        let known = self.known()?.get(&member.ip) == Some(&member.uid);
        let request = self.element(ADD, flags::EXCL, member.ip, Some(&member.uid));
        match self.socket.get(&request, |_| {}) {
            Ok(()) => {
                self.known()?.insert(member.ip, member.uid);
                Ok(true)
            }
            // Written again although it may be right: who else changed it is not known.
            Err(error) if code(&error) == Some(ERR_EXIST) => {
                self.change(&[], &[member])?;
                Ok(!known)
            }
            Err(error) => Err(self.failed("add an address to", error)),
        }
    }

    /// One command for each element: ipset has no transactions. Whoever stays keeps its place, as adding writes over.
    fn change(&mut self, gone: &[IpAddr], new: &[Member]) -> Result<(), Error> {
        let stay: HashSet<IpAddr> = new.iter().map(|member| member.ip).collect();
        for ip in gone.iter().filter(|ip| !stay.contains(ip)) {
            let request = self.element(DEL, 0, *ip, None);
            match self.socket.get(&request, |_| {}) {
                Ok(()) => {}
                Err(error) if code(&error) == Some(ERR_EXIST) => {}
                Err(error) => return Err(self.failed("remove an address from", error)),
            }
            self.known()?.remove(ip);
        }
        for Member { ip, uid } in new {
            let request = self.element(ADD, 0, *ip, Some(uid));
            self.socket.get(&request, |_| {}).map_err(|error| self.failed("add an address to", error))?;
            self.known()?.insert(*ip, uid.clone());
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<Member>, Error> {
        let mut found = Vec::new();
        self.dump(|part| match part {
            None => found.clear(),
            Some((bytes, comment)) => {
                let uid = comment.map(|text| text.text().into_owned()).unwrap_or_default();
                found.extend(address(bytes).map(|ip| Member { ip, uid }));
            }
        })?;
        self.members = Some(found.iter().map(|member| (member.ip, member.uid.clone())).collect());
        Ok(found)
    }

    fn destroy(&mut self) -> Result<(), Error> {
        self.members = None;
        for (command, what) in [(FLUSH, "empty"), (DESTROY, "remove")] {
            let request = self.message(command, flags::REQUEST | flags::ACK, |_| {});
            match self.socket.get(&request, |_| {}) {
                Ok(()) => {}
                Err(error) if matches!(code(&error), Some(ENOENT | EINVAL | EOPNOTSUPP)) => {}
                Err(error) => return Err(self.failed(what, error)),
            }
        }
        Ok(())
    }
}

/// The kernel's error number; those of ipset are larger than any other.
fn code(error: &netlink::Error) -> Option<i32> {
    match error {
        netlink::Error::Refused { source, .. } => source.raw_os_error(),
        _ => None,
    }
}
