//! What a node denies is answered, and what cannot be answered is dropped.

use policy::compile::{DenialAnswer, iptables_answers, no_iptables_answers};
use ruleset::Contents;
use testkit::probe::Outcome;

use super::*;

/// How a datagram ends of which the sender is told that it is prohibited, by `icmp_err_convert` and `icmpv6_err_convert`.
const PROHIBITED: [rustix::io::Errno; 2] = [rustix::io::Errno::HOSTUNREACH, rustix::io::Errno::ACCESS];

/// The second family, for the lab's nodes and pods.
fn add_ipv6(lab: &mut Lab) {
    lab.node.set_sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    // Each refusal is told.
    for (name, value) in [("net.ipv4.icmp_ratelimit", "0"), ("net.ipv6.icmp.ratelimit", "0")] {
        lab.node.set_sysctl(name, value).unwrap();
    }
    // Those of the kernel's choice are tried out first, for a second.
    let link_local = |ns: &TestNetns, last, link| {
        ns.ip(&[format!("address add fe80::{last}/64 dev {link} nodad")]).unwrap();
    };
    ["pod-a", "pod-b", "out"].into_iter().for_each(|link| link_local(&lab.node, 1, link));
    [&lab.a, &lab.b, &lab.outside].into_iter().for_each(|ns| link_local(ns, 2, "eth0"));
    lab.node.ip(&["address add fd00:1::1/128 dev pod-a nodad", "route add fd00:1::2 dev pod-a"]).unwrap();
    lab.node.ip(&["address add fd00:1::1/128 dev pod-b nodad", "route add fd00:1::3 dev pod-b"]).unwrap();
    lab.node.ip(&["address add 2001:db8::1/64 dev out nodad"]).unwrap();
    for (pod, own) in [(&lab.a, "fd00:1::2"), (&lab.b, "fd00:1::3")] {
        pod.ip(&[
            format!("address add {own}/128 dev eth0 nodad"),
            "route add fd00:1::1 dev eth0".to_owned(),
            "route add default via fd00:1::1".to_owned(),
        ])
        .unwrap();
    }
    lab.outside
        .ip(&["address add 2001:db8::9/64 dev eth0 nodad", "route add default via 2001:db8::1"])
        .unwrap();
    let both = || [Listener::tcp(8080), Listener::tcp(9090), Listener::udp(9090)];
    lab._listeners =
        [&lab.node, &lab.a, &lab.b, &lab.outside].map(|ns| Listeners::start(ns, both()).unwrap()).into();
}

fn answered(way: Way) -> (Lab, Option<PartedRules>) {
    let settings = EnforcementSettings { answer: DenialAnswer::Always, ..settings(way) };
    let mut lab = Lab::new(way, settings);
    lab._listeners.clear();
    add_ipv6(&mut lab);
    lab.put_pod("a6", "fd00:1::2", &json!({"app": "a"}));
    lab.put_pod("b6", "fd00:1::3", &json!({"app": "b"}));
    lab.isolate();
    let answers = matches!(way, Way::Iptables(_)).then(|| {
        let host = Host::open(lab.node.path()).unwrap();
        let (owner, kind) = (no_iptables_answers(), TableKind::Filter);
        let mut answers = PartedRules::open(host, way.backend(), way.iptables(), owner, kind).unwrap();
        let mut ensure =
            || answers.ensure(&iptables_answers(), &Contents::default(), Thoroughness::Everything).unwrap();
        assert_eq!([ensure(), ensure()], [Change::Fresh, Change::None], "{way:?}");
        answers
    });
    (lab, answers)
}

fn tcp(from: &TestNetns, to: &str) -> Outcome {
    Flow::from(from).patience(PATIENCE).tcp(to.parse().unwrap()).unwrap()
}

fn udp(from: &TestNetns, to: &str) -> Outcome {
    Flow::from(from).patience(PATIENCE).udp(to.parse().unwrap()).unwrap()
}

#[test]
fn what_a_node_denies_is_answered_or_dropped() {
    at_once(&Way::ALL, is_answered);
}

fn is_answered(way: Way) {
    let (mut lab, mut answers) = answered(way);
    assert_isolated(&lab);
    let ends = [tcp(&lab.a, "[fd00:1::3]:8080"), tcp(&lab.node, "[fd00:1::3]:9090")];
    assert_eq!(ends.clone().map(|end| end.port()), [Some(8080), Some(9090)], "{way:?} {ends:?}");
    let denied = |lab: &Lab| {
        [
            tcp(&lab.a, "10.1.0.3:9090"),
            tcp(&lab.a, "[fd00:1::3]:9090"),
            tcp(&lab.a, "192.0.2.9:8080"),
            tcp(&lab.a, "[2001:db8::9]:8080"),
            tcp(&lab.a, "10.96.0.11:80"),
            tcp(&lab.outside, "10.1.0.3:8080"),
            tcp(&lab.outside, "[fd00:1::3]:8080"),
            tcp(&lab.outside, "192.0.2.1:30080"),
        ]
    };
    assert_eq!(denied(&lab), [const { Outcome::Refused }; 8], "{way:?}");
    for (from, four, six) in [
        (&lab.a, "192.0.2.9:9090", "[2001:db8::9]:9090"),
        (&lab.outside, "10.1.0.3:9090", "[fd00:1::3]:9090"),
    ] {
        let found = [udp(from, four), udp(from, six)];
        assert_eq!(found, PROHIBITED.map(Outcome::Failed), "{way:?}");
    }
    // The kernel has no answer in iptables where packets come in after the rules.
    let to_node = if way == Way::Nft { Outcome::Refused } else { Outcome::TimedOut };
    assert_eq!(
        [tcp(&lab.a, "192.0.2.1:8080"), tcp(&lab.a, "[2001:db8::1]:8080")],
        [to_node.clone(), to_node],
        "{way:?}"
    );
    never_answered(&lab, way);
    // A connection that is open is reset when it is denied.
    lab.put_policy(
        "more",
        json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [{"ports": [{"port": 7070}]}]}),
    );
    lab.put_policy("more-out", json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 7070}]}]}));
    let server = echo(&lab.b, 7070);
    let to: SocketAddr = "10.1.0.3:7070".parse().unwrap();
    let mut stream =
        lab.a.enter(|_| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(goes_on(&mut stream));
    lab.put_policy(
        "more",
        json!({"podSelector": {"matchLabels": {"app": "b"}}, "ingress": [{"ports": [{"port": 7071}]}]}),
    );
    stream.write_all(b"x").unwrap();
    let reset = stream.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(reset, Err(std::io::ErrorKind::ConnectionReset), "{way:?}");
    drop((stream, server));
    assert_eq!(lab.ensure(Thoroughness::Everything), Change::None, "{way:?}: events come to the same");
    if let Some(answers) = &mut answers {
        // Without the rules that answer, nothing passes.
        assert_eq!(answers.remove().unwrap(), Change::Fresh);
        assert_eq!(denied(&lab), [const { Outcome::TimedOut }; 8], "{way:?}");
    }
    assert_eq!(lab.table.remove().unwrap(), Change::Fresh);
    let left = sh(&lab.node, "ipset list -n; nft list ruleset; iptables-legacy-save; ip6tables-legacy-save");
    assert!(!left.contains("istio") && !left.contains("ISTIO"), "{way:?}: {left}");
}

/// Sends what nobody may be told about: an error of ICMP, a reset without a connection, a datagram to many. The word is the kind.
const UNANSWERED: &str = "
import socket, struct, sys
def checksum(data):
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
if sys.argv[1] == 'error':
    inner = struct.pack('!BBHHHBBH4s4sHHHH', 0x45, 0, 28, 1, 0, 64, 17, 0,
        socket.inet_aton('192.0.2.9'), socket.inet_aton('10.1.0.2'), 4444, 4444, 8, 0)
    body = struct.pack('!BBHI', 3, 3, 0, 0) + inner
    body = body[:2] + struct.pack('!H', checksum(body)) + body[4:]
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).sendto(body, ('192.0.2.9', 0))
elif sys.argv[1] == 'reset':
    ends = socket.inet_aton('10.1.0.2') + socket.inet_aton('192.0.2.9')
    head = struct.pack('!HHIIBBHHH', 4000, 9090, 1, 1, 5 << 4, 4, 100, 0, 0)
    total = checksum(ends + struct.pack('!BBH', 0, 6, len(head)) + head)
    head = head[:16] + struct.pack('!H', total) + head[18:]
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP).sendto(head, ('192.0.2.9', 0))
";

/// The kernel tells nobody of these, so that nobody can be made to send to a third.
fn never_answered(lab: &Lab, way: Way) {
    lab.a
        .nft(
            "add table ip came\nadd chain ip came in { type filter hook prerouting priority -400 ; }\n\
         add rule ip came in ip protocol { icmp, tcp } counter",
        )
        .unwrap();
    for kind in ["error", "reset"] {
        lab.a.run(std::process::Command::new("python3").args(["-c", UNANSWERED, kind])).unwrap();
    }
    // What is answered comes after what is not.
    let came = |lab: &Lab| sh(&lab.a, "nft list chain ip came in").contains("counter packets 0 ");
    assert!(came(lab), "{way:?}: {}", sh(&lab.a, "nft list chain ip came in"));
    assert_eq!(tcp(&lab.a, "192.0.2.9:9090"), Outcome::Refused);
    assert!(!came(lab), "{way:?}: the answer is counted");
}
