//! The plugin is where it was meant to be, and runtimes do not call it there: never ready, with the reason.

use std::fs;

use install::{Done, InstallMode};

use testkit::at_once;

use crate::support::{CALICO, Node, Running};

const PTP: &str = r#"{"name":"ptp","cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#;

#[test]
fn a_file_that_is_passed_over_and_used_is_a_reason_until_it_is_gone() {
    at_once(
        [
            ("05-net.json", r#"{"name":"j","type":"bridge"}"#, "05-net.json is a network that runtimes load"),
            (
                "05-net.conflist",
                r#"{"name":"n","disableGC":"no","plugins":[{"type":"x"}]}"#,
                "libcni 1.1 (containerd 1.6) loads it, libcni 1.3 (containerd 2) does not: key disableGC",
            ),
            ("05-net.conf", r#"{"type":"istio-cni"}"#, "05-net.conf holds only this plugin"),
        ],
        |(name, text, reason)| {
            let node = Node::new();
            node.replace(name, text);
            node.replace("10-calico.conflist", CALICO);
            let running = node.start();
            running.until_told("NOT READY: pods start without the plugin: ");
            assert!(running.told.has(reason), "{reason}: {:?}", running.told.all());
            assert_eq!(node.read(name), text);
            fs::remove_file(node.net(name)).unwrap();
            running.until_ready();
            assert_eq!(running.told.count("OVERWRITTEN"), 0);
        },
    );
}

#[test]
fn names_that_are_nothing_but_an_extension_are_names() {
    for (name, list) in [(".conf", Some(".conflist")), (".conflist", Some(".conflist")), (".json", None)] {
        let node = Node::new();
        let text = if name == ".conflist" { PTP } else { r#"{"name":"b","type":"bridge"}"# };
        node.replace(name, text);
        let running = node.start();
        match list {
            Some(list) => {
                running.until_ready();
                assert_eq!(node.document(list).plugin_types().last().unwrap(), "istio-cni");
                assert_eq!(node.names().len(), 2, "the list and the original: {:?}", node.names());
                assert!(node.net(&format!("{name}.istio-cni-original")).exists());
            }
            None => running.until_told("NOT READY: pods start without the plugin: "),
        }
        assert!(running.stop().cleanup(&[]).errors.is_empty());
        assert_eq!((node.names(), node.read(name)), (vec![name.to_owned()], text.to_owned()));
    }
}

#[test]
fn a_name_that_is_no_text_is_left_alone_with_a_reason() {
    use std::os::unix::ffi::OsStrExt;
    let node = Node::new();
    let path = node.path("net.d").join(std::ffi::OsStr::from_bytes(b"05-\xff.conflist"));
    fs::write(&path, PTP).unwrap();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_told("and its name is no UTF-8 text");
    running.until_told("NOT READY: pods start without the plugin: ");
    fs::remove_file(&path).unwrap();
    running.until_ready();
}

#[test]
fn a_link_to_where_only_the_host_sees_is_a_reason_and_one_to_nowhere_is_not() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    std::os::unix::fs::symlink("nowhere", node.net("01-x.conflist")).unwrap();
    let running = node.start();
    running.until_ready();
    std::os::unix::fs::symlink("/etc/of-the-host/x.conflist", node.net("02-x.conflist")).unwrap();
    running.until_told("NOT READY: pods start without the plugin: ");
    assert!(running.told.has("02-x.conflist is a symbolic link to a file that does not exist here"));
}

#[test]
fn a_pinned_name_that_sorts_later_is_a_reason() {
    let node = Node::new();
    node.replace("05-first.conflist", PTP);
    node.replace("10-calico.conflist", CALICO);
    let mut options = node.options();
    options.conf_name = Some("10-calico.conflist".into());
    let running = Running::new(options);
    running.until_told("NOT READY: container runtimes use ");
    assert!(node.has_entry("10-calico.conflist"));
    assert_eq!(node.read("05-first.conflist"), PTP);
    fs::remove_file(node.net("05-first.conflist")).unwrap();
    running.until_ready();
}

#[test]
fn our_copy_has_to_be_the_first_too() {
    let node = Node::new();
    node.replace("01-first.conflist", PTP);
    let mut options = node.options();
    options.mode = InstallMode::Owned { file_name: "02-istio-cni.conflist".into() };
    let running = Running::new(options);
    running.until_told("NOT READY: container runtimes use ");
    node.replace("03-first.conflist", PTP);
    fs::remove_file(node.net("01-first.conflist")).unwrap();
    running.until_ready();
}

#[test]
fn a_list_that_gives_no_address_is_a_reason() {
    at_once(
        [
            r#"{"name":"n","plugins":[{"type":"istio-cni"}]}"#,
            r#"{"name":"n","plugins":[{"type":"loopback"}]}"#,
        ],
        |text| {
            let node = Node::new();
            node.replace("10-x.conflist", text);
            let running = node.start();
            running.until_told("10-x.conflist calls no plugin that gives pods an address");
            assert!(!running.told.is_ready());
            node.replace("10-x.conflist", PTP);
            running.until_ready();
        },
    );
}

#[test]
fn another_plugin_behind_ours_is_put_before_it() {
    let node = Node::new();
    node.replace("10-x.conflist", PTP);
    let running = node.start();
    running.until_ready();
    let behind = node.read("10-x.conflist").replace("\n  ]\n}", ",{\"type\":\"tuning\"}]}");
    node.replace("10-x.conflist", &behind);
    running.until("last again", || {
        node.document("10-x.conflist").plugin_types() == ["ptp", "tuning", "istio-cni"]
            && running.told.is_ready()
    });
}

#[test]
fn a_single_network_does_not_become_a_list_that_another_file_overtakes() {
    let node = Node::new();
    let (single, other) = (r#"{"type":"bridge","name":"b"}"#, "10-net.conf.conflist");
    node.replace("10-net.conf", single);
    node.replace(other, PTP);
    let running = node.start();
    running.until_told("10-net.conf cannot become a list: runtimes would use");
    running.until_told("NOT READY: pods start without the plugin: ");
    assert_eq!(node.read("10-net.conf"), single);
    fs::rename(node.net(other), node.net("20-x.conflist")).unwrap();
    running.until("merged", || node.has_entry("10-net.conflist") && running.told.is_ready());
}

#[test]
fn the_folder_of_the_network_is_watched() {
    let node = Node::new();
    node.replace("10-x.conflist", PTP);
    let running = node.start();
    running.until_ready();
    fs::create_dir(node.net("ptp")).unwrap();
    running.until_ready();
    fs::write(node.net("ptp/10-more.conf"), r#"{"type":"tuning"}"#).unwrap();
    running.until_told("NOT READY: pods start without the plugin: ");
    assert!(running.told.has("calls ptp, istio-cni, libcni 1.3 (containerd 2) calls ptp, istio-cni, tuning"));
    fs::remove_file(node.net("ptp/10-more.conf")).unwrap();
    running.until_ready();
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(node.read("10-x.conflist"), PTP);
}

#[test]
fn a_name_that_is_the_directory_itself_reads_what_libcni_reads() {
    let node = Node::new();
    node.replace("10-x.conflist", r#"{"name":".","plugins":[{"type":"ptp"}]}"#);
    let running = node.start();
    running.until_ready();
    node.replace("20-y.conf", r#"{"type":"bridge"}"#);
    running.until_told("calls ptp, istio-cni, libcni 1.3 (containerd 2) calls ptp, istio-cni, bridge");
    assert!(!running.told.is_ready());
}

#[test]
fn the_original_follows_a_file_that_was_renamed() {
    for (before, after, back) in [
        ("10-calico.conflist", "05-calico.conflist", "05-calico.conflist"),
        ("10-calico.conflist", "10-calico.conflist.off", "10-calico.conflist.off"),
        ("10-net.conf", "05-net.conflist", "05-net.conf"),
    ] {
        let node = Node::new();
        let text = if before.ends_with(".conf") { r#"{ "type":"bridge","name":"b" }"# } else { CALICO };
        node.replace(before, text);
        let running = node.start();
        running.until_ready();
        running.stop();
        let list = if before.ends_with(".conf") { "10-net.conflist" } else { before };
        fs::rename(node.net(list), node.net(after)).unwrap();
        // and another network has the old name since
        node.replace(list, PTP);
        let report = install::uninstall(&node.options(), &[]);
        assert!(
            report.errors.is_empty() && report.done.contains(&Done::Restored(node.net(back))),
            "{report:?}"
        );
        assert_eq!(node.read(back), text, "{after}");
        assert_eq!(node.read(list), PTP);
        assert_eq!(node.names().len(), 2, "{:?}", node.names());
    }
}

#[test]
fn a_copy_of_our_list_does_not_take_the_original_from_it() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    fs::copy(node.net("10-calico.conflist"), node.net("05-copy.conflist")).unwrap();
    assert!(install::uninstall(&node.options(), &[]).errors.is_empty());
    assert_eq!(node.read("10-calico.conflist"), CALICO);
    assert_eq!(node.document("05-copy.conflist").plugin_types(), ["calico", "portmap"]);
}

#[test]
fn a_renamed_file_that_others_changed_loses_the_entry_only() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    let changed = node.read("10-calico.conflist").replace("1440", "1400");
    fs::remove_file(node.net("10-calico.conflist")).unwrap();
    node.replace("10-calico.conflist.off", &changed);
    let report = install::uninstall(&node.options(), &[]);
    assert_eq!(report.done[0], Done::EntryRemoved(node.net("10-calico.conflist.off")));
    assert!(node.read("10-calico.conflist.off").contains("1400"));
    assert_eq!(node.names(), ["10-calico.conflist.off"]);
}

#[test]
fn what_is_left_of_our_own_files_goes_and_what_is_broken_of_others_stays() {
    let ruins: [&[u8]; 5] =
        [b"", b"{\"name\":\"k8s", b"\0\0\0\0", b"{}", b"{\"name\":7,\"plugins\":[{\"type\":\"istio-cni\"}]}"];
    for ruin in ruins {
        let node = Node::new();
        for name in ["02-istio-cni.conflist", "YYY-istio-cni.conf", "istio-cni.conf"] {
            fs::write(node.net(name), ruin).unwrap();
        }
        let broken = ruin.iter().copied().filter(|_| !ruin.ends_with(b"}]}")).collect::<Vec<_>>();
        fs::write(node.net("10-other.conflist"), &broken).unwrap();
        node.replace("20-calico.conflist", CALICO);
        assert!(install::plan_uninstall(&node.options(), &[]).done.len() >= 3);
        assert!(install::uninstall(&node.options(), &[]).errors.is_empty());
        assert_eq!(node.names(), ["10-other.conflist", "20-calico.conflist"]);
        assert_eq!(fs::read(node.net("10-other.conflist")).unwrap(), broken);
    }
    // more than is ever read
    let node = Node::new();
    fs::write(node.net("02-istio-cni.conflist"), vec![b' '; 2 << 20]).unwrap();
    let report = install::uninstall(&node.options(), &[]);
    assert_eq!(report.done, [Done::Deleted(node.net("02-istio-cni.conflist"))]);
}

#[test]
fn the_entry_goes_out_of_a_list_that_others_have_broken() {
    let node = Node::new();
    let broken = r#"{"name":"n","cniVersion":1,"plugins":[{"type":"x"},{"type":"istio-cni"}]}"#;
    node.replace("10-x.conflist", broken);
    let report = install::uninstall(&node.options(), &[]);
    assert_eq!(report.done, [Done::EntryRemoved(node.net("10-x.conflist"))]);
    assert_eq!(node.document("10-x.conflist").plugin_types(), ["x"]);
}

#[test]
fn ruins_of_our_own_file_are_no_original() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let mut options = node.options();
    options.mode = InstallMode::Owned { file_name: "02-istio-cni.conflist".into() };
    let running = Running::new(options);
    running.until_ready();
    node.replace("02-istio-cni.conflist", "{}");
    running.until("written again", || node.has_entry("02-istio-cni.conflist") && running.told.is_ready());
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(node.names(), ["10-calico.conflist"]);
}
