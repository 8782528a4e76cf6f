//! Install and uninstall leave every byte, mode and owner as they were.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use install::{Done, InstallMode, ProgramAtEnd};

use crate::faults::Mounted;
use crate::support::{CALICO, Node, Running};

/// Configurations after the shapes that the components document, with layouts that no printer makes.
const NETWORKS: &[(&str, &str)] = &[
    ("10-calico.conflist", CALICO),
    (
        "10-flannel.conflist",
        "{\n\t\"name\": \"cbr0\",\n\t\"cniVersion\": \"0.3.1\",\n\t\"plugins\": [\n\t\t{ \"type\": \"flannel\", \"delegate\": \
         { \"hairpinMode\": true, \"isDefaultGateway\": true } },\n\t\t{ \"type\": \"portmap\", \"capabilities\": { \
         \"portMappings\": true } }\n\t]\n}\n\n",
    ),
    (
        "05-cilium.conflist",
        "{\"cniVersion\":\"1.1.0\",\"name\":\"cilium\",\"disableCheck\":true,\"plugins\":[{\"type\":\"cilium-cni\",\
         \"enable-debug\":false,\"log-file\":\"/var/run/cilium/cilium-cni.log\",\"ipam\":{\"v\":18446744073709551616}}]}",
    ),
    (
        "10-aws.conflist",
        "{\r\n  \"cniVersion\": \"0.4.0\",\r\n  \"name\": \"aws-cni\",\r\n  \"disableCheck\": true,\r\n  \"plugins\": [\r\n    \
         {\"name\": \"aws-cni\", \"type\": \"aws-cni\", \"vethPrefix\": \"eni\", \"mtu\": \"9001\", \"podSGEnforcingMode\": \
         \"strict\"},\r\n    {\"name\": \"egress-cni\", \"type\": \"egress-cni\", \"ipam\": {\"ranges\": [[{\"subnet\": \
         \"fd00::ac:00/118\"}]]}},\r\n    {\"type\": \"portmap\", \"snat\": true}\r\n  ]\r\n}",
    ),
    (
        "10-bridge.conf",
        "{ \"type\": \"bridge\", \"name\": \"mynet\", \"cniVersion\": \"1.0.0\", \"bridge\": \"cni0\",\n   \"ipam\": {\"type\": \
         \"host-local\", \"subnet\": \"10.22.0.0/16\"} }   ",
    ),
    (
        "87-bridge.conflist",
        "{\"cniVersions\":[\"0.4.0\",\"1.0.0\"],\"name\":\"podman\",\"plugins\":[{\"type\":\"bridge\",\"mtu\":1.5e3},\
         {\"type\":\"firewall\"}],\"plugins2\":null}",
    ),
];

#[test]
fn a_round_trip_leaves_every_byte_mode_and_owner() {
    for (index, (name, text)) in NETWORKS.iter().enumerate() {
        let (mode, owner) =
            [(0o600, 0), (0o644, 1234), (0o444, 0), (0o755, 99), (0o640, 4242), (0o606, 0)][index];
        let node = Node::new();
        node.replace(name, text);
        std::os::unix::fs::chown(node.net(name), Some(owner), Some(owner + 1)).unwrap();
        fs::set_permissions(node.net(name), fs::Permissions::from_mode(mode)).unwrap();
        let before = node.snapshot("net.d");
        let identity =
            |name: &str| fs::metadata(node.net(name)).map(|data| (data.ino(), data.mtime_nsec())).unwrap();
        let file = identity(name);

        let running = node.start();
        running.until_ready();
        let list = name.replace(".conf", ".conflist").replace("listlist", "list");
        assert!(node.has_entry(&list), "{name}");
        let data = fs::metadata(node.net(&list)).unwrap();
        assert_eq!((data.mode() & 0o7777, data.uid(), data.gid()), (mode, owner, owner + 1), "{name}");

        let report = running.stop().cleanup(&[]);
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(report.done[0], Done::Restored(node.net(name)));
        assert_eq!(node.snapshot("net.d"), before, "{name}");
        assert_eq!(identity(name), file, "{name}: it is the very file");
    }
}

#[test]
fn an_original_survives_restarts_and_changed_options() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let before = node.snapshot("net.d");
    for level in ["info", "debug", "debug"] {
        let mut options = node.options();
        options.entry.plugin_log_level = level.into();
        Running::new(options).until_ready();
    }
    install::uninstall(&node.options(), &[]);
    assert_eq!(node.snapshot("net.d"), before);
}

#[test]
fn what_others_changed_meanwhile_stays() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    let changed = node.read("10-calico.conflist").replace("1440", "1400");
    node.replace("10-calico.conflist", &changed);
    let report = install::uninstall(&node.options(), &[]);
    assert_eq!(report.done[0], Done::EntryRemoved(node.net("10-calico.conflist")));
    let left = node.document("10-calico.conflist");
    assert_eq!(left.plugin_types(), ["calico", "portmap"]);
    assert!(node.read("10-calico.conflist").contains("1400"));
    assert_eq!(node.names(), ["10-calico.conflist"]);
}

#[test]
fn a_single_network_that_was_written_anew_wins_over_its_original() {
    let node = Node::new();
    node.replace("10-net.conf", r#"{"type":"bridge","name":"n","mtu":1500}"#);
    let running = node.start();
    running.until_ready();
    running.stop();
    node.replace("10-net.conf", r#"{"type":"bridge","name":"n","mtu":1400}"#);
    install::uninstall(&node.options(), &[]);
    assert_eq!(node.names(), ["10-net.conf"]);
    assert!(node.read("10-net.conf").contains("1400"));
}

#[test]
fn a_file_that_broke_after_the_agent_was_gone_comes_back_from_its_original() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    fs::write(node.net("10-calico.conflist"), "").unwrap();
    let report = install::uninstall(&node.options(), &[]);
    assert_eq!(report.done[0], Done::Restored(node.net("10-calico.conflist")));
    assert_eq!(node.read("10-calico.conflist"), CALICO);
}

#[test]
fn uninstalling_needs_no_agent_and_goes_on_after_a_failure() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    fs::create_dir_all(node.path("run/facts/deep")).unwrap();
    fs::write(node.path("run/log.sock"), "").unwrap();
    // a directory in the place of the program cannot be removed as a file
    fs::remove_file(node.path("bin/istio-cni")).unwrap();
    fs::create_dir(node.path("bin/istio-cni")).unwrap();
    let leftovers = [node.path("run/facts"), node.path("run/log.sock"), node.path("run/none")];
    let report = install::uninstall(&node.options(), &leftovers);
    assert_eq!(report.done.len(), 4, "{:?}", report.done);
    let errors: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].starts_with("copy binaries: remove ") && errors[0].contains("Is a directory"),
        "{errors:?}"
    );
    assert!(crate::support::names(&node.path("run")).is_empty());
    let again = install::uninstall(&node.options(), &leftovers);
    assert!(again.done.is_empty() && again.errors.len() == 1, "{again:?}");
}

/// A runtime whose configuration names a plugin that is not there starts no pod.
#[test]
fn the_program_stays_where_a_configuration_names_it() {
    let node = Node::new();
    let mounted = Mounted::tmpfs(node.path("net.d"), "64k");
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    mounted.set_read_only(true);
    let report = install::uninstall(&node.options(), &[node.path("run")]);
    assert!(report.done.is_empty() && report.errors.len() == 1, "{report:?}");
    assert!(node.path("bin/istio-cni").exists() && node.path("run").exists());
    mounted.set_read_only(false);
    assert!(install::uninstall(&node.options(), &[]).errors.is_empty());
    assert!(!node.path("bin/istio-cni").exists());
    assert_eq!(node.read("10-calico.conflist"), CALICO);
}

#[test]
fn without_configurations_the_rest_goes() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    fs::remove_dir_all(node.path("net.d")).unwrap();
    let report = install::uninstall(&node.options(), &[]);
    assert!(report.errors.is_empty(), "{report:?}");
    assert!(!node.path("bin/istio-cni").exists());
}

#[test]
fn a_list_that_was_only_ours_is_gone() {
    let node = Node::new();
    node.replace(
        "50-x.conflist",
        r#"{"name":"x","loadOnlyInlinedPlugins":true,"plugins":[{"type":"istio-cni"}]}"#,
    );
    let report = install::uninstall(&node.options(), &[]);
    assert_eq!(report.done, [Done::Deleted(node.net("50-x.conflist"))]);
}

/// Whether the file is ours alone is asked of the mode, for writing and for removing.
#[test]
fn the_owned_name_without_the_owned_mode_deletes_nothing_foreign() {
    let node = Node::new();
    node.replace(install::options::OWNED_NAME, CALICO);
    let running = node.start();
    running.until_ready();
    assert!(node.has_entry(install::options::OWNED_NAME));
    assert!(running.stop().cleanup(&[]).errors.is_empty());
    assert_eq!(node.read(install::options::OWNED_NAME), CALICO);

    // and a copy that an agent of the owned mode left is known without it
    let mut options = node.options();
    options.mode = InstallMode::Owned { file_name: install::options::OWNED_NAME.into() };
    fs::rename(node.net(install::options::OWNED_NAME), node.net("10-calico.conflist")).unwrap();
    let running = Running::new(options);
    running.until_ready();
    running.stop();
    assert!(install::uninstall(&node.options(), &[]).errors.is_empty());
    assert_eq!(node.names(), ["10-calico.conflist"]);
}

/// The result that libcni keeps of an attachment that was added with this configuration.
fn keep(node: &Node, name: &str, config: &str) -> std::path::PathBuf {
    use base64::Engine as _;
    let config = base64::engine::general_purpose::STANDARD.encode(config);
    let path = node.path("cni/results").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!(r#"{{"kind":"cniCacheV1","config":"{config}","ifName":"eth0"}}"#)).unwrap();
    path
}

#[test]
fn the_program_stays_while_a_kept_result_names_it_and_is_installed_again() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    let mark = node.path("bin/.istio-cni.left-over");
    let with_us = node.read("10-calico.conflist");
    let kept = [keep(&node, "pods-a-eth0", &with_us), keep(&node, "pods-b-eth0", &with_us)];
    keep(&node, "pods-before-eth0", CALICO);
    let planned = install::plan_uninstall(&node.options(), &[]);
    assert!(!mark.exists(), "a plan changes nothing");
    let report = install::uninstall(&node.options(), &[]);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(planned.done, report.done);
    let kept_program = Done::Kept(node.path("bin/istio-cni"), install::Kept::Named(2));
    assert!(report.done.contains(&kept_program), "{report:?}");
    assert_eq!(fs::read_to_string(&mark).unwrap(), node.path("cni").to_string_lossy());
    assert!(node.path("bin/istio-cni").exists() && node.read("10-calico.conflist") == CALICO);

    // Another agent: what it installs is not left over, also while nothing of the program itself differs.
    let running = node.start();
    running.until_ready();
    assert!(!mark.exists() && node.has_entry("10-calico.conflist"));
    fs::write(&mark, "").unwrap();
    running.until("the mark is taken away", || !mark.exists());
    running.stop();

    fs::remove_file(&kept[0]).unwrap();
    fs::remove_file(&kept[1]).unwrap();
    assert!(install::uninstall(&node.options(), &[]).errors.is_empty());
    assert!(!node.path("bin/istio-cni").exists() && !mark.exists(), "nothing names it any more");
}

#[test]
fn what_is_not_seen_keeps_the_program_and_purging_does_not_ask() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let running = node.start();
    running.until_ready();
    running.stop();
    let mut options = node.options();
    options.program_at_end = ProgramAtEnd::StaysWhileNamed {
        cache: node.path("no-mount"),
        on_node: "/var/lib/cni".into(),
        sees_node: false,
    };
    let report = install::uninstall(&options, &[]);
    let kept = Done::Kept(node.path("bin/istio-cni"), install::Kept::Unknown);
    assert!(report.errors.is_empty() && report.done.contains(&kept), "{report:?}");
    keep(&node, "pods-a-eth0", r#"{"plugins":[{"type":"istio-cni"}]}"#);
    options.program_at_end = ProgramAtEnd::Goes;
    let report = install::uninstall(&options, &[]);
    assert_eq!(report.done, [Done::Deleted(node.path("bin/istio-cni"))]);
    assert_eq!(crate::support::names(&node.path("bin")), Vec::<String>::new());
}
