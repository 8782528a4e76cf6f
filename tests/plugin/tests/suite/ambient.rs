//! Ambient mode: which pods the plugin hands to the node agent, how, and what becomes of every answer.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use testkit::apiserver::{ApiServer, Credentials, Fault};
use testkit::{Families, Node, Pod, PodObject, assert_says};

const MODE: &str = "istio.io/dataplane-mode";

/// A node in ambient mode with the chart's selectors and an API server.
struct Scene {
    node: Node,
    api: ApiServer,
    pod: Pod,
}

impl Scene {
    fn new() -> Self {
        let api = ApiServer::start().unwrap();
        api.set_namespace("default", &[(MODE, "ambient")]);
        let mut node = Node::bare().unwrap();
        let conf = node.conf.as_object_mut().unwrap();
        conf.remove("pod_source");
        conf.insert("ambient_enabled".into(), json!(true));
        conf.insert(
            "enablement_selectors".into(),
            json!([
                {"podSelector": {"matchLabels": {MODE: "ambient"}}},
                {
                    "podSelector": {"matchExpressions": [{"key": MODE, "operator": "NotIn", "values": ["none"]}]},
                    "namespaceSelector": {"matchLabels": {MODE: "ambient"}},
                },
            ]),
        );
        std::fs::create_dir(node.run_dir()).unwrap();
        api.write_kubeconfig(&node.run_dir(), Credentials::Token).unwrap();
        Self { node, api, pod: Pod::new(Families::V4).unwrap() }
    }

    fn set_pod(&self, labels: &Value, annotations: &Value) {
        let pod = PodObject::named("web").uid("12-34").with("/metadata/labels", labels.clone());
        self.api.set_pod(pod.with("/metadata/annotations", annotations.clone()));
    }

    /// An agent that answers the next event with these bytes; gives what it heard.
    fn agent(&self, answer: impl Into<Vec<u8>>) -> Receiver<String> {
        listen(&self.node.run_dir().join("pluginevent.sock"), answer.into())
    }
}

fn listen(socket: &Path, answer: Vec<u8>) -> Receiver<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = Vec::new();
        let mut part = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut part) {
            text.extend_from_slice(&part[..len]);
            let all = String::from_utf8_lossy(&text).into_owned();
            let body = all.split_once("\r\n\r\n").map(|(_, body)| body);
            if body.is_some_and(|body| serde_json::from_str::<Value>(body).is_ok()) {
                sender.send(all).unwrap();
                break;
            }
        }
        let _ = stream.write_all(&answer);
        if answer.is_empty() {
            // Silence, as long as the plugin waits.
            let _ = stream.read(&mut part);
        }
    });
    receiver
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Exactly what an agent of the original understands.
#[test]
fn the_event_is_the_originals() {
    let scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    let heard = scene.agent(OK);
    let answer = scene.node.add("web", scene.pod.path()).unwrap();
    let request = heard.recv_timeout(Duration::from_secs(5)).unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_says(
        head,
        &["POST /cmdadd HTTP/1.1\r\n", "\r\nHost: unix\r\n", "\r\nContent-Type: application/json\r\n"],
    );
    let netns = scene.pod.path().display();
    assert_eq!(
        body,
        format!(
            r#"{{"Netns":"{netns}","PodName":"web","PodNamespace":"default","IPs":[{{"Interface":0,"Address":{{"IP":"10.77.0.2","Mask":"////AA=="}},"Gateway":"10.77.0.1"}}]}}"#
        )
    );
    assert_eq!(answer.json().unwrap()["ips"][0]["address"], "10.77.0.2/24", "prevResult is passed on");
    assert!(!scene.pod.nft_text().unwrap().contains("istio"), "the agent programs the pod");
    assert_says(&answer.stderr, &["the node agent has taken it"]);
}

/// What the runtime calls the pod goes along where it says that. The original's agent passes it over.
#[test]
fn the_pods_uid_goes_along() {
    let scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    let heard = scene.agent(OK);
    let args = "K8S_POD_NAME=web;K8S_POD_NAMESPACE=default;K8S_POD_UID=12-34";
    let answer = scene.node.call("ADD", "web", scene.pod.path()).env("CNI_ARGS", args).run().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    let request = heard.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(request.ends_with(r#""Gateway":"10.77.0.1"}],"PodUID":"12-34"}"#), "{request}");
}

#[test]
fn what_an_event_lacks_is_empty() {
    let mut scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    scene.node.conf["prevResult"]["ips"] = json!([{"address": "fd77::2/64"}, {"address": "10.1.1.1/32"}]);
    let heard = scene.agent(OK);
    scene.node.add("web", scene.pod.path()).unwrap();
    let request = heard.recv_timeout(Duration::from_secs(5)).unwrap();
    let ips = concat!(
        r#""IPs":[{"Interface":null,"Address":{"IP":"fd77::2","Mask":"//////////8AAAAAAAAAAA=="},"Gateway":""},"#,
        r#"{"Interface":null,"Address":{"IP":"10.1.1.1","Mask":"/////w=="},"Gateway":""}]}"#
    );
    assert!(request.ends_with(ips), "{request}");
}

/// By labels of pod and namespace, and which questions it takes to tell.
#[test]
fn who_is_handed_over_and_who_is_not() {
    let get_namespace = "/api/v1/namespaces/default";
    for (labels, annotations, namespace, handed, asked) in [
        (json!({}), json!({}), "ambient", true, true),
        (json!({MODE: "ambient"}), json!({}), "other", true, false),
        (json!({MODE: "none"}), json!({}), "ambient", false, false),
        (json!({}), json!({}), "other", false, true),
        (json!({MODE: "ambient"}), json!({"sidecar.istio.io/status": ""}), "ambient", false, false),
    ] {
        let scene = Scene::new();
        scene.api.set_namespace("default", &[(MODE, namespace)]);
        scene.set_pod(&labels, &annotations);
        let heard = scene.agent(OK);
        scene.node.add("web", scene.pod.path()).unwrap();
        let told = heard.recv_timeout(Duration::from_millis(100)).is_ok();
        assert_eq!(told, handed, "{labels} {annotations} {namespace}");
        let paths: Vec<String> = scene.api.requests().into_iter().map(|request| request.path).collect();
        assert_eq!(paths.contains(&get_namespace.to_owned()), asked, "{labels} {annotations}: {paths:?}");
    }
    // A sidecar goes the sidecar's way.
    let scene = Scene::new();
    scene.api.set_pod(PodObject::named("web").sidecar());
    scene.node.add("web", scene.pod.path()).unwrap();
    assert!(scene.pod.nft_text().unwrap().contains("istio-proxy-nat"));
    // Nobody is asked about the agent itself, excluded namespaces, and what is no pod.
    for (args, why) in [
        ("K8S_POD_NAME=istio-cni-node-abc12;K8S_POD_NAMESPACE=istio-system", "own-agent-pod"),
        ("K8S_POD_NAME=web;K8S_POD_NAMESPACE=kube-system", "excluded-namespace"),
        ("IgnoreUnknown=1", "not-kubernetes"),
    ] {
        let call = scene.node.call("ADD", "web", scene.pod.path()).env("CNI_ARGS", args);
        let answer = call.run().unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:?}");
        assert_says(&answer.stderr, &[why]);
    }
    // Without selectors nobody is in the mesh.
    let mut scene = Scene::new();
    scene.set_pod(&json!({MODE: "ambient"}), &json!({}));
    scene.node.conf["enablement_selectors"] = json!([]);
    scene.node.add("web", scene.pod.path()).unwrap();
}

#[test]
fn every_answer_but_yes_fails_the_add() {
    let refusal = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "no",
            refusal(
                "500 Internal Server Error",
                "pod default/web is not in the mesh: no ztunnel connection\n",
            ),
            &["the node agent did not take the pod (500)", "no ztunnel connection"],
        ),
        ("not JSON", refusal("400 Bad Request", "bad\n"), &["(400)", "bad"]),
        ("other user", refusal("403 Forbidden", "only root\n"), &["(403)", "only root"]),
        ("redirect", refusal("302 Found", ""), &["(302)"]),
        ("garbage", b"\x00\x01\x02 not http\r\n\r\n".to_vec(), &["hand the pod to the node agent"]),
        (
            "cut off",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab".to_vec(),
            &["hand the pod to the node agent"],
        ),
        ("huge yes", refusal("200 OK", &"x".repeat(10 << 20)), &["hand the pod to the node agent"]),
        ("huge no", refusal("500 No", &"y".repeat(10 << 20)), &["(500)"]),
        ("control characters", refusal("500 No", "a\x1b[31mb\nc"), &["(500)"]),
    ];
    for (name, answer, says) in cases {
        let scene = Scene::new();
        scene.set_pod(&json!({}), &json!({}));
        let _heard = scene.agent(answer);
        let answer = scene.node.call("ADD", "web", scene.pod.path()).run().unwrap();
        let (_, text) = answer.error().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_says(&text, says);
        assert!(text.len() < 4000 && !text.contains('\x1b'), "{name}: {} bytes", text.len());
    }
}

/// The namespace goes along open. An agent that does not know of that, as the original's, reads bytes, and the kernel closes it.
#[test]
fn the_namespace_goes_along_as_a_descriptor() {
    let scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    let listener = UnixListener::bind(scene.node.run_dir().join("pluginevent.sock")).unwrap();
    let call = scene.node.call("ADD", "web", scene.pod.path());
    let add = std::thread::spawn(move || call.run().unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(&stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let came: Vec<OwnedFd> = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect();
    assert!(bytes[..received.bytes].starts_with(b"POST /cmdadd HTTP/1.1\r\n"));
    let inode = |file: File| file.metadata().unwrap().ino();
    let passed: Vec<u64> = came.into_iter().map(|fd| inode(File::from(fd))).collect();
    assert_eq!(passed, [inode(File::open(scene.pod.path()).unwrap())]);
    stream.write_all(OK.as_bytes()).unwrap();
    assert_eq!(add.join().unwrap().exit, Some(0));

    // The same by bytes only.
    let link = std::fs::read_link(scene.pod.path()).unwrap();
    let held = || {
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        descriptors.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == link)).count()
    };
    let before = held();
    let call = scene.node.call("ADD", "web", scene.pod.path());
    let add = std::thread::spawn(move || call.run().unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    let read = stream.read(&mut bytes).unwrap();
    assert!(read > 0);
    assert_eq!(held(), before);
    stream.write_all(OK.as_bytes()).unwrap();
    assert_eq!(add.join().unwrap().exit, Some(0));
}

/// An agent that has no ztunnel says when to ask again; another one takes the pod.
#[test]
fn an_agent_that_asks_for_patience_is_asked_again() {
    let scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    let socket = scene.node.run_dir().join("pluginevent.sock");
    let patience =
        "HTTP/1.1 500 Internal Server Error\r\nRetry-After: 1\r\nContent-Length: 10\r\n\r\nno ztunnel";
    let first = scene.agent(patience);
    let call = scene.node.call("ADD", "web", scene.pod.path());
    let add = std::thread::spawn(move || call.run().unwrap());
    first.recv_timeout(Duration::from_secs(5)).unwrap();
    std::fs::remove_file(&socket).unwrap();
    // It ends without an answer, as in an upgrade.
    drop(UnixListener::bind(&socket).unwrap());
    std::thread::sleep(Duration::from_millis(1200));
    std::fs::remove_file(&socket).unwrap();
    let second = scene.agent(OK);
    second.recv_timeout(Duration::from_secs(5)).unwrap();
    let answer = add.join().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["no ztunnel", "waiting for it", "the node agent has taken it"]);
    assert!((1.0..3.0).contains(&answer.took.as_secs_f64()), "{:?}", answer.took);
}

#[test]
fn an_agent_that_is_not_there_or_says_nothing() {
    let mut scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    scene.node.conf["add_timeout"] = json!("1s");
    let answer = scene.node.call("ADD", "web", scene.pod.path()).run().unwrap();
    assert_says(&answer.error().unwrap().1, &["pluginevent.sock", "waits for the agent", "istio-cni-node"]);
    assert!((0.8..1.5).contains(&answer.took.as_secs_f64()), "{:?}", answer.took);
    scene.node.conf["add_timeout"] = json!("60s");
    let _heard = scene.agent("");
    let start = Instant::now();
    let answer = scene.node.call("ADD", "web", scene.pod.path()).run().unwrap();
    assert_says(&answer.error().unwrap().1, &["hand the pod to the node agent", "timed out"]);
    assert!((4..8).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

/// Never outside of the mesh for want of an answer.
#[test]
fn labels_that_nobody_tells_fail_the_add() {
    let scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    scene.api.fail_path("/api/v1/namespaces/default?", 1000, Fault::status(503));
    scene.api.delete_namespace("default");
    let answer = scene.node.call("ADD", "web", scene.pod.path()).run().unwrap();
    assert_says(&answer.error().unwrap().1, &["depends on labels", "get namespace default", "404"]);
    let mut scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    scene.api.stop();
    scene.node.conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {"a": "b"}});
    scene.node.conf["facts_timeout"] = json!("500ms");
    let answer = scene.node.call("ADD", "web", scene.pod.path()).run().unwrap();
    assert_says(&answer.error().unwrap().1, &["refused", "depends on labels", "annotations only"]);
}

#[test]
fn selectors_that_mean_nothing_fail_the_add() {
    for (selectors, says) in [
        (json!([{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}]), "operator \"Is\""),
        (json!([{"namespaceSelector": {"matchLabels": {"a\nb": "c"}}}]), "is not the key"),
        (json!("all"), "enablement_selectors"),
        (json!([{"podSelector": []}]), "podSelector"),
    ] {
        let mut scene = Scene::new();
        scene.set_pod(&json!({}), &json!({}));
        scene.node.conf["enablement_selectors"] = selectors.clone();
        let answer = scene.node.call("ADD", "web", scene.pod.path()).run().unwrap();
        assert_says(&answer.error().unwrap().1, &[says]);
    }
}

#[test]
fn the_failure_policy_and_the_kill_switch_count() {
    let mut scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    scene.node.conf["failure_policy"] = json!("open");
    scene.node.conf["add_timeout"] = json!("1s");
    let answer = scene.node.add("web", scene.pod.path()).unwrap();
    assert_says(&answer.stderr, &["pluginevent.sock"]);
    scene.node.conf["failure_policy"] = json!("closed");
    scene.node.conf["capture"] = json!("disabled");
    let heard = scene.agent(OK);
    scene.node.add("web", scene.pod.path()).unwrap();
    assert!(heard.recv_timeout(Duration::from_millis(100)).is_err());
}

/// CHECK never asks the agent: rules of ambient mode are there, or they are not.
#[test]
fn check_looks_for_rules_of_ambient_mode() {
    let scene = Scene::new();
    scene.set_pod(&json!({}), &json!({}));
    let check = || scene.node.call("CHECK", "web", scene.pod.path()).run().unwrap();
    // Not in the mesh yet, for all that is known here.
    let answer = check();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["no record of what was applied", "istio-ambient-nat"]);
    scene.pod.nft("add table inet istio-ambient-nat").unwrap();
    let answer = check();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert!(!answer.stderr.contains("no record"), "{answer:#?}");
    let answer = scene.node.call("DEL", "web", scene.pod.path()).run().unwrap();
    assert_eq!(answer.exit, Some(0));
}

const UID: &str = "0c5d1d0e-0000-4000-8000-000000000001";

/// A call that says which pod it is about, as containerd does.
fn call_with_uid(scene: &Scene) -> testkit::plugin::Call {
    let args = format!("K8S_POD_NAME=web;K8S_POD_NAMESPACE=default;K8S_POD_UID={UID}");
    scene.node.call("ADD", "web", scene.pod.path()).env("CNI_ARGS", &args)
}

fn facts() -> Value {
    json!({
        "pod": PodObject::named("web").uid(UID).json(),
        "namespace_labels": {MODE: "ambient"},
    })
}

fn set_pod_with_uid(scene: &Scene) {
    let mut pod = facts()["pod"].take();
    pod["metadata"]["labels"] = json!({});
    scene.api.set_pod(pod);
}

/// An agent's socket for questions, which has facts of the pod and takes what it is told.
fn answer_facts(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        // Each call asks and reports a few times.
        for stream in listener.incoming().take(20) {
            let mut stream = stream.unwrap();
            let (mut text, mut part) = (Vec::new(), [0; 4096]);
            while !text.windows(4).any(|window| window == b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(len @ 1..) => text.extend_from_slice(&part[..len]),
                    _ => break,
                }
            }
            let body = if text.starts_with(b"GET") { facts().to_string() } else { String::new() };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
}

/// Facts and labels have one time together.
#[test]
fn labels_are_waited_for_no_longer_than_the_facts_timeout_in_all() {
    let mut scene = Scene::new();
    set_pod_with_uid(&scene);
    scene.node.conf["facts_timeout"] = json!("4s");
    // Five tries with growing pauses take one and a half seconds.
    scene.api.fail_path("/pods/web", 5, Fault::status(503));
    scene.api.fail_path("/api/v1/namespaces/default?", 1000, Fault::status(503));
    scene.api.delete_namespace("default");
    let answer = call_with_uid(&scene).run().unwrap();
    assert_says(&answer.error().unwrap().1, &["depends on labels", "get namespace default"]);
    assert!((2.0..5.3).contains(&answer.took.as_secs_f64()), "{:?}", answer.took);
}

/// An agent that comes while the API server does not tell the labels knows them.
#[test]
fn an_agent_that_comes_meanwhile_tells_the_labels() {
    let mut scene = Scene::new();
    scene.node.conf["facts_timeout"] = json!("20s");
    set_pod_with_uid(&scene);
    scene.api.delete_namespace("default");
    let heard = scene.agent(OK);
    let call = call_with_uid(&scene);
    let add = std::thread::spawn(move || call.run().unwrap());
    std::thread::sleep(Duration::from_millis(700));
    answer_facts(&scene.node.run_dir().join("agent.sock"));
    let answer = add.join().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert!(heard.recv_timeout(Duration::from_secs(5)).is_ok(), "it is handed over");
}

/// What the agent left says that the pod belongs to the mesh, its token is over, and it is being replaced.
#[test]
fn an_agent_that_is_away_for_a_moment_is_waited_for_with_last_known_facts() {
    let scene = Scene::new();
    std::fs::create_dir(scene.node.run_dir().join("facts")).unwrap();
    std::fs::write(scene.node.run_dir().join("facts/default_web.json"), facts().to_string()).unwrap();
    scene.api.set_fault(Some(Fault::status(401)));
    let call = call_with_uid(&scene);
    let add = std::thread::spawn(move || call.run().unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let heard = scene.agent(OK);
    let answer = add.join().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert!(heard.recv_timeout(Duration::from_secs(5)).is_ok());
    // One that does not come back keeps nobody for long.
    std::fs::remove_file(scene.node.run_dir().join("pluginevent.sock")).unwrap();
    let answer = call_with_uid(&scene).run().unwrap();
    assert_says(&answer.error().unwrap().1, &["pluginevent.sock", "waits for the agent"]);
    assert!(answer.took < Duration::from_secs(3), "{:?}", answer.took);
}

/// A pod that is gone from the API is asked for again and again, and the log says so once, not for each try.
#[test]
fn a_pod_that_is_gone_makes_one_line() {
    let mut scene = Scene::new();
    scene.node.conf["facts_timeout"] = json!("4s");
    let answer = call_with_uid(&scene).run().unwrap();
    assert_says(&answer.error().unwrap().1, &["get pod default/web", "404"]);
    let tries = scene.api.requests().into_iter().filter(|request| request.path.contains("/pods/web")).count();
    let lines = answer.stderr.lines().filter(|line| line.contains("get pod default/web")).count();
    assert!(tries >= 5 && lines <= 2, "{lines} lines of {tries} tries\n{}", answer.stderr);
}
