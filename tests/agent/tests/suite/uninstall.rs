//! Uninstallations, in the orders in which objects go in a cluster, and everything that looks like one. The plugin, its configuration, the
//! annotations and the rules are looked at all the while.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::looks::{AGENT_POD, DAEMONSET, Look, NAMESPACE, Scene};
use testkit::{Agent, Ended, PATIENCE, at_once, eventually};

use crate::repair::{
    ValidationProgram, broken, object, repaired, started, validation_code, wait_counted, wait_repaired,
};

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[track_caller]
fn assert_sound(row: &str, looks: &[Look], log: &str) {
    for look in looks {
        assert!(look.is_sound(), "{row}: {look:#?}\n{log}");
    }
}

#[track_caller]
fn assert_untouched(row: &str, looks: &[Look], log: &str) {
    for look in looks {
        assert!(look.is_whole(), "{row}: {look:#?}\n{log}");
    }
}

/// Nothing is taken down by what only looks like an uninstallation, and the log says what that means.
fn leaves(row: &str, reason: &str, change: impl FnOnce(&Scene)) {
    let (scene, agent) = Scene::new(2).unwrap();
    let (ended, looks) = scene.looking(|| {
        change(&scene);
        pause(500);
        let ended = agent.stop().unwrap();
        pause(300);
        ended
    });
    let log = ended.log.text();
    assert_untouched(row, &looks, &log);
    assert!(
        looks.len() > 4 && ended.took < Duration::from_secs(4),
        "{row}: {} looks, {:?}",
        looks.len(),
        ended.took
    );
    assert!(ended.log.find(&["leaving the plugin on this node", reason]).is_some(), "{row}: {log}");
}

#[test]
fn an_agent_pod_that_is_deleted_by_force() {
    let forced = |scene: &Scene| scene.mesh.node.api.delete_pod(NAMESPACE, AGENT_POD);
    leaves("its token dies", "run cnictl uninstall on this node", forced);
}

#[test]
fn an_api_server_that_has_no_roles_yet() {
    let starting = |scene: &Scene| {
        let api = &scene.mesh.node.api;
        api.stop();
        scene.delete_roles();
        api.restart().unwrap();
    };
    leaves("403 of all watches", "run cnictl uninstall on this node", starting);
}

#[test]
fn an_upgrade_to_the_originals_chart() {
    leaves("roles first", "so another agent follows", |scene| {
        scene.delete_roles();
        pause(50);
        scene.set_daemonset(&json!({"nodeSelector": {"kubernetes.io/os": "linux"}}));
    });
}

#[test]
fn a_daemonset_that_is_replaced_under_its_name_at_once() {
    let replaced = |scene: &Scene| {
        scene.mesh.node.api.stop();
        scene.delete_daemonset();
        scene.set_daemonset(&json!({}));
        scene.mesh.node.api.restart().unwrap();
    };
    leaves("its watch was away", "so another agent follows", replaced);
}

/// An agent that never saw its DaemonSet, because nothing was allowed from its start on.
#[test]
fn an_agent_that_starts_without_roles_and_ends() {
    let (scene, first) = Scene::new(1).unwrap();
    let (ended, looks) = scene.looking(|| {
        first.stop().unwrap();
        scene.delete_roles();
        let agent = scene.agent().start().unwrap();
        let told = || {
            let reply = agent.health("/readyz?verbose")?;
            ensure!(
                reply.body.contains("[!]daemonset: ") && reply.body.contains("lacks a role"),
                "{}",
                reply.body
            );
            Ok(())
        };
        eventually("a notice", PATIENCE, told).unwrap();
        agent.stop().unwrap()
    });
    let log = ended.log.text();
    assert_untouched("no roles", &looks, &log);
    let why = ["leaving the plugin on this node", "was not seen", "run cnictl uninstall on this node"];
    assert!(ended.log.find(&why).is_some(), "{log}");
}

/// The cleanup begins when the deletion is seen, and the agent goes on serving until it is told to end.
#[test]
fn a_daemonset_that_is_deleted() {
    let (scene, agent) = Scene::new(3).unwrap();
    let late = scene.mesh.sandbox("mesh", "late").unwrap();
    scene.mesh.node.api.set_pod(late.object(&[], false));
    let ((ended, removed_after), looks) = scene.looking(|| {
        let began = Instant::now();
        scene.delete_daemonset();
        scene.wait_removed().unwrap();
        let removed_after = began.elapsed();
        assert_eq!(scene.mesh.announce(&late).unwrap().status, 200, "a pod that comes now is not held back");
        assert!(agent.metrics().is_ok() && scene.mesh.node.agent_socket().exists(), "it serves still");
        let verbose = agent.health("/readyz?verbose").unwrap().body;
        assert!(verbose.contains("was deleted; this agent takes everything off the node now"), "{verbose}");
        (agent.stop().unwrap(), removed_after)
    });
    let log = ended.log.text();
    assert_sound("deleted", &looks, &log);
    println!("everything was gone {removed_after:?} after the deletion, in {} looks", looks.len());
    assert!(removed_after < Duration::from_secs(5), "{removed_after:?}\n{log}");
    assert_eq!(ended.status.code(), Some(0), "{log}");
    assert!(!late.has_rules().unwrap() && scene.mesh.annotation(&late).is_none());
    assert!(ended.log.find(&["pod starts without capture", "mesh/late"]).is_some(), "{log}");
    let run = scene.mesh.node.run_dir();
    assert!(!run.join("facts").exists() && !scene.mesh.node.agent_socket().exists(), "{log}");
}

/// Evidence is taken back: before the cleanup, in the middle of it, and after it.
#[test]
fn a_daemonset_that_is_there_again() {
    at_once([0, 20, 60, 2000], |milliseconds| {
        let (scene, agent) = Scene::new(2).unwrap();
        let (ended, looks) = scene.looking(|| {
            scene.delete_daemonset();
            pause(milliseconds);
            scene.set_daemonset(&json!({}));
            pause(200);
            scene
                .wait_installed()
                .unwrap_or_else(|error| panic!("{milliseconds} ms: {error:#}\n{}", agent.log().text()));
            agent.stop().unwrap()
        });
        let row = format!("there again after {milliseconds} ms");
        let log = ended.log.text();
        assert_sound(&row, &looks, &log);
        assert!(
            ended.log.find(&["leaving the plugin on this node", "so another agent follows"]).is_some(),
            "{log}"
        );
        assert!(scene.look(Instant::now()).is_whole(), "{row}: {log}");
    });
}

/// A deployment that restarts while there is no DaemonSet: the validation of its pods fails until the DaemonSet is back, and at its next try succeeds.
#[test]
fn pods_that_start_without_a_daemonset_are_repaired_when_it_is_back() {
    let (scene, agent) = Scene::new(0).unwrap();
    scene.delete_daemonset();
    scene.wait_removed().unwrap();
    agent.stop().unwrap();
    let program = ValidationProgram::new();
    let api = &scene.mesh.node.api;
    let pods = ["web-0", "web-1", "web-2"].map(|name| started(&scene.mesh, name, |pod| pod));
    let first = pods.each_ref().map(|pod| program.start(pod));
    for (pod, validation) in pods.iter().zip(first) {
        assert_eq!(validation_code(validation), Some(126), "{} is not captured", pod.name);
        api.set_pod(broken(object(pod)));
    }
    scene.set_daemonset(&json!({}));
    let back = Instant::now();
    let agent = scene.agent().env("REPAIR_REPAIR_PODS", "true").ready().unwrap();
    scene.wait_installed().unwrap();
    pods.iter().for_each(wait_repaired);
    let took = back.elapsed();
    println!("the rules were there {took:?} after the DaemonSet");
    assert!(took < Duration::from_secs(80), "{took:?}");
    // As kubelet has it after the next try.
    let next = pods.each_ref().map(|pod| program.start(pod));
    for (pod, validation) in pods.iter().zip(next) {
        assert_eq!(validation_code(validation), Some(0), "{}: {}", pod.name, agent.log().text());
        let succeeded = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        api.set_pod(broken(object(pod)).with("/status/initContainerStatuses/0/state", succeeded));
    }
    wait_counted(&agent, "repair", "success", 3.0);
    assert_eq!(repaired(&agent, "repair", "fail"), 0.0);
}

/// A node that leaves the DaemonSet: the agent has its token until it has ended.
#[test]
fn a_node_that_the_daemonset_leaves() {
    let required = |values: &Value| {
        let term = json!({"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": values}]});
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}})
    };
    type Change = fn(&Scene, &Value);
    let by_set: Change = |scene, spec| scene.set_daemonset(spec);
    let by_node: Change = |scene, node| scene.mesh.node.api.set_object(Resource::Nodes, node.clone());
    let labels = json!({"kubernetes.io/os": "linux", "pool": "mesh"});
    let tainted = json!({"metadata": {"name": "n1", "labels": labels},
        "spec": {"taints": [{"key": "team", "value": "db", "effect": "NoExecute"}]}});
    at_once(
        [
            ("nodeSelector", by_set, json!({"nodeSelector": {"pool": "edge"}}), "lacks the label pool=edge"),
            ("affinity", by_set, json!({"affinity": required(&json!(["mesh"]))}), "required node affinity"),
            ("taint", by_node, tainted, "do not tolerate the node's taint team=db:NoExecute"),
        ],
        |(row, change, object, reason)| {
            let (scene, agent) = Scene::new(2).unwrap();
            let (ended, looks) = scene.looking(|| {
                change(&scene, &object);
                let told = || {
                    let verbose = agent.health("/readyz?verbose")?;
                    ensure!(verbose.status == 200 && verbose.body.contains(reason), "{verbose:?}");
                    Ok(())
                };
                eventually("a notice", PATIENCE, told).unwrap();
                assert!(scene.look(Instant::now()).is_whole(), "{row}: it is served until it ends");
                agent.stop().unwrap()
            });
            let log = ended.log.text();
            assert_sound(row, &looks, &log);
            assert!(ended.log.find(&["taking the plugin off this node", reason]).is_some(), "{row}: {log}");
            scene.wait_removed().unwrap_or_else(|error| panic!("{row}: {error:#}\n{log}"));
        },
    );
}

/// Helm deletes the DaemonSet, some milliseconds later the roles and the account, and kubelet ends the pod after a while. Each pod is either out
/// or in at the end, with all of it.
#[test]
fn helm_without_its_hook() {
    for (row, roles_after) in
        [("long after", Some(400)), ("soon after", Some(15)), ("at once", Some(0)), ("before", None)]
    {
        let (scene, agent) = Scene::new(6).unwrap();
        let (ended, looks) = scene.looking(|| uninstall(&scene, agent, roles_after));
        let log = ended.log.text();
        assert_sound(row, &looks, &log);
        let last = scene.look(Instant::now());
        assert!(!last.plugin && !last.entry && !last.kubeconfig, "{row}: {last:?}\n{log}");
        let in_mesh: Vec<_> = last.pods.iter().filter(|(annotation, _)| annotation.is_some()).collect();
        println!("roles {row} the DaemonSet: {} of 6 pods stay in the mesh", in_mesh.len());
        assert!(in_mesh.iter().all(|(_, ruled)| *ruled), "{row}: {last:?}");
        assert!(
            last.pods.iter().all(|(annotation, ruled)| annotation.is_some() == *ruled),
            "{row}: {last:?}\n{log}"
        );
        match row {
            "long after" => assert!(in_mesh.is_empty(), "{log}"),
            "before" => assert_eq!(in_mesh.len(), 6, "{log}"),
            _ => {}
        }
        let probes = scene.mesh.probes().map_or(0, |probes| probes.len());
        assert_eq!(probes, in_mesh.len(), "{row}: kubelet reaches those that stay\n{log}");
        let named = ended.log.find(&["pods stay in the mesh", "delete them", "403"]);
        assert_eq!(named.is_some(), !in_mesh.is_empty(), "{row}: {log}");
    }
}

fn uninstall(scene: &Scene, agent: Agent, roles_after: Option<u64>) -> Ended {
    let api = &scene.mesh.node.api;
    match roles_after {
        None => {
            scene.delete_roles();
            scene.delete_daemonset();
        }
        Some(milliseconds) => {
            scene.delete_daemonset();
            pause(milliseconds);
            scene.delete_roles();
        }
    }
    pause(700);
    let ended = agent.stop().unwrap();
    api.delete_pod(NAMESPACE, AGENT_POD);
    ended
}

/// The chart's hook: it deletes the DaemonSet, waits until the agent has cleaned up and ended, and only then everything else goes.
#[test]
fn helm_with_its_hook() {
    let (scene, agent) = Scene::new(4).unwrap();
    let ((ended, hook), looks) = scene.looking(|| {
        std::thread::scope(|scope| {
            let hook = scope.spawn(|| scene.agent().arg("delete-daemonset").run().unwrap());
            let deleting = || {
                let set = scene.mesh.node.api.object(Resource::DaemonSets, NAMESPACE, DAEMONSET);
                ensure!(set.is_some_and(|set| !set["metadata"]["deletionTimestamp"].is_null()));
                Ok(())
            };
            eventually("the hook deletes the DaemonSet", PATIENCE, deleting).unwrap();
            pause(100);
            agent.signal(Signal::TERM).unwrap();
            let ended = agent.ended_by_itself().unwrap();
            assert!(!hook.is_finished(), "it waits for the pods");
            scene.delete_daemonset();
            let hook = hook.join().unwrap();
            scene.mesh.node.api.delete_pod(NAMESPACE, AGENT_POD);
            scene.delete_roles();
            (ended, hook)
        })
    });
    let log = ended.log.text();
    assert_sound("with its hook", &looks, &log);
    scene.wait_removed().unwrap_or_else(|error| panic!("{error:#}\n{log}"));
    assert_eq!((ended.status.code(), hook.status.code()), (Some(0), Some(0)), "{log}\n{hook:?}");
    let said = String::from_utf8_lossy(&hook.stdout).into_owned();
    assert!(said.contains("DaemonSet istio-system/istio-cni-node and its pods are gone after"), "{said}");
}

/// The hook's role may be younger than its pod, and there may be nothing to do.
#[test]
fn the_hook_waits_for_its_rights_and_finds_nothing_to_do() {
    let (scene, agent) = Scene::new(0).unwrap();
    scene.mesh.node.api.deny("daemonsets", &["delete"]);
    let hook = std::thread::scope(|scope| {
        let hook = scope.spawn(|| scene.agent().arg("delete-daemonset").run().unwrap());
        pause(900);
        assert!(!hook.is_finished());
        scene.mesh.node.api.allow_everything();
        pause(900);
        scene.delete_daemonset();
        hook.join().unwrap()
    });
    assert_eq!(hook.status.code(), Some(0), "{hook:?}");
    assert!(String::from_utf8_lossy(&hook.stderr).contains("403"), "{hook:?}");
    agent.stop().unwrap();
    let again = scene.agent().arg("delete-daemonset").run().unwrap();
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.status.success() && said.contains("there is nothing to do"), "{again:?}");
    let without = scene.agent().arg("delete-daemonset").env("POD_NAMESPACE", "").run().unwrap();
    assert_eq!(without.status.code(), Some(1), "{without:?}");
}

/// A deletion in the foreground: the DaemonSet stays until its pods have ended, and the roles longer.
#[test]
fn a_daemonset_that_is_deleted_in_the_foreground() {
    let (scene, agent) = Scene::new(4).unwrap();
    let (ended, looks) = scene.looking(|| {
        let mut set = scene.mesh.node.api.object(Resource::DaemonSets, NAMESPACE, DAEMONSET).unwrap();
        set["metadata"]["deletionTimestamp"] = json!("2026-08-01T09:30:00Z");
        scene.mesh.node.api.set_object(Resource::DaemonSets, set);
        pause(30);
        agent.signal(Signal::TERM).unwrap();
        let ended = agent.ended_by_itself().unwrap();
        scene.delete_daemonset();
        scene.delete_roles();
        ended
    });
    let log = ended.log.text();
    assert_sound("in the foreground", &looks, &log);
    scene.wait_removed().unwrap_or_else(|error| panic!("{error:#}\n{log}"));
    assert_eq!(ended.status.code(), Some(0), "{log}");
}
