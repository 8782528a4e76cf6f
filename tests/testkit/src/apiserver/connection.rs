//! One connection: requests and their answers, until either side closes it. A fault is the last answer of a connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};

use super::answer::{Answer, answer, refuse};
use super::fault::Fault;
use super::request::Request;
use super::{Shared, watch};

/// No connection occupies its thread for longer without progress.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

pub(super) type Stream = StreamOwned<ServerConnection, TcpStream>;

pub(super) fn serve(mut tcp: TcpStream, shared: &Shared, epoch: u64) -> io::Result<()> {
    tcp.set_read_timeout(Some(IDLE_LIMIT))?;
    tcp.set_write_timeout(Some(IDLE_LIMIT))?;
    tcp.set_nodelay(true)?;
    let mut fault = shared.connected();
    match &fault {
        Some(Fault::HangBeforeTls) => return hang(&tcp, shared, epoch),
        Some(Fault::ResetBeforeTls) => return reset(&tcp),
        Some(Fault::PlainHttp) => {
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
            tcp.shutdown(Shutdown::Write)?;
            return io::copy(&mut tcp, &mut io::sink()).map(drop);
        }
        _ => {}
    }
    let tls = ServerConnection::new(shared.tls.clone()).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(tls, tcp);
    let mut buffer = Vec::new();
    while let Some(mut request) = Request::read(&mut stream, &mut buffer)? {
        request.client_certificate = stream.conn.peer_certificates().is_some();
        // A connection that stood idle when the fault began meets it, too.
        let fault = fault.take().or_else(|| shared.state().faults.take());
        let goes_on = exchange(&mut stream, &request, fault, shared, epoch)?;
        if !goes_on || request.closes() || shared.ended(epoch) {
            break;
        }
    }
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.sock.shutdown(Shutdown::Write)?;
    // leaving unread bytes behind would turn the orderly end into a reset
    io::copy(&mut stream.sock, &mut io::sink()).map(drop)
}

/// Whether another request may follow.
fn exchange(
    stream: &mut Stream,
    request: &Request,
    fault: Option<Fault>,
    shared: &Shared,
    epoch: u64,
) -> io::Result<bool> {
    let mut state = shared.state();
    state.remember(request);
    let fault = state.faults.take_for(&request.path).or(fault);
    let refused = refuse(request, &state);
    let watch = request.watch().filter(|_| fault.is_none() && refused.is_none());
    if let Some(watch) = watch {
        let expired = watch.version.is_some_and(|version| !state.objects.keeps(version));
        if !(expired && state.gone_by_status) {
            drop(state);
            watch::serve(stream, &watch, shared, epoch)?;
            return Ok(true);
        }
    }
    // a list or object that a fault then spoils is needed as it is, but what a fault meets is not written
    let answer = match refused {
        Some(refusal) => refusal,
        None if request.watch().is_some() => Answer::gone(),
        None if fault.is_some() && request.method != "GET" => Answer::status(500, "not done"),
        None => answer(request, &mut state),
    };
    drop(state);
    shared.changed.notify_all();
    if let Some(fault) = fault {
        misbehave(stream, &fault, answer, shared, epoch)?;
        return Ok(false);
    }
    let Answer(code, body) = answer;
    whole(stream, code, "Content-Type: application/json\r\n", &body)?;
    Ok(true)
}

fn misbehave(
    stream: &mut Stream,
    fault: &Fault,
    answer: Answer,
    shared: &Shared,
    epoch: u64,
) -> io::Result<()> {
    let Answer(_, body) = answer;
    let half = body.len() / 2;
    let html = b"<!DOCTYPE html><html><body>Sign in</body></html>";
    let padded = |size: usize| [vec![b' '; size], body.clone()].concat();
    match fault {
        Fault::Hang => hang(&stream.sock, shared, epoch),
        Fault::Reset => reset(&stream.sock),
        Fault::Close => Ok(()),
        Fault::Html => whole(stream, 200, "Content-Type: text/html\r\n", html),
        Fault::HtmlStatus(code) => whole(stream, *code, "Content-Type: text/html\r\n", html),
        Fault::Garbage => stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
        Fault::Body(text) => whole(stream, 200, "Content-Type: application/json\r\n", text.as_bytes()),
        Fault::Truncated => {
            head(stream, 200, &format!("Content-Length: {}\r\n", body.len()))?;
            stream.write_all(&body[..half])
        }
        Fault::TruncatedChunks => {
            head(stream, 200, "Transfer-Encoding: chunked\r\n")?;
            write!(stream, "{half:x}\r\n")?;
            stream.write_all(&body[..half])?;
            stream.write_all(b"\r\n")
        }
        Fault::Slow(interval) => {
            head(stream, 200, &format!("Content-Length: {}\r\n", body.len()))?;
            slowly(stream, &body, *interval, shared, epoch)
        }
        Fault::Oversized(size) => whole(stream, 200, "", &padded(*size)),
        Fault::OversizedChunks(size) => chunked(stream, &padded(*size), 64 << 10),
        Fault::Chunked(size) => chunked(stream, &body, *size),
        Fault::Status { code, retry_after } => {
            let header = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            // Whoever is not told that it ends sends the next request over it, which is lost then.
            let header = format!("{header}Connection: close\r\n");
            let Answer(code, body) = Answer::status(*code, "the double was told to fail");
            whole(stream, code, &header, &body)
        }
        Fault::Redirect(location) => whole(stream, 302, &format!("Location: {location}\r\n"), b""),
        Fault::HangBeforeTls | Fault::ResetBeforeTls | Fault::PlainHttp => {
            Err(io::Error::other("this fault ends before a request"))
        }
    }
}

pub(super) fn head(stream: &mut Stream, code: u16, headers: &str) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {code} Double\r\n{headers}\r\n")?;
    stream.flush()
}

fn whole(stream: &mut Stream, code: u16, headers: &str, body: &[u8]) -> io::Result<()> {
    head(stream, code, &format!("{headers}Content-Length: {}\r\n", body.len()))?;
    stream.write_all(body)?;
    stream.flush()
}

fn chunked(stream: &mut Stream, body: &[u8], size: usize) -> io::Result<()> {
    head(stream, 200, "Transfer-Encoding: chunked\r\n")?;
    for chunk in body.chunks(size.max(1)) {
        write!(stream, "{:X};ext=1\r\n", chunk.len())?;
        stream.write_all(chunk)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\nTrailer: x\r\n\r\n")
}

fn slowly(
    stream: &mut Stream,
    body: &[u8],
    interval: Duration,
    shared: &Shared,
    epoch: u64,
) -> io::Result<()> {
    for byte in body.chunks(1) {
        if shared.ended(epoch) {
            break;
        }
        std::thread::sleep(interval);
        stream.write_all(byte)?;
        stream.flush()?;
    }
    Ok(())
}

/// Says nothing until the client leaves or the server ends.
pub(super) fn hang(tcp: &TcpStream, shared: &Shared, epoch: u64) -> io::Result<()> {
    tcp.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut tcp = tcp;
    while !shared.ended(epoch) {
        match tcp.read(&mut [0; 512]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Closing with a linger time of zero sends a RST. The error keeps the caller from writing more.
pub(super) fn reset(tcp: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(tcp, Some(Duration::ZERO))?;
    Err(io::ErrorKind::ConnectionReset.into())
}
