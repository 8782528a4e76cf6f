//! A guarded pod beside a sidecar's redirection: both are loaded in one piece, the pod's own rules take the guard's place in one, and no packet
//! passes in between that neither lets pass.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capture::settings::{CAPTURE_PORT, Mode, PROXY_ID};
use capture::{PlanTarget, Settings};
use facts::networkpolicy::Isolation;
use kernel::nft::Nftables;
use kernel::sets::Sets;
use kernel::{Change, Choice, Kernel};
use policy::compile::PodPoint;
use policy::guard::{Admitted, no_rules, plan_guard};
use ruleset::{Plan, Ruleset};
use serde_json::json;
use testkit::probe::{Flow, Listener, Listeners};
use testkit::{Families, Pod};

use crate::own;
use crate::way::Way;

const ALLOWED: u16 = 8080;
const DENIED: u16 = 9090;
/// A packet that is dropped costs the whole of it.
const PATIENCE: Duration = Duration::from_millis(150);
/// How often rules take each other's place while packets come.
const ROUNDS: usize = 5;

/// What a policy makes of the pod that lets in port 8080 from everybody.
fn own_rules(pod: &Pod, way: Way) -> Ruleset {
    let spec = json!({"podSelector": {}, "ingress": [{"ports": [{"port": ALLOWED}]}]});
    own::own_rules(pod, &spec, &PodPoint::default(), way.backend())
}

fn apply(pod: &Pod, way: Way, plan: &Plan) -> Change {
    let iptables = way.iptables();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let applied = pod.enter(|inside| kernel.apply(inside, Choice::Only(plan.backend), |_| plan.clone()));
    applied.unwrap().unwrap().rules
}

fn load(pod: &Pod, way: Way, layers: Vec<Ruleset>) -> Change {
    apply(pod, way, &Plan { backend: way.backend(), routing: Vec::new(), layers })
}

fn reached(from: Flow<'_>, to: IpAddr, port: u16) -> Option<u16> {
    from.patience(PATIENCE).tcp(SocketAddr::new(to, port)).unwrap().port()
}

/// Datagrams to a denied port, as many as there is time for while `during` runs.
fn flood(pod: &Pod, during: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let send = |_: &netns::Inside| {
                let sockets = pod.ips().iter().map(|ip| {
                    let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
                    let socket = std::net::UdpSocket::bind((any, 0)).unwrap();
                    socket.connect((*ip, DENIED)).unwrap();
                    socket
                });
                let sockets: Vec<_> = sockets.collect();
                while !over.load(Ordering::Relaxed) {
                    for socket in &sockets {
                        // Errors are answers that a port is closed, which none is here.
                        let _ = socket.send(b"x");
                    }
                }
            };
            pod.peer().enter(send).unwrap();
        });
        during();
        over.store(true, Ordering::Relaxed);
    });
}

fn guarded(way: Way, mode: Mode) {
    let pod = Pod::new(Families::Dual).unwrap();
    let proxy = Listener::tcp(CAPTURE_PORT);
    let proxy = if mode == Mode::Tproxy { proxy.transparent() } else { proxy };
    let there = Listeners::start(&pod, [proxy, Listener::udp(DENIED)]).unwrap();
    let _world = Listeners::start(pod.peer(), [Listener::tcp(ALLOWED)]).unwrap();
    let node: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
    let admitted = Admitted { node: &node, probes: &[] };
    let settings = Settings { mode, ..Settings::default() };
    let sidecar = capture::plan(&settings, PlanTarget { backend: way.backend(), ipv6: true });
    let guard = || plan_guard(Isolation::BOTH, admitted, way.backend());
    let both = Plan { layers: [vec![guard()], sidecar.layers.clone()].concat(), ..sidecar.clone() };
    assert_eq!(apply(&pod, way, &both), Change::Fresh);

    let peer = || Flow::from(pod.peer());
    let app = || Flow::from(&pod).user(PROXY_ID, PROXY_ID);
    for (number, ip) in pod.ips().iter().enumerate() {
        let outside = pod.interfaces()[0].peer[number];
        assert_eq!(reached(peer(), *ip, ALLOWED), None, "{way:?} {mode:?}");
        let from_node = peer().source((node[number], 0).into());
        // What the guard lets pass is captured all the same.
        assert_eq!(reached(from_node, *ip, ALLOWED), Some(CAPTURE_PORT), "{way:?} {mode:?}");
        assert_eq!(reached(app(), outside, ALLOWED), None, "{way:?} {mode:?}");
    }
    let own = own_rules(&pod, way);
    pod.enter(|inside| Sets::open(inside, way.backend(), &own).unwrap().prepare().unwrap()).unwrap();
    drop(there.take_records());
    flood(&pod, || {
        for _ in 0..ROUNDS {
            assert_eq!(load(&pod, way, vec![own.clone()]), Change::Replaced);
            assert_eq!(load(&pod, way, vec![guard()]), Change::Replaced);
        }
        assert_eq!(load(&pod, way, vec![own.clone()]), Change::Replaced);
    });
    let passed = there.take_records();
    assert_eq!(passed.len(), 0, "{way:?} {mode:?}: {:?}", passed.first());
    for (number, ip) in pod.ips().iter().enumerate() {
        let outside = pod.interfaces()[0].peer[number];
        // Accepting ends the table that a transparent proxy is told by in iptables.
        if way == Way::Nft || mode == Mode::Redirect {
            assert_eq!(reached(peer(), *ip, ALLOWED), Some(CAPTURE_PORT), "{way:?} {mode:?}");
        }
        assert_eq!(reached(peer(), *ip, 8081), None, "{way:?} {mode:?}");
        assert_eq!(reached(app(), outside, ALLOWED), Some(ALLOWED), "{way:?} {mode:?}");
    }
    let iptables = way.iptables();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let lifted = Plan::of_layer(way.backend(), no_rules());
    pod.enter(|inside| kernel.cleanup(inside, &lifted)).unwrap().unwrap();
    assert_eq!(pod.enter(|inside| kernel.observe(inside, &sidecar)).unwrap().unwrap(), []);
    for ip in pod.ips() {
        assert_eq!(reached(peer(), *ip, 8081), Some(CAPTURE_PORT), "{way:?} {mode:?}");
    }
}

#[test]
fn a_guard_and_what_takes_its_place_let_nothing_pass_in_between() {
    std::thread::scope(|scope| {
        for way in Way::ALL {
            for mode in [Mode::Redirect, Mode::Tproxy] {
                scope.spawn(move || guarded(way, mode));
            }
        }
    });
}
