//! Entries of the connection tracking table that a redirect made, and that outlive it.
//!
//! An entry stays after the rules that made it: five days for a connection whose end was not seen. When rules come again, a new connection
//! with the same addresses and ports would be translated by it, towards a port where nobody knows of it.
//!
//! The table is one for the whole machine, and a list of one namespace's entries walks through all of it: tens of milliseconds. So the
//! number of the namespace's entries is asked for first, which costs microseconds.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use netns::Inside;
use rustix::io::Errno;

use crate::netlink::wire::{Attributes, Message, MessageWriter};
use crate::netlink::{self, NetlinkSocket, flags};

/// `NFNL_SUBSYS_CTNETLINK` as the upper byte of a message's type, with `IPCTNL_MSG_CT_GET`, `_DELETE` and `_GET_STATS`.
pub(super) const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const GET_STATS: u16 = 1 << 8 | 5;
/// Length of `struct nfgenmsg`: family, version, resource.
pub(super) const HEADER: usize = 4;
/// `CTA_*` of `linux/netfilter/nfnetlink_conntrack.h`.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const STATUS_MASK: u16 = 26;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const TCP: u8 = 6;
/// `CTA_STATS_GLOBAL_ENTRIES`.
const ENTRIES: u16 = 1;
/// `IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`: the destination was changed.
const DESTINATION_CHANGED: u32 = 1 << 5;
/// The flag for attributes that hold attributes.
const NESTED: u16 = 0x8000;

/// Entries that could not be listed or removed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} in the namespace")]
pub struct EntriesError {
    pub(super) operation: &'static str,
    pub(super) source: netlink::Error,
}

/// A connection, or a flow of datagrams, that was redirected to a port of this namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirected {
    /// IANA protocol number.
    pub protocol: u8,
    /// Who began it.
    pub client: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
    /// The port that it was redirected to.
    pub port: u16,
    /// As whom they see the client who take it there: the kernel gives it another port where two connections have the same one.
    pub seen_as: SocketAddr,
    key: EntryKey,
}

/// Names an entry to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntryKey {
    family: u8,
    tuple: Vec<u8>,
    id: Option<Vec<u8>>,
    zone: Option<Vec<u8>>,
}

/// Removes the entries of what was redirected to one of `ports`, but those that `stays` says. Gives how many.
///
/// # Errors
/// The kernel could not be asked, or did not remove one.
pub fn forget(_: &Inside, ports: &[u16], stays: impl Fn(&Redirected) -> bool) -> Result<usize, EntriesError> {
    let mut socket = match NetlinkSocket::netfilter() {
        Ok(socket) => socket,
        Err(error) if error.errno() == Some(Errno::PROTONOSUPPORT) => return Ok(0),
        Err(source) => return Err(EntriesError { operation: "ask for the tracked connections", source }),
    };
    if count(&mut socket) == Some(0) {
        return Ok(0);
    }
    let mut removed = 0;
    for entry in list(&mut socket, ports)?.iter().filter(|entry| !stays(entry)) {
        removed += usize::from(remove(&mut socket, &entry.key)?);
    }
    Ok(removed)
}

/// Whether all of these TCP connections are tracked, each given by its end in this namespace and the other one.
///
/// # Errors
/// The kernel could not be asked.
pub fn are_tracked(
    _: &Inside,
    mut connections: HashSet<(SocketAddr, SocketAddr)>,
) -> Result<bool, EntriesError> {
    if connections.is_empty() {
        return Ok(true);
    }
    let failed = |source| EntriesError { operation: "list the tracked connections", source };
    let mut socket = NetlinkSocket::netfilter().map_err(failed)?;
    if count(&mut socket) == Some(0) {
        return Ok(false);
    }
    let mut writer = MessageWriter::default();
    writer.message(GET, flags::REQUEST | flags::DUMP, 1, &[0; HEADER], |_| {});
    let listed = socket.dump(writer.bytes(), |message| {
        let Some(message) = message else { return };
        let attributes = message.attributes(HEADER);
        // Whichever end is here, what it sends goes by one of them.
        for kind in [TUPLE_ORIGINAL, TUPLE_REPLY] {
            match attributes.find(kind).and_then(|tuple| ends(tuple.nested())) {
                Some((TCP, from, to)) => connections.remove(&(from, to)),
                _ => false,
            };
        }
    });
    listed.map_err(failed)?;
    Ok(connections.is_empty())
}

/// How many entries the namespace has, if the kernel tells.
pub(super) fn count(socket: &mut NetlinkSocket) -> Option<u32> {
    let mut writer = MessageWriter::default();
    writer.message(GET_STATS, flags::REQUEST | flags::ACK, 1, &[0; HEADER], |_| {});
    let mut entries = None;
    let take = |message: &Message<'_>| {
        entries = message.attributes(HEADER).find(ENTRIES).and_then(|a| a.be32());
    };
    socket.get(writer.bytes(), take).ok()?;
    entries
}

fn list(socket: &mut NetlinkSocket, ports: &[u16]) -> Result<Vec<Redirected>, EntriesError> {
    let mut writer = MessageWriter::default();
    writer.message(GET, flags::REQUEST | flags::DUMP, 1, &[0; HEADER], |w| {
        // Kernels before 5.15 do not know the second, and list everything.
        w.be32(STATUS, DESTINATION_CHANGED);
        w.be32(STATUS_MASK, DESTINATION_CHANGED);
    });
    let mut found = Vec::new();
    let listed = socket.dump(writer.bytes(), |message| match message {
        Some(message) => found.extend(Redirected::read(message).filter(|e| ports.contains(&e.port))),
        None => found.clear(),
    });
    match listed {
        Ok(()) => Ok(found),
        // There is no connection tracking that could be asked.
        Err(error) if matches!(error.errno(), Some(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(Vec::new()),
        Err(source) => Err(EntriesError { operation: "list the redirected connections", source }),
    }
}

/// Whether it was still there.
pub(super) fn remove(socket: &mut NetlinkSocket, entry: &EntryKey) -> Result<bool, EntriesError> {
    let mut writer = MessageWriter::default();
    let header = [entry.family, 0, 0, 0];
    writer.message(DELETE, flags::REQUEST | flags::ACK, 1, &header, |w| {
        w.attribute(TUPLE_ORIGINAL | NESTED, &entry.tuple);
        // By its number, so that a new one of the same addresses and ports stays.
        for (kind, data) in [(ID, &entry.id), (ZONE, &entry.zone)] {
            if let Some(data) = data {
                w.attribute(kind, data);
            }
        }
    });
    match socket.order(writer.bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(false),
        Err(source) => Err(EntriesError { operation: "forget a redirected connection", source }),
    }
}

// === impl Redirected ===

impl Redirected {
    fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes(HEADER);
        let changed = attributes.find(STATUS)?.be32()? & DESTINATION_CHANGED != 0;
        let (protocol, client, to) = ends(attributes.find(TUPLE_ORIGINAL)?.nested())?;
        let (_, answering, seen_as) = ends(attributes.find(TUPLE_REPLY)?.nested())?;
        let key = EntryKey::read(message)?;
        changed.then(|| Self { protocol, client, to, port: answering.port(), seen_as, key })
    }
}

// === impl EntryKey ===

impl EntryKey {
    pub(super) fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes(HEADER);
        let own = |kind: u16| attributes.find(kind).map(|a| a.data.to_vec());
        Some(Self {
            family: *message.payload.first()?,
            tuple: own(TUPLE_ORIGINAL)?,
            id: own(ID),
            zone: own(ZONE),
        })
    }
}

/// Who began a connection, and who answers it, whatever address was asked for; with the protocol's number.
pub(super) fn real_ends(message: &Message<'_>) -> Option<(u8, SocketAddr, SocketAddr)> {
    let attributes = message.attributes(HEADER);
    let (protocol, client, _) = ends(attributes.find(TUPLE_ORIGINAL)?.nested())?;
    let (_, answering, _) = ends(attributes.find(TUPLE_REPLY)?.nested())?;
    Some((protocol, client, answering))
}

/// Protocol, source and destination of one direction.
fn ends(tuple: Attributes<'_>) -> Option<(u8, SocketAddr, SocketAddr)> {
    let (ip, protocol) = (tuple.find(TUPLE_IP)?.nested(), tuple.find(TUPLE_PROTOCOL)?.nested());
    // `CTA_IP_V4_SRC`, `_V4_DST`, `_V6_SRC`, `_V6_DST`.
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(found) = ip.find(v4) {
            return Some(<[u8; 4]>::try_from(found.data).ok()?.into());
        }
        Some(<[u8; 16]>::try_from(ip.find(v6)?.data).ok()?.into())
    };
    let port = |kind: u16| Some(u16::from_be_bytes(protocol.find(kind)?.data.try_into().ok()?));
    let number = *protocol.find(PROTOCOL_NUMBER)?.data.first()?;
    let source = SocketAddr::new(address(1, 3)?, port(SOURCE_PORT)?);
    Some((number, source, SocketAddr::new(address(2, 4)?, port(DESTINATION_PORT)?)))
}
