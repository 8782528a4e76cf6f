//! Where the path of an attempt's first packet ends in the world of these tests.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ruleset::eval::{Owner, Packet, State, Verdict, evaluate};
use ruleset::path::{self, Path, Stop, follow};
use ruleset::{Hook, NoMembers, Plan, Protocol};

use crate::world::{self, LISTENER_ID};

/// A source port that no rule knows.
const EPHEMERAL: u16 = 40_000;

/// One connection or datagram to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// From the rest of the world to the pod, rather than from the pod.
    pub from_peer: bool,
    /// Protocol.
    pub protocol: Protocol,
    /// User and group of the client's socket.
    pub owner: (u32, u32),
    /// Source address; absent is the one that routing gives.
    pub source: Option<IpAddr>,
    /// The mark that the sender gives its packets.
    pub mark: u32,
    /// Destination.
    pub to: SocketAddr,
    /// Whether the pod's proxy listens.
    pub proxy_up: bool,
}

/// The way, and where it ends.
#[derive(Debug)]
pub struct Way<'a> {
    /// The hooks that the packet passed.
    pub path: Path<'a>,
    /// End.
    pub end: End,
}

/// Where an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A listener takes it.
    Listener {
        /// Its port.
        port: u16,
        /// The address that its socket has; absent where the kernel picks one of the incoming interface.
        local: Option<SocketAddr>,
        /// The address that it sees the packet come from.
        source: IpAddr,
    },
    /// The pod's kernel refuses it: nothing listens on the port.
    Refused,
    /// No answer comes back: the packet is dropped, or the answer does not find the connection.
    NoAnswer,
}

impl Attempt {
    /// The source address.
    pub fn source_address(&self) -> IpAddr {
        self.source.unwrap_or_else(|| {
            if self.from_peer {
                let at = world::POD.iter().position(|pod| *pod == self.to.ip());
                at.map_or(world::FAR[usize::from(self.to.is_ipv6())], |at| world::PEER[at])
            } else {
                world::source_for(self.to.ip())
            }
        })
    }

    /// The first packet when it enters the pod's part of the way.
    pub fn packet(&self) -> Packet {
        let (mut in_interface, mut out_interface) = (String::new(), String::new());
        if self.from_peer {
            world::in_interface(self.to.ip()).clone_into(&mut in_interface);
        } else {
            world::out_interface(self.to.ip()).clone_into(&mut out_interface);
        }
        Packet {
            source: self.source_address(),
            destination: self.to.ip(),
            protocol: self.protocol,
            source_port: EPHEMERAL,
            destination_port: self.to.port(),
            in_interface,
            out_interface,
            own_destination: true,
            own_source: !self.from_peer,
            owner: (!self.from_peer).then_some(Owner { uid: self.owner.0, gid: self.owner.1 }),
            mark: self.mark,
            ct_mark: 0,
            state: State::New,
            reply: false,
            original: None,
            icmp: (0, 0),
            listening: self.proxy_up,
        }
    }
}

/// Follows an attempt through a plan.
pub fn predict<'a>(plan: &'a Plan, attempt: &Attempt) -> Way<'a> {
    let path = follow(plan, attempt.packet(), &NoMembers);
    Way { end: end(plan, &path), path }
}

fn end(plan: &Plan, path: &Path<'_>) -> End {
    if let [Stop { hook: Hook::Output, packet, outcome }, ..] = &path.stops[..]
        && let (Verdict::Redirect { port }, Protocol::Udp) = (outcome.verdict, packet.protocol)
    {
        // Without a listener the answer is ICMP, which no rule gives a zone.
        let answered = packet.listening.then(|| zone_of_answer(plan, packet, port)).flatten();
        if answered != outcome.zone {
            return End::NoAnswer;
        }
    }
    let arrives = |stop: &&Stop<'_>| stop.hook == Hook::Prerouting;
    let redirected = path.stops.iter().find(arrives).map(|stop| stop.outcome.verdict);
    match (path.end, path.verdict()) {
        (path::End::Gone, Verdict::Reject(_)) => End::Refused,
        (path::End::Gone, _) => End::NoAnswer,
        (path::End::Left, _) => taken(&path.packet, path.packet.destination_port, true),
        (path::End::Socket { port }, _) => {
            in_pod(&path.packet, port, !matches!(redirected, Some(Verdict::Redirect { .. })))
        }
    }
}

/// The conntrack zone of the answer that a listener of ours gives to a redirected datagram. In another zone than the
/// question's, the answer is not translated back, and nobody waits for it.
fn zone_of_answer(plan: &Plan, question: &Packet, port: u16) -> Option<u16> {
    let answer = Packet {
        source: loopback(question.source.is_ipv6()),
        destination: question.source,
        source_port: port,
        destination_port: question.source_port,
        out_interface: "lo".to_owned(),
        owner: Some(Owner { uid: LISTENER_ID, gid: LISTENER_ID }),
        ..question.clone()
    };
    evaluate(&plan.layers, plan.backend, &answer, Hook::Output, false, &NoMembers).zone
}

/// What a port of the pod does: that of a proxy may have no listener.
fn in_pod(packet: &Packet, port: u16, as_addressed: bool) -> End {
    if !packet.listening && world::is_proxys(port) {
        return End::Refused;
    }
    taken(packet, port, as_addressed)
}

fn taken(packet: &Packet, port: u16, as_addressed: bool) -> End {
    let local = as_addressed.then_some(SocketAddr::new(packet.destination, packet.destination_port));
    End::Listener { port, local, source: packet.source }
}

fn loopback(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Stop { hook, packet, outcome } in &self.path.stops {
            writeln!(f, "  {}: {packet:?}", hook.name())?;
            for place in &outcome.trace {
                let (table, chain) = (place.table, &place.chain.name);
                writeln!(
                    f,
                    "    {table}/{chain}[{}]: {}",
                    place.index,
                    ruleset::nft::render_rule(place.rule)
                )?;
            }
            let (verdict, zone) = (outcome.verdict, outcome.zone);
            writeln!(
                f,
                "    => {verdict:?}, mark {}, ct mark {}, zone {zone:?}",
                outcome.mark, outcome.ct_mark
            )?;
        }
        write!(f, "  ends at {:?}", self.end)
    }
}
