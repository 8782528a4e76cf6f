//! Settings that rules of ours depend on, by their names below `/proc/sys`.
//!
//! The kernel keeps the folders of all namespaces in `/proc/sys/net` under one name, and looks through them one by one for that of the calling
//! thread. So what netlink tells is asked for by that, and of the folders one is opened.

use std::collections::BTreeMap;

use conflicts::{NetnsScope, PlannedProxy};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::links::ListedLink;
use crate::netlink::wire::MessageWriter;
use crate::netlink::{NetlinkSocket, flags};

/// `RTM_GETNETCONF` of linux/rtnetlink.h; length of `struct netconfmsg`, padded.
const GET_SETTINGS: u16 = 82;
const HEADER: usize = 4;
/// `NETCONFA_IFINDEX` and its value for what is set for all interfaces, `NETCONFA_FORWARDING`, `NETCONFA_RP_FILTER` of linux/netconf.h.
const INTERFACE: u16 = 1;
const ALL: i32 = -1;
const FORWARDING: u16 = 2;
const REVERSE_PATH: u16 = 3;
/// Those of all interfaces that netlink tells: family, attribute, name.
const TOLD: [(u8, u16, &str); 3] = [
    (2, FORWARDING, "net/ipv4/ip_forward"),
    (2, REVERSE_PATH, "net/ipv4/conf/all/rp_filter"),
    (10, FORWARDING, "net/ipv6/conf/all/forwarding"),
];
const FAMILIES: [u8; 2] = [2, 10];
/// Where the others are, of every namespace and of the node's.
const FOLDER: &str = "net/ipv4";
const ROUTE_LOCALNET: &str = "conf/all/route_localnet";
const PORTS: &str = "ip_local_port_range";
const RESERVED_PORTS: &str = "ip_local_reserved_ports";
const OF_BRIDGES: (&str, &str) = ("net/bridge", "bridge-nf-call-iptables");
/// Bytes of a value that are read at first.
const USUAL: usize = 256;

/// Those of the namespace of the calling thread, which is the socket's.
pub(super) fn read(
    socket: &mut NetlinkSocket,
    scope: NetnsScope,
    links: &[ListedLink],
    proxy: &PlannedProxy,
) -> BTreeMap<String, String> {
    let mut settings: BTreeMap<String, String> = links.iter().flat_map(ListedLink::settings).collect();
    for family in FAMILIES {
        settings.extend(of_all_interfaces(socket, family));
    }
    if let Ok(folder) = open(FOLDER) {
        let mut take = |name: &str| {
            let value = value(&folder, name)?;
            settings.insert(format!("{FOLDER}/{name}"), value.clone());
            Some(value)
        };
        take(ROUTE_LOCALNET);
        // Ports are kept for nobody where the kernel gives none of these out.
        if scope == NetnsScope::Pod && take(PORTS).is_none_or(|range| has_one_of(&range, &proxy.ports)) {
            take(RESERVED_PORTS);
        }
    }
    if scope == NetnsScope::Node {
        let (folder, name) = OF_BRIDGES;
        let value = open(folder).ok().and_then(|folder| value(&folder, name));
        settings.extend(value.map(|value| (format!("{folder}/{name}"), value)));
    }
    settings
}

/// Without the family there are none.
fn of_all_interfaces(socket: &mut NetlinkSocket, family: u8) -> Vec<(String, String)> {
    let mut request = MessageWriter::with_capacity(64);
    request.message(GET_SETTINGS, flags::REQUEST, 1, &[family, 0, 0, 0], |w| {
        w.attribute(INTERFACE, &ALL.to_ne_bytes());
    });
    let told = socket.ask(request.bytes(), |answer| {
        let attributes = answer.attributes(HEADER);
        let told = TOLD.iter().filter(|(of, ..)| *of == family).filter_map(|(_, attribute, name)| {
            Some(((*name).to_owned(), attributes.find(*attribute)?.ne32()?.to_string()))
        });
        Some(told.collect())
    });
    told.unwrap_or_default()
}

/// Whether a range as the kernel writes it has one of these ports.
fn has_one_of(range: &str, ports: &[u16]) -> bool {
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(low), Some(high)) = (ends.next(), ends.next()) else { return true };
    ports.iter().any(|port| (low..=high).contains(port))
}

/// A folder of the namespace that the thread is in.
fn open(folder: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/sys/{folder}"), flags, Mode::empty())
}

/// The kernel gives out as much of a value as there is room for.
fn value(folder: &OwnedFd, name: &str) -> Option<String> {
    let file = rustix::fs::openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = vec![0; USUAL];
    let mut length = rustix::io::read(&file, &mut bytes).ok()?;
    while length == bytes.len() {
        bytes.resize(2 * length, 0);
        length += rustix::io::read(&file, &mut bytes[length..]).ok()?;
    }
    Some(String::from_utf8_lossy(bytes[..length].trim_ascii()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_the_kernel_writes_it() {
        assert!(!has_one_of("32768\t60999", &[15001, 15006]));
        assert!(has_one_of("1024\t60999", &[15001]));
        assert!(has_one_of("", &[15001]), "what cannot be read may have it");
    }
}
