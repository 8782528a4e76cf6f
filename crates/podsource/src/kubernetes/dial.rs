//! A TCP connection to the server of a kubeconfig.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;

use http1::{Connection, Deadline};

use crate::error::Cause;
use crate::kubeconfig::Url;

pub(super) fn open(server: &Url, deadline: Deadline) -> Result<Connection<TcpStream>, Cause> {
    let mut refused = None;
    for address in resolve(server, deadline)? {
        let left = deadline.left().ok_or_else(|| deadline.timed_out("connecting"))?;
        match TcpStream::connect_timeout(&address, left) {
            Ok(tcp) => {
                // a small request in one write gains nothing from waiting for more
                let _ = tcp.set_nodelay(true);
                return Ok(Connection::new(tcp, deadline));
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(deadline.timed_out("connecting").into());
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
    let late = || Cause::from(deadline.timed_out("resolving the server's host name"));
    let (sender, receiver) = mpsc::channel();
    let target = (server.host.clone(), server.port);
    let spawned = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        let _ = sender.send(target.to_socket_addrs().map(Vec::from_iter));
    });
    spawned.map_err(|error| no_address(&server.host, format!("start a thread: {error}")))?;
    let answer = receiver.recv_timeout(deadline.left().ok_or_else(late)?).map_err(|_| late())?;
    answer.map_err(|error| no_address(&server.host, error.to_string()))
}
