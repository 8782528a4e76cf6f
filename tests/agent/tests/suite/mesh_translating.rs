//! Pods that translate destinations of what comes in themselves, such as a gateway with a second address: that works whoever came first, and nothing
//! else comes past ztunnel by it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{PATIENCE, PodCall, TestNetns, eventually};

use crate::mesh_render::cnictl;

const ZTUNNEL: u16 = 15006;
const APP: u16 = 8080;
const LABELS: [(&str, &str); 1] = [(MODE, "ambient")];
/// What the pod translates: of its second address, which is on no interface by which anything comes; and of its own, which it must not get.
const TRANSLATIONS: [&str; 2] = [
    "PREROUTING -d 100.64.0.5 -p tcp --dport 443 -j DNAT --to-destination 10.99.0.2:8080",
    "PREROUTING -d 10.99.0.2 -p tcp --dport 9090 -j REDIRECT --to-ports 8080",
];

/// A pod with a neighbour that reaches both of its addresses, and who listens in it.
struct Gateway {
    pod: MeshPod,
    world: TestNetns,
    _listeners: Listeners,
}

impl Gateway {
    fn new(pod: MeshPod) -> Self {
        let world = TestNetns::new().unwrap();
        let lines = [
            &format!("link add in0 type veth peer name w0 netns {}", world.path().display()),
            "address add 10.99.0.2/24 dev in0",
            "link set in0 up",
            "address add 100.64.0.5/32 dev lo",
        ];
        pod.netns.ip(&lines).unwrap();
        let lines =
            ["address add 10.99.0.1/24 dev w0", "link set w0 up", "route add 100.64.0.5 via 10.99.0.2"];
        world.ip(&lines).unwrap();
        let listeners = Listeners::start(&pod.netns, [ZTUNNEL, APP].map(Listener::tcp)).unwrap();
        Self { pod, world, _listeners: listeners }
    }

    fn translate(&self, how: &str) {
        for rule in TRANSLATIONS {
            let words = format!("-t nat {how} {rule}");
            self.pod.netns.run(Command::new("iptables-nft").args(words.split(' '))).unwrap();
        }
    }

    /// Deletes rules of ours.
    fn delete_ours(&self, nft: &str) {
        let words = match nft {
            "true" => "nft delete table inet istio-ambient-nat",
            _ => "iptables-nft -t nat -F ISTIO_PRERT",
        };
        let mut words = words.split(' ');
        let mut program = Command::new(words.next().unwrap());
        self.pod.netns.run(program.args(words)).unwrap();
    }

    /// The port that a connection comes to.
    fn reached(&self, to: &str) -> Result<Option<u16>> {
        let to: SocketAddr = to.parse()?;
        Ok(Flow::from(&self.world).patience(PATIENCE).tcp(to)?.port())
    }

    /// The pod's own translation works, and everything else is captured.
    fn is_captured_but_for_its_own(&self) -> Result<()> {
        for (to, port) in [
            ("100.64.0.5:443", APP),
            ("100.64.0.5:80", ZTUNNEL),
            ("10.99.0.2:8080", ZTUNNEL),
            ("10.99.0.2:9090", ZTUNNEL),
        ] {
            let reached = self.reached(to)?;
            ensure!(reached == Some(port), "{to} comes to {reached:?}");
        }
        Ok(())
    }

    /// Whether its rules capture in two steps.
    fn has_two_steps(&self) -> bool {
        self.pod.netns.nft_text().unwrap().to_lowercase().replace('_', "-").contains("prerouting-late")
    }
}

/// Asks the agent to look at both pods now, until they are verified. From then on it hears of changes.
fn verify(mesh: &Mesh) {
    eventually("both pods are verified", PATIENCE, || {
        let (exit, text, error) = cnictl(mesh, "verify -A")?;
        ensure!(exit == Some(0) && text.matches(" verified ").count() == 2, "{text}{error}");
        Ok(())
    })
    .unwrap();
}

/// The plugin's CHECK and cnictl find the gateway's rules and those of another pod as planned.
fn others_say_so(mesh: &Mesh, gateway: &Gateway, other: &Gateway) {
    for Gateway { pod, .. } in [gateway, other] {
        let MeshPod { name, uid, netns, .. } = pod;
        let answer = PodCall::with(mesh.node.entry().unwrap(), name, uid, netns.path()).run("CHECK").unwrap();
        assert_eq!(answer.exit, Some(0), "{}", answer.stderr);
        let (exit, text, error) = cnictl(mesh, &format!("diff default/{name}")).unwrap();
        assert_eq!(exit, Some(0), "{text}{error}");
    }
    for (to, end) in [("100.64.0.5:443", "8080"), ("100.64.0.5:80", "captured by the proxy at 15006")] {
        let (_, text, error) = cnictl(
            mesh,
            &format!(
                "explain --live default/{} --in --interface in0 --from 10.99.0.1 --to {to}",
                gateway.pod.name
            ),
        )
        .unwrap();
        assert!(text.contains(end), "{to}: {text}{error}");
    }
}

fn works_whoever_came_first(nft: &str) {
    let mesh = Mesh::new().unwrap();
    // Longer than the test: nothing is found because its turn came.
    let start = || mesh.agent().env("NATIVE_NFTABLES", nft).env("VERIFY_INTERVAL", "60s").ready().unwrap();
    let agent = start();
    let ztunnel = mesh.ztunnel().unwrap();

    let running = Gateway::new(mesh.running("default", "running", &[]).unwrap());
    running.translate("-A");
    mesh.node.api.set_pod(running.pod.object(&LABELS, true));
    mesh.wait_annotation(&running.pod, Some("enabled")).unwrap();
    running.is_captured_but_for_its_own().unwrap();

    let pod = mesh.sandbox("default", "new").unwrap();
    mesh.node.api.set_pod(pod.object(&LABELS, false));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    mesh.run(&pod).unwrap();
    let new = Gateway::new(pod);
    assert!(!new.has_two_steps(), "a pod without translations has the usual rules");
    assert_eq!(new.reached("100.64.0.5:443").unwrap(), Some(ZTUNNEL));
    verify(&mesh);
    new.translate("-A");
    let began = Instant::now();
    eventually("the translation works", PATIENCE, || {
        ensure!(new.reached("100.64.0.5:443")? == Some(APP));
        Ok(())
    })
    .unwrap();
    println!("the pod's own translation works after {:?}", began.elapsed());
    if nft == "false" {
        // Before programs of iptables have loaded another plan.
        agent.log().wait_for(&["its rules come first", "pod=default/new"], PATIENCE).unwrap();
    }
    eventually("the new pod's rules follow", PATIENCE, || {
        new.is_captured_but_for_its_own()?;
        ensure!(new.has_two_steps());
        Ok(())
    })
    .unwrap();
    // Nobody changed rules of ours.
    assert!(!agent.log().text().contains("the rules of a pod differed"), "{}", agent.log().text());

    running.delete_ours(nft);
    eventually("what was deleted is back", PATIENCE, || running.is_captured_but_for_its_own()).unwrap();
    assert!(running.has_two_steps());

    // Somebody deletes rules of ours at the same time: they come back as the usual ones, and that is no fight.
    new.translate("-D");
    new.delete_ours(nft);
    eventually("the usual rules are back", PATIENCE, || {
        ensure!(!new.has_two_steps());
        ensure!(new.reached("100.64.0.5:443")? == Some(ZTUNNEL));
        Ok(())
    })
    .unwrap();
    assert!(running.has_two_steps());
    verify(&mesh);
    assert!(!agent.log().text().contains("differ again"), "{}", agent.log().text());

    drop((agent, ztunnel));
    let agent = start();
    let _ztunnel = mesh.ztunnel().unwrap();
    // Its predecessor's pods were looked at before it was ready.
    assert!(!agent.log().text().contains("differed"), "{}", agent.log().text());
    running.is_captured_but_for_its_own().unwrap();
    assert!(!new.has_two_steps());
    others_say_so(&mesh, &running, &new);
}

#[test]
fn a_pods_own_translation_works_whoever_came_first_with_nf_tables() {
    works_whoever_came_first("true");
}

#[test]
fn a_pods_own_translation_works_whoever_came_first_with_iptables() {
    works_whoever_came_first("false");
}
