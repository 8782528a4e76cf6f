//! A network namespace that the agent's container does not see at the runtime's path: containerd with `netns_mounts_under_state_dir`. The plugin
//! hands it over as an open descriptor.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::ensure;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;
use testkit::http::{self, Reply};
use testkit::mesh::MODE;
use testkit::{Agent, Mesh, MeshPod, PATIENCE, PodCall, assert_says, eventually};

use crate::mesh::wait_in;

/// A node whose runtime keeps namespaces below its state directory, and a pod whose namespace is there.
struct Scene {
    mesh: Mesh,
    pod: MeshPod,
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        mesh.node.api.set_namespace("default", &[(MODE, "ambient")]);
        // What has this path on the node has it below the agent's root of the node, too.
        let seen = mesh.root().join(mesh.root().strip_prefix("/").unwrap());
        std::fs::create_dir_all(seen.parent().unwrap()).unwrap();
        symlink(mesh.root(), seen).unwrap();
        let pod = mesh.sandbox("default", "web").unwrap();
        mesh.node.api.set_pod(pod.object(&[], false));
        let scene = Self { mesh, pod };
        std::fs::create_dir_all(scene.path().parent().unwrap()).unwrap();
        symlink(scene.pod.netns.path(), scene.path()).unwrap();
        scene
    }

    /// The path by which the runtime calls the namespace.
    fn path(&self) -> PathBuf {
        self.mesh.root().join("state/netns").join(&self.pod.uid)
    }

    /// An agent in a mount namespace where the state directory is not mounted.
    fn agent(&self) -> Agent {
        let hide =
            format!("mount -t tmpfs none {} && exec \"$0\" \"$@\"", self.mesh.root().join("state").display());
        let agent = self.mesh.agent().env("AMBIENT_VERIFY_INTERVAL", "1s");
        agent.behind(&["unshare", "-m", "sh", "-c", &hide]).ready().unwrap()
    }

    fn call(&self) -> PodCall {
        let mut call = PodCall::new(&self.mesh.node, "web", &self.pod.uid, &self.path()).unwrap();
        call.conf["prevResult"]["ips"] = json!([{"address": format!("{}/24", self.pod.ip), "interface": 0}]);
        call
    }

    /// Announces the pod by its path, with these descriptors.
    fn announce(&self, descriptors: &[File]) -> Reply {
        let mut event = self.mesh.event(&self.pod);
        event["Netns"] = json!(self.path());
        let request = http::request("POST", "/cmdadd", &event.to_string());
        let stream = http::connect(&self.mesh.event_socket()).unwrap();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        let first = &request[..20];
        sendmsg(&stream, &[IoSlice::new(first)], &mut control, SendFlags::empty()).unwrap();
        http::exchange(stream, &request[20..]).unwrap()
    }
}

fn open(path: impl AsRef<std::path::Path>) -> File {
    File::open(path).unwrap()
}

#[test]
fn the_plugins_descriptor_needs_no_mount() {
    let scene = Scene::new();
    let agent = scene.agent();
    let ztunnel = scene.mesh.ztunnel().unwrap();
    let answer = scene.call().add().unwrap();
    assert_says(&answer.stderr, &["the node agent has taken it"]);
    wait_in(&scene.mesh, &scene.pod).unwrap();
    assert!(ztunnel.workloads().contains_key(&scene.pod.uid));
    // It is verified and put right as any other, and its sandbox does not count as gone.
    scene.pod.netns.run(std::process::Command::new("nft").args(["flush", "ruleset"])).unwrap();
    eventually("the rules are put right", PATIENCE, || {
        ensure!(scene.pod.is_redirected()?);
        Ok(())
    })
    .unwrap();
    // The next agent finds it by its processes.
    scene.mesh.run(&scene.pod).unwrap();
    scene.mesh.node.api.set_pod(scene.pod.object(&[], true));
    agent.kill().unwrap();
    drop(ztunnel);
    let agent = scene.agent();
    let _ztunnel = scene.mesh.ztunnel().unwrap();
    eventually("the pod is in the mesh", PATIENCE, || {
        ensure!(agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}")? == 1.0, "{}", agent.log().text());
        Ok(())
    })
    .unwrap();
    wait_in(&scene.mesh, &scene.pod).unwrap();
}

/// The original's plugin passes none.
#[test]
fn without_a_descriptor_the_message_says_what_to_do() {
    let scene = Scene::new();
    let agent = scene.agent();
    let reply = scene.announce(&[]);
    assert_eq!(reply.status, 500);
    assert_says(&reply.body, &["no such file", "mount", "netns_mounts_under_state_dir", "default/web"]);
    assert!(!reply.head.to_lowercase().contains("retry-after"), "{}", reply.head);
    assert!(scene.pod.is_clean().unwrap());
    // Where the path is seen it is enough.
    agent.kill().unwrap();
    let agent = scene.mesh.start().unwrap();
    let _ztunnel = scene.mesh.ztunnel().unwrap();
    let reply = scene.announce(&[]);
    assert_eq!(reply.status, 200, "{} {}", reply.body, agent.log().text());
    assert!(scene.pod.has_rules().unwrap());
}

/// Nothing of a descriptor is believed, and none is left open.
#[test]
fn what_comes_along_is_checked() {
    let scene = Scene::new();
    let agent = scene.agent();
    let _ztunnel = scene.mesh.ztunnel().unwrap();
    let other = scene.mesh.sandbox("default", "other").unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let cases = || {
        [
            (vec![open("/etc/passwd")], "not a namespace"),
            (vec![open("/")], "not a namespace"),
            (vec![open("/proc/self/ns/mnt")], "mount namespace"),
            (vec![open(scene.mesh.host.path())], "of the node"),
            (vec![open(other.netns.path())], "none of the pod's addresses"),
            // The first one counts.
            (vec![open("/etc/passwd"), open(scene.pod.netns.path())], "not a namespace"),
        ]
    };
    scene.announce(&[]);
    let before = descriptors();
    for _ in 0..20 {
        for (brought, says) in cases() {
            let reply = scene.announce(&brought);
            assert_eq!(reply.status, 500, "{says}");
            assert_says(&reply.body, &[says]);
        }
    }
    assert!(scene.pod.is_clean().unwrap() && other.is_clean().unwrap());
    eventually("descriptors are closed", PATIENCE, || {
        ensure!(descriptors() <= before + 2, "{} after {before}", descriptors());
        Ok(())
    })
    .unwrap();
    let reply = scene.announce(&[open(scene.pod.netns.path()), open("/etc/passwd")]);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(scene.pod.has_rules().unwrap());
}
