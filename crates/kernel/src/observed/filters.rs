//! What the kernel runs on packets of a pod's interfaces beside rules: filters of traffic control, which may be programs, and programs attached to an
//! interface itself. They may drop, redirect or change a packet that no rule sees, or has seen.

use conflicts::{BpfProgram, LookedAt, ObservedLink};
use rustix::io::Errno;

use super::links::ListedLink;
use super::programs::query;
use crate::netlink::wire::{Message, MessageWriter};
use crate::netlink::{self, NetlinkSocket, flags};

/// `RTM_GETQDISC`, `RTM_GETTFILTER` of linux/rtnetlink.h; length of `struct tcmsg`.
const GET_DISCIPLINE: u16 = 38;
const GET_FILTER: u16 = 46;
const HEADER: usize = 20;
/// `TCA_KIND`, `TCA_OPTIONS`; `TCA_BPF_NAME`, `TCA_BPF_ID` of linux/pkt_cls.h.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_NAME: u16 = 7;
const BPF_ID: u16 = 11;
/// The parents of the filters on what comes in and goes out: `TC_H_CLSACT` with `TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS`.
const PARENTS: [(u32, &str); 2] = [(0xffff_fff2, "tc ingress"), (0xffff_fff3, "tc egress")];
/// `TC_H_CLSACT`: the parent of the disciplines `clsact` and `ingress`, without which an interface has no such filters.
const FOR_FILTERS: u32 = 0xffff_fff1;
/// The kind of interfaces that have hooks of their own.
const NETKIT: &str = "netkit";
/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`, `BPF_NETKIT_PRIMARY`, `BPF_NETKIT_PEER` of linux/bpf.h (Linux 6.6, 6.7).
const HOOKS: [(u32, &str); 4] =
    [(46, "tcx ingress"), (47, "tcx egress"), (54, "netkit primary"), (55, "netkit peer")];
/// Interfaces of a pod that are asked about, and filters of each.
const MAX_LINKS: usize = 16;
const MOST: usize = 64;
/// Disciplines that are read; an interface may have one for each of its queues.
const MOST_DISCIPLINES: usize = 16 << 10;

/// Those of the first interfaces.
pub(super) fn of_links(socket: &mut NetlinkSocket, links: &[ListedLink]) -> LookedAt<Vec<BpfProgram>> {
    if links.len() > MAX_LINKS {
        return LookedAt::Not(format!("filters of interfaces: there are more than {MAX_LINKS} interfaces"));
    }
    let filtered = match filtered(socket) {
        Ok(filtered) => filtered,
        Err(error) => {
            return LookedAt::Not(format!("disciplines of interfaces: {}", fault::chain(&error)));
        }
    };
    let of_link = |link: &ListedLink| of_link(socket, link, filtered.contains(&link.index));
    match links.iter().map(of_link).collect::<Result<Vec<_>, _>>() {
        Ok(found) => LookedAt::Found(found.concat()),
        Err(why) => LookedAt::Not(why),
    }
}

/// The numbers of the interfaces that have a discipline for filters.
fn filtered(socket: &mut NetlinkSocket) -> Result<Vec<u32>, netlink::Error> {
    let mut request = MessageWriter::with_capacity(64);
    request.message(GET_DISCIPLINE, flags::REQUEST | flags::DUMP, 1, &[0; HEADER], |_| {});
    let mut found = Vec::new();
    socket.dump_most(request.bytes(), (MOST_DISCIPLINES, "disciplines"), |part| match part {
        None => found.clear(),
        Some(part) => found.extend(has_filters(part)),
    })?;
    Ok(found)
}

fn has_filters(part: &Message<'_>) -> Option<u32> {
    let header = part.payload.first_chunk::<HEADER>()?;
    let number = |at: usize| header[at..].first_chunk().map(|number| u32::from_ne_bytes(*number));
    number(4).filter(|_| number(12) == Some(FOR_FILTERS))
}

/// `filtered`: it has a discipline for filters.
fn of_link(socket: &mut NetlinkSocket, link: &ListedLink, filtered: bool) -> Result<Vec<BpfProgram>, String> {
    let ListedLink { index, observed: ObservedLink { name, kind, .. }, .. } = link;
    let mut found = match filtered {
        true => filters(socket, *index, name)
            .map_err(|error| format!("filters of interface {name}: {}", fault::chain(&error)))?,
        false => Vec::new(),
    };
    let is_netkit = kind == NETKIT;
    for (hook, attached) in
        HOOKS.into_iter().filter(|(_, attached)| is_netkit || !attached.starts_with(NETKIT))
    {
        match query(*index, hook, 0) {
            Ok(ids) => found.extend(ids.into_iter().map(|id| program(attached, name, String::new(), id))),
            // The kernel has no such hook, or not on this kind of interface.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::INVAL | Errno::NXIO | Errno::NODEV)
                ) => {}
            Err(error) => return Err(format!("programs at {attached} of interface {name}: {error}")),
        }
    }
    Ok(found)
}

/// Filters of traffic control.
fn filters(socket: &mut NetlinkSocket, index: u32, name: &str) -> Result<Vec<BpfProgram>, netlink::Error> {
    let mut all = Vec::new();
    for (parent, attached) in PARENTS {
        let mut header = [0; HEADER];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[12..16].copy_from_slice(&parent.to_ne_bytes());
        let mut request = MessageWriter::with_capacity(64);
        request.message(GET_FILTER, flags::REQUEST | flags::DUMP, 1, &header, |_| {});
        let mut found = Vec::new();
        socket.dump_most(request.bytes(), (MOST, "filters"), |part| match part {
            None => found.clear(),
            Some(part) => found.extend(filter(part, attached, name)),
        })?;
        all.extend(found);
    }
    Ok(all)
}

/// One filter; its head, which the kernel lists as well, has no options.
fn filter(part: &Message<'_>, attached: &str, interface: &str) -> Option<BpfProgram> {
    let attributes = part.attributes(HEADER);
    let kind = attributes.find(KIND)?.text().into_owned();
    let options = attributes.find(OPTIONS)?.nested();
    let is_program = kind == "bpf";
    let name = options.find(BPF_NAME).filter(|_| is_program).map(|name| name.text().into_owned());
    let id = options.find(BPF_ID).filter(|_| is_program).and_then(|id| id.ne32());
    Some(program(attached, interface, name.unwrap_or(kind), id.unwrap_or(0)))
}

fn program(attached: &str, object: &str, name: String, id: u32) -> BpfProgram {
    BpfProgram { attached: attached.to_owned(), object: object.to_owned(), name, id }
}
