//! Install, keep, take away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use install::{Done, inspect, plan_uninstall};

use crate::support::{CALICO, Node, names};

#[test]
fn installs_reports_and_takes_everything_away() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    fs::set_permissions(node.net("10-calico.conflist"), fs::Permissions::from_mode(0o644)).unwrap();
    let before = node.snapshot("net.d");
    let running = node.start();
    running.until_ready();
    assert!(node.has_entry("10-calico.conflist"));
    assert_eq!(fs::metadata(node.net("10-calico.conflist")).unwrap().mode() & 0o777, 0o644);
    assert_eq!(names(&node.path("bin")), ["istio-cni"]);
    assert_eq!(fs::metadata(node.path("run/istio-cni-kubeconfig")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(running.told.count("READY"), 1, "{:?}", running.told.all());

    let installed = inspect(&node.path("net.d"), &[node.path("bin")], &node.path("run"));
    assert_eq!(installed.networks[0].plugins, ["calico", "portmap", "istio-cni"]);
    assert!(installed.networks[0].entry.is_some() && installed.networks[0].has_original);
    assert_eq!(installed.programs[0].versions.as_deref().unwrap(), ["0.4.0", "1.0.0"]);
    assert_eq!(installed.programs[0].version.as_deref().unwrap_err(), "it does not say which version it is");
    assert!(installed.networks[0].is_valid);
    assert_eq!(installed.kubeconfig.unwrap().server.unwrap(), "https://10.96.0.1:443");

    let stopped = running.stop();
    let (net, bin) = (node.snapshot("net.d"), names(&node.path("bin")));
    let planned = plan_uninstall(&node.options(), &[]);
    assert!(planned.errors.is_empty(), "{:?}", planned.errors);
    assert_eq!((node.snapshot("net.d"), names(&node.path("bin"))), (net, bin));
    let report = stopped.cleanup(&[]);
    assert_eq!(planned.done, report.done);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(
        report.done,
        [
            Done::Restored(node.net("10-calico.conflist")),
            Done::Deleted(node.path("run/istio-cni-kubeconfig")),
            Done::Deleted(node.path("bin/istio-cni"))
        ]
    );
    assert_eq!(node.snapshot("net.d"), before);
    assert_eq!(names(&node.path("bin")), [""; 0]);
}

#[test]
fn what_others_broke_and_what_is_ours_alone_are_told_apart() {
    let node = Node::new();
    let ours = String::from_utf8(crate::support::entry().render_standalone()).unwrap();
    fs::write(node.net("YYY-istio-cni.conf"), ours).unwrap();
    fs::write(node.net("10-calico.conflist"), "{").unwrap();
    fs::write(node.net("10-calico.conflist.istio-cni-original"), CALICO).unwrap();
    fs::write(node.net("05-empty.conflist"), "").unwrap();
    node.program(
        "bin/istio-cni",
        "#!/bin/sh\n[ \"$CNI_COMMAND\" ] || echo 'CNI plugin istio-cni 1.2.3' >&2\n",
    );
    let installed = inspect(&node.path("net.d"), &[node.path("bin")], &node.path("run"));
    let [calico] = &installed.networks[..] else { panic!("{installed:?}") };
    assert!(!calico.is_valid && calico.has_original && calico.plugins == ["calico", "portmap"], "{calico:?}");
    let [standalone] = &installed.standalone[..] else { panic!("{installed:?}") };
    assert_eq!(standalone.path, node.net("YYY-istio-cni.conf"));
    assert!(standalone.entry.get("cni_agent_run_dir").is_some(), "{standalone:?}");
    assert_eq!(installed.problems.len(), 1, "{:?}", installed.problems);
    assert_eq!(installed.programs[0].version.as_deref().unwrap(), "1.2.3");
    assert!(installed.programs[0].versions.is_err());
}
