//! The way of an attempt's first packet through every hook, as the evaluator sees it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ruleset::eval::{Outcome, Owner, Packet, State, Verdict, evaluate};
use ruleset::{Hook, NoMembers, Plan, Protocol, Routing};

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
    /// Each hook that the packet went through, in order.
    pub hooks: Vec<(Hook, Packet, Outcome<'a>)>,
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
    let mut walk = Walk { plan, hooks: Vec::new() };
    let packet = attempt.packet();
    let end = if attempt.from_peer { walk.arrives(packet, true) } else { walk.is_sent(packet) };
    Way { hooks: walk.hooks, end }
}

struct Walk<'a> {
    plan: &'a Plan,
    hooks: Vec<(Hook, Packet, Outcome<'a>)>,
}

impl Walk<'_> {
    fn is_sent(&mut self, mut packet: Packet) -> End {
        let outcome = evaluate(&self.plan.layers, self.plan.backend, &packet, Hook::Output, true, &NoMembers);
        let (verdict, mark, ct_mark, zone) = (outcome.verdict, outcome.mark, outcome.ct_mark, outcome.zone);
        self.hooks.push((Hook::Output, packet.clone(), outcome));
        match verdict {
            Verdict::Drop | Verdict::Tproxy { .. } => return End::NoAnswer,
            Verdict::Reject(_) => return End::Refused,
            Verdict::Redirect { port } => {
                if packet.protocol == Protocol::Udp {
                    // Without a listener the answer is ICMP, which no rule gives a zone.
                    let answered = packet.listening.then(|| self.zone_of_answer(&packet, port)).flatten();
                    if answered != zone {
                        return End::NoAnswer;
                    }
                }
                packet.destination = loopback(packet.source.is_ipv6());
                packet.destination_port = port;
                "lo".clone_into(&mut packet.out_interface);
            }
            Verdict::Pass if self.routed_here(mark, packet.source.is_ipv6()) => {
                "lo".clone_into(&mut packet.out_interface);
            }
            Verdict::Pass | Verdict::Snat { .. } => {}
        }
        if packet.out_interface != "lo" {
            return taken(&packet, packet.destination_port, true);
        }
        // The second half of the way over loopback: the packet keeps its mark and its connection, and loses its socket.
        std::mem::swap(&mut packet.in_interface, &mut packet.out_interface);
        (packet.owner, packet.mark, packet.ct_mark) = (None, mark, ct_mark);
        self.arrives(packet, false)
    }

    fn arrives(&mut self, packet: Packet, nat: bool) -> End {
        let outcome =
            evaluate(&self.plan.layers, self.plan.backend, &packet, Hook::Prerouting, nat, &NoMembers);
        let verdict = outcome.verdict;
        let end = match verdict {
            Verdict::Drop => End::NoAnswer,
            Verdict::Reject(_) => End::Refused,
            Verdict::Redirect { port } => in_pod(&packet, port, false),
            Verdict::Tproxy { port } => in_pod(&packet, port, true),
            Verdict::Pass | Verdict::Snat { .. } => in_pod(&packet, packet.destination_port, true),
        };
        self.hooks.push((Hook::Prerouting, packet, outcome));
        end
    }

    /// Whether policy routing takes a packet with the mark to this host.
    fn routed_here(&self, mark: u32, v6: bool) -> bool {
        self.plan.routing.iter().any(|step| {
            matches!(step, Routing::Rule { family, mark: routed, mask, .. }
                if *routed == mark & mask && (*family == ruleset::Family::V6) == v6)
        })
    }

    /// The conntrack zone of the answer that a listener of ours gives to a redirected datagram. In another zone than the
    /// question's, the answer is not translated back, and nobody waits for it.
    fn zone_of_answer(&self, question: &Packet, port: u16) -> Option<u16> {
        let answer = Packet {
            source: loopback(question.source.is_ipv6()),
            destination: question.source,
            source_port: port,
            destination_port: question.source_port,
            out_interface: "lo".to_owned(),
            owner: Some(Owner { uid: LISTENER_ID, gid: LISTENER_ID }),
            ..question.clone()
        };
        evaluate(&self.plan.layers, self.plan.backend, &answer, Hook::Output, false, &NoMembers).zone
    }
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
        for (hook, packet, outcome) in &self.hooks {
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
