//! Tenants on a node: a change of all of them at once, planning a pod among very many, and what the kernel has for them.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podsource::AgentSource;
use rundir::policy::PrepareRequest;
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::mesh::Mesh;
use testkit::{Launch, NODE_NAME, PodObject, TestNetns};

use crate::agent::{SETTLE, resident};
use crate::ambient::wait_for;
use crate::measures::Measure;
use crate::policies::{Commits, kernel_memory};
use crate::report::Report;
use crate::sample::Samples;

pub(crate) const ALL: &[Measure] = &[
    Measure { name: "tenants: a change of all of them", run: changes },
    Measure { name: "tenants: planning a pod among many", run: planning },
    Measure { name: "tenants: memory of the kernel", run: memory },
];

/// Pods of this node.
const LOCAL: usize = 250;

/// A node among others.
struct Scene {
    mesh: Mesh,
    /// Tenants, namespaces of each, pods of each namespace.
    size: [usize; 3],
}

fn address(number: usize) -> IpAddr {
    Ipv4Addr::from(0x0a40_0000 + u32::try_from(number).unwrap_or(u32::MAX)).into()
}

// === impl Scene ===

impl Scene {
    /// The node's pods are spread over all tenants; the others are on another node.
    fn new(size: [usize; 3]) -> Result<Self> {
        let scene = Self { mesh: Mesh::new()?, size };
        let [tenants, namespaces, pods] = size;
        for number in 0..tenants * namespaces {
            scene.mesh.node.api.set_namespace(&format!("ns-{number}"), &[]);
        }
        scene.change(0);
        for number in 0..tenants * namespaces * pods {
            let object = PodObject::named(&format!("pod-{number}")).uid(&format!("uid-{number}"));
            let object = object.in_namespace(&format!("ns-{}", number % (tenants * namespaces)));
            let object = object.on_node(if number < LOCAL { NODE_NAME } else { "n2" });
            scene.mesh.node.api.set_pod(object.running(&[address(number)]).json());
        }
        Ok(scene)
    }

    /// Every tenant has other ranges in each round.
    fn change(&self, round: usize) {
        let [tenants, namespaces, _] = self.size;
        for number in 0..tenants {
            let names: Vec<String> =
                (0..namespaces).map(|one| format!("ns-{}", number + one * tenants)).collect();
            let range = |net: usize| format!("198.{}.{}.0/24", 18 + round % 2, (number + net) % 256);
            let spec = json!({"namespaces": names, "allowedIPRanges": [range(0), range(1)]});
            let object: Value =
                json!({"metadata": {"name": format!("t-{number}"), "generation": round + 1}, "spec": spec});
            self.mesh.node.api.set_object(Resource::NetworkTenants, object);
        }
    }

    fn agent(&self, tenants: &str) -> Launch<'_> {
        let agent = self.mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
        // These pods have no end in the node, so that no test shows that it sees them.
        agent.env("POLICY_POINT", "node").env("TENANTS_ENFORCEMENT", tenants)
    }
}

/// From the first of 100 changes in the API server until the kernel has all of them.
fn changes(runs: usize, report: &mut Report) -> Result<()> {
    let scene = Scene::new([100, 1, 10])?;
    let off = scene.agent("off").ready()?;
    std::thread::sleep(SETTLE);
    let without = resident(&off)?;
    off.stop()?;
    let agent = scene.agent("on").ready()?;
    std::thread::sleep(SETTLE);
    let with = resident(&agent)?.saturating_sub(without);
    report.size(
        "tenants: memory of the agent for 100, beside one that enforces policies only",
        with,
        12_000_000,
    );
    let mut commits = Commits::of(&scene.mesh)?;
    let mut samples = Samples::default();
    commits.forget()?;
    for round in 1..=runs.min(20) {
        let start = Instant::now();
        scene.change(round);
        samples.push(commits.settled()?.saturating_duration_since(start));
    }
    let text = "tenants: a change of 100 tenants' ranges, 250 pods, from the API server to the kernel";
    report.time(&format!("{text}, p50"), samples.median(), Duration::from_secs(1));
    report.time(&format!("{text}, p99"), samples.quantile(0.99), Duration::from_secs(1));
    agent.stop()?;
    Ok(())
}

/// What a plugin waits for with a pod of one of 1,000 tenants, which have 10,000 namespaces.
fn planning(runs: usize, report: &mut Report) -> Result<()> {
    let scene = Scene::new([1000, 10, 1])?;
    let agent = scene.agent("on").ready()?;
    wait_for("all tenants are in force", || {
        Ok(agent.metric(r#"istio_cni_tenants{state="enforce"}"#)? as usize == 1000)
    })?;
    std::thread::sleep(SETTLE);
    let source = AgentSource::new(&scene.mesh.node.run_dir(), "bench");
    let mut samples = Samples::default();
    for number in 0..runs {
        let netns = TestNetns::new()?;
        let request = PrepareRequest {
            uid: format!("new-{number}"),
            namespace: format!("ns-{}", (number * 37 + 11) % 10_000),
            name: format!("new-{number}"),
            container: format!("c0ffee-{number}"),
            labels: Some([("app".to_owned(), "new".to_owned())].into()),
            addresses: vec![address(20_000 + number)],
            interface: "eth0".into(),
            ..PrepareRequest::default()
        };
        let start = Instant::now();
        let answer = source.prepare(&request, netns.netns().as_fd(), Duration::from_secs(5))?;
        samples.push(start.elapsed());
        ensure!(answer.in_force && answer.ingress_class.contains("tenant t-"), "{answer:?}");
    }
    let text = "tenants: the plugin's question among 1,000 tenants and 10,000 namespaces";
    report.time(&format!("{text}, p50"), samples.median(), Duration::from_millis(2));
    report.time(&format!("{text}, p99"), samples.quantile(0.99), Duration::from_millis(10));
    agent.stop()?;
    Ok(())
}

/// 250 pods, 20 tenants of 500 pods each, at the node point.
fn memory(_: usize, report: &mut Report) -> Result<()> {
    let scene = Scene::new([20, 1, 500])?;
    let agent = scene.agent("on").ready()?;
    std::thread::sleep(SETTLE);
    agent.stop()?;
    let used = kernel_memory(&scene.mesh.host)?;
    report.size("tenants: memory of the kernel, 250 pods, 20 tenants of 500 pods", used, 20_000_000);
    Ok(())
}
