//! A flow as a packet, and its path through the pod and, before that, out of the node.

use std::net::IpAddr;

use capture::ambient::{PROBES_V4, PROBES_V6};
use ruleset::eval::{Owner, Packet};
use ruleset::path::{Path, follow};
use ruleset::{Contents, Key, NoMembers, Plan, SetDelta};

use super::flow::{Direction, Flow};

/// Takes the flow through the pod.
pub(super) fn through_pod<'a>(plan: &'a Plan, flow: &Flow) -> Path<'a> {
    follow(plan, first_packet(flow), &NoMembers)
}

/// Takes a packet that a process of the node sends to the pod through the node's own rules. `members` are the addresses in the node's sets.
pub(super) fn leave_node<'a>(plan: &'a Plan, flow: &Flow, members: &[IpAddr]) -> Path<'a> {
    let packet = Packet {
        in_interface: String::new(),
        out_interface: "eth0".to_owned(),
        owner: Some(Owner { uid: 0, gid: 0 }),
        ..first_packet(flow)
    };
    let mut contents = Contents::default();
    for address in members {
        let mut delta = SetDelta::default();
        delta.add(Key::from(*address));
        contents.apply(if address.is_ipv4() { PROBES_V4 } else { PROBES_V6 }, &delta);
    }
    follow(plan, packet, &contents)
}

/// The flow's first packet.
pub(super) fn first_packet(flow: &Flow) -> Packet {
    let (in_interface, out_interface) = match flow.direction {
        Direction::In => (flow.interface.clone(), String::new()),
        Direction::Out => (String::new(), flow.interface.clone()),
    };
    Packet {
        in_interface,
        out_interface,
        owner: flow.owner,
        mark: flow.mark,
        state: flow.state,
        listening: flow.listening,
        ..Packet::new(flow.protocol, flow.source, flow.destination)
    }
}
