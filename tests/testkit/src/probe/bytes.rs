//! Servers of connections that stay open, and of those that carry much.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::sockets;
use crate::namespace::TestNetns;

/// Answers each byte that comes to a port of the namespace, by IPv4 or IPv6, with this one, as long as the test runs. The
/// socket is transparent: it takes what TPROXY hands over, too.
///
/// # Errors
/// The port is taken, or the test may not have such a socket.
pub fn answer_bytes(namespace: &TestNetns, port: u16, with: u8) -> Result<()> {
    let any = (Ipv6Addr::UNSPECIFIED, port);
    let listener = OwnedFd::from(namespace.enter(|_| TcpListener::bind(any))??);
    sockets::set_transparent(&listener, any.into())?;
    let listener = TcpListener::from(listener);
    let serve = move |mut stream: TcpStream| {
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&[with]).is_ok() {}
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(())
}

/// Sends so many bytes to an address that `to` answers for, has them back, and closes.
///
/// # Errors
/// There is no connection, or something else comes back.
pub fn transfer(from: &TestNetns, to: &TestNetns, ip: IpAddr, bytes: usize) -> Result<()> {
    let any = if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let listener = to.enter(|_| TcpListener::bind(any))??;
    let at = SocketAddr::new(ip, listener.local_addr()?.port());
    let answering = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        Ok(stream.write_all(&all)?)
    });
    let connect = move || TcpStream::connect_timeout(&at, Duration::from_secs(20));
    let mut stream = from.enter(move |_| connect())?.with_context(|| format!("connect to {at}"))?;
    stream.write_all(&vec![7; bytes])?;
    stream.shutdown(Shutdown::Write)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    ensure!(all.len() == bytes, "{} of {bytes} bytes came back", all.len());
    answering.join().map_err(|_| anyhow!("the answering thread panicked"))?
}
