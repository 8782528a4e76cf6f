//! A pod leaves the mesh while connections through ztunnel are open.

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use capture::ambient::{
    CAPTURE_PORTS, INBOUND_PORT, MARK_MASK, NodeOptions, OUTBOUND_PORT, PodOptions, ZTUNNEL_MARK, plan_drain,
};
use kernel::conntrack;
use kernel::sockets::{Closings, Heard, Sockets, TcpConnection};
use kernel::{Change, Difference};
use testkit::relay::Relay;
use testkit::{Families, Pod, TestNetns};

use crate::support::{Way, made, state};

const PORTS: std::ops::RangeInclusive<u16> = 15001..=15053;
const PATIENCE: Duration = Duration::from_millis(1500);

/// A pod in the mesh with a ztunnel, and servers on both sides that say everything again.
struct Lab {
    pod: Pod,
    relay: Relay,
}

impl Lab {
    fn new(way: Way) -> Self {
        let pod = Pod::new(Families::Dual).unwrap();
        for namespace in [pod.own(), pod.peer()] {
            for interface in ["all", "eth0"] {
                namespace.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0").unwrap();
            }
        }
        way.apply(&pod, &way.pod_plan(&NodeOptions::default(), &PodOptions::default())).unwrap();
        let relay = Relay::start(pod.own()).unwrap();
        for namespace in [pod.own(), pod.peer()] {
            let listener =
                namespace.enter(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080))).unwrap().unwrap();
            std::thread::spawn(move || listener.incoming().flatten().for_each(say_again));
        }
        Self { pod, relay }
    }

    /// One connection in each direction and family, with what it is.
    fn connect(&self) -> Vec<(String, TcpStream)> {
        let far = [IpAddr::from([198, 51, 100, 7]), "2001:db8::7".parse().unwrap()];
        let mut all = Vec::new();
        for (inbound, to) in [(false, far[0]), (false, far[1]), (true, Pod::V4), (true, Pod::V6)]
            .map(|(i, ip)| (i, SocketAddr::new(ip, 8080)))
        {
            let from = if inbound { self.pod.peer() } else { self.pod.own() };
            let stream = from.enter(|_| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
            let what = format!("{} to {to}", if inbound { "inbound" } else { "outbound" });
            let stream = stream.unwrap_or_else(|error| panic!("{what}: {error}"));
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            all.push((what, stream));
        }
        all
    }

    fn sockets(&self) -> Vec<TcpConnection> {
        let list = |inside: &netns::Inside| Sockets::open(inside)?.list(PORTS);
        let mut found = self.pod.enter(list).unwrap().unwrap();
        found.retain(|connection| CAPTURE_PORTS.contains(&connection.local.port()));
        found
    }

    fn drain(&self, way: Way) -> Change {
        let plan = plan_drain(&NodeOptions::default(), &PodOptions::default(), way.backend());
        let applied = way.apply(&self.pod, &plan).unwrap();
        assert_eq!(way.observe(&self.pod, &plan), Vec::<Difference>::new());
        applied.rules
    }
}

fn say_again(mut stream: TcpStream) {
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            let _ = stream.write_all(&bytes[..length]);
        }
    });
}

fn works(what: &str, mut stream: &TcpStream) {
    let mut heard = [0; 4];
    stream.write_all(b"ping").unwrap_or_else(|error| panic!("{what}: {error}"));
    stream.read_exact(&mut heard).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn what_is_open_goes_on_and_what_is_new_goes_past_ztunnel() {
    for way in Way::ALL {
        let lab = Lab::new(way);
        let before = lab.connect();
        before.iter().for_each(|(what, stream)| works(what, stream));
        assert_eq!(lab.relay.relayed().len(), 4, "{way:?}");
        assert_eq!(lab.drain(way), Change::Replaced);
        before.iter().for_each(|(what, stream)| works(&format!("{way:?}, {what}, from before"), stream));
        let after = lab.connect();
        after.iter().for_each(|(what, stream)| works(&format!("{way:?}, {what}, new"), stream));
        assert_eq!(lab.relay.relayed().len(), 4, "{way:?}: nothing new goes through ztunnel");
        // Back in: what is open stays where it is, and what comes goes through ztunnel.
        way.apply(&lab.pod, &way.pod_plan(&NodeOptions::default(), &PodOptions::default())).unwrap();
        let again = lab.connect();
        for (what, stream) in before.iter().chain(&after).chain(&again) {
            works(&format!("{way:?}, {what}, back in"), stream);
        }
        assert_eq!(lab.relay.relayed().len(), 8, "{way:?}");
    }
}

/// Without the drain the kernel translates nothing any more: this is what the drain is for.
#[test]
fn without_a_drain_connections_hang() {
    let lab = Lab::new(Way::Nft);
    let open = lab.connect();
    open.iter().for_each(|(what, stream)| works(what, stream));
    Way::Nft.remove(&lab.pod);
    for (what, mut stream) in open {
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let answer = stream.write_all(b"ping").and_then(|()| stream.read(&mut [0; 4]));
        assert!(!matches!(answer, Ok(4)), "{what}");
    }
}

#[test]
fn rules_that_move_to_the_other_backend_cut_nothing() {
    let ways =
        [(Way::Nft, Way::ALL[1]), (Way::Nft, Way::ALL[2]), (Way::ALL[1], Way::Nft), (Way::ALL[2], Way::Nft)];
    for (from, to) in ways {
        let lab = Lab::new(from);
        let open = lab.connect();
        let applied =
            to.apply(&lab.pod, &to.pod_plan(&NodeOptions::default(), &PodOptions::default())).unwrap();
        assert!(applied.moved);
        open.iter().for_each(|(what, stream)| works(&format!("{from:?} to {to:?}, {what}"), stream));
        lab.drain(from);
        open.iter().for_each(|(what, stream)| works(&format!("{from:?} from {to:?}, {what}"), stream));
    }
}

#[test]
fn what_goes_through_ztunnel_is_counted_and_its_end_is_heard() {
    let lab = Lab::new(Way::Nft);
    let mut heard = lab.pod.enter(|inside| Closings::open(inside, &PORTS)).unwrap().unwrap();
    let mut open = lab.connect();
    open.iter().for_each(|(what, stream)| works(what, stream));
    let found = lab.sockets();
    let ports: Vec<u16> = found.iter().map(|connection| connection.local.port()).collect();
    let of = |port| ports.iter().filter(|found| **found == port).count();
    assert_eq!((found.len(), of(OUTBOUND_PORT), of(INBOUND_PORT)), (4, 2, 2));
    for (what, stream) in &open {
        let client = stream.local_addr().unwrap();
        assert!(found.iter().any(|connection| connection.peer == client), "{what}: {found:?}");
    }
    assert_eq!(heard.read().unwrap(), Heard::Closed(Vec::new()));
    // Others close, too, and are not heard of.
    let mut left: HashSet<_> = found.iter().map(TcpConnection::cookie).collect();
    while let Some((what, stream)) = open.pop() {
        drop(stream);
        let is_heard = || {
            match heard.read().unwrap() {
                Heard::Closed(cookies) => {
                    cookies.iter().for_each(|cookie| assert!(left.remove(cookie), "{what}"));
                }
                Heard::Missed => panic!("one message does not overflow a buffer"),
            }
            left.len() <= open.len()
        };
        testkit::until(&what, PATIENCE, is_heard, || "it is not heard of").unwrap();
    }
    assert_eq!(lab.sockets(), []);
}

/// More than the kernel keeps is told as such, and a look finds what is there.
#[test]
fn closings_that_were_missed_are_told() {
    let pod = Pod::new(Families::V4).unwrap();
    let mut heard = pod.enter(|inside| Closings::open(inside, &PORTS)).unwrap().unwrap();
    let listener = pod.enter(|_| TcpListener::bind(("127.0.0.1", OUTBOUND_PORT))).unwrap().unwrap();
    let mut missed = false;
    for _ in 0..3000 {
        let to = listener.local_addr().unwrap();
        drop((pod.enter(|_| TcpStream::connect(to)).unwrap().unwrap(), listener.accept().unwrap()));
    }
    for _ in 0..3 {
        missed |= heard.read().unwrap() == Heard::Missed;
    }
    assert!(missed);
    assert!(matches!(heard.read().unwrap(), Heard::Closed(_)), "it goes on afterwards");
}

#[test]
fn at_the_end_both_sides_hear_of_it_and_nothing_stays() {
    for way in Way::ALL {
        let lab = Lab::new(way);
        let open = lab.connect();
        open.iter().for_each(|(what, stream)| works(what, stream));
        lab.drain(way);
        let ended = lab.pod.enter(|inside| -> Result<usize, kernel::sockets::Error> {
            let mut sockets = Sockets::open(inside)?;
            let all = sockets.list(0..=u16::MAX)?;
            // ztunnel's own connections, to the application and to the world, have its mark.
            let ours = all
                .iter()
                .filter(|c| CAPTURE_PORTS.contains(&c.local.port()) || c.mark & MARK_MASK == ZTUNNEL_MARK);
            ours.map(|c| sockets.destroy(c).map(usize::from)).sum()
        });
        assert!(ended.unwrap().unwrap() >= 4, "{way:?}");
        way.remove(&lab.pod);
        for (what, mut stream) in open {
            let heard = stream.read(&mut [0; 4]);
            let reset = heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
            assert!(reset || matches!(heard, Ok(0)), "{way:?}, {what}: {heard:?}");
        }
        let left = state(&lab.pod);
        assert_eq!(made(&left), made(&state(&TestNetns::new().unwrap())), "{way:?}");
        let forgotten = lab.pod.enter(|inside| conntrack::forget(inside, &CAPTURE_PORTS, |_| false));
        assert_eq!(forgotten.unwrap().unwrap(), 4, "{way:?}");
        let again = lab.pod.enter(|inside| conntrack::forget(inside, &CAPTURE_PORTS, |_| false));
        assert_eq!(again.unwrap().unwrap(), 0, "{way:?}");
    }
}

/// Two connections from one port to different places: ztunnel sees one of them come from another port, and both are known to be open.
#[test]
fn a_connection_is_known_by_what_ztunnel_sees() {
    let lab = Lab::new(Way::Nft);
    let from_one_port = |to: &str| {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
        let to: SocketAddr = to.parse().unwrap();
        let open = || -> std::io::Result<TcpStream> {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &SocketAddr::new(Pod::V4, 28_000))?;
            connect(&socket, &to)?;
            Ok(socket.into())
        };
        let stream = lab.pod.enter(|_| open()).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let open = [from_one_port("198.51.100.7:8080"), from_one_port("203.0.113.9:8080")];
    open.iter().for_each(|stream| works("from one port", stream));
    let sockets = lab.sockets();
    let mut clients = Vec::new();
    let forget = |inside: &netns::Inside| {
        let seen = std::sync::Mutex::new(Vec::new());
        let removed = conntrack::forget(inside, &CAPTURE_PORTS, |entry| {
            seen.lock().unwrap().push(entry.seen_as);
            sockets.iter().any(|one| one.peer == entry.seen_as && one.local.port() == entry.port)
        });
        (removed, seen.into_inner().unwrap())
    };
    let (removed, seen) = lab.pod.enter(forget).unwrap();
    clients.extend(seen.iter().map(SocketAddr::port));
    assert_eq!((removed.unwrap(), clients.len()), (0, 2));
    assert!(clients[0] != clients[1], "or the test shows nothing: {clients:?}");
    open.iter().for_each(|stream| works("from one port", stream));
}

/// Entries of others stay: of translations that are not ours, and of what says that it stays.
#[test]
fn only_what_was_redirected_to_ztunnel_is_forgotten() {
    let lab = Lab::new(Way::Nft);
    lab.pod
        .nft(
            "add table ip own
            add chain ip own o { type nat hook output priority -150 ; }
            add rule ip own o ip daddr 192.0.2.1 tcp dport 80 dnat to 198.51.100.7:8080",
        )
        .unwrap();
    let to = "192.0.2.1:80".parse().unwrap();
    let own = lab.pod.enter(|_| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    own.set_read_timeout(Some(PATIENCE)).unwrap();
    works("the pod's own translation", &own);
    let open = lab.connect();
    let kept = open[0].1.local_addr().unwrap();
    let forget = |stays: bool| {
        let forget = |inside: &netns::Inside| {
            conntrack::forget(inside, &CAPTURE_PORTS, |entry| {
                assert_eq!((entry.protocol, entry.to.port()), (6, 8080));
                stays && entry.client == kept
            })
        };
        lab.pod.enter(forget).unwrap().unwrap()
    };
    assert_eq!((forget(true), forget(true), forget(false)), (3, 0, 1));
    works("the pod's own translation", &own);
}
