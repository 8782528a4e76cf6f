//! An installer that is killed: the configuration is always there and whole, and nothing is left lying about.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use cni::conflist::{Document, Form};

use testkit::at_once;

use crate::support::{CALICO, Node, names, plugin};

const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"single","type":"bridge","bridge":"cni0"}"#;

/// `cargo test` builds the examples of a package together with its tests (not with `--test NAME`), into a directory beside theirs.
pub(crate) fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().and_then(|deps| deps.parent()).unwrap().join("examples/install_once");
    assert!(path.exists(), "{} is not built: run the tests of the whole package", path.display());
    path
}

/// What a container runtime would load now; panics if that is not a whole configuration.
pub(crate) fn loaded(node: &Node) -> String {
    for _ in 0..1000 {
        let first = node.names().into_iter().find(|name| Form::of(name).is_some());
        let name = first.unwrap_or_else(|| panic!("there is no configuration: {:?}", node.names()));
        // it may just have been replaced by a list
        let Ok(text) = fs::read_to_string(node.net(&name)) else { continue };
        let document =
            Document::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}: {text:?}"));
        let types = document.plugin_types().join(",");
        let whole = ["calico,portmap", "calico,portmap,istio-cni", "bridge", "bridge,istio-cni"];
        assert!(whole.contains(&types.as_str()), "{name}: {text}");
        return types;
    }
    panic!("the directory changes all the time");
}

/// How often a configuration was loaded until it is over; each was a whole one.
pub(crate) fn looks_until(node: &Node, is_over: &AtomicBool) -> u32 {
    let mut looks = 0;
    while !is_over.load(Ordering::Relaxed) {
        loaded(node);
        looks += 1;
    }
    looks
}

/// A node before the installation, with either form of network and an old program.
fn node(is_single: bool) -> Node {
    let node = Node::new();
    if is_single {
        node.replace("10-net.conf", SINGLE);
    } else {
        node.replace("10-net.conflist", CALICO);
    }
    node.program("bin/istio-cni", &plugin("old"));
    node
}

/// After a complete run everything is there and nothing else is; after the uninstallation it is as before.
fn check_whole(node: &Node, is_single: bool) {
    let status = Command::new("timeout")
        .arg("10")
        .arg(program())
        .arg(node.dir.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(node.has_entry("10-net.conflist"));
    let original =
        if is_single { "10-net.conf.istio-cni-original" } else { "10-net.conflist.istio-cni-original" };
    let mut expected = vec!["10-net.conflist", original];
    expected.sort_unstable();
    assert_eq!(node.names(), expected);
    assert_eq!(names(&node.path("bin")), ["istio-cni"]);
    assert_eq!(names(&node.path("run")), ["istio-cni-kubeconfig"]);
    assert!(install::uninstall(&node.options(), &[]).errors.is_empty());
    if is_single {
        assert_eq!(
            (node.names(), node.read("10-net.conf")),
            (vec!["10-net.conf".to_owned()], SINGLE.to_owned())
        );
    } else {
        assert_eq!(
            (node.names(), node.read("10-net.conflist")),
            (vec!["10-net.conflist".to_owned()], CALICO.to_owned())
        );
    }
}

/// strace ends the process at the n-th call of each system call that changes files.
#[test]
fn killed_at_each_system_call_that_changes_something() {
    let kills = AtomicU32::new(0);
    at_once(
        [
            "openat",
            "write",
            "fchmod",
            "fsync",
            "rename",
            "renameat2",
            "link",
            "linkat",
            "unlink",
            "unlinkat",
            "copy_file_range",
        ],
        |call| {
            for is_single in [false, true] {
                // opening is done for reading mostly: each seventh is enough
                let step = if call == "openat" { 7 } else { 1 };
                for number in (1..60).step_by(step) {
                    let node = node(is_single);
                    let status = Command::new("strace")
                        .args(["-o", "/dev/null", "-e", &format!("trace={call}")])
                        .args(["-e", &format!("inject={call}:signal=KILL:when={number}")])
                        .arg(program())
                        .arg(node.dir.path())
                        .stdout(Stdio::null())
                        .status()
                        .expect("strace is needed");
                    loaded(&node);
                    if status.success() {
                        break;
                    }
                    kills.fetch_add(1, Ordering::Relaxed);
                    check_whole(&node, is_single);
                }
            }
        },
    );
    let kills = kills.into_inner();
    assert!(kills > 40, "only {kills} kills have hit");
}

#[test]
fn killed_a_hundred_times_at_random_under_the_eyes_of_a_reader() {
    at_once([false, true], |is_single| {
        let node = node(is_single);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| looks_until(&node, &is_over));
            let round = |number: u64| {
                // something to do: another program, and every third time the network as it was
                node.program("image/istio-cni", &plugin(&number.to_string()));
                if number.is_multiple_of(3) && !is_single {
                    node.replace("10-net.conflist", CALICO);
                } else if number.is_multiple_of(3) {
                    node.replace("10-net.conf", SINGLE);
                }
                let mut child =
                    Command::new(program()).arg(node.dir.path()).stdout(Stdio::null()).spawn().unwrap();
                std::thread::sleep(Duration::from_micros(number * 37 % 50 * 400));
                child.kill().unwrap();
                child.wait().unwrap();
            };
            let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (0..50).for_each(round)));
            is_over.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 100);
            rounds.unwrap();
        });
        check_whole(&node, is_single);
    });
}
