//! The log socket: what plugins post, and what others do with it.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use testkit::{Families, Node, PATIENCE, Pod, PodCall, as_user, assert_says, eventually, http};

/// A line as the plugin posts it: level, time in UTC with microseconds, text, then labels.
fn line(level: &str, msg: &str, label: &str) -> String {
    let line = json!({"level": level, "time": "2026-08-01T09:30:00.000042Z", "msg": msg, "pod": label});
    format!("{line}\n")
}

fn batch(lines: &[String]) -> String {
    json!(lines).to_string()
}

/// Byte for byte as Go's client sends it.
#[test]
fn batches_of_the_original_plugin_are_printed() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let mode = std::fs::metadata(node.log_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let body = batch(&[
        line("info", "  hello\n", "a/b"),
        line("debug", "not of this level", "a/b"),
        line("warn", "a\ttab and a\nline break", "a/b"),
        line("loud", "unknown level", "a/b"),
        "broken".to_owned(),
        line("error", "bye", "a/b"),
    ]);
    let request = format!(
        "POST /log HTTP/1.1\r\nHost: unix\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\nContent-Type: \
         application/json\r\nAccept-Encoding: gzip\r\n\r\n{body}",
        body.len()
    );
    let mut stream = http::connect(&node.log_socket()).unwrap();
    // Two executions over one connection, although a plugin makes one each.
    for _ in 0..2 {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            rest.push(byte[0]);
        }
        assert!(String::from_utf8_lossy(&rest).to_lowercase().contains("content-length: 0"));
    }
    let plugin = eventually("all lines are printed", PATIENCE, || {
        let lines = agent.log().lines().into_iter();
        let plugin: Vec<String> = lines.filter(|line| line.contains("\tcni-plugin\t")).collect();
        ensure!(plugin.len() == 6, "{plugin:?}");
        Ok(plugin)
    })
    .unwrap();
    let time = "2026-08-01T09:30:00.000042Z";
    assert_eq!(plugin[0], format!("{time}\tinfo\tcni-plugin\thello\tpod=a/b"));
    assert!(plugin[1].starts_with(&format!("{time}\twarn\tcni-plugin\ta")), "{plugin:?}");
    assert_eq!(plugin[2], format!("{time}\terror\tcni-plugin\tbye\tpod=a/b"));
}

#[test]
fn batches_are_not_mixed() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let writers: Vec<String> = (0..8).map(|writer| format!("writer/{writer}")).collect();
    std::thread::scope(|scope| {
        for writer in &writers {
            let lines: Vec<String> = (0..200).map(|n| line("info", &format!("line {n}"), writer)).collect();
            let socket = node.log_socket();
            scope.spawn(move || {
                assert_eq!(http::ask(&socket, "POST", "/log", &batch(&lines)).unwrap().status, 200);
            });
        }
    });
    for writer in &writers {
        agent.log().wait_for(&["line 199\t", writer], PATIENCE).unwrap();
    }
    let lines: Vec<String> =
        agent.log().lines().into_iter().filter(|line| line.contains("\tcni-plugin\t")).collect();
    assert_eq!(lines.len(), 1600);
    for block in lines.chunks(200) {
        let writer = block[0].rsplit('\t').next().unwrap();
        assert!(block.iter().all(|line| line.ends_with(writer)), "{block:#?}");
    }
}

/// 200 whatever it is, and a note of what is lost.
#[test]
fn garbage_is_noted_and_answered_as_ever() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let socket = node.log_socket();
    let deep = "[".repeat(100_000);
    for body in ["", "{}", "[1,2]", "not json", "[\"a\"", "null", &deep] {
        let before = agent.log().count(&["\terror\t", "no list of texts"]);
        assert_eq!(http::ask(&socket, "POST", "/log", body).unwrap().status, 200, "{body:.20}");
        agent.log().wait_for(&["\terror\t", "no list of texts"], PATIENCE).unwrap();
        assert!(agent.log().count(&["\terror\t", "no list of texts"]) >= before);
    }
    assert_eq!(http::ask(&socket, "POST", "/other", "[]").unwrap().status, 404);
    // Larger than any plugin's.
    let large = batch(&[line("info", &"x".repeat(5 << 20), "a/b")]);
    assert_eq!(http::ask(&socket, "POST", "/log", &large).unwrap().status, 200);
    agent.log().wait_for(&["\terror\t", "log lines of a plugin are lost", "larger than"], PATIENCE).unwrap();
    // No HTTP at all.
    for bytes in [&b"\x00\x01\x02\r\n\r\n"[..], b"GET\r\n\r\n", b"POST /log HTTP/9.9\r\n\r\n"] {
        let mut stream = http::connect(&socket).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(
        http::ask(&socket, "POST", "/log", &batch(&[line("info", "fine", "a/b")])).unwrap().status,
        200
    );
    agent.log().wait_for(&["\tfine\t"], PATIENCE).unwrap();
}

#[test]
fn a_slow_client_keeps_nobody_waiting_and_is_let_go() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let mut slow = http::connect(&node.log_socket()).unwrap();
    slow.write_all(b"POST /log HTTP/1.1\r\nHost: unix\r\nContent-Length: 100\r\n\r\n[").unwrap();
    let silent = http::connect(&node.log_socket()).unwrap();
    let start = Instant::now();
    let body = batch(&[line("info", "quick", "a/b")]);
    assert_eq!(http::ask(&node.log_socket(), "POST", "/log", &body).unwrap().status, 200);
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let mut answer = Vec::new();
    (&silent).read_to_end(&mut answer).unwrap();
    assert!(start.elapsed() < Duration::from_secs(8), "took {:?}", start.elapsed());
    agent.log().wait_for(&["log lines of a plugin are lost", "too long"], PATIENCE).unwrap();
}

/// Any user may log, where the directories let it.
#[test]
fn another_user_may_log() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    for dir in [node.dir().to_owned(), node.run_dir()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let body = batch(&[line("info", "from another user", "a/b")]);
    let socket = node.log_socket();
    let reply = as_user(65534, || http::ask(&socket, "POST", "/log", &body)).unwrap().unwrap();
    assert_eq!(reply.status, 200);
    agent.log().wait_for(&["from another user"], PATIENCE).unwrap();
}

/// The level of scope `cni-plugin` is the plugin's and that of what is printed.
#[test]
fn lines_of_the_real_plugin_arrive_with_level_and_fields() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let pod = Pod::new(Families::V4).unwrap();
    let agent = node.agent().arg("--log_output_level=cni-plugin:debug").arg("--log_as_json").ready().unwrap();
    PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    let text = agent.log().wait_for(&["pod is captured"], PATIENCE).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("level", "info"),
        ("scope", "cni-plugin"),
        ("pod", "default/web"),
        ("cmd", "ADD"),
        ("if", "eth0"),
        ("container", "c0ffee-web"),
        ("facts_source", "agent"),
        ("backend", "nftables"),
    ] {
        assert_eq!(line[key], value, "{key}: {text}");
    }
    assert_says(&agent.log().wait_for(&["cni-plugin", "captured: "], PATIENCE).unwrap(), &["debug"]);
}
