//! What users of the node can take from the agent over the socket that is open to them.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use agent_tests::{Node, http};

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
