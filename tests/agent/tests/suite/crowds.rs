//! Connections that say nothing, or not all of it: whoever asks properly is answered in time, at every socket and port.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use testkit::{Agent, Mesh, Node, as_user, http};

/// More than any listener has places for, and than are accepted while it looks away.
const CROWD: usize = 700;
/// kubelet's patience is a second, on a machine that does not run other tests. Without a limit a place is free after ten.
const IN_TIME: Duration = Duration::from_secs(8);
/// How long a crowd goes on.
const WHILE: Duration = Duration::from_secs(3);

/// A connection of either kind.
trait Client: Read + Write + Sized {
    fn do_not_wait(&self);
    fn end_writing(&self);
}

impl Client for TcpStream {
    fn do_not_wait(&self) {
        self.set_nonblocking(true).unwrap();
    }

    fn end_writing(&self) {
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

impl Client for UnixStream {
    fn do_not_wait(&self) {
        self.set_nonblocking(true).unwrap();
    }

    fn end_writing(&self) {
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

/// What the connections of a crowd do.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Silent,
    /// A byte, then another.
    Slow,
    /// A part of a head, then its end.
    HalfOpen,
    /// Headers without end.
    HugeHead,
    /// A body that never comes.
    NoBody,
    /// A body of small parts without end.
    Chunks,
    /// Questions whose answers are not read.
    Deaf,
}

impl Manner {
    const ALL: [Self; 7] =
        [Self::Silent, Self::Slow, Self::HalfOpen, Self::HugeHead, Self::NoBody, Self::Chunks, Self::Deaf];

    /// The beginning, and what follows again and again.
    fn says(self) -> (&'static [u8], Vec<u8>) {
        match self {
            Self::Silent => (b"", Vec::new()),
            Self::Slow => (b"G", b"E".to_vec()),
            Self::HalfOpen => (b"GET /x HTTP/1.1\r\nHost: x\r\n", Vec::new()),
            Self::HugeHead => (b"GET /x HTTP/1.1\r\nX: ", vec![b'x'; 1000]),
            Self::NoBody => (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n", Vec::new()),
            Self::Chunks => {
                (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n".to_vec())
            }
            Self::Deaf => (b"", b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50)),
        }
    }
}

/// Holds many connections at a listener, puts a new one in the place of each that is closed, and lets each say something now and then.
fn crowd<C: Client>(manner: Manner, connect: impl Fn() -> Option<C>, ends: &AtomicBool) {
    let (first, then) = manner.says();
    let mut clients: Vec<C> = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        for _ in clients.len()..CROWD {
            let Some(mut client) = connect() else { break };
            client.do_not_wait();
            let _ = client.write(first);
            if matches!(manner, Manner::HalfOpen) {
                client.end_writing();
            }
            clients.push(client);
        }
        clients.retain_mut(|client| {
            let _ = client.write(&then);
            let is_closed = !matches!(manner, Manner::Deaf)
                && !matches!(client.read(&mut [0; 64]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
            !is_closed
        });
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends a crowd when it is dropped, also by a test that fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks while there is a crowd; each time has to be answered in time.
fn asked_among<C: Client>(manner: Manner, connect: impl Fn() -> Option<C> + Send, ask: impl Fn()) {
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&ends);
        scope.spawn(|| crowd(manner, connect, &ends));
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        while start.elapsed() < WHILE {
            std::thread::sleep(Duration::from_millis(100));
            let asked = Instant::now();
            ask();
            slowest = slowest.max(asked.elapsed());
        }
        println!("{manner:?}: the slowest answer took {slowest:?}");
        assert!(slowest < IN_TIME, "{manner:?}: {slowest:?}");
    });
}

fn to_port(address: SocketAddr) -> impl Fn() -> Option<TcpStream> {
    move || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()
}

fn to_socket(path: &Path) -> impl Fn() -> Option<UnixStream> {
    move || UnixStream::connect(path).ok()
}

fn closed(agent: &Agent, listener: &str, reason: &str) -> f64 {
    let series = format!("istio_cni_connections_closed_total{{listener=\"{listener}\",reason=\"{reason}\"}}");
    agent.metric(&series).unwrap()
}

#[test]
fn kubelet_is_answered_among_connections_of_any_manner() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    for manner in Manner::ALL {
        asked_among(manner, to_port(agent.health_address()), || {
            assert_eq!(agent.readyz().unwrap().status, 200);
        });
    }
    assert!(closed(&agent, "health", "place") > 0.0);
    asked_among(Manner::Slow, to_port(agent.metrics_address()), || {
        assert_eq!(agent.metric("istio_cni_log_lines_lost_total").unwrap(), 0.0);
    });
    assert!(closed(&agent, "metrics", "place") > 0.0);
    assert!(agent.metric("process_resident_memory_bytes").unwrap() < 96e6);
}

/// The status of the answer. Who has not begun to ask yet when many others have come since loses its place; it asks again, as the plugin does.
fn answer(socket: &Path, method: &str, path: &str, body: &str) -> u16 {
    let asked = Instant::now();
    loop {
        match http::ask(socket, method, path, body) {
            Ok(reply) => return reply.status,
            Err(error) => assert!(asked.elapsed() < IN_TIME, "{error:#}"),
        }
    }
}

#[test]
fn a_plugin_is_answered_among_connections_of_any_manner() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    for manner in Manner::ALL {
        asked_among(manner, to_socket(&node.agent_socket()), || {
            assert_eq!(answer(&node.agent_socket(), "GET", "/v1/status", ""), 200);
        });
    }
    asked_among(Manner::NoBody, to_socket(&node.log_socket()), || {
        assert_eq!(answer(&node.log_socket(), "POST", "/log", "[]"), 200);
    });
    assert!(closed(&agent, "agent.sock", "place") > 0.0 && closed(&agent, "log.sock", "place") > 0.0);
}

/// The socket of events has a mode that lets everybody connect.
#[test]
fn users_that_may_not_ask_take_no_place() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let node = &mesh.node;
    for dir in [node.dir().to_owned(), node.run_dir()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let socket = mesh.event_socket();
    let held = as_user(1000, || (0..CROWD).map(|_| http::connect(&socket).unwrap()).collect::<Vec<_>>());
    let held = held.unwrap();
    let start = Instant::now();
    let reply = http::ask(&socket, "POST", "/cmdadd", "no event").unwrap();
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    assert_eq!(closed(&agent, "pluginevent.sock", "forbidden"), CROWD as f64);
    assert_eq!(closed(&agent, "pluginevent.sock", "place"), 0.0);
    // One that asks is told, as long as few do.
    drop(held);
    std::thread::sleep(Duration::from_secs(2));
    let reply = as_user(1000, || http::ask(&socket, "POST", "/cmdadd", "{}")).unwrap().unwrap();
    assert_eq!((reply.status, reply.body.contains("only root")), (403, true), "{reply:?}");
}

/// A connection from a certain address of this machine.
fn from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((source, 0))).unwrap();
    rustix::net::connect(&socket, &to).unwrap();
    socket.into()
}

/// One who is slow is answered however many connect from elsewhere.
#[test]
fn one_address_cannot_take_the_places_of_another() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let to = agent.health_address();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&ends);
        scope.spawn(|| crowd(Manner::Silent, to_port(to), &ends));
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..3 {
            let mut stream = from(Ipv4Addr::new(127, 0, 0, 77), to);
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            for part in ["GET /healthz HT", "TP/1.1\r\nHost: x\r\n", "Connection: close\r\n\r\n"] {
                std::thread::sleep(Duration::from_millis(400));
                stream.write_all(part.as_bytes()).unwrap();
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    });
    assert!(closed(&agent, "health", "place") > 100.0, "{}", closed(&agent, "health", "place"));
}
