//! Against real namespaces; needs root.

use std::collections::HashSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use netns::{Error, Host, Inside, Netns, NetnsId, OpenCause};
use testkit::TestNetns;

fn open_error(path: impl AsRef<Path>) -> (String, OpenCause) {
    let error = Netns::open(path).expect_err("this path must not open");
    let text = error.to_string();
    match error {
        Error::Open { cause, .. } => (text, cause),
        other => panic!("not an error of open: {other}"),
    }
}

fn interfaces() -> Vec<String> {
    // Read as a file of this thread: /proc/net is that of the process's first thread.
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("proc is mounted");
    text.lines().skip(2).filter_map(|l| l.split(':').next()).map(|n| n.trim().to_owned()).collect()
}

#[test]
fn the_closure_runs_inside_and_the_caller_stays() {
    let pod = TestNetns::new().unwrap();
    let netns = Netns::open(pod.path()).unwrap();
    let before = Netns::current().unwrap().id();
    assert_ne!(netns.id(), before);
    let (id, names) = netns.enter(|inside| (inside.id(), interfaces())).unwrap();
    assert_eq!(id, netns.id());
    assert_eq!(names, ["lo"]);
    assert_eq!(Netns::current().unwrap().id(), before);
    assert_eq!(Inside::of_calling_thread().unwrap().id(), before);
}

#[test]
fn one_namespace_by_two_paths_is_equal_and_two_namespaces_are_not() {
    let [one, two] = [TestNetns::new().unwrap(), TestNetns::new().unwrap()];
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("pod");
    symlink(one.path(), &link).unwrap();
    assert_eq!(Netns::open(&link).unwrap(), Netns::open(one.path()).unwrap());
    assert_ne!(Netns::open(one.path()).unwrap(), Netns::open(two.path()).unwrap());
    let host = Netns::open("/proc/self/ns/net").unwrap();
    assert_eq!(host, Netns::current().unwrap());
    assert_ne!(host.id(), one.netns().id());
}

#[test]
fn a_mounted_name_opens_until_it_is_deleted() {
    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
        }
    }
    let named = Named(format!("netns-test-{}", std::process::id()));
    assert!(Command::new("ip").args(["netns", "add", &named.0]).status().unwrap().success());
    let path = Path::new("/run/netns").join(&named.0);
    let netns = Netns::open(&path).unwrap();
    assert_eq!(netns.path(), path);
    assert_eq!(netns.enter(|_| interfaces()).unwrap(), ["lo"]);
    assert_eq!(Netns::open(&path).unwrap().id(), netns.id());
    drop(named);
    assert!(Netns::open(&path).unwrap_err().is_missing());
    assert!(matches!(netns.enter(|inside| inside.id()), Ok(id) if id == netns.id()));
}

#[test]
fn a_handle_keeps_a_namespace_alive_whose_path_is_gone() {
    let pod = TestNetns::new().unwrap();
    let netns = Netns::open(pod.path()).unwrap();
    drop(pod);
    assert_eq!(netns.enter(|_| interfaces()).unwrap(), ["lo"]);
}

#[test]
fn a_path_that_does_not_exist_is_said_to_be_missing() {
    let path = TestNetns::removed_path();
    let (text, cause) = open_error(&path);
    assert!(matches!(cause, OpenCause::Missing));
    assert!(Netns::open(&path).unwrap_err().is_missing());
    let expected = format!("failed to open netns {path:?}: it does not exist");
    assert!(text.starts_with(&expected) && text.contains("CNI_NETNS"), "{text}");
    // A part of the path that is a file is as good as no path.
    assert!(Netns::open("/proc/version/x").unwrap_err().is_missing());
    assert!(Netns::open("").unwrap_err().is_missing());
}

#[test]
fn a_file_that_is_no_namespace_is_refused_with_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cni-1234");
    std::fs::write(&file, "").unwrap();
    for path in [file.as_path(), dir.path()] {
        let (text, cause) = open_error(path);
        assert!(matches!(cause, OpenCause::NotANamespace { .. }));
        assert!(
            text.contains("it is not a namespace but a file on ") && text.contains("/run/netns/<name>"),
            "{text}"
        );
        assert!(!Netns::open(path).unwrap_err().is_missing());
    }
    for path in ["/proc/self/status", "/proc/self/ns", "/proc/1"] {
        let (text, cause) = open_error(path);
        assert!(matches!(cause, OpenCause::NotANamespace { .. }), "{path}: {text}");
        assert!(text.contains("a file on procfs"), "{text}");
    }
    assert!(matches!(open_error("/dev/null").1, OpenCause::NotANamespace { .. }));
}

#[test]
fn a_pipe_is_refused_without_waiting_for_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let start = Instant::now();
    assert!(matches!(open_error(&pipe).1, OpenCause::NotANamespace { .. }));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_namespace_of_another_kind_is_refused_by_its_name() {
    for (file, kind) in [("mnt", "mount"), ("pid", "pid"), ("user", "user"), ("uts", "uts"), ("ipc", "ipc")] {
        let (text, cause) = open_error(format!("/proc/self/ns/{file}"));
        assert!(matches!(cause, OpenCause::OtherKind { kind: k } if k == kind), "{text}");
        assert!(text.contains(&format!("it is a {kind} namespace, not a network namespace")), "{text}");
    }
}

#[test]
fn without_privilege_entering_fails_and_says_so() {
    let pod = TestNetns::new().unwrap();
    let netns = pod.netns();
    // Only this thread gives up its rights, and it is not used again. The thread that enters inherits them.
    let error = std::thread::scope(|s| {
        let unprivileged = s.spawn(|| {
            let nobody = rustix::thread::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            netns.enter(|_| ()).unwrap_err()
        });
        unprivileged.join().unwrap()
    });
    assert!(matches!(error, Error::Join { .. }));
    assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
}

#[test]
fn a_panic_inside_goes_on_in_the_caller() {
    let pod = TestNetns::new().unwrap();
    let panic = std::panic::catch_unwind(|| pod.netns().enter(|_| panic!("inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    assert_eq!(pod.netns().enter(|inside| inside.id()).unwrap(), pod.netns().id());
}

#[test]
fn fifty_threads_enter_five_namespaces_at_once() {
    let pods: Vec<_> = (0..5).map(|_| TestNetns::new().unwrap()).collect();
    let ids: HashSet<NetnsId> = pods.iter().map(|p| p.netns().id()).collect();
    assert_eq!(ids.len(), 5);
    let before = Netns::current().unwrap().id();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..50)
            .map(|i| {
                let netns = pods[i % 5].netns();
                scope.spawn(move || {
                    let seen =
                        netns.enter(|_| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
                    (seen.to_string_lossy().into_owned(), netns.id().to_string())
                })
            })
            .collect();
        for thread in threads {
            let (seen, expected) = thread.join().unwrap();
            assert_eq!(seen, expected);
        }
    });
    assert_eq!(Netns::current().unwrap().id(), before);
}

#[test]
fn a_program_started_inside_is_inside() {
    let pod = TestNetns::new().unwrap();
    let output = pod.netns().enter(|_| Command::new("readlink").arg("/proc/self/ns/net").output()).unwrap();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap().trim(), pod.netns().id().to_string());
}

/// The node's namespace is opened as any other, and what runs in it is in it.
#[test]
fn the_nodes_namespace_is_entered_and_told_from_a_pods() {
    let node = TestNetns::new().unwrap();
    let host = Host::open(node.path()).unwrap();
    assert_eq!(host.id(), node.netns().id());
    assert_eq!(host.enter(|inside| inside.inside().id()).unwrap(), host.id());
    let current = Host::current().unwrap();
    assert_eq!(current.id(), Netns::current().unwrap().id());
    assert_ne!(current.id(), host.id());
    let file = tempfile::NamedTempFile::new().unwrap();
    for path in [file.path(), Path::new("/proc/self/ns/mnt"), Path::new("/proc/version")] {
        let error = Host::open(path).expect_err("no network namespace");
        assert!(matches!(error, Error::Open { .. }), "{error}");
    }
    assert!(matches!(Host::open(TestNetns::removed_path()), Err(Error::Open { .. })));
}
