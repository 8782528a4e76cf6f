//! An address that one pod has after another: what the first was allowed the second is not, from its first packet on. `REUSE_ROUNDS` makes it long:
//! `make soak PART=storm`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{NODE_NAME, PodCall, PodObject, wires};

const ROUNDS: usize = 8;
const PORT: u16 = 8080;
/// A packet that is dropped costs the whole of it.
const PATIENCE: Duration = Duration::from_millis(100);

/// A server that only friends may reach.
struct Shop {
    mesh: Mesh,
    server: MeshPod,
    arrived: Listeners,
}

impl Shop {
    fn new() -> Result<Self> {
        let mesh = Mesh::new()?;
        let policy = json!({"metadata": {"namespace": "default", "name": "friends"}, "spec": {
            "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}});
        mesh.node.api.set_object(Resource::NetworkPolicies, policy);
        mesh.host.set_sysctl("net.ipv4.ip_forward", "1")?;
        let server = mesh.running("default", "server", &[("app", "server")])?;
        wires::connect_pod(&mesh, &server, "server")?;
        let arrived = Listeners::start(&server.netns, [Listener::tcp(PORT), Listener::udp(PORT)])?;
        Ok(Self { mesh, server, arrived })
    }

    fn object(pod: &MeshPod, role: &str) -> PodObject {
        PodObject::named(&pod.name).uid(&pod.uid).label("role", role).on_node(NODE_NAME).container("app")
    }

    /// A pod starts with an address, or with one of its own, and talks to the server at once; gives how many packets arrive.
    fn start(&self, number: usize, role: &str, ip: Option<IpAddr>) -> Result<(MeshPod, PodCall, usize)> {
        let mut pod = self.mesh.sandbox("default", &format!("{role}-{number}"))?;
        pod.ip = ip.unwrap_or(pod.ip);
        wires::connect_pod(&self.mesh, &pod, &format!("{role}{number}"))?;
        self.mesh.node.api.set_pod(Self::object(&pod, role));
        let socket = pod.netns.enter(|_| UdpSocket::bind(("0.0.0.0", 0)))??;
        let call = PodCall::new(&self.mesh.node, &pod.name, &pod.uid, pod.netns.path())?.at(pod.ip);
        drop(self.arrived.take_records());
        call.add()?;
        let to = SocketAddr::new(self.server.ip, PORT);
        socket.send_to(b"x", to)?;
        Flow::from(&pod.netns).patience(PATIENCE).tcp(to)?;
        Ok((pod, call, self.arrived.take_records().len()))
    }

    /// A pod's end: a Job that has run, or a pod that is deleted.
    fn end(&self, pod: &MeshPod, call: &PodCall, link: &str, is_job: bool) -> Result<()> {
        if is_job {
            let finished = Self::object(pod, "friend").running(&[pod.ip]).with("/status/phase", "Succeeded");
            self.mesh.node.api.set_pod(finished);
        } else {
            self.mesh.node.api.delete_pod(&pod.namespace, &pod.name);
        }
        let end = call.run("DEL")?;
        ensure!(end.exit == Some(0), "{end:#?}");
        self.mesh.host.ip(&[format!("link delete {link}")])?;
        self.mesh.stop(pod)
    }
}

#[test]
fn who_gets_an_address_next_has_none_of_its_rights() {
    let rounds = std::env::var("REUSE_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let shop = Shop::new().unwrap();
    let agent =
        shop.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on").ready().unwrap();
    let mut longest = Duration::ZERO;
    for number in 0..rounds {
        let (friend, call, arrived) = shop.start(number, "friend", None).unwrap();
        assert_eq!(arrived, 2, "round {number}: a friend is known before it runs\n{}", agent.log().text());
        shop.end(&friend, &call, &format!("friend{number}"), number.is_multiple_of(2)).unwrap();
        let released = Instant::now();
        let (next, call, arrived) = shop.start(number, "next", Some(friend.ip)).unwrap();
        longest = longest.max(released.elapsed());
        assert_eq!(arrived, 0, "round {number}: it has the address's rights\n{}", agent.log().text());
        shop.end(&next, &call, &format!("next{number}"), false).unwrap();
    }
    println!("{rounds} addresses that another pod had next, all within {longest:?}");
}
