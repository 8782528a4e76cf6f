//! Which configuration the plugin goes into.

use std::fs;

use testkit::at_once;

use crate::support::{CALICO, Node, Running};

const PTP: &str = r#"{"name":"ptp","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#;

#[test]
fn the_first_valid_file_and_only_what_runtimes_load() {
    let node = Node::new();
    for (name, text) in [
        ("00-a.json", PTP),
        ("01-broken.conflist", r#"{"name":"n","plugins":[{"type":"#),
        ("02-empty.conf", ""),
        ("03-noname.conflist", r#"{"plugins":[{"type":"x"}]}"#),
        ("04-noplugins.conflist", r#"{"name":"n","plugins":[]}"#),
        ("05-notype.conf", r#"{"name":"n"}"#),
        ("20-b.conflist", CALICO),
        ("10-a.conflist", PTP),
        ("30-c.conf", r#"{"type":"bridge"}"#),
    ] {
        node.replace(name, text);
    }
    fs::create_dir(node.net("06-folder.conflist")).unwrap();
    let before = node.snapshot("net.d");
    let running = node.start();
    running.until_ready();
    assert!(node.has_entry("10-a.conflist"));
    assert_eq!(running.told.count("passed over"), 7, "{:?}", running.told.all());
    running.until_told("00-a.json is no valid network configuration: key type is not the name of a program");
    running.until_told("01-broken.conflist is no valid network configuration: not JSON: EOF while parsing");
    running.until_told("06-folder.conflist: not a regular file");
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(node.snapshot("net.d"), before);
}

#[test]
fn an_empty_or_missing_directory_is_waited_for() {
    let node = Node::new();
    fs::remove_dir(node.path("net.d")).unwrap();
    let running = node.start();
    running.until_told("NOT READY: CNI configuration directory");
    fs::create_dir(node.path("net.d")).unwrap();
    node.replace("10-x.conflist", "{}");
    running.until_told("NOT READY: no valid networks found in");
    node.replace("10-x.conflist", PTP);
    running.until_ready();
    assert!(node.has_entry("10-x.conflist"));
    assert!(!running.told.has("FAILED"));
}

#[test]
fn a_configured_name_is_found_under_its_other_extension_and_waited_for() {
    at_once(
        [
            ("10-x.conf", "10-x.conflist", "10-x.conflist"),
            ("10-x.conflist", "10-x.conf", "10-x.conflist"),
            ("undetectable.file", "undetectable.file", "undetectable.file"),
        ],
        |(configured, there, written)| {
            let node = Node::new();
            node.replace("00-first.conflist", CALICO);
            let mut options = node.options();
            options.conf_name = Some(configured.into());
            let running = Running::new(options);
            running.until_told(&format!("{configured} does not exist: waiting for it"));
            let text = if there.ends_with(".conf") { r#"{"type":"ptp"}"# } else { PTP };
            node.replace(there, text);
            running.until("written", || node.has_entry(written));
            assert_eq!(node.read("00-first.conflist"), CALICO);
            running.until_told("00-first.conflist, which sorts before");
            assert!(!running.told.is_ready(), "pods start without the plugin");
            fs::rename(node.net("00-first.conflist"), node.net("xx-first.conflist")).unwrap();
            if there.ends_with(".file") {
                running.until_told("NOT READY: no container runtime loads ");
            } else {
                running.until_ready();
            }
            fs::rename(node.net("xx-first.conflist"), node.net("00-first.conflist")).unwrap();
            assert!(running.stop().cleanup(&[]).errors.is_empty());
            assert_eq!(node.read(there), text);
            assert_eq!(node.names(), ["00-first.conflist", there]);
        },
    );
}

#[test]
fn a_new_first_file_is_followed_and_the_old_one_restored() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    node.replace("05-ptp.conf", r#"{"type":"ptp","name":"first"}"#);
    running.until("followed", || node.has_entry("05-ptp.conflist") && running.told.is_ready());
    assert_eq!(node.read("10-calico.conflist"), CALICO);
    running.until_told("took the plugin out of");
    assert!(!running.told.has("OVERWRITTEN"));
    // and back
    fs::remove_file(node.net("05-ptp.conflist")).unwrap();
    running.until("back", || node.has_entry("10-calico.conflist") && running.told.is_ready());
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(node.names(), ["10-calico.conflist"]);
    assert_eq!(node.read("10-calico.conflist"), CALICO);
}

#[test]
fn two_networks_of_one_name_are_not_made_one() {
    let node = Node::new();
    node.replace("10-x.conf", r#"{"type":"bridge"}"#);
    node.replace("10-x.conflist", PTP);
    let running = node.start();
    running.until_told("which is another network; rename or remove one of them");
    running.until_told("FAILED Some(\"CREATE_CNI_CONFIG_FAILURE\"): create CNI config file: ");
    assert_eq!(node.read("10-x.conflist"), PTP);
    fs::remove_file(node.net("10-x.conf")).unwrap();
    running.until_ready();
    assert!(node.has_entry("10-x.conflist"));
}

#[test]
fn links_are_followed_only_within_the_directory() {
    let node = Node::new();
    fs::write(node.path("outside"), PTP).unwrap();
    fs::write(node.net("real"), CALICO).unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, node.net(name)).unwrap();
    link("../outside", "01-outside.conflist");
    link("nowhere", "02-dangling.conflist");
    link("real", "03-single.conf");
    link("real", "04-good.conflist");
    let running = node.start();
    // runtimes follow it
    running.until_told("NOT READY: pods start without the plugin: ");
    fs::rename(node.net("01-outside.conflist"), node.net("09-outside.conflist")).unwrap();
    running.until_ready();
    running.until_told("01-outside.conflist is a symbolic link out of its directory");
    running.until_told("02-dangling.conflist is a symbolic link to a file that does not exist");
    running.until_told("03-single.conf is a symbolic link to a single network");
    assert!(fs::symlink_metadata(node.net("04-good.conflist")).unwrap().is_symlink());
    assert!(node.has_entry("real"));
    assert_eq!(fs::read_to_string(node.path("outside")).unwrap(), PTP);
    let report = running.stop().cleanup(&[]);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(node.read("real"), CALICO);
}

#[test]
fn a_hidden_file_is_loaded_as_runtimes_load_it() {
    let node = Node::new();
    node.replace(".hidden.conflist", PTP);
    node.replace("10-calico.conflist", CALICO);
    node.start().until_ready();
    assert!(node.has_entry(".hidden.conflist"));
}
