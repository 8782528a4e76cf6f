//! Policies in a node's namespace, with real packets: two pods of the node and a client outside, behind what a service proxy does.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use kernel::iptables::Variant;
use kernel::nft::Thoroughness;
use kernel::{Change, PartedRules};
use netns::Host;
use policy::compile::{EnforcementSettings, Established, NodeRules};
use policy::guard::no_rules;
use policy::index::{LocalFacts, LocalName, PolicyEffect, PolicyIndex, TunnelJudge};
use policy::{PlainPod, PlainWorld, PolicyTerms};
use ruleset::{Ruleset, TableKind};
use serde_json::{Value, json};
use testkit::TestNetns;
use testkit::probe::{Flow, Listener, Listeners};

use crate::support::{Way, sh};

#[path = "node/answers.rs"]
mod answers;
#[path = "node/cost.rs"]
mod cost;
#[path = "node/drift.rs"]
mod drift;
#[path = "node/kept.rs"]
mod kept;

/// A packet that is dropped costs the whole of it.
const PATIENCE: Duration = Duration::from_millis(250);
const TABLE: &str = "inet istio-policy-mangle";

/// What a service proxy does: two Services, and a port of the node whose clients' addresses are changed.
const PROXY: &str = "
table ip proxy {
  chain pre { type nat hook prerouting priority -100 ;
    ip daddr 10.96.0.10 tcp dport 80 dnat to 10.1.0.3:8080
    ip daddr 10.96.0.11 tcp dport 80 dnat to 10.1.0.2:8080
    ip daddr 192.0.2.1 tcp dport 30080 meta mark set 0x4000 dnat to 10.1.0.3:8080
  }
  chain post { type nat hook postrouting priority 100 ;
    meta mark 0x4000 counter masquerade
    ip saddr 10.1.0.2 ip daddr 10.1.0.2 masquerade
  }
}";

/// The node with its pods `a` (10.1.0.2) and `b` (10.1.0.3), and a client outside (192.0.2.9).
struct Lab {
    node: TestNetns,
    a: TestNetns,
    b: TestNetns,
    outside: TestNetns,
    world: PlainWorld,
    index: PolicyIndex,
    settings: EnforcementSettings,
    rules: NodeRules,
    table: PartedRules,
    is_loaded: bool,
    _listeners: Vec<Listeners>,
}

pub(crate) fn link(node: &TestNetns, other: &TestNetns, name: &str, addresses: [&str; 2], routes: &[&str]) {
    let path = other.path().display();
    node.ip(&[format!("link add {name} type veth peer name eth0 netns {path}")]).unwrap();
    node.ip(&[format!("address add {} dev {name}", addresses[0]), format!("link set {name} up")]).unwrap();
    other.ip(&[format!("address add {} dev eth0", addresses[1]), "link set eth0 up".to_owned()]).unwrap();
    other.ip(routes).unwrap();
}

fn settings(way: Way) -> EnforcementSettings {
    EnforcementSettings { backend: way.backend(), ..EnforcementSettings::default() }
}

/// Everything of policies, in nf_tables with handles, and how many packets its rules have counted, which a rule that is written again has not.
fn listed(node: &TestNetns, way: Way) -> (String, u64) {
    let text = match way {
        Way::Nft => sh(node, &format!("nft -a list table {TABLE}")),
        Way::Iptables(variant) => sh(
            node,
            &format!(
                "iptables-{variant}-save -c -t mangle; ip6tables-{variant}-save -c -t mangle; ipset save"
            ),
        ),
    };
    let (mut rest, mut counted) = (String::new(), 0);
    for line in text.lines().filter(|line| !line.starts_with(['#', ':'])) {
        let (before, packets, after) = if let Some((before, after)) = line.split_once("counter packets ") {
            let mut words = after.splitn(4, ' ');
            let packets = words.next();
            (before, packets, words.nth(2))
        } else if let Some((counts, after)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            ("", counts.split(':').next(), Some(after))
        } else {
            (line, None, None)
        };
        counted += packets.and_then(|packets| packets.parse::<u64>().ok()).unwrap_or(0);
        rest += &format!("{before}{}\n", after.unwrap_or_default());
    }
    (rest, counted)
}

fn pod_facts(node: &str, address: &str, labels: &Value) -> facts::Peer {
    let object = json!({"metadata": {"labels": labels}, "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]}});
    serde_json::from_value(object).unwrap()
}

impl Lab {
    fn new(way: Way, settings: EnforcementSettings) -> Self {
        let [node, a, b, outside] = std::array::from_fn(|_| TestNetns::new().unwrap());
        node.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
        let routes = ["route add 10.1.0.1 dev eth0", "route add default via 10.1.0.1"];
        link(&node, &a, "pod-a", ["10.1.0.1/32", "10.1.0.2/32"], &routes);
        link(&node, &b, "pod-b", ["10.1.0.1/32", "10.1.0.3/32"], &routes);
        let default = ["route add default via 192.0.2.1"];
        link(&node, &outside, "out", ["192.0.2.1/24", "192.0.2.9/24"], &default);
        node.ip(&["route add 10.1.0.2 dev pod-a", "route add 10.1.0.3 dev pod-b"]).unwrap();
        node.nft(PROXY).unwrap();
        let both = || [Listener::tcp(8080), Listener::tcp(9090)];
        let listeners = [&node, &a, &b, &outside].map(|ns| Listeners::start(ns, both()).unwrap());
        let host = Host::open(node.path()).unwrap();
        let table =
            PartedRules::open(host, way.backend(), way.iptables(), no_rules(), TableKind::Mangle).unwrap();
        Self {
            node,
            a,
            b,
            outside,
            world: PlainWorld::default(),
            index: PolicyIndex::default(),
            settings,
            rules: NodeRules::new(settings),
            table,
            is_loaded: false,
            _listeners: listeners.into(),
        }
    }

    /// With its pods and these policies: `b` lets `a` in, and `a` may reach nothing but `b`, both at port 8080.
    fn isolated(way: Way, settings: EnforcementSettings) -> Self {
        let mut lab = Self::new(way, settings);
        lab.isolate();
        lab
    }

    /// The same of a node that has more.
    fn isolate(&mut self) {
        self.put_pod("a", "10.1.0.2", &json!({"app": "a"}));
        self.put_pod("b", "10.1.0.3", &json!({"app": "b"}));
        let port = json!([{"port": 8080}]);
        self.put_policy(
            "b-in",
            json!({"podSelector": {"matchLabels": {"app": "b"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": port}]}),
        );
        self.put_policy(
            "a-out",
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": port}]}),
        );
        assert_eq!(self.ensure(Thoroughness::Everything), Change::Fresh);
        self.is_loaded = true;
    }

    fn ruleset(&self) -> Ruleset {
        self.rules.rules(&self.index)
    }

    fn ensure(&mut self, thoroughness: Thoroughness) -> Change {
        let (rules, contents) = (self.ruleset(), self.rules.contents(&self.index));
        ruleset::check_for(&rules, self.settings.backend).unwrap();
        self.table.ensure(&rules, &contents, thoroughness).unwrap()
    }

    /// What an event changes, also in the kernel where it has the table.
    fn apply(&mut self, effects: &[PolicyEffect]) {
        for delta in self.rules.apply(effects, &self.index) {
            if self.is_loaded {
                self.table.change(&delta).unwrap();
            }
        }
    }

    fn put_pod(&mut self, name: &str, address: &str, labels: &Value) {
        let facts = pod_facts("n1", address, labels);
        let local = LocalFacts {
            labels: facts.labels.clone(),
            addresses: facts.addresses.clone(),
            tunnel: TunnelJudge::Port,
        };
        let addresses = facts.addresses.clone();
        self.world.put_pod(PlainPod { namespace: "x".into(), name: name.into(), is_enrolled: false, facts });
        let named = LocalName { namespace: "x".into(), name: name.into() };
        let mut effects = self.index.local_pod(&self.world, &named, Some(local));
        effects.extend(self.index.pod(&self.world, &addresses));
        self.apply(&effects);
    }

    /// A pod of another node.
    fn put_peer(&mut self, name: &str, address: &str, labels: &Value) {
        let facts = pod_facts("n2", address, labels);
        let addresses = facts.addresses.clone();
        self.world.put_pod(PlainPod { namespace: "x".into(), name: name.into(), is_enrolled: false, facts });
        let effects = self.index.pod(&self.world, &addresses);
        self.apply(&effects);
    }

    fn put_policy(&mut self, name: &str, spec: Value) {
        let mut object = json!({"metadata": {"namespace": "x", "name": name}});
        object["spec"] = spec;
        let terms = PolicyTerms::from(&serde_json::from_value::<facts::NetworkPolicy>(object).unwrap());
        let effects = self.index.policy(&self.world, &terms.name.clone(), Some(terms));
        self.apply(&effects);
    }

    /// Whether a listener answers at the port.
    fn reaches(&self, from: &TestNetns, to: &str) -> bool {
        reaches(Flow::from(from), to)
    }
}

fn reaches(flow: Flow<'_>, to: &str) -> bool {
    flow.patience(PATIENCE).tcp(to.parse().unwrap()).unwrap().port().is_some()
}

/// What is to be reached from where, of the two pods' policies.
fn assert_isolated(lab: &Lab) {
    for (from, to, is_allowed, what) in [
        (&lab.a, "10.96.0.10:80", true, "the endpoint behind a Service"),
        (&lab.a, "10.1.0.3:8080", true, "a pod"),
        (&lab.a, "10.1.0.3:9090", false, "another port"),
        (&lab.a, "10.96.0.11:80", false, "the pod itself by a Service"),
        (&lab.a, "192.0.2.9:8080", false, "outside"),
        (&lab.a, "192.0.2.1:8080", false, "the own node"),
        (&lab.b, "10.1.0.2:9090", true, "a pod that is not isolated for what comes in"),
        (&lab.b, "192.0.2.9:9090", true, "outside, by a pod that is not isolated for what goes out"),
        (&lab.outside, "10.1.0.3:8080", false, "a pod, from outside"),
        (&lab.outside, "192.0.2.1:30080", false, "a pod by a port of the node"),
        (&lab.outside, "10.1.0.2:9090", true, "a pod that is not isolated, from outside"),
        (&lab.node, "10.1.0.3:8080", true, "a pod, from its node"),
        (&lab.node, "10.1.0.3:9090", true, "any port of it"),
    ] {
        assert_eq!(lab.reaches(from, to), is_allowed, "{what}");
    }
    assert!(reaches(Flow::from(&lab.node).user(1000, 1000), "10.1.0.3:9090"), "whichever user asks");
}

#[test]
fn a_nodes_rules_judge_the_ends_of_connections() {
    at_once(&Way::ALL, are_ends_judged);
}

fn are_ends_judged(way: Way) {
    let mut lab = Lab::new(way, settings(way));
    let others = sh(&lab.node, OTHERS);
    assert!(lab.reaches(&lab.outside, "192.0.2.1:30080") && lab.reaches(&lab.a, "10.96.0.11:80"));
    lab = Lab::isolated(way, settings(way));
    assert_isolated(&lab);
    // What is right is not touched; who starts anew finds what it would write.
    let before = listed(&lab.node, way);
    assert!(before.1 > 0 && (way != Way::Nft || before.0.contains("np:x/b-in#0")), "{before:?}");
    lab.rules = NodeRules::of(&lab.index, lab.settings, &|_| true);
    let host = Host::open(lab.node.path()).unwrap();
    lab.table =
        PartedRules::open(host, way.backend(), way.iptables(), no_rules(), TableKind::Mangle).unwrap();
    assert_eq!(lab.ensure(Thoroughness::Everything), Change::None, "{way:?}");
    let after = listed(&lab.node, way);
    assert_eq!(after.0, before.0, "{way:?}");
    assert!(after.1 >= before.1, "{way:?}: {} packets, before {}", after.1, before.1);
    // The client of the node's port is judged by its own address.
    lab.put_policy(
        "out-in",
        json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [
        {"from": [{"ipBlock": {"cidr": "192.0.2.9/32"}}], "ports": [{"port": 8080}]}]}),
    );
    assert!(lab.reaches(&lab.outside, "192.0.2.1:30080") && lab.reaches(&lab.outside, "10.1.0.3:8080"));
    assert!(!lab.reaches(&lab.outside, "10.1.0.3:9090") && lab.reaches(&lab.a, "10.96.0.10:80"));
    assert_eq!(lab.ensure(Thoroughness::Everything), Change::None, "{way:?}: events come to the same");
    assert_eq!(lab.table.remove().unwrap(), Change::Fresh);
    assert_eq!(lab.table.remove().unwrap(), Change::None, "{way:?}");
    assert_eq!(
        digits_as_one(&sh(&lab.node, OTHERS)),
        digits_as_one(&others),
        "{way:?}: rules of others stay"
    );
    let left = sh(&lab.node, "ipset list -n; nft list ruleset; iptables-legacy-save; ip6tables-legacy-save");
    assert!(!left.contains("istio") && !left.contains("ISTIO"), "{way:?}: {left}");
}

fn at_once(ways: &[Way], test: impl Fn(Way) + Sync) {
    std::thread::scope(|scope| {
        for way in ways {
            scope.spawn(|| test(*way));
        }
    });
}

/// What is there of others.
const OTHERS: &str = "nft list table ip proxy";

fn digits_as_one(text: &str) -> String {
    text.replace(|c: char| c.is_ascii_digit(), "")
}

/// Answers each byte of one connection, until it ends.
fn echo(ns: &TestNetns, port: u16) -> std::thread::JoinHandle<()> {
    let listener = ns.enter(|_| TcpListener::bind(("0.0.0.0", port))).unwrap().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    })
}

fn goes_on(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
}

#[test]
fn a_connection_that_is_denied_now_ends_or_goes_on_by_the_setting() {
    at_once(&Way::ALL, goes_on_by_the_setting);
}

fn goes_on_by_the_setting(way: Way) {
    for established in [Established::Cut, Established::Keep] {
        let mut lab = Lab::isolated(way, EnforcementSettings { established, ..settings(way) });
        lab.put_policy(
            "more",
            json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 7070}]}]}),
        );
        lab.put_policy(
            "more-out",
            json!({"podSelector": {"matchLabels": {"app": "a"}},
            "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 7070}]}]}),
        );
        let server = echo(&lab.b, 7070);
        let to: SocketAddr = "10.1.0.3:7070".parse().unwrap();
        let mut stream =
            lab.a.enter(|_| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(goes_on(&mut stream));
        // What changes for others, or is said in other words, disturbs nothing.
        lab.put_pod("c", "10.1.0.9", &json!({"app": "a"}));
        lab.put_policy("more", json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "a"}}}], "ports": [{"port": 7000, "endPort": 7100}]}]}));
        assert!(goes_on(&mut stream), "{established:?}");
        // The pod is no peer any more: one element goes.
        lab.put_pod("a", "10.1.0.2", &json!({"app": "other"}));
        assert_eq!(goes_on(&mut stream), established == Established::Keep, "{established:?}");
        assert!(!lab.reaches(&lab.a, "10.1.0.3:7070"), "no new one, {established:?}");
        drop(stream);
        drop(lab);
        // Its end has not come through where packets are dropped.
        drop(server);
    }
}

/// Sends a datagram as a frame of its own making: no rule of the pod's sees it. The words are the gateway's hardware address and the source.
pub(crate) const FRAME: &str = "
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
ends = socket.inet_aton(sys.argv[2]) + socket.inet_aton('192.0.2.9')
head = struct.pack('!BBHHHBBH', 0x45, 0, 32, 1, 0, 64, 17, 0) + ends
head = head[:10] + struct.pack('!H', checksum(head)) + head[12:]
frame = head + struct.pack('!HHHH', 5555, 5555, 12, 0) + b'ping'
gateway = bytes.fromhex(sys.argv[1].replace(':', ''))
socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).sendto(frame, ('eth0', 0x0800, 0, 0, gateway))
";

#[test]
fn frames_of_a_pods_own_making_do_not_get_out() {
    at_once(&[Way::Nft, Way::Iptables(Variant::Nft)], do_frames_stay);
}

fn do_frames_stay(way: Way) {
    let mut lab = Lab::isolated(way, settings(way));
    lab.a.nft("add table inet own\nadd chain inet own sent { type filter hook output priority 0 ; policy drop ; }").unwrap();
    let counted = "add table ip seen\nadd chain ip seen left { type filter hook postrouting priority 150 ; }\n\
                   add rule ip seen left oifname out udp dport 5555 counter";
    lab.node.nft(counted).unwrap();
    let shown = sh(&lab.node, "ip -o link show pod-a");
    let gateway = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let send = |lab: &Lab, source: &str| {
        lab.a.run(std::process::Command::new("python3").args(["-c", FRAME, gateway, source])).unwrap();
    };
    let seen = |lab: &Lab| sh(&lab.node, "nft list chain ip seen left").contains("counter packets 1 ");
    send(&lab, "10.1.0.2");
    assert!(!seen(&lab), "the pod is isolated");
    lab.table.remove().unwrap();
    send(&lab, "10.1.0.2");
    assert!(seen(&lab), "without the rules it gets out");
}
