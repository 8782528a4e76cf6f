//! TCP sockets that listen.

use netns::Inside;
use rustix::net::netlink;

use crate::netlink::wire::{Message, MessageWriter};
use crate::netlink::{self as exchange, NetlinkSocket, flags};
use crate::sockets::{ANSWER, BEFORE_ID, Error, ID, LISTENING, MARK, dump_in};

/// `TCPDIAG_GETSOCK` of linux/inet_diag.h, which does not ask for a family; length of its `struct inet_diag_req`: lengths, id, states, tables.
const GET_SOCKETS: u16 = 18;
const REQUEST: usize = BEFORE_ID + ID + 8;
/// Sockets that are read.
const MOST: usize = 4 << 10;

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) port: u16,
    pub(super) uid: u32,
    pub(super) inode: u32,
    pub(super) mark: u32,
}

pub(super) fn listeners(_: &Inside) -> Result<Vec<Listening>, Error> {
    let failed = |source| Error { operation: "list who listens for", source };
    let mut socket = NetlinkSocket::open(Some(netlink::SOCK_DIAG)).map_err(failed)?;
    let most = (MOST, "sockets that listen");
    both_families(&mut socket, most)
        .or_else(|_| dump_in(&mut socket, (LISTENING, 0..=u16::MAX), most, listening))
        .map_err(failed)
}

/// Those of both families by one question: for each the kernel walks through its table of all namespaces, which has tens of thousands of places.
fn both_families(
    socket: &mut NetlinkSocket,
    most: (usize, &'static str),
) -> Result<Vec<Listening>, exchange::Error> {
    let mut header = vec![0; REQUEST];
    header[BEFORE_ID + ID..BEFORE_ID + ID + 4].copy_from_slice(&LISTENING.to_ne_bytes());
    let mut request = MessageWriter::with_capacity(128);
    request.message(GET_SOCKETS, flags::REQUEST | flags::DUMP, 1, &header, |_| {});
    let mut found = Vec::new();
    socket.dump_most(request.bytes(), most, |part| match part {
        None => found.clear(),
        Some(part) => found.extend(listening(part)),
    })?;
    Ok(found)
}

/// `struct inet_diag_msg`: after the id three numbers that do not matter here, then user and inode.
fn listening(message: &Message<'_>) -> Option<Listening> {
    let header = message.payload.get(..ANSWER)?;
    let number = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let port = u16::from_be_bytes(header.get(BEFORE_ID..BEFORE_ID + 2)?.try_into().ok()?);
    let mark = message.attributes(ANSWER).find(MARK).and_then(|a| a.ne32()).unwrap_or(0);
    Some(Listening { port, uid: number(ANSWER - 8)?, inode: number(ANSWER - 4)?, mark })
}
