//! Changes on the node are seen and put right.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use crate::support::{CALICO, Node, Running, names, plugin};

/// The state is back within two seconds, and readiness went 1, 0, 1.
fn heals(node: &Node, running: &Running, what: &str, is_healed: impl Fn() -> bool) {
    let start = Instant::now();
    running.until(what, || is_healed() && running.told.is_ready());
    assert!(start.elapsed() < Duration::from_secs(2), "{what}: {:?}", start.elapsed());
    assert_eq!(names(&node.path("bin")), ["istio-cni"]);
}

#[test]
fn what_is_removed_or_rotated_is_back_within_two_seconds() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    let kubeconfig = node.path("run/istio-cni-kubeconfig");

    node.replace("10-calico.conflist", CALICO);
    heals(&node, &running, "entry", || node.has_entry("10-calico.conflist"));
    running.until_told("OVERWRITTEN by calico");
    fs::remove_file(node.path("bin/istio-cni")).unwrap();
    heals(&node, &running, "program", || node.path("bin/istio-cni").exists());
    fs::write(node.path("bin/istio-cni"), "garbage").unwrap();
    let is_plugin = || fs::read_to_string(node.path("bin/istio-cni")).is_ok_and(|text| text == plugin("one"));
    heals(&node, &running, "program", is_plugin);
    fs::remove_file(&kubeconfig).unwrap();
    heals(&node, &running, "kubeconfig", || kubeconfig.exists());
    // as kubelet rotates: a new folder, and the link to it exchanged
    rotate(&node, "second");
    heals(&node, &running, "token", || fs::read_to_string(&kubeconfig).unwrap().contains("e30.second"));
    rotate(&node, "third");
    heals(&node, &running, "token", || fs::read_to_string(&kubeconfig).unwrap().contains("e30.third"));

    let changes: Vec<_> = running.told.all().into_iter().filter(|text| text.contains("READY")).collect();
    let expected = ["READY", "NOT READY: something on the node has changed: everything is checked again"];
    assert!(changes.iter().enumerate().all(|(index, text)| *text == expected[index % 2]), "{changes:?}");
    assert!(running.told.all().iter().all(|text| !text.contains("eyJ")), "a token was told");
}

fn rotate(node: &Node, token: &str) {
    let folder = node.path(format!("account/..{token}"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("token"), format!("eyJhbGciOiJub25lIn0.e30.{token}")).unwrap();
    std::os::unix::fs::symlink(format!("..{token}"), node.path("account/..data_tmp")).unwrap();
    fs::rename(node.path("account/..data_tmp"), node.path("account/..data")).unwrap();
    if token == "second" {
        std::os::unix::fs::symlink("..data/token", node.path("account/token_tmp")).unwrap();
        fs::rename(node.path("account/token_tmp"), node.path("account/token")).unwrap();
    }
}

#[test]
fn an_unrelated_file_rewrites_nothing() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    let identity = |path: &std::path::Path| {
        let data = fs::metadata(path).unwrap();
        (data.ino(), data.mtime(), data.mtime_nsec(), data.ctime_nsec())
    };
    let files =
        [node.net("10-calico.conflist"), node.path("bin/istio-cni"), node.path("run/istio-cni-kubeconfig")];
    let before = files.each_ref().map(|path| identity(path));
    fs::write(node.net("notes.txt"), "x").unwrap();
    running.until("ready again", || running.told.count("READY") == 3 && running.told.is_ready());
    // other programs of the same directory are nobody's business
    fs::write(node.path("bin/bridge"), "x").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(running.told.is_ready() && running.told.count("READY") == 3);
    assert_eq!(files.each_ref().map(|path| identity(path)), before);
    assert_eq!(running.told.count("wrote CNI config file"), 1);
}

#[test]
fn own_writes_cause_no_cycle() {
    let node = Node::new();
    node.replace("10-x.conf", r#"{"type":"bridge"}"#);
    let running = node.start();
    running.until_ready();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(running.told.count("READY"), 1, "{:?}", running.told.all());
}

#[test]
fn a_token_that_rotates_all_the_time_is_no_fight() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    for number in 0..70 {
        fs::write(node.path("account/token"), format!("eyJhbGciOiJub25lIn0.e30.{number}")).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let kubeconfig = || fs::read_to_string(node.path("run/istio-cni-kubeconfig")).unwrap();
    running.until("the last token", || kubeconfig().contains("e30.69\n") && running.told.is_ready());
    assert!(!running.told.has("keeps reverting"));
    assert!(running.told.count("wrote kubeconfig") <= 10, "{:?}", running.told.all());
}

#[test]
fn directories_that_vanish_are_waited_for() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    fs::remove_dir_all(node.path("net.d")).unwrap();
    running.until_told("NOT READY: CNI configuration directory");
    fs::create_dir(node.path("net.d")).unwrap();
    node.replace("10-calico.conflist", CALICO);
    running.until("config healed", || node.has_entry("10-calico.conflist") && running.told.is_ready());
    fs::rename(node.path("bin"), node.path("bin-away")).unwrap();
    running.until_told("bin does not exist; mount the directory");
    fs::create_dir(node.path("bin")).unwrap();
    running.until("program healed", || node.path("bin/istio-cni").exists() && running.told.is_ready());
    fs::remove_dir_all(node.path("run")).unwrap();
    let kubeconfig = node.path("run/istio-cni-kubeconfig");
    running.until("kubeconfig healed", || kubeconfig.exists() && running.told.is_ready());
    fs::remove_dir_all(node.path("account")).unwrap();
    running.until_told("write kubeconfig: read");
    assert!(kubeconfig.exists() && !running.told.is_ready());
}

#[test]
fn a_stop_is_quick_while_waiting_failing_and_throttled() {
    let node = Node::new();
    let is_quick = |running: Running| {
        let start = Instant::now();
        running.stop();
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    };
    let running = node.start();
    running.until_told("no networks found");
    is_quick(running);
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    fs::remove_file(node.net("10-calico.conflist")).unwrap();
    running.until_told("something on the node has changed");
    is_quick(running);
    fs::remove_file(node.path("account/token")).unwrap();
    let running = node.start();
    running.until_told("FAILED");
    is_quick(running);
}
