use std::process::Command;

use kernel::pair::PodInterface;
use netns::Netns;
use testkit::TestNetns;

use super::*;

struct Setup {
    node: TestNetns,
    pod: TestNetns,
}

impl Setup {
    fn new() -> Self {
        let (node, pod) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
        let path = pod.path().display();
        node.ip(&[format!("link add veth0 type veth peer name eth0 netns {path}")]).unwrap();
        node.ip(&["address add 10.1.0.1/24 dev veth0", "link set veth0 up"]).unwrap();
        let inside =
            ["address add 10.1.0.2/24 dev eth0", "link set eth0 up", "route add default via 10.1.0.1"];
        pod.ip(&inside).unwrap();
        Self { node, pod }
    }

    fn agent(&self) -> EntryPoint {
        let path = self.node.path().to_owned();
        EntryPoint::new(Box::new(move || Host::open(&path)), Arc::new(Notify::new()))
    }

    fn at(&self) -> AttachedPod {
        AttachedPod {
            pod: LocalName { namespace: "shop".into(), name: "web".into() },
            netns: Arc::new(Netns::open(self.pod.path()).unwrap()),
            interface: PodInterface::Named("eth0".to_owned()),
            addresses: vec!["10.1.0.2".parse().unwrap()],
            is_starting: false,
        }
    }

    fn has_table(&self) -> bool {
        self.node.nft_text().unwrap().contains("table inet istio-policy-")
    }
}

#[test]
fn what_was_taken_over_and_cleared_is_made_again_only_when_a_pod_is_looked_at() {
    let setup = Setup::new();
    let mut earlier = setup.agent();
    assert_eq!(earlier.look(&setup.at()), NodeSight::Seen);
    drop(earlier);
    assert!(setup.has_table());
    let mut agent = setup.agent();
    assert_eq!(agent.look(&setup.at()), NodeSight::Seen);
    assert!(agent.taken_over.is_some(), "what was left of the earlier agent stays until all is tested");
    agent.clear().unwrap();
    assert!(!setup.has_table());
    // Policies are off: no comparison makes it again.
    for look in [PointLook::Disturbed, PointLook::Everything] {
        for are_tested in [false, true] {
            assert!(!agent.verify(look, are_tested).unwrap());
            assert!(!setup.has_table(), "{look:?} {are_tested}");
        }
    }
    // They come back.
    assert_eq!(agent.look(&setup.at()), NodeSight::Seen);
    assert!(setup.has_table() && agent.taken_over.is_none());
    let text = setup.node.nft_text().unwrap();
    assert!(text.contains("10.1.0.2"), "{text}");
    // Somebody removes it: that is seen and put right.
    setup.node.run(Command::new("nft").args(["flush", "ruleset"])).unwrap();
    assert!(agent.verify(PointLook::Everything, true).unwrap() && setup.has_table());
}
