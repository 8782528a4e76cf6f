//! Where packets of pods enter the node, with real packets: source addresses by interface, and datagrams that show whether packets come by.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use kernel::Change;
use kernel::nft::{PartedTable, Thoroughness};
use kernel::pair::{NodeEnd, NodeEnds, PodInterface, send_frame};
use netns::{Host, Netns};
use policy::compile::{ENTRY_CHAIN, ENTRY_TABLE, EntryInterface, EntryProbe, NodeEntry, POLICY_OWNER};
use policy::index::LocalName;
use ruleset::InterfaceName;
use testkit::TestNetns;
use testkit::probe::{Flow, Listener, Listeners};

use crate::node::{FRAME, link};
use crate::support::sh;

struct Entry {
    node: TestNetns,
    entry: NodeEntry,
    table: PartedTable,
    ends: NodeEnds,
}

impl Entry {
    fn new() -> Self {
        let node = TestNetns::new().unwrap();
        let host = Host::open(node.path()).unwrap();
        let open = |inside: &netns::InsideHost<'_>| {
            let table = PartedTable::open(inside, POLICY_OWNER, ENTRY_TABLE).unwrap();
            (table, NodeEnds::open(inside).unwrap())
        };
        let (table, ends) = host.enter(open).unwrap();
        Self { node, entry: NodeEntry::default(), table, ends }
    }

    fn end(&mut self, pod: &TestNetns) -> Option<NodeEnd> {
        let netns = Netns::open(pod.path()).unwrap();
        pod.enter(|inside| self.ends.of(inside, &netns, &PodInterface::Named("eth0".to_owned())))
            .unwrap()
            .unwrap()
    }

    fn ensure(&mut self) -> Change {
        let (rules, contents) = (self.entry.rules(), self.entry.contents());
        ruleset::check(&rules).unwrap();
        self.table.ensure(&rules, &contents, Thoroughness::Everything).unwrap()
    }

    fn set(&mut self, pod: &str, end: Option<&NodeEnd>, addresses: &[&str]) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let interface = end.map(|end| EntryInterface {
            name: InterfaceName::new(&end.name).unwrap(),
            index: end.index,
            addresses: addresses.into(),
        });
        let name = LocalName { namespace: "x".into(), name: pod.into() };
        let delta = self.entry.set(&name, interface);
        self.table.change(&delta).unwrap();
        assert_eq!(self.ensure(), Change::None, "a change comes to the same as everything at once");
    }

    /// Whether a datagram that the pod's end sends is counted.
    fn is_seen(&mut self, pod: &TestNetns, end: &NodeEnd) -> bool {
        let name = end.bridge.as_ref().map_or(&end.name, |bridge| &bridge.name);
        let probe = EntryProbe {
            interface: InterfaceName::new(name).unwrap(),
            source_port: 40_001,
            destination: Ipv4Addr::new(192, 0, 2, 77),
            port: 40_002,
        };
        self.table.change(&NodeEntry::expect(std::slice::from_ref(&probe))).unwrap();
        let packet = probe.packet(Ipv4Addr::new(10, 1, 0, 2));
        pod.enter(|inside| send_frame(inside, end, &packet)).unwrap().unwrap();
        let counted = self.table.counted(ENTRY_CHAIN, 1).unwrap();
        self.table.change(&NodeEntry::expect(&[])).unwrap();
        assert_eq!(self.ensure(), Change::None, "nothing of a test is left");
        counted == [1]
    }
}

/// A pod that may send frames, or take addresses, speaks by its own address only, in both families; neighbours are found as before.
#[test]
fn a_pods_interface_brings_no_other_address() {
    let mut entry = Entry::new();
    let [a, b, outside] = std::array::from_fn(|_| TestNetns::new().unwrap());
    let node = &entry.node;
    node.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
    node.set_sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    let routes = ["route add 10.1.0.1 dev eth0", "route add default via 10.1.0.1"];
    link(node, &a, "pod-a", ["10.1.0.1/32", "10.1.0.2/32"], &routes);
    link(node, &b, "pod-b", ["10.1.0.1/32", "10.1.0.3/32"], &routes);
    link(node, &outside, "out", ["192.0.2.1/24", "192.0.2.9/24"], &["route add default via 192.0.2.1"]);
    node.ip(&["route add 10.1.0.2 dev pod-a", "route add 10.1.0.3 dev pod-b"]).unwrap();
    let seen = "add table inet seen\nadd chain inet seen left { type filter hook forward priority 0 ; }\n\
                add rule inet seen left udp dport 5555 counter\nadd rule inet seen left udp dport 5556 counter";
    node.nft(seen).unwrap();
    let (end_a, end_b) = (entry.end(&a).unwrap(), entry.end(&b).unwrap());
    assert_eq!((&*end_a.name, &*end_b.name, &end_a.bridge), ("pod-a", "pod-b", &None));
    assert_eq!(entry.ensure(), Change::Fresh);
    entry.set("a", Some(&end_a), &["10.1.0.2", "fd01::2"]);
    entry.set("b", Some(&end_b), &["10.1.0.3"]);
    // Addresses come after the rules, with the question whether they are free: that, and neighbours, work as before.
    for (ns, name, address) in [(&entry.node, "pod-a", "fd01::1"), (&a, "eth0", "fd01::2")] {
        ns.ip(&[format!("address add {address}/64 dev {name}")]).unwrap();
    }
    let _listeners =
        [&entry.node, &b, &outside].map(|ns| Listeners::start(ns, [Listener::tcp(8080)]).unwrap());
    let reaches = |from: &TestNetns, to: &str| {
        let flow = Flow::from(from).patience(Duration::from_millis(250)).tcp(to.parse().unwrap());
        flow.is_ok_and(|flow| flow.port().is_some())
    };
    testkit::until(
        "IPv6 works",
        testkit::PATIENCE,
        || reaches(&a, "[fd01::1]:8080"),
        || "it does not".to_owned(),
    )
    .unwrap();
    assert!(reaches(&a, "10.1.0.3:8080") && reaches(&a, "192.0.2.9:8080"));
    let counted = |entry: &Entry, port: u16| {
        let listed = sh(&entry.node, "nft list chain inet seen left");
        let line = listed.lines().find(|line| line.contains(&port.to_string())).unwrap().to_owned();
        line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let gateway = end_a.hardware.map(|byte| format!("{byte:02x}")).join(":");
    for (source, passes) in
        [("10.1.0.2", 1), ("10.1.0.3", 1), ("192.0.2.200", 1), ("10.1.0.1", 1), ("10.1.0.2", 2)]
    {
        a.run(std::process::Command::new("python3").args(["-c", FRAME, &gateway, source])).unwrap();
        assert_eq!(counted(&entry, 5555), passes, "a frame from {source}");
    }
    // With CAP_NET_ADMIN a pod takes whatever address it wants.
    a.ip(&["address add 10.1.0.66/32 dev eth0", "address add fd01::66/64 dev eth0 nodad"]).unwrap();
    let send = "import socket, sys\nfor source, to in (('10.1.0.66', '192.0.2.9'), ('10.1.0.2', '192.0.2.9')):\n s = socket.socket(socket.AF_INET, \
                socket.SOCK_DGRAM)\n s.bind((source, 0))\n s.sendto(b'x', (to, 5556))";
    a.run(std::process::Command::new("python3").args(["-c", send])).unwrap();
    assert_eq!(counted(&entry, 5556), 1, "from its own address only");
    // A pod's place is another's, by the same interface; then there is none.
    entry.set("c", Some(&end_a), &["10.1.0.66"]);
    a.run(std::process::Command::new("python3").args(["-c", send])).unwrap();
    assert_eq!(counted(&entry, 5556), 2);
    entry.set("c", None, &[]);
    entry.set("b", None, &[]);
    a.run(std::process::Command::new("python3").args(["-c", send])).unwrap();
    assert_eq!(counted(&entry, 5556), 4, "nobody says whose it is");
}

/// The node's end of a pair is found, and a frame of the pod's end is counted where the node's rules see it.
#[test]
fn it_is_seen_whether_packets_of_a_pod_come_by() {
    let mut entry = Entry::new();
    let [routed, bridged, apart, elsewhere] = std::array::from_fn(|_| TestNetns::new().unwrap());
    link(&entry.node, &routed, "pod-a", ["10.1.0.1/32", "10.1.0.2/32"], &["link set lo up"]);
    link(&entry.node, &bridged, "pod-b", ["10.2.0.1/32", "10.2.0.2/32"], &["link set lo up"]);
    // The same number at the other end, in a namespace that is not the node's.
    link(&elsewhere, &apart, "pod-c", ["10.1.0.1/32", "10.1.0.2/32"], &["link set lo up"]);
    entry.node.ip(&["link add br0 type bridge", "link set br0 up", "link set pod-b master br0"]).unwrap();
    assert_eq!(entry.ensure(), Change::Fresh);
    let end = entry.end(&routed).unwrap();
    assert!(entry.is_seen(&routed, &end));
    // Rules of the pod's own are not asked.
    routed.nft("add table inet own\nadd chain inet own out { type filter hook output priority 0 ; policy drop ; }").unwrap();
    assert!(entry.is_seen(&routed, &end));
    let end = entry.end(&bridged).unwrap();
    assert_eq!(
        end.bridge.as_ref().map(|bridge| (&*bridge.name, bridge.calls)),
        Some(("br0", [false, false]))
    );
    testkit::until("the port forwards", testkit::PATIENCE, || entry.is_seen(&bridged, &end), String::new)
        .unwrap();
    entry.node.ip(&["link set br0 type bridge nf_call_iptables 1"]).unwrap();
    let end = entry.end(&bridged).unwrap();
    assert_eq!(end.bridge.map(|bridge| bridge.calls), Some([true, false]));
    assert_eq!(entry.end(&apart), None, "a pair with another namespace");
    // What takes packets before netfilter does.
    let end = entry.end(&routed).unwrap();
    entry.node.nft("add table netdev own\nadd chain netdev own in { type filter hook ingress device pod-a priority 0 ; policy drop ; }").unwrap();
    assert!(!entry.is_seen(&routed, &end));
    // One of the node's interfaces itself, with packets that go by its card.
    let direct = TestNetns::new().unwrap();
    entry.node.ip(&["link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"]).unwrap();
    let path = direct.path().display().to_string();
    entry.node.ip(&[format!("link add link up0 name eth0 netns {path} type macvlan mode bridge")]).unwrap();
    assert_eq!(entry.end(&direct), None, "macvlan");
}
