//! Interfaces and addresses.

use std::collections::HashMap;

use conflicts::{ObservedAddress, ObservedLink};
use netns::Inside;

use crate::netlink::wire::{Message, MessageWriter};
use crate::netlink::{self, NetlinkSocket, flags};
use crate::route::{self, Error};

/// `RTM_GETLINK` of linux/rtnetlink.h; length of `struct ifinfomsg`.
const GET_LINK: u16 = 18;
const HEADER: usize = 16;
/// `IFLA_IFNAME`, `IFLA_LINKINFO`, `IFLA_XDP` of linux/if_link.h.
const NAME: u16 = 3;
const INFO: u16 = 18;
const XDP: u16 = 43;
/// `IFLA_INFO_KIND`, `IFLA_XDP_PROG_ID`.
const KIND: u16 = 1;
const PROGRAM: u16 = 4;
/// Interfaces that are read; the node's own namespace has one for each pod.
const MOST: usize = 16 << 10;

/// Interfaces with their numbers.
pub(super) fn links(_: &Inside) -> Result<Vec<(u32, ObservedLink)>, Error> {
    let failed = |source: netlink::Error| route::unlisted("list the interfaces of the namespace", source);
    let mut request = MessageWriter::with_capacity(64);
    request.message(GET_LINK, flags::REQUEST | flags::DUMP, 1, &[0; HEADER], |_| {});
    let mut found = Vec::new();
    NetlinkSocket::open(None)
        .and_then(|mut socket| {
            socket.dump_most(request.bytes(), (MOST, "interfaces"), |part| match part {
                None => found.clear(),
                Some(part) => found.extend(link(part)),
            })
        })
        .map_err(failed)?;
    Ok(found)
}

fn link(part: &Message<'_>) -> Option<(u32, ObservedLink)> {
    let header = part.payload.first_chunk::<HEADER>()?;
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let attributes = part.attributes(HEADER);
    let name = attributes.find(NAME)?.text().into_owned();
    let kind = attributes.find(INFO).and_then(|info| info.nested().find(KIND));
    let xdp = attributes.find(XDP).and_then(|xdp| xdp.nested().find(PROGRAM)).and_then(|id| id.ne32());
    let kind = kind.map(|kind| kind.text().into_owned()).unwrap_or_default();
    Some((index, ObservedLink { name, kind, xdp }))
}

pub(super) fn names(links: &[(u32, ObservedLink)]) -> HashMap<u32, String> {
    links.iter().map(|(index, link)| (*index, link.name.clone())).collect()
}

pub(super) fn addresses(
    inside: &Inside,
    names: &HashMap<u32, String>,
) -> Result<Vec<ObservedAddress>, Error> {
    let named = |address: route::ListedAddress| ObservedAddress {
        interface: names.get(&address.interface).cloned().unwrap_or_default(),
        address: address.ip,
        prefix: address.prefix_len,
    };
    Ok(route::every_address(inside)?.into_iter().map(named).collect())
}
