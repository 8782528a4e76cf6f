//! Ambient mode against what comes at a bad moment: a change of mind while a ztunnel hangs, a pod that leaves while another ztunnel is told of
//! it, programs that are slow, addresses that go from pod to pod.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::ztunnel::{Answer, Request, Script};
use testkit::{PATIENCE, assert_says, eventually};

use crate::mesh::{wait_in, wait_out};

/// ztunnel hangs while it is told that the pod leaves, and the label is there again before that fails: the pod needs its ztunnel.
#[test]
fn a_pod_that_comes_back_while_ztunnel_hangs_is_served_again() {
    let mesh = Mesh::new().unwrap();
    let _agent = mesh.start().unwrap();
    let mut hung = false;
    let script = Script::answering(move |request| match request {
        Request::Del(_) if !std::mem::replace(&mut hung, true) => Answer::Silence,
        _ => Answer::Ack,
    });
    let ztunnel = mesh.ztunnel_that(script.reconnecting()).unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    mesh.node.api.set_namespace("mesh", &[]);
    eventually("ztunnel is told", PATIENCE, || {
        let told = |(_, request): &(Instant, Request)| matches!(request, Request::Del(_));
        ensure!(ztunnel.requests().iter().any(told));
        Ok(())
    })
    .unwrap();
    mesh.node.api.set_namespace("mesh", &[(MODE, "ambient")]);
    eventually("the pod is in again", PATIENCE + Duration::from_secs(5), || {
        ensure!(pod.has_rules()?, "no rules");
        ensure!(ztunnel.workloads().contains_key(&pod.uid), "no ztunnel");
        Ok(())
    })
    .unwrap();
    wait_in(&mesh, &pod).unwrap();
    // The next ztunnel hears of it too.
    drop(ztunnel);
    let next = mesh.ztunnel().unwrap();
    next.wait_snapshot(PATIENCE).unwrap();
    assert!(next.workloads().contains_key(&pod.uid));
}

/// The newest ztunnel ends, the older one is told of its pods one by one, and some of them leave meanwhile.
#[test]
fn a_pod_that_leaves_while_an_older_ztunnel_takes_over_is_not_left_there() {
    let mesh = Mesh::new().unwrap();
    let _agent = mesh.start().unwrap();
    let slow = Script::answering(|request| match request {
        Request::Add { .. } => Answer::Late(Duration::from_millis(200)),
        _ => Answer::Ack,
    });
    let old = mesh.ztunnel_that(slow).unwrap();
    old.wait_snapshot(PATIENCE).unwrap();
    let new = mesh.ztunnel().unwrap();
    new.wait_snapshot(PATIENCE).unwrap();
    let pods: Vec<MeshPod> =
        (0..8).map(|n| mesh.running("mesh", &format!("web-{n}"), &[]).unwrap()).collect();
    for pod in &pods {
        wait_in(&mesh, pod).unwrap();
    }
    assert!(old.workloads().is_empty());
    new.close();
    eventually("the older one is told", PATIENCE, || {
        ensure!(!old.workloads().is_empty());
        Ok(())
    })
    .unwrap();
    for pod in &pods[1..] {
        mesh.delete(pod).unwrap();
    }
    // Longer than all of them take.
    std::thread::sleep(Duration::from_millis(200 * 10));
    eventually("the older one has the pod that is left", PATIENCE, || {
        let left = old.workloads().into_keys().collect::<Vec<_>>();
        ensure!(left == [pods[0].uid.clone()], "{} pods", left.len());
        Ok(())
    })
    .unwrap();
    assert_eq!(old.violations(), Vec::<String>::new());
}

/// Rules that nobody can reach redirect to a ztunnel; without it the pod would have no network.
#[test]
fn a_pod_whose_namespace_is_not_found_keeps_its_ztunnel() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel_that(Script::default().reconnecting()).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    agent.kill().unwrap();
    mesh.stop(&pod).unwrap();
    let agent = mesh.start().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    mesh.node.api.set_namespace("mesh", &[]);
    std::thread::sleep(Duration::from_secs(1));
    assert!(pod.has_rules().unwrap());
    assert!(ztunnel.workloads().contains_key(&pod.uid), "{}", agent.log().text());
    assert_eq!(mesh.annotation(&pod), None, "others must not rely on it");
    mesh.run(&pod).unwrap();
    wait_out(&mesh, &pod).unwrap();
    assert!(ztunnel.workloads().is_empty());
}

/// The agent has no descriptor left when a pod is to leave: its sandbox is not taken for gone, with its rules in it.
#[test]
fn a_sandbox_that_cannot_be_looked_at_is_not_gone() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], true));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    wait_in(&mesh, &pod).unwrap();
    let limit = |number: &str| {
        let status = std::process::Command::new("prlimit")
            .args(["--pid", &agent.pid().to_string(), &format!("--nofile={number}:")])
            .status();
        assert!(status.unwrap().success());
    };
    limit("3");
    mesh.node.api.set_namespace("mesh", &[]);
    std::thread::sleep(Duration::from_secs(1));
    assert!(pod.has_rules().unwrap());
    assert!(ztunnel.workloads().contains_key(&pod.uid), "rules without a ztunnel: {}", agent.log().text());
    limit("1024");
    wait_out(&mesh, &pod).unwrap();
}

/// The next pod of a StatefulSet is announced while the watch has the one before, which has ended: it must not be taken for that.
#[test]
fn an_ended_pod_is_not_the_one_that_is_announced() {
    let (mesh, _agent, ztunnel) = Mesh::served().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let (old, new) = (mesh.sandbox("mesh", "web-0").unwrap(), mesh.sandbox("mesh", "web-0").unwrap());
    let mut object = old.object(&[], false);
    object["status"] = json!({"phase": "Failed"});
    mesh.node.api.set_pod(object);
    std::thread::sleep(Duration::from_millis(300));
    let reply = mesh.announce(&new).unwrap();
    assert_eq!(reply.status, 500);
    assert_says(&reply.body, &["mesh/web-0", "not known"]);
    assert!(new.is_clean().unwrap() && ztunnel.workloads().is_empty());
    mesh.node.api.delete_pod("mesh", "web-0");
    mesh.node.api.set_pod(new.object(&[], false));
    eventually("the next try succeeds", PATIENCE, || {
        let reply = mesh.announce(&new)?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .unwrap();
    wait_in(&mesh, &new).unwrap();
}

/// Pods without a uid would all be one member.
#[test]
fn a_pod_without_a_uid_is_refused_before_anything_is_done() {
    let (mesh, _agent, ztunnel) = Mesh::served().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    let mut object = pod.object(&[], false);
    object["metadata"]["uid"] = json!("");
    mesh.node.api.set_pod(object);
    let reply = mesh.announce(&pod).unwrap();
    assert_eq!(reply.status, 500);
    assert!(pod.is_clean().unwrap() && ztunnel.workloads().is_empty(), "{}", reply.body);
}

/// An address goes to the next pod before the API server says that the one before has ended: it is the next pod's, whatever is verified.
#[test]
fn an_address_belongs_to_the_pod_that_had_it_last() {
    let (mesh, agent, ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "100ms")).unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let pairs: Vec<(MeshPod, MeshPod)> = (0..6)
        .map(|n| {
            let old = mesh.running("mesh", &format!("old-{n}"), &[]).unwrap();
            wait_in(&mesh, &old).unwrap();
            let mut new = mesh.sandbox("mesh", &format!("new-{n}")).unwrap();
            new.ip = old.ip;
            mesh.new_sandbox(&mut new).unwrap();
            mesh.node.api.set_pod(new.object(&[], false));
            let reply = mesh.announce(&new).unwrap();
            assert_eq!(reply.status, 200, "{}", reply.body);
            (old, new)
        })
        .collect();
    let repaired = || agent.metric("istio_cni_drift_repaired_total{what=\"host-sets\"}").unwrap_or(0.0);
    let before = repaired();
    std::thread::sleep(Duration::from_millis(500));
    let check = |when: &str| {
        let probes = mesh.probes().unwrap();
        for (_, new) in &pairs {
            assert_eq!(probes.get(&new.ip.to_string()), Some(&new.uid), "{when}: {}", new.name);
        }
    };
    check("both are there");
    assert_eq!(repaired(), before, "nothing differs");
    for (old, _) in &pairs {
        mesh.delete(old).unwrap();
    }
    eventually("the old ones are gone", PATIENCE, || {
        ensure!(ztunnel.workloads().len() == pairs.len());
        Ok(())
    })
    .unwrap();
    check("the old ones are gone");
}

/// Programs of iptables that take their time in one namespace, by its inode in the file.
fn slow_iptables(mesh: &Mesh, program: &str) -> (String, std::path::PathBuf) {
    let dir = mesh.node.dir().join("slow");
    std::fs::create_dir_all(&dir).unwrap();
    let flag = dir.join("flag");
    for family in ["iptables", "ip6tables"] {
        let name = format!("{family}-nft-{program}");
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" != --version ] && [ \"net:[$(cat {flag} 2>/dev/null)]\" = \"$(readlink /proc/self/ns/net)\" ]; then \
             sleep 3; fi\nexec /usr/sbin/{name} \"$@\"\n",
            flag = flag.display()
        );
        let path = dir.join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    (format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()), flag)
}

fn inode(netns: &testkit::TestNetns) -> String {
    std::fs::metadata(netns.path()).unwrap().ino().to_string()
}

/// The node's rules are looked at by slow programs, as with a node of many thousand services. Nothing else waits for that.
#[test]
fn slow_programs_on_the_node_hold_nobody_up() {
    let mesh = Mesh::new().unwrap();
    let (path, flag) = slow_iptables(&mesh, "save");
    let agent = mesh
        .agent()
        .env("NATIVE_NFTABLES", "false")
        .env("PATH", &path)
        .env("AMBIENT_VERIFY_INTERVAL", "500ms")
        .ready()
        .unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    std::fs::write(&flag, inode(&mesh.host)).unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    let _pods: Vec<MeshPod> =
        (0..3).map(|n| mesh.running("mesh", &format!("web-{n}"), &[]).unwrap()).collect();
    let mut longest = Duration::ZERO;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        assert_eq!(agent.health("/healthz").unwrap().status, 200);
        longest = longest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(longest < Duration::from_millis(500), "/healthz took {longest:?}");
    ztunnel
        .wait_served(3, Duration::from_millis(500))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log().text()));
}

/// Everything is to be removed while a pod's rules are being put in place.
#[test]
fn what_is_under_way_at_the_end_is_removed_too() {
    let mesh = Mesh::new().unwrap();
    let (path, flag) = slow_iptables(&mesh, "restore");
    let agent = mesh
        .agent()
        .env("NATIVE_NFTABLES", "false")
        .env("PATH", &path)
        .env("CLEANUP_ON_EXIT", "always")
        .ready()
        .unwrap();
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let pod = mesh.running("default", "web", &[]).unwrap();
    std::fs::write(&flag, inode(&pod.netns)).unwrap();
    mesh.node.api.set_namespace("default", &[(MODE, "ambient")]);
    ztunnel.wait_served(1, PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let ended = agent.stop().unwrap();
    assert_says(&ended.log.text(), &["taking the plugin off"]);
    std::thread::sleep(Duration::from_secs(4));
    let rules = pod.netns.run(&mut std::process::Command::new("iptables-save")).unwrap();
    assert!(!rules.contains("ISTIO"), "{rules}\n{}", ended.log.text());
}

/// The API server gives a pod another address again and again while the sets are verified: they hold the last one.
#[test]
fn addresses_that_change_while_they_are_verified() {
    let (mesh, _agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "100ms")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    let mut last = String::new();
    for n in 1..=50 {
        last = format!("10.9.99.{n}");
        let mut object = mesh.node.api.object(Resource::Pods, "mesh", "web").unwrap();
        object["status"]["podIPs"] = json!([{"ip": last}]);
        mesh.node.api.set_pod(object);
        std::thread::sleep(Duration::from_millis(17));
    }
    eventually("the last address", PATIENCE, || {
        let probes = mesh.probes()?;
        ensure!(probes.keys().collect::<Vec<_>>() == [&last], "{probes:?}");
        Ok(())
    })
    .unwrap();
}

/// A pod of a StatefulSet has the name of the one before. While the watch has not told of it, its labels and service account are not those of
/// that one.
#[test]
fn a_pod_is_not_the_one_that_had_its_name() {
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let announce = |pod: &MeshPod, uid: &str| {
        let mut event = mesh.event(pod);
        event["PodUID"] = json!(uid);
        mesh.post(&event.to_string()).unwrap()
    };
    let old = mesh.running("mesh", "web-0", &[]).unwrap();
    wait_in(&mesh, &old).unwrap();
    let new = mesh.sandbox("mesh", "web-0").unwrap();
    let reply = announce(&new, &new.uid);
    assert_eq!(reply.status, 500, "{}", agent.log().text());
    assert_says(&reply.body, &["mesh/web-0", "not known"]);
    assert!(new.is_clean().unwrap() && ztunnel.workloads().keys().eq([&old.uid]));
    mesh.node.api.set_pod(new.object(&[], false));
    eventually("the next try succeeds", PATIENCE, || {
        let reply = announce(&new, &new.uid);
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .unwrap();
    wait_in(&mesh, &new).unwrap();
    assert!(ztunnel.workloads().contains_key(&new.uid));
    // Of a static pod the runtime knows the hash of its manifest, and the API server has a uid of its own.
    let hash = "5f4dcc3b5aa765d61d8327deb882cf99";
    let fixed = mesh.sandbox("mesh", "fixed").unwrap();
    let mut object = fixed.object(&[], false);
    object["metadata"]["annotations"] =
        json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash});
    mesh.node.api.set_pod(object);
    eventually("the static pod is taken", PATIENCE, || {
        let reply = announce(&fixed, hash);
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .unwrap();
    assert!(ztunnel.workloads().contains_key(&fixed.uid));
    // A plugin of another version does not say it.
    let other = mesh.sandbox("mesh", "other").unwrap();
    mesh.node.api.set_pod(other.object(&[], false));
    eventually("it is taken by its name", PATIENCE, || {
        let reply = mesh.announce(&other)?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .unwrap();
}
