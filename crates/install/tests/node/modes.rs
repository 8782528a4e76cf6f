//! Standalone and Istio-owned files.

use std::fs;
use std::os::unix::fs::MetadataExt;

use cni::conflist::Document;
use install::InstallMode;

use crate::support::{CALICO, Node, Running, entry};

fn mode(node: &Node, name: &str) -> u32 {
    fs::metadata(node.net(name)).unwrap().mode() & 0o7777
}

#[test]
fn files_of_ours_have_mode_0600_or_0640() {
    for (group_read, wanted) in [(false, 0o600), (true, 0o640)] {
        for (kind, name) in [
            (InstallMode::Standalone, "YYY-istio-cni.conf"),
            (InstallMode::Owned { file_name: "02-istio-cni.conflist".into() }, "02-istio-cni.conflist"),
        ] {
            let node = Node::new();
            node.replace("10-calico.conflist", CALICO);
            let mut options = node.options();
            (options.mode, options.group_read) = (kind, group_read);
            let running = Running::new(options);
            running.until_ready();
            assert_eq!(mode(&node, name), wanted);
            assert_eq!(node.read("10-calico.conflist"), CALICO);
            assert!(running.stop().cleanup(&[]).errors.is_empty());
            assert_eq!(node.names(), ["10-calico.conflist"]);
        }
    }
}

#[test]
fn the_owned_copy_follows_the_primary_file_and_is_never_primary() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let mut options = node.options();
    options.mode = InstallMode::Owned { file_name: "02-istio-cni.conflist".into() };
    let running = Running::new(options);
    running.until_ready();
    node.replace("10-calico.conflist", &CALICO.replace("1440", "1300"));
    running
        .until("followed", || node.read("02-istio-cni.conflist").contains("1300") && running.told.is_ready());
    assert_eq!(node.document("02-istio-cni.conflist").plugin_types(), ["calico", "portmap", "istio-cni"]);
    fs::remove_file(node.net("10-calico.conflist")).unwrap();
    running.until_told("NOT READY: no networks found in");
    node.replace("01-other.conflist", r#"{"name":"o","plugins":[{"type":"ptp"}]}"#);
    running.until_told("01-other.conflist, which sorts before");
    running.until("followed again", || {
        node.document("02-istio-cni.conflist").plugin_types() == ["ptp", "istio-cni"]
    });
}

#[test]
fn standalone_waits_for_nothing_and_brings_back_what_it_replaced() {
    let node = Node::new();
    let mut options = node.options();
    (options.mode, options.conf_name) = (InstallMode::Standalone, Some("net.conf".into()));
    node.replace("net.conf", r#"{"type":"macvlan"}"#);
    let running = Running::new(options);
    running.until_ready();
    let written = node.document("net.conf");
    assert!(written.is_standalone() && written.holds(&entry()));
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(node.read("net.conf"), r#"{"type":"macvlan"}"#);
}

#[test]
fn options_that_cannot_be_meant_are_refused() {
    let node = Node::new();
    let refused = |change: &dyn Fn(&mut install::InstallOptions)| {
        let mut options = node.options();
        change(&mut options);
        let observer = Box::new(crate::support::Told::default());
        install::Installer::new(options, observer).err().unwrap().to_string()
    };
    for name in ["../10-x.conflist", "a/b", "", ".", ".."] {
        assert_eq!(
            refused(&|options| options.conf_name = Some(name.into())),
            format!("{name:?} is not the name of a file; give a name without slashes")
        );
    }
    assert!(
        refused(&|options| options.mode = InstallMode::Owned { file_name: "x.conf".into() })
            .contains("ends in .conflist")
    );
    assert!(refused(&|options| options.bin_targets.clear()).contains("no directory"));
}

#[test]
fn changed_options_reach_the_node_with_a_restart_and_without() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    let mut changed = entry();
    changed.exclude_namespaces = vec!["kube-system".into()];
    running.handle.update(changed.clone());
    let holds = |entry| Document::parse(node.read("10-calico.conflist").as_bytes()).unwrap().holds(entry);
    running.until("updated", || holds(&changed) && running.told.is_ready());
    assert!(!running.told.has("OVERWRITTEN"), "{:?}", running.told.all());
    running.stop();
    node.start().until_ready();
    assert!(holds(&entry()));
}
