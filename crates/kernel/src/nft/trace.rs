//! The way of real packets through the chains of a namespace, as the kernel tells it.
//!
//! A table marks packets of a flow, and the kernel tells of each rule and policy that a marked packet meets; only sockets of the same namespace hear
//! it. The table belongs to the socket that made it (`NFT_TABLE_F_OWNER`, Linux 5.12): it goes when the socket is closed, so whatever ends the
//! program, nothing is left. Rules of iptables-legacy are not told.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use netns::Inside;
use ruleset::{Action, Base, Chain, ChainKind, Counting, Families, Family, Hook, Limit, Match, Rule};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netlink::NETFILTER;
use rustix::net::sockopt::{self, Timeout};

use super::expr::Expr;
use super::lower::{self, Lowered};
use super::missing::{MissingPart, TRACE};
use super::uapi::{self, family, message, meta, table as table_uapi, trace, verdict};
use super::{Error, batch, question};
use crate::netlink::wire::{Attributes, Message, MessageWriter, Messages};
use crate::netlink::{self, NetlinkSocket, flags};
use crate::nflog::LoggedHeader;

/// The table that marks packets. There is one in a namespace at a time.
pub const TABLE: &str = "istio-trace";
/// Its chains. Two stand before connection tracking, and before nearly everything of others (`NF_IP_PRI_RAW` is -300); three after everything, so that
/// it is told how a packet leaves each hook, and that it does.
const CHAINS: [(Hook, i32); 5] = [
    (Hook::Prerouting, -350),
    (Hook::Output, -350),
    (Hook::Input, 350),
    (Hook::Forward, 350),
    (Hook::Postrouting, 350),
];
/// Half of what the kernel holds until it is read.
const KERNEL_BUFFER: usize = 512 << 10;
const BUFFER: usize = 32 << 10;
/// Steps that are told at a time.
const MOST_STEPS: usize = 4096;

/// Packets that are traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedFlow {
    /// Conditions that they fulfil.
    pub matches: Vec<Match>,
    /// Where they begin: [`Hook::Output`] what is sent here, [`Hook::Prerouting`] what comes in.
    pub hooks: Vec<Hook>,
    /// How many are traced.
    pub limit: Limit,
}

/// Packets of one flow are being traced in a namespace, until this is dropped.
#[derive(Debug)]
pub struct Tracing {
    told: NetlinkSocket,
    buffer: Vec<u8>,
    /// Closed last: with it the table goes.
    _owner: Option<NetlinkSocket>,
}

/// What a packet met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceStep {
    /// The same for all steps of a packet from one interface to the next.
    pub packet: u32,
    /// Family and name, as [`ruleset::listed::ListedTable::name`] has it.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// What it is that the packet met.
    pub met: Met,
    /// What became of it there.
    pub verdict: TraceVerdict,
    /// The packet as it came to the base chain: with its first step there.
    pub header: Option<LoggedHeader>,
    /// Index of the interface that it came in by.
    pub from_interface: Option<u32>,
    /// Index of the interface that it leaves by.
    pub to_interface: Option<u32>,
    /// Its mark.
    pub mark: u32,
}

/// What a packet met in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// A rule that matches, by its handle.
    Rule(u64),
    /// The end of a chain that another one called.
    End,
    /// The policy of a base chain.
    Policy,
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceVerdict {
    /// On, with the next rule.
    Continue,
    /// The base chain is passed.
    Accept,
    /// It ended.
    Drop,
    /// Taken: by a transparent socket, a queue, or an answer that says no.
    Stolen,
    /// To another chain.
    Jump(String),
    /// To another chain, and not back.
    Goto(String),
    /// Back to the calling chain.
    Return,
}

/// What was heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceHeard {
    /// In the order in which it happened.
    pub steps: Vec<TraceStep>,
    /// The kernel had no room for more.
    pub lost: bool,
}

impl TracedFlow {
    /// Packets of these ends, absent parts of which may be anything. A port needs a protocol.
    #[must_use]
    pub fn between(
        protocol: Option<ruleset::Protocol>,
        from: (Option<std::net::IpAddr>, Option<u16>),
        to: (Option<std::net::IpAddr>, Option<u16>),
    ) -> Vec<Match> {
        let port = ruleset::Ports::One;
        let mut matches: Vec<Match> = Vec::new();
        matches.extend(from.0.map(|ip| Match::Source { net: ip.into(), not: false }));
        matches.extend(to.0.map(|ip| Match::Destination { net: ip.into(), not: false }));
        matches.extend(protocol.map(Match::Protocol));
        matches.extend(from.1.map(|number| Match::SourcePort { ports: port(number), not: false }));
        matches.extend(to.1.map(|number| Match::DestinationPort { ports: port(number), not: false }));
        matches
    }

    fn rule(&self) -> Rule {
        let families = self.matches.iter().find_map(|one| match one {
            Match::Source { net, .. } | Match::Destination { net, .. } => {
                Some(Families::Only(Family::of(net)))
            }
            _ => None,
        });
        Rule {
            families: families.unwrap_or_default(),
            matches: self.matches.clone(),
            // Of which only the limit is used.
            action: Action::Log { group: 0, prefix: "".into(), limit: Some(self.limit) },
            counting: Counting::Off,
            why: "packets that are traced".into(),
        }
    }
}

// === impl Tracing ===

impl Tracing {
    /// Begins to trace the packets of a flow.
    ///
    /// # Errors
    /// Somebody traces there already ([`is_taken`]), or the kernel cannot do it.
    pub fn begin(inside: &Inside, flow: &TracedFlow) -> Result<Self, Error> {
        let mut tracing = Self::join(inside)?;
        let mut owner = super::open()?;
        let answers = owner.exchange(&transaction(flow)).map_err(|e| question(OPERATION, e))?;
        if let Some(source) = answers.into_iter().find_map(|answer| answer.result.err()) {
            return Err(refused(&mut owner, source));
        }
        tracing._owner = Some(owner);
        Ok(tracing)
    }

    /// Hears what is told of packets that others mark.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or no descriptor is left.
    pub fn join(_: &Inside) -> Result<Self, Error> {
        let more_room = |fd: &std::os::fd::OwnedFd, _| {
            if sockopt::set_socket_recv_buffer_size_force(fd, KERNEL_BUFFER).is_err() {
                // Less room without the right to more.
                let _ = sockopt::set_socket_recv_buffer_size(fd, KERNEL_BUFFER);
            }
        };
        let told = NetlinkSocket::keep(Some(NETFILTER), trace::GROUP, more_room)
            .map_err(|e| question("hear of traced packets", e))?;
        Ok(Self { told, buffer: vec![0; BUFFER], _owner: None })
    }

    /// What is told within this time; returns with the first that comes.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub fn hear(&mut self, wait: Duration) -> Result<TraceHeard, Error> {
        let failed = |e: Errno| question("hear of traced packets", netlink::Error::Receive(e.into()));
        // No time at all would be for ever.
        let wait = wait.max(Duration::from_millis(1));
        sockopt::set_socket_timeout(&self.told, Timeout::Recv, Some(wait)).map_err(failed)?;
        let mut heard = TraceHeard::default();
        let mut how = RecvFlags::empty();
        loop {
            match rustix::net::recv(self.told.as_fd(), &mut self.buffer[..], how) {
                Ok((length, _)) => {
                    let messages = Messages::new(&self.buffer[..length]);
                    heard.steps.extend(messages.filter_map(|message| TraceStep::read(&message)));
                }
                Err(Errno::NOBUFS) => heard.lost = true,
                // A signal: who asks for more looks whether it is to end.
                Err(Errno::AGAIN | Errno::INTR) => return Ok(heard),
                Err(e) => return Err(failed(e)),
            }
            // Somebody else may mark packets without a limit.
            if heard.steps.len() >= MOST_STEPS {
                return Ok(heard);
            }
            how = RecvFlags::DONTWAIT;
        }
    }
}

const OPERATION: &str = "add table inet istio-trace";

/// Whether somebody traces there already.
#[must_use]
pub fn is_taken(error: &Error) -> bool {
    matches!(error, Error::Held { .. })
}

fn refused(socket: &mut NetlinkSocket, source: netlink::Error) -> Error {
    let operation = OPERATION.to_owned();
    let tables = super::list::tables(socket, family::INET).unwrap_or_default();
    if let Some(table) = tables.into_iter().find(|table| table.name == TABLE) {
        return Error::Held { operation, table: table.name, port: table.holder, source };
    }
    match source.errno() {
        Some(Errno::OPNOTSUPP | Errno::INVAL) => {
            Error::Unsupported { operation, missing: MissingPart::here(TRACE), source }
        }
        _ => question(OPERATION, source),
    }
}

/// The table with its chains, all or nothing.
fn transaction(flow: &TracedFlow) -> Vec<u8> {
    let mut request = MessageWriter::default();
    let own = uapi::header(family::INET);
    let new = flags::REQUEST | flags::CREATE;
    let rule = flow.rule();
    let marking = marking(&rule);
    let looking = Lowered { exprs: vec![Expr::Counter], ports: Vec::new() };
    request.message(message::BATCH_BEGIN, flags::REQUEST, 0, &uapi::batch_header(), |_| {});
    request.message(message::NEW_TABLE, new | flags::EXCL | flags::ACK, 1, &own, |w| {
        w.text(table_uapi::NAME, TABLE);
        w.be32(table_uapi::FLAGS, table_uapi::OWNED);
    });
    for (hook, priority) in CHAINS {
        let base = Base { kind: ChainKind::Filter, hook, priority };
        let chain = Chain { name: hook.name().into(), base: Some(base), rules: Vec::new(), leading: 0 };
        request.message(message::NEW_CHAIN, new | flags::ACK, 2, &own, |w| {
            batch::write_chain(w, TABLE, &chain);
        });
        // A packet's headers are told with rules only, not with policies.
        let rule = if flow.hooks.contains(&hook) { &marking } else { &looking };
        request.message(message::NEW_RULE, new | flags::APPEND | flags::ACK, 3, &own, |w| {
            w.text(uapi::rule::TABLE, TABLE);
            w.text(uapi::rule::CHAIN, &chain.name);
            batch::write_exprs(w, rule, 0);
        });
    }
    request.message(message::BATCH_END, flags::REQUEST, 4, &uapi::batch_header(), |_| {});
    request.bytes().to_vec()
}

/// The rule's conditions and its limit, and then the mark of what is traced in place of what it does.
fn marking(rule: &Rule) -> Lowered<'_> {
    let mut lowered = lower::lower(rule);
    lowered.exprs.pop();
    lowered.exprs.push(Expr::Load([1u8].into()));
    lowered.exprs.push(Expr::MetaSet(meta::TRACED));
    lowered
}

// === impl TraceStep ===

impl TraceStep {
    fn read(message: &Message<'_>) -> Option<Self> {
        if message.kind != trace::MESSAGE {
            return None;
        }
        let attributes = message.attributes(super::list::HEADER);
        let number = |kind| attributes.find(kind).and_then(|a| a.be32());
        let text = |kind| attributes.find(kind).map(|a| a.text().into_owned()).unwrap_or_default();
        let (_, family) = super::read::families(*message.payload.first()?)?;
        let met = match number(trace::TYPE)? {
            trace::OF_RULE => Met::Rule(super::list::handle(attributes, trace::HANDLE)?),
            trace::OF_END => Met::End,
            trace::OF_POLICY => Met::Policy,
            _ => return None,
        };
        let verdict = match number(trace::POLICY).filter(|_| met == Met::Policy) {
            Some(policy) => TraceVerdict::of(policy.cast_signed(), String::new()),
            None => TraceVerdict::read(attributes.find(trace::VERDICT)?.nested()),
        };
        Some(Self {
            packet: number(trace::ID)?,
            table: format!("{family} {}", text(trace::TABLE)),
            chain: text(trace::CHAIN),
            met,
            verdict,
            header: header(attributes),
            from_interface: number(trace::IN_INTERFACE),
            to_interface: number(trace::OUT_INTERFACE),
            mark: number(trace::MARK).unwrap_or_default(),
        })
    }
}

/// The headers of network and transport come by themselves.
fn header(attributes: Attributes<'_>) -> Option<LoggedHeader> {
    let mut packet = attributes.find(trace::NETWORK_HEADER)?.data.to_vec();
    packet.extend(attributes.find(trace::TRANSPORT_HEADER).map(|a| a.data).unwrap_or_default());
    LoggedHeader::read(&packet)
}

impl TraceVerdict {
    fn read(attributes: Attributes<'_>) -> Self {
        let code = attributes.find(uapi::expr::VERDICT_CODE).and_then(|a| a.be32()).unwrap_or_default();
        let chain = attributes.find(uapi::expr::VERDICT_CHAIN).map(|a| a.text().into_owned());
        Self::of(code.cast_signed(), chain.unwrap_or_default())
    }

    /// `NF_*` and `enum nft_verdicts`; the upper half of a number is an operand.
    fn of(code: i32, chain: String) -> Self {
        match code {
            verdict::CONTINUE => Self::Continue,
            verdict::JUMP => Self::Jump(chain),
            verdict::GOTO => Self::Goto(chain),
            verdict::RETURN => Self::Return,
            _ => match code & 0xff {
                verdict::DROP => Self::Drop,
                verdict::ACCEPT => Self::Accept,
                _ => Self::Stolen,
            },
        }
    }
}

/// One end of a packet, as far as it has ports.
#[must_use]
pub fn ends(header: &LoggedHeader) -> (SocketAddr, SocketAddr) {
    let (from, to) = header.ports.unwrap_or_default();
    (SocketAddr::new(header.source, from), SocketAddr::new(header.destination, to))
}
