//! Sidecar pods are verified as ambient ones are: each that should be captured, and no other, by what the plugin has loaded.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::mesh::{Mesh, MeshPod};
use testkit::{Agent, Launch, PATIENCE, PodCall, PodObject, TestNetns, at_once, eventually};

fn agent(mesh: &Mesh) -> Launch<'_> {
    let launch = mesh.node.agent().env("HOST_ROOT", &mesh.root().to_string_lossy());
    launch.env("CLEANUP_ON_EXIT", "never").env("VERIFY_INTERVAL", "1s")
}

/// The pod as the injector leaves it, with all of its containers running.
fn object(pod: &MeshPod) -> PodObject {
    let status = json!([{"name": "istio-proxy", "state": {"running": {}}}]);
    let object = PodObject::named(&pod.name).in_namespace(&pod.namespace).uid(&pod.uid);
    object.on_node("n1").sidecar().running(&[pod.ip]).with("/status/containerStatuses", status)
}

/// A pod that the plugin has set up, and whose process is seen.
fn added(mesh: &Mesh, name: &str, change: impl Fn(PodObject) -> PodObject) -> MeshPod {
    added_to(mesh, mesh.sandbox("default", name).unwrap(), change)
}

fn added_to(mesh: &Mesh, pod: MeshPod, change: impl Fn(PodObject) -> PodObject) -> MeshPod {
    mesh.node.api.set_pod(change(object(&pod)));
    PodCall::new(&mesh.node, &pod.name, &pod.uid, pod.netns.path()).unwrap().add().unwrap();
    mesh.run(&pod).unwrap();
    mesh.node.api.set_pod(change(object(&pod)).label("seen", "true"));
    pod
}

fn count(agent: &Agent, name: &str, labels: &str) -> f64 {
    agent.metric(&format!("istio_cni_pods_{name}{{{labels}}}")).unwrap_or(0.0)
}

fn unverified(agent: &Agent) -> Result<Vec<String>> {
    let metrics = agent.metrics()?;
    let series = metrics.series.iter();
    let such = series.filter(|(name, value)| name.starts_with("istio_cni_pods_unverified") && **value > 0.0);
    Ok(such.map(|(name, _)| name.clone()).collect())
}

fn wait_verified(agent: &Agent, pods: f64) {
    eventually("the pods are verified", 2 * PATIENCE, || {
        let found = count(agent, "verified", "mode=\"sidecar\"");
        ensure!(found == pods, "{found} are; not: {:?}", unverified(agent)?);
        Ok(())
    })
    .unwrap();
}

fn wait_unverified(agent: &Agent, state: &str, reason: &str, pods: f64) {
    let labels = format!("mode=\"sidecar\",reason=\"{reason}\",state=\"{state}\"");
    eventually(&format!("{pods} pods are {state} {reason}"), 2 * PATIENCE, || {
        let found = count(agent, "unverified", &labels);
        ensure!(found == pods, "{found}; all: {:?}", unverified(agent)?);
        Ok(())
    })
    .unwrap();
}

/// Names and values.
type Pairs = Vec<(&'static str, &'static str)>;

/// A choice of values for each annotation and variable, the same in every run.
fn chosen(number: usize) -> (Pairs, Pairs) {
    const TRAFFIC: &[(&str, &[&str])] = &[
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", &["", "*", "10.0.0.0/8,fd00::/8"]),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", &["", "10.1.0.0/16"]),
        ("traffic.sidecar.istio.io/includeInboundPorts", &["", "*", "80,443"]),
        ("traffic.sidecar.istio.io/excludeInboundPorts", &["", "9090"]),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", &["", "5432,6379"]),
        ("traffic.sidecar.istio.io/includeOutboundPorts", &["", "8080"]),
        ("traffic.sidecar.istio.io/excludeInterfaces", &["", "net1"]),
        ("istio.io/reroute-virtual-interfaces", &["", "vm0"]),
        ("sidecar.istio.io/interceptionMode", &["REDIRECT", "TPROXY"]),
    ];
    const VARIABLES: &[(&str, &[&str])] = &[
        ("ISTIO_META_DNS_CAPTURE", &["", "true"]),
        ("ISTIO_DUAL_STACK", &["", "true"]),
        ("INVALID_DROP", &["", "true"]),
    ];
    // Different digits of a number that looks at random.
    let mut digits = (number + 1).wrapping_mul(2_654_435_761);
    let mut choose = |all: &[(&'static str, &'static [&'static str])]| {
        let pick = all.iter().map(|(name, values)| {
            digits = digits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*name, values[(digits >> 33) % values.len()])
        });
        pick.filter(|(_, value)| !value.is_empty()).collect::<Vec<_>>()
    };
    (choose(TRAFFIC), choose(VARIABLES))
}

#[test]
fn what_the_plugin_has_loaded_is_what_the_agent_expects() {
    const PODS: usize = 12;
    at_once(["true", "false"], |native| {
        let mesh = Mesh::new().unwrap();
        let agent = agent(&mesh).env("NATIVE_NFTABLES", native).ready().unwrap();
        let _pods: Vec<MeshPod> = (0..PODS)
            .map(|number| {
                let (annotations, variables) = chosen(number);
                added(&mesh, &format!("web-{number}"), |pod| {
                    pod.annotations(&annotations).proxy_env(&variables)
                })
            })
            .collect();
        wait_verified(&agent, 12.0);
        assert_eq!(count(&agent, "expected", "mode=\"sidecar\""), 12.0);
        let metrics = agent.metrics().unwrap();
        let drift = metrics
            .series
            .iter()
            .filter(|(name, value)| name.starts_with("istio_cni_drift_total") && **value > 0.0);
        assert_eq!(drift.count(), 0, "{native}: {:?}", agent.log().text());
    });
}

#[test]
fn rules_of_a_sidecar_pod_that_somebody_deletes_are_put_right() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh).ready().unwrap();
    let pod = added(&mesh, "web", |pod| pod);
    wait_verified(&agent, 1.0);
    let before = pod.netns.nft_text().unwrap();
    pod.netns.run(Command::new("nft").args(["delete", "table", "inet", "istio-proxy-nat"])).unwrap();
    eventually("the rules are back", PATIENCE, || {
        ensure!(pod.netns.nft_text()? == before);
        Ok(())
    })
    .unwrap();
    wait_verified(&agent, 1.0);
    let repaired = agent.metric("istio_cni_drift_total{action=\"repaired\",what=\"rules\"}").unwrap();
    assert_eq!(repaired, 1.0);
    // As the agent has found out at its start.
    for what in ["generation", "events", "culprits"] {
        let told = agent.metric(&format!("istio_cni_verification_kernel_tells{{what=\"{what}\"}}"));
        assert_eq!(told.unwrap(), 1.0, "{what}");
    }
}

/// Of those the kernel has no events: the pod's turn finds it, and who did it is not known.
#[test]
fn legacy_rules_that_somebody_flushes_are_put_right_within_an_interval() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh).env("NATIVE_NFTABLES", "false").ready().unwrap();
    let sandbox = mesh.sandbox("default", "web").unwrap();
    let legacy =
        |netns: &TestNetns, words: &[&str]| netns.run(Command::new("iptables-legacy").args(words)).unwrap();
    // Where there are tables of the legacy variant, it is the one that is used.
    legacy(&sandbox.netns, &["-t", "nat", "-L"]);
    let pod = added_to(&mesh, sandbox, |pod| pod);
    wait_verified(&agent, 1.0);
    let rules = || legacy(&pod.netns, &["-t", "nat", "-S"]);
    let before = rules();
    assert!(before.contains("-A OUTPUT") && before.contains("ISTIO_OUTPUT"), "{before}");
    legacy(&pod.netns, &["-t", "nat", "-F"]);
    let began = Instant::now();
    eventually("the rules are back", PATIENCE, || {
        let now = rules();
        ensure!(now == before, "{now}");
        Ok(())
    })
    .unwrap();
    // An interval of a second, one for the repair, and one for a busy machine.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    let line = agent
        .log()
        .wait_for(&["the rules of a pod differed and are put right", "pod=default/web"], PATIENCE)
        .unwrap();
    assert!(line.contains("iptables-legacy (unseen)"), "{line}");
    wait_verified(&agent, 1.0);
}

#[test]
fn whether_and_how_often_pods_are_verified_is_followed_while_the_agent_runs() {
    let mesh = Mesh::new().unwrap();
    let dir = mesh.node.dir().join("options");
    std::fs::create_dir(&dir).unwrap();
    let set = |name: &str, value: &str| {
        std::fs::write(dir.join("..new"), value).unwrap();
        std::fs::rename(dir.join("..new"), dir.join(name)).unwrap();
    };
    set("VERIFY_REPAIR", "off");
    set("VERIFY_INTERVAL", "60s");
    let launch = mesh.node.agent().env("HOST_ROOT", &mesh.root().to_string_lossy());
    let agent = launch.env("CLEANUP_ON_EXIT", "never").env("CONFIG_DIR", &dir.to_string_lossy());
    let agent = agent.ready().unwrap();
    let pod = added(&mesh, "web", |pod| pod);
    wait_verified(&agent, 1.0);
    let before = pod.netns.nft_text().unwrap();
    pod.netns.run(Command::new("nft").args(["delete", "table", "inet", "istio-proxy-nat"])).unwrap();
    wait_unverified(&agent, "drifted", "", 1.0);
    let drift = |action: &str| {
        agent.metric(&format!("istio_cni_drift_total{{action=\"{action}\",what=\"rules\"}}")).unwrap()
    };
    assert_eq!((drift("left"), drift("repaired")), (1.0, 0.0));
    set("VERIFY_REPAIR", "on");
    wait_verified(&agent, 1.0);
    assert_eq!((pod.netns.nft_text().unwrap(), drift("repaired")), (before, 1.0));

    // Looks that nothing asks for come with the interval.
    let looks = || agent.metric("istio_cni_verifications_total{layer=\"cheap\",result=\"equal\"}").unwrap();
    let first = looks();
    set("VERIFY_INTERVAL", "1s");
    eventually("it is looked each second", PATIENCE, || {
        ensure!(looks() >= first + 2.0, "{}", looks());
        Ok(())
    })
    .unwrap();
    assert_eq!(count(&agent, "verified", "mode=\"sidecar\""), 1.0);
    assert_eq!(agent.health("/readyz").unwrap().status, 200, "all of it is followed");

    set("CAPTURE", "disabled");
    eventually("the pod counts as one that is left as it is", PATIENCE, || {
        let left = agent.metric("istio_cni_capture_disabled_pods{mode=\"sidecar\"}")?;
        ensure!(left == 1.0 && count(&agent, "expected", "mode=\"sidecar\"") == 0.0, "{left}");
        Ok(())
    })
    .unwrap();
    assert_eq!(agent.metric("istio_cni_pods_unexpected").unwrap(), 0.0);
}

#[test]
fn each_pod_that_cannot_be_verified_has_its_own_reason() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh).ready().unwrap();
    let old = |pod: PodObject| pod.started("2020-01-01T00:00:00Z");
    for (name, class) in [("gvisor", "gvisor"), ("kata", "kata-qemu")] {
        let pod = mesh.sandbox("default", name).unwrap();
        mesh.node.api.set_pod(old(object(&pod)).with("/spec/runtimeClassName", class));
    }
    // Its copy in the API has another uid than its processes.
    let hash = |pod: PodObject, hash: &str| old(pod).annotation("kubernetes.io/config.mirror", hash);
    let lost = mesh.sandbox("default", "static-lost").unwrap();
    mesh.node.api.set_pod(hash(object(&lost), "0123456789abcdef0123456789abcdef"));
    let unknown = mesh.sandbox("default", "nowhere").unwrap();
    mesh.node.api.set_pod(old(object(&unknown)));
    mesh.node.api.set_pod(
        old(object(&unknown).with("/metadata/name", "no-address"))
            .uid("no-address")
            .with("/status", json!({"phase": "Pending", "startTime": "2020-01-01T00:00:00Z"})),
    );
    let young = mesh.sandbox("default", "young").unwrap();
    mesh.node.api.set_pod(object(&young));
    // The namespace of its processes is another pod's.
    let wrong = mesh.sandbox("default", "wrong").unwrap();
    mesh.process(901, young.netns.path(), &format!("/kubepods/pod{}/c", wrong.uid), 901).unwrap();
    mesh.node.api.set_pod(old(object(&wrong)));
    // A process of the pod made the namespace, below the user namespace that is the pod's own.
    let users = mesh.sandbox("default", "users").unwrap();
    let inner = format!(
        "ip link add eth0 type veth peer name peer0 && ip address add {}/32 dev eth0 && echo ready && exec sleep 60",
        users.ip
    );
    let unshare = "unshare --user --map-root-user --net";
    let mut inside = Command::new("sh")
        .args(["-c", &format!("exec {unshare} {unshare} sh -c '{inner}'")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(inside.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let netns = format!("/proc/{}/ns/net", inside.id());
    mesh.process(903, netns.as_ref(), &format!("/kubepods/pod{}/c", users.uid), 903).unwrap();
    mesh.node.api.set_pod(old(object(&users)).with("/spec/hostUsers", false));
    wait_unverified(&agent, "unverifiable", "user-namespace", 1.0);
    inside.kill().unwrap();
    inside.wait().unwrap();
    wait_unverified(&agent, "unverifiable", "sandbox", 2.0);
    wait_unverified(&agent, "unverifiable", "static-pod", 1.0);
    wait_unverified(&agent, "unverifiable", "no-namespace", 1.0);
    wait_unverified(&agent, "unverifiable", "no-address", 1.0);
    wait_unverified(&agent, "unverifiable", "wrong-namespace", 1.0);
    wait_unverified(&agent, "starting", "", 1.0);
    assert_eq!(count(&agent, "verified", "mode=\"sidecar\""), 0.0);
    assert_eq!(count(&agent, "expected", "mode=\"sidecar\""), 8.0);
}

/// It is found by the hash of its manifest, which is what its runtime knows.
#[test]
fn a_static_pod_is_verified() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh).ready().unwrap();
    let hash = "0123456789abcdef0123456789abcdef";
    let pod = mesh.sandbox("default", "static").unwrap();
    let set = || mesh.node.api.set_pod(object(&pod).annotation("kubernetes.io/config.mirror", hash));
    set();
    PodCall::new(&mesh.node, "static", hash, pod.netns.path()).unwrap().add().unwrap();
    mesh.process(902, pod.netns.path(), &format!("/kubepods/pod{hash}/c"), 902).unwrap();
    wait_verified(&agent, 1.0);
}

/// A DaemonSet of an earlier chart gives no right to look.
#[test]
fn without_the_right_to_look_pods_are_named_and_the_agent_is_ready() {
    let mesh = Mesh::new().unwrap();
    let root = mesh.node.dir().join("nothing");
    let agent = agent(&mesh).env("HOST_ROOT", &root.to_string_lossy()).ready().unwrap();
    let _pod = added(&mesh, "web", |pod| pod);
    wait_unverified(&agent, "unverifiable", "permission", 1.0);
    let ready: Value = json!(agent.health("/readyz").unwrap().status);
    assert_eq!(ready, 200);
}

/// What the mode of repair leaves alone is not put right by the verifier either.
#[test]
fn a_pod_that_never_had_rules_is_seen_and_gets_them_by_the_mode_of_repair_only() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh).ready().unwrap();
    let pod = mesh.sandbox("default", "web").unwrap();
    mesh.run(&pod).unwrap();
    mesh.node.api.set_pod(object(&pod));
    wait_unverified(&agent, "drifted", "", 1.0);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(!pod.netns.nft_text().unwrap().contains("istio-proxy"));
}
