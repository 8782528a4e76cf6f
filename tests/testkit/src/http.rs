//! Requests as bytes, so that they can be as broken as a test wants.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// How long a peer may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub body: String,
}

/// Gets a path from a port.
///
/// # Errors
/// No connection, or no HTTP answer.
pub fn get(address: SocketAddr, path: &str) -> Result<Reply> {
    let stream =
        TcpStream::connect_timeout(&address, SILENCE).with_context(|| format!("connect {address}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    exchange(stream, &request("GET", path, ""))
}

/// Connects to a unix socket.
///
/// # Errors
/// Nobody listens, or not for us.
pub fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
    stream.set_read_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// Sends one request over a unix socket.
///
/// # Errors
/// No connection, or no HTTP answer.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<Reply> {
    exchange(connect(socket)?, &request(method, path, body))
}

/// A request that ends its connection.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: unix\r\nContent-Type: application/json\r\n");
    format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Sends bytes and reads the answer until the peer closes. A peer that stops reading has an answer all the same.
///
/// # Errors
/// No HTTP answer.
pub fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Result<Reply> {
    let sent = stream.write_all(bytes);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    ensure!(!answer.is_empty(), "no answer: sending {sent:?}, receiving {read:?}");
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {text}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Reply {
        status: status.with_context(|| format!("no status: {head}"))?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
