//! Open connections when policies change: those that are denied end, those that are allowed lose nothing.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::apiserver::Resource;
use testkit::mesh::{Mesh, MeshPod};
use testkit::{PATIENCE, TestNetns, eventually};

use crate::denials::{wait_isolated, wire};

const TCP: u16 = 7000;
const UDP: u16 = 7001;
/// Between two messages.
const BEAT: Duration = Duration::from_millis(5);
/// Who hears nothing for so long hears nothing any more.
const SILENCE: Duration = Duration::from_millis(250);

static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Answers whatever comes by TCP; to who sends a datagram it sends numbers, one after the other, whatever becomes of them.
fn serve(ns: &TestNetns, ip: IpAddr) {
    let tcp = ns.enter(|_| TcpListener::bind((ip, TCP))).unwrap().unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    let udp = ns.enter(|_| UdpSocket::bind((ip, UDP))).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut begin = [0; 8];
        while let Ok((_, peer)) = udp.recv_from(&mut begin) {
            let udp = udp.try_clone().unwrap();
            std::thread::spawn(move || {
                for number in 0u32.. {
                    if IS_OVER.load(Ordering::Relaxed) {
                        return;
                    }
                    // A rule that drops a packet here says that it is not permitted.
                    let _ = udp.send_to(&number.to_be_bytes(), peer);
                    std::thread::sleep(BEAT);
                }
            });
        }
    });
}

/// What one end has heard.
struct Heard {
    last: Instant,
    count: u32,
    lost: u32,
}

/// Hears the numbers until there is silence, or all is over.
fn hear(from: &MeshPod, to: SocketAddr) -> JoinHandle<Heard> {
    let socket = from.netns.enter(|_| UdpSocket::bind((from.ip, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"begin").unwrap();
    std::thread::spawn(move || {
        let mut heard = Heard { last: Instant::now(), count: 0, lost: 0 };
        let mut number = [0; 4];
        while !IS_OVER.load(Ordering::Relaxed) && socket.recv(&mut number).is_ok() {
            heard.lost = u32::from_be_bytes(number) - heard.count;
            heard.count += 1;
            heard.last = Instant::now();
        }
        heard
    })
}

/// Says something again and again, until there is no answer or all is over; gives how often, and when the last answer came.
fn talk(from: &MeshPod, to: SocketAddr) -> JoinHandle<Heard> {
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(5));
    let mut stream = from.netns.enter(|_| connect()).unwrap().unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    std::thread::spawn(move || {
        let mut heard = Heard { last: Instant::now(), count: 0, lost: 0 };
        while !IS_OVER.load(Ordering::Relaxed) {
            if stream.write_all(b"x").is_err() || stream.read_exact(&mut [0]).is_err() {
                heard.lost = 1;
                break;
            }
            heard.count += 1;
            heard.last = Instant::now();
            std::thread::sleep(BEAT);
        }
        heard
    })
}

fn pod(mesh: &Mesh, name: &str, labels: &[(&str, &str)]) -> MeshPod {
    let pod = mesh.running("default", name, labels).unwrap();
    wire(mesh, &pod);
    pod
}

/// The pod `web` speaks with friends only; one of them is none any more.
fn change(established: &str) -> [Heard; 4] {
    IS_OVER.store(false, Ordering::Relaxed);
    let mesh = Mesh::new().unwrap();
    let friends = json!([{"podSelector": {"matchLabels": {"role": "friend"}}}]);
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": friends}], "egress": [{"to": friends}]});
    let policy = json!({"metadata": {"namespace": "default", "name": "friends"}, "spec": spec});
    mesh.node.api.set_object(Resource::NetworkPolicies, policy);
    let web = pod(&mesh, "web", &[("app", "web")]);
    let [one, other] = ["one", "other"].map(|name| pod(&mesh, name, &[("role", "friend")]));
    serve(&web.netns, web.ip);
    let agent = mesh.agent().env("AMBIENT_ENABLED", "false").env("POLICY_ENFORCEMENT", "on");
    let agent = agent.env("POLICY_ESTABLISHED", established).ready().unwrap();
    wait_isolated(&mesh, &web);
    let [tcp, udp] = [TCP, UDP].map(|port| SocketAddr::new(web.ip, port));
    let ends = [talk(&one, tcp), hear(&one, udp), talk(&other, tcp), hear(&other, udp)];
    std::thread::sleep(20 * BEAT);
    let changed = Instant::now();
    mesh.node.api.set_pod(one.object(&[("role", "stranger")], true));
    if established == "cut" {
        eventually("the connections of the stranger end", PATIENCE, || {
            ensure!(ends[0].is_finished() && ends[1].is_finished(), "they go on");
            Ok(())
        })
        .unwrap();
    } else {
        std::thread::sleep(Duration::from_secs(1));
    }
    IS_OVER.store(true, Ordering::Relaxed);
    let heard = ends.map(|end| end.join().unwrap());
    let after = |heard: &Heard| heard.last.saturating_duration_since(changed);
    println!("{established}: {:?} and {:?} after the change", after(&heard[0]), after(&heard[1]));
    let is_dead = |heard: &Heard| after(heard) < Duration::from_secs(1);
    assert!(established == "keep" || (is_dead(&heard[0]) && is_dead(&heard[1])));
    drop(agent);
    heard
}

#[test]
fn denied_connections_end_within_a_second_and_allowed_ones_lose_nothing() {
    for established in ["cut", "keep"] {
        let [_, _, tcp, udp] = change(established);
        assert!(tcp.count > 20 && udp.count > 20, "{} and {}", tcp.count, udp.count);
        assert_eq!((tcp.lost, udp.lost), (0, 0), "{established}: a neighbour lost something");
    }
}
