//! What the repair of pods may do in the API, and what it asks for before it does it.

use anyhow::ensure;
use serde_json::Value;
use testkit::apiserver::{Fault, Resource, WatchFault};
use testkit::mesh::Mesh;
use testkit::{PATIENCE, PodObject, at_once, eventually};

use crate::repair::{A_WHILE, agent, broken, events, object, repaired, started, wait_counted};

/// Each mode needs what the chart gives it, and nothing else.
#[test]
fn each_mode_does_its_work_with_its_own_rights_and_no_others() {
    at_once([("REPAIR", "repair"), ("DELETE", "delete"), ("LABEL", "label")], |(mode, kind)| {
        let mesh = Mesh::new().unwrap();
        let mut pods = vec!["create", "update", "patch", "deletecollection"];
        pods.extend((mode != "DELETE").then_some("delete"));
        let mut status = vec!["get", "update"];
        status.extend((mode != "LABEL").then_some("patch"));
        mesh.node.api.deny("pods", &pods);
        mesh.node.api.deny("pods/status", &status);
        mesh.node.api.deny("events", &["get", "list", "watch", "update", "patch", "delete"]);
        mesh.node.api.deny("nodes", &["create", "update", "patch", "delete"]);
        mesh.node.api.deny("namespaces", &["create", "update", "patch", "delete"]);
        let agent = agent(&mesh, mode).ready().unwrap();
        let _pod = started(&mesh, "web", broken);
        wait_counted(&agent, kind, "success", 1.0);
        assert_eq!(repaired(&agent, kind, "fail"), 0.0, "{mode}");
    });
}

/// What the agent has heard of a pod may be older than the pod.
#[test]
fn a_pod_that_has_come_right_is_not_deleted() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "DELETE").env("REPAIR_TRIGGER", "crash").ready().unwrap();
    // So that each try may be one of those of a minute.
    for number in 0..60 {
        mesh.node.api.set_pod(PodObject::named(&format!("other-{number}")).on_node("n1"));
    }
    let look = "/pods/web";
    mesh.node.api.fail_path(look, 2, Fault::status(500));
    let pod = started(&mesh, "web", broken);
    wait_counted(&agent, "delete", "fail", 1.0);
    mesh.node.api.disturb_watches(Resource::Pods, WatchFault::Hang);
    mesh.node.api.set_pod(object(&pod));
    let answered = || {
        let requests = mesh.node.api.requests();
        requests.iter().filter(|request| request.method == "GET" && request.path.contains(look)).count()
    };
    eventually("the pod is looked at again", PATIENCE, || {
        ensure!(answered() >= 3, "{}", answered());
        Ok(())
    })
    .unwrap();
    std::thread::sleep(A_WHILE);
    let object: Option<Value> = mesh.node.api.object(Resource::Pods, "default", "web");
    assert!(object.is_some(), "{}", agent.log().text());
    assert_eq!(repaired(&agent, "delete", "success"), 0.0);
}

#[test]
fn a_deletion_that_the_api_server_refuses_is_told_and_tried_five_times() {
    let mesh = Mesh::new().unwrap();
    let agent = agent(&mesh, "DELETE").ready().unwrap();
    // Twenty pods, so that each try may be one of two in a minute.
    for number in 0..60 {
        mesh.node.api.set_pod(PodObject::named(&format!("other-{number}")).on_node("n1"));
    }
    mesh.node.api.deny("pods", &["delete"]);
    started(&mesh, "web", broken);
    wait_counted(&agent, "delete", "fail", 5.0);
    std::thread::sleep(A_WHILE);
    assert_eq!((repaired(&agent, "delete", "fail"), repaired(&agent, "delete", "success")), (5.0, 0.0));
    assert!(mesh.node.api.object(Resource::Pods, "default", "web").is_some());
    let events = events(&mesh);
    assert!(!events.is_empty() && events.len() <= 5, "{events:?}");
    for (reason, component, message) in events {
        assert_eq!((&*reason, &*component), ("DeleteBrokenPod", "cni-repair"));
        assert!(message.starts_with("pod detected as broken, but failed to delete: "), "{message}");
    }
}
