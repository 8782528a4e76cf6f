//! TCP sockets that listen.

use netns::Inside;
use rustix::net::netlink;

use crate::netlink::NetlinkSocket;
use crate::netlink::wire::Message;
use crate::sockets::{ANSWER, BEFORE_ID, Error, LISTENING, MARK, dump_in};

/// Sockets of a family that are read.
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
    dump_in(&mut socket, (LISTENING, 0..=u16::MAX), most, listening).map_err(failed)
}

/// `struct inet_diag_msg`: after the id three numbers that do not matter here, then user and inode.
fn listening(message: &Message<'_>) -> Option<Listening> {
    let header = message.payload.get(..ANSWER)?;
    let number = |at: usize| header.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let port = u16::from_be_bytes(header.get(BEFORE_ID..BEFORE_ID + 2)?.try_into().ok()?);
    let mark = message.attributes(ANSWER).find(MARK).and_then(|a| a.ne32()).unwrap_or(0);
    Some(Listening { port, uid: number(ANSWER - 8)?, inode: number(ANSWER - 4)?, mark })
}
