//! The hooks that a packet passes in the pod, one after the other.

use std::net::{IpAddr, SocketAddr};

use capture::ambient::{PROBES_V4, PROBES_V6};
use ruleset::eval::{Outcome, Owner, Packet, Place, Verdict, evaluate};
use ruleset::{Backend, Contents, Delta, Hook, Key, NoMembers, Ruleset};

use super::flow::{Direction, Flow};
use super::loopback_like;
use crate::rules::target;

/// What became of the flow, and at which hooks that was decided.
#[derive(Debug)]
pub(super) struct Way<'a> {
    /// Each hook with its outcome, in order.
    pub(super) hooks: Vec<(Hook, Outcome<'a>)>,
}

/// Takes the flow through the pod.
///
/// A packet for the pod itself leaves by the loopback interface and comes in again by it. It keeps its mark and its connection's,
/// loses its socket, and the nat chains do not see it a second time: the destination of a connection is decided once
/// (`nf_nat_inet_fn` in nf_nat_core.c), and that was on output.
pub(super) fn follow<'a>(layers: &'a [Ruleset], backend: Backend, flow: &Flow) -> Way<'a> {
    let packet = first_packet(flow);
    if flow.direction == Direction::In {
        let outcome = evaluate(layers, backend, &packet, Hook::Prerouting, true, &NoMembers);
        return Way { hooks: vec![(Hook::Prerouting, outcome)] };
    }
    let sent = evaluate(layers, backend, &packet, Hook::Output, true, &NoMembers);
    let again = second_packet(&packet, &sent);
    let mut hooks = vec![(Hook::Output, sent)];
    if let Some(packet) = again {
        hooks.push((
            Hook::Prerouting,
            evaluate(layers, backend, &packet, Hook::Prerouting, false, &NoMembers),
        ));
    }
    Way { hooks }
}

fn first_packet(flow: &Flow) -> Packet {
    let (in_interface, out_interface) = match flow.direction {
        Direction::In => (flow.interface.clone(), String::new()),
        Direction::Out => (String::new(), flow.interface.clone()),
    };
    Packet {
        protocol: flow.protocol,
        source: flow.source.ip(),
        destination: flow.destination.ip(),
        source_port: flow.source.port(),
        destination_port: flow.destination.port(),
        in_interface,
        out_interface,
        owner: flow.owner,
        mark: flow.mark,
        ct_mark: 0,
        state: flow.state,
        reply: false,
        original: None,
        icmp: (0, 0),
        listening: flow.listening,
    }
}

/// What the node's own rules do with a packet that a process of the node sends to the pod. `members` are the addresses in the node's sets.
pub(super) fn leave_node<'a>(
    layers: &'a [Ruleset],
    backend: Backend,
    flow: &Flow,
    members: &[IpAddr],
) -> Outcome<'a> {
    let packet = Packet {
        in_interface: String::new(),
        out_interface: "eth0".to_owned(),
        owner: Some(Owner { uid: 0, gid: 0 }),
        ..first_packet(flow)
    };
    let mut contents = Contents::default();
    for address in members {
        let mut delta = Delta::default();
        delta.add(Key::from(*address));
        contents.apply(if address.is_ipv4() { PROBES_V4 } else { PROBES_V6 }, &delta);
    }
    evaluate(layers, backend, &packet, Hook::Postrouting, true, &contents)
}

/// The packet as it comes in again, if it leaves by the loopback interface, of itself or because it was redirected.
fn second_packet(packet: &Packet, sent: &Outcome<'_>) -> Option<Packet> {
    let to: SocketAddr = match sent.verdict {
        Verdict::Redirect { port } => (loopback_like(packet.destination), port).into(),
        Verdict::Pass if packet.out_interface == "lo" => (packet.destination, packet.destination_port).into(),
        _ => return None,
    };
    let destination: IpAddr = to.ip();
    Some(Packet {
        destination,
        destination_port: to.port(),
        in_interface: "lo".to_owned(),
        out_interface: String::new(),
        owner: None,
        mark: sent.mark,
        ct_mark: sent.ct_mark,
        ..packet.clone()
    })
}

impl<'a> Way<'a> {
    /// The first verdict that changes anything; a packet that was redirected and is then dropped is gone.
    pub(super) fn verdict(&self) -> Verdict {
        let verdicts = || self.hooks.iter().map(|(_, outcome)| outcome.verdict);
        let is_end = |verdict: &Verdict| matches!(verdict, Verdict::Drop | Verdict::Reject(_));
        let changes = || verdicts().find(|verdict| *verdict != Verdict::Pass);
        verdicts().find(is_end).or_else(changes).unwrap_or(Verdict::Pass)
    }

    /// The rule that gave the verdict, and the rules by whose jumps the packet came to it, outermost first.
    pub(super) fn decided_by(&self) -> Option<(Place<'a>, Vec<Place<'a>>)> {
        let verdict = self.verdict();
        let (place, trace) = self
            .hooks
            .iter()
            .filter(|(_, outcome)| outcome.verdict == verdict)
            .find_map(|(_, outcome)| outcome.decided_by.map(|place| (place, &outcome.trace)))?;
        Some((place, path_to(&place, trace)))
    }

    /// Every rule that matched.
    pub(super) fn trace(&self) -> impl Iterator<Item = (Hook, Place<'a>)> {
        self.hooks.iter().flat_map(|(hook, outcome)| outcome.trace.iter().map(|place| (*hook, *place)))
    }
}

fn path_to<'a>(place: &Place<'a>, trace: &[Place<'a>]) -> Vec<Place<'a>> {
    let mut path = Vec::new();
    let (mut table, mut chain) = (place.table, place.chain);
    let until = trace.iter().rposition(|at| at == place).unwrap_or(trace.len());
    for jump in trace[..until].iter().rev() {
        if jump.table == table && target(jump.rule) == Some(&*chain.name) {
            path.push(*jump);
            (table, chain) = (jump.table, jump.chain);
        }
    }
    path.reverse();
    path
}
