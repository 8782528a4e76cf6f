//! How the plugin and its agent are on a node.

use std::fs;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use crate::machine::{CALICO, Machine, PATIENCE};
use crate::{Run, row};

/// A list with the plugin in it, as an agent with these options writes it.
fn with_plugin(machine: &Machine, options: &Value) -> String {
    let mut entry = json!({"type": "istio-cni", "cni_agent_run_dir": machine.path("run")});
    for (key, value) in options.as_object().unwrap() {
        entry[key] = value.clone();
    }
    let plugins = json!([{"type": "bridge"}, entry]);
    json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}).to_string()
}

fn data(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"))
}

/// The text with numbers that differ from run to run made equal.
fn steady(text: &str, pid: u32) -> String {
    let text = text.replace(&format!("pid {pid}"), "pid PID");
    let words = text.split_inclusive(' ').map(|word| match word.trim_end().strip_suffix('s') {
        Some(number) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => "AGE ".to_owned(),
        _ => word.to_owned(),
    });
    words.collect()
}

#[test]
fn a_healthy_node_is_told_row_by_row() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.files.write("net.d/20-bridge.conf", r#"{"name": "old", "type": "bridge"}"#);
    machine.files.write("manifests/shop_web.yaml", crate::WEB);
    let agent = machine.agent(&["--failure-policy=open"]);
    let text = steady(&machine.run("status").ok(), agent.pid());
    // The pod of the manifest runs nowhere; how soon the agent says so of it differs.
    let is_of_the_pod =
        |line: &&str| line.starts_with("Captured  ") || line.starts_with("warning: 1 pod that should be");
    assert!(text.lines().any(|line| line.starts_with("Captured        0 of 1 pod; 1 ")), "{text}");
    let text: String =
        text.lines().filter(|line| !is_of_the_pod(line)).map(|line| format!("{line}\n")).collect();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "\
Configuration   NODE/net.d/10-calico.conflist (chained)
Network         k8s-pod-network: calico, portmap, istio-cni
Options         capture enabled, failure policy open, backend auto, pods from manifests:NODE/manifests, agent in NODE/run
Other file      NODE/net.d/20-bridge.conf: old: bridge
Plugin          NODE/bin/istio-cni {version}, CNI 0.1.0 0.2.0 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0, written AGE ago
Kubeconfig      none
Agent           {version}, pid PID, ready, 1 pod
Ambient         off, or not prepared yet
Sockets         agent.sock listens, log.sock listens
Last known      facts of 0 pods
Uncaptured      0 pods

healthy: the plugin is installed and the agent answers
"
    );
    assert_eq!(text, expected);

    let run = machine.run("status -o json");
    assert_eq!(run.exit, 0, "{run:?}");
    let data = data(&run);
    assert_eq!((&data["healthy"], &data["problems"]), (&json!(true), &json!([])));
    assert_eq!(data["configurations"][0]["mode"], "chained");
    assert_eq!(data["configurations"][0]["options"]["failure_policy"], "open");
    assert_eq!(data["agent"]["pid"], agent.pid());
    assert_eq!(data["plugins"][0]["version"], version);
    assert!(machine.run("status -o yaml").ok().starts_with("healthy: true\n"));

    // another writer puts its own configuration before it; the agent follows, and before that this says what is wrong
    drop(agent);
    machine.files.write("net.d/05-new.conflist", CALICO);
    let run = machine.run("status").fails(1, &["(and 1 more)"]);
    for part in [
        "problem: the runtime uses NODE/net.d/05-new.conflist, and the plugin is in NODE/net.d/10-calico.conflist",
        "problem: get the status from the node agent at NODE/run/agent.sock: no agent answers",
        "unhealthy: 2 problems\n",
    ] {
        assert!(run.stdout.contains(part), "{part:?} is not in {}", run.stdout);
    }
    assert_eq!(row(&run.stdout, "Agent"), "does not answer");
    assert_eq!(row(&run.stdout, "Sockets"), "agent.sock: no process listens, log.sock: no process listens");
}

/// What the agent cannot do is no problem of the node's pods.
#[test]
fn what_the_agent_has_to_tell_is_a_warning() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.files.write("manifests/shop_web.yaml", crate::WEB);
    let agent = machine.agent(&["--monitoring-port=15014", "--listen-address=fe80::1"]);
    let says = "warning: the agent says: port: listen on [fe80::1]:15014: ";
    let says_so = || {
        let text = machine.run("status").ok();
        text.contains(says) && text.ends_with("answers\n")
    };
    let seen = || machine.run("status").ok() + &agent.log().text();
    testkit::until("the warning", PATIENCE, says_so, seen).unwrap();
}

#[test]
fn a_node_without_the_plugin_says_what_to_do() {
    let machine = Machine::new();
    let run = machine.run("status").fails(1, &["no valid network configuration in NODE/net.d", "--net-dir"]);
    assert_eq!(row(&run.stdout, "Configuration"), "none that a runtime uses");
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.run("status").fails(1, &["the plugin is not in NODE/net.d/10-calico.conflist", "(and 2 more)"]);
    // directories that are not there, and one that is none
    fs::remove_dir(machine.path("run")).unwrap();
    fs::remove_dir_all(machine.path("net.d")).unwrap();
    machine.run("status").fails(1, &["no valid network configuration"]);
    machine.files.write("net.d", "");
    let run = machine.run("status -o json").fails(1, &["list NODE/net.d: Not a directory", "--net-dir"]);
    assert!(data(&run)["unreadable"].is_string());
}

/// Options in the configuration, files beside it, and what is said: a problem, or with `false` a warning.
fn findings(machine: &Machine) -> Vec<(&'static str, Value, bool, &'static str)> {
    let manifests = json!({"manifests": machine.path("manifests")});
    vec![
        ("", json!({}), true, "there is no kubeconfig in NODE/run"),
        ("", json!({"cni_agent_run_dir": "/elsewhere"}), true, "looks for the agent in /elsewhere"),
        (
            "",
            json!({"capture": "off"}),
            true,
            "the plugin refuses its options in NODE/net.d/10-net.conflist: capture",
        ),
        ("", json!({"capture": "disabled", "pod_source": manifests}), false, "capture is switched off"),
        (
            "net.d/05-empty.conflist",
            json!({}),
            false,
            "05-empty.conflist is no valid network configuration: not JSON",
        ),
        (
            "net.d/06-first.json",
            json!({}),
            true,
            "pods start without the plugin: NODE/net.d/06-first.json is a network that runtimes load",
        ),
        (
            "uncaptured/4711.json",
            json!({}),
            true,
            "1 pod started without capture and wait to be marked by the agent: shop/web;",
        ),
        ("bin/istio-cni", json!({}), true, "bin/istio-cni does not run: "),
    ]
}

#[test]
fn each_thing_that_is_wrong_is_said() {
    for index in 0..findings(&Machine::new()).len() {
        let machine = Machine::new();
        machine.install_program("bin/istio-cni");
        fs::create_dir(machine.path("run/uncaptured")).unwrap();
        let (file, options, is_problem, expected) = findings(&machine).swap_remove(index);
        machine.files.write("net.d/10-net.conflist", &with_plugin(&machine, &options));
        match file {
            "" => {}
            "uncaptured/4711.json" => {
                machine.files.write("run/uncaptured/4711.json", r#"{"namespace": "shop", "name": "web"}"#);
            }
            "net.d/06-first.json" => {
                machine.files.write(file, r#"{"name": "first", "type": "bridge"}"#);
            }
            file => {
                machine.files.write(file, "");
            }
        }
        let run = machine.run("status -o json");
        let list = if is_problem { "problems" } else { "warnings" };
        let data = data(&run);
        let texts: Vec<&str> = data[list].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(texts.iter().any(|text| text.contains(expected)), "{expected:?} is not in {list}: {run:?}");
        assert_eq!(run.exit, 1);
    }
}

#[test]
fn a_kubeconfig_has_its_server_and_a_warning_when_its_token_may_have_ended() {
    let machine = Machine::new();
    machine.files.write("net.d/10-net.conflist", &with_plugin(&machine, &json!({})));
    let text = "clusters:\n- cluster:\n    server: https://10.96.0.1:443\n";
    let path = machine.files.write("run/istio-cni-kubeconfig", text);
    let kubeconfig = |age: u64| {
        let modified = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        machine.run("status")
    };
    let old = "warning: NODE/run/istio-cni-kubeconfig is older than an hour";
    for (age, shown, is_old) in [(600, "10m", false), (7300, "2h", true)] {
        let run = kubeconfig(age);
        let expected =
            format!("NODE/run/istio-cni-kubeconfig for https://10.96.0.1:443, written {shown} ago");
        assert_eq!(row(&run.stdout, "Kubeconfig"), expected);
        assert_eq!(run.stdout.contains(old), is_old, "{run:?}");
        assert!(!run.stdout.contains("there is no kubeconfig"), "{run:?}");
    }
}

#[test]
fn standalone_and_owned_files_are_recognised() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    let agent = machine.agent(&["--chained-cni-plugin=false"]);
    let text = machine.run("status").ok();
    assert!(
        text.contains("Other file      NODE/net.d/YYY-istio-cni.conf (standalone): istio-cni\n"),
        "{text}"
    );
    assert!(text.contains("warning: NODE/net.d/YYY-istio-cni.conf is standalone"), "{text}");
    assert!(row(&text, "Options").starts_with("capture enabled"), "{text}");
    drop(agent);

    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    let _agent = machine.agent(&["--istio-owned-cni-config=true", "--ambient-enabled=true"]);
    let text = machine.run("status").ok();
    assert_eq!(row(&text, "Configuration"), "NODE/net.d/02-istio-cni.conflist (Istio-owned)");
}

#[test]
fn what_answers_instead_of_the_agent_is_no_agent() {
    let machine = Machine::new();
    machine.install_program("bin/istio-cni");
    machine.files.write("net.d/10-net.conflist", &with_plugin(&machine, &json!({})));
    let socket = machine.path("run/agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // nobody accepts: the question is in the queue, and the answer never comes
    machine.run("status").fails(1, &["(and 1 more)"]);
    drop(listener);
    fs::remove_file(&socket).unwrap();
    fs::create_dir(&socket).unwrap();
    let run = machine.run("status -o json");
    assert_eq!(data(&run)["agent"]["answers"], false);
    assert_eq!(data(&run)["sockets"][0]["listening"], false);
}

#[test]
fn names_that_others_wrote_do_not_steer_the_terminal() {
    let machine = Machine::new();
    machine
        .files
        .write("net.d/10-net.conflist", r#"{"name": "a\u001b[2Jb\nhealthy", "plugins": [{"type": "x"}]}"#);
    let run = machine.run("status");
    assert!(run.stdout.contains("Network         a\\u001b[2Jb\\u000ahealthy: x\n"), "{run:?}");
    fs::remove_file(machine.path("net.d/10-net.conflist")).unwrap();
    machine.files.write("net.d/10-\u{1b}[2J.conflist", r#"{"name": "a", "plugins": [{"type": "x"}]}"#);
    let run = machine.run("status").fails(1, &["the plugin is not in NODE/net.d/10-\\u001b[2J.conflist"]);
    assert!(!format!("{}{}", run.stdout, run.stderr).contains('\u{1b}'), "{run:?}");
}

#[test]
fn wrong_usage_is_told_apart() {
    let machine = Machine::new();
    machine.files.run("status --stats").fails(2, &["give their --conf"]);
    machine.files.run("status --conf @x.conflist --net-dir /x").fails(2, &["cannot be used with"]);
    for place in ["--net-dir=net.d", "--bin-dir=/", "--run-dir=/run/../etc"] {
        machine.files.run(&format!("status {place}")).fails(2, &["give an absolute path"]);
    }
}

/// Somebody who is not root, with the program where that user finds it.
fn as_nobody(machine: &Machine, line: &str) -> Run {
    use std::os::unix::process::CommandExt as _;
    let program = machine.path("cnictl");
    if !program.exists() {
        testkit::copy_program(std::path::Path::new(env!("CARGO_BIN_EXE_cnictl")), &program).unwrap();
        machine.mode("", 0o755);
    }
    let as_root = machine.command(line);
    let mut command = std::process::Command::new(program);
    command.args(as_root.get_args()).uid(65534).gid(65534);
    machine.seen(&command.output().unwrap())
}

/// What that user may not look at is neither missing nor broken.
#[test]
fn what_may_not_be_looked_at_is_said_to_be_so() {
    const HIDDEN: &str = "not looked at: permission denied";
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.files.write("manifests/shop_web.yaml", crate::WEB);
    let _agent = machine.agent(&[]);
    machine.run("status").ok();
    machine.mode("run", 0o750);
    for mode in [0o644, 0o600] {
        machine.mode("net.d/10-calico.conflist", mode);
        let run =
            as_nobody(&machine, "status").fails(4, &[HIDDEN, "NODE/run/agent.sock", "run cnictl as root"]);
        let hidden: &[&str] = match mode {
            0o600 => &["Configuration", "Kubeconfig", "Agent", "Last known", "Uncaptured"],
            _ => &["Kubeconfig", "Agent", "Last known", "Uncaptured"],
        };
        hidden.iter().for_each(|name| assert_eq!(row(&run.stdout, name), HIDDEN, "{mode:o} {name}"));
        assert!(row(&run.stdout, "Sockets").contains("agent.sock not looked at"), "{run:?}");
        assert!(row(&run.stdout, "Plugin").starts_with("NODE/bin/istio-cni 0."), "{run:?}");
        assert!(run.stdout.ends_with(
            "unknown: nothing wrong was seen, and not everything could be looked at; run cnictl as root\n"
        ));
        assert!(!run.stdout.contains("problem:") && !run.stdout.contains("warning:"), "{run:?}");
        let data = data(&as_nobody(&machine, "status -o json"));
        assert_eq!((&data["healthy"], &data["problems"]), (&json!(false), &json!([])));
        let paths = data["not_looked_at"].as_array().unwrap();
        assert_eq!(paths.contains(&json!("NODE/net.d/10-calico.conflist")), mode == 0o600, "{paths:?}");
        for file in ["istio-cni-kubeconfig", "agent.sock", "facts", "uncaptured"] {
            assert!(paths.contains(&json!(format!("NODE/run/{file}"))), "{file} is not in {paths:?}");
        }
    }
    // Directories, and a program that only root may start.
    machine.mode("net.d", 0o700);
    machine.mode("bin/istio-cni", 0o700);
    let run = as_nobody(&machine, "status").fails(4, &["NODE/net.d, NODE/bin/istio-cni"]);
    assert_eq!(row(&run.stdout, "Plugin"), format!("NODE/bin/istio-cni: {HIDDEN}"));
    machine.mode("net.d", 0o755);
    // What is wrong for everybody is.
    fs::remove_file(machine.path("bin/istio-cni")).unwrap();
    let run = as_nobody(&machine, "status").fails(1, &["NODE/bin/istio-cni does not run: "]);
    assert!(run.stdout.ends_with("unhealthy: 1 problem\n"), "{run:?}");
    // root sees the rest as before.
    machine.run("status").fails(1, &["NODE/bin/istio-cni does not run: "]);
}
