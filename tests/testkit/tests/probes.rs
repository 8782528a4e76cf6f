//! Probes through hand-written rules: what they report is what the kernel did.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use testkit::probe::{Arrival, Flow, Listener, Listeners, Outcome, tcp, udp};
use testkit::rules::{Comments, Family, Variant};
use testkit::{Families, Pod};

const PROXY: u32 = 1337;
const APP: u32 = 1000;
const SHORT: Duration = Duration::from_millis(200);

/// Addresses that no interface has, one of each family.
fn far(port: u16) -> [SocketAddr; 2] {
    let v4 = Ipv4Addr::new(198, 51, 100, 7);
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
    [(v4, port).into(), (v6, port).into()]
}

/// `nft` 1.0.6 wants a line's end after each block.
fn load(pod: &Pod, rules: &str) {
    pod.nft(&rules.replace('}', "}\n")).expect("nft takes the rules of a test");
}

fn reached(outcome: &Outcome) -> Arrival {
    *outcome.arrival().unwrap_or_else(|| panic!("no listener reached: {outcome}"))
}

#[test]
fn without_rules_a_probe_reaches_the_address_it_asks_for() {
    let pod = Pod::new(Families::Dual).unwrap();
    let world = Listeners::start(pod.peer(), [Listener::tcp(80), Listener::udp(53)]).unwrap();
    for (dst, own) in far(80).into_iter().zip(pod.ips()) {
        let arrival = reached(&tcp(&pod, APP, APP, dst).unwrap());
        assert_eq!((arrival.listener_port, arrival.local, arrival.peer.ip()), (80, dst, *own));
        assert_eq!(arrival.destination(), dst);
    }
    for (dst, own) in far(53).into_iter().zip(pod.ips()) {
        let arrival = reached(&udp(&pod, APP, APP, dst).unwrap());
        assert_eq!((arrival.listener_port, arrival.local, arrival.peer.ip()), (53, dst, *own));
    }
    let records = world.take_records();
    assert_eq!(records.iter().filter(|r| r.udp).count(), 2);
    assert_eq!(records.len(), 4);
    assert!(world.take_records().is_empty());
}

#[test]
fn refused_and_dropped_are_told_apart() {
    let pod = Pod::new(Families::Dual).unwrap();
    let _world = Listeners::start(pod.peer(), [Listener::tcp(80)]).unwrap();
    load(
        &pod,
        "table inet t { chain o { type filter hook output priority 0; tcp dport 81 drop; udp dport 81 drop; } }",
    );
    for index in 0..2 {
        assert_eq!(tcp(&pod, 0, 0, far(82)[index]).unwrap(), Outcome::Refused);
        assert_eq!(udp(&pod, 0, 0, far(82)[index]).unwrap(), Outcome::Refused);
        assert_eq!(Flow::from(&pod).patience(SHORT).tcp(far(81)[index]).unwrap(), Outcome::TimedOut);
        assert!(tcp(&pod, 0, 0, far(80)[index]).unwrap().port() == Some(80));
    }
    let v4 = Pod::new(Families::V4).unwrap();
    let outcome = tcp(&v4, 0, 0, far(80)[1]).unwrap();
    assert!(matches!(outcome, Outcome::Failed(_)), "no IPv6 route: {outcome}");
}

#[test]
fn a_redirect_of_one_user_shows_the_original_destination() {
    let pod = Pod::new(Families::Dual).unwrap();
    let _proxy = Listeners::start(&pod, [Listener::tcp(15001), Listener::udp(15053)]).unwrap();
    let _world = Listeners::start(pod.peer(), [Listener::tcp(80), Listener::udp(53)]).unwrap();
    load(&pod, "table inet t { chain o { type nat hook output priority -100; meta skuid 1337 return; meta skgid 1338 return;
         meta l4proto tcp redirect to :15001; udp dport 53 redirect to :15053; } }");
    for index in 0..2 {
        let dst = far(80)[index];
        let arrival = reached(&tcp(&pod, APP, APP, dst).unwrap());
        assert_eq!((arrival.listener_port, arrival.original_dst), (15001, Some(dst)));
        assert_eq!(tcp(&pod, PROXY, APP, dst).unwrap().port(), Some(80), "user {PROXY} is exempt");
        assert_eq!(tcp(&pod, APP, 1338, dst).unwrap().port(), Some(80), "group 1338 is exempt");
        assert_eq!(udp(&pod, APP, APP, far(53)[index]).unwrap().port(), Some(15053));
        assert_eq!(udp(&pod, PROXY, PROXY, far(53)[index]).unwrap().port(), Some(53));
    }
}

#[test]
fn the_world_connects_to_the_pod_from_any_address() {
    let pod = Pod::new(Families::Dual).unwrap();
    let _app = Listeners::start(&pod, [Listener::tcp(8080), Listener::tcp(15006)]).unwrap();
    load(
        &pod,
        "table inet t { chain p { type nat hook prerouting priority -100; tcp dport 8080 redirect to :15006; } }",
    );
    for (source, own) in far(0).into_iter().zip(pod.ips()) {
        let dst = SocketAddr::new(*own, 8080);
        let arrival = reached(&Flow::from(pod.peer()).source(source).tcp(dst).unwrap());
        assert_eq!((arrival.listener_port, arrival.original_dst), (15006, Some(dst)));
        assert_eq!(arrival.peer.ip(), source.ip());
    }
}

#[test]
fn tproxy_keeps_both_addresses() {
    let pod = Pod::new(Families::Dual).unwrap();
    let _proxy = Listeners::start(&pod, [Listener::tcp(15006).transparent()]).unwrap();
    load(
        &pod,
        "table inet t { chain p { type filter hook prerouting priority -150;
         iifname eth0 tcp dport 8080 tproxy to :15006 meta mark set 1337 accept; } }",
    );
    for family in ["-4", "-6"] {
        for what in ["rule add fwmark 1337 lookup 133", "route add local default dev lo table 133"] {
            pod.run(std::process::Command::new("ip").arg(family).args(what.split(' '))).unwrap();
        }
    }
    for (source, own) in far(0).into_iter().zip(pod.ips()) {
        let dst = SocketAddr::new(*own, 8080);
        let arrival = reached(&Flow::from(pod.peer()).source(source).tcp(dst).unwrap());
        assert_eq!((arrival.listener_port, arrival.local, arrival.peer.ip()), (15006, dst, source.ip()));
        assert_eq!(arrival.destination(), dst);
    }
}

#[test]
fn more_interfaces_have_addresses_of_their_own() {
    let mut pod = Pod::new(Families::Dual).unwrap();
    let ips = pod.add_interface("net1").unwrap().pod.clone();
    let _app = Listeners::start(&pod, [Listener::tcp(8080), Listener::tcp(15006)]).unwrap();
    load(
        &pod,
        "table inet t { chain p { type nat hook prerouting priority -100; iifname != net1 tcp dport 8080 redirect to :15006; } }",
    );
    for (eth0, net1) in pod.ips().iter().zip(&ips) {
        assert_eq!(tcp(pod.peer(), 0, 0, (*eth0, 8080).into()).unwrap().port(), Some(15006));
        assert_eq!(tcp(pod.peer(), 0, 0, (*net1, 8080).into()).unwrap().port(), Some(8080));
    }
}

#[test]
fn an_http_listener_answers_a_real_request() {
    let pod = Pod::new(Families::V4).unwrap();
    let world = Listeners::start(pod.peer(), [Listener::http(80)]).unwrap();
    let answer = Flow::from(&pod)
        .exchange(far(80)[0], b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(Arrival::from_text(body.as_bytes()).unwrap().local, far(80)[0]);
    assert!(world.take_records()[0].data.starts_with(b"GET /x "));
}

#[test]
fn nft_lists_compare_without_handles_counters_and_comments() {
    let [one, two] = [Pod::new(Families::V4).unwrap(), Pod::new(Families::V4).unwrap()];
    let rules = |why: &str| {
        format!(
            "table ip t {{ set s {{ type inet_service; elements = {{ 80, 443 }}; }}
             chain o {{ type filter hook output priority 0; counter accept comment \"{why}\"; }} }}"
        )
    };
    load(&one, "table ip gone { chain c { } }");
    load(&one, "delete table ip gone");
    load(&one, &rules("first"));
    load(&two, &rules("second"));
    assert_eq!(tcp(&one, 0, 0, far(80)[0]).unwrap(), Outcome::Refused, "counted in one of the two only");
    let lists = [&one, &two].map(|pod| pod.nft_json(Comments::Strip).unwrap());
    assert_eq!(lists[0], lists[1]);
    assert_eq!(lists[0].len(), 4, "table, set, chain, rule: {:?}", lists[0]);
    assert_ne!(one.nft_json(Comments::Keep).unwrap(), two.nft_json(Comments::Keep).unwrap());
    assert!(one.nft_text().unwrap().contains("comment \"first\""));
}

#[test]
fn iptables_lists_have_policies_and_no_counters() {
    let pod = Pod::new(Families::Dual).unwrap();
    let rules = "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\nCOMMIT\n";
    for variant in [Variant::Nft, Variant::Legacy] {
        for family in [Family::V4, Family::V6] {
            pod.iptables_restore(variant, family, rules).unwrap();
            let list = pod.iptables_save(variant, family).unwrap();
            let mut lines: Vec<_> = list.lines().collect();
            lines.sort_unstable();
            let expected = [
                "*nat",
                "-A OUTPUT -p tcp -j ISTIO_OUTPUT",
                ":INPUT ACCEPT",
                ":ISTIO_OUTPUT -",
                ":OUTPUT ACCEPT",
                ":POSTROUTING ACCEPT",
                ":PREROUTING ACCEPT",
                "COMMIT",
            ];
            assert_eq!(lines, expected, "{variant:?} {family:?}");
        }
    }
}
