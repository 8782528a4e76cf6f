//! A running sidecar pod whose rules change, in real namespaces, by all three ways to load them, with real packets. Needs root and the packages
//! iptables, nftables and iproute2.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/way.rs"]
mod way;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use capture::settings::{CAPTURE_PORT, PROXY_PORT, PortChoice};
use capture::{PlanInputs, PlanTarget, Settings};
use kernel::iptables::Iptables;
use kernel::nft::Nftables;
use kernel::sockets::Sockets;
use kernel::{Applied, Change, Choice, Difference, Kernel};
use ruleset::Plan;
use testkit::probe::answer_bytes;
use testkit::{Families, Pod, TestNetns};
use way::Way;

const PATIENCE: Duration = Duration::from_millis(1500);
/// How long connections are used after their pod began to drain.
const USED: Duration = Duration::from_secs(5);
/// A port of servers in both namespaces.
const SERVER: u16 = 8080;

impl Way {
    fn inputs(self, settings: Settings) -> PlanInputs {
        PlanInputs { settings, target: PlanTarget { backend: self.backend(), ipv6: true } }
    }

    fn kernel<R>(self, iptables: &Iptables, f: impl FnOnce(Kernel<'_>) -> R) -> R {
        f(Kernel { nftables: &Nftables, iptables })
    }

    fn apply(self, ns: &TestNetns, plan: &Plan, before: &[&Plan]) -> Applied {
        let before = before.iter().flat_map(|plan| plan.layers.clone()).collect();
        self.kernel(&self.iptables().replacing(before), |kernel| {
            ns.enter(|inside| kernel.apply(inside, Choice::Only(plan.backend), |_| plan.clone()))
        })
        .unwrap()
        .unwrap()
    }

    fn observe(self, ns: &TestNetns, plan: &Plan) -> Vec<Difference> {
        self.kernel(&self.iptables(), |kernel| ns.enter(|inside| kernel.observe(inside, plan)))
            .unwrap()
            .unwrap()
    }

    fn cleanup(self, ns: &TestNetns, plan: &Plan) -> Change {
        self.kernel(&Iptables::new(), |kernel| ns.enter(|inside| kernel.cleanup(inside, plan)))
            .unwrap()
            .unwrap()
    }
}

/// A captured pod whose proxy answers everything itself, and servers on both sides.
struct Lab {
    pod: Pod,
    way: Way,
}

impl Lab {
    fn new(way: Way, settings: Settings) -> Self {
        let pod = Pod::new(Families::Dual).unwrap();
        for port in [PROXY_PORT, CAPTURE_PORT] {
            answer_bytes(&pod, port, b'p').unwrap();
        }
        for namespace in [pod.own(), pod.peer()] {
            answer_bytes(namespace, SERVER, b's').unwrap();
        }
        way.apply(&pod, &way.inputs(settings).plan(), &[]);
        Self { pod, way }
    }

    /// One connection in each direction and family, with what it is.
    fn connect(&self) -> Vec<(String, TcpStream)> {
        let far = [IpAddr::from([198, 51, 100, 7]), "2001:db8::7".parse().unwrap()];
        let ways = [(false, far[0]), (false, far[1]), (true, Pod::V4), (true, Pod::V6)];
        ways.map(|(inbound, ip)| {
            let what = format!("{:?}, {} {ip}", self.way, if inbound { "inbound to" } else { "outbound to" });
            (what, self.open(inbound, SocketAddr::new(ip, SERVER)))
        })
        .into()
    }

    fn open(&self, inbound: bool, to: SocketAddr) -> TcpStream {
        let from = if inbound { self.pod.peer() } else { self.pod.own() };
        let stream = from.enter(|_| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Connections that the proxy has.
    fn redirected(&self) -> usize {
        let list = |inside: &netns::Inside| Sockets::open(inside)?.list(PROXY_PORT..=CAPTURE_PORT);
        self.pod.enter(list).unwrap().unwrap().len()
    }
}

/// Who answers: `p` is the proxy, `s` a server.
fn asked(what: &str, mut stream: &TcpStream) -> char {
    let mut heard = [0];
    stream.write_all(b"?").unwrap_or_else(|error| panic!("{what}: {error}"));
    stream.read_exact(&mut heard).unwrap_or_else(|error| panic!("{what}: {error}"));
    heard[0].into()
}

#[test]
fn what_is_redirected_goes_on_while_a_pod_drains_and_what_is_new_goes_past_the_proxy() {
    let drain = |way: Way| {
        let settings = Settings { excluded_interfaces: vec!["net7".to_owned()], ..Settings::default() };
        let lab = Lab::new(way, settings.clone());
        let inputs = way.inputs(settings);
        let before = lab.connect();
        before.iter().for_each(|(what, stream)| assert_eq!(asked(what, stream), 'p', "{what}"));
        assert_eq!(way.apply(&lab.pod, &inputs.plan_drain(), &[&inputs.plan()]).rules, Change::Replaced);
        assert_eq!(way.observe(&lab.pod, &inputs.plan_drain()), []);
        assert!(!rules_of(&lab.pod).contains("net7"), "{way:?}: nothing but what the drain needs is left");
        let began = Instant::now();
        while began.elapsed() < USED {
            before
                .iter()
                .for_each(|(what, stream)| assert_eq!(asked(what, stream), 'p', "{what}, from before"));
            std::thread::sleep(Duration::from_millis(250));
        }
        let after = lab.connect();
        after.iter().for_each(|(what, stream)| assert_eq!(asked(what, stream), 's', "{what}, new"));
        assert_eq!(lab.redirected(), before.len());
        drop(before);
        testkit::until("connections", PATIENCE, || lab.redirected() == 0, || "open still").unwrap();
        assert_eq!(way.cleanup(&lab.pod, &inputs.plan()), Change::Fresh);
        assert_eq!(way.cleanup(&lab.pod, &inputs.plan()), Change::None);
        assert!(!rules_of(&lab.pod).contains("istio"), "{way:?}");
        after.iter().for_each(|(what, stream)| assert_eq!(asked(what, stream), 's', "{what}, at the end"));
    };
    std::thread::scope(|scope| {
        for way in Way::ALL {
            scope.spawn(move || drain(way));
        }
    });
}

fn rules_of(ns: &TestNetns) -> String {
    let line = "nft -s list ruleset; for p in iptables ip6tables; do $p-legacy-save; $p-nft-save; done; ip -6 addr show dev lo";
    ns.run(std::process::Command::new("sh").args(["-ec", line])).unwrap().to_lowercase()
}

/// Rules that are replaced by others: what is open goes on as it is, and new connections go by the new ones.
#[test]
fn settings_that_change_leave_open_connections_and_nothing_of_the_old_rules() {
    for way in Way::ALL {
        let old = Settings {
            excluded_interfaces: vec!["net7".to_owned()],
            reroute_interfaces: vec!["net8".to_owned()],
            ..Settings::default()
        };
        let new = Settings { outbound_ports_excluded: PortChoice::Only(vec![SERVER]), ..Settings::default() };
        let lab = Lab::new(way, old.clone());
        let (old, new) = (way.inputs(old).plan(), way.inputs(new).plan());
        let before = lab.connect();
        before.iter().for_each(|(what, stream)| assert_eq!(asked(what, stream), 'p', "{what}"));
        assert_eq!(way.apply(&lab.pod, &new, &[&old]).rules, Change::Replaced);
        assert_eq!(way.observe(&lab.pod, &new), []);
        let rules = rules_of(&lab.pod);
        assert!(!rules.contains("net7") && !rules.contains("net8"), "{way:?}: {rules}");
        before.iter().for_each(|(what, stream)| assert_eq!(asked(what, stream), 'p', "{what}, from before"));
        for (what, stream) in &lab.connect() {
            let expected = if what.contains("outbound") { 's' } else { 'p' };
            assert_eq!(asked(what, stream), expected, "{what}, new");
        }
        // And back again.
        assert_eq!(way.apply(&lab.pod, &old, &[&new]).rules, Change::Replaced);
        assert_eq!(way.observe(&lab.pod, &old), []);
        lab.connect().iter().for_each(|(what, stream)| assert_eq!(asked(what, stream), 'p', "{what}, again"));
    }
}

/// A rule with the text of one that we had may be somebody else's, where there are more of them.
#[test]
fn a_rule_of_others_with_the_text_of_an_old_one_stays() {
    for way in &Way::ALL[1..] {
        let old = Settings { excluded_interfaces: vec!["net7".to_owned()], ..Settings::default() };
        let lab = Lab::new(*way, old.clone());
        let program = if format!("{way:?}").contains("Legacy") { "iptables-legacy" } else { "iptables-nft" };
        let add = format!("{program} -t nat -A PREROUTING -i net7 -j RETURN");
        lab.pod.run(std::process::Command::new("sh").args(["-ec", &add])).unwrap();
        let (old, new) = (way.inputs(old).plan(), way.inputs(Settings::default()).plan());
        way.apply(&lab.pod, &new, &[&old]);
        assert_eq!(rules_of(&lab.pod).matches("-i net7").count(), 1, "{way:?}");
    }
}
