//! Somebody changes rules of running pods all the time, and the agent is killed meanwhile.
//!
//! `DRIFT_PODS` and `DRIFT_SECONDS` make it larger and longer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use node::{PodSpec, Sandbox};
use serde_json::json;
use testkit::until;

use super::{Cluster, NODE_NAME};
use crate::fixture::{APP_PORT, check_captured, echo_pod};
use crate::many::in_parallel;

const PODS: u64 = 8;
const SECONDS: u64 = 10;
/// Two turns of a pod, and a second.
const VERIFIED_WITHIN: Duration = Duration::from_secs(61);
/// Between two changes by somebody.
const PAUSE: Duration = Duration::from_millis(500);
const CHANGES: [&str; 3] =
    ["delete table inet istio-proxy-nat", "flush ruleset", "add chain inet istio-proxy-nat somebody"];

/// A pod whose proxy says everything back, with a uid by which its processes are found.
fn pod(number: u64) -> PodSpec {
    let proxy = ["sh", "-c", "exec nc -ll -p 15006 -e cat"];
    let pod = echo_pod("default", &format!("pod-{number}")).annotate("sidecar.istio.io/status", "{}");
    let pod = pod.container("istio-proxy", 1337, &proxy, &["proxy", "sidecar"]);
    PodSpec { uid: format!("{number:08x}-0000-4000-8000-00000000cafe"), ..pod }
}

/// As the kubelet tells of a pod that runs; gives its address.
fn tell_running(cluster: &Cluster, spec: &PodSpec, sandbox: &Sandbox) -> SocketAddr {
    let ip = cluster.node.status(sandbox).expect("a status").ip;
    let mut object = Cluster::object(spec, NODE_NAME);
    object["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    cluster.api.set_pod(object);
    SocketAddr::new(ip.parse().expect("an address"), APP_PORT)
}

/// Talks on one connection until it is told to end; how often it was answered.
fn talk(cluster: &Cluster, to: SocketAddr, end: &AtomicBool) -> usize {
    let connect = || testkit::eventually("a connection", testkit::PATIENCE, || Ok(TcpStream::connect(to)?));
    let mut stream = cluster.inside(connect).expect("the proxy takes it");
    stream.set_read_timeout(Some(testkit::PATIENCE)).expect("a limit");
    let mut answers = 0;
    while !end.load(Ordering::SeqCst) {
        let mut answer = [0; 4];
        stream.write_all(b"ping").expect("the connection is open");
        stream.read_exact(&mut answer).expect("the connection is answered");
        assert_eq!(&answer, b"ping");
        answers += 1;
        sleep(Duration::from_millis(50));
    }
    answers
}

/// Ends [`talk`] when it is dropped, however the test goes.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Changes the rules of one pod after the other for a time.
fn change_for(cluster: &Cluster, pods: &[Sandbox], time: Duration, made: &mut usize) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let (pod, change) = (&pods[*made * 7 % pods.len()], CHANGES[*made % CHANGES.len()]);
        // A table that is not there cannot be deleted.
        cluster.node.exec_in_pod(pod, &["nft", change]).expect("nft runs");
        *made += 1;
        sleep(PAUSE);
    }
}

#[test]
fn changed_pods_are_verified_again_though_the_agent_is_killed_and_connections_of_others_go_on() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let (count, seconds) = (number("DRIFT_PODS", PODS), number("DRIFT_SECONDS", SECONDS));
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true")]);
    let specs: Vec<PodSpec> = (0..count).map(pod).collect();
    let still = pod(count);
    cluster.admit_known(&specs);
    cluster.admit_known(std::slice::from_ref(&still));
    let pods = in_parallel(specs.len(), |number| cluster.must_run_bare(&specs[number]));
    for (spec, sandbox) in specs.iter().zip(&pods) {
        tell_running(&cluster, spec, sandbox);
    }
    let sandbox = cluster.must_run(&still);
    let address = tell_running(&cluster, &still, &sandbox);
    let all = (count + 1) as f64;
    let verified = || cluster.metric("istio_cni_pods_verified{mode=\"sidecar\"}");
    let seen = || format!("{:?} of {all} are\n{}", verified(), cluster.agent_log());
    let wait = || until("every pod is verified", VERIFIED_WITHIN, || verified() == Some(all), seen);
    wait().unwrap_or_else(|error| panic!("{error:#}"));

    let (end, mut made) = (AtomicBool::new(false), 0);
    let (answers, took) = std::thread::scope(|scope| {
        let talking = scope.spawn(|| talk(&cluster, address, &end));
        let ending = Ending(&end);
        for _ in 0..2 {
            change_for(&cluster, &pods, Duration::from_secs(seconds) / 3, &mut made);
            cluster.kill_agent();
            change_for(&cluster, &pods, PAUSE, &mut made);
            cluster.start_agent();
            cluster.wait_ready();
        }
        change_for(&cluster, &pods, Duration::from_secs(seconds) / 3, &mut made);
        let last = Instant::now();
        let waited = wait();
        let took = last.elapsed();
        drop(ending);
        let answers = talking.join();
        waited.unwrap_or_else(|error| panic!("{error:#}"));
        (answers.expect("the connection goes on"), took)
    });
    println!(
        "{made} changes of {count} pods; all verified {took:?} after the last; {answers} answers on one connection"
    );
    pods.iter().for_each(|pod| check_captured(&cluster.node, pod, "a pod that somebody changed"));
    assert!(answers > 0);
}
