//! Pod facts from an API server over TLS, and everything that keeps them from coming.

use std::time::Duration;

use testkit::apiserver::{ApiServer, Credentials, Fault};
use testkit::rules::Comments;
use testkit::{Families, Node, Pod, PodObject, assert_says};

use crate::everything;

/// A node whose pods come from an API server, and a pod.
fn node_with_api() -> (Node, ApiServer, Pod) {
    let server = ApiServer::start().unwrap();
    server.set_pod(PodObject::named("web").sidecar());
    let mut node = Node::bare().unwrap();
    node.conf.as_object_mut().unwrap().remove("pod_source");
    std::fs::create_dir(node.run_dir()).unwrap();
    server.write_kubeconfig(&node.run_dir(), Credentials::Token).unwrap();
    (node, server, Pod::new(Families::V4).unwrap())
}

#[test]
fn a_pod_is_captured_with_facts_from_the_api() {
    let (node, server, pod) = node_with_api();
    node.add("web", pod.path()).unwrap();
    assert!(pod.nft_text().unwrap().contains("istio-proxy-nat"));
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].path, "/api/v1/namespaces/default/pods/web");
    let log = std::fs::read_to_string(node.run_dir().join("istio-cni.log")).unwrap();
    let kubeconfig = std::fs::read_to_string(node.run_dir().join("istio-cni-kubeconfig")).unwrap();
    let secret =
        kubeconfig.split("token:").nth(1).unwrap().split_whitespace().next().unwrap().trim_matches('"');
    assert!(secret.len() > 3 && !log.contains(secret), "the token is in the log");
}

#[test]
fn it_waits_for_an_api_that_comes_back() {
    let (mut node, server, pod) = node_with_api();
    node.conf["facts_timeout"] = "20s".into();
    server.fail_next(3, Fault::status(503));
    let answer = node.add("web", pod.path()).unwrap();
    assert_eq!(server.requests().len(), 4);
    assert_says(&answer.stderr, &["503", "\"try\":\"1\"", "pod is captured"]);
    assert_eq!(
        answer.stderr.matches("503").count(),
        1,
        "the same is not told of each try: {}",
        answer.stderr
    );
}

#[test]
fn every_failure_of_the_api_is_named() {
    let cases: Vec<(&str, Fault, &[&str])> = vec![
        ("hangs", Fault::Hang, &["timed out", "check the load of the API server"]),
        ("hangs before TLS", Fault::HangBeforeTls, &["timed out"]),
        ("resets", Fault::Reset, &["connection"]),
        ("closes", Fault::Close, &["connection"]),
        ("web page", Fault::Html, &["HTML page", "server URL"]),
        ("garbage", Fault::Garbage, &["HTTP"]),
        ("truncated", Fault::Truncated, &["truncated"]),
        ("other object", Fault::Body("{\"kind\":\"Status\"}".to_owned()), &["the answer"]),
        (
            "expired token",
            Fault::status(401),
            &["401", "no node agent is here to renew the kubeconfig", "cnictl uninstall"],
        ),
        ("forbidden", Fault::status(403), &["403", "allow the identity in the kubeconfig to do that"]),
        ("not found", Fault::status(404), &["404", "check that the pod still exists"]),
        ("too many", Fault::status(429), &["429", "limits requests"]),
        ("broken", Fault::status(500), &["500", "health of the API server"]),
        ("overloaded", Fault::status(503), &["503"]),
    ];
    let (node, server, pod) = node_with_api();
    let before = everything(&pod);
    for (name, fault, says) in cases {
        server.set_fault(Some(fault));
        let answer = node.call("ADD", "web", pod.path()).run().unwrap();
        let (code, text) = answer.error().unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(code, 999, "{name}");
        assert_says(&text, &["get pod default/web", &server.url(), "istio-cni-kubeconfig"]);
        assert_says(&text, says);
        assert!(answer.took < Duration::from_secs(4), "{name} took {:?}", answer.took);
        assert_eq!(before, everything(&pod), "{name}: something changed");
    }
}

#[test]
fn an_api_that_is_not_there() {
    let (node, server, pod) = node_with_api();
    let url = server.url();
    drop(server);
    let (_, text) = node.call("ADD", "web", pod.path()).run().unwrap().error().unwrap();
    assert_says(
        &text,
        &["get pod default/web", &url, "connect to", "refused", "check that the API server runs"],
    );
    assert!(pod.nft_json(Comments::Keep).unwrap().is_empty());
}

#[test]
fn every_broken_kubeconfig_is_named() {
    let (node, _server, pod) = node_with_api();
    let path = node.run_dir().join("istio-cni-kubeconfig");
    let good = std::fs::read_to_string(&path).unwrap();
    let cases: [(&str, Option<&str>, &[&str]); 4] = [
        ("missing", None, &["istio-cni-kubeconfig", "node agent"]),
        ("garbage", Some("\u{1}\u{2}: ["), &["istio-cni-kubeconfig"]),
        ("empty", Some(""), &["istio-cni-kubeconfig"]),
        ("no server", Some("apiVersion: v1\nkind: Config\nclusters: []\n"), &["istio-cni-kubeconfig"]),
    ];
    for (name, text, says) in cases {
        match text {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let (code, text) = node
            .call("ADD", "web", pod.path())
            .run()
            .unwrap()
            .error()
            .unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(code, 999, "{name}");
        assert_says(&text, says);
        // Pods that need no facts start all the same.
        let mut call = node.call("ADD", "web", pod.path());
        call = call.env("CNI_ARGS", "K8S_POD_NAME=dns;K8S_POD_NAMESPACE=kube-system");
        assert_eq!(call.run().unwrap().exit, Some(0), "{name}: an excluded namespace needs no kubeconfig");
    }
    std::fs::write(&path, good).unwrap();
    node.add("web", pod.path()).unwrap();
}

#[test]
fn manifests_that_are_missing_or_broken() {
    let node = Node::bare().unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    let (_, text) = node.call("ADD", "web", pod.path()).run().unwrap().error().unwrap();
    assert_says(&text, &["default/web", &node.manifests().to_string_lossy(), "add a manifest"]);
    std::fs::write(
        node.manifests().join("default_web.yaml"),
        "kind: Pod\nmetadata:\n  name: web\n  labels: [\n",
    )
    .unwrap();
    let (_, text) = node.call("ADD", "web", pod.path()).run().unwrap().error().unwrap();
    assert_says(&text, &["default/web", "default_web.yaml", "line ", "correct or remove"]);
}

#[test]
fn a_pod_of_the_same_name_is_not_taken_for_this_one() {
    let node = Node::bare().unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    node.write_manifest(PodObject::named("web").sidecar().uid("old")).unwrap();
    let args = "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=default;K8S_POD_UID=new";
    let (_, text) = node.call("ADD", "web", pod.path()).env("CNI_ARGS", args).run().unwrap().error().unwrap();
    assert_says(&text, &["stale object", "new", "old"]);
    assert!(pod.nft_json(Comments::Keep).unwrap().is_empty());
}

/// Files of another user in the run directory, or of root that all can write, decide nothing.
#[test]
fn what_others_can_write_is_not_believed() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let (mut node, server, pod) = node_with_api();
    node.conf["facts_timeout"] = "1s".into();
    let before = everything(&pod);
    let refused = |node: &Node| node.call("ADD", "web", pod.path()).run().unwrap().error().unwrap().1;
    let kubeconfig = node.run_dir().join("istio-cni-kubeconfig");
    let set = |path: &std::path::Path, owner: u32, mode: u32| {
        chown(path, Some(owner), None).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, owner, mode, says) in [
        (&kubeconfig, 1000, 0o600, "it belongs to user 1000"),
        (&kubeconfig, 0, 0o666, "it can be written by all users (mode 0666)"),
        (&node.run_dir(), 1000, 0o755, "belongs to user 1000"),
        (&node.run_dir(), 0, 0o777, "can be written by all users"),
    ] {
        set(path, owner, mode);
        assert_says(&refused(&node), &["istio-cni-kubeconfig", says, "trusted"]);
        set(path, 0, 0o700);
    }
    assert!(server.requests().is_empty(), "a server was asked");

    // Facts by which the pod would not be captured, while the API server is away.
    server.set_fault(Some(Fault::status(503)));
    let facts = node.run_dir().join("facts");
    std::fs::create_dir(&facts).unwrap();
    let planted = PodObject::named("web").sidecar().with("/spec/hostNetwork", true).json();
    let file = facts.join("default_web.json");
    std::fs::write(&file, serde_json::json!({"pod": planted, "namespace_labels": {}}).to_string()).unwrap();
    set(&file, 1000, 0o644);
    assert_says(&refused(&node), &["facts/default_web.json", "it belongs to user 1000"]);
    assert_eq!(before, everything(&pod));
}
