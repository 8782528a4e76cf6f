//! The pods of a node and its agent, which come at the same time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use runtimes::{Kubelet, Machine, PodSpec, Started};
use testkit::apiserver::Resource;
use testkit::mesh::MODE;
use testkit::ztunnel::Ztunnel;
use testkit::{Agent, PATIENCE, eventually};

/// How long a pod may be tried.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// From the agent's sandbox to its container: sooner, and later than a pod is tried that may start without capture.
const CONTAINER_START: [Duration; 2] = [Duration::from_millis(700), Duration::from_millis(2500)];
/// Pods with an injected sidecar.
const SIDECARS: usize = 8;
/// The label of a pod that started without capture.
const LABEL: &str = "cni.istio.io/uninitialized";

/// In which mode the agent is, and where it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) ambient: bool,
    pub(crate) host_network: bool,
    /// Whether a pod may start although its capture failed, which is tried for a shorter time than the agent's container takes.
    pub(crate) open: bool,
}

/// The agent, and the ztunnel that it serves in ambient mode.
pub(crate) struct Life {
    pub(crate) agent: Agent,
    pub(crate) ztunnel: Option<Ztunnel>,
}

impl Kind {
    /// The agent's own pod.
    pub(crate) fn agent_pod(self) -> PodSpec {
        let pod = PodSpec::new("istio-system", "istio-cni-node-4xkq2");
        if self.host_network { pod.on_host_network() } else { pod }
    }

    /// What runs in the agent's pod.
    pub(crate) fn start(self, machine: &Machine) -> Life {
        let launch = if self.ambient { machine.ambient_agent() } else { machine.agent() };
        let launch = match self.open {
            true => launch
                .env("FAILURE_POLICY", "open")
                .env("FACTS_TIMEOUT", "1s")
                .env("RUNTIME_ANNOTATIONS", "false"),
            false => launch.env("FACTS_TIMEOUT", "30s"),
        };
        let agent = launch.env("CLEANUP_ON_EXIT", "never").ready().unwrap();
        let ztunnel = self.ambient.then(|| machine.mesh.ztunnel().unwrap());
        Life { agent, ztunnel }
    }

    pub(crate) fn pods(self) -> Vec<PodSpec> {
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
pub(crate) fn boot(
    kubelet: &Kubelet<'_>,
    kind: Kind,
    agent_pod: &PodSpec,
    pods: &[PodSpec],
) -> (Life, Vec<Started>) {
    std::thread::scope(|scope| {
        let agent = scope.spawn(|| {
            kubelet.start(agent_pod, LIMIT).unwrap();
            std::thread::sleep(CONTAINER_START[usize::from(kind.open)]);
            kind.start(kubelet.machine)
        });
        let started = kubelet.start_all(pods, LIMIT).unwrap();
        (agent.join().unwrap(), started)
    })
}

pub(crate) fn assert_all_captured(kubelet: &Kubelet<'_>, kind: Kind, started: &[Started], life: &Life) {
    let sandboxes = kubelet.runtime.sandboxes();
    for Started { pod, sandbox, .. } in started.iter().filter(|started| !started.pod.host_network) {
        let captured = sandboxes.is_captured(sandbox).unwrap();
        assert_eq!(captured, pod.name.starts_with("sidecar"), "{} {}", pod.name, life.agent.log().text());
        if kind.is_in_mesh(pod) {
            assert!(sandboxes.is_in_mesh(sandbox).unwrap(), "{} {}", pod.name, life.agent.log().text());
        }
    }
}

/// Each sidecar is captured, or everything that people look at says that it is not; how many are not.
pub(crate) fn assert_captured_or_named(kubelet: &Kubelet<'_>, started: &[Started], agent: &Agent) -> usize {
    let sandboxes = kubelet.runtime.sandboxes();
    let is_sidecar = |started: &&Started| started.pod.name.starts_with("sidecar");
    let mut uncaptured: Vec<&Started> = started.iter().filter(is_sidecar).collect();
    uncaptured.retain(|started| !sandboxes.is_captured(&started.sandbox).unwrap());
    eventually("every uncaptured pod is named", PATIENCE, || {
        uncaptured.iter().try_for_each(|started| is_named(kubelet.machine, &started.pod, agent))?;
        let metrics = agent.metrics()?;
        let counted =
            metrics.series.iter().filter(|(name, _)| name.starts_with("istio_cni_uncaptured_pods_total{"));
        let counted: f64 = counted.map(|(_, value)| value).sum();
        ensure!(counted == uncaptured.len() as f64, "{counted} are counted of {}", uncaptured.len());
        is_shown(agent, uncaptured.len())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log().text()));
    // Whoever is captured is not told to be deleted.
    let labelled = |pod: &&Started| has_label(kubelet.machine, &pod.pod);
    assert_eq!(started.iter().filter(labelled).count(), uncaptured.len());
    uncaptured.len()
}

/// `/readyz?verbose` says how many pods are not captured.
pub(crate) fn is_shown(agent: &Agent, count: usize) -> Result<()> {
    let verbose = agent.health("/readyz?verbose")?.body;
    let told = format!(": {count} (");
    ensure!(count == 0 || verbose.contains(&told), "no {told:?} in {verbose}");
    Ok(())
}

fn is_named(machine: &Machine, pod: &PodSpec, agent: &Agent) -> Result<()> {
    let name = format!("{}/{}", pod.namespace, pod.name);
    agent
        .log()
        .find(&["error", "WITHOUT CAPTURE", &name])
        .with_context(|| format!("no line names {name}"))?;
    ensure!(has_label(machine, pod), "{name} has no label");
    let events = machine.api().events();
    let its =
        |event: &&serde_json::Value| event["involvedObject"]["uid"] == pod.uid && event["type"] == "Warning";
    ensure!(events.iter().any(|event| its(&event)), "{name} has no event");
    Ok(())
}

pub(crate) fn has_label(machine: &Machine, pod: &PodSpec) -> bool {
    let object = machine.api().object(Resource::Pods, &pod.namespace, &pod.name);
    object.is_some_and(|object| object["metadata"]["labels"][LABEL] == "true")
}
