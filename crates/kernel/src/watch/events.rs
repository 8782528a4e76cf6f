//! What the kernel tells of its own accord.

use netns::Inside;
use rustix::net::netlink::NETFILTER;

use super::lacks::lacks;
use crate::netlink::wire::{Message, MessageWriter};
use crate::netlink::{
    Error, FilterOperation, NetlinkSocket, UnreadEvents, attach_filter, flags, is_port_of_ours,
};
use crate::nft::generation as uapi;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h` as the bit of a group.
const NFTABLES: u32 = 1 << (7 - 1);
/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV4_RULE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE` of
/// `linux/rtnetlink.h`, and `RTNLGRP_IPV6_RULE` as the bit of a group.
const ROUTING: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << (19 - 1);

/// What [`super::KeptSockets::take_events`] has read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Noticed {
    /// Transactions of nf_tables, in their order.
    pub commits: Vec<RulesetCommit>,
    /// A link, an address, a route or a rule of the routing came, went or changed.
    pub routing: bool,
    /// There were more events than the kernel keeps for us: anything may have happened.
    pub lost: bool,
}

/// A transaction of nf_tables, by whichever program; iptables-nft makes some, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesetCommit {
    /// Its number; it is the namespace's generation from then on.
    pub generation: u32,
    /// The **thread** that committed, by its number in the initial pid namespace, wherever it is itself; 0 from a kernel that does not tell. Of a
    /// program with one thread that is the process.
    pub pid: u32,
    /// The name of that thread, up to 15 bytes; of a program with one thread most often the program's. Anybody may call himself anything.
    pub command: String,
    port: u32,
}

impl RulesetCommit {
    /// Whether this process has committed by a netlink socket of its own. Programs that it starts are others.
    ///
    /// The pid does not tell: threads of ours that work inside of namespaces are gone when the event is read, and this process may be in a pid
    /// namespace of its own. The socket does. A program with the right to change the rules could take such a socket's number on purpose, where it is
    /// free, or, hardly ever, get it by chance; the generation ([`super::KeptSockets::unchanged`]) tells of that commit all the same.
    #[must_use]
    pub fn is_own(&self) -> bool {
        is_port_of_ours(self.port)
    }

    fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = (message.kind == uapi::NEW).then(|| message.attributes(uapi::HEADER))?;
        let number = |kind| attributes.find(kind).and_then(|a| a.be32());
        let command = attributes.find(uapi::COMMAND).map(|a| a.text().into_owned());
        Some(Self {
            generation: number(uapi::ID)?,
            pid: number(uapi::PID).unwrap_or_default(),
            command: command.unwrap_or_default(),
            port: message.port,
        })
    }
}

/// The last transaction of nf_tables in a namespace, as far as the kernel tells.
#[derive(Debug, Clone, Default)]
pub(super) enum LastTransaction {
    /// Its generation.
    Number(u32),
    /// The kernel has no nf_tables.
    #[default]
    Impossible,
    /// The kernel has nf_tables, and does not tell.
    Untold,
}

/// Whether nothing was committed between the two. Where the kernel does not tell, something may have been.
impl PartialEq for LastTransaction {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(one), Self::Number(other)) => one == other,
            (Self::Impossible, Self::Impossible) => true,
            _ => false,
        }
    }
}

impl LastTransaction {
    pub(super) fn ask(socket: &mut NetlinkSocket) -> Result<Self, Error> {
        match generation(socket) {
            Ok(generation) => Ok(Self::Number(generation)),
            // nfnetlink refuses a question that it does not know as it does one to a subsystem that is not there.
            Err(error) if crate::nft::is_absent(&error) => match crate::nft::answers(socket)? {
                true => Ok(Self::Untold),
                false => Ok(Self::Impossible),
            },
            Err(error) => Err(error),
        }
    }
}

/// The transactions among events.
pub(crate) fn read_commits(committed: &UnreadEvents) -> Noticed {
    noticed(committed, &UnreadEvents::default())
}

pub(super) fn noticed(committed: &UnreadEvents, routing: &UnreadEvents) -> Noticed {
    Noticed {
        commits: committed.messages().filter_map(|message| RulesetCommit::read(&message)).collect(),
        routing: !routing.is_empty(),
        lost: committed.lost || routing.lost,
    }
}

/// Hears of the ends of transactions. What is in them is left out: a message for each element would not fit.
pub(crate) fn open_netfilter(_: &Inside) -> Result<NetlinkSocket, Error> {
    let groups = if lacks("events") { 0 } else { NFTABLES };
    NetlinkSocket::keep(Some(NETFILTER), groups, |fd, port| {
        attach_filter(fd, &generations_and_answers(port));
    })
}

pub(super) fn open_route(_: &Inside) -> Result<NetlinkSocket, Error> {
    NetlinkSocket::keep(None, ROUTING, |_, _| {})
}

/// A program that passes messages of type `NFT_MSG_NEWGEN`, and those to a port. It reads numbers in network order, which the header's are not.
fn generations_and_answers(port: u32) -> [FilterOperation; 6] {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Of `struct nlmsghdr`.
    const TYPE_AT: u32 = 4;
    const PORT_AT: u32 = 12;
    let operation = |code, yes, no, value| FilterOperation { code, yes, no, value };
    [
        operation(LOAD_HALF, 0, 0, TYPE_AT),
        operation(JUMP_EQUAL, 2, 0, uapi::NEW.to_be().into()),
        operation(LOAD_WORD, 0, 0, PORT_AT),
        operation(JUMP_EQUAL, 0, 1, port.to_be()),
        operation(RETURN, 0, 0, u32::MAX),
        operation(RETURN, 0, 0, 0),
    ]
}

pub(super) fn generation(socket: &mut NetlinkSocket) -> Result<u32, Error> {
    if lacks("generation") {
        return Err(Error::Refused { text: None, source: rustix::io::Errno::INVAL.into() });
    }
    let mut request = MessageWriter::with_capacity(32);
    request.message(uapi::GET, flags::REQUEST, 1, &[0; uapi::HEADER], |_| {});
    socket.ask(request.bytes(), |answer| {
        answer.attributes(uapi::HEADER).find(uapi::ID).and_then(|generation| generation.be32())
    })
}
