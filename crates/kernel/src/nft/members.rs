//! Elements of a named set that come and go without the rules.

use std::net::IpAddr;

use netns::InsideHost;
use ruleset::Family;
use rustix::io::Errno;

use super::set::comment;
use super::uapi::{batch_header, element, expr, family, header, message};
use crate::netlink::wire::{Attribute, Writer};
use crate::netlink::{self, Socket, flags};
use crate::sets::{Error, Member, Set, address, octets};

/// Elements in one message: an attribute holds less than 64 KiB, an element with the longest comment at most 176 bytes.
const ELEMENTS_AT_A_TIME: usize = 300;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// A set of addresses in a table of family inet.
pub(crate) struct NftSet {
    socket: Socket,
    table: String,
    name: String,
    family: Family,
}

// === impl NftSet ===

impl NftSet {
    pub(crate) fn new(_: &InsideHost<'_>, table: &str, name: &str, family: Family) -> Result<Self, Error> {
        let operation = || "speak to nf_tables".to_owned();
        let socket = Socket::netfilter().map_err(|source| Error::Kernel {
            operation: operation(),
            hint: "",
            source,
        })?;
        Ok(Self { socket, table: table.to_owned(), name: name.to_owned(), family })
    }

    fn failed(&self, what: &str, source: netlink::Error) -> Error {
        let hint = match source.errno() {
            Some(Errno::PERM) => " (this needs CAP_NET_ADMIN)",
            Some(Errno::NOENT) => " (the set is missing; the next verification makes it)",
            _ => "",
        };
        Error::Kernel {
            operation: format!("{what} set {} of table inet {}", self.name, self.table),
            hint,
            source,
        }
    }

    fn place(&self, w: &mut Writer) {
        w.text(element::LIST_TABLE, &self.table);
        w.text(element::LIST_SET, &self.name);
    }
}

impl Set for NftSet {
    /// It is made with the rules.
    fn ensure(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn get(&mut self, ip: IpAddr) -> Result<Option<String>, Error> {
        let mut request = Writer::with_capacity(128);
        request.message(message::GET_ELEMENTS, flags::REQUEST | flags::ACK, 1, &header(family::INET), |w| {
            self.place(w);
            w.nest(element::LIST_ELEMENTS, |w| write(w, ip, ""));
        });
        let mut found = None;
        let result = self.socket.get(request.bytes(), |answer| {
            let elements = answer.attributes(HEADER).find(element::LIST_ELEMENTS);
            found = elements.and_then(|list| list.nested().next()).map(|item| {
                item.nested().find(element::USERDATA).and_then(|data| comment(data.data)).unwrap_or_default()
            });
        });
        match result {
            Ok(()) => Ok(found),
            // The set is missing, or the element is: the kernel says the same of both.
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed("look an address up in", error)),
        }
    }

    fn change(&mut self, gone: &[IpAddr], new: &[Member]) -> Result<(), Error> {
        let mut batch = Writer::with_capacity(1024);
        batch.message(message::BATCH_BEGIN, flags::REQUEST, 0, &batch_header(), |_| {});
        let mut last = 0;
        for part in gone.chunks(ELEMENTS_AT_A_TIME) {
            last = batch.len();
            batch.message(message::DEL_ELEMENTS, flags::REQUEST, 1, &header(family::INET), |w| {
                self.place(w);
                w.nest(element::LIST_ELEMENTS, |w| part.iter().for_each(|ip| write(w, *ip, "")));
            });
        }
        for part in new.chunks(ELEMENTS_AT_A_TIME) {
            last = batch.len();
            batch.message(
                message::NEW_ELEMENTS,
                flags::REQUEST | flags::CREATE,
                2,
                &header(family::INET),
                |w| {
                    self.place(w);
                    w.nest(element::LIST_ELEMENTS, |w| {
                        part.iter().for_each(|one| write(w, one.ip, &one.uid));
                    });
                },
            );
        }
        batch.add_flag(last, flags::ACK);
        batch.message(message::BATCH_END, flags::REQUEST, 3, &batch_header(), |_| {});
        let answers = self.socket.exchange(batch.bytes()).map_err(|error| self.failed("change", error))?;
        let acknowledged = !answers.is_empty();
        for answer in answers {
            answer.result.map_err(|error| self.failed("change", error))?;
        }
        if acknowledged { Ok(()) } else { Err(self.failed("change", netlink::Error::NoAnswer)) }
    }

    fn list(&mut self) -> Result<Vec<Member>, Error> {
        let mut request = Writer::with_capacity(128);
        request.message(message::GET_ELEMENTS, flags::REQUEST | flags::DUMP, 1, &header(family::INET), |w| {
            self.place(w);
        });
        let (mut found, v4) = (Vec::new(), self.family == Family::V4);
        let result = self.socket.dump(request.bytes(), |part| match part {
            None => found.clear(),
            Some(part) => {
                let list = part.attributes(HEADER).find(element::LIST_ELEMENTS);
                let members = list.iter().flat_map(|list| list.nested()).filter_map(|item| member(&item));
                found.extend(members.filter(|member| member.ip.is_ipv4() == v4));
            }
        });
        result.map_err(|error| self.failed("list", error))?;
        Ok(found)
    }

    /// It goes with its table.
    fn destroy(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// An element of the kernel's; one without a comment has no uid.
fn member(item: &Attribute<'_>) -> Option<Member> {
    let key = item.nested().find(element::KEY)?.nested().find(expr::DATA_VALUE)?.data;
    let uid = item.nested().find(element::USERDATA).and_then(|data| comment(data.data));
    Some(Member { ip: address(key)?, uid: uid.unwrap_or_default() })
}

fn write(w: &mut Writer, ip: IpAddr, uid: &str) {
    w.nest(element::ITEM, |w| {
        w.nest(element::KEY, |w| w.attribute(expr::DATA_VALUE, &octets(ip)));
        if let (false, Ok(len)) = (uid.is_empty(), u8::try_from(uid.len() + 1)) {
            let mut data = Vec::with_capacity(uid.len() + 3);
            data.extend_from_slice(&[element::USERDATA_COMMENT, len]);
            data.extend_from_slice(uid.as_bytes());
            data.push(0);
            w.attribute(element::USERDATA, &data);
        }
    });
}
