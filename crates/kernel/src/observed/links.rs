//! Interfaces and addresses.

use std::collections::HashMap;

use conflicts::{ObservedAddress, ObservedLink};

use crate::netlink::wire::{Message, MessageWriter};
use crate::netlink::{self, NetlinkSocket, flags};
use crate::route::{self, Error};

/// `RTM_GETLINK` of linux/rtnetlink.h; length of `struct ifinfomsg`.
const GET_LINK: u16 = 18;
const HEADER: usize = 16;
/// `IFLA_IFNAME`, `IFLA_LINKINFO`, `IFLA_AF_SPEC`, `IFLA_EXT_MASK`, `IFLA_XDP` of linux/if_link.h.
const NAME: u16 = 3;
const INFO: u16 = 18;
const FAMILIES: u16 = 26;
const MASK: u16 = 29;
const XDP: u16 = 43;
/// `RTEXT_FILTER_SKIP_STATS` of linux/rtnetlink.h.
const SKIP_STATS: u32 = 1 << 3;
/// `IFLA_INFO_KIND`, `IFLA_XDP_PROG_ID`.
const KIND: u16 = 1;
const PROGRAM: u16 = 4;
/// Family, array of its settings, place in that, and name of a setting.
type Setting = (u16, u16, usize, &'static str);
/// `IFLA_INET_CONF` of `AF_INET`, whose places are `IPV4_DEVCONF_*` of linux/ip.h less one, and `IFLA_INET6_CONF` of `AF_INET6`, with `DEVCONF_*` of
/// linux/ipv6.h.
const SETTINGS: [Setting; 3] = [
    (2, 1, 8 - 1, "net/ipv4/conf/{}/rp_filter"),
    (2, 1, 26 - 1, "net/ipv4/conf/{}/route_localnet"),
    (10, 2, 26, "net/ipv6/conf/{}/disable_ipv6"),
];
/// Interfaces that are read; the node's own namespace has one for each pod.
const MOST: usize = 16 << 10;

/// An interface as the kernel lists it.
pub(super) struct ListedLink {
    pub(super) index: u32,
    pub(super) observed: ObservedLink,
    /// Its settings that rules of ours depend on, by their names below `/proc/sys`; those of a family that it does not have are not there.
    settings: Vec<(&'static str, u32)>,
}

/// All of them. Counters, which are most of an answer, are left out.
pub(super) fn links(socket: &mut NetlinkSocket) -> Result<Vec<ListedLink>, Error> {
    let failed = |source: netlink::Error| route::unlisted("list the interfaces of the namespace", source);
    let mut request = MessageWriter::with_capacity(64);
    request.message(GET_LINK, flags::REQUEST | flags::DUMP, 1, &[0; HEADER], |w| {
        w.attribute(MASK, &SKIP_STATS.to_ne_bytes());
    });
    let mut found = Vec::new();
    socket
        .dump_most(request.bytes(), (MOST, "interfaces"), |part| match part {
            None => found.clear(),
            Some(part) => found.extend(link(part)),
        })
        .map_err(failed)?;
    Ok(found)
}

fn link(part: &Message<'_>) -> Option<ListedLink> {
    let header = part.payload.first_chunk::<HEADER>()?;
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let attributes = part.attributes(HEADER);
    let name = attributes.find(NAME)?.text().into_owned();
    let kind = attributes.find(INFO).and_then(|info| info.nested().find(KIND));
    let xdp = attributes.find(XDP).and_then(|xdp| xdp.nested().find(PROGRAM)).and_then(|id| id.ne32());
    let kind = kind.map(|kind| kind.text().into_owned()).unwrap_or_default();
    let families = attributes.find(FAMILIES).map(|families| families.nested());
    let setting = |&(family, array, at, name): &Setting| {
        let values = families?.find(family)?.nested().find(array)?.data;
        let value = values.get(at * 4..)?.first_chunk().map(|value| u32::from_ne_bytes(*value))?;
        Some((name, value))
    };
    let settings = SETTINGS.iter().filter_map(setting).collect();
    Some(ListedLink { index, observed: ObservedLink { name, kind, xdp }, settings })
}

impl ListedLink {
    /// Names below `/proc/sys`, and values.
    pub(super) fn settings(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.settings.iter().map(|(name, value)| (name.replace("{}", &self.observed.name), value.to_string()))
    }
}

pub(super) fn names(links: &[ListedLink]) -> HashMap<u32, String> {
    links.iter().map(|link| (link.index, link.observed.name.clone())).collect()
}

pub(super) fn addresses(
    socket: &mut NetlinkSocket,
    names: &HashMap<u32, String>,
) -> Result<Vec<ObservedAddress>, Error> {
    let named = |address: route::ListedAddress| ObservedAddress {
        interface: names.get(&address.interface).cloned().unwrap_or_default(),
        address: address.ip,
        prefix: address.prefix_len,
    };
    Ok(route::every_address_over(socket)?.into_iter().map(named).collect())
}
