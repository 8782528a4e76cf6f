//! Ambient mode: pods are in the mesh before their first process starts, and while they run. The ztunnel is the testkit's, with a listener in
//! each pod in place of a proxy.

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use netns::Netns;
use node::{PodSpec, Sandbox};
use testkit::apiserver::Resource;
use testkit::ztunnel::{Script, Ztunnel};

use super::{Cluster, LIMIT};
use crate::fixture::{APP_PORT, GATEWAY, NODE_PORT, PLUGIN, ask_from_container, ask_from_node};

const MODE: &str = "istio.io/dataplane-mode";
const SELECTORS: &str = "
- podSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}
- podSelector: {matchExpressions: [{key: istio.io/dataplane-mode, operator: NotIn, values: [none]}]}
  namespaceSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}
";
const SOCKET: &str = "ztunnel.sock";

/// A cluster in ambient mode, whose namespace `mesh` is in the mesh.
fn cluster(native_nftables: &str) -> Cluster {
    let socket = format!("{}/{SOCKET}", super::RUN_DIR);
    let cluster = Cluster::start(&[
        ("AMBIENT_ENABLED", "true"),
        ("AMBIENT_ENABLEMENT_SELECTOR", SELECTORS),
        ("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "true"),
        ("HOST_ROOT", "/"),
        ("ZTUNNEL_UDS_ADDRESS", &socket),
        ("NATIVE_NFTABLES", native_nftables),
        ("EXCLUDE_NAMESPACES", "kube-system"),
        // For as long an ADD waits for a ztunnel.
        ("ADD_TIMEOUT", "8s"),
    ]);
    cluster.api.set_namespace("mesh", &[(MODE, "ambient")]);
    cluster
}

/// A ztunnel whose proxies answer `ztunnel` to whatever is redirected to them.
struct Proxies {
    ztunnel: Option<Ztunnel>,
    ending: Arc<AtomicBool>,
}

impl Proxies {
    fn connect(cluster: &Cluster) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let told = ending.clone();
        let script = Script::default().starting(move |_, fd| {
            let netns =
                Netns::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("the pod's namespace");
            let listeners = netns.enter(|_| [15001, 15006].map(|port| TcpListener::bind(("0.0.0.0", port))));
            for listener in listeners.expect("entered").into_iter().flatten() {
                let ending = told.clone();
                listener.set_nonblocking(true).expect("a listener");
                std::thread::spawn(move || {
                    while !ending.load(Ordering::SeqCst) {
                        match listener.accept() {
                            Ok((mut stream, _)) => drop(stream.write_all(b"ztunnel\n")),
                            Err(_) => std::thread::sleep(Duration::from_millis(2)),
                        }
                    }
                });
            }
        });
        let ztunnel = Ztunnel::connect(&cluster.run_dir(SOCKET), script).expect("the agent listens");
        ztunnel.wait_snapshot(LIMIT).expect("a snapshot");
        Self { ztunnel: Some(ztunnel), ending }
    }

    fn ztunnel(&self) -> &Ztunnel {
        self.ztunnel.as_ref().expect("it runs")
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
    }
}

/// A pod whose container connects out with its first breath, and then answers on its port.
fn eager(namespace: &str, name: &str, number: u8) -> PodSpec {
    let script = format!(
        "nc -w 3 {GATEWAY} {NODE_PORT} </dev/null >/tmp/first 2>&1; exec nc -ll -p {APP_PORT} -e echo app"
    );
    let mut pod = PodSpec::new(namespace, name).container("app", 0, &["sh", "-c", &script], &[]);
    pod.uid = format!("{number:08x}-0000-4000-8000-00000000cafe");
    pod
}

/// What the first connection of the pod's first process met.
fn first_answer(cluster: &Cluster, pod: &Sandbox) -> String {
    let answer = testkit::eventually("the first answer", testkit::PATIENCE, || {
        let said = cluster.node.exec_sync(pod, "app", &["cat", "/tmp/first"]).expect("cat runs").stdout;
        anyhow::ensure!(!said.trim().is_empty(), "there is none");
        Ok(said.trim().to_owned())
    });
    answer.unwrap_or_default()
}

fn annotation(cluster: &Cluster, pod: &PodSpec) -> Option<String> {
    let object = cluster.api.object(Resource::Pods, &pod.namespace, &pod.name)?;
    object["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str().map(str::to_owned)
}

fn a_pod_is_in_the_mesh_before_its_first_process_starts(native_nftables: &str) {
    let cluster = cluster(native_nftables);
    let pods = [eager("mesh", "first", 1), eager("mesh", "second", 2), eager("default", "outside", 3)];
    cluster.admit_known(&pods);

    // Without a ztunnel: a clear message at the end of its time, and nothing runs.
    let error = cluster.run_bare(&pods[0]).expect_err("no ztunnel").to_string();
    let plugin = format!(r#"plugin type="{PLUGIN}""#);
    for part in [plugin.as_str(), "mesh/first", "no ztunnel connection"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let proxies = Proxies::connect(&cluster);
    for pod in &pods[..2] {
        let sandbox = cluster.must_run(pod);
        assert_eq!(first_answer(&cluster, &sandbox), "ztunnel", "{}\n{}", pod.name, cluster.agent_log());
        assert!(proxies.ztunnel().workloads().contains_key(&pod.uid));
        cluster.wait_for("its annotation", || annotation(&cluster, pod).as_deref() == Some("enabled"));
        // The node's own connections are probes, which reach the application.
        let ip = cluster.node.status(&sandbox).expect("a status").ip;
        assert_eq!(ask_from_node(&cluster.node, &ip, APP_PORT), "app");
    }
    let outside = cluster.must_run(&pods[2]);
    assert_eq!(first_answer(&cluster, &outside), "node");
    assert_eq!(annotation(&cluster, &pods[2]), None);
    assert_eq!(proxies.ztunnel().violations(), Vec::<String>::new());
}

#[test]
fn a_pod_is_in_the_mesh_before_its_first_process_starts_nftables() {
    a_pod_is_in_the_mesh_before_its_first_process_starts("true");
}

#[test]
fn a_pod_is_in_the_mesh_before_its_first_process_starts_iptables() {
    a_pod_is_in_the_mesh_before_its_first_process_starts("false");
}

/// The real procfs and the cgroups that a real runtime makes.
#[test]
fn a_running_pod_is_labelled_into_the_mesh_and_out_again() {
    let cluster = cluster("true");
    let proxies = Proxies::connect(&cluster);
    let pod = eager("default", "web", 7);
    cluster.admit_known(std::slice::from_ref(&pod));
    let sandbox = cluster.must_run(&pod);
    assert_eq!(first_answer(&cluster, &sandbox), "node");
    let ip = cluster.node.status(&sandbox).expect("a status").ip;
    let label = |mode: Option<&str>| {
        let mut object = Cluster::object(&pod, super::NODE_NAME);
        if let Some(mode) = mode {
            object["metadata"]["labels"][MODE] = mode.into();
        }
        if let Some(value) = annotation(&cluster, &pod) {
            object["metadata"]["annotations"]["ambient.istio.io/redirection"] = value.into();
        }
        object["status"] = serde_json::json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
        cluster.api.set_pod(object);
    };
    label(Some("ambient"));
    cluster.wait_for("the pod in the mesh", || annotation(&cluster, &pod).as_deref() == Some("enabled"));
    assert_eq!(ask_from_container(&cluster.node, &sandbox, "app", GATEWAY, NODE_PORT), "ztunnel");
    assert_eq!(ask_from_node(&cluster.node, &ip, APP_PORT), "app");

    // Another agent: nothing changes for the pod, and a ztunnel hears of it again.
    cluster.kill_agent();
    cluster.start_agent();
    cluster.wait_ready();
    assert_eq!(ask_from_container(&cluster.node, &sandbox, "app", GATEWAY, NODE_PORT), "ztunnel");
    let after = Ztunnel::connect(&cluster.run_dir(SOCKET), Script::default()).expect("the agent listens");
    after.wait_snapshot(LIMIT).expect("a snapshot");
    assert!(after.workloads().contains_key(&pod.uid), "{}", cluster.agent_log());

    label(None);
    cluster.wait_for("the pod outside of the mesh", || annotation(&cluster, &pod).is_none());
    assert_eq!(ask_from_container(&cluster.node, &sandbox, "app", GATEWAY, NODE_PORT), "node");
    assert_eq!(ask_from_node(&cluster.node, &ip, APP_PORT), "app");
    assert_eq!(proxies.ztunnel().violations(), Vec::<String>::new());
    assert_eq!(after.violations(), Vec::<String>::new());
}
