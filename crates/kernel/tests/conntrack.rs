//! Connections that stand when rules come.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use kernel::conntrack::{is_strict, set_strict};
use testkit::{Families, Pod};

fn value(pod: &Pod) -> String {
    let file = "/proc/thread-self/../sys/net/netfilter/nf_conntrack_tcp_loose";
    pod.enter(|_| std::fs::read_to_string(file.replace("thread-self/../", "")))
        .unwrap()
        .unwrap()
        .trim()
        .to_owned()
}

/// A connection that says something after rules have come which redirect every new one to a port where nobody listens. Whether it is heard.
fn outlives_the_rules(strict: bool) -> bool {
    let pod = Pod::new(Families::V4).unwrap();
    let server = pod.peer().enter(|_| TcpListener::bind("10.77.0.1:7000")).unwrap().unwrap();
    let mut client = pod.enter(|_| TcpStream::connect("10.77.0.1:7000")).unwrap().unwrap();
    let (mut other, _) = server.accept().unwrap();
    other.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    if strict {
        assert_eq!(pod.enter(is_strict).unwrap().unwrap(), Some(false));
        assert!(pod.enter(|inside| set_strict(inside, true)).unwrap().unwrap());
        assert_eq!(pod.enter(is_strict).unwrap().unwrap(), Some(true));
        assert!(!pod.enter(|inside| set_strict(inside, true)).unwrap().unwrap(), "it was so");
        assert_eq!(value(&pod), "0");
    }
    pod.nft(
        "add table inet t
        add chain inet t o { type nat hook output priority -100 ; }
        add rule inet t o meta l4proto tcp redirect to :15001",
    )
    .unwrap();
    client.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    let outlives = other.read_exact(&mut heard).is_ok();
    // A new one is redirected in any case.
    let refused =
        pod.enter(|_| TcpStream::connect_timeout(&"10.77.0.1:7000".parse().unwrap(), Duration::from_secs(2)));
    assert!(refused.unwrap().is_err());
    if strict {
        assert!(pod.enter(|inside| set_strict(inside, false)).unwrap().unwrap());
        assert_eq!(value(&pod), "1");
    }
    outlives
}

#[test]
fn open_connections_outlive_new_rules_only_where_they_are_not_picked_up() {
    assert!(outlives_the_rules(true));
    assert!(!outlives_the_rules(false), "or the setting would not be needed");
}

/// As in a container: /proc/sys can only be read.
#[test]
fn a_proc_that_can_only_be_read_is_no_obstacle() {
    let pod = Pod::new(Families::V4).unwrap();
    pod.nft("add table inet t\nadd chain inet t o { type nat hook output priority -100 ; }").unwrap();
    let before =
        Command::new("cat").arg("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").output().unwrap().stdout;
    let changed = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            // SAFETY: only this thread's view of the file system is its own afterwards.
            #[allow(unsafe_code)]
            unsafe {
                rustix::thread::unshare_unsafe(
                    rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
                )
            }
            .unwrap();
            use rustix::mount::{MountPropagationFlags, mount_bind, mount_change, mount_remount};
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount_bind("/proc/sys", "/proc/sys").unwrap();
            let flags = rustix::mount::MountFlags::RDONLY | rustix::mount::MountFlags::BIND;
            mount_remount("/proc/sys", flags, "").unwrap();
            assert!(std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").is_err(), "it can only be read");
            pod.enter(|inside| set_strict(inside, true)).unwrap().unwrap()
        });
        work.join().unwrap()
    });
    assert!(changed);
    assert_eq!(value(&pod), "0");
    let after =
        Command::new("cat").arg("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").output().unwrap().stdout;
    assert_eq!(after, before, "this machine's own is left alone");
}
