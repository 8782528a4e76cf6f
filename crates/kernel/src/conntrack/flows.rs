//! Connections of a namespace, and flows of datagrams, as their two ends are.

use std::net::SocketAddr;
use std::ops::ControlFlow;

use netns::Inside;
use rustix::io::Errno;

use super::entries::{EntriesError, EntryKey, GET, HEADER, count, real_ends, remove};
use crate::netlink::wire::MessageWriter;
use crate::netlink::{NetlinkSocket, flags};

/// Most that are listed; of more the others stay as they are.
const MOST: usize = 65_536;

/// A connection, or a flow of datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedFlow {
    /// IANA protocol number.
    pub protocol: u8,
    /// Who began it.
    pub source: SocketAddr,
    /// Who answers: behind an address of a Service its endpoint.
    pub destination: SocketAddr,
    key: EntryKey,
}

/// Those of a namespace that are meant. The kernel looks through the table of the whole machine for them, unless the namespace has none.
///
/// # Errors
/// The kernel could not be asked.
pub fn flows(_: &Inside, is_meant: impl Fn(&TrackedFlow) -> bool) -> Result<Vec<TrackedFlow>, EntriesError> {
    let Some(mut socket) = open()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    if count(&mut socket) == Some(0) {
        return Ok(found);
    }
    let mut writer = MessageWriter::default();
    writer.message(GET, flags::REQUEST | flags::DUMP, 1, &[0; HEADER], |_| {});
    let listed = socket.dump_until(writer.bytes(), |message| {
        let Some(message) = message else {
            found.clear();
            return ControlFlow::Continue(());
        };
        if let (Some((protocol, source, destination)), Some(key)) =
            (real_ends(message), EntryKey::read(message))
        {
            let flow = TrackedFlow { protocol, source, destination, key };
            found.extend(Some(flow).filter(&is_meant));
        }
        if found.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    match listed {
        Ok(_) => Ok(found),
        // There is no connection tracking that could be asked.
        Err(error) if matches!(error.errno(), Some(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(Vec::new()),
        Err(source) => Err(EntriesError { operation: "list the connections", source }),
    }
}

/// Has the kernel forget flows: the next packet of one is the first of a new one, and is judged. Gives how many there still were.
///
/// # Errors
/// The kernel did not forget one; the others are forgotten.
pub fn forget_flows(_: &Inside, flows: &[TrackedFlow]) -> Result<usize, EntriesError> {
    let Some(mut socket) = open()? else { return Ok(0) };
    let (mut removed, mut failure) = (0, None);
    for flow in flows {
        match remove(&mut socket, &flow.key) {
            Ok(was_there) => removed += usize::from(was_there),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(removed), Err)
}

fn open() -> Result<Option<NetlinkSocket>, EntriesError> {
    match NetlinkSocket::netfilter() {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.errno() == Some(Errno::PROTONOSUPPORT) => Ok(None),
        Err(source) => Err(EntriesError { operation: "ask for the connections", source }),
    }
}
