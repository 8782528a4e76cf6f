//! Pods that a policy isolates, with a real runtime, while the agent is killed again and again: what their first processes send as soon as they run.
//!
//! `ISOLATED_PODS` makes it long: `make soak PART=storm`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::Duration;

use node::PodSpec;
use serde_json::json;
use testkit::apiserver::Resource;

use super::Cluster;
use crate::fixture::GATEWAY;
use crate::many::in_parallel;

const PODS: usize = 15;
/// One of so many is selected by no policy, or nobody would know whether anything can arrive.
const OPEN: usize = 3;
/// Where the node counts who comes.
const COUNTED_PORT: u16 = 9998;

/// A pod whose container connects to the node with its first breath, and again.
fn eager(number: usize) -> PodSpec {
    let app = if number.is_multiple_of(OPEN) { "open" } else { "closed" };
    let once = format!("nc -w 1 {GATEWAY} {COUNTED_PORT} </dev/null >/tmp/said 2>&1");
    let script = format!("{once}; {once}; exec sleep 1000");
    let mut pod =
        PodSpec::new("default", &format!("{app}-{number}")).container("app", 0, &["sh", "-c", &script], &[]);
    pod.uid = format!("{number:08x}-0000-4000-8000-00000000cafe");
    pod.labels.insert("app".to_owned(), app.to_owned());
    pod
}

/// Answers on the node, and notes who has come.
fn count(cluster: &Cluster) -> Arc<Mutex<BTreeMap<IpAddr, usize>>> {
    let came: Arc<Mutex<BTreeMap<IpAddr, usize>>> = Arc::default();
    let listener = cluster.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, COUNTED_PORT)));
    let (listener, noted) = (listener.expect("a listener on the node"), came.clone());
    // It ends with the process.
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            if let Ok(from) = stream.peer_addr() {
                *noted.lock().expect("whole").entry(from.ip()).or_default() += 1;
            }
            let _ = stream.write_all(b"counted\n");
        }
    });
    came
}

/// Kills agents until it is over, from the midst of their start to well after it.
fn kill(cluster: &Cluster, is_over: &AtomicBool) -> u64 {
    let mut killed = 0;
    while !is_over.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(60 * (killed % 9)));
        cluster.kill_agent();
        sleep(Duration::from_millis(40 * (killed % 4)));
        cluster.start_agent();
        killed += 1;
    }
    killed
}

#[test]
fn of_isolated_pods_of_a_real_runtime_no_packet_passes_while_the_agent_is_killed() {
    let pods = std::env::var("ISOLATED_PODS").map_or(PODS, |text| text.parse().expect("a number"));
    let cluster = Cluster::without_agent(&[("NATIVE_NFTABLES", "true"), ("POLICY_ENFORCEMENT", "on")]);
    let policy = json!({"metadata": {"namespace": "default", "name": "closed"}, "spec": {
        "podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Ingress", "Egress"]}});
    cluster.api.set_object(Resource::NetworkPolicies, policy);
    cluster.start_agent();
    cluster.wait_ready();
    let snapshot = cluster.dir("state").join("policies.snapshot");
    cluster.wait_for("what is known of policies on disk", || {
        std::fs::read_to_string(&snapshot).is_ok_and(|text| text.contains("policy np default closed"))
    });
    let came = count(&cluster);
    let is_over = AtomicBool::new(false);
    let (killed, ips) = thread::scope(|scope| {
        let killer = scope.spawn(|| kill(&cluster, &is_over));
        let ips = in_parallel(pods, |number| {
            let spec = eager(number);
            cluster.admit(&spec);
            let sandbox = cluster.must_run(&spec);
            let ip: IpAddr = cluster.node.status(&sandbox).expect("a status").ip.parse().expect("an address");
            // As kubelet does, a while later.
            sleep(Duration::from_millis(500));
            let mut object = Cluster::object(&spec, super::NODE_NAME);
            object["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
            cluster.api.set_pod(object);
            if !number.is_multiple_of(OPEN) {
                sleep(Duration::from_secs(1));
                cluster.node.stop_pod(&sandbox).expect("stopped");
            }
            (number, ip)
        });
        is_over.store(true, Ordering::Relaxed);
        (killer.join().expect("the killer"), ips)
    });
    let (open, closed): (Vec<_>, Vec<_>) =
        ips.into_iter().partition(|(number, _)| number.is_multiple_of(OPEN));
    let [open, closed] =
        [open, closed].map(|all| all.into_iter().map(|(_, ip)| ip).collect::<BTreeSet<IpAddr>>());
    cluster.wait_for("each other pod to come", || {
        came.lock().expect("whole").keys().copied().collect::<BTreeSet<_>>().is_superset(&open)
    });
    let came = came.lock().expect("whole").clone();
    let escaped: Vec<_> = came.iter().filter(|(ip, _)| closed.contains(ip)).collect();
    println!(
        "{} isolated pods and {} others, {killed} agents killed; connections: {came:?}",
        closed.len(),
        open.len()
    );
    assert!(escaped.is_empty(), "{escaped:?}\n{}", cluster.agent_log());
    assert!(
        killed > 2 && closed.is_disjoint(&open) && closed.len() + open.len() == pods,
        "{closed:?} {open:?}"
    );
}
