//! What others can take from the agent over the socket that is open to every user of the node.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use agent_tests::{Node, eventually, http};

/// More than are served at once.
const CONNECTIONS: usize = 200;
/// As large as a body may be, but for its end.
const BODY: usize = 2 << 20;

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
    let grown = (peak(agent.pid()) - before) >> 10;
    assert!(grown < 160, "{grown} MiB");
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
