//! Rules of others that let packets escape ours: CHECK fails by them, and a second ADD says so and succeeds.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;

use serde_json::{Value, json};
use testkit::{Pod, assert_says};

use crate::node_and_pod;

const REDIRECT: &str = "table inet mesh2 { chain o { type nat hook output priority -120; tcp dport 6000-6100 redirect to :4140; }; }";

fn plant(pod: &Pod, line: &str) {
    pod.run(Command::new("sh").args(["-ec", line])).unwrap();
}

#[test]
fn a_check_fails_by_what_shadows_our_rules() {
    for native_nftables in [true, false] {
        for (line, says) in [
            (
                format!("nft '{REDIRECT}'"),
                ["chain o of table inet mesh2 shadows our rules", "port 4140 instead of to port 15001"],
            ),
            (
                "iptables-legacy -t raw -A PREROUTING -p tcp --dport 9090 -j NOTRACK".to_owned(),
                ["table ip raw (legacy)", "that comes in to 10.77.0.2:9090"],
            ),
        ] {
            let (mut node, pod) = node_and_pod(&[]);
            node.conf["native_nftables"] = json!(native_nftables);
            node.add("web", pod.path()).unwrap();
            plant(&pod, &line);
            let check = node.call("CHECK", "web", pod.path());
            let (code, text) = check.run().unwrap().error().unwrap();
            assert_eq!(code, 999);
            assert_says(&text, &["pod default/web is not captured as planned: 1 difference: "]);
            assert_says(&text, &says);
            node.conf["failure_policy"] = json!("open");
            let answer = node.call("CHECK", "web", pod.path()).run().unwrap();
            assert_eq!(answer.exit, Some(0), "{answer:#?}");
        }
    }
}

/// What others do with other packets, and what cannot be read.
#[test]
fn a_check_passes_by_rules_that_shadow_nothing() {
    for native_nftables in [true, false] {
        for (line, says) in [
            ("nft 'table inet fw { chain o { type filter hook output priority 0; policy drop; }; }'", None),
            (
                "iptables-nft -t nat -I PREROUTING -d 192.0.2.77 -p tcp -j DNAT --to-destination 10.77.0.1",
                None,
            ),
            (
                "nft 'table inet odd { chain o { type nat hook output priority -120; fib daddr type unicast tcp dport 1 redirect to :2; }; }'",
                Some("packets may escape capture: chain o of table inet odd"),
            ),
        ] {
            let (mut node, pod) = node_and_pod(&[]);
            node.conf["native_nftables"] = json!(native_nftables);
            node.add("web", pod.path()).unwrap();
            plant(&pod, line);
            let answer = node.call("CHECK", "web", pod.path()).run().unwrap();
            assert_eq!(answer.exit, Some(0), "{line}: {answer:#?}");
            assert_eq!(answer.stderr.contains("escape capture"), says.is_some(), "{}", answer.stderr);
            assert_says(&answer.stderr, says.as_slice());
        }
    }
}

#[test]
fn a_second_add_tells_of_it_and_succeeds() {
    for native_nftables in [true, false] {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = json!(native_nftables);
        node.conf["facts_timeout"] = json!("2s");
        let first = node.add("web", pod.path()).unwrap();
        assert!(!first.stderr.contains("escape"), "{}", first.stderr);
        assert!(!node.add("web", pod.path()).unwrap().stderr.contains("escape"));
        plant(&pod, &format!("nft '{REDIRECT}'"));
        // The node agent hears of it.
        let listener = UnixListener::bind(node.run_dir().join("agent.sock")).unwrap();
        let agent = std::thread::spawn(move || report_of(&listener));
        let second = node.add("web", pod.path()).unwrap();
        let says = ["packets escape capture by rules of others, 1 difference: ", "table inet mesh2"];
        assert_says(&second.stderr, &says);
        assert_says(&second.stderr, &["pod is captured"]);
        let report: Value = serde_json::from_str(&agent.join().unwrap()).unwrap();
        assert_eq!((&report["operation"], &report["result"]), (&json!("add"), &json!("captured")));
        assert_says(report["error"].as_str().unwrap(), &says);
    }
}

/// The body of the first report that comes; everything before it is answered too.
fn report_of(listener: &UnixListener) -> String {
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut text, mut part) = (String::new(), [0; 4096]);
        loop {
            let length = stream.read(&mut part).unwrap();
            text.push_str(&String::from_utf8_lossy(&part[..length]));
            let wanted = text
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            let whole = text.split_once("\r\n\r\n").is_some_and(|(_, body)| {
                body.len() >= wanted.and_then(|n| n.trim().parse::<usize>().ok()).unwrap_or(0)
            });
            if whole || length == 0 {
                break;
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        if text.starts_with("POST /v1/report") {
            return text.split_once("\r\n\r\n").unwrap().1.to_owned();
        }
    }
}
