//! Another writer of the conflist.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use node::{PodSpec, Sandbox};
use serde_json::{Value, json};

use super::{CONFLIST, Cluster, replace};
use crate::fixture::{PLUGIN, bridge, check_captured, is_captured_bare, sidecar_pod};

const WRITES: u64 = 100;
const RUNNERS: usize = 3;
/// More than can start while the writer writes.
const MOST_PODS: usize = 400;

/// What the other component writes at its nth turn: it has no idea of our plugin, and keys of its own.
fn written(turn: u64) -> String {
    let conflist = json!({
        "cniVersion": "1.0.0",
        "name": "mesh",
        "com.example/turn": turn,
        "plugins": [bridge(), {"type": "tuning", "sysctl": {}, "com.example/note": format!("turn {turn}")}],
    });
    let text = serde_json::to_string_pretty(&conflist).expect("JSON");
    // Spaces of its own as well.
    format!("{text}{}\n", " ".repeat(turn as usize % 7))
}

/// Writes a hundred times, in every way that is in use, with pauses from nothing to longer than the agent needs.
fn overwrite(cluster: &Cluster) {
    for turn in 1..=WRITES {
        if turn % 2 == 0 {
            fs::write(cluster.conflist(), written(turn)).expect("written in place");
        } else {
            replace(&cluster.conflist(), &written(turn));
        }
        // Some are in the middle of the agent's work, and each tenth leaves it the time to finish.
        let pause = if turn % 10 == 0 { 1200 } else { turn * 37 % 90 };
        sleep(Duration::from_millis(pause));
    }
}

fn count_captured(cluster: &Cluster, pods: &[(PodSpec, Sandbox)]) -> BTreeSet<String> {
    let captured = pods.iter().filter(|(_, sandbox)| is_captured_bare(&cluster.node, sandbox));
    captured.map(|(spec, _)| spec.name.clone()).collect()
}

#[test]
fn a_hundred_overwritten_conflists() {
    let cluster = Cluster::start(&[("NATIVE_NFTABLES", "true")]);
    let done = AtomicBool::new(false);
    let (next, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let run = || {
        let mut pods = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            assert!(number < MOST_PODS, "the writer does not end");
            let spec = sidecar_pod("default", &format!("pod-{number}"));
            cluster.admit(&spec);
            match cluster.run_bare(&spec) {
                Ok(sandbox) => pods.push((spec, sandbox)),
                // containerd met half a file; the kubelet would try again.
                Err(error) => {
                    println!("refused: {error}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        pods
    };
    let pods: Vec<(PodSpec, Sandbox)> = thread::scope(|scope| {
        let runners: Vec<_> = (0..RUNNERS).map(|_| scope.spawn(run)).collect();
        overwrite(&cluster);
        done.store(true, Ordering::Relaxed);
        runners.into_iter().flat_map(|runner| runner.join().expect("a runner")).collect()
    });

    // A pod that containerd started with a conflist of ours is captured; those of the other writer's do not know us.
    let captured = count_captured(&cluster, &pods);
    let told = |spec: &PodSpec| cluster.has_logged(spec, "pod is captured");
    let called: BTreeSet<String> =
        pods.iter().filter(|(spec, _)| told(spec)).map(|(spec, _)| spec.name.clone()).collect();
    println!("{} pods, {} captured, {} refused", pods.len(), captured.len(), refused.into_inner());
    assert_eq!(captured, called, "captured, and those for which the plugin was called");
    assert!(!captured.is_empty() && !pods.is_empty());

    cluster.wait_ready();
    for number in 0..10 {
        let spec = sidecar_pod("default", &format!("after-{number}"));
        cluster.admit(&spec);
        let sandbox = cluster.must_run_bare(&spec);
        check_captured(&cluster.node, &sandbox, &spec.name);
    }
    let mut healed: Value =
        serde_json::from_slice(&fs::read(cluster.conflist()).expect("a conflist")).expect("JSON");
    let plugins = healed["plugins"].as_array_mut().expect("plugins");
    assert_eq!(plugins.pop().expect("the last one")["type"], PLUGIN);
    assert_eq!(
        healed,
        serde_json::from_str::<Value>(&written(WRITES)).expect("JSON"),
        "the rest is the writer's"
    );
    let log = cluster.agent_log();
    assert!(log.contains("was overwritten; the plugin is put in again"), "{log}");

    // At its end the agent leaves what the other component wrote last, to the byte, and nothing else.
    cluster.terminate_agent();
    assert_eq!(fs::read_to_string(cluster.conflist()).expect("a conflist"), written(WRITES));
    let names: Vec<_> =
        fs::read_dir(cluster.node.conf_dir()).expect("net.d").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, [CONFLIST]);
}
