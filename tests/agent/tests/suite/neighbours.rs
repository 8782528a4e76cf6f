//! What else is on the node: another agent, whoever has a port of ours, and a node of another name.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::apiserver::{Fault, Resource};
use testkit::mesh::Mesh;
use testkit::{Agent, Launch, Node, PATIENCE, PodObject, at_once, eventually, http};

use crate::mesh::wait_in;

/// An agent in a pod of its own, which the API knows.
fn in_pod<'a>(node: &'a Node, name: &str, ports: [&str; 2]) -> Launch<'a> {
    let namespace = "istio-system";
    let pod = PodObject::named(name).in_namespace(namespace).uid(&format!("uid-of-{name}"));
    node.api.set_pod(pod.on_node("n1").container("install-cni"));
    let launch = node.agent().env("POD_NAME", name).env("POD_NAMESPACE", namespace);
    launch.env("HEALTH_PORT", ports[0]).env("MONITORING_PORT", ports[1])
}

const FIRST: [&str; 2] = ["8000", "15014"];
const SECOND: [&str; 2] = ["8001", "15015"];

/// Reason and message of the Events about a pod, by its uid: `kubectl describe` shows no others.
fn events(node: &Node, pod: &str) -> Vec<(String, String)> {
    let uid = json!(format!("uid-of-{pod}"));
    let events = node.api.events().into_iter().filter(|event| event["involvedObject"]["uid"] == uid);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events.map(|event| (text(&event["reason"]), text(&event["message"]))).collect()
}

fn wait_event(node: &Node, pod: &str, reason: &str, parts: &[&str]) -> String {
    eventually("an event", PATIENCE, || {
        let events = events(node, pod);
        let fits = |(of, message): &&(String, String)| {
            of == reason && parts.iter().all(|part| message.contains(part))
        };
        let found = events.iter().find(fits).map(|(_, message)| message.clone());
        found.ok_or_else(|| anyhow::anyhow!("{reason} {parts:?} is not in {events:?}"))
    })
    .unwrap()
}

/// Everything of ours on the node, with what tells one file from another.
fn state(node: &Node) -> Result<Vec<(String, u64, Vec<u8>)>> {
    let mut files = vec![node.conflist(), node.plugin(), node.kubeconfig()];
    files.extend([node.agent_socket(), node.log_socket()]);
    let state = files.into_iter().map(|path| {
        let metadata = std::fs::symlink_metadata(&path)?;
        let content = if metadata.is_file() { std::fs::read(&path)? } else { Vec::new() };
        Ok((path.to_string_lossy().into_owned(), metadata.ino(), content))
    });
    state.collect()
}

fn answers(node: &Node, agent: &Agent) -> Result<()> {
    let reply = http::ask(&node.agent_socket(), "GET", "/v1/status", "")?;
    ensure!(reply.body.contains(&format!("\"pid\":{},", agent.pid())), "{reply:?}");
    Ok(())
}

#[test]
fn the_second_agent_says_who_is_there_and_touches_nothing() {
    let node = Node::new().unwrap();
    let first = in_pod(&node, "one", FIRST).ready().unwrap();
    let before = state(&node).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        // Such an end would clean up, if this agent were the one.
        let second = in_pod(&node, "two", SECOND).env("CLEANUP_ON_EXIT", "always").start().unwrap();
        let says = "another agent works on this node: pod istio-system/one, version ";
        second.wait_unready(&["node lock: ", says, "Remove one of the two DaemonSets"]).unwrap();
        second.log().wait_for(&["\terror\t", says], PATIENCE).unwrap();
        wait_event(&node, "two", "AnotherAgentOnNode", &[says]);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(second.log().count(&[says]), 1, "{}", second.log().text());
        let ended = second.end(signal).unwrap();
        assert!(ended.took < Duration::from_secs(2), "{:?}", ended.took);
        assert_eq!(state(&node).unwrap(), before, "{}", ended.log.text());
        answers(&node, &first).unwrap();
    }
    assert!(events(&node, "one").is_empty(), "the first has nothing to say");
    // Its own end takes everything, as nobody waits.
    first.stop().unwrap();
    assert!(!node.plugin().exists() && !node.run_dir().join("agent.lock").exists());
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
}

/// However the first ends: it leaves everything in place for the second, which begins at once.
#[test]
fn the_second_agent_takes_over_from_the_first() {
    at_once([Signal::TERM, Signal::KILL], |signal| {
        let node = Node::new().unwrap();
        let first = in_pod(&node, "one", FIRST).env("CLEANUP_ON_EXIT", "always").ready().unwrap();
        let mut second = in_pod(&node, "two", SECOND).env("CLEANUP_ON_EXIT", "always").start().unwrap();
        second.log().wait_for(&["another agent works on this node: pod istio-system/one"], PATIENCE).unwrap();
        let (plugin, entry) = (std::fs::metadata(node.plugin()).unwrap().ino(), node.entry().unwrap());
        let ended = first.end(signal).unwrap();
        let free = Instant::now();
        second.wait_ready().unwrap();
        println!("{signal:?}: ready {:?} after the end of the first", free.elapsed());
        assert!(free.elapsed() < Duration::from_secs(2), "{:?}", free.elapsed());
        answers(&node, &second).unwrap();
        if signal == Signal::TERM {
            let says = "leaving the plugin on this node: another agent waits: pod istio-system/two";
            assert!(ended.log.text().contains(says), "{}", ended.log.text());
        }
        let there = (std::fs::metadata(node.plugin()).unwrap().ino(), node.entry().unwrap());
        assert_eq!(there, (plugin, entry), "nothing was removed and written anew");
        second.log().wait_for(&["the other agent has ended; this one begins"], PATIENCE).unwrap();
        second.stop().unwrap();
        assert!(!node.plugin().exists() && !node.agent_socket().exists(), "the last one cleans up");
    });
}

/// Both DaemonSets are removed at once: somebody has to clean up.
#[test]
fn two_agents_that_end_together_leave_nothing() {
    let node = Node::new().unwrap();
    let first = in_pod(&node, "one", FIRST).env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    let second = in_pod(&node, "two", SECOND).env("CLEANUP_ON_EXIT", "always").start().unwrap();
    second.wait_unready(&["node lock: "]).unwrap();
    first.signal(Signal::TERM).unwrap();
    second.signal(Signal::TERM).unwrap();
    second.ended_by_itself().unwrap();
    let log = first.ended_by_itself().unwrap().log;
    assert!(!node.plugin().exists(), "{}", log.text());
    assert_eq!(std::fs::read_to_string(node.conflist()).unwrap(), Node::foreign_conflist());
}

/// Agents that follow each other, as in a rolling update, wait for nothing and say nothing.
#[test]
fn an_update_waits_no_longer_than_the_agent_before_takes_to_end() {
    let node = Node::new().unwrap();
    let mut before: Option<Agent> = None;
    for round in 0..4 {
        let signal = if round % 2 == 0 { Signal::TERM } else { Signal::KILL };
        if let Some(agent) = before.take() {
            agent.end(signal).unwrap();
        }
        let start = Instant::now();
        let agent = in_pod(&node, "one", FIRST).env("CLEANUP_ON_EXIT", "never").ready().unwrap();
        println!("ready in {:?}", start.elapsed());
        assert_eq!(agent.log().count(&["another agent"]), 0, "{}", agent.log().text());
        before = Some(agent);
    }
    assert!(events(&node, "one").is_empty());
}

/// The original's agent comes second: it takes the path, and holds no lock.
#[test]
fn an_agent_without_a_lock_that_takes_the_socket_is_told_of_and_not_fought() {
    let node = Node::new().unwrap();
    let mut agent = in_pod(&node, "one", FIRST).ready().unwrap();
    let path = node.log_socket();
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let says = "another agent has put its own socket at ";
    let body = agent.wait_unready(&["log socket: ", says, "when the other one has ended"]).unwrap();
    assert!(!body.contains("  "), "{body}");
    wait_event(&node, "one", "AnotherAgentOnNode", &[says, "log.sock"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode, "the path was taken back");
    assert_eq!(agent.log().count(&[says]), 1);
    // It ends and leaves its socket behind.
    drop(other);
    agent.wait_ready().unwrap();
    assert!(http::connect(&path).is_ok() && std::fs::metadata(&path).unwrap().ino() != inode);
}

#[test]
fn a_port_that_is_taken_is_told_once_with_who_has_it() {
    let node = Node::new().unwrap();
    let first = in_pod(&node, "one", FIRST).ready().unwrap();
    let elsewhere = node.dir().join("other");
    let second = in_pod(&node, "two", FIRST).env("CNI_AGENT_RUN_DIR", &elsewhere.to_string_lossy());
    let second = second.env("CLEANUP_ON_EXIT", "never").start().unwrap();
    let has = format!("process {} (install-cni) has the port", first.pid());
    for (port, option) in [(":8000: ", "health-port"), (":15014: ", "monitoring-port")] {
        let parts = ["listen on ", port, &has, "choose another port with ", option];
        second.log().wait_for(&[&["\terror\t"], &parts[..]].concat(), PATIENCE).unwrap();
        wait_event(&node, "two", "PortTaken", &parts);
    }
    let status = || -> Result<Value> {
        let reply = http::ask(&elsewhere.join("agent.sock"), "GET", "/v1/status", "")?;
        Ok(serde_json::from_str(&reply.body)?)
    };
    let status = eventually("it works without", PATIENCE, || {
        let status = status()?;
        ensure!(status["ready"] == true, "{status}");
        Ok(status)
    })
    .unwrap();
    let notice = status["notices"][0].as_str().unwrap();
    assert!(
        notice.starts_with("port: listen on ") && notice.contains(":8000") && notice.contains(":15014"),
        "{notice}"
    );
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(second.log().count(&["listen on "]), 2, "each once:\n{}", second.log().text());
    assert_eq!(events(&node, "two").len(), 1, "one of a reason, which says the last");
    first.kill().unwrap();
    eventually("it gets the ports", Duration::from_secs(5), || {
        ensure!(second.health("/readyz?verbose")?.body.starts_with("[+]"));
        second.metrics()
    })
    .unwrap();
    second.log().wait_for(&["info", "the port is free now", ":8000"], PATIENCE).unwrap();
    second.log().wait_for(&["info", "the port is free now", ":15014"], PATIENCE).unwrap();
    let verbose = second.health("/readyz?verbose").unwrap().body;
    assert!(!verbose.contains("[!]"), "{verbose}");
}

/// One of the ports, by a process that nobody can see: the health port says so.
#[test]
fn the_health_port_tells_of_the_other_one() {
    let node = Node::new().unwrap();
    let first = node.agent().env("HEALTH_PORT", "8002").env("MONITORING_PORT", "15016").ready().unwrap();
    let taken = first.metrics_address().port().to_string();
    let other = node.dir().join("other");
    let launch = node.agent().env("MONITORING_PORT", &taken).env("CLEANUP_ON_EXIT", "never");
    let second = launch.env("CNI_AGENT_RUN_DIR", &other.to_string_lossy()).ready().unwrap();
    // No reason of its own to be unready. What the first agent does on the node may have it checked again for a moment.
    eventually("it is told by an agent that is ready", PATIENCE, || {
        let reply = second.health("/readyz?verbose")?;
        let is_told = reply.body.contains("[!]port: listen on ") && reply.body.contains(":15016: ");
        ensure!(reply.status == 200 && is_told, "{reply:?}");
        let plain = second.readyz()?.body;
        ensure!(plain == "ok\n", "{plain}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_name_that_no_node_has_is_a_reason_until_there_is_one() {
    let node = Node::new().unwrap();
    let mut agent = node.agent().env("NODE_NAME", "n2").start().unwrap();
    let says = "the API server has no node \"n2\"";
    agent.wait_unready(&["node: ", says, "correct NODE_NAME"]).unwrap();
    agent.log().wait_for(&["\terror\t", says], PATIENCE).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(agent.log().count(&[says]), 1);
    node.api.set_object(Resource::Nodes, json!({"metadata": {"name": "n2"}}));
    agent.wait_ready().unwrap();
    agent.log().wait_for(&["info", "the API server knows this node now"], PATIENCE).unwrap();
}

/// Whether the name is right is not known then.
#[test]
fn an_api_server_that_may_not_be_asked_says_nothing_about_the_name() {
    at_once(
        [Fault::status(403), Fault::status(401), Fault::status(500), Fault::Reset, Fault::Hang],
        |fault| {
            let node = Node::new().unwrap();
            node.api.fail_path("/nodes/", usize::MAX, fault.clone());
            let agent = node.agent().ready().unwrap();
            assert_eq!(agent.log().count(&["no node"]), 0, "{fault:?}: {}", agent.log().text());
            let asked =
                || node.api.requests().iter().filter(|request| request.path.contains("/nodes/")).count();
            let before = asked();
            std::thread::sleep(Duration::from_millis(1200));
            // Also after a 403: roles may come late.
            assert!(asked() > before, "{fault:?}: {before} then {}", asked());
        },
    );
}

/// After an agent that could not clean up: the node's own namespace gets rid of the table and the sets, whoever else has tables there, and pods keep
/// what they have.
#[test]
fn cnictl_takes_ambient_mode_off_the_nodes_own_network() {
    let parts = [
        ("true", &["nf_tables table inet istio-ambient-nat"][..]),
        (
            "false",
            &[
                "iptables chain istio-postrouting of table nat",
                "ipsets istio-inpod-probes-v4, istio-inpod-probes-v6",
            ],
        ),
    ];
    for (native, parts) in parts {
        let mesh = Mesh::new().unwrap();
        let nft = "add table ip mine; add chain ip mine c; add rule ip mine c counter";
        mesh.host.run(Command::new("nft").arg(nft)).unwrap();
        mesh.host
            .run(Command::new("iptables-legacy").args(["-t", "nat", "-A", "POSTROUTING", "-j", "RETURN"]))
            .unwrap();
        let cnictl = |words: &str| {
            let dir =
                |flag: &str, path: std::path::PathBuf| [flag.to_owned(), path.to_string_lossy().into_owned()];
            let mut command = Command::new(testkit::programs().join("cnictl"));
            command.args(words.split(' ')).args(dir("--net-dir", mesh.node.net_dir()));
            command
                .args(dir("--bin-dir", mesh.node.bin_target()))
                .args(dir("--run-dir", mesh.node.run_dir()));
            mesh.host.output(&mut command).unwrap()
        };
        let agent = mesh.agent().env("NATIVE_NFTABLES", native).ready().unwrap();
        let _ztunnel = mesh.ztunnel().unwrap();
        let pod = mesh.running("mesh", "web", &[]).unwrap();
        wait_in(&mesh, &pod).unwrap();
        agent.kill().unwrap();
        let text = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
        let dry = cnictl("uninstall --dry-run");
        for part in parts {
            assert!(text(&dry).contains(&format!("{part} deleted (dry run)\n")), "{part}: {dry:?}");
        }
        let kept = "/ambient kept: rules of ambient mode stay in the network namespaces of its pods (1)";
        assert!(text(&dry).contains(kept), "{dry:?}");
        assert!(!mesh.probes().unwrap().is_empty(), "nothing is done yet");
        let done = cnictl("uninstall --yes");
        assert!(done.status.success(), "{done:?}");
        assert_eq!(text(&dry).replace(" (dry run)", ""), text(&done), "what was said is done");
        let rules = ["nft list ruleset", "iptables-save", "iptables-legacy-save", "ipset list"].map(|line| {
            let mut words = line.split(' ');
            mesh.host.run(Command::new(words.next().unwrap()).args(words)).unwrap()
        });
        assert!(rules.iter().all(|rules| !rules.contains("istio")), "{rules:?}");
        assert!(
            rules[0].contains("table ip mine") && rules[2].contains("-A POSTROUTING -j RETURN"),
            "{rules:?}"
        );
        assert!(pod.has_rules().unwrap());
        let again = cnictl("uninstall --yes");
        assert!(!text(&again).contains("table") && !text(&again).contains("ipset"), "{again:?}");
    }
}
