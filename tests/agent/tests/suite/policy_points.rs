//! Where policies are enforced: in the node's namespace for pods whose packets it sees, in the pod's own for others, by tests with real packets.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Agent, PATIENCE, PodObject, TestNetns, until};

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
        let agent = self.mesh.agent().env("AMBIENT_ENABLED", "false");
        agent.env("NATIVE_NFTABLES", "true").env("POLICY_ENFORCEMENT", "on").ready().unwrap()
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
