//! The nodes of a cluster at once, by a kubectl that answers from files.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use serde_json::{Value, json};

use crate::schema::assert_described;
use crate::{Files, Run};

/// Answers `get pods` from `pods.json` and `exec` from a file named as the pod; writes down how it is called. A pod without a file hangs.
const KUBECTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$@" >>"$here/calls"
case "$*" in
*" get pods "*) cat "$here/pods.json" ;;
*" exec gone "*) echo 'error: unable to upgrade connection: container not found' >&2; exit 1 ;;
*" exec hangs "*) exec sleep 30 ;;
*" exec "*) for word; do [ -f "$here/$word.json" ] && { cat "$here/$word.json"; exit 1; }; done; exit 7 ;;
esac
"#;

struct Cluster {
    files: Files,
}

impl Cluster {
    /// Nodes by the names of their agents' pods.
    fn new(pods: &[&str]) -> Self {
        let files = Files::new();
        let kubectl = files.write("kubectl", KUBECTL);
        fs::set_permissions(kubectl, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["kubectl-istio_cni", "kubectl_complete-istio_cni"] {
            symlink(env!("CARGO_BIN_EXE_cnictl"), files.path(name)).unwrap();
        }
        let pod = |pod: &&str| {
            json!({"metadata": {"name": pod}, "spec": {"nodeName": format!("node-{pod}")},
                   "status": {"phase": if *pod == "waits" { "Pending" } else { "Running" }}})
        };
        let items: Vec<Value> = pods.iter().map(pod).collect();
        files.write("pods.json", &json!({"items": items}).to_string());
        Self { files }
    }

    fn node(&self, pod: &str, version: &str, healthy: bool) {
        let problems = if healthy { json!([]) } else { json!(["the plugin is not there"]) };
        let said = json!({"healthy": healthy, "problems": problems, "plugins": [{"version": version}],
            "agent": {"answers": true, "version": version}, "verification": {"expected": 4, "verified": 3}});
        self.files.write(&format!("{pod}.json"), &said.to_string());
    }

    fn pods(&self, pod: &str, states: &[(&str, &str)]) {
        let item = |(name, state): &(&str, &str)| {
            let wanted = if state.is_empty() { "none" } else { "sidecar" };
            json!({"namespace": "shop", "name": name, "wanted": wanted, "state": state})
        };
        let items: Vec<Value> = states.iter().map(item).collect();
        self.files.write(&format!("{pod}.json"), &json!({"kind": "PodList", "items": items}).to_string());
    }

    fn run(&self, program: &str, words: &[&str]) -> Run {
        let root = self.files.path("");
        let path = format!("{}:/usr/bin:/bin", root.display());
        Run::of(&Command::new(root.join(program)).args(words).env("PATH", path).output().unwrap())
    }

    fn ask(&self, line: &str) -> Run {
        self.run("kubectl-istio_cni", &line.split_whitespace().collect::<Vec<_>>())
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.files.path("calls")).unwrap_or_default()
    }
}

#[test]
fn every_node_is_shown_with_its_versions_and_those_that_lag() {
    let cluster = Cluster::new(&["a", "b", "c"]);
    cluster.node("a", "1.2.0", true);
    cluster.node("b", "1.2.0", true);
    cluster.node("c", "1.1.0", true);
    let text = cluster.ask("status --context prod --as jane --kubeconfig /k").ok();
    assert!(
        text.starts_with(
            "NODE     AGENT   PLUGIN   CAPTURED   HEALTH\nnode-a   1.2.0   1.2.0    3 of 4     healthy\n"
        ),
        "{text}"
    );
    assert!(text.ends_with("versions: most nodes have 1.2.0; 1.1.0: node-c\n"), "{text}");
    let calls = cluster.calls();
    let flags = "--kubeconfig=/k --context=prod --as=jane --namespace=istio-system";
    assert!(
        calls.contains(&format!("{flags} get pods --selector=k8s-app=istio-cni-node --output=json\n")),
        "{calls}"
    );
    assert!(
        calls.contains(&format!("{flags} exec a --container install-cni -- cnictl status -o json\n")),
        "{calls}"
    );
    cluster.node("b", "1.2.0", false);
    cluster.ask("status").fails(1, &["error: node node-b: the plugin is not there"]);
    let only = cluster.ask("status --node node-a -o json").ok();
    let only: Value = serde_json::from_str(&only).unwrap();
    assert_described(&only);
    assert_eq!(
        (&only["kind"], &only["items"][0]["node"], &only["items"][1]),
        (&json!("NodeStatusList"), &json!("node-a"), &Value::Null)
    );
}

#[test]
fn a_node_that_does_not_answer_is_not_passed_over() {
    let cluster = Cluster::new(&["a", "gone", "hangs", "waits"]);
    cluster.node("a", "1.2.0", true);
    let run = cluster.ask("status --timeout 1");
    let run = run
        .fails(4, &["error: 3 of 4 nodes do not answer, the first is node-gone: error: unable to upgrade"]);
    for part in [
        "node-hangs   -",
        "no answer in 1 s (--timeout)",
        "its agent's pod waits is Pending",
        "node-a       1.2.0",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run:?}");
    }
    Cluster::new(&[]).ask("status").fails(1, &["no agent's pod is known in namespace istio-system"]);
}

#[test]
fn pods_of_all_nodes_are_one_list() {
    let cluster = Cluster::new(&["a", "b"]);
    cluster.pods("a", &[("web", "verified"), ("job", "")]);
    cluster.pods("b", &[("cart", "drifted")]);
    let text = cluster.ask("pods -A").ok();
    assert!(
        text.contains("node-a   shop        web    sidecar   verified") && text.lines().count() == 4,
        "{text}"
    );
    let run = cluster
        .ask("verify -A")
        .fails(1, &["1 pods are not known to be captured, the first is shop/cart: drifted"]);
    assert_eq!(run.stdout.lines().count(), 2, "{run:?}");
    cluster.ask("pods -n shop -l app=web").ok();
    assert!(cluster.calls().contains("-- cnictl pods -o json -n shop -l app=web\n"), "{}", cluster.calls());
    // Words of the user are values, and no flags of cnictl or kubectl.
    cluster.ask("pods -n --x").fails(2, &[]);
    cluster.ask("restore shop/web").fails(2, &["unrecognized subcommand"]);
}

#[test]
fn kubectl_finds_what_could_follow() {
    let cluster = Cluster::new(&[]);
    let text = cluster.run("kubectl_complete-istio_cni", &["st"]).ok();
    assert!(text.starts_with("status\t") && text.ends_with("\n:4\n"), "{text}");
}

/// What nodes have counted is added up, and who does not answer is told.
#[test]
fn usage_of_all_nodes_is_one_table() {
    let cluster = Cluster::new(&["a", "b", "gone"]);
    for (pod, bytes) in [("a", 1_000), ("b", 200)] {
        let row = json!({"direction": "egress", "peer": "tenant:blue", "bytes": bytes, "packets": 2, "connections": 1});
        let line = json!({"node": format!("node-{pod}"), "hour": "2026-11-30T21:00:00Z", "tenant": "red", "measured_at": "pod",
            "pod_seconds": 100, "observed_pod_seconds": 50, "incomplete": false, "rows": [row], "top": []});
        cluster.files.write(&format!("{pod}.json"), &json!({"lines": [line]}).to_string());
    }
    let ask = |words: &str| {
        let words: Vec<&str> = words.split_whitespace().collect();
        cluster.run(env!("CARGO_BIN_EXE_cnictl"), &words)
    };
    let all = ask("audit usage --all-nodes --tenant red -o csv");
    assert_eq!(all.exit, 4, "{all:?}");
    assert!(all.stderr.contains("node-gone"), "{all:?}");
    let csv = "hour,tenant,peer,direction,bytes,packets,connections\n,red,tenant:blue,egress,1200,4,2\n";
    assert_eq!(all.stdout, csv);
    let some = ask("audit usage --all-nodes --node node-a --node node-b");
    assert_eq!((some.exit, some.stderr.as_str()), (0, ""), "{some:?}");
    assert!(some.stdout.contains("nodes: 2") && some.stdout.contains("coverage: 50.00%"), "{some:?}");
    assert_eq!(ask("audit usage --all-nodes --node node-a --tenant blue").exit, 3);
    assert_eq!(ask("audit usage --all-nodes --node node-a --tenant red --day 2026-11-29").exit, 3);
    for words in ["", " --tenant=blue", " --tenant=red --day=2026-11-29"] {
        let call = format!("exec a --container install-cni -- cnictl audit usage --output lines{words}\n");
        assert!(cluster.calls().contains(&call), "{call}{}", cluster.calls());
    }
    assert_eq!(ask("audit usage --all-nodes somewhere").exit, 2);
}

#[test]
fn nodes_on_which_a_tenants_last_change_is_not_in_force_are_named() {
    let cluster = Cluster::new(&["a", "b", "c"]);
    let knows = |pod: &str, generations: &[(u64, Option<u64>)]| {
        let item = |(number, (generation, in_force)): (usize, &(u64, Option<u64>))| {
            let name = ["blue", "red"][number];
            let mut item = json!({"name": name, "generation": generation});
            in_force.iter().for_each(|in_force| item["in_force"] = json!(in_force));
            item
        };
        let items: Vec<Value> = generations.iter().enumerate().map(item).collect();
        cluster
            .files
            .write(&format!("{pod}.json"), &json!({"kind": "TenantList", "items": items}).to_string());
    };
    for pod in ["a", "b", "c"] {
        knows(pod, &[(3, Some(3)), (1, Some(1))]);
    }
    assert_eq!(
        cluster.ask("tenants").ok(),
        "TENANT   GENERATION   NODES   LAGGING\nblue     3            3       -\nred      1            3       -\n"
    );
    assert!(cluster.calls().contains("cnictl tenants list -o json"), "{}", cluster.calls());
    // One has not heard of the last change, and one has not put it into force.
    knows("b", &[(3, Some(3)), (2, Some(1))]);
    knows("c", &[(3, Some(3))]);
    let run = cluster.ask("tenants -o json").fails(1, &["3 times, the first is tenant red on node node-a"]);
    let document: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_described(&document);
    let lags: Vec<bool> =
        document["items"].as_array().unwrap().iter().map(|item| item["lags"] == true).collect();
    assert_eq!(lags, [false, false, false, true, true, true]);
    for pod in ["a", "b", "c"] {
        knows(pod, &[]);
    }
    cluster.ask("tenants").fails(3, &["no node knows of a tenant"]);
}
