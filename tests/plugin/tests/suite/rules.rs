//! What calls leave in the kernel.

use serde_json::json;
use testkit::{Families, Pod, PodObject, assert_says};

use crate::{everything, node_and_pod};

const TPROXY: (&str, &str) = ("sidecar.istio.io/interceptionMode", "TPROXY");

#[test]
fn a_second_add_changes_nothing() {
    for (backend, families) in
        [(true, Families::Dual), (false, Families::Dual), (true, Families::V6), (false, Families::V4)]
    {
        for annotations in [&[][..], &[TPROXY]] {
            let (mut node, _) = node_and_pod(annotations);
            let dual = PodObject::named("web").sidecar().annotations(annotations);
            node.write_manifest(dual.proxy_env(&[("ISTIO_DUAL_STACK", "true")])).unwrap();
            node.conf["native_nftables"] = backend.into();
            let pod = Pod::new(families).unwrap();
            let empty = everything(&pod);
            node.add("web", pod.path()).unwrap();
            let first = everything(&pod);
            assert_ne!(empty, first);
            let answer = node.add("web", pod.path()).unwrap();
            assert_says(&answer.stderr, &["\"rules\":\"unchanged\"", "\"routing_steps\":\"0\""]);
            assert_eq!(first, everything(&pod), "nftables {backend}, {families:?}, {annotations:?}");
            let check = node.call("CHECK", "web", pod.path()).run().unwrap();
            assert_eq!((check.exit, check.stdout.as_str()), (Some(0), ""), "{}", check.stderr);
        }
    }
}

#[test]
fn rules_of_the_other_backend_are_moved() {
    for (first, second, gone) in [(true, false, "istio-proxy-nat"), (false, true, "ISTIO_OUTPUT")] {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = first.into();
        node.add("web", pod.path()).unwrap();
        assert!(everything(&pod).contains(gone));
        node.conf["native_nftables"] = second.into();
        let answer = node.add("web", pod.path()).unwrap();
        assert_says(&answer.stderr, &["rules of ours in the other backend were removed"]);
        assert!(!everything(&pod).contains(gone), "{}", everything(&pod));
        let check = node.call("CHECK", "web", pod.path()).run().unwrap();
        assert_eq!(check.exit, Some(0), "{check:#?}");
    }
}

#[test]
fn check_names_what_is_missing() {
    let (node, pod) = node_and_pod(&[]);
    let call = node.call("CHECK", "web", pod.path());
    node.add("web", pod.path()).unwrap();
    assert_eq!(call.run().unwrap().exit, Some(0));
    pod.nft("flush chain inet istio-proxy-nat istio-redirect").unwrap();
    let (code, text) = call.run().unwrap().error().unwrap();
    assert_eq!(code, 999);
    assert_says(
        &text,
        &[
            "pod default/web is not captured as planned: 1 difference: ",
            "chain istio-redirect of table istio-proxy-nat lacks",
            "redirect to :15001",
            "outbound, to the proxy",
            "delete the pod",
        ],
    );
    let mut old = node.call("CHECK", "web", pod.path());
    old.stdin = String::from_utf8(old.stdin)
        .unwrap()
        .replace("\"cniVersion\":\"1.0.0\"", "\"cniVersion\":\"0.3.1\"")
        .into();
    let (code, text) = old.run().unwrap().error().unwrap();
    assert_eq!((code, text.as_str()), (1, "config version does not allow CHECK"));
}

/// A runtime that checks a pod after its ADD must not end what the switch and the policy let start.
#[test]
fn a_pod_that_was_let_through_passes_its_check() {
    let (mut node, pod) = node_and_pod(&[]);
    node.conf["capture"] = "disabled".into();
    for verb in ["ADD", "CHECK"] {
        let answer = node.call(verb, "web", pod.path()).run().unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
        assert_says(&answer.stderr, &["\"level\":\"warn\"", "the configuration says capture: disabled"]);
    }
    node.conf["capture"] = "enabled".into();
    node.conf["failure_policy"] = "open".into();
    node.add("web", pod.path()).unwrap();
    pod.nft("delete table inet istio-proxy-nat").unwrap();
    let answer = node.call("CHECK", "web", pod.path()).run().unwrap();
    assert_eq!((answer.exit, answer.stdout.as_str()), (Some(0), ""), "{}", answer.stderr);
    assert_says(
        &answer.stderr,
        &[
            "\"level\":\"error\"",
            "CHECK succeeds because of failure_policy: open",
            "default/web",
            "istio-proxy-nat",
        ],
    );
    // There are no facts of it, so ADD lets it through and CHECK cannot tell.
    for (verb, level) in [("ADD", "error"), ("CHECK", "warn")] {
        let answer = node.call(verb, "unknown", pod.path()).run().unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
        assert_says(&answer.stderr, &[&format!("\"level\":\"{level}\""), "default/unknown"]);
    }
}

#[test]
fn an_add_repairs_what_was_changed() {
    for native_nftables in [true, false] {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = native_nftables.into();
        node.add("web", pod.path()).unwrap();
        let good = everything(&pod);
        if native_nftables {
            pod.nft("flush chain inet istio-proxy-nat istio-output").unwrap();
        } else {
            pod.run(std::process::Command::new("iptables-nft").args(["-t", "nat", "-F", "ISTIO_OUTPUT"]))
                .unwrap();
        }
        assert_ne!(good, everything(&pod));
        let answer = node.add("web", pod.path()).unwrap();
        assert_says(&answer.stderr, &["\"rules\":\"replaced\""]);
        assert_eq!(good, everything(&pod));
    }
}

#[test]
fn foreign_rules_stay() {
    for native_nftables in [true, false] {
        let (mut node, pod) = node_and_pod(&[]);
        node.conf["native_nftables"] = native_nftables.into();
        pod.nft("table inet foreign {\n chain c {\n type filter hook output priority 0;\n counter\n }\n}")
            .unwrap();
        for program in ["iptables-nft", "iptables-legacy"] {
            let rule = ["-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.1", "-j", "RETURN"];
            pod.run(std::process::Command::new(program).args(rule)).unwrap();
        }
        let before = everything(&pod);
        node.add("web", pod.path()).unwrap();
        let after = everything(&pod);
        assert_ne!(before, after);
        for foreign in ["\"foreign\"", "192.0.2.1"] {
            assert_eq!(before.matches(foreign).count(), after.matches(foreign).count(), "{foreign}: {after}");
        }
    }
}

#[test]
fn pods_that_are_left_alone() {
    let (mut node, pod) = node_and_pod(&[]);
    node.conf["exclude_namespaces"] = json!(["kube-system", "default"]);
    let before = everything(&pod);
    let answer = node.add("web", pod.path()).unwrap();
    assert_says(&answer.stderr, &["excluded-namespace", "pod is left alone"]);
    node.conf["exclude_namespaces"] = json!([]);
    node.write_manifest(PodObject::named("plain").annotation("sidecar.istio.io/status", "{}")).unwrap();
    assert_says(&node.add("plain", pod.path()).unwrap().stderr, &["no-proxy"]);
    // Not a Kubernetes pod: no facts are asked for at all.
    let call = node.call("ADD", "web", pod.path()).env("CNI_ARGS", "");
    let answer = call.run().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["not-kubernetes"]);
    assert_eq!(before, everything(&pod));
}

#[test]
fn del_always_succeeds_and_keeps_quiet() {
    let (node, pod) = node_and_pod(&[]);
    node.add("web", pod.path()).unwrap();
    let call = node.call("DEL", "web", pod.path());
    let gone = testkit::TestNetns::removed_path();
    let broken = br#"{"cniVersion":"1.0.0","name":"n","type":"istio-cni","exclude_namespaces":"x","cni_agent_run_dir":"/nowhere/at/all"}"#;
    for call in [
        call.clone(),
        call.clone(),
        call.clone().without("CNI_NETNS"),
        call.clone().env("CNI_NETNS", ""),
        call.clone().env("CNI_NETNS", &gone.to_string_lossy()),
        call.clone().env("CNI_ARGS", "nonsense"),
        call.clone().stdin(&broken[..]),
        node.call("DEL", "no-such-pod", pod.path()),
    ] {
        let answer = call.run().unwrap();
        assert_eq!((answer.exit, answer.stdout.as_str()), (Some(0), ""), "{call:?}: {answer:#?}");
    }
    assert_eq!(call.stdin("{").run().unwrap().error().unwrap().0, 6, "broken input is broken for DEL too");
}

#[test]
fn gc_and_status() {
    let (mut node, pod) = node_and_pod(&[]);
    node.conf["cniVersion"] = json!("1.1.0");
    node.conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    let gc = node.call("GC", "web", pod.path()).run().unwrap();
    assert_eq!((gc.exit, gc.stdout.as_str()), (Some(0), ""), "{gc:#?}");
    let status = node.call("STATUS", "web", pod.path());
    let answer = status.run().unwrap();
    assert_eq!((answer.exit, answer.stdout.as_str()), (Some(0), ""), "{answer:#?}");
    node.conf["strict_status"] = json!(true);
    let status = node.call("STATUS", "web", pod.path());
    assert_eq!(status.run().unwrap().exit, Some(0));
    std::fs::remove_dir_all(node.manifests()).unwrap();
    let (code, text) = status.run().unwrap().error().unwrap();
    assert_eq!(code, 50);
    assert_says(&text, &["cannot serve ADD", &node.manifests().to_string_lossy()]);
    node.conf.as_object_mut().unwrap().remove("pod_source");
    let (code, text) = node.call("STATUS", "web", pod.path()).run().unwrap().error().unwrap();
    assert_eq!(code, 50);
    assert_says(&text, &["istio-cni-kubeconfig"]);
}

#[test]
fn logs_are_json_on_stderr_and_in_the_run_directory() {
    let (node, pod) = node_and_pod(&[]);
    let answer = node.add("web", pod.path()).unwrap();
    let file = std::fs::read_to_string(node.run_dir().join("istio-cni.log")).unwrap();
    for text in [&answer.stderr, &file] {
        assert!(!text.is_empty());
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(
                line["level"].is_string() && line["time"].is_string() && line["msg"].is_string(),
                "{line}"
            );
        }
    }
    assert_says(
        &file,
        &["pod is captured", "\"pod\":\"default/web\"", "\"backend\":\"nftables\"", "apply_ms"],
    );
}
