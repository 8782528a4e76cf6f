//! What others can take from the agent over the socket that is open to every user of the node.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Node, PATIENCE, as_user, eventually, http};

/// More than are served at once.
const CONNECTIONS: usize = 200;
/// As large as a body may be, but for its end.
const BODY: usize = 128 << 10;
/// Most that the agent's memory may grow by, in KiB, whatever comes: all bodies, what they are taken apart to, and the queue of the log.
const GROWTH: u64 = 24 << 10;
const DROPPED: &str = "istio_cni_plugin_log_lines_dropped_total{reason=\"rate\"}";

/// Most memory that a process has had, in KiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn many_large_posts_do_not_take_the_nodes_memory() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let before = peak(agent.pid());
    let head = format!("POST /log HTTP/1.1\r\nHost: unix\r\nContent-Length: {BODY}\r\n\r\n");
    let body = vec![b'['; BODY - 1];
    thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            let mut stream = http::connect(&node.log_socket()).unwrap();
            scope.spawn({
                let (head, body) = (&head, &body);
                move || {
                    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
                    // What is not served is not read either.
                    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
                }
            });
        }
    });
    let grown = peak(agent.pid()) - before;
    println!("memory grew by {grown} KiB");
    assert!(grown < GROWTH, "{grown} KiB");
    let start = Instant::now();
    assert_eq!(http::ask(&node.log_socket(), "POST", "/log", "[]").unwrap().status, 200);
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
}

/// Nobody must wait for good behind those who ask and do not read.
#[test]
fn clients_that_do_not_read_lose_their_place() {
    let node = Node::new().unwrap();
    let _agent = node.start().unwrap();
    let questions = "GET /other HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = http::connect(&node.log_socket()).unwrap();
        client.set_nonblocking(true).unwrap();
        clients.push(client);
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        for client in &mut clients[..64] {
            // It fails as soon as the answers are in the way, which is what is wanted.
            let _ = client.write(questions.as_bytes());
        }
        thread::sleep(Duration::from_millis(100));
    }
    drop(clients.split_off(64));
    eventually("an answer", Duration::from_secs(40), || {
        http::ask(&node.log_socket(), "POST", "/log", "[]").map(drop)
    })
    .unwrap();
}

/// Posts a body until the agent hangs up or answers.
fn post(socket: &Path, head: &str, body: &[u8]) {
    let mut stream = http::connect(socket).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let _ = stream.read(&mut [0; 100]);
}

/// Small parts, many labels, many texts, characters that grow when they are printed.
#[test]
fn bodies_that_are_more_than_they_look_like_take_no_memory() {
    let node = Node::new().unwrap();
    let agent = node.agent().arg("--log_target=/dev/null").ready().unwrap();
    let before = peak(agent.pid());
    let room = BODY - 200;
    let line = |members: &str| {
        json!(format!(r#"{{"level":"info","time":"2026-08-01T09:30:00Z","msg":"m"{members}}}"#)).to_string()
    };
    let empty = format!("[{}\"\"]", "\"\",".repeat(room / 3));
    let mut members = String::new();
    for number in 0..(room / 16) {
        members += &format!(",\"{number:x}\":{{}}");
    }
    let labels = format!("[{}]", line(&members));
    let control =
        format!("[{}]", vec![line(&format!(",\"a\":\"{}\"", "\u{7f}".repeat(15_000))); 8].join(","));
    let nested = line(&format!(",\"a\":{}1{}", "[".repeat(100), "]".repeat(100)));
    let nested = format!("[{}]", vec![nested; room / 400].join(","));
    for body in [&empty, &labels, &control, &nested] {
        assert!(body.len() <= BODY, "{} bytes: {body:.60}", body.len());
        let whole = format!("POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let chunked = "POST /log HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        // No end comes.
        let parts: String = body.chars().take(room / 8).map(|c| format!("1\r\n{c}\r\n")).collect();
        thread::scope(|scope| {
            for _ in 0..24 {
                scope.spawn(|| post(&node.log_socket(), &whole, body.as_bytes()));
            }
            for _ in 0..8 {
                scope.spawn(|| post(&node.log_socket(), chunked, parts.as_bytes()));
            }
        });
        println!("{body:.20}: memory grew by {} KiB", peak(agent.pid()) - before);
    }
    let grown = peak(agent.pid()) - before;
    assert!(grown < GROWTH, "{grown} KiB");
    assert_eq!(agent.readyz().unwrap().status, 200);
}

fn lines(text: &str, count: usize) -> String {
    let line = json!({"level": "info", "time": "2026-08-01T09:30:00Z", "msg": text}).to_string();
    json!(vec![line; count]).to_string()
}

#[test]
fn lines_beyond_the_rate_are_dropped_and_counted_and_told_of() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let (body, start) = (lines(&"x".repeat(1000), 100), Instant::now());
    let mut posts = 0;
    while agent.metric(DROPPED).unwrap() < 1000.0 {
        assert_eq!(http::ask(&node.log_socket(), "POST", "/log", &body).unwrap().status, 200);
        posts += 1;
        assert!(posts < 2000, "nothing is dropped");
    }
    let dropped = agent.metric(DROPPED).unwrap();
    assert!((dropped / 100.0).fract() == 0.0, "whole posts of 100 lines: {dropped}");
    agent.log().wait_for(&["\twarn\t", "log lines of plugins are dropped", "uid=0"], PATIENCE).unwrap();
    // What is taken is printed, unless this test reads the log more slowly than it posts.
    let taken = f64::from(posts) * 100.0 - dropped;
    eventually("what is taken is printed, or counted as lost", PATIENCE, || {
        let printed = agent.log().count(&["\tcni-plugin\t"]) as f64;
        let lost = agent.metric("istio_cni_log_lines_lost_total")?;
        ensure!(printed + lost == taken, "{printed} printed and {lost} lost of {taken} in {posts} posts");
        Ok(())
    })
    .unwrap();
    // 2 MiB at once, and 64 KiB each second.
    let most = ((2 << 20) + (start.elapsed().as_secs() + 1) * (64 << 10)) as f64 / 1000.0 + 100.0;
    assert!(taken > 1500.0 && taken < most, "{taken} of at most {most}");
    assert_eq!(agent.log().count(&["log lines of plugins are dropped"]), 1, "once a minute");
}

/// What others post is not taken from what root may post, nor are their connections.
#[test]
fn another_users_flood_costs_no_line_of_the_plugin() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    for dir in [node.dir().to_owned(), node.run_dir()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (socket, body) = (node.log_socket(), lines(&"y".repeat(1000), 100));
    let held = as_user(1000, || {
        for _ in 0..20 {
            let _ = http::ask(&socket, "POST", "/log", &body);
        }
        (0..100).map(|_| http::connect(&socket).unwrap()).collect::<Vec<_>>()
    });
    let held = held.unwrap();
    assert!(agent.metric(DROPPED).unwrap() >= 1000.0);
    let start = Instant::now();
    assert_eq!(http::ask(&socket, "POST", "/log", &lines("of the plugin", 1)).unwrap().status, 200);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    agent.log().wait_for(&["\tcni-plugin\tof the plugin"], PATIENCE).unwrap();
    let closed = "istio_cni_connections_closed_total{listener=\"log.sock\",reason=\"place\"}";
    assert!(agent.metric(closed).unwrap() >= 80.0, "{}", agent.metric(closed).unwrap());
    drop(held);
}
