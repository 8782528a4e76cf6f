//! What `cnictl doctor` finds on a node, by faults that are injected.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};
use testkit::at_once;

use crate::machine::{CALICO, Machine};
use crate::schema::assert_described;

/// Sections whose result depends on the node of the test and not on the machine that it runs on.
const SECTIONS: &str = "--section installation --section pods --section meshes";

fn healthy() -> (Machine, testkit::Agent) {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    fs::create_dir_all(machine.path("manifests")).unwrap();
    let agent = machine.agent(&["--health-config-interval=1s"]);
    (machine, agent)
}

/// What is wrong, by id, and the exit code.
fn wrong(machine: &Machine) -> (Vec<(String, String)>, i32) {
    let run = machine.run(&format!("doctor -o json {SECTIONS}"));
    let report: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    assert_described(&report);
    let of = |item: &Value, name: &str| item[name].as_str().unwrap_or_default().to_owned();
    let items = report["items"].as_array().unwrap().iter();
    let items = items.filter(|item| item["state"] == "failed" || item["state"] == "warning");
    let wrong = items.map(|item| {
        assert!(of(item, "more").starts_with("docs/troubleshooting.md#"), "{item}");
        (of(item, "id"), of(item, "text"))
    });
    (wrong.collect(), run.exit)
}

/// A fault of a node that is healthy, without its agent where that would heal it.
type Inject = fn(&Machine);

#[test]
fn a_healthy_node_is_all_right_and_a_fault_is_named_also_in_one_line() {
    let (machine, agent) = healthy();
    assert_eq!(wrong(&machine), (Vec::new(), 0));
    let short = machine.run(&format!("doctor -o short {SECTIONS}"));
    assert!(
        short.exit == 0 && short.stdout.starts_with("√ ok: ") && short.stdout.lines().count() == 1,
        "{short:?}"
    );
    let table = machine.run(&format!("doctor --explain-checks {SECTIONS}"));
    for part in [
        "installation\n",
        "  √ conflist: runtimes use NODE/net.d/10-calico.conflist",
        "looks at ",
        "healthy: 0 failed",
    ] {
        assert!(table.stdout.contains(part), "{part:?}: {table:?}");
    }
    drop((machine, agent));

    let faults: [(&str, Inject, &str, &str); 4] = [
        (
            "another file sorts first",
            |m| drop(m.files.write("net.d/05-new.conflist", CALICO)),
            "installation.conflist",
            "05-new.conflist",
        ),
        (
            "run dir missing",
            |m| fs::remove_dir_all(m.path("run")).unwrap(),
            "installation.run-dir",
            "is not there",
        ),
        (
            "plugin gone",
            |m| fs::remove_file(m.path("bin/istio-cni")).unwrap(),
            "installation.plugin",
            "is not there",
        ),
        ("agent gone", |_| {}, "installation.agent", "no agent answers"),
    ];
    at_once(faults, |(name, inject, id, part)| {
        let (machine, agent) = healthy();
        // Killed, so that it heals nothing and leaves everything.
        agent.kill().unwrap();
        inject(&machine);
        let (wrong, exit) = wrong(&machine);
        assert!(wrong.iter().any(|(of, text)| of == id && text.contains(part)), "{name}: {wrong:?}");
        assert_eq!(exit, 1, "{name}");
        // Besides it only what the death of the agent brings.
        let of_agent = ["installation.agent", "installation.sockets"];
        let others = wrong.iter().filter(|(of, _)| of != id && !of_agent.contains(&of.as_str()));
        assert_eq!(others.count(), 0, "{name}: {wrong:?}");
        let short = machine.run(&format!("doctor -o short {SECTIONS}"));
        assert!(short.exit == 1 && short.stdout.starts_with("× failed installation."), "{short:?}");
    });
}

/// Another process has the agent's port; the same words as in `/readyz?verbose`.
#[test]
fn a_port_that_is_taken_is_named_as_the_agent_names_it() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    fs::create_dir_all(machine.path("manifests")).unwrap();
    let agent = machine.agent(&["--monitoring-port=15014", "--listen-address=fe80::1"]);
    let run = testkit::eventually("the port", crate::machine::PATIENCE, || {
        let run = machine.run("doctor --section host -o json");
        anyhow::ensure!(run.stdout.contains("listen on [fe80::1]:15014"), "{run:?}");
        Ok(run)
    });
    let report: Value = serde_json::from_str(&run.unwrap().stdout).unwrap();
    let ports = report["items"].as_array().unwrap().iter().find(|item| item["id"] == "host.ports").unwrap();
    assert_eq!(ports["state"], json!("failed"));
    drop(agent);
}

/// The whole of it, on the machine of the test: within its time, and nothing is left.
#[test]
fn all_sections_end_in_time_and_leave_nothing() {
    let (machine, _agent) = healthy();
    let before =
        (machine.snapshot("net.d"), fs::read_to_string("/proc/self/mounts").unwrap().lines().count());
    let begun = Instant::now();
    let run = machine.run("doctor -o json");
    let taken = begun.elapsed();
    assert!(taken.as_secs_f64() < 5.0, "{taken:?}");
    println!("doctor: {taken:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    for item in report["items"].as_array().unwrap() {
        assert!(item["state"] != "ok" || item["text"] != "", "{item}");
    }
    let kernel =
        report["items"].as_array().unwrap().iter().find(|item| item["id"] == "kernel.nf_tables").unwrap();
    assert_eq!(kernel["state"], json!("ok"), "{kernel}");
    let after = (machine.snapshot("net.d"), fs::read_to_string("/proc/self/mounts").unwrap().lines().count());
    assert_eq!(before, after);
    let pre = machine.run("doctor --pre -o json");
    assert!(!pre.stdout.contains("installation.agent") && pre.stdout.contains("kernel.nf_tables"), "{pre:?}");
    machine.run("doctor --section nonsense").fails(2, &["not one of kernel, modules"]);
}

/// The levels of the agent's log, while it runs.
#[test]
fn the_levels_of_the_log_change_while_the_agent_runs() {
    let (machine, agent) = healthy();
    let level =
        |line: &str| machine.files.command(&format!("log level {line} --run-dir @run")).output().unwrap();
    let levels = |line: &str| String::from_utf8(level(line).stdout).unwrap();
    assert!(levels("").contains("cni-agent   info\n"), "{}", levels(""));
    assert!(levels("cni-agent:debug").contains("cni-agent   debug\n"));
    assert!(levels("reset").contains("cni-agent   info\n"));
    assert_eq!(level("cni-agent:loud").status.code(), Some(2));
    let unknown = level("cni-agnet:debug");
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        unknown.status.code() == Some(1) && said.contains("there is no scope cni-agnet; scopes "),
        "{said}"
    );
    assert!(levels("").contains("cni-agent   info\n"), "nothing is changed");
    agent.kill().unwrap();
    assert_eq!(level("").status.code(), Some(1));
}
