use std::net::SocketAddr;

use ruleset::eval::{Packet, State, Verdict, evaluate};
use ruleset::{Hook, NoMembers};

use super::*;

const BACKENDS: [Backend; 2] = [Backend::Nftables, Backend::Iptables];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn packet(protocol: Protocol, ends: [&str; 2], hook: Hook) -> Packet {
    let port = |port| if protocol.has_ports() { port } else { 0 };
    let [from, to] = ends.map(address);
    let mut packet =
        Packet::new(protocol, SocketAddr::new(from, port(40_000)), SocketAddr::new(to, port(8080)));
    let interface =
        if hook == Hook::Prerouting { &mut packet.in_interface } else { &mut packet.out_interface };
    *interface = "eth0".into();
    packet.icmp = (if protocol == Protocol::Icmpv6 { 128 } else { 8 }, 0);
    packet
}

fn passes(isolation: Isolation, packet: &Packet, hook: Hook) -> bool {
    let (node, probes) = ([address("192.0.2.1"), address("2001:db8::1")], [address("169.254.7.127")]);
    let admitted = Admitted { node: &node, probes: &probes };
    let verdicts = BACKENDS.map(|backend| {
        let rules = plan_guard(isolation, admitted, backend);
        assert_eq!(ruleset::check(&rules), Ok(()));
        evaluate(&[rules], backend, packet, hook, true, &NoMembers).verdict == Verdict::Pass
    });
    assert_eq!(verdicts[0], verdicts[1], "{packet:?}");
    verdicts[0]
}

/// Who may still come in, and what may still leave.
#[test]
fn only_what_is_never_judged_passes() {
    use Protocol::{Icmp, Icmpv6, Tcp, Udp};
    let (inward, outward) = (Hook::Prerouting, Hook::Postrouting);
    let (pod, pod6) = ("10.0.0.2", "fd00::2");
    for (protocol, ends, hook, expected) in [
        (Tcp, ["10.0.0.9", pod], inward, false),
        (Udp, ["fd00::9", pod6], inward, false),
        (Icmp, ["10.0.0.9", pod], inward, false),
        (Icmpv6, ["fd00::9", pod6], inward, false),
        (Tcp, ["192.0.2.1", pod], inward, true),
        (Udp, ["2001:db8::1", pod6], inward, true),
        (Tcp, ["169.254.7.127", pod], inward, true),
        (Udp, ["169.254.7.127", pod], inward, false),
        (Tcp, [pod, "10.0.0.9"], outward, false),
        (Udp, [pod6, "fd00::9"], outward, false),
        // What the pod sends to its node is judged like everything else.
        (Tcp, [pod, "192.0.2.1"], outward, false),
    ] {
        let of = |packet: &Packet| passes(Isolation::BOTH, packet, hook);
        let first = packet(protocol, ends, hook);
        assert_eq!(of(&first), expected, "{first:?}");
        let mut answer = first.clone();
        (answer.state, answer.reply) = (State::Established, true);
        assert!(of(&answer), "{answer:?}");
        answer.reply = false;
        assert_eq!(of(&answer), expected, "it is of the direction that began: {answer:?}");
        let mut inside = first.clone();
        (inside.in_interface, inside.out_interface) = match hook {
            Hook::Prerouting => ("lo".into(), String::new()),
            _ => (String::new(), "lo".into()),
        };
        assert!(of(&inside), "{inside:?}");
        for kind in 133..=137 {
            let mut discovery = packet(Icmpv6, ["fd00::9", pod6], hook);
            discovery.icmp = (kind, 0);
            assert!(of(&discovery), "{discovery:?}");
        }
    }
}

#[test]
fn each_direction_is_isolated_by_itself() {
    let ends = ["10.0.0.9", "10.0.0.2"];
    for isolation in [
        Isolation::default(),
        Isolation { ingress: true, egress: false },
        Isolation { ingress: false, egress: true },
    ] {
        for (hook, is_isolated) in
            [(Hook::Prerouting, isolation.ingress), (Hook::Postrouting, isolation.egress)]
        {
            let found = passes(isolation, &packet(Protocol::Tcp, ends, hook), hook);
            assert_eq!(found, !is_isolated, "{isolation} {hook:?}");
        }
    }
    assert_eq!(plan_guard(Isolation::default(), Admitted::default(), Backend::Nftables), no_rules());
}
