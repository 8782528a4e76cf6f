//! Where policies are enforced: in the node's namespace for pods whose packets it sees, in the pod's own for others, by tests with real packets.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Agent, PATIENCE, PodObject, TestNetns, at_once, until};

use crate::mesh_render::cnictl;

const PORT: u16 = 8080;

/// A pod as a network plugin left it.
struct Attached {
    ns: TestNetns,
    address: String,
    _listener: Listeners,
}

/// A node, with pods that nothing may come to but from their node.
struct Setup {
    mesh: Mesh,
    next: u32,
}

impl Setup {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        mesh.host.set_sysctl("net.ipv4.ip_forward", "1").unwrap();
        let policy = json!({"metadata": {"namespace": "default", "name": "closed"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}});
        mesh.node.api.set_object(Resource::NetworkPolicies, policy);
        Self { mesh, next: 1 }
    }

    fn agent(&self) -> Agent {
        self.agent_by("true")
    }

    fn agent_by(&self, native: &str) -> Agent {
        let agent = self.mesh.agent().env("AMBIENT_ENABLED", "false");
        agent.env("NATIVE_NFTABLES", native).env("POLICY_ENFORCEMENT", "on").ready().unwrap()
    }

    /// A pod that runs; `attach` gives it `eth0`, with the pod's path and address, by commands in the node's namespace.
    fn pod(
        &mut self,
        name: &str,
        address: &str,
        attach: impl Fn(&str) -> Vec<String>,
        gateway: &str,
    ) -> Attached {
        let ns = TestNetns::new().unwrap();
        self.mesh.host.ip(&attach(&ns.path().display().to_string())).unwrap();
        ns.ip(&[format!("address add {address}/24 dev eth0"), "link set eth0 up".to_owned()]).unwrap();
        if !gateway.is_empty() {
            ns.ip(&[format!("route add default via {gateway}")]).unwrap();
        }
        let number = self.next;
        self.next += 1;
        let uid = format!("{number:08x}-0000-4000-8000-00000000beef");
        let cgroup = format!("/kubepods/burstable/pod{uid}/{number:064x}");
        self.mesh.process(2000 + number, ns.path(), &cgroup, 100).unwrap();
        let object = PodObject::named(name).uid(&uid).label("app", "web").on_node("n1").container("app");
        self.mesh.node.api.set_pod(object.running(&[address.parse().unwrap()]));
        let listener = Listeners::start(&ns, [Listener::tcp(PORT)]).unwrap();
        Attached { ns, address: address.to_owned(), _listener: listener }
    }
}

fn reaches(from: &TestNetns, to: &Attached) -> bool {
    let to = format!("{}:{PORT}", to.address).parse().unwrap();
    Flow::from(from).patience(Duration::from_millis(200)).tcp(to).is_ok_and(|flow| flow.port() == Some(PORT))
}

fn has_own_rules(pod: &Attached) -> bool {
    rules(&pod.ns).contains("istio-policy")
}

fn rules(ns: &TestNetns) -> String {
    ns.run(Command::new("nft").args(["list", "ruleset"])).unwrap()
}

/// The agent's count of pods that the node does not see, for a reason.
fn unseen(agent: &Agent, reason: &str) -> f64 {
    agent.metric(&format!("istio_cni_policy_unseen_pods{{reason=\"{reason}\"}}")).unwrap()
}

#[test]
fn policies_are_enforced_where_the_pods_packets_are_seen() {
    let mut setup = Setup::new();
    setup
        .mesh
        .host
        .ip(&[
            "link add br0 type bridge",
            "address add 10.2.0.1/24 dev br0",
            "link set br0 up",
            "link add up0 type veth peer name up1",
            "link set up0 up",
            "link set up1 up",
        ])
        .unwrap();
    for setting in ["iptables", "ip6tables"] {
        setup.mesh.host.set_sysctl(&format!("net.bridge.bridge-nf-call-{setting}"), "0").unwrap();
    }
    let veth = |name: &'static str, more: Vec<String>| {
        move |path: &str| {
            let mut commands = vec![
                format!("link add {name} type veth peer name eth0 netns {path}"),
                format!("link set {name} up"),
            ];
            commands.extend(more.iter().cloned());
            commands
        }
    };
    let route = |name: &str, address: &str| {
        vec![format!("address add 10.1.0.1/32 dev {name}"), format!("route add {address} dev {name}")]
    };
    let port = |name: &str| vec![format!("link set {name} master br0")];
    let direct =
        |path: &str| vec![format!("link add link up0 name eth0 netns {path} type macvlan mode bridge")];
    let [a, b] = [("pod-a", "10.1.0.2"), ("pod-b", "10.1.0.3")].map(|(name, address)| {
        let pod = setup.pod(name, address, veth(name, route(name, address)), "");
        pod.ns
            .ip(&[
                "address flush dev eth0",
                &format!("address add {address}/32 dev eth0"),
                "route add 10.1.0.1 dev eth0",
                "route add default via 10.1.0.1",
            ])
            .unwrap();
        pod
    });
    let [c, d] = [("pod-c", "10.2.0.2"), ("pod-d", "10.2.0.3")]
        .map(|(name, address)| setup.pod(name, address, veth(name, port(name)), "10.2.0.1"));
    let [e, f] = [("pod-e", "10.3.0.2"), ("pod-f", "10.3.0.3")]
        .map(|(name, address)| setup.pod(name, address, direct, ""));
    // Another network, as of a second interface that a cluster's policies are not about.
    let paths = [&e, &f].map(|pod| pod.ns.path().display().to_string());
    let beside = format!("link add net1 netns {} type veth peer name net1 netns {}", paths[0], paths[1]);
    setup.mesh.host.ip(&[beside]).unwrap();
    for (pod, address) in [(&e, "10.9.0.2"), (&f, "10.9.0.3")] {
        pod.ns.ip(&[format!("address add {address}/24 dev net1"), "link set net1 up".to_owned()]).unwrap();
    }
    let pairs = [(&a, &b), (&c, &d), (&e, &f)];
    until(
        "the pods reach one another",
        PATIENCE,
        || pairs.iter().all(|(from, to)| reaches(&from.ns, to)),
        String::new,
    )
    .unwrap();
    let agent = setup.agent();
    let state = || {
        let reached = pairs.map(|(from, to)| reaches(&from.ns, to));
        (
            reached,
            [&a, &b, &c, &d, &e, &f].map(has_own_rules),
            unseen(&agent, "bridge"),
            unseen(&agent, "no_pair"),
        )
    };
    let bridged = ([false; 3], [false, false, true, true, true, true], 2.0, 2.0);
    until("each is isolated where it can be", PATIENCE, || state() == bridged, || format!("{:?}", state()))
        .unwrap();
    assert!(reaches(&setup.mesh.host, &b) && reaches(&setup.mesh.host, &d), "the own node's probes");
    let beside = Flow::from(&e.ns)
        .patience(Duration::from_millis(200))
        .tcp(format!("10.9.0.3:{PORT}").parse().unwrap());
    assert_eq!(beside.unwrap().port(), Some(PORT), "another network: {}", rules(&f.ns));
    let (exit, status, error) = cnictl(&setup.mesh, "policy status -o json").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap_or_else(|cause| panic!("{cause}: {error}"));
    let placed: Vec<Value> = status["placed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| json!([one["pod"], one["point"], one["unseen"]]))
        .collect();
    let wanted = [
        ["default/pod-a", "node", ""],
        ["default/pod-b", "node", ""],
        ["default/pod-c", "pod", "bridge"],
        ["default/pod-d", "pod", "bridge"],
        ["default/pod-e", "pod", "no_pair"],
        ["default/pod-f", "pod", "no_pair"],
    ];
    assert_eq!((exit, json!(placed)), (Some(0), json!(wanted)), "{status:#}");
    let (_, text, _) = cnictl(&setup.mesh, "policy status").unwrap();
    let why =
        "packets between ports of bridge br0 pass no rules; set net.bridge.bridge-nf-call-iptables to 1";
    let is_told = |line: &str| line.starts_with("default/pod-c ") && line.ends_with(why);
    assert!(text.lines().any(is_told) && !text.contains("default/pod-a"), "{text}");
    let entry = rules(&setup.mesh.host);
    assert!(entry.contains("\"pod-a\" : jump") && !entry.contains("\"pod-c\" : jump"), "{entry}");
    // The bridge shows the node what its ports send to one another: the pods' own rules go, and those of the node are there.
    setup.mesh.host.ip(&["link set br0 type bridge nf_call_iptables 1 nf_call_ip6tables 1"]).unwrap();
    let seen = ([false; 3], [false, false, false, false, true, true], 0.0, 2.0);
    until("the node judges what its bridge shows", PATIENCE, || state() == seen, || format!("{:?}", state()))
        .unwrap();
    // The next agent changes nothing until it has tested the pods, and then nothing that is right.
    agent.stop().unwrap();
    let agent = setup.agent();
    for _ in 0..5 {
        assert_eq!(pairs.map(|(from, to)| reaches(&from.ns, to)), [false; 3]);
    }
    until("the pods are tested", PATIENCE, || unseen(&agent, "no_pair") == 2.0, String::new).unwrap();
    assert!(has_own_rules(&f) && !has_own_rules(&d));
}

/// Sends datagrams from each of the addresses to 198.51.100.9: as frames, which pass no rule of the pod, and by sockets where the address can be had.
const SENDER: &str = "
import socket, struct, sys
gateway, port = bytes.fromhex(sys.argv[1].replace(':', '')), int(sys.argv[2])
to = socket.inet_aton('198.51.100.9')
for name in sys.argv[3:]:
    ip = bytearray(struct.pack('!BBHHHBBH4s4s', 69, 0, 29, 7, 0, 64, 17, 0, socket.inet_aton(name), to))
    total = sum(struct.unpack('!10H', ip))
    total = (total & 65535) + (total >> 16)
    ip[10:12] = struct.pack('!H', ~(total + (total >> 16)) & 65535)
    packet = bytes(ip) + struct.pack('!HHHH', 4000, port, 9, 0) + b'x'
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    raw.sendto(packet, ('eth0', 0x800, 0, 0, gateway))
    plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plain.setsockopt(socket.IPPROTO_IP, 19, 1)
    plain.bind((name, 0))
    try: plain.sendto(b'y', ('198.51.100.9', port))
    except OSError: pass
";

/// A pod may have every capability in its own namespace: at the node nothing of it gets through, whoever it says that it is.
#[test]
fn no_capability_gets_a_pod_past_the_nodes_rules() {
    at_once(["true", "false"], |native| {
        let mut setup = Setup::new();
        let outside = TestNetns::new().unwrap();
        let path = outside.path().display().to_string();
        let host = &setup.mesh.host;
        host.ip(&[
            format!("link add out type veth peer name eth0 netns {path}"),
            "address add 198.51.100.1/24 dev out".to_owned(),
            "link set out up".to_owned(),
        ])
        .unwrap();
        let up = [
            "address add 198.51.100.9/24 dev eth0",
            "link set eth0 up",
            "route add default via 198.51.100.1",
        ];
        outside.ip(&up).unwrap();
        let arrived = Listeners::start(&outside, [Listener::udp(PORT)]).unwrap();
        let attach = |name: &'static str, address: &'static str| {
            move |path: &str| {
                vec![
                    format!("link add {name} type veth peer name eth0 netns {path}"),
                    format!("link set {name} up"),
                    format!("address add 10.1.0.1/32 dev {name}"),
                    format!("route add {address} dev {name}"),
                ]
            }
        };
        let [pod, _neighbour] = [("weak", "10.1.0.2"), ("other", "10.1.0.3")].map(|(name, address)| {
            let pod = setup.pod(name, address, attach(name, address), "");
            pod.ns.ip(&["route add 10.1.0.1 dev eth0", "route add default via 10.1.0.1"]).unwrap();
            pod
        });
        let links = setup.mesh.host.run(Command::new("ip").args(["-j", "link", "show", "weak"])).unwrap();
        let links: Value = serde_json::from_str(&links).unwrap();
        let gateway = links[0]["address"].as_str().unwrap().to_owned();
        // Its own address, its neighbour's, the node's, one that nobody has.
        let claimed = ["10.1.0.2", "10.1.0.3", "10.1.0.1", "203.0.113.5"];
        pod.ns
            .ip(&claimed[1..].iter().map(|one| format!("address add {one}/32 dev eth0")).collect::<Vec<_>>())
            .unwrap();
        let send = || {
            drop(arrived.take_records());
            let args = ["-c", SENDER, &gateway, &PORT.to_string()];
            pod.ns.run(Command::new("python3").args(args).args(claimed)).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            let from = arrived.take_records();
            from.iter().map(|record| record.arrival.peer.ip().to_string()).collect::<Vec<_>>()
        };
        // Nobody is believed to be the node itself, without rules either.
        assert_eq!(send().len(), 2 * (claimed.len() - 1), "without policies all others arrive");
        let sealed = json!({"metadata": {"namespace": "default", "name": "sealed"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"]}});
        setup.mesh.node.api.set_object(Resource::NetworkPolicies, sealed);
        let agent = setup.agent_by(native);
        let is_sealed = || send().is_empty();
        until("nothing gets out", PATIENCE, is_sealed, || format!("{:?} {}", send(), agent.log().text()))
            .unwrap();
        // With NET_ADMIN it removes whatever may be in its namespace.
        pod.ns.run(Command::new("nft").args(["flush", "ruleset"])).unwrap();
        for _ in 0..3 {
            assert_eq!(send(), Vec::<String>::new(), "{native}: {}", rules(&setup.mesh.host));
        }
        assert!(!has_own_rules(&pod), "it is the node that judges it");
        // Where its policies let it out again it speaks for itself only.
        setup.mesh.node.api.delete_object(Resource::NetworkPolicies, "default", "sealed");
        let speaks = || {
            let from = send();
            !from.is_empty() && from.iter().all(|one| one == "10.1.0.2")
        };
        until("it speaks for itself", PATIENCE, speaks, || format!("{:?}", send())).unwrap();
    });
}
