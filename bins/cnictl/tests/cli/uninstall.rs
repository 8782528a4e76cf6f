//! The node without the plugin.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use anyhow::ensure;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use testkit::{PATIENCE, TestNetns, eventually};

use crate::machine::{CALICO, Machine, Snapshot};

/// A node on which an agent was until it was killed: nothing is taken away then.
fn installed(agent: &[&str]) -> (Machine, Snapshot) {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    machine.mode("net.d/10-calico.conflist", 0o640);
    std::os::unix::fs::chown(machine.path("net.d/10-calico.conflist"), Some(7), Some(8)).unwrap();
    let before = machine.snapshot("net.d");
    drop(machine.agent(agent));
    fs::create_dir(machine.path("run/facts")).unwrap();
    machine.files.write("run/facts/shop_web.json", "{}");
    machine.files.write("run/istio-cni.log", "a line\n");
    (machine, before)
}

const DONE: &str = "\
NODE/net.d/10-calico.conflist restored
NODE/bin/istio-cni deleted
NODE/run/agent.sock deleted
NODE/run/log.sock deleted
NODE/run/facts deleted
NODE/run/plugin-times.json deleted
NODE/run/agent.lock deleted
";

#[test]
fn everything_goes_and_configurations_are_as_before() {
    let (machine, before) = installed(&[]);
    let during = machine.snapshot("net.d");
    let text = machine.run("uninstall --dry-run").ok();
    assert_eq!(text, DONE.replace('\n', " (dry run)\n"));
    assert_eq!(machine.snapshot("net.d"), during);
    assert!(machine.path("bin/istio-cni").is_file() && machine.path("run/agent.sock").exists());

    assert_eq!(machine.run("uninstall --yes").ok(), DONE);
    assert_eq!(machine.snapshot("net.d"), before);
    assert!(!machine.path("bin/istio-cni").exists());
    assert_eq!(fs::read_to_string(machine.path("run/istio-cni.log")).unwrap(), "a line\n");

    let logs = "NODE/run/istio-cni.log deleted\nNODE/run deleted\n";
    assert_eq!(machine.run("uninstall --dry-run --purge").ok(), logs.replace('\n', " (dry run)\n"));
    assert_eq!(machine.run("uninstall --yes --purge").ok(), logs);
    assert_eq!(machine.run("uninstall --yes --purge").ok(), "nothing of the plugin is on this node\n");
    assert!(!machine.path("run").exists());
}

/// Pods that an ADD has noted while policies were enforced, and nothing of others there.
#[test]
fn rules_of_network_policies_go_from_pods() {
    let (machine, _) = installed(&[]);
    let pod = TestNetns::new().unwrap();
    let others = "add table inet istio-policy-of-others; add table inet theirs";
    pod.nft(others).unwrap();
    let before = pod.nft_text().unwrap();
    let guard = "add table inet istio-policy-mangle; add chain inet istio-policy-mangle istio-np-x; \
                 add chain inet istio-policy-mangle prerouting { type filter hook prerouting priority -160; }; \
                 add rule inet istio-policy-mangle prerouting jump istio-np-x; add rule inet istio-policy-mangle istio-np-x drop";
    pod.nft(guard).unwrap();
    let netns = netns::Netns::open(pod.path()).unwrap();
    let origin = applied::Origin {
        netns: netns.id(),
        pod: "shop/web".into(),
        uid: "5d1f-77".into(),
        interface: "eth0".into(),
        addresses: vec![[10, 9, 0, 7].into()],
    };
    let sandbox = applied::sandbox::Sandbox { origin, path: netns.path().to_owned() };
    applied::policed::write(&machine.path("run"), "c1", "eth0", &sandbox).unwrap();
    let line = "network policies of pod shop/web deleted";
    let text = machine.run("uninstall --dry-run").ok();
    assert!(text.contains(&format!("{line} (dry run)\n")), "{text}");
    assert_ne!(pod.nft_text().unwrap(), before);
    let text = machine.run("uninstall --yes").ok();
    assert!(text.contains(&format!("{line}\n")) && text.contains("NODE/run/policed deleted\n"), "{text}");
    assert_eq!(pod.nft_text().unwrap(), before);
}

/// What says where rules may be stays where a clean-up failed, and the next run goes by it.
#[test]
fn records_of_policies_go_only_where_their_pods_are_clean() {
    let (machine, _) = installed(&[]);
    let (clean, busy) = (TestNetns::new().unwrap(), TestNetns::new().unwrap());
    clean.nft("add table inet istio-policy-mangle").unwrap();
    // A table that a process owns is nobody else's to delete.
    let nft = || Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut owner = busy.enter(|_| nft()).unwrap().unwrap();
    let line = b"add table inet istio-policy-mangle { flags owner; }\n";
    owner.stdin.as_mut().unwrap().write_all(line).unwrap();
    let owner = testkit::Process::new(owner);
    let has_table = || busy.nft_text().unwrap().contains("istio-policy-mangle");
    let wait = |is_there: bool| {
        eventually("the table comes and goes with its owner", PATIENCE, || {
            ensure!(has_table() == is_there, "there: {}", !is_there);
            Ok(())
        })
        .unwrap();
    };
    wait(true);
    for (pod, name) in [(&clean, "clean"), (&busy, "busy")] {
        let netns = netns::Netns::open(pod.path()).unwrap();
        let origin = applied::Origin {
            netns: netns.id(),
            pod: format!("shop/{name}"),
            uid: format!("5d1f-{name}"),
            interface: "eth0".into(),
            addresses: vec![[10, 9, 0, 7].into()],
        };
        let sandbox = applied::sandbox::Sandbox { origin, path: netns.path().to_owned() };
        applied::policed::write(&machine.path("run"), name, "eth0", &sandbox).unwrap();
    }
    machine.run("uninstall --yes").fails(1, &["network policies of pod shop/busy"]);
    assert!(has_table() && !clean.nft_text().unwrap().contains("istio-policy-mangle"));
    let left = applied::policed::all(&machine.path("run")).unwrap();
    assert_eq!(left.iter().map(|left| &*left.origin.pod).collect::<Vec<_>>(), ["shop/busy"]);
    drop(owner);
    wait(false);
    let text = machine.run("uninstall --yes").ok();
    assert!(text.contains("NODE/run/policed deleted\n") && !machine.path("run/policed").exists(), "{text}");
}

/// An agent that holds the node's lock and serves nothing yet installs the plugin again all the same.
#[test]
fn an_agent_that_holds_the_lock_is_named() {
    let (machine, _) = installed(&[]);
    let lock = fs::OpenOptions::new().read(true).write(true).open(machine.path("run/agent.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let holder = r#"{"namespace": "istio-system", "pod": "istio-cni-node-x", "version": "1.2", "pid": 1}"#;
    fs::write(machine.path("run/agent.lock"), holder).unwrap();
    let says = "a node agent (pod istio-system/istio-cni-node-x, version 1.2) works on this node";
    machine.run("uninstall --yes").fails(1, &[says, "nothing was changed"]);
    drop(lock);
    assert_eq!(machine.run("uninstall --yes").ok(), DONE);
}

#[test]
fn what_others_changed_since_is_kept() {
    let (machine, _) = installed(&[]);
    let path = machine.path("net.d/10-calico.conflist");
    let changed = fs::read_to_string(&path).unwrap().replace("1440", "9000");
    fs::write(&path, changed).unwrap();
    let run = machine.run("uninstall --yes -o json");
    let data: Value = serde_json::from_str(&run.ok()).unwrap();
    assert_eq!((&data["ok"], &data["dry_run"], &data["errors"]), (&json!(true), &json!(false), &json!([])));
    assert_eq!(data["steps"][0], json!({"action": "entry-removed", "path": "NODE/net.d/10-calico.conflist"}));
    let left: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(left["plugins"][0]["mtu"], 9000);
    assert_eq!(left["plugins"].as_array().unwrap().len(), 2);
}

/// Options of the agent, options of the uninstallation, the file that goes.
const MODES: &[(&[&str], &str, &str)] = &[
    (&["--chained-cni-plugin=false"], "", "YYY-istio-cni.conf"),
    (&["--chained-cni-plugin=false", "--cni-conf-name=istio"], "--conf-name istio", "istio"),
    (&["--istio-owned-cni-config", "--ambient-enabled"], "", "02-istio-cni.conflist"),
    (
        &["--istio-owned-cni-config", "--ambient-enabled", "--istio-owned-cni-config-filename=01-x.conflist"],
        "--owned-conf-name 01-x.conflist",
        "01-x.conflist",
    ),
];

#[test]
fn files_that_are_ours_alone_go_as_a_whole() {
    for (agent, options, file) in MODES {
        let (machine, before) = installed(agent);
        assert!(machine.path(&format!("net.d/{file}")).is_file(), "{file}");
        let text = machine.run(&format!("uninstall --yes {options}")).ok();
        assert!(text.starts_with(&format!("NODE/net.d/{file} deleted\n")), "{text}");
        assert_eq!(machine.snapshot("net.d"), before, "{file}");
    }
}

#[test]
fn an_agent_that_would_install_again_is_a_reason_to_refuse() {
    let machine = Machine::new();
    machine.files.write("net.d/10-calico.conflist", CALICO);
    let agent = machine.agent(&[]);
    let during = machine.snapshot("net.d");
    let pid = format!("a node agent (pid {})", agent.pid());
    machine
        .run("uninstall --yes")
        .fails(1, &[&pid, "DaemonSet istio-cni-node", "--force", "nothing was changed"]);
    assert_eq!(machine.snapshot("net.d"), during);
    drop(agent);

    // upstream's agent listens elsewhere
    let _upstream = UnixListener::bind(machine.path("run/pluginevent.sock")).unwrap();
    machine.run("uninstall --yes").fails(1, &["a node agent listens on NODE/run/pluginevent.sock"]);
    assert_eq!(machine.snapshot("net.d"), during);
    let text = machine.run("uninstall --yes --force").ok();
    assert!(text.contains("NODE/run/pluginevent.sock deleted\n"), "{text}");
}

#[test]
fn what_cannot_be_done_is_listed_and_the_rest_is_done() {
    let (machine, before) = installed(&[]);
    fs::remove_file(machine.path("bin/istio-cni")).unwrap();
    fs::create_dir(machine.path("bin/istio-cni")).unwrap();
    let run =
        machine.run("uninstall --yes").fails(1, &["not all of the plugin", "remove NODE/bin/istio-cni: "]);
    assert!(run.stdout.contains("10-calico.conflist restored\n"), "{run:?}");
    assert!(run.stdout.contains("NODE/run/facts deleted\n"), "{run:?}");
    assert_eq!(machine.snapshot("net.d"), before);
    let run = machine.run("uninstall --yes -o json").fails(1, &["remove NODE/bin/istio-cni: "]);
    let data: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&data["ok"], data["errors"].as_array().unwrap().len()), (&json!(false), 1));

    let machine = Machine::new();
    fs::remove_dir(machine.path("net.d")).unwrap();
    machine.files.write("net.d", "");
    machine.run("uninstall --yes").fails(1, &["list NODE/net.d: Not a directory"]);
}

/// What is shown, and the exit code, when the terminal's user types `answer`.
fn on_terminal(machine: &Machine, answer: &str) -> (String, i32) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut master = File::from(master);
    master.write_all(answer.as_bytes()).unwrap();
    let mut command = machine.command("uninstall");
    let mut child = command.stdin(terminal).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (text, child.wait().unwrap().code().unwrap())
}

#[test]
fn a_terminal_is_asked_and_without_one_the_answer_has_to_be_given() {
    let (machine, before) = installed(&[]);
    let during = machine.snapshot("net.d");
    let run = machine.run("uninstall").fails(2, &["there is no terminal to ask on: give --yes"]);
    assert_eq!(run.stdout, "");
    for answer in ["n\n", "\n", "\u{4}"] {
        let (text, exit) = on_terminal(&machine, answer);
        assert_eq!(exit, 1, "{text}");
        for part in
            ["10-calico.conflist restored (dry run)", "Go on? [y/N] ", "declined; nothing was changed"]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(machine.snapshot("net.d"), during);
    }
    let (text, exit) = on_terminal(&machine, "y\n");
    assert_eq!(exit, 0, "{text}");
    assert_eq!(machine.snapshot("net.d"), before);
}

#[test]
fn names_that_lead_elsewhere_are_wrong_usage() {
    let machine = Machine::new();
    for option in ["--conf-name ../x", "--owned-conf-name /x", "--conf-name=."] {
        machine.run(&format!("uninstall --yes {option}")).fails(2, &["give the name of a file"]);
    }
}

#[test]
fn the_program_stays_for_pods_that_are_deleted_by_what_libcni_kept_unless_it_is_purged() {
    use base64::Engine as _;
    let (machine, _) = installed(&[]);
    let list = fs::read(machine.path("net.d/10-calico.conflist")).unwrap();
    let config = base64::engine::general_purpose::STANDARD.encode(list);
    fs::create_dir_all(machine.path("cni/results")).unwrap();
    machine.files.write(
        "cni/results/k8s-pod-network-a-eth0",
        &json!({"kind": "cniCacheV1", "config": config, "containerId": "a", "ifName": "eth0"}).to_string(),
    );
    let text = machine.run("uninstall --yes --cache-dir @cni").ok();
    assert!(text.contains("NODE/bin/istio-cni kept: 1 pods were added with it"), "{text}");
    assert!(machine.path("bin/istio-cni").exists() && machine.path("bin/.istio-cni.left-over").exists());

    let run = machine.run("uninstall --dry-run --purge --cache-dir @cni -o json");
    let data: Value = serde_json::from_str(&run.ok()).unwrap();
    let step =
        data["steps"].as_array().unwrap().iter().find(|step| step["path"] == "NODE/bin/istio-cni").unwrap();
    assert_eq!(step["action"], "deleted");
    assert!(step["note"].as_str().unwrap().contains("cannot delete these pods"), "{step}");
    let text = machine.run("uninstall --yes --purge --cache-dir @cni").ok();
    assert!(text.contains("NODE/bin/istio-cni deleted: 1 kept results name it"), "{text}");
    assert_eq!(fs::read_dir(machine.path("bin")).unwrap().count(), 0);
}
