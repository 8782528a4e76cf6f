//! A server of connections that stay open.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use anyhow::Result;

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
