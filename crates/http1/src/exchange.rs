//! One request and its answer, on a connection that is closed afterwards.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use crate::{Deadline, Error};

/// Largest status line and headers, in bytes.
const MAX_HEAD: u64 = 64 << 10;
/// Most headers.
const MAX_HEADERS: usize = 64;
/// How much of the explanation of an error is read, in bytes.
const MAX_EXPLANATION: usize = 64 << 10;
/// Longest line with the size of a chunk, in bytes.
const MAX_CHUNK_LINE: u64 = 1 << 10;

const STAGE_HEAD: &str = "waiting for the answer";

/// An answer, read to its end.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The pause that the other side asks for.
    pub retry_after: Option<Duration>,
    /// The body, whole.
    pub body: Vec<u8>,
    phrase: String,
    content_type: String,
}

impl Response {
    /// Whether it is a web page, as proxies send them.
    pub fn is_html(&self) -> bool {
        self.content_type.starts_with("text/html") || self.body.trim_ascii_start().starts_with(b"<")
    }

    /// Name of the status.
    pub fn reason(&self) -> String {
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

/// The bytes of a request. Host, path and headers are known to contain no line breaks, the path no spaces.
pub fn request(
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        for part in [name, ": ", value, "\r\n"] {
            text += part;
        }
    }
    if let Some(body) = body {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut bytes = (text + "\r\n").into_bytes();
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

/// Sends the request and reads the answer, at most `limit` bytes of it. Errors and the status line do not repeat `token`.
///
/// # Errors
/// See [`Error`].
pub fn exchange(
    stream: &mut (impl Read + Write),
    request: &[u8],
    token: Option<&str>,
    limit: usize,
    deadline: Deadline,
) -> Result<Response, Error> {
    let sent = stream.write_all(request).and_then(|()| stream.flush());
    sent.map_err(|error| Error::of(error, "sending the request", deadline))?;
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
) -> Result<Response, Error> {
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

fn read_head(reader: &mut impl BufRead, deadline: Deadline) -> Result<Vec<u8>, Error> {
    let mut head = Vec::new();
    loop {
        let left = MAX_HEAD - head.len() as u64;
        let read = reader.by_ref().take(left).read_until(b'\n', &mut head);
        let read = read.map_err(|error| Error::of(error, STAGE_HEAD, deadline))?;
        if head.ends_with(b"\r\n\r\n") || head.ends_with(b"\n\n") {
            return Ok(head);
        }
        if head.len() as u64 >= MAX_HEAD {
            return Err(Error::NotHttp("its headers are too large".into()));
        }
        if head.is_empty() {
            return Err(Error::Closed { stage: STAGE_HEAD });
        }
        if read == 0 || !head.ends_with(b"\n") {
            return Err(Error::Truncated("it ends within its headers".into()));
        }
    }
}

fn parse_head(head: &[u8], token: Option<&str>) -> Result<(Response, Framing), Error> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(Error::NotHttp("its headers are incomplete".into())),
        Err(error) => return Err(Error::NotHttp(error.to_string())),
    }
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| hide(&String::from_utf8_lossy(header.value), token).trim().to_ascii_lowercase())
    };
    if let Some(coding) = header("content-encoding").filter(|coding| coding != "identity") {
        return Err(Error::NotHttp(format!(
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

fn framing(transfer_encoding: Option<&str>, content_length: Option<&str>) -> Result<Framing, Error> {
    match (transfer_encoding, content_length) {
        (Some("chunked"), _) => Ok(Framing::Chunked),
        (Some(_), _) => Err(Error::NotHttp("its transfer coding is unknown".into())),
        (None, Some(length)) if length.bytes().all(|byte| byte.is_ascii_digit()) => match length.parse() {
            Ok(length) => Ok(Framing::Length(length)),
            Err(_) => Err(Error::TooLarge),
        },
        (None, Some(_)) => Err(Error::NotHttp("its content length is not a number".into())),
        (None, None) => Ok(Framing::UntilClosed),
    }
}

fn read_body(
    reader: &mut impl BufRead,
    framing: Framing,
    limit: usize,
    deadline: Deadline,
) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    match framing {
        Framing::Length(length) if length > limit as u64 => return Err(Error::TooLarge),
        Framing::Length(length) => append(reader, length, &mut body, deadline)?,
        Framing::Chunked => read_chunks(reader, limit, &mut body, deadline)?,
        Framing::UntilClosed => {
            let read = reader.take(limit as u64 + 1).read_to_end(&mut body);
            read.map_err(|error| Error::within_body(error, body.len(), deadline))?;
            if body.len() > limit {
                return Err(Error::TooLarge);
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
) -> Result<(), Error> {
    loop {
        let size = chunk_size(&read_line(reader, body.len(), deadline)?)?;
        if size == 0 {
            // trailers may follow; the connection is closed, so nobody needs to read them
            return Ok(());
        }
        if size > (limit - body.len()) as u64 {
            return Err(Error::TooLarge);
        }
        append(reader, size, body, deadline)?;
        if !read_line(reader, body.len(), deadline)?.trim_ascii().is_empty() {
            return Err(Error::NotHttp("a chunk is longer than it says".into()));
        }
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Error> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let size = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'));
    size.and_then(|text| u64::from_str_radix(text, 16).ok())
        .ok_or_else(|| Error::NotHttp("the size of a chunk is not a number".into()))
}

fn read_line(reader: &mut impl BufRead, received: usize, deadline: Deadline) -> Result<Vec<u8>, Error> {
    let mut line = Vec::new();
    let read = reader.by_ref().take(MAX_CHUNK_LINE).read_until(b'\n', &mut line);
    read.map_err(|error| Error::within_body(error, received, deadline))?;
    match line.last() {
        Some(b'\n') => Ok(line),
        _ if line.len() as u64 == MAX_CHUNK_LINE => {
            Err(Error::NotHttp("the size of a chunk is not a number".into()))
        }
        _ => Err(Error::Truncated(format!("it ends after {received} bytes without a last chunk"))),
    }
}

/// Reads exactly `length` bytes more.
fn append(
    reader: &mut impl BufRead,
    length: u64,
    body: &mut Vec<u8>,
    deadline: Deadline,
) -> Result<(), Error> {
    let before = body.len() as u64;
    let read = reader.by_ref().take(length).read_to_end(body);
    read.map_err(|error| Error::within_body(error, body.len(), deadline))?;
    let got = body.len() as u64 - before;
    if got < length {
        return Err(Error::Truncated(format!("it ends after {got} of {length} bytes")));
    }
    Ok(())
}

/// Text from the other side without the token, which what answers may have echoed.
pub fn hide(text: &str, token: Option<&str>) -> String {
    token.map_or_else(|| text.to_owned(), |token| text.replace(token, "<token>"))
}

/// Text from the other side that is fit for one line of a message: no control characters, at most `limit` characters.
pub fn clean(text: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit).collect()
}

#[cfg(test)]
mod tests;
