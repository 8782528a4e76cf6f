use std::io::Cursor;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// A stream that answers with these bytes, whatever is asked.
struct Canned(Cursor<Vec<u8>>);

impl std::io::Read for Canned {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl std::io::Write for Canned {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn answer(bytes: impl Into<Vec<u8>>) -> Result<Response, Error> {
    let deadline = Deadline::at(Instant::now() + Duration::from_secs(5));
    exchange(&mut Canned(Cursor::new(bytes.into())), b"GET", None, 100, deadline)
}

fn body(bytes: &str) -> String {
    match answer(bytes) {
        Ok(response) => String::from_utf8(response.body).unwrap(),
        Err(cause) => format!("error: {cause}"),
    }
}

#[test]
fn bodies_end_where_their_framing_says() {
    assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more"), "hi");
    assert_eq!(body("HTTP/1.1 200 OK\r\n\r\nto the end"), "to the end");
    assert_eq!(body("HTTP/1.0 200 OK\n\nbare line feeds"), "bare line feeds");
    assert_eq!(
        body("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3;x=y\r\n ho\r\n0\r\n\r\n"),
        "hi ho"
    );
    assert_eq!(
        body("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\nContent-Length: 9\r\n\r\n0\r\n\r\n"),
        ""
    );
    assert_eq!(body("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"), "x");
    assert_eq!(
        body("HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\ncut"),
        "",
        "a broken explanation does not hide the status"
    );
}

#[test]
fn broken_answers_are_named() {
    let large = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    for (bytes, part) in [
        ("", "connection lost"),
        ("HTTP/1.1 200", "truncated: it ends within its headers"),
        ("HTTP/1.1 200 OK\r\nA: b\r\n", "truncated: it ends within its headers"),
        ("hello\r\n\r\n", "not understandable HTTP"),
        (&large, "headers are too large"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "length is not a number"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "too large"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", "too large"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", "ends after 3 of 9 bytes"),
        ("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "its coding \"gzip\""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding is unknown"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nhi", "size of a chunk"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nhi", "too large"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhi\r\n", "longer than it says"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "without a last chunk"),
    ] {
        let got = body(bytes);
        assert!(got.starts_with("error: ") && got.contains(part), "{part:?} in {got:?}");
    }
}

const PARTS: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Retry-After: 18446744073709551615\r\n",
    "\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "\n",
    "ffffffffffffffff\r\n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_panics(bytes: Vec<u8>) {
        let _ = answer(bytes);
    }

    #[test]
    fn no_mixture_of_parts_panics(parts in prop::collection::vec(prop::sample::select(PARTS), 0..10)) {
        if let Ok(response) = answer(parts.concat()) {
            prop_assert!(response.body.len() <= 64 << 10);
        }
    }
}
