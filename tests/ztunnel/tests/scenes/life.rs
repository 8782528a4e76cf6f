//! A proxy's life: from the enrolment of its pod to the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use testkit::ztunnel::{Answer, Script, Ztunnel};
use testkit::{PATIENCE, eventually};
use ztunnel_tests::traffic::{Echo, Talk, say};
use ztunnel_tests::{HBONE, Peer, Proxies, Town, listening};

use crate::{APP, app, wait_connected, wait_in, wait_no_proxy, wait_proxy};

#[test]
fn a_pod_that_is_announced_has_its_proxy_before_it_runs() {
    let town = Town::new().unwrap();
    let agent = town.mesh.start().unwrap();
    let pod = town.sandbox("mesh", "web").unwrap();
    let peer = Peer::start(&town, &[&pod]).unwrap();
    peer.wait_ready(true).unwrap();
    assert_eq!(agent.metric("ztunnel_connected").unwrap(), 1.0);
    assert!(listening(&pod.netns).unwrap().is_empty());
    town.mesh.node.api.set_pod(pod.object(&[], false));
    let reply = town.mesh.announce(&pod).unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{}", agent.log().text());
    wait_in(&town, &peer, &[&pod]);
    assert_eq!(peer.proxies().unwrap(), Proxies { started: 1, stopped: 0 });
    // The same again is nothing new.
    assert_eq!(town.mesh.announce(&pod).unwrap().status, 200);
    assert_eq!(peer.proxies().unwrap(), Proxies { started: 1, stopped: 0 });
    peer.check().unwrap();
}

/// However the agent ends, proxies and connections go on, and the next agent's snapshot changes nothing.
#[test]
fn a_restart_of_the_agent_closes_no_listener() {
    let town = Town::new().unwrap();
    let mut agent = town.mesh.start().unwrap();
    let (web, shop) = (town.running("mesh", "web").unwrap(), town.running("mesh", "shop").unwrap());
    let peer = Peer::start(&town, &[&web, &shop]).unwrap();
    wait_in(&town, &peer, &[&web, &shop]);
    let _app = Echo::start(&shop.netns, APP).unwrap();
    let mut talk = Talk::start(&web.netns, app(&shop)).unwrap();
    assert_eq!(talk.say("before").unwrap(), web.ip);
    let before = [&web, &shop].map(|pod| listening(&pod.netns).unwrap());
    let proxies = peer.proxies().unwrap();
    assert_eq!(proxies, Proxies { started: 2, stopped: 0 });
    for killed in [false, true] {
        drop(if killed { agent.kill().unwrap() } else { agent.stop().unwrap() });
        peer.wait_ready(false).unwrap();
        assert_eq!(talk.say("during").unwrap(), web.ip);
        assert_eq!(say(&web.netns, app(&shop), "new during").unwrap(), web.ip);
        agent = town.mesh.start().unwrap();
        wait_connected(&agent, 1.0);
        peer.wait_ready(true).unwrap();
        assert_eq!([&web, &shop].map(|pod| listening(&pod.netns).unwrap()), before, "killed: {killed}");
        assert_eq!(peer.proxies().unwrap(), proxies, "killed: {killed}");
        assert_eq!(talk.say("after").unwrap(), web.ip);
    }
    peer.check().unwrap();
}

#[test]
fn a_pod_that_is_removed_loses_its_proxy_and_a_new_sandbox_gets_it() {
    let town = Town::new().unwrap();
    let _agent = town.mesh.start().unwrap();
    let gone = town.running("mesh", "gone").unwrap();
    let mut web = town.sandbox("mesh", "web").unwrap();
    let peer = Peer::start(&town, &[&gone, &web]).unwrap();
    peer.wait_ready(true).unwrap();
    town.mesh.node.api.set_pod(web.object(&[], false));
    assert_eq!(town.mesh.announce(&web).unwrap().status, 200);
    wait_in(&town, &peer, &[&gone, &web]);
    town.mesh.delete(&gone).unwrap();
    wait_no_proxy(&gone.netns);
    assert_eq!(peer.proxies().unwrap(), Proxies { started: 2, stopped: 1 });
    // The same pod, another sandbox: the runtime calls the plugin again.
    let old = town.new_sandbox(&mut web).unwrap();
    assert!(!listening(&old).unwrap().is_empty());
    assert_eq!(town.mesh.announce(&web).unwrap().status, 200);
    wait_proxy(&web.netns, &peer);
    wait_no_proxy(&old);
    assert_eq!(peer.proxies().unwrap(), Proxies { started: 3, stopped: 2 });
    peer.wait_ready(true).unwrap();
    peer.check().unwrap();
}

/// A pod that is taken out of the mesh while it runs has no proxy any more and is reached without one.
#[test]
fn a_pod_that_leaves_the_mesh_goes_on_without() {
    let town = Town::new().unwrap();
    let _agent = town.mesh.start().unwrap();
    let (web, shop) = (town.running("mesh", "web").unwrap(), town.running("mesh", "shop").unwrap());
    let peer = Peer::start(&town, &[&web, &shop]).unwrap();
    wait_in(&town, &peer, &[&web, &shop]);
    town.mesh.node.api.set_pod(shop.object(&[(testkit::mesh::MODE, "none")], true));
    town.mesh.wait_annotation(&shop, None).unwrap();
    wait_no_proxy(&shop.netns);
    assert!(shop.is_clean().unwrap());
    let _app = Echo::start(&web.netns, APP).unwrap();
    assert_eq!(say(&shop.netns, app(&web), "in clear").unwrap(), shop.ip);
    peer.check().unwrap();
}

/// Ztunnel's refusal is an ADD that fails, of which nothing is left, and passes for a running pod when its cause does.
#[test]
fn a_port_that_is_taken_makes_the_pod_wait() {
    let town = Town::new().unwrap();
    let agent = town.mesh.start().unwrap();
    let pod = town.sandbox("mesh", "web").unwrap();
    let thief = Echo::start(&pod.netns, HBONE).unwrap();
    // The stand-in takes a pod before it tries the ports, so its answer is a script's.
    let real = Peer::is_real().then(|| Peer::start(&town, &[&pod]).unwrap());
    let refuses = Arc::new(AtomicBool::new(true));
    let script = (!Peer::is_real()).then(|| {
        println!("the peer is a script: ZTUNNEL_BIN names no ztunnel");
        let refuses = refuses.clone();
        let answers = Script::answering(move |_| match refuses.load(Ordering::SeqCst) {
            true => Answer::Nack("failure to start proxy : the port is in use".into()),
            false => Answer::Ack,
        });
        Ztunnel::connect(&town.mesh.ztunnel_socket(), answers).unwrap()
    });
    wait_connected(&agent, 1.0);
    town.mesh.node.api.set_pod(pod.object(&[], false));
    let reply = town.mesh.announce(&pod).unwrap();
    assert_eq!(reply.status, 500, "{}", agent.log().text());
    assert!(reply.body.contains("failure to start proxy"), "{reply:?}");
    assert!(pod.is_clean().unwrap(), "{}", agent.log().text());
    town.mesh.wait_annotation(&pod, None).unwrap();
    town.mesh.run(&pod).unwrap();
    town.mesh.node.api.set_pod(pod.object(&[], true));
    eventually("the running pod is refused, too", PATIENCE, || {
        let pending = agent.metric("istio_cni_ambient_pods{state=\"pending\"}")?;
        ensure!(pending == 1.0, "{pending} pods are pending");
        Ok(())
    })
    .unwrap();
    drop(thief);
    refuses.store(false, Ordering::SeqCst);
    town.mesh.wait_annotation(&pod, Some("enabled")).unwrap();
    if let Some(peer) = real {
        wait_proxy(&pod.netns, &peer);
        peer.wait_ready(true).unwrap();
        peer.check().unwrap();
    }
    if let Some(script) = script {
        assert_eq!(script.violations(), Vec::<String>::new());
    }
}

/// A ztunnel that crashes takes the pods' connections with it: nothing goes on in clear, and the next one has every pod again.
#[test]
fn while_there_is_no_ztunnel_nothing_gets_out() {
    let town = Town::new().unwrap();
    let agent = town.mesh.start().unwrap();
    let (web, shop) = (town.running("mesh", "web").unwrap(), town.running("mesh", "shop").unwrap());
    let _app = Echo::start(&shop.netns, APP).unwrap();
    let peer = Peer::start(&town, &[&web, &shop]).unwrap();
    wait_in(&town, &peer, &[&web, &shop]);
    assert_eq!(say(&web.netns, app(&shop), "with").unwrap(), web.ip);
    peer.kill();
    wait_connected(&agent, 0.0);
    let error = say(&web.netns, app(&shop), "without").unwrap_err();
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    let peer = Peer::start(&town, &[&web, &shop]).unwrap();
    for pod in [&web, &shop] {
        wait_proxy(&pod.netns, &peer);
    }
    peer.wait_ready(true).unwrap();
    assert_eq!(say(&web.netns, app(&shop), "again").unwrap(), web.ip);
    assert_eq!(town.mesh.patches(&web), [Some("enabled".to_owned())], "nothing is patched again");
    peer.check().unwrap();
}

/// A node that starts many pods at once, and then a ztunnel that has to take them all from one snapshot.
#[test]
fn many_pods_at_once() {
    const PODS: usize = 40;
    let town = Town::new().unwrap();
    let _agent = town.mesh.start().unwrap();
    let pods: Vec<_> = (0..PODS).map(|n| town.sandbox("mesh", &format!("web-{n}")).unwrap()).collect();
    let everybody: Vec<_> = pods.iter().collect();
    let peer = Peer::start(&town, &everybody).unwrap();
    peer.wait_ready(true).unwrap();
    for pod in &pods {
        town.mesh.node.api.set_pod(pod.object(&[], false));
    }
    let start = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let announce = |pod| {
            let start = Instant::now();
            let reply = town.mesh.announce(pod).unwrap();
            assert_eq!((reply.status, reply.body.as_str()), (200, ""));
            start.elapsed()
        };
        let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || announce(pod))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    times.sort();
    println!(
        "{PODS} announcements: {:?} in all, each {:?} to {:?}",
        start.elapsed(),
        times[0],
        times[PODS - 1]
    );
    wait_in(&town, &peer, &everybody);
    assert_eq!(peer.proxies().unwrap(), Proxies { started: PODS, stopped: 0 });
    peer.check().unwrap();
    peer.kill();
    let start = Instant::now();
    let peer = Peer::start(&town, &everybody).unwrap();
    for pod in &pods {
        wait_proxy(&pod.netns, &peer);
    }
    peer.wait_ready(true).unwrap();
    println!("a new ztunnel has all of them after {:?}", start.elapsed());
    assert_eq!(peer.proxies().unwrap(), Proxies { started: PODS, stopped: 0 });
    peer.check().unwrap();
}
