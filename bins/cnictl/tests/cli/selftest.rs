//! `cnictl selftest` runs a chain for real and leaves nothing of it, however it ends.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{PATIENCE, eventually};

use crate::chain::Node;
use crate::{Run, cni_path};

fn selftest(node: &Node, more: &str) -> Command {
    let path = cni_path(testkit::programs());
    node.files.command(&format!("selftest --conf @net.conflist --cni-path {path} {more}"))
}

/// Waits until neither run nor guard nor plugin holds the lock.
fn is_over(node: &Node) {
    let sockets = || node.host.run(Command::new("cat").arg("/proc/net/unix")).unwrap();
    let is_free = || {
        let text = sockets();
        if text.contains("@istio-cni-selftest") { anyhow::bail!("{text}") } else { Ok(()) }
    };
    eventually("the lock of selftest is free", PATIENCE, is_free).unwrap();
}

/// Addresses and records of pods, and how many links the node has: its own, and one for each namespace that a chain has attached and that is still there.
fn left(node: &Node) -> (Vec<String>, Vec<String>, usize) {
    let records = std::fs::read_dir(node.files.path("run/applied")).into_iter().flatten();
    let records = records.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let links = node.host.run(Command::new("ip").args(["-o", "link"])).unwrap().lines().count();
    (node.leases(), records, links)
}

fn nothing() -> (Vec<String>, Vec<String>, usize) {
    (Vec::new(), Vec::new(), 1)
}

#[test]
fn the_chain_is_run_and_what_it_does_is_told_with_its_times() {
    let node = Node::new();
    let run = Run::of(&node.host.output(&mut selftest(&node, "-o json")).unwrap()).ok();
    let report: Value = serde_json::from_str(&run).unwrap();
    let calls: Vec<String> = report["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| {
            assert!(call["duration_ms"].as_f64().unwrap() > 0.1, "{call}");
            format!("{} {}", call["command"].as_str().unwrap(), call["plugin"].as_str().unwrap())
        })
        .collect();
    let all = ["ADD ptp", "ADD istio-cni", "CHECK ptp", "CHECK istio-cni", "DEL istio-cni", "DEL ptp"];
    assert_eq!(calls, all, "{report}");
    assert_eq!(report["result"]["ips"][0]["address"], "10.88.0.2/24", "{report}");
    assert_eq!(report["looked"]["pod_differences"], json!([]), "{report}");
    assert_eq!(report["note"], "a connection to 203.0.113.9:80 was captured at port 15001");
    is_over(&node);
    assert_eq!(left(&node), nothing());

    // Somebody in the chain undoes what our plugin does.
    let plugins = node.files.path("plugins");
    std::fs::create_dir(&plugins).unwrap();
    let breaks = "#!/bin/sh\nread conf\ncase $CNI_COMMAND in ADD) nsenter --net=$CNI_NETNS nft flush ruleset; echo '{\"cniVersion\": \"1.0.0\"}';; esac\n";
    node.files.write("plugins/breaker", breaks);
    std::fs::set_permissions(plugins.join("breaker"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let text = std::fs::read_to_string(node.files.path("net.conflist")).unwrap();
    let mut conf: Value = serde_json::from_str(&text).unwrap();
    conf["disableCheck"] = true.into();
    conf["plugins"].as_array_mut().unwrap().push(json!({"type": "breaker"}));
    node.files.write("net.conflist", &conf.to_string());
    let with = |path: &Path| {
        format!(
            "selftest --conf @net.conflist --cni-path {}:{}",
            path.display(),
            cni_path(testkit::programs())
        )
    };
    let broken = Run::of(&node.host.output(&mut node.files.command(&with(&plugins))).unwrap());
    broken.fails(1, &["istio-cni-selftest/selftest is not as decided"]);
    // One that fails: what the others have done is taken down.
    node.files.write(
        "plugins/breaker",
        "#!/bin/sh\necho '{\"code\": 7, \"msg\": \"no luck\"}'\n[ $CNI_COMMAND = DEL ]\n",
    );
    let failed = Run::of(&node.host.output(&mut node.files.command(&with(&plugins))).unwrap());
    failed.fails(1, &["plugin type=\"breaker\" failed (add): no luck"]);
    is_over(&node);
    assert_eq!(left(&node), nothing());
}

#[test]
fn a_run_that_is_killed_leaves_nothing() {
    // 100 runs (`SELFTEST_KILLS=100`) take 10 s; what differs is where between start and end the signal comes.
    let tries = std::env::var("SELFTEST_KILLS").map_or(10, |tries| tries.parse().unwrap());
    let node = Node::new();
    let start = Instant::now();
    Run::of(&node.host.output(&mut selftest(&node, "")).unwrap()).ok();
    let took = start.elapsed();
    let mut kills = 0;
    for n in 0..tries {
        let mut command = selftest(&node, "");
        let mut child = node.host.spawn(command.stdout(Stdio::null()).stderr(Stdio::null())).unwrap();
        std::thread::sleep(took * n / tries);
        child.child().kill().unwrap();
        kills += u32::from(child.child().wait().unwrap().signal() == Some(9));
    }
    // The guard of the last one comes when its plugins have ended.
    let clean = || {
        is_over(&node);
        let left = left(&node);
        if left == nothing() { Ok(()) } else { anyhow::bail!("{left:?}") }
    };
    eventually("what killed runs have made is taken down", PATIENCE, clean).unwrap();
    println!("{tries} runs of {took:?}, {kills} killed");
    assert!(kills > tries / 3, "{kills} of {tries}");
}

#[test]
fn a_run_takes_down_what_one_has_left_that_was_killed_with_its_guard() {
    let node = Node::new();
    let lease = node.files.path("leases/net");
    std::fs::create_dir_all(&lease).unwrap();
    // As host-local leaves it: the container, the interface.
    std::fs::write(lease.join("10.88.0.2"), "cnictl-selftest\r\neth0").unwrap();
    assert_eq!(node.leases(), ["10.88.0.2"]);
    let start = Instant::now();
    Run::of(&node.host.output(&mut selftest(&node, "")).unwrap()).ok();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(left(&node), nothing());
}
