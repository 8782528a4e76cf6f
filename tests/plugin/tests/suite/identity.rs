//! Whose traffic the rules exempt, and pods whose traffic they do not see.

use std::fs;

use serde_json::{Value, json};
use testkit::rules::Comments;
use testkit::{Families, Node, Pod, PodObject, assert_says};

/// A node where `default/web` is the usual pod after this change.
fn node(change: impl FnOnce(&mut Value)) -> Node {
    let node = Node::bare().unwrap();
    let mut web = PodObject::named("web").sidecar().json();
    change(&mut web["spec"]);
    node.write_manifest(web).unwrap();
    node
}

/// The only note about a pod that started without all of its capture.
fn note(node: &Node) -> Value {
    let notes: Vec<_> =
        fs::read_dir(node.run_dir().join("uncaptured")).unwrap().map(Result::unwrap).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    serde_json::from_slice(&fs::read(notes[0].path()).unwrap()).unwrap()
}

#[test]
fn the_ids_of_the_pod_are_exempt_where_the_proxy_has_none() {
    for backend in [true, false] {
        let mut node = node(|spec| {
            spec["securityContext"] = json!({"runAsUser": 2100, "runAsGroup": 9});
            spec["containers"][0]["securityContext"] = json!({"runAsUser": 1, "runAsGroup": 1});
            spec["containers"][1]["securityContext"] = json!({"runAsGroup": 2200});
        });
        node.conf["native_nftables"] = backend.into();
        let pod = Pod::new(Families::V4).unwrap();
        let answer = node.add("web", pod.path()).unwrap();
        assert!(!answer.stderr.contains("\"level\":\"warn\""), "{}", answer.stderr);
        // iptables is on top of nf_tables here.
        let rules = pod.nft_text().unwrap();
        assert_says(&rules, &["skuid 2100 ", "skgid 2200 "]);
        assert!(!rules.contains("1337"), "{rules}");
    }
}

/// Rules as upstream has them, and nothing says "captured".
#[test]
fn a_pod_whose_traffic_passes_by_its_proxy_is_set_up_and_not_called_captured() {
    for (ids, proxy_ids, part) in [
        (json!({"runAsUser": 1337}), json!(null), "container app runs as user 1337"),
        (json!({"runAsUser": 5, "runAsGroup": 1337}), json!(null), "container app runs as group 1337"),
        (json!({"runAsUser": 5}), json!({"runAsUser": 0}), "istio-proxy runs as user 0 and group 0"),
    ] {
        let node = node(|spec| {
            spec["containers"][0]["securityContext"] = ids;
            spec["containers"][1]["securityContext"] = proxy_ids;
        });
        let pod = Pod::new(Families::V4).unwrap();
        let answer = node.add("web", pod.path()).unwrap();
        assert_says(&answer.stderr, &["\"level\":\"warn\"", part, "not all of its traffic is captured"]);
        assert!(!answer.stderr.contains("pod is captured"), "{}", answer.stderr);
        assert_says(&pod.nft_text().unwrap(), &["skuid 1337", "skgid 1337"]);
        let note = note(&node);
        assert_eq!((&note["result"], &note["name"]), (&json!("incomplete"), &json!("web")));
        assert_says(note["error"].as_str().unwrap(), &[part]);
    }
}

#[test]
fn an_init_container_that_ends_is_warned_of_and_no_more() {
    for (name, warned) in [("migrate", true), ("istio-validation", false)] {
        let node = node(|spec| {
            spec["initContainers"] = json!([{"name": name, "securityContext": {"runAsUser": 1337}}]);
        });
        let pod = Pod::new(Families::V4).unwrap();
        let answer = node.add("web", pod.path()).unwrap();
        assert_says(&answer.stderr, &["pod is captured"]);
        assert_eq!(
            answer.stderr.contains("container migrate runs as user 1337"),
            warned,
            "{}",
            answer.stderr
        );
        assert!(!node.run_dir().join("uncaptured").exists());
    }
}

#[test]
fn a_sandbox_with_its_own_network_stack_is_refused_unless_its_class_is_said_to_be_fine() {
    for (class, sandbox) in
        [("runsc-ptrace", "gVisor"), ("gvisor", "gVisor"), ("kata.clh", "Kata Containers")]
    {
        let mut node = node(|spec| spec["runtimeClassName"] = class.into());
        let pod = Pod::new(Families::V4).unwrap();
        let call = node.call("ADD", "web", pod.path());
        let (_, error) = call.run().unwrap().error().unwrap();
        assert_says(&error, &["default/web", class, sandbox, "kernel_network_runtime_classes"]);
        assert_eq!(pod.nft_json(Comments::Keep).unwrap(), Vec::<Value>::new());

        node.conf["failure_policy"] = "open".into();
        let answer = node.add("web", pod.path()).unwrap();
        assert_says(&answer.stderr, &["pod starts WITHOUT CAPTURE", sandbox]);
        assert_eq!(pod.nft_json(Comments::Keep).unwrap(), Vec::<Value>::new());
        assert_eq!(note(&node)["result"], "uncaptured");

        node.conf["kernel_network_runtime_classes"] = json!(["other", class]);
        let answer = node.add("web", pod.path()).unwrap();
        assert_says(&answer.stderr, &["pod is captured"]);
        assert_says(&pod.nft_text().unwrap(), &["istio-proxy-nat"]);
    }
}

/// Nobody expects capture of a pod without a sidecar, nor of an ordinary class.
#[test]
fn other_pods_and_classes_are_not_refused() {
    let mut node = node(|spec| spec["runtimeClassName"] = "nvidia".into());
    let pod = Pod::new(Families::V4).unwrap();
    assert_says(&node.add("web", pod.path()).unwrap().stderr, &["pod is captured"]);
    let plain = PodObject::named("plain").annotation("sidecar.istio.io/status", "{}");
    node.write_manifest(plain.with("/spec/runtimeClassName", "kata")).unwrap();
    node.conf["failure_policy"] = "closed".into();
    assert_says(&node.add("plain", pod.path()).unwrap().stderr, &["pod is left alone: no-proxy"]);
}
