//! A TCP connection on which no operation outlives the deadline of its try.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::kubeconfig::Url;

/// When a try started and when it must have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    start: Instant,
    end: Instant,
}

impl Deadline {
    pub(super) fn at(end: Instant) -> Self {
        Self { start: Instant::now(), end }
    }

    fn left(self) -> Option<Duration> {
        self.end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    pub(super) fn timed_out(self, stage: &'static str) -> Cause {
        Cause::TimedOut { stage, after: self.start.elapsed() }
    }
}

/// See the module.
pub(super) struct Connection {
    tcp: TcpStream,
    pub(super) deadline: Deadline,
}

pub(super) fn open(server: &Url, deadline: Deadline) -> Result<Connection, Cause> {
    let mut refused = None;
    for address in resolve(server, deadline)? {
        let left = deadline.left().ok_or_else(|| deadline.timed_out("connecting"))?;
        match TcpStream::connect_timeout(&address, left) {
            Ok(tcp) => {
                // a small request in one write gains nothing from waiting for more
                let _ = tcp.set_nodelay(true);
                return Ok(Connection { tcp, deadline });
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(deadline.timed_out("connecting"));
            }
            Err(error) => {
                refused = Some(Cause::Connect { address: address.to_string(), reason: error.to_string() });
            }
        }
    }
    Err(refused.unwrap_or_else(|| no_address(&server.host, "it has no address".into())))
}

fn no_address(host: &str, reason: String) -> Cause {
    Cause::Resolve { host: host.into(), reason }
}

/// The C library's resolver knows no deadline, so it runs on a thread that is left behind when it is late.
fn resolve(server: &Url, deadline: Deadline) -> Result<Vec<SocketAddr>, Cause> {
    if let Ok(address) = server.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, server.port)]);
    }
    let late = || deadline.timed_out("resolving the server's host name");
    let (sender, receiver) = mpsc::channel();
    let target = (server.host.clone(), server.port);
    let spawned = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        let _ = sender.send(target.to_socket_addrs().map(Vec::from_iter));
    });
    spawned.map_err(|error| no_address(&server.host, format!("start a thread: {error}")))?;
    let answer = receiver.recv_timeout(deadline.left().ok_or_else(late)?).map_err(|_| late())?;
    answer.map_err(|error| no_address(&server.host, error.to_string()))
}

impl Connection {
    fn left(&self) -> io::Result<Option<Duration>> {
        self.deadline.left().map(Some).ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(self.left()?)?;
        self.tcp.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(self.left()?)?;
        self.tcp.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// What an I/O error means, TLS errors included, which rustls hands through as I/O errors.
pub(super) fn cause(error: &io::Error, stage: &'static str, deadline: Deadline) -> Cause {
    use io::ErrorKind::{TimedOut, UnexpectedEof, WouldBlock};
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return super::tls::cause(error);
    }
    match error.kind() {
        TimedOut | WouldBlock => deadline.timed_out(stage),
        UnexpectedEof => Cause::Disconnected { stage, reason: "closed by the other side".into() },
        _ => Cause::Disconnected { stage, reason: error.to_string() },
    }
}
