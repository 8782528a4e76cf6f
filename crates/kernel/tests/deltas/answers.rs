//! What a pod's own rules deny is answered, beside a sidecar's redirection and without it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use capture::settings::{CAPTURE_PORT, Mode, PROXY_ID, PROXY_PORT};
use capture::{PlanTarget, Settings};
use kernel::nft::Nftables;
use kernel::sets::Sets;
use kernel::{Choice, Kernel};
use policy::compile::{DenialAnswer, PodPoint};
use ruleset::{Backend, Plan, Ruleset, check_for};
use rustix::io::Errno;
use serde_json::json;
use testkit::probe::{Flow, Listener, Listeners, Outcome};
use testkit::{Families, Pod};

use crate::own::own_rules;

const ALLOWED: u16 = 8080;
const DENIED: u16 = 9090;
/// A packet that is dropped costs the whole of it.
const PATIENCE: Duration = Duration::from_millis(250);
/// How the sender of a datagram is told in each family.
const PROHIBITED: [Errno; 2] = [Errno::HOSTUNREACH, Errno::ACCESS];

/// One port is allowed in both directions.
fn rules(pod: &Pod, answers_arriving: bool) -> Ruleset {
    let ports = json!([{"ports": [{"port": ALLOWED}]}]);
    let spec =
        json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": ports, "egress": ports});
    let point = PodPoint { answer: DenialAnswer::Always, answers_arriving, ..PodPoint::default() };
    let rules = own_rules(pod, &spec, &point, Backend::Nftables);
    check_for(&rules, Backend::Nftables).unwrap();
    rules
}

fn load(pod: &Pod, own: &Ruleset, mode: Option<Mode>) {
    let mut plan = Plan::of_layer(Backend::Nftables, own.clone());
    if let Some(mode) = mode {
        let settings = Settings { mode, ..Settings::default() };
        let sidecar = capture::plan(&settings, PlanTarget { backend: Backend::Nftables, ipv6: true });
        plan = Plan { layers: [plan.layers, sidecar.layers.clone()].concat(), ..sidecar };
    }
    pod.enter(|inside| Sets::open(inside, Backend::Nftables, own).unwrap().prepare().unwrap()).unwrap();
    let iptables = kernel::iptables::Iptables::new();
    let kernel = Kernel { nftables: &Nftables, iptables: &iptables };
    let apply =
        |inside: &netns::Inside| kernel.apply(inside, Choice::Only(Backend::Nftables), |_| plan.clone());
    pod.enter(apply).unwrap().unwrap();
}

#[test]
fn what_a_pod_is_denied_is_answered() {
    std::thread::scope(|scope| {
        for mode in [None, Some(Mode::Redirect), Some(Mode::Tproxy)] {
            scope.spawn(move || is_answered(mode));
        }
    });
}

fn is_answered(mode: Option<Mode>) {
    let pod = Pod::new(Families::Dual).unwrap();
    let proxy = Listener::tcp(CAPTURE_PORT);
    let proxy = if mode == Some(Mode::Tproxy) { proxy.transparent() } else { proxy };
    let both = || [Listener::tcp(ALLOWED), Listener::tcp(DENIED), Listener::udp(DENIED)];
    let _there =
        Listeners::start(&pod, [proxy, Listener::tcp(PROXY_PORT)].into_iter().chain(both())).unwrap();
    let _outside = Listeners::start(pod.peer(), both()).unwrap();
    for answers_arriving in [true, false] {
        load(&pod, &rules(&pod, answers_arriving), mode);
        let (refused, arriving) = match answers_arriving {
            true => (Outcome::Refused, PROHIBITED.map(Outcome::Failed)),
            false => (Outcome::TimedOut, [Outcome::TimedOut, Outcome::TimedOut]),
        };
        for (number, ip) in pod.ips().iter().enumerate() {
            let outside: IpAddr = pod.interfaces()[0].peer[number];
            let peer = || Flow::from(pod.peer()).patience(PATIENCE);
            // What the proxy sends for the application: with a sidecar only that leaves the pod.
            let own = || Flow::from(&pod).user(PROXY_ID, PROXY_ID).patience(PATIENCE);
            let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
            let port = if mode.is_some() { CAPTURE_PORT } else { ALLOWED };
            assert_eq!(peer().tcp(at(*ip, ALLOWED)).unwrap().port(), Some(port), "{mode:?}");
            assert_eq!(peer().tcp(at(*ip, DENIED)).unwrap(), refused, "{mode:?} {ip}");
            assert_eq!(peer().udp(at(*ip, DENIED)).unwrap(), arriving[number], "{mode:?} {ip}");
            assert_eq!(own().tcp(at(outside, ALLOWED)).unwrap().port(), Some(ALLOWED), "{mode:?}");
            assert_eq!(own().tcp(at(outside, DENIED)).unwrap(), Outcome::Refused, "{mode:?} {outside}");
            let leaving = own().udp(at(outside, DENIED)).unwrap();
            assert!(matches!(leaving, Outcome::Failed(_)), "{mode:?} {outside}: {leaving:?}");
            if mode.is_none() {
                continue;
            }
            // The application's own connection goes to the proxy whatever it asks for.
            let app = Flow::from(&pod).user(1000, 1000).patience(PATIENCE).tcp(at(outside, DENIED)).unwrap();
            assert_eq!(app.port(), Some(PROXY_PORT), "{mode:?} {outside}");
        }
    }
}
