use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tempfile::TempDir;

use super::*;

/// Far from what is waited, as other tests take the processor.
const LONG: Duration = Duration::from_millis(700);

/// Accepts one connection, reads one request, answers 200; gives head and body.
fn agent(dir: &TempDir) -> JoinHandle<(String, String)> {
    let listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        loop {
            let mut part = [0; 4096];
            let n = stream.read(&mut part).unwrap();
            assert_ne!(n, 0, "connection closed in the middle of a request");
            got.extend_from_slice(&part[..n]);
            let text = String::from_utf8_lossy(&got).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                return (head.to_owned(), body.to_owned());
            }
        }
    })
}

#[test]
fn one_request_carries_every_line_with_its_newline() {
    let dir = TempDir::new().unwrap();
    let agent = agent(&dir);
    let mut tee = SocketTee::open(dir.path()).unwrap();
    tee.push(b"{\"msg\":\"a \\\"quoted\\\" one\"}\n");
    tee.push(b"{\"msg\":\"second\"}\n");
    tee.send().unwrap();
    let (head, body) = agent.join().unwrap();
    assert!(head.starts_with("POST /log HTTP/1.1\r\nHost: unix\r\n"), "{head}");
    assert!(head.contains("\r\nContent-Type: application/json"), "{head}");
    let lines: Vec<String> = serde_json::from_str(&body).unwrap();
    assert_eq!(lines, ["{\"msg\":\"a \\\"quoted\\\" one\"}\n", "{\"msg\":\"second\"}\n"]);
}

#[test]
fn no_lines_are_sent_as_an_empty_array() {
    let dir = TempDir::new().unwrap();
    let agent = agent(&dir);
    SocketTee::open(dir.path()).unwrap().send().unwrap();
    assert_eq!(agent.join().unwrap().1, "[]");
}

#[test]
fn without_a_socket_nothing_is_collected() {
    let dir = TempDir::new().unwrap();
    assert!(SocketTee::open(dir.path()).is_none());
    std::fs::write(dir.path().join(rundir::LOG_SOCKET_NAME), "a plain file").unwrap();
    assert!(SocketTee::open(dir.path()).is_none());
}

#[test]
fn a_dead_socket_is_an_error_at_once() {
    let dir = TempDir::new().unwrap();
    drop(UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap());
    let started = Instant::now();
    let err = SocketTee::open(dir.path()).unwrap().send().unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::ConnectionRefused);
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

#[test]
fn an_agent_that_never_answers_costs_a_moment() {
    let dir = TempDir::new().unwrap();
    let _listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    let mut tee = SocketTee::open(dir.path()).unwrap();
    // More than a socket buffer holds, so that writing blocks too.
    for _ in 0..60 {
        tee.push(&[b'x'; 15_000]);
    }
    assert!(tee.dropped() > 0);
    let started = Instant::now();
    tee.send().unwrap_err();
    let took = started.elapsed();
    assert!(took >= SEND_TIMEOUT / 2 && took < LONG, "{took:?}");
}

#[test]
fn an_agent_whose_queue_is_full_costs_a_moment() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(rundir::LOG_SOCKET_NAME);
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _fills_the_queue = UnixStream::connect(&path).unwrap();
    let started = Instant::now();
    let err = SocketTee::open(dir.path()).unwrap().send().unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

/// An agent that is busy, or that was stopped for a while, finds the lines of processes that are gone.
#[test]
fn the_largest_request_waits_in_the_socket_for_an_agent_that_is_late() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    let mut tee = SocketTee::open(dir.path()).unwrap();
    while tee.dropped() == 0 {
        tee.push(&[b'x'; 1000]);
    }
    tee.send().unwrap_err();
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    let (_, body) = got.split_once("\r\n\r\n").unwrap();
    assert!(body.len() <= MAX_POST && body.len() > MAX_POST - 1100, "{}", body.len());
    assert_eq!(serde_json::from_str::<Vec<String>>(body).unwrap().len(), body.len() / 1003);
}

#[test]
fn the_body_is_bounded_and_dropped_lines_are_counted() {
    let dir = TempDir::new().unwrap();
    let _listener = UnixListener::bind(dir.path().join(rundir::LOG_SOCKET_NAME)).unwrap();
    let mut tee = SocketTee::open(dir.path()).unwrap();
    for _ in 0..200 {
        tee.push(&[b'x'; 10_000]);
    }
    assert!(tee.body.len() <= MAX_POST);
    assert!(tee.dropped() > 180, "{}", tee.dropped());
}
