//! Install, keep, take away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use install::{Done, inspect};

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
    assert_eq!(installed.kubeconfig.unwrap().server.unwrap(), "https://10.96.0.1:443");

    let report = running.stop().cleanup();
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
