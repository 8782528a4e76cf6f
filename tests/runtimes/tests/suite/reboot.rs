//! A node that starts again: everything in memory is gone, plugin and configuration are on disk, and all pods come at once with the agent.

use std::time::Duration;

use agent_tests::Agent;
use agent_tests::mesh::MODE;
use runtimes::{Containerd, CriO, Kubelet, Machine, PodSpec, Runtime, Started};
use testkit::ztunnel::Ztunnel;

/// How long a pod may be tried.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest that STATUS may take, by the answer that came soonest.
const STATUS_IN_TIME: Duration = Duration::from_millis(50);
/// From the agent's sandbox to its container.
const CONTAINER_START: Duration = Duration::from_millis(700);
/// Pods with an injected sidecar.
const SIDECARS: usize = 8;

/// In which mode the agent is, and where it runs.
#[derive(Debug, Clone, Copy)]
struct Kind {
    ambient: bool,
    host_network: bool,
}

/// The agent, and the ztunnel that it serves in ambient mode.
struct Life {
    agent: Agent,
    ztunnel: Option<Ztunnel>,
}

impl Kind {
    /// The agent's own pod.
    fn agent_pod(self) -> PodSpec {
        let pod = PodSpec::new("istio-system", "istio-cni-node-4xkq2");
        if self.host_network { pod.on_host_network() } else { pod }
    }

    /// What runs in the agent's pod.
    fn start(self, machine: &Machine) -> Life {
        let launch = if self.ambient { machine.ambient_agent() } else { machine.agent() };
        let agent = launch.env("FACTS_TIMEOUT", "30s").env("CLEANUP_ON_EXIT", "never").ready().unwrap();
        let ztunnel = self.ambient.then(|| machine.mesh.ztunnel().unwrap());
        Life { agent, ztunnel }
    }

    fn pods(self) -> Vec<PodSpec> {
        let sidecar = |number| PodSpec::sidecar("default", &format!("sidecar-{number}"));
        let mut pods: Vec<PodSpec> = (0..SIDECARS).map(sidecar).collect();
        pods.extend([PodSpec::new("default", "plain"), PodSpec::new("kube-system", "dns")]);
        pods.push(PodSpec::new("default", "proxy").on_host_network());
        if self.ambient {
            pods.push(PodSpec::new("mesh", "by-namespace"));
            pods.push(PodSpec::new("default", "by-label").label(MODE, "ambient"));
        }
        pods
    }

    fn is_in_mesh(self, pod: &PodSpec) -> bool {
        self.ambient && (pod.namespace == "mesh" || pod.labels.contains_key(MODE))
    }
}

/// Starts all pods and the agent's at the same time, by the kubelet's rules.
fn boot(kubelet: &Kubelet<'_>, kind: Kind, agent_pod: &PodSpec, pods: &[PodSpec]) -> (Life, Vec<Started>) {
    std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            kubelet.start(agent_pod, PATIENCE).unwrap();
            std::thread::sleep(CONTAINER_START);
            kind.start(kubelet.machine)
        });
        let started = kubelet.start_all(pods, PATIENCE).unwrap();
        (agent.join().unwrap(), started)
    })
}

fn assert_all_captured(kubelet: &Kubelet<'_>, kind: Kind, started: &[Started], life: &Life) {
    let sandboxes = kubelet.runtime.sandboxes();
    for Started { pod, sandbox, .. } in started.iter().filter(|started| !started.pod.host_network) {
        let captured = sandboxes.is_captured(sandbox).unwrap();
        assert_eq!(captured, pod.name.starts_with("sidecar"), "{} {}", pod.name, life.agent.log().text());
        if kind.is_in_mesh(pod) {
            assert!(sandboxes.is_in_mesh(sandbox).unwrap(), "{} {}", pod.name, life.agent.log().text());
        }
    }
}

fn reboot(runtime: impl for<'a> Fn(&'a Machine) -> Box<dyn Runtime + 'a>, kind: Kind) {
    let machine = Machine::new("1.1.0").unwrap();
    let (agent_pod, pods) = (kind.agent_pod(), kind.pods());
    machine.schedule(pods.iter().chain([&agent_pod]));
    let before = kind.start(&machine);
    let runtime = runtime(&machine);
    let kubelet = Kubelet { machine: &machine, runtime: runtime.as_ref() };
    let started = kubelet.start_all(&pods, PATIENCE).unwrap();
    assert_all_captured(&kubelet, kind, &started, &before);
    before.agent.kill().unwrap();
    drop(before.ztunnel);

    machine.lose_memory().unwrap();
    runtime.take_calls();
    runtime.reboot();
    assert_eq!(runtime.network_not_ready(), None, "the agent's pod would not start");
    assert_status_in_time(runtime.as_ref());
    for old in &started {
        runtime.stop(&old.sandbox).unwrap();
    }
    let (life, again) = boot(&kubelet, kind, &agent_pod, &pods);
    assert_all_captured(&kubelet, kind, &again, &life);
    for old in &started {
        runtime.remove(&old.sandbox).unwrap();
    }
    let on_pod_network = pods.iter().chain([&agent_pod]).filter(|pod| !pod.host_network).count();
    assert_eq!(machine.leases().unwrap().len(), on_pod_network, "every lease is of a pod that runs");
    let slowest = again.iter().max_by_key(|started| started.after).unwrap();
    println!(
        "{kind:?}: {} pods, the last after {:.1?} with {} refusals",
        pods.len(),
        slowest.after,
        slowest.refusals.len()
    );
    for refusal in again.iter().filter_map(|started| started.refusals.first()).take(1) {
        println!("  {refusal}");
    }
}

fn assert_status_in_time(runtime: &dyn Runtime) {
    for _ in 0..8 {
        assert_eq!(runtime.network_not_ready(), None);
    }
    let calls = runtime.take_calls();
    let status = calls.iter().filter(|call| call.verb == "STATUS" && call.plugin == "istio-cni");
    let soonest = status.map(|call| call.took).min().unwrap();
    println!("STATUS {soonest:.1?}");
    assert!(soonest < STATUS_IN_TIME, "{soonest:?}");
}

const AMBIENT: Kind = Kind { ambient: true, host_network: true };
const SIDECAR: Kind = Kind { ambient: false, host_network: false };

#[test]
fn containerd_ambient_agent_on_the_nodes_network() {
    reboot(|machine| Box::new(Containerd::start(machine)), AMBIENT);
}

#[test]
fn containerd_sidecar_agent_on_the_pod_network() {
    reboot(|machine| Box::new(Containerd::start(machine)), SIDECAR);
}

#[test]
fn crio_ambient_agent_on_the_nodes_network() {
    reboot(|machine| Box::new(CriO::start(machine)), AMBIENT);
}

#[test]
fn crio_sidecar_agent_on_the_pod_network() {
    reboot(|machine| Box::new(CriO::start(machine)), SIDECAR);
}
