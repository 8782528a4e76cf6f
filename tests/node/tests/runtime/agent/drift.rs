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
/// In each round somebody changes one pod in so many.
const SHARE: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
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

/// Who changes rules, and how often that was.
struct Somebody<'a> {
    cluster: &'a Cluster,
    pods: &'a [Sandbox],
    /// Of xorshift.
    random: u64,
    made: usize,
    rounds: usize,
}

impl Somebody<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % bound as u64).expect("it is below the bound")
    }

    /// Some pods at random, each once, and what is done to them.
    fn choose(&mut self) -> Vec<(usize, &'static str)> {
        let mut all: Vec<usize> = (0..self.pods.len()).collect();
        let some = all.len().div_ceil(SHARE);
        let mut take = || (all.swap_remove(self.below(all.len())), CHANGES[self.below(CHANGES.len())]);
        (0..some).map(|_| take()).collect()
    }

    /// Changes the rules of a part of the pods once.
    fn change(&mut self) {
        let chosen = self.choose();
        let exec = |(pod, change): (usize, &str)| {
            // A table that is not there cannot be deleted.
            self.cluster.node.exec_in_pod(&self.pods[pod], &["nft", change]).expect("nft runs")
        };
        in_parallel(chosen.len(), |number| exec(chosen[number]));
        self.made += chosen.len();
        self.rounds += 1;
    }

    /// The same in each second, for a time.
    fn change_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let next = Instant::now() + ROUND;
            self.change();
            sleep(next.saturating_duration_since(Instant::now()));
        }
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

    let end = AtomicBool::new(false);
    let mut somebody =
        Somebody { cluster: &cluster, pods: &pods, random: 0x9e37_79b9_7f4a_7c15, made: 0, rounds: 0 };
    let (answers, took) = std::thread::scope(|scope| {
        let talking = scope.spawn(|| talk(&cluster, address, &end));
        let ending = Ending(&end);
        for _ in 0..2 {
            somebody.change_for(Duration::from_secs(seconds) / 3);
            cluster.kill_agent();
            somebody.change();
            cluster.start_agent();
            cluster.wait_ready();
        }
        somebody.change_for(Duration::from_secs(seconds) / 3);
        let last = Instant::now();
        let waited = wait();
        let took = last.elapsed();
        drop(ending);
        let answers = talking.join();
        waited.unwrap_or_else(|error| panic!("{error:#}"));
        (answers.expect("the connection goes on"), took)
    });
    let Somebody { made, rounds, .. } = somebody;
    println!(
        "{made} changes of {count} pods in {rounds} rounds; all verified {took:?} after the last; {answers} answers on one connection"
    );
    pods.iter().for_each(|pod| check_captured(&cluster.node, pod, "a pod that somebody changed"));
    assert!(answers > 0);
}
