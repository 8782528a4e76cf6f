//! Real packets. Listeners stand in for ztunnel; its connections to the application have its mark and the client's address.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use capture::ambient::{
    DNS_PORT, HBONE_PORT, INBOUND_PORT, NodeOptions, OUTBOUND_PORT, PROBE_V4, PROBE_V6, PROBES_V4, PROBES_V6,
    PodOptions, ProbeSender, ZTUNNEL_MARK, plan_host,
};
use capture::{PlanTarget, Settings};
use kernel::{Change, Difference};
use ruleset::Backend;
use testkit::probe::{Flow, Listener, Listeners, Outcome};
use testkit::{Families, Pod, TestNetns};

use crate::support::{Way, sh};

const APP: u16 = 8080;
/// Long enough for a busy machine, and what each expected loss costs.
const PATIENCE: Duration = Duration::from_millis(500);

/// A pod in the mesh with ztunnel's and an application's ports, and a world around it.
struct Lab {
    pod: Pod,
    inside: Listeners,
    _around: Listeners,
}

impl Lab {
    fn new(way: Way, options: &PodOptions) -> Self {
        let mut pod = Pod::new(Families::Dual).unwrap();
        pod.add_interface("net1").unwrap();
        for namespace in [pod.own(), pod.peer()] {
            for interface in ["all", "eth0", "net1"] {
                namespace.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0").unwrap();
            }
        }
        way.apply(&pod, &way.pod_plan(&NodeOptions::default(), options)).unwrap();
        let tcp = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT, APP].map(Listener::tcp);
        let inside =
            Listeners::start(&pod, tcp.into_iter().chain([DNS_PORT, APP].map(Listener::udp))).unwrap();
        let around = Listeners::start(
            pod.peer(),
            [APP, 53, OUTBOUND_PORT].map(Listener::tcp).into_iter().chain([53, APP].map(Listener::udp)),
        )
        .unwrap();
        Self { pod, inside, _around: around }
    }

    fn out(&self) -> Flow<'_> {
        Flow::from(&self.pod).user(1000, 1000).patience(PATIENCE)
    }

    fn ztunnel(&self) -> Flow<'_> {
        Flow::from(&self.pod).mark(ZTUNNEL_MARK).patience(PATIENCE)
    }

    fn outside(&self) -> Flow<'_> {
        Flow::from(self.pod.peer()).patience(PATIENCE)
    }
}

fn far(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new([198, 51, 100, 7].into(), port), SocketAddr::new("2001:db8::7".parse().unwrap(), port)]
}

fn own(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Pod::V4, port), SocketAddr::new(Pod::V6, port)]
}

fn loopback(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new([127, 0, 0, 1].into(), port), SocketAddr::new("::1".parse().unwrap(), port)]
}

fn reached(outcome: &Outcome, port: u16, to: SocketAddr, what: &str) {
    assert_eq!(outcome.port(), Some(port), "{what} to {to}: {outcome}");
}

#[test]
fn every_packet_goes_where_the_mode_says() {
    for way in Way::ALL {
        let lab = Lab::new(way, &PodOptions::default());
        for to in far(APP) {
            let outcome = lab.out().tcp(to).unwrap();
            reached(&outcome, OUTBOUND_PORT, to, "outbound");
            assert_eq!(outcome.arrival().unwrap().original_dst, Some(to));
            let outcome = lab.ztunnel().tcp(to).unwrap();
            reached(&outcome, APP, to, "ztunnel's own");
            assert_eq!(outcome.arrival().unwrap().peer.ip(), if to.is_ipv4() { Pod::V4 } else { Pod::V6 });
            reached(&lab.out().udp(to).unwrap(), APP, to, "a datagram");
        }
        for to in far(53) {
            reached(&lab.out().udp(to).unwrap(), DNS_PORT, to, "a question");
            reached(&lab.out().tcp(to).unwrap(), DNS_PORT, to, "a question by TCP");
            reached(&lab.ztunnel().udp(to).unwrap(), 53, to, "ztunnel's question");
            reached(&lab.ztunnel().tcp(to).unwrap(), 53, to, "ztunnel's question by TCP");
        }
        for to in own(APP).into_iter().chain(loopback(APP)) {
            reached(&lab.out().tcp(to).unwrap(), APP, to, "to itself");
        }
        for to in own(APP) {
            let outcome = lab.outside().tcp(to).unwrap();
            reached(&outcome, INBOUND_PORT, to, "inbound");
            assert_eq!(outcome.arrival().unwrap().original_dst, Some(to));
            reached(&lab.outside().udp(to).unwrap(), APP, to, "an inbound datagram");
        }
        for to in own(HBONE_PORT) {
            let outcome = lab.outside().tcp(to).unwrap();
            reached(&outcome, HBONE_PORT, to, "a tunnel");
            assert_eq!(outcome.arrival().unwrap().destination(), to);
        }
    }
}

#[test]
fn the_application_answers_ztunnel_which_has_the_clients_address() {
    for way in Way::ALL {
        for ingress in [false, true] {
            let lab = Lab::new(way, &PodOptions { ingress, ..PodOptions::default() });
            for (to, client) in own(APP).into_iter().zip(far(40_123)) {
                let outcome = lab.ztunnel().source(client).tcp(to).unwrap();
                reached(&outcome, APP, to, "ztunnel to the application");
                assert_eq!(outcome.arrival().unwrap().peer, client, "{way:?}");
                // The application's own outbound connections are captured all the same.
                reached(&lab.out().tcp(far(APP)[0]).unwrap(), OUTBOUND_PORT, far(APP)[0], "outbound");
            }
            // Without the policy rule answers leave the pod: it is what brings them back.
            sh(&lab.pod, "ip rule del priority 32764; ip -6 rule del priority 32764");
            for (to, client) in own(APP).into_iter().zip(far(40_124)) {
                let outcome = lab.ztunnel().source(client).tcp(to).unwrap();
                assert_eq!(outcome, Outcome::TimedOut, "{way:?} {to}");
            }
        }
    }
}

#[test]
fn a_gateway_takes_what_comes_in_itself() {
    for way in Way::ALL {
        let lab = Lab::new(way, &PodOptions { ingress: true, ..PodOptions::default() });
        for to in own(APP) {
            reached(&lab.outside().tcp(to).unwrap(), APP, to, "inbound");
        }
        for to in far(APP) {
            reached(&lab.out().tcp(to).unwrap(), OUTBOUND_PORT, to, "outbound");
        }
        for (to, client) in own(HBONE_PORT).into_iter().zip(far(40_125)) {
            reached(&lab.outside().tcp(to).unwrap(), HBONE_PORT, to, "a tunnel");
            let to = SocketAddr::new(to.ip(), APP);
            reached(&lab.ztunnel().source(client).tcp(to).unwrap(), APP, to, "what was in the tunnel");
        }
    }
}

#[test]
fn what_comes_by_a_virtual_interface_is_outbound() {
    for way in Way::ALL {
        let virtual_interfaces = vec!["net1".to_owned()];
        let lab = Lab::new(way, &PodOptions { virtual_interfaces, ..PodOptions::default() });
        for to in lab.pod.interfaces()[1].pod.iter().map(|ip| SocketAddr::new(*ip, APP)) {
            let outcome = lab.outside().tcp(to).unwrap();
            reached(&outcome, OUTBOUND_PORT, to, "TCP by net1");
            assert_eq!(outcome.arrival().unwrap().original_dst, Some(to));
            reached(&lab.outside().udp(to).unwrap(), APP, to, "UDP by net1");
        }
        for to in own(APP) {
            reached(&lab.outside().tcp(to).unwrap(), INBOUND_PORT, to, "TCP by eth0");
        }
        drop(lab.inside.take_records());
    }
}

/// A node with a pod, and a neighbour whose packets it forwards.
struct Node {
    node: TestNetns,
    pod: TestNetns,
    neighbour: TestNetns,
    inside: Listeners,
}

const POD: [&str; 2] = ["10.88.1.2", "fd88:1::2"];
const NEIGHBOUR: [&str; 2] = ["10.88.2.2", "fd88:2::2"];

impl Node {
    fn new(way: Way, sender: ProbeSender) -> Self {
        let [node, pod, neighbour] = [(); 3].map(|()| TestNetns::new().unwrap());
        for (number, end) in [(1, &pod), (2, &neighbour)] {
            let veth = format!("link add v{number} type veth peer name eth0 netns {}", end.path().display());
            node.ip(&[
                veth,
                format!("address add 10.88.{number}.1/24 dev v{number}"),
                format!("address add fd88:{number}::1/64 dev v{number} nodad"),
                format!("link set v{number} up"),
            ])
            .unwrap();
            end.ip(&[
                format!("address add 10.88.{number}.2/24 dev eth0"),
                format!("address add fd88:{number}::2/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
                format!("route add default via 10.88.{number}.1"),
                format!("route add default via fd88:{number}::1"),
            ])
            .unwrap();
        }
        for sysctl in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            node.set_sysctl(sysctl, "1").unwrap();
        }
        let options = NodeOptions::default();
        match way.backend() {
            Backend::Iptables => {
                sh(
                    &node,
                    &format!(
                        "ipset create {PROBES_V4} hash:ip; ipset create {PROBES_V6} hash:ip family inet6; \
                         ipset add {PROBES_V4} {}; ipset add {PROBES_V6} {}",
                        POD[0], POD[1]
                    ),
                );
                // What would make every packet the node's own.
                way.shell(&node, "iptables -t nat -A POSTROUTING -j MASQUERADE");
                way.apply(&node, &plan_host(&options, sender, Backend::Iptables)).unwrap();
            }
            Backend::Nftables => {
                way.apply(&node, &plan_host(&options, sender, Backend::Nftables)).unwrap();
                for (set, address) in [PROBES_V4, PROBES_V6].iter().zip(POD) {
                    node.nft(&format!("add element inet istio-ambient-nat {set} {{ {address} }}")).unwrap();
                }
            }
        }
        way.apply(&pod, &way.pod_plan(&options, &PodOptions::default())).unwrap();
        let inside = Listeners::start(
            &pod,
            [INBOUND_PORT, HBONE_PORT, APP].map(Listener::tcp).into_iter().chain([Listener::udp(APP)]),
        )
        .unwrap();
        Self { node, pod, neighbour, inside }
    }
}

#[test]
fn a_probe_is_told_by_its_source_and_what_is_forwarded_is_not_touched() {
    let senders = [ProbeSender::AnySocket, ProbeSender::Uid(0)];
    let nft = senders.map(|sender| (Way::Nft, sender));
    for (way, sender) in nft.into_iter().chain(Way::ALL[1..].iter().map(|way| (*way, senders[0]))) {
        let lab = Node::new(way, sender);
        let probes: [IpAddr; 2] = [PROBE_V4.into(), PROBE_V6.into()];
        for (number, (pod, probe)) in POD.iter().zip(probes).enumerate() {
            let to = SocketAddr::new(pod.parse().unwrap(), APP);
            // An interface is ready a moment after it is up; the first packets may wait for that, and be sent again seconds later.
            let patience = Duration::from_secs(10);
            let flow = || Flow::from(&lab.node).patience(patience);
            let outcome = flow().tcp(to).unwrap();
            reached(&outcome, APP, to, "a probe");
            assert_eq!(outcome.arrival().unwrap().peer.ip(), probe, "{way:?} {sender:?}");
            // Another user's connection counts as a probe only where any socket does.
            let outcome = flow().user(1000, 1000).tcp(to).unwrap();
            let expected = if sender == ProbeSender::AnySocket { APP } else { INBOUND_PORT };
            reached(&outcome, expected, to, "another user's connection");
            // A datagram is no probe of this kind.
            let outcome = flow().udp(to).unwrap();
            assert_ne!(outcome.arrival().unwrap().peer.ip(), probe, "{way:?}");
            let outcome = Flow::from(&lab.neighbour).patience(patience).tcp(to).unwrap();
            reached(&outcome, INBOUND_PORT, to, "what the node forwards");
            let masqueraded = way != Way::Nft && number == 0;
            let source = if masqueraded { "10.88.1.1" } else { NEIGHBOUR[number] };
            assert_eq!(outcome.arrival().unwrap().peer.ip().to_string(), source, "{way:?}");
            // A pod that is in no set.
            let other = SocketAddr::new(NEIGHBOUR[number].parse().unwrap(), APP);
            let _there = Listeners::start(&lab.neighbour, [Listener::tcp(APP)]).unwrap();
            let outcome = flow().tcp(other).unwrap();
            reached(&outcome, APP, other, "to another");
            assert_ne!(outcome.arrival().unwrap().peer.ip(), probe, "{way:?}");
        }
        drop(lab.inside.take_records());
        // The pod answers by the node's route alone.
        assert!(!sh(&lab.pod, "ip -4 address").contains("169.254"));
    }
}

/// Rules of others come between those of ours, too, of which a sidecar with an excluded interface has several in a built-in chain.
#[test]
fn rules_of_others_between_those_that_lead_are_put_behind_them() {
    let settings = Settings { excluded_interfaces: vec!["net1".to_owned()], ..Settings::default() };
    for way in Way::ALL {
        let Way::Iptables(_) = way else { continue };
        let ns = TestNetns::new().unwrap();
        let plan = capture::plan(&settings, PlanTarget { backend: way.backend(), ipv6: true });
        way.apply(&ns, &plan).unwrap();
        assert_eq!(way.put_first(&ns, &plan), Change::None, "{way:?}: nobody else is there");
        let rules = || way.shell(&ns, "iptables -t nat -S OUTPUT");
        let ours = rules();
        assert!(ours.lines().count() > 2, "{way:?}: a policy and several rules: {ours}");
        way.shell(&ns, "iptables -t nat -I OUTPUT 2 -d 192.0.2.1 -j ACCEPT");
        assert_eq!(way.observe(&ns, &plan), [], "{way:?}: they are all there");
        assert_eq!(way.put_first(&ns, &plan), Change::Replaced, "{way:?}");
        let last = "-A OUTPUT -d 192.0.2.1/32 -j ACCEPT\n";
        assert_eq!(rules(), format!("{ours}{last}"), "{way:?}");
        assert_eq!(way.put_first(&ns, &plan), Change::None, "{way:?}");
    }
}

/// Another component that puts its own source before ours is not the last one to come: the hooks are in the order of their registration,
/// the rules of a chain in theirs.
#[test]
fn probes_keep_their_source_whoever_comes_later() {
    const OTHERS: &str = "-t nat -I POSTROUTING 1 -d 10.88.1.2 -j SNAT --to-source 10.88.1.1";
    for way in Way::ALL {
        let lab = Node::new(way, ProbeSender::AnySocket);
        let plan = way.host_plan(&NodeOptions::default());
        let to = SocketAddr::new(POD[0].parse().unwrap(), APP);
        let source = || {
            let outcome = Flow::from(&lab.node).patience(Duration::from_secs(3)).tcp(to).unwrap();
            outcome.arrival().unwrap().peer.ip().to_string()
        };
        assert_eq!(source(), PROBE_V4.to_string(), "{way:?}");
        for _ in 0..3 {
            let before = way.neighbours(&lab.node, &plan);
            match way {
                // It goes and comes again, as that of an agent that restarts.
                Way::Nft => sh(
                    &lab.node,
                    &format!("nft delete table ip nat 2>/dev/null || true; iptables-nft {OTHERS}"),
                ),
                Way::Iptables(_) => way.shell(&lab.node, &format!("iptables {OTHERS}")),
            };
            assert_eq!(source(), "10.88.1.1", "{way:?}: the other one is the first now");
            match way {
                Way::Nft => assert!(!way.neighbours(&lab.node, &plan).are_among(&before)),
                Way::Iptables(_) => {
                    let found = way.observe_on_the_node(&lab.node, &plan);
                    assert!(matches!(found[..], [Difference::Preceded { .. }]), "{found:?}");
                }
            }
            assert_eq!(way.put_first(&lab.node, &plan), Change::Replaced);
            assert_eq!(source(), PROBE_V4.to_string(), "{way:?}");
            assert_eq!(way.observe_on_the_node(&lab.node, &plan), []);
        }
    }
}
