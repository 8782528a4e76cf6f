//! A server of connections that stay open.

use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpListener, TcpStream};

use anyhow::Result;

use crate::namespace::TestNetns;

/// Answers each byte that comes to a port of the namespace, by IPv4 or IPv6, with this one, as long as the test runs.
///
/// # Errors
/// The port is taken.
pub fn answer_bytes(namespace: &TestNetns, port: u16, with: u8) -> Result<()> {
    let listener = namespace.enter(|_| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
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
