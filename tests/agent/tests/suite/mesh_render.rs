//! What `cnictl` says of a pod of ambient mode is what the agent does: by the agent's own options, and by what the kernel lists.

use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::TestNetns;
use testkit::mesh::{MODE, Mesh, MeshPod};
use testkit::rules::{Comments, Family, Variant};

use crate::mesh::wait_in;

/// `cnictl` on the node, by whose configuration it goes.
pub(crate) fn cnictl(mesh: &Mesh, words: &str) -> Result<(Option<i32>, String, String)> {
    let mut command = Command::new(testkit::programs().join("cnictl"));
    command.args(words.split(' ')).arg("--net-dir").arg(mesh.node.net_dir());
    let output = mesh.host.output(&mut command)?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code(), text(output.stdout), text(output.stderr)))
}

/// The manifest of a pod, with its namespace.
fn manifest(mesh: &Mesh, pod: &MeshPod, annotations: &Value) -> String {
    let mut object = pod.object(&[], true);
    object["metadata"]["annotations"] = annotations.clone();
    let namespace =
        json!({"kind": "Namespace", "metadata": {"name": pod.namespace, "labels": {MODE: "ambient"}}});
    let list = json!({"kind": "List", "items": [namespace, object]});
    let path = mesh.node.run_dir().join("pod.yaml");
    std::fs::write(&path, list.to_string()).unwrap();
    path.display().to_string()
}

/// Everything of ours in a namespace, as the kernel lists it; counters and places in the kernel aside.
fn listing(netns: &TestNetns) -> Result<(Vec<Value>, String)> {
    let mut text = String::new();
    for variant in [Variant::Nft, Variant::Legacy] {
        for family in [Family::V4, Family::V6] {
            text += &netns.iptables_save(variant, family)?;
        }
    }
    for family in ["-4", "-6"] {
        text += &netns.run(Command::new("ip").args([family, "rule"]))?;
        let routes = netns.run(Command::new("ip").args([family, "route", "show", "table", "all"]))?;
        text.extend(routes.lines().filter(|line| line.contains("table 100")).map(|line| format!("{line}\n")));
    }
    let sets = netns.run(Command::new("ipset").arg("save"))?;
    text.extend(sets.lines().filter(|line| line.starts_with("add ")).map(|line| format!("{line}\n")));
    let nft = netns.nft_json(Comments::Keep)?;
    let is_ours = |text: &str| text.to_lowercase().contains("istio");
    anyhow::ensure!(
        is_ours(&text) || nft.iter().any(|one| is_ours(&one.to_string())),
        "nothing of ours: {text}"
    );
    Ok((nft, text))
}

/// Does what the comments of a rendered text say, then loads it.
fn load(mesh: &Mesh, netns: &TestNetns, words: &str, backend: &str) -> Result<()> {
    let (_, text, error) = cnictl(mesh, words)?;
    assert_eq!(error, "");
    for command in text.lines().filter_map(|line| line.strip_prefix("# first: ")) {
        netns.run(Command::new("sh").args(["-c", command]))?;
    }
    if backend == "nftables" {
        assert!(text.contains("# load with: nft -f -"), "{text}");
        return netns.nft(&text).map(drop);
    }
    for (name, family) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
        let (_, text, error) = cnictl(mesh, &format!("{words} --family {name}"))?;
        assert_eq!(error, "");
        if text.contains("# load with") {
            netns.iptables_restore(Variant::Nft, family, &text)?;
        }
    }
    Ok(())
}

#[test]
fn what_is_rendered_is_what_the_agent_programs() {
    let usual = [("AMBIENT_DNS_CAPTURE", "true")];
    let other =
        [("AMBIENT_DNS_CAPTURE", "false"), ("AMBIENT_IPV6", "false"), ("HOST_PROBE_SNAT_IP", "169.254.9.9")];
    let gateway = json!({"ambient.istio.io/bypass-inbound-capture": "true", "istio.io/reroute-virtual-interfaces": "tap0"});
    for (native, backend) in [("true", "nftables"), ("false", "iptables")] {
        for (options, annotations) in
            [(&usual[..], json!({})), (&other, json!({})), (&usual, gateway.clone())]
        {
            let mesh = Mesh::new().unwrap();
            let mut launch = mesh.agent().env("NATIVE_NFTABLES", native);
            for (name, value) in options {
                launch = launch.env(name, value);
            }
            let _agent = launch.ready().unwrap();
            let _ztunnel = mesh.ztunnel().unwrap();
            let pod = mesh.sandbox("mesh", "web").unwrap();
            let mut object = pod.object(&[], true);
            object["metadata"]["annotations"] = annotations.clone();
            mesh.run(&pod).unwrap();
            mesh.node.api.set_pod(object);
            wait_in(&mesh, &pod).unwrap();

            let file = manifest(&mesh, &pod, &annotations);
            let rendered = TestNetns::new().unwrap();
            load(&mesh, &rendered, &format!("render {file}"), backend).unwrap();
            assert_eq!(
                listing(&rendered).unwrap(),
                listing(&pod.netns).unwrap(),
                "{backend} {options:?} {annotations}"
            );

            let node = TestNetns::new().unwrap();
            load(&mesh, &node, &format!("render {file} --place node"), backend).unwrap();
            assert_eq!(
                listing(&node).unwrap(),
                listing(&mesh.host).unwrap(),
                "{backend} {options:?}, the node"
            );

            let check = format!("check --pod {file} --netns {}", pod.netns.path().display());
            let (exit, text, error) = cnictl(&mesh, &check).unwrap();
            assert_eq!((exit, error.as_str()), (Some(0), ""), "{text}");
            let (_, text, _) = cnictl(&mesh, &format!("explain {file} --to 10.0.0.5:443")).unwrap();
            assert!(
                text.contains(&format!("captured through the node's ztunnel (AMBIENT, {backend}, ")),
                "{text}"
            );
            assert!(text.contains("ASSUMED   the configuration of this node, "), "{text}");
            assert!(!text.contains("no agent with ambient mode"), "{text}");
        }
    }
}
