//! The plugin's CHECK of a pod in the mesh: by what the agent kept of it, whether the agent is there or not.

use anyhow::ensure;
use testkit::mesh::{MODE, Mesh};
use testkit::{PATIENCE, PodCall, assert_says, at_once, eventually};

use crate::mesh::{wait_in, wait_out};

#[test]
fn a_check_knows_what_the_agent_applied_and_asks_nobody() {
    at_once(["true", "false"], |nft| {
        let mesh = Mesh::new().unwrap();
        let start = || mesh.agent().env("NATIVE_NFTABLES", nft).env("AMBIENT_VERIFY_INTERVAL", "300ms");
        let agent = start().ready().unwrap();
        let ztunnel = mesh.ztunnel().unwrap();
        let pod = mesh.running("default", "web", &[(MODE, "ambient")]).unwrap();
        let other = mesh.running("default", "other", &[(MODE, "ambient")]).unwrap();
        for pod in [&pod, &other] {
            mesh.wait_annotation(pod, Some("enabled")).unwrap();
        }
        let mut entry = mesh.node.entry().unwrap();
        entry["facts_timeout"] = "300ms".into();
        let call = PodCall::with(entry, "web", &pod.uid, pod.netns.path());
        let records = || std::fs::read_dir(mesh.node.run_dir().join("applied")).unwrap().count();
        assert_eq!(records(), 2);
        assert_eq!(call.run("CHECK").unwrap().exit, Some(0));
        // Its agent is away, and so are the facts.
        drop((agent, ztunnel));
        mesh.node.api.stop();
        let answer = call.run("CHECK").unwrap();
        assert_eq!(answer.exit, Some(0), "{}", answer.stderr);
        assert!(!answer.stderr.contains("is not known"), "{}", answer.stderr);
        if nft == "true" {
            pod.netns.nft("flush chain inet istio-ambient-nat istio-output").unwrap();
        } else {
            let mut flush = std::process::Command::new("iptables-nft");
            pod.netns.run(flush.args(["-t", "nat", "-F", "ISTIO_OUTPUT"])).unwrap();
        }
        let (_, text) = call.run("CHECK").unwrap().error().unwrap();
        assert_says(&text, &["default/web is not captured as planned", "lacks the rule"]);
        // Another pod in that namespace is none that this record is of.
        let entry = mesh.node.entry().unwrap();
        let stranger = PodCall::with(entry, "web", "another-uid", pod.netns.path()).run("CHECK").unwrap();
        assert_eq!(stranger.exit, Some(0), "{}", stranger.stderr);
    });
}

#[test]
fn what_was_applied_is_forgotten_with_the_pod() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "300ms")).unwrap();
    let pod = mesh.running("default", "web", &[(MODE, "ambient")]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    let dir = mesh.node.run_dir().join("applied");
    let records = || std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(records(), 1);
    // One that nobody removed: of a pod that went while no agent ran.
    let stale = std::fs::read(std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path()).unwrap();
    std::fs::write(dir.join("netns-4-1"), stale).unwrap();
    eventually("only the pod's is left", PATIENCE, || {
        ensure!(records() == 1, "{}", records());
        Ok(())
    })
    .unwrap();
    mesh.node.api.set_pod(pod.object(&[(MODE, "none")], true));
    wait_out(&mesh, &pod).unwrap();
    assert_eq!(records(), 0, "{}", agent.log().text());
}

/// The agent's own look: each rule is told once, counted while it is there, and told to be over.
#[test]
fn verification_tells_what_shadows_a_pod() {
    at_once(["true", "false"], |nft| {
        let mesh = Mesh::new().unwrap();
        let agent = mesh.agent().env("NATIVE_NFTABLES", nft).env("AMBIENT_VERIFY_INTERVAL", "200ms");
        let agent = agent.ready().unwrap();
        let _ztunnel = mesh.ztunnel().unwrap();
        let pod = mesh.running("default", "web", &[(MODE, "ambient")]).unwrap();
        mesh.wait_annotation(&pod, Some("enabled")).unwrap();
        let shadowed = || agent.metric("istio_cni_ambient_shadowed_pods").unwrap();
        assert_eq!(shadowed(), 0.0);
        let plant = "table ip early { chain o { type nat hook output priority -130; tcp dport 5432 redirect to :1; }; }";
        pod.netns.nft(plant).unwrap();
        let counted = |wanted: f64| {
            eventually("the number of shadowed pods", PATIENCE, || {
                ensure!(shadowed() == wanted, "{}", agent.log().text());
                Ok(())
            })
            .unwrap();
        };
        counted(1.0);
        std::thread::sleep(std::time::Duration::from_millis(700));
        let lines = |part: &str| agent.log().text().lines().filter(|line| line.contains(part)).count();
        assert_eq!(lines("packets escape capture: chain o of table ip early"), 1, "{}", agent.log().text());
        pod.netns.nft("delete table ip early").unwrap();
        counted(0.0);
        let over = "nothing shadows the rules of a pod any more";
        agent.log().wait_for(&[over], PATIENCE).unwrap();
        assert_eq!(lines(over), 1);
    });
}
