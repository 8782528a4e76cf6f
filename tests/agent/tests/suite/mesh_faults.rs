//! Ambient mode when things go wrong: ztunnels misbehave, the API server refuses, pods come and go by the hundred, the backend changes. What a kill
//! leaves is in `mesh_acts`.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::apiserver::{Fault, Resource};
use testkit::mesh::{Mesh, MeshPod};
use testkit::ztunnel::{Answer, Hello, Request, Script};
use testkit::{Agent, PATIENCE, assert_says, at_once, eventually, http};

use crate::mesh::wait_in;

/// The pod is in the mesh all the while, and its ADD has not waited; the annotation comes when the API server takes it.
#[test]
fn patches_that_fail_for_long() {
    let long = Duration::from_secs(std::env::var("FAULT_SECONDS").map_or(3, |text| text.parse().unwrap()));
    let (mesh, agent, ztunnel) = Mesh::served().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    mesh.node.api.fail_path("/status", 1_000_000, Fault::status(500));
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    assert_eq!(mesh.announce(&pod).unwrap().status, 200);
    let running = mesh.running("mesh", "running", &[]).unwrap();
    std::thread::sleep(long);
    assert!(pod.has_rules().unwrap() && running.has_rules().unwrap());
    assert_eq!(ztunnel.workloads().len(), 2);
    assert_eq!((ztunnel.adds(&pod.uid), ztunnel.adds(&running.uid)), (1, 1), "only the patch is repeated");
    assert_eq!(mesh.annotation(&pod), None);
    let tries = mesh.node.api.requests().iter().filter(|request| request.path.contains("/status")).count();
    assert!(tries > 2 && tries < 80, "{tries} tries");
    mesh.node.api.fail_path("/status", 0, Fault::status(500));
    wait_in(&mesh, &pod).unwrap();
    wait_in(&mesh, &running).unwrap();
    let shown = agent.log().text().matches("annotate pod").count();
    assert!(shown < 40, "{shown} lines about it");
}

#[test]
fn ztunnels_that_misbehave() {
    type Misbehaviour = fn() -> Script;
    let cases: [(&str, Misbehaviour, &str); 5] = [
        (
            "never acknowledges",
            || {
                Script::answering(|request| match request {
                    Request::Add { .. } => Answer::Silence,
                    _ => Answer::Ack,
                })
            },
            "ended before the answer",
        ),
        (
            "refuses",
            || {
                Script::answering(|request| match request {
                    Request::Add { .. } => Answer::Nack("failure to start proxy : \"port\" in use\n".into()),
                    _ => Answer::Ack,
                })
            },
            "failure to start proxy",
        ),
        (
            "answers garbage",
            || {
                Script::answering(|request| match request {
                    Request::Add { .. } => Answer::Bytes(vec![0xff; 300]),
                    _ => Answer::Ack,
                })
            },
            "ended before the answer",
        ),
        (
            "hangs up",
            || {
                Script::answering(|request| match request {
                    Request::Add { .. } => Answer::Close,
                    _ => Answer::Ack,
                })
            },
            "ended before the answer",
        ),
        ("floods", || Script::default().hello(Hello::Packets(vec![vec![0x08, 0x01]; 50])), "ztunnel"),
    ];
    at_once(cases, |(name, script, says)| {
        let mesh = Mesh::new().unwrap();
        let _agent = mesh.start().unwrap();
        let bad = mesh.ztunnel_that(script()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let pod = mesh.sandbox("mesh", "web").unwrap();
        mesh.node.api.set_pod(pod.object(&[], false));
        let reply = mesh.announce(&pod).unwrap();
        assert_eq!(reply.status, 500, "{name}");
        assert_says(&reply.body, &["mesh/web", says]);
        assert!(mesh.probes().unwrap().is_empty() && pod.is_clean().unwrap(), "{name}");
        bad.close();
        let good = mesh.ztunnel().unwrap();
        good.wait_snapshot(PATIENCE).unwrap();
        assert_eq!(good.adds(&pod.uid), 0, "{name}: a failed ADD leaves nothing to enrol");
        assert_eq!(mesh.announce(&pod).unwrap().status, 200, "{name}");
        wait_in(&mesh, &pod).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(good.violations(), Vec::<String>::new(), "{name}");
        assert_eq!(mesh.patches(&pod), [Some("enabled".to_owned())], "{name}");
    });
}

#[test]
fn events_that_are_too_large_or_broken() {
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.node.api.set_pod(pod.object(&[], false));
    let reply = mesh.post(&format!("{{\"Netns\":\"{}\"}}", "a".repeat(10 << 20))).unwrap();
    assert_eq!(reply.status, 413);
    assert_says(&reply.body, &["larger than"]);
    for (body, says) in [
        ("{\"PodName\":\"web\"", "JSON"),
        ("{\"PodName\":[\"web\"]}", "PodName is not text"),
        ("{\"IPs\":{}}", "IPs is not a list"),
        ("{\"IPs\":[{\"Address\":{\"IP\":\"fe80::1%eth0\"}}]}", "is not an IP address"),
        ("", "JSON"),
    ] {
        let reply = mesh.post(body).unwrap();
        assert_eq!(reply.status, 400, "{body}");
        assert_says(&reply.body, &[says]);
    }
    assert_eq!(http::ask(&mesh.event_socket(), "POST", "/other", "{}").unwrap().status, 404);
    assert_eq!(agent.metric("istio_cni_plugin_requests_total{response_code=\"400\"}").unwrap(), 5.0);
    assert!(pod.is_clean().unwrap());
}

/// Values of every wrong kind count as absent, with a line for each.
#[test]
fn annotations_that_mean_nothing() {
    let (mesh, agent, _ztunnel) = Mesh::served().unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.run(&pod).unwrap();
    let mut object = pod.object(&[], true);
    object["metadata"]["annotations"] = json!({
        "ambient.istio.io/bypass-inbound-capture": "yes\n-A OUTPUT -j ACCEPT",
        "ambient.istio.io/dns-capture": "\"true\"",
        "istio.io/reroute-virtual-interfaces": "eth0 -j ACCEPT, a\"b,net1,very-long-interface-name",
    });
    mesh.node.api.set_pod(object);
    wait_in(&mesh, &pod).unwrap();
    let rules = pod.netns.run(Command::new("nft").args(["list", "ruleset"])).unwrap();
    assert!(rules.contains("\"net1\"") && rules.contains("15006") && !rules.contains("15053"), "{rules}");
    assert!(!rules.contains("very-long") && !rules.contains("a\"b"), "{rules}");
    let log = agent.log().text();
    for part in ["bypass-inbound-capture", "dns-capture", "reroute-virtual-interfaces"] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
}

/// A class that is said to use the kernel's network stack is like any other, and no other class is.
#[test]
fn a_runtime_class_that_is_said_to_be_fine_is_taken_in() {
    let (mesh, _agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env("KERNEL_NETWORK_RUNTIME_CLASSES", "x, runsc-hostnet")).unwrap();
    for (class, status) in [("runsc-hostnet", 200), ("runsc", 500)] {
        let pod = mesh.sandbox("mesh", class).unwrap();
        let mut object = pod.object(&[], false);
        object["spec"]["runtimeClassName"] = json!(class);
        mesh.node.api.set_pod(object);
        let reply = mesh.announce(&pod).unwrap();
        assert_eq!(reply.status, status, "{class}: {}", reply.body);
        assert_eq!(pod.is_clean().unwrap(), status == 500, "{class}");
    }
}

/// gVisor and Kata: named, told in an Event, and not marked.
#[test]
fn sandboxes_are_reported_by_name() {
    let (mesh, _agent, ztunnel) = Mesh::served().unwrap();
    let by_class = mesh.sandbox("mesh", "class").unwrap();
    let mut object = by_class.object(&[], false);
    object["spec"]["runtimeClassName"] = json!("gvisor");
    mesh.node.api.set_pod(object);
    let reply = mesh.announce(&by_class).unwrap();
    assert_eq!(reply.status, 500);
    assert_says(&reply.body, &["gVisor", "gvisor", "istio.io/dataplane-mode=none"]);
    // By its process: the address is inside.
    let by_process = mesh.sandbox("mesh", "process").unwrap();
    mesh.run(&by_process).unwrap();
    std::fs::write(mesh.root().join(format!("proc/{}/comm", by_process.pid())), "qemu-system-x86\n").unwrap();
    by_process.netns.ip(&[format!("address del {}/32 dev net0", by_process.ip)]).unwrap();
    mesh.node.api.set_pod(by_process.object(&[], true));
    eventually("an Event", PATIENCE, || {
        let events = mesh.node.api.events();
        let told = |event: &serde_json::Value| {
            event["involvedObject"]["name"] == "process"
                && event["message"].as_str().is_some_and(|text| text.contains("Kata Containers"))
        };
        ensure!(events.iter().any(told), "{events:?}");
        Ok(())
    })
    .unwrap();
    for pod in [&by_class, &by_process] {
        assert!(pod.is_clean().unwrap() && mesh.patches(pod).is_empty(), "{}", pod.name);
    }
    assert!(ztunnel.workloads().is_empty());
}

#[test]
fn both_backends_and_the_change_between_them() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    let list = |netns: &testkit::TestNetns| {
        let nft = netns.run(Command::new("nft").args(["list", "tables"])).unwrap();
        let iptables = netns.run(&mut Command::new("iptables-save")).unwrap();
        (nft.contains("istio-ambient"), iptables.contains("ISTIO_"))
    };
    let agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel_that(Script::default().reconnecting()).unwrap();
    wait_in(&mesh, &pod).unwrap();
    assert_eq!((list(&pod.netns), list(&mesh.host)), ((true, false), (true, false)));
    agent.kill().unwrap();
    // Rules of the other backend are replaced in place, in pods and on the node.
    let agent = mesh.agent().env("NATIVE_NFTABLES", "false").ready().unwrap();
    assert_eq!((list(&pod.netns), list(&mesh.host)), ((false, true), (false, true)));
    let sets = mesh.host.run(Command::new("ipset").args(["list", "istio-inpod-probes-v4"])).unwrap();
    assert!(sets.contains(&format!("{} comment \"{}\"", pod.ip, pod.uid)), "{sets}");
    let other = mesh.running("mesh", "other", &[]).unwrap();
    mesh.wait_annotation(&other, Some("enabled")).unwrap();
    agent.kill().unwrap();
    // An agent with iptables ran since the node's start.
    let agent = mesh.agent().env("CLEANUP_ON_EXIT", "always").ready().unwrap();
    assert_says(&agent.log().text(), &["iptables goes on"]);
    assert_eq!(list(&pod.netns), (false, true));
    agent.stop().unwrap();
    for pod in [&pod, &other] {
        assert!(pod.is_clean().unwrap(), "{}", pod.name);
    }
    assert_eq!(list(&mesh.host), (false, false));
    let sets = mesh.host.run(Command::new("ipset").args(["list", "-n"])).unwrap();
    assert_eq!(sets.trim(), "");
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
}

/// Options of the node, seen from outside.
#[test]
fn kubelets_user_and_branch_interfaces_are_in_the_rules() {
    let mesh = Mesh::new().unwrap();
    let mut agent = mesh.agent().env("HOST_PROBE_SENDER", "kubelet").start().unwrap();
    agent.wait_unready(&["ambient: ", "kubelet"]).unwrap();
    let dir = mesh.root().join("proc/77");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("comm"), "kubelet\n").unwrap();
    std::fs::write(dir.join("cmdline"), "/usr/bin/kubelet\0").unwrap();
    std::fs::write(dir.join("status"), "Uid:\t4321\t0\t0\t0\n").unwrap();
    agent.wait_ready().unwrap();
    let rules = mesh.host.run(Command::new("nft").args(["list", "ruleset"])).unwrap();
    assert!(rules.contains("skuid 4321"), "{rules}");
    agent.kill().unwrap();

    mesh.write_early_demux("0").unwrap();
    mesh.host
        .ip(&[
            "link add vlan.eth.1 type veth peer name far",
            "link set vlan.eth.1 up",
            "rule add pref 10 iif vlan.eth.1 lookup 101",
        ])
        .unwrap();
    let pod = mesh.sandbox("mesh", "web").unwrap();
    mesh.run(&pod).unwrap();
    mesh.host.ip(&[format!("route add {}/32 dev vlan.eth.1 table 101", pod.ip)]).unwrap();
    let agent = mesh.start().unwrap();
    let _ztunnel = mesh.ztunnel_that(Script::default().reconnecting()).unwrap();
    mesh.node.api.set_pod(pod.object(&[], true));
    wait_in(&mesh, &pod).unwrap();
    let rules = || mesh.host.run(Command::new("ip").arg("rule")).unwrap();
    assert_says(
        &rules(),
        &[&format!("512:\tfrom all to {} lookup 101", pod.ip), "9:\tfrom all iif vlan.eth.1 lookup local"],
    );
    // The next agent knows them, whether the pod goes while it looks or before it comes.
    eventually("they are on record", PATIENCE, || {
        let file = mesh.node.run_dir().join("ambient").join(format!("{}.json", pod.uid));
        ensure!(std::fs::read_to_string(file)?.contains("vlan.eth.1"));
        Ok(())
    })
    .unwrap();
    agent.kill().unwrap();
    let agent = mesh.start().unwrap();
    mesh.delete(&pod).unwrap();
    let gone = || {
        eventually("the rules are gone", PATIENCE, || {
            ensure!(!rules().contains("512:"), "{}", rules());
            Ok(())
        })
        .unwrap();
    };
    gone();
    let next = mesh.sandbox("mesh", "next").unwrap();
    mesh.run(&next).unwrap();
    mesh.host.ip(&[format!("route add {}/32 dev vlan.eth.1 table 101", next.ip)]).unwrap();
    mesh.node.api.set_pod(next.object(&[], true));
    wait_in(&mesh, &next).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(rules().contains("512:"), "{}", rules());
    agent.kill().unwrap();
    mesh.delete(&next).unwrap();
    let _agent = mesh.start().unwrap();
    gone();
}

#[test]
fn metrics_of_ambient_mode_have_these_names_and_labels() {
    let (mesh, agent, _ztunnel) =
        Mesh::served_by(|agent| agent.env("AMBIENT_VERIFY_INTERVAL", "100ms")).unwrap();
    let pod = mesh.running("mesh", "web", &[]).unwrap();
    wait_in(&mesh, &pod).unwrap();
    pod.netns.nft("delete table inet istio-ambient-nat").unwrap();
    mesh.post("x").unwrap();
    eventually("everything is counted", PATIENCE, || {
        for series in [
            "nodeagent_reconcile_events_total{type=\"add\"}",
            "istio_cni_plugin_requests_total{response_code=\"400\"}",
            "ztunnel_connected",
            "istio_cni_ambient_pods{state=\"enrolled\"}",
            "istio_cni_ambient_enrolment_duration_seconds_count{way=\"running\"}",
            "istio_cni_zds_messages_total{kind=\"add\",result=\"ack\"}",
            "istio_cni_zds_ack_duration_seconds_count{kind=\"add\"}",
            "istio_cni_drift_repaired_total{what=\"pod-rules\"}",
        ] {
            ensure!(agent.metric(series)? > 0.0, "{series}\n{:#?}", agent.metrics()?);
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn sockets_have_their_modes_and_replace_stale_files() {
    use std::os::unix::fs::PermissionsExt;
    let mesh = Mesh::new().unwrap();
    std::fs::create_dir_all(mesh.node.run_dir()).unwrap();
    for path in [mesh.event_socket(), mesh.ztunnel_socket()] {
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    }
    let _agent = mesh.start().unwrap();
    for path in [mesh.event_socket(), mesh.node.log_socket()] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o666, "{}", path.display());
    }
    let ztunnel = mesh.ztunnel().unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
}

/// What an agent has open and runs.
fn weight(agent: &Agent) -> Result<(usize, usize)> {
    let count = |name: &str| {
        Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{}/{name}", agent.pid()))?.count())
    };
    Ok((count("fd")?, count("task")?))
}

/// Half of the pods are deleted and made anew, again and again: no descriptor, element, rule, thread or member is left of those that are gone.
/// `SOAK_SECONDS` and `SOAK_PODS` make it longer and larger.
#[test]
fn pods_come_and_go_and_nothing_is_left_of_them() {
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (long, many) = (Duration::from_secs(number("SOAK_SECONDS", 10)), number("SOAK_PODS", 60) as usize);
    let mesh = Mesh::new().unwrap();
    let agent = mesh.start().unwrap();
    let ztunnel = mesh.ztunnel_that(Script::default().reconnecting()).unwrap();
    ztunnel.wait_snapshot(PATIENCE).unwrap();
    let empty = weight(&agent).unwrap();
    let patience = PATIENCE + Duration::from_millis(100) * u32::try_from(many).unwrap();
    let settle = |pods: &BTreeMap<usize, MeshPod>, what: &str| {
        eventually(what, patience, || {
            let wanted: BTreeMap<String, String> =
                pods.values().map(|pod| (pod.ip.to_string(), pod.uid.clone())).collect();
            let probes = mesh.probes()?;
            ensure!(probes == wanted, "{} addresses, {} pods", probes.len(), wanted.len());
            ensure!(ztunnel.workloads().len() == pods.len(), "{} workloads", ztunnel.workloads().len());
            for pod in pods.values() {
                ensure!(mesh.annotation(pod).as_deref() == Some("enabled"), "pod {} is not marked", pod.name);
            }
            let verified = agent.metric("istio_cni_pods_verified{mode=\"ambient\"}")?;
            ensure!(verified == pods.len() as f64, "{verified} are verified");
            Ok(())
        })
        .unwrap_or_else(|error| {
            panic!("{error:#}\n{}", agent.log().text().lines().rev().take(30).collect::<Vec<_>>().join("\n"))
        });
    };
    let mut pods = BTreeMap::new();
    for n in 0..many {
        pods.insert(n, mesh.running("mesh", &format!("web-{n}"), &[]).unwrap());
    }
    settle(&pods, "all pods are in");
    let full = weight(&agent).unwrap();
    // Of each pod its namespace, and two sockets in it.
    assert!(full.0 <= empty.0 + 3 * many + 8, "{full:?} after {empty:?}");
    let (start, mut seed, mut rounds) = (Instant::now(), 88_172_645_u32, 0);
    while start.elapsed() < long {
        for n in 0..many {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if seed >> 31 == 0 {
                continue;
            }
            if let Some(pod) = pods.remove(&n) {
                mesh.delete(&pod).unwrap();
            }
            pods.insert(n, mesh.running("mesh", &format!("web-{n}"), &[]).unwrap());
        }
        rounds += 1;
        settle(&pods, "all pods are in again");
        // Threads that were lent for work in the kernel, and what they hold open, come down by themselves.
        eventually("the agent weighs as before", patience, || {
            let now = weight(&agent)?;
            ensure!(now.0 <= full.0 + 4 && now.1 <= full.1 + 4, "{now:?} after {full:?} in round {rounds}");
            Ok(())
        })
        .unwrap();
    }
    println!(
        "{many} pods, {rounds} rounds in {:?}: descriptors and threads {empty:?}, {full:?}, {:?}",
        start.elapsed(),
        weight(&agent).unwrap()
    );
    for pod in pods.values() {
        assert!(pod.has_rules().unwrap());
        mesh.delete(pod).unwrap();
    }
    pods.clear();
    settle(&pods, "all pods are out");
    eventually("the agent is as at its start", PATIENCE, || {
        let now = weight(&agent)?;
        ensure!(now.0 <= empty.0 + 4, "{now:?} after {empty:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(ztunnel.violations(), Vec::<String>::new());
    assert_eq!(agent.metric("istio_cni_ambient_pods{state=\"enrolled\"}").unwrap(), 0.0);
    assert!(mesh.node.api.objects(Resource::Pods).is_empty());
}
