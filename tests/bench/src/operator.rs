//! `cnictl`: what an operator waits for.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use applied::Origin;
use applied::sandbox::{self, Sandbox};
use serde_json::json;
use testkit::{Node, PodCall, PodObject, TestNetns};

use crate::measures::Measure;
use crate::report::Report;
use crate::sample::{Samples, time};

pub(crate) const ALL: &[Measure] = &[Measure { name: "cnictl verify of 250 pods", run: verify }];

/// As many as the largest nodes of managed clusters have.
const PODS: usize = 250;

/// Without an agent, so that each namespace is read.
fn verify(runs: usize, report: &mut Report) -> Result<()> {
    let node = Node::bare()?;
    let list = json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [node.conf]});
    std::fs::create_dir_all(node.net_dir())?;
    std::fs::write(node.net_dir().join("10-net.conflist"), list.to_string())?;
    let pods = (0..PODS).map(|number| added(&node, &format!("web-{number}")));
    let _pods: Vec<TestNetns> = pods.collect::<Result<_>>()?;
    let mut samples = Samples::default();
    for _ in 0..runs.clamp(3, 10) {
        let mut command = Command::new(testkit::programs().join("cnictl"));
        // It fails unless all are verified.
        command.arg("verify").arg("--net-dir").arg(node.net_dir());
        samples.push(time(&mut command, b"")?);
    }
    report.time("cnictl verify of 250 pods, p50", samples.median(), Duration::from_millis(500));
    Ok(())
}

fn added(node: &Node, name: &str) -> Result<TestNetns> {
    let uid = format!("uid-of-{name}");
    node.write_manifest(PodObject::named(name).uid(&uid).sidecar())?;
    let netns = TestNetns::new()?;
    netns.address("10.77.0.2/24")?;
    let answer = PodCall::with(node.conf.clone(), name, &uid, netns.path()).run("ADD")?;
    ensure!(answer.exit == Some(0), "ADD failed: {answer:#?}");
    // No runtime has mounted it where it is looked for.
    let origin = Origin {
        netns: netns.netns().id(),
        pod: format!("default/{name}"),
        uid,
        interface: "eth0".to_owned(),
        addresses: vec![IpAddr::from([10, 77, 0, 2])],
    };
    sandbox::write(&node.run_dir(), name, "eth0", &Sandbox { origin, path: netns.path().to_owned() })?;
    Ok(netns)
}
