//! `docs/incidents.md`: each command in it is run where the incident has happened, and prints what stands below it.
//!
//! `UPDATE_DOCUMENTS=1` writes it anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testkit::apiserver::Resource;
use testkit::{PATIENCE, PodCall, PodObject, at_once, eventually};

use crate::scene::FaultyNode;
use crate::{installation, pods};

const DOCUMENT: &str = "docs/incidents.md";

/// The heading of an incident, and the node on which it has happened.
type Incident = (&'static str, fn() -> FaultyNode);

const INCIDENTS: [Incident; 6] = [
    ("A pod is outside of the mesh", pods::pod_of_gvisor),
    ("Pods do not start", failing_add),
    ("The CNI configuration was stomped", installation::stomped_conflist),
    ("A policy denies", FaultyNode::prepared),
    ("Two tenants claim a namespace", tenant_conflict),
    ("The ztunnel is gone", pods::no_ztunnel),
];

/// An annotation that means nothing: the plugin refuses the pod, and the runtime tries again.
fn failing_add() -> FaultyNode {
    const ANNOTATION: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let node = FaultyNode::healthy();
    let pod = node.mesh.sandbox("default", "web").unwrap();
    let object =
        PodObject::named("web").uid(&pod.uid).on_node("n1").sidecar().annotation(ANNOTATION, "80,http");
    std::fs::write(node.mesh.node.dir().join("web.yaml"), Value::from(object.clone()).to_string()).unwrap();
    node.mesh.node.api.set_pod(object);
    PodCall::new(&node.mesh.node, "web", &pod.uid, pod.netns.path()).unwrap().refused().unwrap();
    node.with(pod)
}

/// The older one has it.
fn tenant_conflict() -> FaultyNode {
    let node = FaultyNode::prepared();
    let tenant = |name: &str, second: u32| {
        json!({"metadata": {"name": name, "generation": 1, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"namespaces": ["shop"]}})
    };
    node.mesh.node.api.set_namespace("shop", &[]);
    node.mesh.node.api.set_object(Resource::NetworkTenants, tenant("red", 0));
    node.mesh.node.api.set_object(Resource::NetworkTenants, tenant("blue", 1));
    node.ready(|agent| agent.env("POLICY_ENFORCEMENT", "on").env("TENANTS_ENFORCEMENT", "on"))
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What a command of the document prints on this node.
fn printed(node: &FaultyNode, command: &str) -> Result<String> {
    if let Some(reason) = command.strip_prefix("kubectl get events -A --field-selector reason=") {
        return events(node, reason.split(' ').next().unwrap_or_default());
    }
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    let places = matches!(words[0], "doctor" | "status");
    let mut call =
        if places { node.cnictl(&words) } else { Command::new(testkit::programs().join("cnictl")) };
    if !places {
        let file = |word: &&str| match *word {
            "web.yaml" => node.mesh.node.dir().join("web.yaml").display().to_string(),
            word => word.to_owned(),
        };
        call.args(words.iter().map(file));
        if words[0] != "policy" {
            call.arg("--net-dir").arg(node.mesh.node.net_dir());
        }
    }
    let output = call.current_dir(checkout()).output().context("start cnictl")?;
    let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    Ok(steady(node, &text))
}

/// As `kubectl get events` with these columns prints those of the test's API server.
fn events(node: &FaultyNode, reason: &str) -> Result<String> {
    let events = node.mesh.node.api.events();
    let of: Vec<&Value> = events.iter().filter(|event| event["reason"] == reason).collect();
    ensure!(!of.is_empty(), "no event {reason} in {events:#?}");
    let line = |event: &&Value| {
        let (about, text) =
            (&event["involvedObject"], |value: &Value| value.as_str().unwrap_or_default().to_owned());
        format!("{}   {}\n", text(&about["name"]), text(&event["message"]))
    };
    let mut lines: Vec<String> = of.iter().map(line).collect();
    lines.sort();
    Ok(steady(node, &("NAME   MESSAGE\n".to_owned() + &lines.concat())))
}

/// The node's directories by their usual names; numbers that differ from run to run made equal.
fn steady(node: &FaultyNode, text: &str) -> String {
    let of = &node.mesh.node;
    let mut text = text.to_owned();
    for (path, name) in [
        (of.net_dir(), "/etc/cni/net.d"),
        (of.bin_target(), "/opt/cni/bin"),
        (of.run_dir(), "/var/run/istio-cni"),
        (of.dir().join("web.yaml"), "web.yaml"),
    ] {
        text = text.replace(&path.display().to_string(), name);
    }
    text = text.replace(&of.api.address().to_string(), "10.96.0.1:443");
    // Ages and waits.
    let words = text.split_inclusive([' ', '\n']).map(|word| {
        let bare = word.trim_end_matches([' ', '\n', ',']);
        let number = bare.strip_suffix(['s', 'm']);
        match number
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        {
            true => word.replace(bare, "9s"),
            false => word.to_owned(),
        }
    });
    let text: String = words.collect();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A section with what its commands print.
fn with_output(node: &FaultyNode, section: &str) -> Result<String> {
    let (mut lines, mut kept) = (Vec::new(), section.lines().peekable());
    while let Some(line) = kept.next() {
        lines.push(line.to_owned());
        let Some(command) = line.strip_prefix("$ ") else { continue };
        while kept.next_if(|line| !line.starts_with("$ ") && !line.starts_with("```")).is_some() {}
        lines.extend(printed(node, command)?.lines().map(str::to_owned));
    }
    Ok(lines.join("\n") + "\n")
}

#[test]
fn commands_of_each_incident_print_what_stands_below_them() {
    let path = checkout().join(DOCUMENT);
    let document = std::fs::read_to_string(&path).unwrap();
    let update = std::env::var_os("UPDATE_DOCUMENTS").is_some_and(|value| value == "1");
    let sections: Vec<&str> = document.split("\n## ").collect();
    assert_eq!(
        sections.len(),
        INCIDENTS.len() + 1,
        "each section of {DOCUMENT} is an incident that happens here"
    );
    let changed = Mutex::new(document.clone());
    at_once(INCIDENTS, |(heading, happen)| {
        let section = sections.iter().find(|section| section.starts_with(heading));
        let section = section.unwrap_or_else(|| panic!("{DOCUMENT} has no incident {heading}"));
        assert!(section.matches("\n$ ").count() >= 2, "{heading}: two commands at least");
        let node = happen();
        if update {
            // What the agent has to find out by then it has found out.
            std::thread::sleep(PATIENCE / 4);
            let new = with_output(&node, section).unwrap();
            let mut changed = changed.lock().unwrap();
            *changed = changed.replace(section.trim_end(), new.trim_end());
            return;
        }
        eventually(&format!("{heading}: the commands print what stands below them"), PATIENCE, || {
            let printed = with_output(&node, section)?;
            let differs = section.lines().zip(printed.lines()).find(|(kept, printed)| kept != printed);
            ensure!(differs.is_none(), "UPDATE_DOCUMENTS=1 writes it anew: {differs:#?}");
            ensure!(section.trim_end() == printed.trim_end(), "another number of lines: {printed}");
            Ok(())
        })
        .unwrap();
    });
    if update {
        std::fs::write(path, changed.into_inner().unwrap()).unwrap();
    }
}
