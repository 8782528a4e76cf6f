//! Many pods at once.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use node::Sandbox;

use crate::fixture::{Mesh, PLUGIN, check_captured, sidecar_pod};

pub(crate) const PODS: usize = 50;
const AT_ONCE: usize = 8;

/// Runs `work` for 0..count on [`AT_ONCE`] threads and returns the results in order.
pub(crate) fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let take = || {
            std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < count))
                .map(|i| (i, work(i)))
                .collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(take)).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a worker")).collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn fifty_pods_come_and_go(native_nftables: bool) {
    let mesh = Mesh::start(native_nftables);
    let before = traces(&mesh);
    let pods: Vec<Sandbox> = in_parallel(PODS, |i| {
        let spec = sidecar_pod("default", &format!("pod-{i}"));
        if has_containers(i) { mesh.must_run(&spec) } else { mesh.must_run_bare(&spec) }
    });

    in_parallel(PODS, |i| check_captured(&mesh.node, &pods[i], &format!("pod {i}")));
    let addresses: BTreeSet<String> =
        pods.iter().map(|p| mesh.node.status(p).expect("a status").ip).collect();
    assert_eq!(addresses.len(), PODS, "every pod has its own address");
    assert_eq!(mesh.node.calls_of(PLUGIN, "ADD").expect("records").len(), PODS);

    in_parallel(PODS, |i| {
        mesh.node.stop_pod(&pods[i]).expect("stopped");
        mesh.node.remove_pod(&pods[i]).expect("removed");
    });
    assert_eq!(mesh.node.pods().expect("the pods"), Vec::<String>::new());
    assert!(mesh.dels().iter().all(|del| del.code == 0));
    assert_eq!(traces(&mesh), before, "what the pods left on the node");
}

/// Containers cost far more than the chain, so most pods of a crowd are sandboxes only.
pub(crate) fn has_containers(index: usize) -> bool {
    index.is_multiple_of(10)
}

/// Everything on the node that a pod could leave: files of the plugin's, namespaces, links, rules, policy routes.
fn traces(mesh: &Mesh) -> BTreeSet<String> {
    let files = |dir: &std::path::Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    // The plugin's own log and the file of its locks are meant to stay, and the folder of its records, which go with their pods.
    let stays = ["istio-cni.log", rundir::LOCKS_NAME, "applied"];
    let own = files(&mesh.run_dir()).into_iter().filter(|f| !stays.contains(&f.as_str()));
    let records = files(&mesh.run_dir().join("applied")).into_iter().map(|f| format!("applied/{f}"));
    let mut seen: BTreeSet<String> = own.chain(records).map(|f| format!("file {f}")).collect();
    let lists: [&[&str]; 7] = [
        &["ls", "/run/netns"],
        &["sh", "-c", "ip -o link | grep veth"],
        &["nft", "list", "ruleset"],
        &["iptables-save"],
        &["iptables-legacy-save"],
        &["ip", "rule"],
        &["sh", "-c", "grep -l istio-cni /proc/[0-9]*/comm"],
    ];
    for command in lists {
        let listed = mesh.node.exec(command).expect("it runs").stdout;
        let lines = listed.lines().filter(|l| !l.starts_with(['#', ':']));
        seen.extend(lines.map(|line| format!("{}: {line}", command.join(" "))));
    }
    seen
}

#[test]
fn fifty_pods_with_nf_tables() {
    fifty_pods_come_and_go(true);
}

#[test]
fn fifty_pods_with_iptables() {
    fifty_pods_come_and_go(false);
}
