//! What is installed stays installed, and goes when it should.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::{Agent, Node, PATIENCE, eventually};

const READY: &str = "istio_cni_install_ready";
const SUCCESS: &str = "istio_cni_installs_total{result=\"SUCCESS\"}";
/// In this time what was damaged has to be whole again.
const SOON: Duration = Duration::from_secs(2);

/// Everything that is installed in the usual mode.
fn check_installed(node: &Node) -> Result<()> {
    node.entry()?;
    let image = std::fs::read(node.bin_source().join("istio-cni"))?;
    ensure!(std::fs::read(node.plugin())? == image, "the plugin is another one");
    let token = std::fs::read_to_string(node.account().join("token"))?;
    ensure!(std::fs::read_to_string(node.kubeconfig())?.contains(&token), "the token is another one");
    Ok(())
}

/// Damages something and waits until readiness went and came again and the check holds.
fn heals(agent: &Agent, what: &str, damage: impl FnOnce(), check: impl Fn() -> Result<()>) {
    let before = agent.metric(SUCCESS).unwrap();
    let start = Instant::now();
    damage();
    // Shortly after another cycle there is a pause before the next, long enough to be seen.
    eventually("readiness goes", SOON, || {
        ensure!(agent.metric(READY)? == 0.0 || agent.metric(SUCCESS)? > before, "{what}");
        Ok(())
    })
    .unwrap();
    eventually("it is healed", SOON.saturating_sub(start.elapsed()), &check).unwrap();
    eventually("readiness comes again", SOON, || {
        let metrics = agent.metrics()?;
        ensure!(metrics.value(READY) == 1.0 && metrics.value(SUCCESS) > before, "{what}: {metrics:?}");
        Ok(())
    })
    .unwrap();
    check().unwrap_or_else(|error| panic!("{what}: {error:#}"));
}

#[test]
fn damage_is_healed_within_two_seconds() {
    let node = Node::new().unwrap();
    let agent = node.agent().arg("--log_output_level=all:debug").ready().unwrap();
    check_installed(&node).unwrap();
    let check = || check_installed(&node);
    let overwrite = || std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    heals(&agent, "the entry is gone", overwrite, check);
    heals(&agent, "the plugin is gone", || std::fs::remove_file(node.plugin()).unwrap(), check);
    heals(&agent, "the plugin is another", || std::fs::write(node.plugin(), "x").unwrap(), check);
    heals(&agent, "the kubeconfig is gone", || std::fs::remove_file(node.kubeconfig()).unwrap(), check);
    let rotate = || {
        node.api.set_token("the-next-token");
        node.api.write_service_account(&node.account()).unwrap();
    };
    heals(&agent, "the token is another", rotate, check);
    let text = agent.log().text();
    assert!(text.contains("a file of calico by its plugins or name, was overwritten"), "{text}");
    assert!(agent.log().count(&["not ready: something on the node has changed"]) >= 5, "{text}");
    assert_eq!(agent.metric("istio_cni_config_overwritten_total{component=\"calico\"}").unwrap(), 1.0);
}

/// Standalone: the whole file is ours.
#[test]
fn a_file_of_our_own_comes_back_and_goes_at_the_end() {
    let node = Node::new().unwrap();
    let own = node.net_dir().join("YYY-istio-cni.conf");
    let agent = node.agent().env("CHAINED_CNI_PLUGIN", "false").ready().unwrap();
    let check = || {
        let file: Value = serde_json::from_slice(&std::fs::read(&own)?)?;
        ensure!(file["type"] == "istio-cni", "{file}");
        ensure!(std::fs::metadata(&own)?.mode() & 0o777 == 0o600);
        Ok(())
    };
    check().unwrap();
    heals(&agent, "the file is gone", || std::fs::remove_file(&own).unwrap(), check);
    heals(&agent, "the file is empty", || std::fs::write(&own, "").unwrap(), check);
    assert_eq!(agent.stop().unwrap().status.code(), Some(0));
    assert!(!own.exists() && !node.plugin().exists() && !node.kubeconfig().exists());
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
}

#[test]
fn other_files_are_no_reason_to_write() {
    let node = Node::new().unwrap();
    let agent = node.start().unwrap();
    let state = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
    };
    let files = [node.conflist(), node.plugin(), node.kubeconfig()];
    let before: Vec<_> = files.iter().map(|path| state(path)).collect();
    let cycles = agent.metric(SUCCESS).unwrap();
    std::fs::write(node.net_dir().join("99-loopback.conf"), r#"{"type":"loopback","name":"lo"}"#).unwrap();
    std::fs::write(node.net_dir().join("README"), "by hand").unwrap();
    std::fs::write(node.account().join("namespace"), "istio-system").unwrap();
    eventually("it has looked", PATIENCE, || {
        ensure!(agent.metric(SUCCESS)? > cycles && agent.metric(READY)? == 1.0);
        Ok(())
    })
    .unwrap();
    let after: Vec<_> = files.iter().map(|path| state(path)).collect();
    assert_eq!(before, after);
    // What does not concern it does not even wake it.
    let cycles = agent.metric(SUCCESS).unwrap();
    std::fs::write(node.bin_target().join("bridge"), "other").unwrap();
    std::fs::write(node.run_dir().join("other"), "other").unwrap();
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(agent.metric(SUCCESS).unwrap(), cycles);
}

#[test]
fn a_fight_is_braked_and_told() {
    let node = Node::new().unwrap();
    let path = node.net_dir().join("05-cilium.conflist");
    std::fs::rename(node.conflist(), &path).unwrap();
    let agent = node.start().unwrap();
    let start = Instant::now();
    let mut losses = 0;
    while start.elapsed() < Duration::from_millis(7500) {
        if node.entry_in(&path).is_ok() {
            // As another component does it: a new file in the place of the old one.
            let unfinished = node.dir().join("unfinished");
            std::fs::write(&unfinished, Node::foreign_conflist()).unwrap();
            std::fs::rename(&unfinished, &path).unwrap();
            losses += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!((5..=9).contains(&losses), "{losses} rewrites in 7.5 s");
    let warning = agent.log().wait_for(&["\twarn\t", "another component keeps reverting"], SOON).unwrap();
    assert!(warning.contains("cni.exclusive=false"), "{warning}");
    eventually("peace", SOON, || node.entry_in(&path)).unwrap();
}

/// What others have is as it was, byte for byte.
#[test]
fn the_end_takes_away_what_the_start_brought() {
    let node = Node::new().unwrap();
    std::fs::write(node.bin_target().join("bridge"), "another plugin").unwrap();
    let agent = node.start().unwrap();
    assert_eq!(std::fs::metadata(node.conflist()).unwrap().mode() & 0o777, 0o644, "the mode is kept");
    let ended = agent.stop().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
    assert!(!node.plugin().exists() && !node.kubeconfig().exists());
    assert_eq!(std::fs::read_to_string(node.bin_target().join("bridge")).unwrap(), "another plugin");
    let left: Vec<_> = std::fs::read_dir(node.net_dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["10-calico.conflist"]);
    assert!(ended.log.find(&["ending", "signal=SIGTERM"]).is_some(), "{}", ended.log.text());
}

#[test]
fn it_needs_no_proc_of_the_host() {
    let node = Node::new().unwrap();
    // A machine that has the directory shows an empty one to this agent.
    let hide =
        "[ ! -e /host ] || mount -t tmpfs none /host; [ ! -e /host/proc ] || exit 9; exec \"$0\" \"$@\"";
    let agent = node.agent().behind(&["unshare", "-m", "sh", "-c", hide]).ready().unwrap();
    let seen = std::fs::read_dir(format!("/proc/{}/root/host", agent.pid()));
    assert_eq!(seen.map_or(0, Iterator::count), 0, "the agent sees an empty /host or none");
    assert_eq!(agent.stop().unwrap().status.code(), Some(0));
}

/// The entry of a killed agent is found and brought up to date.
#[test]
fn a_restart_with_other_options_updates_the_entry() {
    let node = Node::new().unwrap();
    node.agent().env("EXCLUDE_NAMESPACES", "kube-system").ready().unwrap().kill().unwrap();
    assert_eq!(node.entry().unwrap()["exclude_namespaces"], json!(["kube-system"]));
    let options =
        node.agent().env("EXCLUDE_NAMESPACES", " kube-system,, extra ").env("POD_NAMESPACE", "mesh");
    let agent = options.env("NATIVE_NFTABLES", "false").arg("--log_output_level=cni-plugin:debug").ready();
    let entry = node.entry().unwrap();
    assert_eq!(entry["exclude_namespaces"], json!(["kube-system", "extra"]));
    assert_eq!(entry["pod_namespace"], "mesh");
    assert_eq!(entry["native_nftables"], false);
    assert_eq!(entry["plugin_log_level"], "debug", "the level of scope cni-plugin");
    drop(agent);
}

/// A directory as kubelet mounts a ConfigMap: links to a directory that is exchanged in one step.
fn publish(dir: &Path, generation: u32, values: &[(&str, &str)]) {
    let data = format!("..generation_{generation}");
    std::fs::create_dir(dir.join(&data)).unwrap();
    for (name, value) in values {
        std::fs::write(dir.join(&data).join(name), value).unwrap();
        if generation == 1 {
            std::os::unix::fs::symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
    }
    std::os::unix::fs::symlink(&data, dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

#[test]
fn changed_options_reach_the_node_without_a_restart() {
    let node = Node::new().unwrap();
    let dir = node.dir().join("config");
    std::fs::create_dir(&dir).unwrap();
    publish(&dir, 1, &[("EXCLUDE_NAMESPACES", "one"), ("ADD_TIMEOUT", "20s")]);
    let config = dir.to_string_lossy().into_owned();
    // Files are stronger than variables.
    let mut agent = node.agent().env("CONFIG_DIR", &config).env("EXCLUDE_NAMESPACES", "env").ready().unwrap();
    assert_eq!(node.entry().unwrap()["exclude_namespaces"], json!(["one"]));
    let start = Instant::now();
    publish(&dir, 2, &[("EXCLUDE_NAMESPACES", "one,two\n"), ("ADD_TIMEOUT", "20s")]);
    let becomes = |key: &str, value: &Value| {
        eventually("the entry changes", SOON, || {
            let entry = node.entry()?;
            ensure!(entry[key] == *value, "{entry}");
            Ok(())
        })
        .unwrap();
    };
    becomes("exclude_namespaces", &json!(["one", "two"]));
    assert!(start.elapsed() < SOON);
    agent.log().wait_for(&["the plugin's options have changed"], PATIENCE).unwrap();

    publish(&dir, 3, &[("EXCLUDE_NAMESPACES", "three"), ("ADD_TIMEOUT", "soon")]);
    let body = agent.wait_unready(&["configuration: option add-timeout: \"soon\" cannot be used"]).unwrap();
    assert!(body.contains("the plugin keeps the options before"), "{body}");
    agent.log().wait_for(&["\terror\t", "changed options cannot be used", "soon"], PATIENCE).unwrap();
    assert_eq!(node.entry().unwrap()["exclude_namespaces"], json!(["one", "two"]));
    assert_eq!(node.entry().unwrap()["add_timeout"], "20s");

    publish(&dir, 4, &[("EXCLUDE_NAMESPACES", "three"), ("ADD_TIMEOUT", "30s")]);
    becomes("add_timeout", &json!("30s"));
    becomes("exclude_namespaces", &json!(["three"]));
    agent.wait_ready().unwrap();
    assert_eq!(agent.metric("istio_cni_config_overwritten_total{component=\"calico\"}").unwrap(), 0.0);
}

/// Whatever comes between a look and the next watch.
#[test]
fn the_last_of_many_changes_of_options_counts() {
    let node = Node::new().unwrap();
    let dir = node.dir().join("config");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("POD_NAMESPACE");
    std::fs::write(&file, "ns").unwrap();
    let _agent = node.agent().env("CONFIG_DIR", &dir.to_string_lossy()).ready().unwrap();
    for round in 0..3 {
        for change in 0..200 {
            std::fs::write(&file, format!("ns-{round}-{change}")).unwrap();
            std::thread::sleep(Duration::from_millis(change % 4));
        }
        let last = json!(format!("ns-{round}-199"));
        eventually("the last change", SOON, || {
            let entry = node.entry()?;
            ensure!(entry["pod_namespace"] == last, "{entry}");
            Ok(())
        })
        .unwrap();
    }
}
