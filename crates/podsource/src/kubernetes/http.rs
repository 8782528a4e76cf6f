//! One GET over HTTP/1.1 and its answer, on a connection that is closed afterwards.
//!
//! A general client would bring redirects, pools, compression and proxies, none of which is wanted here, and would blur which
//! deadline ended what. Parsing the head is `httparse`'s business.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::Duration;

use super::connection::{self, Deadline};
use crate::error::Cause;

/// Largest status line and headers, in bytes.
const MAX_HEAD: u64 = 64 << 10;
/// Most headers.
const MAX_HEADERS: usize = 64;
/// How much of the explanation of an error is read, in bytes.
const MAX_EXPLANATION: usize = 64 << 10;
/// Longest line with the size of a chunk, in bytes.
const MAX_CHUNK_LINE: u64 = 1 << 10;

const STAGE_HEAD: &str = "waiting for the answer";
const STAGE_BODY: &str = "reading the answer";

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Vec<u8>,
    phrase: String,
    content_type: String,
}

impl Response {
    pub(super) fn is_html(&self) -> bool {
        self.content_type.starts_with("text/html") || self.body.trim_ascii_start().starts_with(b"<")
    }

    /// Name of the status.
    pub(super) fn reason(&self) -> String {
        let known = match self.status {
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            429 => "Too Many Requests",
            500 => "Internal Server Error",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            _ => return self.phrase.clone(),
        };
        known.into()
    }
}

/// The text of the request. Host, path and token are known to contain neither spaces nor line breaks.
pub(super) fn request(host: &str, path: &str, user_agent: &str, token: Option<&str>) -> String {
    let mut text = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {user_agent}\r\nAccept: application/json\r\nConnection: close\r\n"
    );
    if let Some(token) = token {
        text += &format!("Authorization: Bearer {token}\r\n");
    }
    text + "\r\n"
}

/// Sends the request and reads the answer, at most `limit` bytes of it. Errors and the status line do not repeat the token.
pub(super) fn exchange(
    stream: &mut (impl Read + Write),
    request: &str,
    token: Option<&str>,
    limit: usize,
    deadline: Deadline,
) -> Result<Response, Cause> {
    let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
    sent.map_err(|error| connection::cause(&error, "sending the request", deadline))?;
    response(&mut BufReader::with_capacity(4 << 10, stream), token, limit, deadline)
}

/// How the end of a body is known (RFC 9112, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClosed,
}

fn response(
    reader: &mut impl BufRead,
    token: Option<&str>,
    limit: usize,
    deadline: Deadline,
) -> Result<Response, Cause> {
    let (mut response, framing) = loop {
        let head = read_head(reader, deadline)?;
        match parse_head(&head, token)? {
            // 1xx: the real answer follows
            (Response { status: 100..=199, .. }, _) => {}
            answer => break answer,
        }
    };
    if response.status == 200 {
        response.body = read_body(reader, framing, limit, deadline)?;
    } else {
        // the status says enough; a broken explanation must not hide it
        response.body = read_body(reader, framing, MAX_EXPLANATION, deadline).unwrap_or_default();
    }
    Ok(response)
}

fn read_head(reader: &mut impl BufRead, deadline: Deadline) -> Result<Vec<u8>, Cause> {
    let mut head = Vec::new();
    loop {
        let left = MAX_HEAD - head.len() as u64;
        let read = reader.by_ref().take(left).read_until(b'\n', &mut head);
        let read = read.map_err(|error| connection::cause(&error, STAGE_HEAD, deadline))?;
        if head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n") {
            return Ok(head);
        }
        if head.len() as u64 >= MAX_HEAD {
            return Err(Cause::NotHttp("its headers are too large".into()));
        }
        if head.is_empty() {
            return Err(Cause::Disconnected { stage: STAGE_HEAD, reason: "closed by the other side".into() });
        }
        if read == 0 || !head.ends_with(b"\n") {
            return Err(Cause::Truncated("it ends within its headers".into()));
        }
    }
}

fn parse_head(head: &[u8], token: Option<&str>) -> Result<(Response, Framing), Cause> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Cause::NotHttp("its headers are incomplete".into())),
        Err(error) => return Err(Cause::NotHttp(error.to_string())),
    }
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| hide(&String::from_utf8_lossy(header.value), token).trim().to_ascii_lowercase())
    };
    if let Some(coding) = header("content-encoding").filter(|coding| coding != "identity") {
        return Err(Cause::NotHttp(format!(
            "its coding {:?} was not asked for",
            clean(coding.as_bytes(), 40)
        )));
    }
    let framing = framing(header("transfer-encoding").as_deref(), header("content-length").as_deref())?;
    let response = Response {
        status: parsed.code.unwrap_or_default(),
        phrase: clean(hide(parsed.reason.unwrap_or_default(), token).as_bytes(), 60),
        content_type: header("content-type").unwrap_or_default(),
        retry_after: header("retry-after").and_then(|value| value.parse().ok()).map(Duration::from_secs),
        body: Vec::new(),
    };
    Ok((response, framing))
}

fn framing(transfer_encoding: Option<&str>, content_length: Option<&str>) -> Result<Framing, Cause> {
    match (transfer_encoding, content_length) {
        (Some("chunked"), _) => Ok(Framing::Chunked),
        (Some(_), _) => Err(Cause::NotHttp("its transfer coding is unknown".into())),
        (None, Some(length)) if length.bytes().all(|byte| byte.is_ascii_digit()) => match length.parse() {
            Ok(length) => Ok(Framing::Length(length)),
            Err(_) => Err(Cause::TooLarge),
        },
        (None, Some(_)) => Err(Cause::NotHttp("its content length is not a number".into())),
        (None, None) => Ok(Framing::UntilClosed),
    }
}

fn read_body(
    reader: &mut impl BufRead,
    framing: Framing,
    limit: usize,
    deadline: Deadline,
) -> Result<Vec<u8>, Cause> {
    let mut body = Vec::new();
    match framing {
        Framing::Length(length) if length > limit as u64 => return Err(Cause::TooLarge),
        Framing::Length(length) => append(reader, length, &mut body, deadline)?,
        Framing::Chunked => read_chunks(reader, limit, &mut body, deadline)?,
        Framing::UntilClosed => {
            let read = reader.take(limit as u64 + 1).read_to_end(&mut body);
            read.map_err(|error| broken_off(&error, body.len(), deadline))?;
            if body.len() > limit {
                return Err(Cause::TooLarge);
            }
        }
    }
    Ok(body)
}

fn read_chunks(
    reader: &mut impl BufRead,
    limit: usize,
    body: &mut Vec<u8>,
    deadline: Deadline,
) -> Result<(), Cause> {
    loop {
        let size = chunk_size(&read_line(reader, body.len(), deadline)?)?;
        if size == 0 {
            // trailers may follow; the connection is closed, so nobody needs to read them
            return Ok(());
        }
        if size > (limit - body.len()) as u64 {
            return Err(Cause::TooLarge);
        }
        append(reader, size, body, deadline)?;
        if !read_line(reader, body.len(), deadline)?.trim_ascii().is_empty() {
            return Err(Cause::NotHttp("a chunk is longer than it says".into()));
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Cause> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let size = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'));
    size.and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| Cause::NotHttp("the size of a chunk is not a number".into()))
}

fn read_line(reader: &mut impl BufRead, received: usize, deadline: Deadline) -> Result<Vec<u8>, Cause> {
    let mut line = Vec::new();
    let read = reader.by_ref().take(MAX_CHUNK_LINE).read_until(b'\n', &mut line);
    read.map_err(|error| broken_off(&error, received, deadline))?;
    match line.last() {
        Some(b'\n') => Ok(line),
        _ if line.len() as u64 == MAX_CHUNK_LINE => {
            Err(Cause::NotHttp("the size of a chunk is not a number".into()))
        }
        _ => Err(Cause::Truncated(format!("it ends after {received} bytes without a last chunk"))),
    }
}

/// Reads exactly `length` bytes more.
fn append(
    reader: &mut impl BufRead,
    length: u64,
    body: &mut Vec<u8>,
    deadline: Deadline,
) -> Result<(), Cause> {
    let before = body.len() as u64;
    let read = reader.by_ref().take(length).read_to_end(body);
    read.map_err(|error| broken_off(&error, body.len(), deadline))?;
    let got = body.len() as u64 - before;
    if got < length {
        return Err(Cause::Truncated(format!("it ends after {got} of {length} bytes")));
    }
    Ok(())
}

/// An error within the body: a lost connection means a truncated answer, everything else means what it means anywhere.
fn broken_off(error: &io::Error, received: usize, deadline: Deadline) -> Cause {
    match connection::cause(error, STAGE_BODY, deadline) {
        Cause::Disconnected { reason, .. } => Cause::Truncated(format!("after {received} bytes: {reason}")),
        other => other,
    }
}

/// Text from the other side without the token, which what answers may have echoed.
pub(super) fn hide(text: &str, token: Option<&str>) -> String {
    token.map_or_else(|| text.to_owned(), |token| text.replace(token, "<token>"))
}

/// Text from the other side that is fit for one line of a message: no control characters, at most `limit` characters.
pub(super) fn clean(text: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit).collect()
}
