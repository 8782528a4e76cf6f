//! Disks that are full, and mounts that cannot be written.

use std::path::PathBuf;

use rustix::mount::{MountFlags, UnmountFlags};

use testkit::at_once;

use crate::support::{CALICO, Node, names, plugin};

/// A mount that ends with the test.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn tmpfs(path: PathBuf, size: &str) -> Self {
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self(path)
    }

    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        let flag = if is_read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        rustix::mount::mount_remount(&self.0, flag, c"").unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// Fills a file system to the last page.
fn fill(directory: &std::path::Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [4096, 1] {
        while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
    }
    path
}

#[test]
fn a_full_disk_is_told_and_the_old_state_stays() {
    at_once(["net.d", "bin", "run"], |folder| {
        let node = Node::new();
        let _mounted = Mounted::tmpfs(node.path(folder), "64k");
        node.replace("10-calico.conflist", CALICO);
        node.program("bin/istio-cni", &plugin("the old one"));
        let filler = fill(&node.path(folder));
        let before = node.snapshot("net.d");
        let running = node.start();
        running.until_told("No space left on device (os error 28); the old state is kept: free some space");
        running.until_told("NOT READY: ");
        assert!(!running.told.is_ready());
        assert_eq!(node.snapshot("net.d"), before, "{folder}");
        let is_old = std::fs::read_to_string(node.path("bin/istio-cni")).unwrap() == plugin("the old one");
        assert_eq!(is_old, folder == "bin");
        let left = names(&node.path(folder));
        assert!(left.iter().all(|name| !name.contains(".tmp.")), "{left:?}");
        std::fs::remove_file(filler).unwrap();
        running.until_ready();
        assert!(node.has_entry("10-calico.conflist"));
    });
}

#[test]
fn a_read_only_mount_is_told_with_what_helps() {
    at_once([("net.d", "create CNI config file: "), ("bin", "copy binaries: ")], |(folder, phase)| {
        let node = Node::new();
        let mounted = Mounted::tmpfs(node.path(folder), "64k");
        node.replace("10-calico.conflist", CALICO);
        let before = node.snapshot("net.d");
        mounted.set_read_only(true);
        let running = node.start();
        running.until_told("Read-only file system (os error 30); on this platform the directory is another one: set global.platform");
        assert!(running.told.has(phase));
        assert_eq!(node.snapshot("net.d"), before);
        // an uninstallation says the same and does the rest
        let report = install::uninstall(&node.options(), &[]);
        assert!(report.errors.len() <= 1, "{:?}", report.errors);
        mounted.set_read_only(false);
        running.until_ready();
        assert!(node.has_entry("10-calico.conflist"));
    });
}

#[test]
fn a_mount_without_execution_keeps_the_old_program() {
    let node = Node::new();
    node.replace("10-calico.conflist", CALICO);
    let mounted = Mounted::tmpfs(node.path("bin"), "64k");
    rustix::mount::mount_remount(&mounted.0, MountFlags::NOEXEC, c"").unwrap();
    node.program("image/istio-cni", &plugin("new"));
    let running = node.start();
    running.until_told(
        "it cannot be started: Permission denied (os error 13); is the directory mounted noexec?",
    );
    assert!(names(&node.path("bin")).is_empty());
}
