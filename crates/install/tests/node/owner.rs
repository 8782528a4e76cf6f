//! A configuration of another user, and a process that may not give files away: as the chart's agent, without CAP_CHOWN.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::kill::{loaded, looks_until, program};
use crate::support::{CALICO, Node, Running};

const NAME: &str = "10-calico.conflist";
const ORIGINAL: &str = "10-calico.conflist.istio-cni-original";

/// A node whose configuration and its folder belong to another user.
fn node() -> Node {
    let node = Node::new();
    node.replace(NAME, CALICO);
    for (path, mode) in [(node.net(NAME), 0o640), (node.path("net.d"), 0o750)] {
        chown(&path, Some(4242), Some(4243)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    node
}

/// Owner, group and mode of the configuration.
fn attributes(node: &Node) -> (u32, u32, u32) {
    let metadata = fs::metadata(node.net(NAME)).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

/// Does something on a thread with no capability but DAC_OVERRIDE, and on those that it starts.
fn with_dac_override_only<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let limited = scope.spawn(|| {
            let mut sets = capabilities(None).unwrap();
            (sets.effective, sets.permitted) = (CapabilitySet::DAC_OVERRIDE, CapabilitySet::DAC_OVERRIDE);
            sets.inheritable = CapabilitySet::empty();
            set_capabilities(None, sets).unwrap();
            let path = tempfile::NamedTempFile::new().unwrap();
            chown(path.path(), Some(4242), None).expect_err("the capability is still there");
            work()
        });
        limited.join().unwrap()
    })
}

#[test]
fn the_owner_is_kept_without_the_right_to_give_files_away() {
    let node = node();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whoever looks sees a whole configuration at any time.
        let reader = scope.spawn(|| looks_until(&node, &is_over));
        with_dac_override_only(|| {
            let running = Running::new(node.options());
            running.until_ready();
            assert!(node.has_entry(NAME));
            assert_eq!(attributes(&node), (4242, 4243, 0o640));
            assert_eq!(node.names(), [NAME, ORIGINAL]);
            assert_eq!(fs::read_to_string(node.net(ORIGINAL)).unwrap(), CALICO);
            // Another component writes its network anew, as its own user.
            node.replace(NAME, &CALICO.replace("1440", "1300"));
            running.until("healed", || node.has_entry(NAME) && node.read(NAME).contains("1300"));
            assert!(running.stop().cleanup(&[]).errors.is_empty());
        });
        is_over.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 10);
    });
    assert_eq!((node.read(NAME), node.names()), (CALICO.replace("1440", "1300"), vec![NAME.to_owned()]));
}

#[test]
fn an_installation_that_is_taken_back_leaves_owner_and_bytes() {
    let node = node();
    with_dac_override_only(|| {
        let running = Running::new(node.options());
        running.until_ready();
        assert!(node.has_entry(NAME));
        assert!(running.stop().cleanup(&[]).errors.is_empty());
    });
    assert_eq!((node.read(NAME), attributes(&node)), (CALICO.to_owned(), (4242, 4243, 0o640)));
    assert_eq!(node.names(), [NAME]);
}

/// What has a second name elsewhere is not written to: the owner is lost then, and nothing else.
#[test]
fn a_file_of_two_names_is_not_written_to() {
    let node = node();
    fs::hard_link(node.net(NAME), node.path("other-name")).unwrap();
    with_dac_override_only(|| {
        let running = Running::new(node.options());
        running.until_ready();
        assert!(node.has_entry(NAME));
        assert_eq!(fs::read_to_string(node.path("other-name")).unwrap(), CALICO);
        assert!(running.stop().cleanup(&[]).errors.is_empty());
    });
    assert_eq!((node.read(NAME), attributes(&node)), (CALICO.to_owned(), (4242, 4243, 0o640)));
}

/// strace ends the process at the n-th call of each system call that changes the files' names or content.
#[test]
fn killed_without_the_right_it_leaves_a_whole_configuration() {
    let mut kills = 0;
    for call in ["renameat2", "write", "fsync", "unlink"] {
        for number in 1..40 {
            let node = node();
            let status = Command::new("setpriv")
                .args(["--bounding-set", "-all,+dac_override,+sys_ptrace", "--inh-caps", "-all"])
                .args(["strace", "-o", "/dev/null", "-e", &format!("trace={call}")])
                .args(["-e", &format!("inject={call}:signal=KILL:when={number}")])
                .arg(program())
                .arg(node.dir.path())
                .stdout(Stdio::null())
                .status()
                .expect("setpriv and strace are needed");
            loaded(&node);
            if status.success() {
                assert_eq!(attributes(&node), (4242, 4243, 0o640), "{call}");
                break;
            }
            kills += 1;
            with_dac_override_only(|| {
                let running = Running::new(node.options());
                running.until_ready();
                assert!(running.stop().cleanup(&[]).errors.is_empty());
            });
            assert_eq!(
                (node.read(NAME), node.names()),
                (CALICO.to_owned(), vec![NAME.to_owned()]),
                "{call} {number}"
            );
        }
    }
    assert!(kills > 8, "only {kills} kills have hit");
}
