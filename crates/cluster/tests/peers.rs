//! What the store of peers takes of memory, by a counting allocator. A program of its own: the allocator counts everything.
// clippy takes helpers outside of #[test] for production code
#![allow(clippy::unwrap_used)]
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster::news::{Key, Uid};
use cluster::peers::Peers;
use facts::networkpolicy::Protocol;
use facts::peer::{NamedPort, Peer, Phase};

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// What the C library's allocator adds to each block, and rounds it up to.
fn block(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(block(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of the same function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(block(layout.size()), Ordering::Relaxed);
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
fn pod(number: usize) -> (Key, Uid, Peer) {
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
    let port = |name: &str, number| NamedPort { name: name.into(), protocol: Protocol::Tcp, number };
    let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let peer = Peer {
        labels,
        addresses: [v4, v6].into(),
        ports: [port("http", 8080), port("metrics", 9090)].into(),
        phase: Phase::Running,
        host_network: false,
        is_deleting: false,
        created: 20_261_129_100_000,
    };
    let uid = Uid::new(&format!("{:08x}-0000-4000-8000-{:012x}", workload, number));
    (Key::new(namespace, name), uid, peer)
}

/// The budget of a pod, indexes included. Dual stack, so that it is the larger case.
const BUDGET: usize = 400;

#[test]
fn a_pod_takes_no_more_than_its_budget() {
    let before = IN_USE.load(Ordering::Relaxed);
    let mut peers = Peers::default();
    for number in 0..PODS {
        let (key, uid, peer) = pod(number);
        assert!(peers.apply(key, uid, peer).is_some());
    }
    let full = IN_USE.load(Ordering::Relaxed) - before;
    // Every pod is replaced once, in another order: what is shared is let go and taken again.
    for number in 0..PODS {
        let (key, _, peer) = pod(number.wrapping_mul(7919) % PODS);
        peers.apply(key, Uid::new("another"), Peer { created: 1, ..peer }).unwrap();
    }
    let churned = IN_USE.load(Ordering::Relaxed) - before;
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
