//! What the pods of a large cluster take of memory, in their store and while they are listed, by a counting allocator. A program of its own,
//! because the allocator is everybody's.
// clippy takes helpers outside of #[test] for production code
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::news::{ObjectKey, Uid};
use cluster::peers::Peers;
use cluster::{Access, ApiConnection, Cluster, Limits, Source, Wanted};
use facts::networkpolicy::PolicyProtocol;
use facts::peer::{NamedPort, Peer, Phase};
use serde_json::json;
use testkit::apiserver::{ApiServer, Fault};

struct Counting;

thread_local! {
    /// Bytes that this thread has taken and not given back, and the most that these were. Each test has a thread of its own, and what stands for the
    /// API server has others.
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends is no longer counted.
    let now = IN_USE.try_with(|in_use| {
        in_use.set(in_use.get() + bytes);
        in_use.get()
    });
    let _ = MOST.try_with(|most| most.set(most.get().max(now.unwrap_or_default())));
}

/// Above a mark that no thread comes below: one may give back what another took.
fn in_use() -> usize {
    above(IN_USE.get())
}

fn above(bytes: isize) -> usize {
    usize::try_from(bytes + (1 << 30)).unwrap()
}

/// What the C library's allocator adds to each block, and rounds it up to.
fn block(size: usize) -> isize {
    (size + 8).next_multiple_of(16).max(32) as isize
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(block(layout.size()));
        // SAFETY: the caller keeps the contract of the same function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-block(layout.size()));
        // SAFETY: the caller keeps the contract of the same function.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PODS: usize = 100_000;
const NAMESPACES: usize = 200;
/// Pods of one workload.
const REPLICAS: usize = 10;

/// The pod of a number: of ten workloads one is a StatefulSet, whose pods have labels of their own.
fn pod(number: usize) -> (ObjectKey, Uid, Peer) {
    let (workload, replica) = (number / REPLICAS, number % REPLICAS);
    let namespace = format!("team-{}", workload % NAMESPACES);
    let (app, stateful) = (format!("service-{workload}"), workload % 10 == 0);
    let mut labels = vec![
        ("app".to_owned(), app.clone()),
        ("app.kubernetes.io/instance".to_owned(), app.clone()),
        ("app.kubernetes.io/managed-by".to_owned(), "Helm".to_owned()),
        ("app.kubernetes.io/part-of".to_owned(), namespace.clone()),
        ("security.istio.io/tlsMode".to_owned(), "istio".to_owned()),
        ("version".to_owned(), format!("v{}", workload % 3)),
    ];
    let hash = format!("{:010x}", workload.wrapping_mul(0x9e37_79b9_7f4a) & 0xff_ffff_ffff);
    let name = if stateful {
        let name = format!("{app}-{replica}");
        labels.push(("apps.kubernetes.io/pod-index".into(), replica.to_string()));
        labels.push(("controller-revision-hash".into(), format!("{app}-{hash}")));
        labels.push(("statefulset.kubernetes.io/pod-name".into(), name.clone()));
        name
    } else {
        labels.push(("pod-template-hash".into(), hash.clone()));
        format!("{app}-{hash}-{:05x}", number.wrapping_mul(7919) & 0xf_ffff)
    };
    let low = u32::try_from(number).unwrap();
    let v4 = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + low));
    let v6 = IpAddr::V6(Ipv6Addr::from_bits((0xfd00 << 112) + u128::from(low)));
    let port = |name: &str, number| NamedPort { name: name.into(), protocol: PolicyProtocol::Tcp, number };
    let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let peer = Peer {
        labels,
        addresses: [v4, v6].into(),
        ports: [port("http", 8080), port("metrics", 9090)].into(),
        phase: Phase::Running,
        host_network: false,
        is_deleting: false,
        created: 20_261_129_100_000,
        node: format!("node-{}", number % 1000).into(),
    };
    let uid = Uid::new(&format!("{:08x}-0000-4000-8000-{:012x}", workload, number));
    (ObjectKey::new(namespace, name), uid, peer)
}

/// The budget of a pod, indexes included. Dual stack, so that it is the larger case.
const BUDGET: usize = 400;

#[test]
fn a_pod_takes_no_more_than_its_budget() {
    let before = in_use();
    let mut peers = Peers::default();
    for number in 0..PODS {
        let (key, uid, peer) = pod(number);
        assert!(peers.apply(key, uid, peer).is_some());
    }
    let full = in_use() - before;
    // Every pod is replaced once, in another order: what is shared is let go and taken again.
    for number in 0..PODS {
        let (key, _, peer) = pod(number.wrapping_mul(7919) % PODS);
        peers.apply(key, Uid::new("another"), Peer { created: 1, ..peer }).unwrap();
    }
    let churned = in_use() - before;
    println!("{PODS} pods: {} bytes each, {} after each was replaced", full / PODS, churned / PODS);
    assert_eq!(peers.len(), PODS);
    assert!(
        full / PODS <= BUDGET && churned / PODS <= BUDGET,
        "{} and {} bytes",
        full / PODS,
        churned / PODS
    );
    let view = peers.by_address(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + 77_777))).unwrap();
    assert_eq!((view.namespace(), view.label("app")), ("team-177", Some("service-7777")));
}

/// The list of all pods as an API server writes it, in one piece.
fn list() -> String {
    let mut text = String::from(
        r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"999999"},"items":["#,
    );
    for number in 0..PODS {
        let (key, _, peer) = pod(number);
        let addresses: Vec<_> =
            peer.addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
        let ports =
            json!([{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}]);
        let pod = json!({
            "metadata": {"namespace": *key.namespace, "name": *key.name, "uid": format!("uid-{number}"), "labels": peer.labels.to_map(),
                "resourceVersion": (number + 1).to_string(), "creationTimestamp": "2026-11-29T10:00:00Z",
                "annotations": {"example.com/checksum": "0123456789abcdef0123456789abcdef0123456789abcdef"}},
            "spec": {"nodeName": "n2", "containers": [{"name": "app", "image": "registry.example/team/app:1.2.3", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": addresses},
        });
        if number > 0 {
            text.push(',');
        }
        write!(text, "{pod}").unwrap();
    }
    text + "]}"
}

/// However many pods there are, no more of a list than an object is in memory.
#[tokio::test]
async fn a_list_of_all_pods_takes_no_more_than_what_is_kept_of_them() {
    let server = ApiServer::start().unwrap();
    let account = tempfile::tempdir().unwrap();
    server.write_service_account(account.path()).unwrap();
    let list = std::thread::spawn(list).join().unwrap();
    let length = list.len();
    server.fail_path("status.phase", 1, Fault::Body(list));
    let (host, port) = (server.address().ip().to_string(), server.address().port().to_string());
    let connection = Arc::new(ApiConnection::new(Access::in_cluster(&host, &port, account.path()), "1.2.3"));
    let mut wanted = Wanted::default();
    let peers = wanted.peers(tokio::sync::watch::channel(true).1, |_| {});
    let source = Source::Kubernetes { connection, node: "n1".into(), own: None, limits: Limits::default() };
    let (begun, before) = (Instant::now(), in_use());
    let watch = tokio::spawn(cluster::watch::run(source, Cluster::wanting(wanted), |_| {}));
    let wait = testkit::Wait::new("all pods are listed", Duration::from_secs(300));
    while !peers.read().is_listed() {
        let pause = wait.pause(|| format!("{} pods are known", peers.read().len()));
        tokio::time::sleep(pause.unwrap()).await;
    }
    let (kept, most) = (in_use() - before, above(MOST.get()) - before);
    println!(
        "a list of {PODS} pods, {} MiB of text, in {:.1?}: {} MiB kept, {} MiB at most",
        length >> 20,
        begun.elapsed(),
        kept >> 20,
        most >> 20
    );
    assert_eq!(peers.read().len(), PODS);
    assert!(kept / PODS <= BUDGET && most - kept < 4 << 20, "{kept} and {most} bytes");
    watch.abort();
}
