//! One connection: one request, one answer or fault, closed.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use super::{Admission, Fault, Request, Shared};

/// No connection occupies its thread for longer without progress.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

type Stream = StreamOwned<ServerConnection, TcpStream>;

pub(super) fn serve(mut tcp: TcpStream, shared: &Shared) -> io::Result<()> {
    tcp.set_read_timeout(Some(IDLE_LIMIT))?;
    tcp.set_nodelay(true)?;
    let fault = shared.next_fault();
    match &fault {
        Some(Fault::HangBeforeTls) => return hang(&tcp, shared),
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
    let request = read_request(&mut stream)?;
    shared.state().requests.push(request.clone());
    let answer = answer(&request, shared);
    misbehave(&mut stream, fault.as_ref(), answer, shared)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.sock.shutdown(Shutdown::Write)?;
    // leaving unread bytes behind would turn the orderly end into a reset
    io::copy(&mut stream.sock, &mut io::sink()).map(drop)
}

/// Status and body.
struct Answer(u16, Vec<u8>);

impl Answer {
    fn status(code: u16, message: &str) -> Self {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
        Self(code, status.to_string().into_bytes())
    }
}

fn answer(request: &Request, shared: &Shared) -> Answer {
    let state = shared.state();
    let bearer = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let known = request.client_certificate || bearer == Some(&state.token);
    match state.admission {
        Admission::Credentials if !known => return Answer::status(401, "Unauthorized"),
        Admission::Nobody => {
            let message = "pods is forbidden: User \"system:serviceaccount:istio-system:istio-cni\" cannot get resource \"pods\"";
            return Answer::status(403, message);
        }
        _ => {}
    }
    let mut parts = request.path.strip_prefix("/api/v1/namespaces/").unwrap_or_default().splitn(3, '/');
    let (Some(namespace), Some("pods"), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
        return Answer(404, b"404 page not found\n".to_vec());
    };
    match state.pods.get(&(namespace.to_owned(), name.to_owned())) {
        Some(pod) => Answer(200, pod.to_string().into_bytes()),
        None => Answer::status(404, &format!("pods {} not found", Value::from(name))),
    }
}

fn misbehave(stream: &mut Stream, fault: Option<&Fault>, answer: Answer, shared: &Shared) -> io::Result<()> {
    let Answer(code, body) = answer;
    let half = body.len() / 2;
    let html = b"<!DOCTYPE html><html><body>Sign in</body></html>";
    let padded = |size: usize| [vec![b' '; size], body.clone()].concat();
    match fault {
        None => whole(stream, code, "Content-Type: application/json\r\n", &body),
        Some(Fault::Hang) => hang(&stream.sock, shared),
        Some(Fault::Reset) => reset(&stream.sock),
        Some(Fault::Close) => Ok(()),
        Some(Fault::Html) => whole(stream, 200, "Content-Type: text/html\r\n", html),
        Some(Fault::HtmlStatus(code)) => whole(stream, *code, "Content-Type: text/html\r\n", html),
        Some(Fault::Garbage) => stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
        Some(Fault::Body(text)) => whole(stream, 200, "Content-Type: application/json\r\n", text.as_bytes()),
        Some(Fault::Truncated) => {
            head(stream, 200, &format!("Content-Length: {}\r\n", body.len()))?;
            stream.write_all(&body[..half])
        }
        Some(Fault::TruncatedChunks) => {
            head(stream, 200, "Transfer-Encoding: chunked\r\n")?;
            write!(stream, "{half:x}\r\n")?;
            stream.write_all(&body[..half])?;
            stream.write_all(b"\r\n")
        }
        Some(Fault::Slow(interval)) => {
            head(stream, 200, &format!("Content-Length: {}\r\n", body.len()))?;
            slowly(stream, &body, *interval, shared)
        }
        Some(Fault::Oversized(size)) => whole(stream, 200, "", &padded(*size)),
        Some(Fault::OversizedChunks(size)) => chunked(stream, &padded(*size), 64 << 10),
        Some(Fault::Chunked(size)) => chunked(stream, &body, *size),
        Some(Fault::Status { code, retry_after }) => {
            let header = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            let Answer(code, body) = Answer::status(*code, "the double was told to fail");
            whole(stream, code, &header, &body)
        }
        Some(Fault::Redirect(location)) => whole(stream, 302, &format!("Location: {location}\r\n"), b""),
        Some(Fault::HangBeforeTls | Fault::ResetBeforeTls | Fault::PlainHttp) => {
            Err(io::Error::other("this fault ends before a request"))
        }
    }
}

fn head(stream: &mut Stream, code: u16, headers: &str) -> io::Result<()> {
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

fn slowly(stream: &mut Stream, body: &[u8], interval: Duration, shared: &Shared) -> io::Result<()> {
    for byte in body.chunks(1) {
        if shared.stopped() {
            break;
        }
        std::thread::sleep(interval);
        stream.write_all(byte)?;
        stream.flush()?;
    }
    Ok(())
}

/// Says nothing until the client leaves or the server ends.
fn hang(tcp: &TcpStream, shared: &Shared) -> io::Result<()> {
    tcp.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut tcp = tcp;
    while !shared.stopped() {
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
fn reset(tcp: &TcpStream) -> io::Result<()> {
    rustix::net::sockopt::set_socket_linger(tcp, Some(Duration::ZERO))?;
    Err(io::ErrorKind::ConnectionReset.into())
}

fn read_request(stream: &mut Stream) -> io::Result<Request> {
    let mut lines = Vec::new();
    let mut reader = BufReader::new(&mut *stream);
    loop {
        let mut line = String::new();
        let ended = reader.by_ref().take(64 << 10).read_line(&mut line)? == 0;
        if ended || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let mut first = lines.first().map(String::as_str).unwrap_or_default().split(' ');
    let headers: BTreeMap<_, _> = lines
        .iter()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Request {
        method: first.next().unwrap_or_default().into(),
        path: first.next().unwrap_or_default().into(),
        headers,
        client_certificate: stream.conn.peer_certificates().is_some(),
    })
}
