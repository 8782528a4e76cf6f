//! A hundred thousand events: nothing is lost, and memory stays as it is. A program of its own, because it looks at the memory of all of it.
// clippy takes helpers outside of #[test] for production code
#![allow(clippy::unwrap_used)]

#[path = "../cluster/agent.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod agent;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Cluster, Event, Queue};
use facts::PodRef;
use serde_json::json;
use testkit::apiserver::Resource;

use crate::agent::Setup;

const PODS: usize = 200;
const EVENTS: usize = 100_000;
/// By then the double has filled its history and both sides their buffers.
const WARM: usize = 20_000;

/// Resident memory of this process, in KiB: agent and double together.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Changes a pod, removes it, or makes it again, in an order without a short period.
fn happen(setup: &Setup, number: usize) {
    let name = format!("pod-{}", number.wrapping_mul(7919) % PODS);
    if number % 11 == 3 {
        setup.server.delete_pod("shop", &name);
    } else {
        setup.server.set_pod(
            json!({"metadata": {"namespace": "shop", "name": name, "labels": {"v": number.to_string()}},
            "spec": {"nodeName": "n1", "containers": [{"name": "app"}]}}),
        );
    }
}

/// What the server has: name to uid and label.
fn truth(setup: &Setup) -> BTreeMap<String, (String, String)> {
    let pods = setup.server.objects(Resource::Pods).into_iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    pods.map(|pod| {
        let metadata = &pod["metadata"];
        (text(&metadata["name"]), (text(&metadata["uid"]), text(&metadata["labels"]["v"])))
    })
    .collect()
}

fn known(cluster: &Cluster) -> BTreeMap<String, (String, String)> {
    let index = cluster.index();
    let pods = index.pods().map(|pod| {
        let labels = pod.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
        let label = labels.and_then(|labels| labels.get("v").cloned()).flatten().unwrap_or_default();
        (pod.name().to_owned(), (pod.uid().unwrap_or_default().to_owned(), label))
    });
    pods.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_events_lose_no_key_and_need_no_memory() {
    let setup = Arc::new(Setup::new());
    let (cluster, queue) = (Cluster::new(), Arc::new(Queue::<PodRef>::new()));
    let watch = tokio::spawn({
        let (source, cluster, queue) = (setup.source(), cluster.clone(), queue.clone());
        cluster::watch::run(source, cluster, move |event| {
            if let Event::Changed(keys) = event {
                keys.into_iter().for_each(|key| queue.push(key));
            }
        })
    });
    // what a worker saw last of each name: it must be the final state, or a key was lost
    let worker = tokio::spawn({
        let (cluster, queue) = (cluster.clone(), queue.clone());
        async move {
            let mut seen = BTreeMap::new();
            loop {
                let work = tokio::time::timeout(Duration::from_secs(3), queue.pop()).await;
                let Ok(work) = work else { return seen };
                let pod = cluster.index().pod("shop", &work.key().name).cloned();
                let uid = pod.and_then(|pod| pod.uid().map(String::from));
                seen.insert(work.key().name.clone(), uid);
                work.done();
            }
        }
    });
    let start = Instant::now();
    let wait = testkit::Wait::new("the index equals the server's state", Duration::from_secs(30));
    let (mut warm, mut most) = (0, 0);
    for number in 0..EVENTS {
        happen(&setup, number);
        if number == WARM {
            warm = resident();
        }
        if number % 1000 == 0 {
            most = most.max(resident());
            // nor does the double run ahead of any client by more than it keeps
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(queue.len() <= PODS * 50, "{}", queue.len());
    }
    let sent = start.elapsed();
    while known(&cluster) != truth(&setup) {
        tokio::time::sleep(wait.pause(|| "it does not").unwrap()).await;
    }
    println!(
        "{EVENTS} events: sent in {sent:?}, known after {:?}; RSS {warm} KiB after {WARM}, at most {most}",
        start.elapsed()
    );
    let seen = worker.await.unwrap();
    assert!(queue.is_empty());
    let truth = truth(&setup);
    for (name, last) in &seen {
        assert_eq!(last.as_ref(), truth.get(name).map(|(uid, _)| uid), "{name}");
    }
    assert_eq!(seen.len(), PODS);
    assert!(most.saturating_sub(warm) < 16 << 10, "{warm} KiB, then {most} KiB");
    watch.abort();
}
