//! Bad surroundings: a clear line in the log, a reason in `/readyz`, nothing lost, and everything well again when they are mended.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use testkit::apiserver::{Fault, Resource, WatchFault};
use testkit::{Agent, Families, Node, PATIENCE, Pod, PodCall, assert_says, at_once, eventually, http};

/// Waits until this part is the only one that `/readyz` lists, with these texts, as is a line of the log.
#[track_caller]
fn only_pending(agent: &Agent, part: &str, says: &[&str]) {
    eventually("nothing else is pending", PATIENCE, || {
        let body = agent.wait_unready(&[])?;
        let lines: Vec<&str> = body.lines().skip(1).collect();
        let is_it = |line: &&str| line.starts_with(part) && says.iter().all(|text| line.contains(text));
        ensure!(lines.len() == 1 && lines.iter().all(is_it), "{part:?} {says:?}: {body}");
        Ok(())
    })
    .unwrap();
    agent.log().wait_for(says, PATIENCE).unwrap();
}

/// Something else stands where a socket should be.
#[test]
fn a_socket_path_that_is_taken() {
    at_once(
        [("agent.sock", "plugin socket: listen on "), ("log.sock", "log socket: listen on ")],
        |(name, part)| {
            let node = Node::new().unwrap();
            let path = node.run_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            let mut agent = node.agent().start().unwrap();
            only_pending(&agent, part, &[&path.to_string_lossy(), "a directory is there; remove it"]);
            // Everything else works.
            node.entry().unwrap();
            std::fs::remove_dir(&path).unwrap();
            std::fs::write(&path, "somebody's").unwrap();
            only_pending(
                &agent,
                part,
                &[&path.to_string_lossy(), "a file that is no socket is there; remove it"],
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody's");
            std::fs::remove_file(&path).unwrap();
            agent.wait_ready().unwrap();
            assert!(http::connect(&path).is_ok());
        },
    );
}

/// By a process that holds no lock, as an agent of before or of the original.
#[test]
fn a_socket_of_a_live_process_is_taken_over() {
    let node = Node::new().unwrap();
    std::fs::create_dir(node.run_dir()).unwrap();
    let other = UnixListener::bind(node.agent_socket()).unwrap();
    let inode = std::fs::metadata(node.agent_socket()).unwrap().ino();
    let first = node.agent().env("CLEANUP_ON_EXIT", "never").env("HEALTH_PORT", "8001").start().unwrap();
    let status = |pid: u32| {
        let path = node.agent_socket();
        eventually("the agent answers", PATIENCE, || {
            let reply = http::ask(&path, "GET", "/v1/status", "")?;
            ensure!(reply.body.contains(&format!("\"pid\":{pid},")), "{reply:?}");
            Ok(())
        })
        .unwrap();
    };
    eventually("the path is taken over", PATIENCE, || {
        ensure!(std::fs::metadata(node.agent_socket())?.ino() != inode);
        Ok(())
    })
    .unwrap();
    status(first.pid());
    drop(other);
    first.log().wait_for(&["\terror\t", "another agent listens on ", "it holds no lock"], PATIENCE).unwrap();
    assert_eq!(first.stop().unwrap().status.code(), Some(0));
    let second = node.start().unwrap();
    status(second.pid());
    assert!(http::connect(&node.log_socket()).is_ok());
    node.entry().unwrap();
}

#[test]
fn a_run_directory_with_too_long_a_path() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    let run_dir = node.dir().join("x".repeat(100));
    let agent = node.agent().env("CNI_AGENT_RUN_DIR", &run_dir.to_string_lossy()).start().unwrap();
    let body = eventually("nothing else is pending", PATIENCE, || {
        let body = agent.readyz()?.body;
        ensure!(body.lines().count() == 3, "{body}");
        Ok(body)
    });
    assert_says(&body.unwrap(), &["plugin socket: ", "log socket: ", "choose a shorter cni-agent-run-dir"]);
    agent.log().wait_for(&["\terror\t", "and the kernel takes 107"], PATIENCE).unwrap();
    // Pods are captured all the same.
    let pod = Pod::new(Families::V4).unwrap();
    let answer = PodCall::new(&node, "web", "uid-1", pod.path()).unwrap().add().unwrap();
    assert_says(&answer.stderr, &["pod is captured", "\"facts_source\":\"api\""]);
}

/// Read-only for the agent, as a wrong mount makes it.
#[test]
fn a_run_directory_that_cannot_be_written() {
    let node = Node::new().unwrap();
    std::fs::create_dir(node.run_dir()).unwrap();
    let run_dir = node.run_dir().to_string_lossy().into_owned();
    let mount = format!("mount -t tmpfs -o ro none {run_dir} && exec \"$0\" \"$@\"");
    let mut agent = node.agent().behind(&["unshare", "-m", "sh", "-c", &mount]).start().unwrap();
    let says = ["install: write kubeconfig", "plugin socket: ", "log socket: ", "Read-only file system"];
    agent.wait_unready(&says).unwrap();
    agent.log().wait_for(&["\terror\t", "write kubeconfig", "Read-only file system"], PATIENCE).unwrap();
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
    assert!(agent.metric("istio_cni_installs_total{result=\"CREATE_KUBECONFIG_FAILURE\"}").unwrap() >= 1.0);
    let pid = agent.pid().to_string();
    let remount = ["-t", &pid, "-m", "mount", "-o", "remount,rw", &run_dir];
    assert!(Command::new("nsenter").args(remount).status().unwrap().success());
    agent.wait_ready().unwrap();
    node.entry().unwrap();
}

/// A file stands where the directory should be.
#[test]
fn a_run_directory_that_is_a_file() {
    let node = Node::new().unwrap();
    std::fs::write(node.run_dir(), "").unwrap();
    let mut agent = node.agent().start().unwrap();
    agent.wait_unready(&["install: write kubeconfig", "plugin socket: ", "log socket: "]).unwrap();
    std::fs::remove_file(node.run_dir()).unwrap();
    agent.wait_ready().unwrap();
}

#[test]
fn a_service_account_without_a_token() {
    let node = Node::new().unwrap();
    let token = node.account().join("token");
    let secret = std::fs::read(&token).unwrap();
    std::fs::remove_file(&token).unwrap();
    let mut agent = node.agent().start().unwrap();
    let body = agent.wait_unready(&["install: write kubeconfig: ", "token", "cluster: "]).unwrap();
    assert_says(&body, &[&token.to_string_lossy()]);
    agent.log().wait_for(&["\terror\t", "write kubeconfig: ", "token"], PATIENCE).unwrap();
    std::fs::write(&token, " \n").unwrap();
    agent
        .wait_unready(&[
            "install: write kubeconfig: ",
            "is empty; does the pod's service account have a token?",
        ])
        .unwrap();
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
    std::fs::write(&token, secret).unwrap();
    agent.wait_ready().unwrap();
    node.entry().unwrap();
}

#[test]
fn a_directory_of_configurations_that_comes_and_goes() {
    let node = Node::new().unwrap();
    std::fs::remove_dir_all(node.net_dir()).unwrap();
    let mut agent = node.agent().start().unwrap();
    only_pending(&agent, "install: ", &["does not exist: waiting for it", &node.net_dir().to_string_lossy()]);
    std::fs::create_dir(node.net_dir()).unwrap();
    std::fs::write(node.conflist(), "{\"name\": \"half").unwrap();
    agent.log().wait_for(&["\twarn\t", "10-calico.conflist", "not JSON"], PATIENCE).unwrap();
    agent.wait_unready(&["no valid networks found in"]).unwrap();
    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    agent.wait_ready().unwrap();
    node.entry().unwrap();

    std::fs::remove_dir_all(node.net_dir()).unwrap();
    only_pending(&agent, "install: ", &["does not exist: waiting for it"]);
    assert_eq!(agent.metric("istio_cni_install_ready").unwrap(), 0.0);
    std::fs::create_dir(node.net_dir()).unwrap();
    std::fs::write(node.conflist(), Node::foreign_conflist()).unwrap();
    agent.wait_ready().unwrap();
    node.entry().unwrap();
}

/// What one call of the plugin's socket says of a pod.
fn knows(node: &Node, name: &str, uid: &str) {
    let path = format!("/v1/facts/default/{name}?uid={uid}");
    eventually("the pod is known", PATIENCE, || {
        let reply = http::ask(&node.agent_socket(), "GET", &path, "")?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_watch_that_sends_garbage() {
    let node = Node::new().unwrap();
    node.sidecar("before", "uid-0");
    let agent = node.start().unwrap();
    let failures = "istio_cni_watch_failures_total{watch=\"pods\"}";
    let faults = [
        (WatchFault::Line("\u{1}garbage".into()), "not understood"),
        (
            WatchFault::Line("{\"type\":\"ADDED\",\"object\":{\"kind\":\"Pod\",\"metadata\":7}}".into()),
            "not understood",
        ),
        (WatchFault::Line("{\"type\":\"MODIFIED\"}".into()), "not understood"),
        (WatchFault::Cut, "watch pods of node n1: "),
        (WatchFault::Reset, "watch pods of node n1: "),
        (WatchFault::Error(500), "500"),
        (WatchFault::Error(410), "everything is listed anew"),
    ];
    for (number, (fault, says)) in faults.into_iter().enumerate() {
        let count = || agent.log().count(&[says, "watch=pods"]);
        let before = count();
        // A watch that begins only now does not meet the fault.
        for _ in 0..20 {
            node.api.disturb_watches(Resource::Pods, fault.clone());
            let met = eventually("the fault", Duration::from_millis(500), || {
                ensure!(count() > before);
                Ok(())
            });
            if met.is_ok() {
                break;
            }
        }
        assert!(count() > before, "{fault:?}: {}", agent.log().text());
        let (name, uid) = (format!("after-{number}"), format!("uid-{number}"));
        node.sidecar(&name, &uid);
        knows(&node, &name, &uid);
        knows(&node, "before", "uid-0");
    }
    assert!(agent.metric(failures).unwrap() >= 5.0);
    assert_eq!(agent.readyz().unwrap().status, 200);
}

/// Before the first list the agent is not ready, and says why.
#[test]
fn an_api_server_that_does_not_list() {
    let node = Node::new().unwrap();
    node.sidecar("web", "uid-1");
    node.api.forbid_everyone();
    let mut agent = node.agent().start().unwrap();
    only_pending(&agent, "cluster: list ", &[": 403 ", "the service account lacks a role"]);
    node.api.check_credentials();
    agent.wait_ready().unwrap();
    knows(&node, "web", "uid-1");
    agent.kill().unwrap();

    let faults = [
        (Fault::Garbage, "list pods of node n1: "),
        (Fault::Html, "not understood"),
        (Fault::Truncated, "list pods of node n1: "),
        (Fault::Body("{\"kind\":\"PodList\",\"metadata\":{},\"items\":[]}".into()), "has no version"),
        (Fault::status(401), ": 401 "),
        (Fault::HtmlStatus(502), ": 502 "),
    ];
    for (fault, says) in faults {
        node.api.fail_path("/api/v1/pods?", 2, fault);
        let mut agent = node.agent().start().unwrap();
        agent.wait_unready(&["cluster: ", says]).unwrap();
        agent.log().wait_for(&["\twarn\t", says], PATIENCE).unwrap();
        agent.wait_ready().unwrap();
        agent.kill().unwrap();
    }
}

/// Right at the start of a node: no namespaces in the API, no answer for a while.
#[test]
fn an_api_server_that_hangs() {
    let node = Node::new().unwrap();
    node.api.set_fault(Some(Fault::Hang));
    let mut agent = node.agent().start().unwrap();
    agent.log().wait_for(&["installed: the plugin is in"], PATIENCE).unwrap();
    agent.wait_unready(&["cluster: has not begun"]).unwrap();
    // Installing waits for nobody.
    node.entry().unwrap();
    let ended = {
        node.api.set_fault(None);
        node.api.restart().unwrap();
        agent.wait_ready().unwrap();
        agent.stop().unwrap()
    };
    assert_eq!(ended.status.code(), Some(0));
}
