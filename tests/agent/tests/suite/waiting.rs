//! What the plugin does with pods while the agent is not there: not yet, for a moment, or for good.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use testkit::apiserver::{Credentials, Fault};
use testkit::mesh::{MODE, Mesh};
use testkit::plugin::Answer;
use testkit::rules::Comments;
use testkit::{Families, Node, PATIENCE, Pod, PodCall, PodObject, assert_says, eventually};

const USUAL: &str = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;
const STATUS: &str = "sidecar.istio.io/status";

/// The entry that an agent with these options leaves on the node.
fn entry(node: &Node, options: &[(&str, &str)]) -> Value {
    let launch = options.iter().fold(node.agent(), |launch, (name, value)| launch.env(name, value));
    launch.ready().unwrap().kill().unwrap();
    node.entry().unwrap()
}

/// A call with what a runtime hands over.
fn call(entry: &Value, name: &str, netns: &Path, annotations: Option<Value>) -> PodCall {
    let mut call = PodCall::with(entry.clone(), name, &format!("uid-{name}"), netns);
    if let Some(mut annotations) = annotations {
        // kubelet adds these to every pod.
        annotations["kubernetes.io/config.source"] = "api".into();
        call.conf["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": annotations});
    }
    call
}

fn in_background(call: PodCall) -> JoinHandle<Answer> {
    std::thread::spawn(move || call.run("ADD").unwrap())
}

#[track_caller]
fn assert_took(answer: &Answer, at_least: f64, below: f64) {
    let took = answer.took.as_secs_f64();
    assert!((at_least..below).contains(&took), "took {took:.2} s: {answer:#?}");
}

fn is_captured(pod: &Pod) -> bool {
    pod.nft_text().unwrap().contains("istio-proxy-nat")
}

#[track_caller]
fn assert_untouched(pod: &Pod) {
    assert_eq!(pod.nft_json(Comments::Keep).unwrap(), Vec::<Value>::new());
}

/// As after a reboot: everything in the run directory is gone.
fn reboot(node: &Node) {
    std::fs::remove_dir_all(node.run_dir()).unwrap();
}

/// The agent's pod is gone and its token or its rights with it.
#[test]
fn a_refused_token_without_an_agent_decides_within_two_seconds() {
    for code in [401, 403] {
        let node = Node::new().unwrap();
        let entry = entry(&node, &[("FACTS_TIMEOUT", "30s")]);
        node.api.set_fault(Some(Fault::status(code)));
        let pod = Pod::new(Families::V4).unwrap();
        // Nothing else is known: the failure policy, and what to do.
        let answer = call(&entry, "ghost", pod.path(), None).run("ADD").unwrap();
        let text = answer.error().unwrap().1;
        assert_says(
            &text,
            &[&code.to_string(), "no node agent is here", "istio-cni-node", "cnictl uninstall"],
        );
        assert!(text.len() < 400, "{} bytes", text.len());
        assert_took(&answer, 0.5, 2.0);
        assert_untouched(&pod);
        // The annotations tell a plain pod, and enough of a usual sidecar, for which an agent may still come.
        let answer = call(&entry, "plain", pod.path(), Some(json!({"a": "b"}))).add().unwrap();
        assert_says(&answer.stderr, &["pod is left alone", "no-status", "\"facts_source\":\"annotations\""]);
        assert!(!answer.stderr.contains("were assumed"), "{answer:#?}");
        assert_took(&answer, 0.0, 1.0);
        assert_untouched(&pod);
        let answer = call(&entry, "web", pod.path(), Some(json!({STATUS: USUAL}))).add().unwrap();
        assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"annotations\"", "were assumed"]);
        assert_took(&answer, 0.5, 2.0);
        assert!(is_captured(&pod));
        // The next agent tells it from pods of which everything was known.
        let notes = std::fs::read_dir(node.run_dir().join("uncaptured")).unwrap().flatten();
        let notes: Vec<String> = notes.map(|note| std::fs::read_to_string(note.path()).unwrap()).collect();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert_says(&notes[0], &["\"result\":\"incomplete\"", "\"name\":\"web\"", "were assumed"]);
    }
}

/// Between two agents of an upgrade the token of the first one is refused; what the next one knows goes before what would be assumed.
#[test]
fn the_next_agent_of_an_upgrade_goes_before_annotations() {
    let node = Node::new().unwrap();
    let entry = entry(&node, &[]);
    let web = PodObject::named("web").sidecar().uid("uid-web").on_node("n1");
    node.api.set_pod(web.proxy_env(&[("ISTIO_META_DNS_CAPTURE", "true")]));
    node.api.set_token("the-next");
    node.api.write_service_account(&node.account()).unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    let add = in_background(call(&entry, "web", pod.path(), Some(json!({STATUS: USUAL}))));
    std::thread::sleep(Duration::from_millis(300));
    let _agent = node.agent().start().unwrap();
    let answer = add.join().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["401", "pod is captured"]);
    assert!(!answer.stderr.contains("were assumed"), "{answer:#?}");
    assert!(pod.nft_text().unwrap().contains("15053"), "DNS capture, which no annotation tells");
}

#[test]
fn a_refused_token_ends_in_the_failure_policy() {
    let node = Node::new().unwrap();
    let entry = entry(&node, &[("FAILURE_POLICY", "open"), ("FACTS_TIMEOUT", "30s")]);
    node.api.set_fault(Some(Fault::status(401)));
    let pod = Pod::new(Families::V4).unwrap();
    let answer = call(&entry, "ghost", pod.path(), None).add().unwrap();
    assert_says(&answer.stderr, &["WITHOUT CAPTURE", "cnictl uninstall"]);
    assert_took(&answer, 0.5, 2.2);
}

/// What the agent knew last goes before annotations, as it is complete.
#[test]
fn a_refused_token_leaves_the_last_known_facts() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-web");
    let agent = node.agent().env("FACTS_TIMEOUT", "30s").ready().unwrap();
    let file = node.run_dir().join("facts/default_web.json");
    eventually("the facts are on disk", PATIENCE, || std::fs::read(&file).context("no file")).unwrap();
    agent.kill().unwrap();
    node.api.set_fault(Some(Fault::status(401)));
    let pod = Pod::new(Families::V4).unwrap();
    let annotations = Some(json!({"a": "b"}));
    let answer = call(&node.entry().unwrap(), "web", pod.path(), annotations).add().unwrap();
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"last-known\""]);
    assert_took(&answer, 0.0, 1.0);
    assert!(is_captured(&pod));
}

/// In ambient mode labels decide, so annotations decide over sidecars only.
#[test]
fn in_ambient_mode_annotations_decide_sidecars_only() {
    let node = Node::new().unwrap();
    let mut entry = entry(&node, &[("FACTS_TIMEOUT", "30s")]);
    let selectors = json!([{"podSelector": {"matchLabels": {MODE: "ambient"}}, "namespaceSelector": {}}]);
    entry["ambient_enabled"] = json!(true);
    entry["enablement_selectors"] = selectors;
    node.api.set_fault(Some(Fault::status(401)));
    let pod = Pod::new(Families::V4).unwrap();
    let answer = call(&entry, "web", pod.path(), Some(json!({STATUS: USUAL}))).add().unwrap();
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"annotations\""]);
    assert!(is_captured(&pod));
    pod.nft("flush ruleset").unwrap();
    let answer = call(&entry, "plain", pod.path(), Some(json!({"a": "b"}))).run("ADD").unwrap();
    assert_says(&answer.error().unwrap().1, &["401", "cnictl uninstall", "depends on labels"]);
    assert_took(&answer, 0.5, 2.0);
    assert_untouched(&pod);
    // Without selectors no pod is in the ambient mesh, whatever its labels are.
    entry["enablement_selectors"] = json!([]);
    call(&entry, "plain", pod.path(), Some(json!({"a": "b"}))).add().unwrap();
}

/// While an agent is there, a refusal may pass: its rights come late, or its token is renewed.
#[test]
fn a_refusal_is_waited_out_while_an_agent_is_there() {
    let node = Node::new().unwrap();
    let agent = node.agent().env("FACTS_TIMEOUT", "20s").ready().unwrap();
    let pod = Pod::new(Families::V4).unwrap();
    let call = call(&node.entry().unwrap(), "late", pod.path(), None);
    node.api.set_pod(PodObject::named("late").sidecar().uid("uid-late").on_node("n2"));
    node.api.fail_path("/api/v1/namespaces/default/pods/late", usize::MAX, Fault::status(403));
    let add = in_background(call);
    std::thread::sleep(Duration::from_secs(3));
    node.api.set_pod(PodObject::named("late").sidecar().uid("uid-late").on_node("n1"));
    let answer = add.join().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["403", "\"facts_source\":\"agent\""]);
    drop(agent);
}

/// An agent that has not been here since the start of the node is waited for, and not a moment longer than it takes.
#[test]
fn after_a_reboot_pods_wait_for_the_agent() {
    let node = Node::new().unwrap();
    let entry = entry(&node, &[("FACTS_TIMEOUT", "30s")]);
    reboot(&node);
    node.sidecar("web", "uid-web");
    node.api.set_pod(PodObject::named("plain").uid("uid-plain").on_node("n1"));
    let (web, plain, told) =
        (Pod::new(Families::V4).unwrap(), Pod::new(Families::V4).unwrap(), Pod::new(Families::V4).unwrap());
    let waiting = [
        in_background(call(&entry, "web", web.path(), None)),
        in_background(call(&entry, "plain", plain.path(), None)),
    ];
    // A sidecar waits as well, since annotations do not tell everything.
    node.sidecar("told", "uid-told");
    let sidecar = in_background(call(&entry, "told", told.path(), Some(json!({STATUS: USUAL}))));
    // What can be told without the agent is not held up.
    let pod = Pod::new(Families::V4).unwrap();
    let answer = call(&entry, "bare", pod.path(), Some(json!({"a": "b"}))).add().unwrap();
    assert_says(&answer.stderr, &["pod is left alone", "no-status"]);
    assert_took(&answer, 0.0, 0.9);
    std::thread::sleep(Duration::from_secs(1));
    assert!(waiting.iter().all(|add| !add.is_finished()) && !sidecar.is_finished());
    let started = Instant::now();
    let _agent = node.agent().env("FACTS_TIMEOUT", "30s").ready().unwrap();
    let ready = started.elapsed();
    for (add, says) in
        waiting.into_iter().chain([sidecar]).zip(["is captured", "is left alone", "is captured"])
    {
        let answer = add.join().unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
        assert_says(&answer.stderr, &["waiting for it", says]);
        assert!(!answer.stderr.contains("were assumed"), "{answer:#?}");
    }
    println!("ready after {ready:?}, last ADD after {:?}", started.elapsed());
    assert!(started.elapsed() < ready + Duration::from_millis(800), "{:?}", started.elapsed());
    assert!(is_captured(&web) && is_captured(&told));
    assert_untouched(&plain);
}

/// An agent that is there but has listed no pods yet has written its kubeconfig, and the API server answers whatever was waited for before.
#[test]
fn a_kubeconfig_that_comes_late_is_used() {
    let node = Node::new().unwrap();
    let entry = entry(&node, &[("FACTS_TIMEOUT", "30s")]);
    reboot(&node);
    node.sidecar("web", "uid-web");
    let pod = Pod::new(Families::V4).unwrap();
    let add = in_background(call(&entry, "web", pod.path(), Some(json!({STATUS: USUAL}))));
    // Longer than other facts wait for the API server.
    std::thread::sleep(Duration::from_millis(2500));
    let _ = std::fs::create_dir(node.run_dir());
    node.api.write_kubeconfig(&node.run_dir(), Credentials::Token).unwrap();
    let answer = add.join().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}");
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"api\""]);
    assert_took(&answer, 2.4, 4.5);
}

#[test]
fn an_agent_that_does_not_come_is_waited_for_until_facts_timeout() {
    let node = Node::new().unwrap();
    let entry = entry(&node, &[("FACTS_TIMEOUT", "2s")]);
    reboot(&node);
    let pod = Pod::new(Families::V4).unwrap();
    let answer = call(&entry, "web", pod.path(), None).run("ADD").unwrap();
    assert_says(&answer.error().unwrap().1, &["read the kubeconfig: No such file", "node agent"]);
    assert_took(&answer, 1.8, 2.6);
    let answer = call(&entry, "web", pod.path(), Some(json!({STATUS: USUAL}))).add().unwrap();
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"annotations\"", "were assumed"]);
    assert_took(&answer, 1.8, 2.6);
}

/// An agent on the pod network is a pod that its own plugin sets up; so are those that the configuration leaves alone.
#[test]
fn what_needs_no_facts_is_not_held_up_after_a_reboot() {
    let node = Node::new().unwrap();
    let mesh = [("POD_NAMESPACE", "istio-system"), ("EXCLUDE_NAMESPACES", "kube-system")];
    let usual = entry(&node, &mesh);
    assert!(usual.get("agent_pod_prefix").is_none(), "{usual}");
    let renamed = entry(&node, &[mesh[0], ("POD_NAME", "mesh-agent-x7k2p")]);
    reboot(&node);
    let pod = Pod::new(Families::V4).unwrap();
    for (entry, args, reason) in [
        (&usual, "K8S_POD_NAME=istio-cni-node-abc12;K8S_POD_NAMESPACE=istio-system", "own-agent-pod"),
        (&usual, "K8S_POD_NAME=dns;K8S_POD_NAMESPACE=kube-system", "excluded-namespace"),
        (&renamed, "K8S_POD_NAME=mesh-agent-8bcdf;K8S_POD_NAMESPACE=istio-system", "own-agent-pod"),
    ] {
        let (mut command, stdin) = call(entry, "x", pod.path(), None).command("ADD");
        command.env("CNI_ARGS", args).stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let answer = testkit::plugin::Call { env: Vec::new(), stdin }.run_as(command).unwrap();
        assert_eq!(answer.exit, Some(0), "{answer:#?}");
        assert_says(&answer.stderr, &[reason]);
        assert_took(&answer, 0.0, 0.9);
    }
}

/// First no agent, then no ztunnel: the ADD goes on until the pod is in the mesh.
#[test]
fn an_ambient_pod_waits_for_the_agent_and_for_ztunnel() {
    let mesh = Mesh::new().unwrap();
    mesh.start().unwrap().kill().unwrap();
    let entry = mesh.node.entry().unwrap();
    reboot(&mesh.node);
    mesh.node.api.set_namespace("default", &[(MODE, "ambient")]);
    let pod = mesh.sandbox("default", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    // The agent sees the node's paths below its own root.
    let path = mesh.root().join("netns").join(&pod.uid);
    let below = mesh.root().join(path.strip_prefix("/").unwrap());
    std::fs::create_dir_all(below.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(pod.netns.path(), below).unwrap();
    let mut call = PodCall::with(entry, "web", &pod.uid, &path);
    call.conf["prevResult"]["ips"] = json!([{"address": format!("{}/24", pod.ip), "interface": 0}]);
    let add = in_background(call);
    std::thread::sleep(Duration::from_millis(700));
    let agent = mesh.start().unwrap();
    eventually("the plugin has asked twice", PATIENCE, || {
        let refused = agent.metric("istio_cni_plugin_requests_total{response_code=\"500\"}")?;
        anyhow::ensure!(refused >= 2.0, "{refused}");
        Ok(())
    })
    .unwrap();
    assert!(!add.is_finished());
    let ztunnel = mesh.ztunnel().unwrap();
    let answer = add.join().unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:#?}\n{}", agent.log().text());
    assert_says(
        &answer.stderr,
        &["no node agent has been here yet", "no ztunnel", "the node agent has taken it"],
    );
    assert!(pod.has_rules().unwrap());
    assert!(ztunnel.workloads().contains_key(&pod.uid));
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

/// Known facts say that the pod belongs to the mesh, and the agent that could take it was removed.
#[test]
fn an_ambient_pod_does_not_wait_for_an_agent_that_was_removed() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    mesh.node.api.set_namespace("default", &[(MODE, "ambient")]);
    let pod = mesh.sandbox("default", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    let file = mesh.node.run_dir().join("facts/default_web.json");
    eventually("the facts are on disk", PATIENCE, || {
        let text = std::fs::read_to_string(&file)?;
        anyhow::ensure!(text.contains("namespace_labels"), "{text}");
        Ok(())
    })
    .unwrap();
    agent.kill().unwrap();
    mesh.node.api.set_fault(Some(Fault::status(401)));
    let call = PodCall::new(&mesh.node, "web", &pod.uid, pod.netns.path()).unwrap();
    let answer = call.run("ADD").unwrap();
    assert_says(&answer.error().unwrap().1, &["pluginevent.sock", "waits for the agent"]);
    assert_took(&answer, 0.0, 2.0);
    assert!(pod.is_clean().unwrap());
}
