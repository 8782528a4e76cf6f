//! A machine that starts again: what is in memory is gone, and the state directory is there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::{
    Agent, Families, Launch, Mesh, MeshPod, NODE_NAME, Node, PATIENCE, Pod, PodCall, PodObject, assert_says,
    eventually, until,
};

const REBOOTS: &str = "istio_cni_reboots_total";

/// Waits for the facts of pod `default/web` in the state directory.
fn wait_kept(node: &Node) {
    let file = node.state_dir().join("facts/default_web.json");
    eventually("the facts are kept", PATIENCE, || std::fs::read(&file).context("no facts")).unwrap();
}

/// An agent in the start of the machine with this number, which an uninstallation does not end.
fn agent<'a>(node: &'a Node, boot: &str) -> Launch<'a> {
    node.agent().env("CLEANUP_ON_EXIT", "never").booted(boot).unwrap()
}

#[test]
fn a_pod_is_captured_by_the_facts_that_a_restart_of_the_machine_left() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let agent = node.start().unwrap();
    wait_kept(&node);
    agent.kill().unwrap();
    node.api.stop();
    std::fs::remove_dir_all(node.run_dir()).unwrap();

    let pod = Pod::new(Families::V4).unwrap();
    let answer = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"last-known\""]);
    // Another pod of the name is not the one that was known, and its ADD waits for an agent.
    let mut other = PodCall::new(&node, "web", "uid-2", pod.path()).unwrap();
    other.conf["facts_timeout"] = "500ms".into();
    assert_says(&other.refused().unwrap(), &["istio-cni-kubeconfig"]);
}

#[test]
fn a_restart_of_the_machine_is_noticed_once() {
    let node = Node::new().unwrap();
    let noticed = "the machine has started again since an agent ran last";
    for (boot, reboots, tells) in
        [("one", 0.0, false), ("two", 1.0, true), ("two", 1.0, false), ("three", 2.0, true)]
    {
        let agent = agent(&node, boot).ready().unwrap();
        assert_eq!(agent.metric(REBOOTS).unwrap(), reboots, "{boot}");
        assert_eq!(agent.log().find(&[noticed]).is_some(), tells, "{boot}");
        agent.kill().unwrap();
    }
}

/// Without an API server the pods are those of this start of the machine, also where the run directory outlives it.
#[test]
fn pods_of_an_earlier_start_of_the_machine_do_not_count() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let first = agent(&node, "one").ready().unwrap();
    wait_kept(&node);
    first.kill().unwrap();
    node.api.stop();

    let same = agent(&node, "one").start().unwrap();
    same.log()
        .wait_for(&["the facts that an earlier agent kept are used meanwhile", "pods=1"], PATIENCE)
        .unwrap();
    same.kill().unwrap();
    for _ in 0..2 {
        let after = agent(&node, "two").start().unwrap();
        after.log().wait_for(&["the machine has started again", "none is known"], PATIENCE).unwrap();
        assert!(node.state_dir().join("facts/default_web.json").exists(), "the plugin goes by them");
        after.kill().unwrap();
    }
    node.api.restart().unwrap();
    let known = agent(&node, "two").ready().unwrap();
    wait_kept(&node);
    known.kill().unwrap();
    node.api.stop();
    let next = agent(&node, "two").start().unwrap();
    next.log().wait_for(&["are used meanwhile", "pods=1"], PATIENCE).unwrap();
}

#[test]
fn nothing_is_left_in_the_state_directory_at_the_end() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let agent = node.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    wait_kept(&node);
    agent.stop().unwrap();
    assert!(!node.state_dir().exists());
}

/// Pods on the node, and those of them that another component's configuration lets start without the plugin.
const PODS: usize = 10;
const WITHOUT: usize = 3;
/// Between two looks at a pod, and as long as one that is not captured may take to be found.
const INTERVAL: Duration = Duration::from_secs(5);

/// A pod with a sidecar whose sandbox is there and whose init containers run, as kubelet tells of it.
fn run(mesh: &Mesh, pod: &MeshPod) {
    mesh.run(pod).unwrap();
    let status = json!({"phase": "Pending", "podIP": pod.ip, "podIPs": [{"ip": pod.ip}], "startTime": "2026-08-01T09:30:00Z"});
    let object = PodObject::named(&pod.name).in_namespace(&pod.namespace).uid(&pod.uid).on_node(NODE_NAME);
    mesh.node.api.set_pod(object.sidecar().with("/status", status));
}

fn captured<'a>(pods: impl IntoIterator<Item = &'a MeshPod>) -> usize {
    let has_rules = |pod: &&MeshPod| pod.netns.nft_text().unwrap().contains("istio-proxy-nat");
    pods.into_iter().filter(has_rules).count()
}

/// How many pods count as verified: at no moment more than there were looks that found a pod as planned, or than have rules.
fn verified(agent: &Agent, pods: &[MeshPod]) -> Result<f64> {
    let metrics = agent.metrics()?;
    let verified = metrics.value("istio_cni_pods_verified{mode=\"sidecar\"}");
    let looks = ["event", "cheap", "full"].map(|layer| {
        metrics.value(&format!("istio_cni_verifications_total{{layer=\"{layer}\",result=\"equal\"}}"))
    });
    let (looks, captured) = (looks.iter().sum::<f64>(), captured(pods));
    assert!(verified <= looks && verified <= captured as f64, "{verified} of {captured} by {looks} looks");
    Ok(verified)
}

/// No pod of a machine that has started again runs outside of the mesh and is not known to.
#[test]
fn after_a_restart_each_pod_is_captured_or_found_and_repaired() {
    let mesh = Mesh::new().unwrap();
    let launch = |boot: &str| {
        let launch = mesh.node.agent().env("HOST_ROOT", &mesh.root().to_string_lossy());
        let launch = launch.env("REPAIR_REPAIR_PODS", "true").env("VERIFY_INTERVAL", "5s");
        launch.env("CLEANUP_ON_EXIT", "never").booted(boot).unwrap()
    };
    let new = |number: usize| mesh.sandbox("default", &format!("p{number}")).unwrap();
    let mut pods: Vec<MeshPod> = (0..PODS).map(new).collect();
    pods.iter().for_each(|pod| run(&mesh, pod));
    let before = launch("one").ready().unwrap();
    let facts = mesh.node.state_dir().join("facts");
    let count = || std::fs::read_dir(&facts).map(Iterator::count).unwrap_or(0);
    until("the facts are kept", PATIENCE, || count() == PODS, count).unwrap();
    before.kill().unwrap();

    // Everything in memory is gone, and the pods come before the agent.
    std::fs::remove_dir_all(mesh.node.run_dir()).unwrap();
    for (number, pod) in pods.iter_mut().enumerate() {
        mesh.stop(pod).unwrap();
        mesh.new_sandbox(pod).unwrap();
        if number >= WITHOUT {
            let call = PodCall::new(&mesh.node, &pod.name, &pod.uid, pod.netns.path()).unwrap();
            assert_says(&call.add().unwrap().stderr, &["pod is captured", "last-known"]);
        }
        run(&mesh, pod);
    }
    assert_eq!(captured(&pods), PODS - WITHOUT);

    let mut agent = launch("two").start().unwrap();
    let start = Instant::now();
    eventually("the first pod is verified", PATIENCE, || {
        ensure!(verified(&agent, &pods)? > 0.0);
        Ok(())
    })
    .unwrap();
    agent.wait_ready().unwrap();
    let all = || verified(&agent, &pods).is_ok() && captured(&pods) == PODS;
    until("the others get their rules", INTERVAL, all, || agent.log().text()).unwrap();
    println!("all {PODS} are captured {:.1?} after the agent's start", start.elapsed());
    eventually("each is counted", PATIENCE, || {
        ensure!(verified(&agent, &pods)? == PODS as f64);
        let metrics = agent.metrics()?;
        for (series, wanted) in [
            (REBOOTS, 1.0),
            ("istio_cni_uncaptured_pods_total{reason=\"started-before-agent\"}", WITHOUT as f64),
            ("istio_cni_repair_pods_repaired_total{result=\"success\",type=\"repair\"}", WITHOUT as f64),
        ] {
            ensure!(metrics.value(series) == wanted, "{series} is {}", metrics.value(series));
        }
        Ok(())
    })
    .unwrap();
}

/// Without an API server pods are known by what an earlier agent of this start of the machine kept of them, and by nothing else.
#[test]
fn without_an_api_server_known_pods_are_verified_and_unknown_ones_are_left() {
    let mesh = Mesh::new().unwrap();
    let launch = || {
        let launch = mesh.node.agent().env("HOST_ROOT", &mesh.root().to_string_lossy());
        launch.env("REPAIR_REPAIR_PODS", "true").env("VERIFY_INTERVAL", "1s").env("CLEANUP_ON_EXIT", "never")
    };
    let known = mesh.sandbox("default", "known").unwrap();
    run(&mesh, &known);
    let before = launch().ready().unwrap();
    let facts = mesh.node.state_dir().join("facts/default_known.json");
    until("the facts are kept", PATIENCE, || facts.exists(), || "none").unwrap();
    until("it is captured", PATIENCE, || captured([&known]) == 1, || before.log().text()).unwrap();
    before.kill().unwrap();
    mesh.node.api.stop();
    known.netns.nft("flush ruleset").unwrap();
    // Nobody told an agent of this one.
    let unknown = mesh.sandbox("default", "unknown").unwrap();
    mesh.run(&unknown).unwrap();

    let agent = launch().start().unwrap();
    until("it is captured again", PATIENCE, || captured([&known]) == 1, || agent.log().text()).unwrap();
    let verified = "istio_cni_pods_verified{mode=\"sidecar\"}";
    eventually("it is verified", PATIENCE, || {
        ensure!(
            agent.metric(verified)? == 1.0
                && agent.metric("istio_cni_pods_expected{mode=\"sidecar\"}")? == 1.0
        );
        Ok(())
    })
    .unwrap();
    assert_eq!(captured([&unknown]), 0);
}
