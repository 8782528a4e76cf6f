//! An ADD that must fail: the user reads why, and nothing stays.

use std::time::Duration;

use node::PodSpec;
use serde_json::json;

use crate::fixture::{Mesh, PLUGIN, sidecar_pod};

/// Runs a pod that must be refused and returns the text that a user sees in the pod's events.
fn refused(mesh: &Mesh, pod: &PodSpec) -> String {
    let error = mesh.node.run_pod(pod).expect_err("a refusal").to_string();
    assert_eq!(mesh.node.pods().expect("the pods"), Vec::<String>::new(), "no sandbox stays: {error}");
    assert_eq!(leases(mesh), 0, "no address stays taken");
    error
}

/// Addresses that host-local has given out.
fn leases(mesh: &Mesh) -> usize {
    let listed = mesh.node.exec(&["ls", "/var/lib/cni/networks/mesh"]).expect("ls runs").stdout;
    listed.lines().filter(|name| name.starts_with("10.88.")).count()
}

fn check_one_del(mesh: &Mesh) {
    let dels = mesh.dels();
    assert_eq!(dels.len(), 1, "the runtime takes the failed ADD back once: {dels:?}");
    assert_eq!(dels[0].code, 0, "{}", dels[0].stdout);
    assert!(!dels[0].has_prev_result());
}

#[test]
fn a_pod_that_no_manifest_describes() {
    let mesh = Mesh::start_with(|chain| chain.plugin["facts_timeout"] = json!("1s"));
    let error = refused(&mesh, &sidecar_pod("default", "unknown"));

    assert!(error.contains(r#"plugin type="istio-cni" failed (add)"#), "{error}");
    for part in ["default/unknown", &*mesh.manifests().to_string_lossy()] {
        assert!(error.contains(part), "{part} in {error}");
    }
    check_one_del(&mesh);
}

#[test]
fn an_annotation_that_is_no_port_list() {
    let mesh = Mesh::start(true);
    let key = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let pod = sidecar_pod("default", "typo").annotate(key, "80,no-port");
    mesh.admit(&pod);
    let error = refused(&mesh, &pod);

    assert!(error.contains(r#"plugin type="istio-cni" failed (add)"#), "{error}");
    for part in [key, "no-port"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    check_one_del(&mesh);

    // The same pod with the mistake corrected comes up.
    mesh.must_run(&sidecar_pod("default", "typo").annotate(key, "80,81"));
}

#[test]
fn a_plugin_before_ours_refuses() {
    let mesh = Mesh::start(true);
    mesh.node.refuse("bridge", "ADD", Some(r#"{"code":11,"msg":"no bridge today"}"#)).expect("noted");
    let pod = sidecar_pod("default", "unlucky");
    mesh.admit(&pod);
    let error = refused(&mesh, &pod);

    assert!(error.contains("no bridge today"), "{error}");
    assert_eq!(mesh.node.calls_of(PLUGIN, "ADD").expect("records").len(), 0);
    check_one_del(&mesh);
}

#[test]
fn the_kubelets_deadline_ends_an_add_that_waits_for_facts() {
    let mesh = Mesh::start_with(|chain| chain.plugin["facts_timeout"] = json!("30s"));
    let pod = sidecar_pod("default", "waiting");
    let error = mesh.node.run_pod_within(&pod, Duration::from_secs(2)).expect_err("a refusal");
    assert!(!error.to_string().is_empty());
    // The client hears of its own deadline before the runtime has cleaned up.
    for _ in 0..100 {
        if mesh.node.pods().expect("the pods").is_empty()
            && !mesh.node.calls_of("bridge", "DEL").expect("records").is_empty()
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    check_one_del(&mesh);
    assert_eq!(mesh.node.pods().expect("the pods"), Vec::<String>::new());
    assert_eq!(leases(&mesh), 0);
    let running = mesh.node.exec(&["sh", "-c", "cat /proc/[0-9]*/comm"]).expect("cat runs").stdout;
    assert!(!running.contains(PLUGIN), "the plugin was ended: {running}");
}
