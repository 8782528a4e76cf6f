//! Old and new beside each other, where old is what the original says on the wire and leaves in files.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::Result;
use serde_json::{Value, json};
use testkit::apiserver::Credentials;
use testkit::{Families, Mesh, Node, PATIENCE, Pod, PodCall, assert_says, http};

/// The original's log server, as far as a client can tell: head and body of each request.
fn old_log_server(path: PathBuf) -> Result<mpsc::Receiver<(String, String)>> {
    let listener = UnixListener::bind(path)?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut text = Vec::new();
            let mut chunk = [0; 4096];
            let request = loop {
                let all = String::from_utf8_lossy(&text).into_owned();
                if let Some((head, body)) = all.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                    if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                        break (head.to_owned(), body.to_owned());
                    }
                }
                match stream.read(&mut chunk) {
                    Ok(0) | Err(_) => break (String::from("cut off"), all),
                    Ok(length) => text.extend_from_slice(&chunk[..length]),
                }
            };
            let answer =
                "HTTP/1.1 200 OK\r\nDate: Sat, 01 Aug 2026 09:30:00 GMT\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// The original's entry: its keys and no other.
fn old_entry(node: &Node) -> Value {
    json!({
        "type": "istio-cni", "name": "istio-cni", "ipam": {}, "dns": {}, "plugin_log_level": "info",
        "cni_agent_run_dir": node.run_dir(), "ambient_enabled": false, "enablement_selectors": [],
        "exclude_namespaces": null, "pod_namespace": "istio-system", "native_nftables": true,
        "enable_ambient_detection_retry": false,
    })
}

#[test]
fn a_new_plugin_beside_an_old_agent() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    std::fs::create_dir(node.run_dir()).unwrap();
    node.api.write_kubeconfig(&node.run_dir(), Credentials::Token).unwrap();
    let server = old_log_server(node.log_socket()).unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    let call = PodCall::with(old_entry(&node), "web", "uid-1", pod.path());
    for verb in ["ADD", "CHECK", "DEL"] {
        let answer = call.run(verb).unwrap();
        assert_eq!(answer.exit, Some(0), "{verb}: {answer:?}");
        assert!(
            !answer.stderr.contains("\"level\":\"error\"") && !answer.stderr.contains("agent.sock"),
            "{answer:?}"
        );
        let (head, body) = server.recv_timeout(PATIENCE).unwrap();
        assert_says(&head, &["POST /log HTTP/1.1\r\n", "Host: unix", "Content-Type: application/json"]);
        let lines: Vec<String> = serde_json::from_str(&body).unwrap();
        for line in &lines {
            assert!(line.ends_with('\n'), "{line:?}");
            let line: Value = serde_json::from_str(line).unwrap();
            assert!(["level", "time", "msg"].iter().all(|key| line[*key].is_string()), "{line}");
        }
        if verb == "ADD" {
            assert_says(&body, &["pod is captured", "api"]);
        }
        assert!(server.try_recv().is_err(), "one request for each execution");
    }
    assert!(pod.nft_text().unwrap().contains("istio-proxy-nat"));
    // CHECK goes by what ADD has kept.
    assert_eq!(node.plugin_requests(), ["/api/v1/namespaces/default/pods/web"]);
    assert!(!node.run_dir().join("uncaptured").exists());
}

/// A list into which an old version of the original put its entry, with the key `kubernetes` that later ones no longer have.
const CHAINED_BY_THE_ORIGINAL: &str = r#"{
  "cniVersion": "0.3.1",
  "name": "podnet",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "subnet": "10.244.7.0/24"}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {
      "type": "istio-cni",
      "log_level": "info",
      "kubernetes": {
        "kubeconfig": "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig",
        "cni_bin_dir": "/opt/cni/bin",
        "exclude_namespaces": ["istio-system", "kube-system"]
      }
    }
  ]
}
"#;

/// What the original, also in old versions, left on the node.
#[test]
fn a_new_agent_replaces_what_an_old_one_left() {
    let node = Node::new().unwrap();
    let before = CHAINED_BY_THE_ORIGINAL;
    std::fs::write(node.conflist(), before).unwrap();
    std::fs::create_dir(node.run_dir()).unwrap();
    std::fs::write(
        node.kubeconfig(),
        "apiVersion: v1\nkind: Config\nusers: [{name: istio-cni, user: {token: old}}]\n",
    )
    .unwrap();
    std::fs::write(node.plugin(), "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(node.plugin(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let stale = UnixListener::bind(node.log_socket()).unwrap();
    drop(stale);
    let agent = node.start().unwrap();
    let entry = node.entry().unwrap();
    assert!(entry.get("kubernetes").is_none(), "{entry}");
    assert_eq!(entry["cni_agent_run_dir"], json!(node.run_dir()));
    let others = |text: &str| -> Vec<Value> {
        let list: Value = serde_json::from_str(text).unwrap();
        let all = list["plugins"].as_array().unwrap().clone();
        all.into_iter().filter(|plugin| plugin["type"] != "istio-cni").collect()
    };
    let after = std::fs::read_to_string(node.conflist()).unwrap();
    assert_eq!(others(&after), others(before));
    assert!(!std::fs::read_to_string(node.kubeconfig()).unwrap().contains("token: old"));
    assert_eq!(
        std::fs::read(node.plugin()).unwrap(),
        std::fs::read(node.bin_source().join("istio-cni")).unwrap()
    );
    // An old plugin's lines; its answer is not looked at, but it waits for it.
    let lines =
        json!(["{\"level\":\"warn\",\"time\":\"2026-08-01T09:30:00.000001Z\",\"msg\":\"old plugin\"}\n"]);
    assert_eq!(http::ask(&node.log_socket(), "POST", "/log", &lines.to_string()).unwrap().status, 200);
    agent.log().wait_for(&["\twarn\tcni-plugin\told plugin"], PATIENCE).unwrap();
    assert_eq!(agent.stop().unwrap().status.code(), Some(0));
    let list: Value = serde_json::from_slice(&std::fs::read(node.conflist()).unwrap()).unwrap();
    assert!(!list.to_string().contains("istio-cni"), "{list}");
}

/// By the types of the original's keys: a wrong type is a hard error for a plugin of the original, an unknown
/// key is none.
fn assert_decodable_by_the_original(entry: &Value, ours: &[&str]) {
    let texts = ["type", "name", "plugin_log_level", "cni_agent_run_dir", "pod_namespace"];
    let flags = ["ambient_enabled", "native_nftables", "enable_ambient_detection_retry"];
    for (key, value) in entry.as_object().unwrap() {
        let good = match key.as_str() {
            key if texts.contains(&key) => value.is_string(),
            key if flags.contains(&key) => value.is_boolean(),
            "ipam" | "dns" => value.is_object(),
            "enablement_selectors" => value.as_array().is_some_and(|list| {
                list.iter().all(|s| s["podSelector"].is_object() && s["namespaceSelector"].is_object())
            }),
            "exclude_namespaces" => {
                value.is_null() || value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
            }
            "capabilities" => {
                ours.contains(&"capabilities")
                    && value.as_object().is_some_and(|map| map.values().all(Value::is_boolean))
            }
            key => ours.contains(&key),
        };
        assert!(good, "{key}: {entry}");
    }
    for key in
        texts.iter().chain(&flags).chain(&["ipam", "dns", "enablement_selectors", "exclude_namespaces"])
    {
        assert!(entry.get(*key).is_some(), "{key} is absent: {entry}");
    }
}

#[test]
fn an_old_plugin_can_read_the_new_entry() {
    let mesh = Mesh::new().unwrap();
    let node = &mesh.node;
    let agent = node.agent().without("FACTS_TIMEOUT").ready().unwrap();
    assert_decodable_by_the_original(&node.entry().unwrap(), &["capabilities", "state_dir"]);
    agent.kill().unwrap();
    let options =
        mesh.agent().env("FAILURE_POLICY", "open").env("CAPTURE", "enabled").env("ADD_TIMEOUT", "20s");
    let options = options.env("EXCLUDE_NAMESPACES", "a,b");
    let selectors = "- podSelector: {matchLabels: {a: b}}\n- namespaceSelector: {}\n";
    let options = options.env("AMBIENT_ENABLEMENT_SELECTOR", selectors);
    let _agent = options.ready().unwrap();
    let ours = ["state_dir", "failure_policy", "capture", "add_timeout", "facts_timeout", "capabilities"];
    let entry = node.entry().unwrap();
    assert_decodable_by_the_original(&entry, &ours);
    assert!(ours.iter().all(|key| entry.get(*key).is_some()), "{entry}");
}

/// A rollback: the original's next agent, and then its cleanup, on what a killed agent of ours left.
#[test]
fn the_originals_cleanup_of_our_entry_leaves_a_valid_list() {
    let node = Node::new().unwrap();
    node.start().unwrap().kill().unwrap();
    let mut list: Value = serde_json::from_slice(&std::fs::read(node.conflist()).unwrap()).unwrap();
    let plugins = list["plugins"].as_array_mut().unwrap();
    let first = plugins.iter().position(|plugin| plugin["type"] == "istio-cni").unwrap();
    plugins.remove(first);
    let foreign: Value = serde_json::from_str(Node::foreign_conflist()).unwrap();
    assert_eq!(list, foreign, "only the entry is ours");
    // No other file that a runtime or the original's agent would take for a configuration.
    for entry in std::fs::read_dir(node.net_dir()).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let is_loaded = [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
        assert_eq!(is_loaded, name == "10-calico.conflist", "{name}");
    }
    // And forward again: the list as the original would print it.
    std::fs::write(node.conflist(), format!("{list:#}\n")).unwrap();
    let agent = node.start().unwrap();
    node.entry().unwrap();
    assert_eq!(agent.stop().unwrap().status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), format!("{list:#}\n"));
}
