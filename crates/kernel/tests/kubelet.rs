//! Kubelet among the processes of a node that the test has made.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use kernel::kubelet::uid;

fn process(root: &Path, pid: u32, comm: &str, cmdline: &str, uid: u32) {
    let dir = root.join(pid.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
    std::fs::write(dir.join("cmdline"), cmdline.replace(' ', "\0")).unwrap();
    std::fs::write(dir.join("status"), format!("Name:\t{comm}\nUid:\t{uid}\t5\t5\t5\nGid:\t9\t9\t9\t9\n"))
        .unwrap();
}

#[test]
fn kubelet_is_found_as_kubelet_kubelite_k3s_or_not_at_all() {
    for (comm, cmdline) in [
        ("kubelet", "/usr/bin/kubelet --config=x"),
        ("kubelite", "/snap/microk8s/kubelite --kubelet-args-file=x"),
        ("kubelet", "/opt/bin/Kubelet"),
        ("k3s", "/usr/local/bin/k3s server"),
    ] {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("self")).unwrap();
        process(proc.path(), 1, "systemd", "/sbin/init", 0);
        process(proc.path(), 7, "bash", "bash kubelet", 8);
        process(proc.path(), 900, comm, cmdline, 1234);
        assert_eq!(uid(proc.path()).unwrap(), 1234, "{comm}");
    }
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, "kubelet", "/bin/sleep 5", 8);
    let error = uid(proc.path()).unwrap_err().to_string();
    assert!(error.contains("no process") && error.contains("HOST_PROBE_SENDER"), "{error}");
    assert!(uid(&proc.path().join("absent")).unwrap_err().to_string().contains("absent"));
}

/// The oldest by number, and not one whose process ends just now.
#[test]
fn the_first_kubelet_counts_and_processes_that_end_do_not() {
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 1000, "kubelet", "kubelet", 5);
    process(proc.path(), 999, "kubelet", "kubelet", 4);
    assert_eq!(uid(proc.path()).unwrap(), 4);
    std::fs::remove_file(proc.path().join("999/status")).unwrap();
    assert_eq!(uid(proc.path()).unwrap(), 5);
    std::fs::remove_file(proc.path().join("1000/comm")).unwrap();
    uid(proc.path()).unwrap_err();
}
