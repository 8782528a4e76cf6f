//! Connections of applications.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testkit::MeshPod;
use ztunnel_tests::traffic::{Echo, Talk, say};
use ztunnel_tests::{HBONE, Peer, Proxies, Sniffer, Town};

use crate::{APP, app, wait_connected, wait_in, wait_no_proxy, wait_proxy};

/// What must not be seen on a wire.
const SECRET: &str = "the-quick-brown-secret-of-this-mesh";
/// Nothing here takes as long.
const LONGEST: Duration = Duration::from_secs(30);
/// How near to the signal a connection may fail with the real ztunnel: in about one run of four, one that begins at that moment goes into a
/// tunnel that the old one ends with a GOAWAY just then, and the new one does not try again. It is ztunnel's affair with itself; no rule
/// and no message of the agent's has a part in it.
const GOAWAY: Duration = Duration::from_millis(100);

#[test]
fn pods_of_the_mesh_reach_each_other_through_tunnels() {
    through_tunnels("true");
}

#[test]
fn and_so_they_do_with_iptables() {
    through_tunnels("false");
}

fn through_tunnels(native_nftables: &str) {
    let town = Town::new().unwrap();
    let _agent = town.mesh.agent().env("NATIVE_NFTABLES", native_nftables).ready().unwrap();
    let (web, shop) = (town.running("mesh", "web").unwrap(), town.running("mesh", "shop").unwrap());
    let stranger = town.running("default", "stranger").unwrap();
    let peer = Peer::start(&town, &[&web, &shop, &stranger]).unwrap();
    wait_in(&town, &peer, &[&web, &shop]);
    let nft = web.netns.run(Command::new("nft").args(["list", "tables"])).unwrap();
    assert_eq!(nft.contains("istio-ambient-nat"), native_nftables == "true", "{nft}");
    let _apps = [&web, &shop, &stranger].map(|pod| Echo::start(&pod.netns, APP).unwrap());
    let sniffer = Sniffer::start(&town.mesh.host).unwrap();
    // The sniffer sees what it should: two pods outside the mesh would look like this.
    assert_eq!(say(&town.mesh.host, app(&stranger), "from the node").unwrap().to_string(), "169.254.1.1");
    assert!(sniffer.has_seen(b"from the node"));
    for (from, to) in [(&web, &shop), (&shop, &web)] {
        let before = sniffer.with_data(HBONE);
        assert_eq!(say(&from.netns, app(to), SECRET).unwrap(), from.ip, "the application sees its client");
        assert!(sniffer.with_data(HBONE) > before, "{} to {}: not by a tunnel", from.name, to.name);
        assert_eq!(sniffer.with_data(APP), 2, "only what the node said went to an application's port");
    }
    if Peer::is_real() {
        assert!(!sniffer.has_seen(SECRET.as_bytes()), "in clear on the wire");
    } else {
        println!("not shown by the stand-in: that tunnels are encrypted");
        assert!(sniffer.has_seen(SECRET.as_bytes()), "the sniffer would not see it");
    }
    drop(sniffer);
    // The world outside the mesh, both ways, and a pod's own address.
    assert_eq!(say(&stranger.netns, app(&shop), "from outside").unwrap(), stranger.ip);
    assert_eq!(say(&shop.netns, app(&stranger), "to outside").unwrap(), shop.ip);
    assert_eq!(say(&shop.netns, app(&shop), "to itself").unwrap(), shop.ip);
    // kubelet's probe.
    assert_eq!(say(&town.mesh.host, app(&shop), "alive?").unwrap().to_string(), "169.254.7.127");
    peer.check().unwrap();
}

/// What connections came to during a scene.
#[derive(Default)]
struct Heard {
    count: usize,
    /// When the connection began, and what became of it.
    failures: Vec<(Instant, String)>,
}

/// Tells a thread to end, also when the scene fails.
pub(crate) struct Until<'a>(pub(crate) &'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Opens connections both ways until it is told to end.
fn keep_talking(pods: [&MeshPod; 2], end: &AtomicBool) -> Heard {
    let mut heard = Heard::default();
    let start = Instant::now();
    while !end.load(Ordering::SeqCst) && start.elapsed() < LONGEST {
        for (from, to) in [(pods[0], pods[1]), (pods[1], pods[0])] {
            let at = Instant::now();
            heard.count += 1;
            match say(&from.netns, app(to), SECRET) {
                Ok(address) if address == from.ip => {}
                Ok(address) => heard.failures.push((at, format!("{} is seen as {address}", from.name))),
                Err(error) => {
                    heard.failures.push((at, format!("{} to {}: {error:#}", from.name, to.name)));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    heard
}

/// A new ztunnel comes, then the old one goes. Connections of the old one go on, and new ones find the new one.
#[test]
fn a_rolling_restart_of_ztunnel() {
    let town = Town::new().unwrap();
    let agent = town.mesh.start().unwrap();
    let (web, shop) = (town.running("mesh", "web").unwrap(), town.running("mesh", "shop").unwrap());
    let (late, gone) = (town.sandbox("mesh", "late").unwrap(), town.running("mesh", "gone").unwrap());
    let everybody = [&web, &shop, &late, &gone];
    let mut old = Peer::start(&town, &everybody).unwrap();
    wait_in(&town, &old, &[&web, &shop, &gone]);
    let _apps = [&web, &shop, &late].map(|pod| Echo::start(&pod.netns, APP).unwrap());
    let sniffer = Sniffer::start(&town.mesh.host).unwrap();
    let mut talk = Talk::start(&web.netns, app(&shop)).unwrap();
    talk.say("by the old one").unwrap();
    let end = AtomicBool::new(false);
    let (heard, drained, new) = std::thread::scope(|scope| {
        let until = Until(&end);
        let talking = scope.spawn(|| keep_talking([&web, &shop], &end));
        std::thread::sleep(Duration::from_millis(300));
        let new = Peer::start(&town, &everybody).unwrap();
        wait_connected(&agent, 2.0);
        new.wait_ready(true).unwrap();
        // Who comes now is the new one's; who goes is both's.
        town.mesh.node.api.set_pod(late.object(&[], false));
        assert_eq!(town.mesh.announce(&late).unwrap().status, 200, "{}", agent.log().text());
        town.mesh.delete(&gone).unwrap();
        wait_proxy(&late.netns, &new);
        wait_no_proxy(&gone.netns);
        assert_eq!(old.proxies().unwrap(), Proxies { started: 3, stopped: 1 });
        assert_eq!(new.proxies().unwrap(), Proxies { started: 4, stopped: 1 });
        old.check().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let drained = Instant::now();
        old.drain().unwrap();
        wait_connected(&agent, 1.0);
        std::thread::sleep(Duration::from_millis(1500));
        talk.say("still by the old one").unwrap();
        drop(talk);
        old.wait_end(LONGEST).unwrap();
        for pod in [&web, &shop, &late] {
            wait_proxy(&pod.netns, &new);
        }
        assert_eq!(say(&web.netns, app(&late), SECRET).unwrap(), web.ip);
        std::thread::sleep(Duration::from_millis(300));
        drop(until);
        (talking.join().unwrap(), drained, new)
    });
    new.check().unwrap();
    println!("{} connections during the rolling restart, {} failed", heard.count, heard.failures.len());
    assert!(heard.count > 50, "{}", heard.count);
    let excused = |at: Instant| Peer::is_real() && at + GOAWAY >= drained && at <= drained + GOAWAY;
    let failures: Vec<_> = heard.failures.iter().filter(|(at, _)| !excused(*at)).collect();
    assert!(failures.is_empty(), "{failures:#?}\n{}\n=== the new one\n{}", old.log(), new.log());
    assert!(heard.failures.len() <= 2, "{:#?}", heard.failures);
    assert!(sniffer.with_data(HBONE) > 0);
    assert_eq!(sniffer.with_data(APP), 0, "something went past the tunnels");
    if Peer::is_real() {
        assert!(!sniffer.has_seen(SECRET.as_bytes()), "in clear on the wire");
    }
}
