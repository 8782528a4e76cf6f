//! Faults of a node, each really injected: `cnictl doctor` names it by the check that is for it, with a hint into `docs/troubleshooting.md`, and the
//! agent says it in the same words where it is the agent's to say. Needs root.
//!
//! A part of the kernel that is built in cannot be taken away here. These faults are shown by doubles where the kernel's answers are read, and where
//! they become words: [`BY_DOUBLES`].

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;
mod incidents;
mod installation;
mod kernel;
mod pods;
mod scene;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testkit::{at_most, eventually};

use scene::FaultyNode;

/// An interval of the agent's checks, and what a loaded machine needs.
const SOON: Duration = Duration::from_secs(20);
/// Nodes at a time.
const AT_ONCE: usize = 10;

/// A fault, and what is said of it.
struct FaultCase {
    /// As people call it.
    name: &'static str,
    inject: fn() -> FaultyNode,
    /// The check of `cnictl doctor` that names it, and a part of its text.
    check: &'static str,
    says: &'static str,
    /// A part of the line that `/readyz?verbose` of the agent has of it; empty where no agent lives, or where it is the tool's to find.
    readyz: &'static str,
    /// Reason of the event that tells of it, and a part of its message.
    event: Option<(&'static str, &'static str)>,
    /// Checks that fail because of it. No other does.
    besides: &'static [&'static str],
}

/// What a dead agent brings.
const WITHOUT_AGENT: &[&str] = &["installation.agent", "installation.sockets"];
/// What an agent brings that is not ready.
const UNREADY: &[&str] = &["installation.agent"];

const FAULTS: &[FaultCase] = &[
    FaultCase {
        name: "nf_tables missing",
        inject: kernel::no_nf_tables,
        check: "kernel.nf_tables",
        says: "the kernel has no nf_tables, and native_nftables asks for nf_tables only",
        readyz: "the kernel has no nf_tables, and NATIVE_NFTABLES=true asks for it",
        event: None,
        besides: &["installation.agent", "modules.needed"],
    },
    FaultCase {
        name: "iptables missing",
        inject: kernel::no_iptables,
        check: "kernel.iptables",
        says: "native_nftables asks for iptables only: cannot find iptables",
        readyz: "",
        event: None,
        besides: &[],
    },
    FaultCase {
        name: "IPv6 off while captured",
        inject: kernel::ipv6_off,
        check: "kernel.ipv6",
        says: "IPv6 is off in the kernel, and ambient mode is to capture it (AMBIENT_IPV6)",
        readyz: "[-]check/kernel failed: IPv6 is off in the kernel, and ambient mode is to capture it",
        event: None,
        besides: &[],
    },
    FaultCase {
        name: "conntrack nearly full",
        inject: kernel::conntrack_nearly_full,
        check: "kernel.conntrack",
        says: "19 of 20 connections are tracked (95 %)",
        readyz: "[-]check/kernel failed: 19 of 20 connections are tracked (95 %)",
        event: None,
        besides: &[],
    },
    FaultCase {
        name: "file limit too low",
        inject: kernel::few_files,
        check: "kernel.nofile",
        says: "the agent may have 512 files open, and needs 4096",
        readyz: "[-]check/kernel failed: the agent may have 512 files open, and needs 4096",
        event: None,
        besides: &[],
    },
    FaultCase {
        name: "conf dir missing",
        inject: installation::no_conf_dir,
        check: "installation.conf-dir",
        says: "net.d is not there",
        readyz: "net.d is not there",
        event: None,
        besides: UNREADY,
    },
    FaultCase {
        name: "conf dir read-only",
        inject: installation::read_only_conf_dir,
        check: "installation.conf-dir",
        says: "net.d is on a read-only file system",
        readyz: "net.d is on a read-only file system",
        event: None,
        besides: &[],
    },
    FaultCase {
        name: "conf dir full",
        inject: installation::full_conf_dir,
        check: "installation.conf-dir",
        says: "less than 1 % of the space of ",
        readyz: "[-]check/config failed: less than 1 % of the space of ",
        event: None,
        besides: &[],
    },
    FaultCase {
        name: "conflist broken",
        inject: installation::broken_conflist,
        check: "installation.conflist",
        says: "10-calico.conflist",
        readyz: "",
        event: None,
        besides: WITHOUT_AGENT,
    },
    FaultCase {
        name: "conflist stomped",
        inject: installation::stomped_conflist,
        check: "installation.conflist",
        says: "istio-cni is not in it: pods start without capture",
        readyz: "",
        event: None,
        besides: WITHOUT_AGENT,
    },
    FaultCase {
        name: "another file sorts first",
        inject: installation::file_that_sorts_first,
        check: "installation.conflist",
        says: "00-other.json is a network that runtimes load",
        readyz: "[-]check/config failed: pods start without the plugin: ",
        event: None,
        besides: UNREADY,
    },
    FaultCase {
        name: "plugin binary truncated",
        inject: installation::truncated_plugin,
        check: "installation.plugin",
        says: "is truncated: its end is not there",
        readyz: "",
        event: None,
        besides: WITHOUT_AGENT,
    },
    FaultCase {
        name: "plugin binary of another version",
        inject: installation::plugin_of_another_version,
        check: "installation.plugin",
        says: "is of version 0.0.1, not ",
        readyz: "",
        event: None,
        besides: WITHOUT_AGENT,
    },
    FaultCase {
        name: "kubeconfig missing",
        inject: installation::no_kubeconfig,
        check: "installation.kubeconfig",
        says: "istio-cni-kubeconfig is not there",
        readyz: "",
        event: None,
        besides: WITHOUT_AGENT,
    },
    FaultCase {
        name: "token expired",
        inject: installation::expired_token,
        check: "installation.kubeconfig",
        says: "has expired ",
        readyz: "[-]check/config failed: the token of ",
        event: None,
        besides: &["cluster.api", "cluster.api-plugin", "installation.notices"],
    },
    FaultCase {
        name: "CA wrong",
        inject: installation::wrong_authority,
        check: "cluster.api-plugin",
        says: "certificate",
        readyz: "",
        event: None,
        besides: &["cluster.api", "installation.notices"],
    },
    FaultCase {
        name: "role missing",
        inject: cluster::no_role,
        check: "cluster.rights",
        says: "403",
        readyz: "403",
        event: None,
        besides: &[],
    },
    FaultCase {
        name: "API away",
        inject: cluster::api_away,
        check: "cluster.api",
        says: "onnection refused",
        readyz: "[-]check/api failed: ",
        event: None,
        besides: &["cluster.api-plugin", "installation.notices"],
    },
    FaultCase {
        name: "API black-holed",
        inject: cluster::api_black_holed,
        check: "cluster.api-plugin",
        says: "timed out",
        readyz: "",
        event: None,
        besides: &["cluster.api", "installation.agent", "installation.notices"],
    },
    FaultCase {
        name: "wrong node name",
        inject: installation::wrong_node_name,
        check: "cluster.node",
        says: "the API server has no node \"elsewhere\"",
        readyz: "node failed: the API server has no node \"elsewhere\"",
        event: None,
        besides: UNREADY,
    },
    FaultCase {
        name: "port taken",
        inject: installation::taken_port,
        check: "host.ports",
        says: "listen on ",
        readyz: "[!]port: listen on ",
        event: Some(("PortTaken", "choose another port with ")),
        besides: &[],
    },
    FaultCase {
        name: "second agent",
        inject: installation::second_agent,
        check: "installation.second-agent",
        says: "another agent waits for this node: pod istio-system/two",
        readyz: "[!]check/config: another agent waits for this node: pod istio-system/two",
        event: Some(("AnotherAgentOnNode", "another agent works on this node: pod istio-system/one")),
        besides: &[],
    },
    FaultCase {
        name: "ztunnel absent",
        inject: pods::no_ztunnel,
        check: "host.ztunnel",
        says: "no ztunnel is connected",
        readyz: "[-]check/ztunnel failed: no ztunnel is connected",
        event: Some(("AmbientEnrollmentFailed", "no ztunnel connection")),
        besides: &["pods.verified", "installation.notices"],
    },
    FaultCase {
        name: "ztunnel refusing",
        inject: pods::refusing_ztunnel,
        check: "pods.verified",
        says: "ztunnel refused: port 15001 is taken",
        readyz: "",
        event: Some(("AmbientEnrollmentFailed", "ztunnel refused: port 15001 is taken")),
        besides: &[],
    },
    FaultCase {
        name: "socket removed",
        inject: installation::no_socket,
        check: "installation.sockets",
        says: "log.sock is not there",
        readyz: "",
        event: None,
        besides: UNREADY,
    },
    FaultCase {
        name: "another mesh's rules in a pod",
        inject: pods::another_meshs_rules,
        check: "pods.conflicts",
        says: "mesh/web: CF-P8 by \"chain PROXY_INIT_",
        readyz: "",
        event: Some(("CaptureConflict", "CF-P8: linkerd captures the pod, too")),
        besides: &["pods.verified"],
    },
    FaultCase {
        name: "host firewall drops the probe source",
        inject: pods::firewall_that_drops_probes,
        check: "meshes.host-rules",
        says: "node: CF-H1 by \"ip saddr 169.254.7.127",
        readyz: "",
        event: Some(("MeshNodeConflict", "ip saddr 169.254.7.127")),
        besides: &[],
    },
    FaultCase {
        name: "pod with a forged mark",
        inject: pods::forged_mark,
        check: "pods.conflicts",
        says: "mesh/web: CF-P6 by ",
        readyz: "",
        event: Some(("CaptureConflict", "gets mark 0x539")),
        besides: &["pods.verified"],
    },
    FaultCase {
        name: "pod of gVisor",
        inject: pods::pod_of_gvisor,
        check: "pods.verified",
        says: "gVisor",
        readyz: "",
        event: Some(("AmbientEnrollmentFailed", "gVisor")),
        besides: &[],
    },
    FaultCase {
        name: "application with the proxy's uid",
        inject: pods::application_as_the_proxys_user,
        check: "pods.conflicts",
        says: "default/web: CF-P17 by ",
        readyz: "",
        event: Some(("CaptureIncomplete", "1337")),
        besides: &["pods.verified"],
    },
    FaultCase {
        name: "pod asked for injection without proxy",
        inject: pods::pod_without_injection,
        check: "pods.injection",
        says: "default/web (label sidecar.istio.io/inject=true asks for a proxy and it has none",
        readyz: "",
        event: None,
        besides: &[],
    },
];

/// Faults by doubles: the fault, the function of its test, and the source of that file.
const BY_DOUBLES: &[(&str, &str, &str)] = &[
    (
        "nat module missing",
        "a_missing_backend_is_named_where_it_is_needed",
        include_str!("../../../../crates/doctor/src/kernel_parts/tests.rs"),
    ),
    (
        "tproxy module missing",
        "a_missing_part_is_a_module_or_not_there",
        include_str!("../../../../crates/doctor/src/kernel_parts/modules.rs"),
    ),
];

fn judge(case: &FaultCase) -> Result<()> {
    let node = (case.inject)();
    if !case.readyz.is_empty() {
        let agent = &node.agents[0];
        eventually("the agent says it", SOON, || {
            let body = agent.health("/readyz?verbose")?.body;
            ensure!(body.contains(case.readyz), "{:?} is not in {body}\n{}", case.readyz, agent.log().text());
            Ok(())
        })?;
    }
    eventually("cnictl doctor names it", SOON, || {
        let wrong = node.wrong()?;
        let named = wrong.iter().filter(|(id, text)| id == case.check && text.contains(case.says)).count();
        ensure!(named == 1, "{}, {:?}: {wrong:#?}", case.check, case.says);
        let others: Vec<_> =
            wrong.iter().filter(|(id, _)| id != case.check && !case.besides.contains(&id.as_str())).collect();
        ensure!(others.is_empty(), "besides: {others:#?}");
        Ok(())
    })?;
    let Some((reason, part)) = case.event else { return Ok(()) };
    eventually("an event tells it", SOON, || {
        let events = node.mesh.node.api.events();
        let tells = |event: &&serde_json::Value| {
            event["reason"] == reason && event["message"].as_str().is_some_and(|text| text.contains(part))
        };
        ensure!(events.iter().any(|event| tells(&event)), "{reason} {part:?} is not in {events:#?}");
        Ok(())
    })
}

#[test]
fn each_fault_is_named_by_its_check_and_by_no_other() {
    let begun = Instant::now();
    let only = std::env::var("FAULT").ok();
    let wanted: Vec<_> =
        FAULTS.iter().filter(|case| only.as_ref().is_none_or(|only| case.name == only)).collect();
    assert!(!wanted.is_empty(), "no fault is called {only:?}");
    let (count, failures) = (wanted.len(), Mutex::new(Vec::new()));
    at_most(AT_ONCE, wanted, |case| {
        let began = Instant::now();
        let result = std::panic::catch_unwind(|| judge(case));
        println!("{}: {:.1} s", case.name, began.elapsed().as_secs_f64());
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failures.lock().unwrap().push(format!("{}: {error:#}", case.name)),
            Err(_) => failures.lock().unwrap().push(format!("{}: a panic, above", case.name)),
        }
    });
    let failures = failures.into_inner().unwrap();
    println!("{count} faults in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn a_node_without_a_fault_is_well() {
    FaultyNode::healthy().wait_well();
    FaultyNode::served().wait_well();
}

#[test]
fn faults_by_doubles_have_their_tests() {
    for (name, function, source) in BY_DOUBLES {
        let is_it = |(mark, line): (&str, &str)| {
            mark.trim() == "#[test]" && line.trim().starts_with(&format!("fn {function}()"))
        };
        assert!(source.lines().zip(source.lines().skip(1)).any(is_it), "{name}: {function}");
    }
}
