//! Namespaces of running pods, through a procfs that the test has made and through the real one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use netns::find::{Found, Missing, NotThePods, Scan, Wanted, belongs_to, sandbox_of_class};
use netns::{Inside, Netns};
use testkit::TestNetns;

const A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const B: &str = "bbbbbbbb-0000-4000-8000-000000000002";

/// Descriptors are counted, so one test runs at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A namespace with an address.
fn pod_netns(ip: &str) -> TestNetns {
    let netns = TestNetns::new().unwrap();
    netns.ip(&[format!("address add {ip} dev lo")]).unwrap();
    netns
}

/// A process as procfs shows it.
fn process(root: &Path, pid: u32, netns: &Path, uid: &str, start: u64, comm: &str) {
    let dir = root.join(pid.to_string());
    std::fs::create_dir_all(dir.join("ns")).unwrap();
    symlink(netns, dir.join("ns/net")).unwrap();
    std::fs::write(dir.join("cgroup"), format!("0::/kubepods/pod{uid}/{:064x}\n", 1)).unwrap();
    std::fs::write(dir.join("stat"), format!("{pid} (x) S {}{start} 0\n", "0 ".repeat(18))).unwrap();
    std::fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
    std::fs::write(dir.join("cmdline"), format!("{comm}\0")).unwrap();
}

/// What `ip` lists, as no crate below may list addresses itself.
fn addresses(_: &Inside) -> Result<Vec<IpAddr>, String> {
    let output =
        Command::new("ip").args(["-o", "address", "show"]).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words =
        text.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok());
    Ok(words.collect())
}

fn wanted(uid: &str, ips: &[&str]) -> Wanted {
    Wanted { uid: uid.into(), ips: ips.iter().map(|ip| ip.parse().unwrap()).collect() }
}

fn scan(root: &Path, wanted: &[Wanted]) -> Found {
    let host = Netns::current().unwrap().id();
    Scan { proc_root: root.to_owned(), host }.scan(wanted, &addresses)
}

fn open_namespaces() -> usize {
    let links = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("net:[")).count()
}

#[test]
fn c10_the_earliest_of_several_and_never_another_pods() {
    let _alone = alone();
    let proc = tempfile::tempdir().unwrap();
    let root = proc.path();
    let (first, second, third) =
        (pod_netns("10.0.0.1/32"), pod_netns("10.0.0.1/32"), pod_netns("10.0.0.1/32"));
    process(root, 100, first.path(), A, 70_298_999, "app");
    process(root, 101, second.path(), A, 70_298_968, "app");
    process(root, 102, third.path(), A, 70_298_977, "app");
    // A process of pod A in the namespace of pod B, which comes before B's own.
    let other = pod_netns("10.0.0.2/32");
    process(root, 103, other.path(), A, 1, "nsenter");
    process(root, 200, other.path(), B, 500, "app");
    std::fs::create_dir(root.join("self")).unwrap();
    std::fs::create_dir(root.join("300")).unwrap();
    let before = open_namespaces();
    let found = scan(root, &[wanted(A, &["10.0.0.1"]), wanted(B, &["fd00::1", "10.0.0.2"])]);
    assert_eq!(found.namespaces[A].id(), second.netns().id());
    assert_eq!(found.namespaces[B].id(), other.netns().id());
    assert_eq!(open_namespaces(), before + 2, "the losers are closed");
    drop(found);
    assert_eq!(open_namespaces(), before);

    // Without an address no namespace is entered.
    let count = AtomicUsize::new(0);
    let counting = |inside: &Inside| {
        count.fetch_add(1, Ordering::SeqCst);
        addresses(inside)
    };
    let host = Netns::current().unwrap().id();
    let found = Scan { proc_root: root.to_owned(), host }.scan(&[wanted(A, &[])], &counting);
    assert_eq!((found.missing[A].clone(), count.into_inner()), (Missing::NoAddress, 0));
    // The later of two that started at once.
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 10, first.path(), A, 7, "app");
    process(proc.path(), 2, second.path(), A, 7, "app");
    let found = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]);
    assert_eq!(found.namespaces[A].id(), second.netns().id(), "10 comes before 2");
}

#[test]
fn why_there_is_none() {
    let _alone = alone();
    let proc = tempfile::tempdir().unwrap();
    let missing = |root: &Path| scan(root, &[wanted(A, &["10.0.0.1"])]).missing[A].clone();
    assert_eq!(missing(proc.path()), Missing::NoProcess);
    assert!(matches!(missing(&proc.path().join("absent")), Missing::Failed(_)));
    let host = Path::new("/proc/self/ns/net");
    process(proc.path(), 1, host, A, 1, "app");
    assert_eq!(missing(proc.path()), Missing::HostNetwork);
    let other = pod_netns("10.0.0.9/32");
    for (comm, sandbox) in [
        ("runsc-sandbox", "gVisor"),
        ("qemu-system-x86", "Kata Containers"),
        ("cloud-hyperviso", "Kata Containers"),
    ] {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 7, other.path(), A, 1, comm);
        process(proc.path(), 8, other.path(), A, 1, "app");
        let missing = missing(proc.path());
        assert_eq!(missing, Missing::Sandbox(sandbox));
        assert!(missing.to_string().contains(sandbox));
    }
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, other.path(), A, 1, "app");
    assert_eq!(missing(proc.path()), Missing::OtherAddress);
    for (class, sandbox) in [
        ("gvisor", Some("gVisor")),
        ("runsc-kvm", Some("gVisor")),
        ("kata", Some("Kata Containers")),
        ("kata-qemu", Some("Kata Containers")),
        ("nvidia", None),
        ("katalog", None),
    ] {
        assert_eq!(sandbox_of_class(class), sandbox, "{class}");
    }
}

#[test]
fn a_named_namespace_has_to_be_the_pods() {
    let _alone = alone();
    let netns = pod_netns("10.0.0.1/32");
    let host = Netns::current().unwrap();
    let check = |netns: &Netns, ips: &[&str]| {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        belongs_to(netns, host.id(), &ips, &addresses)
    };
    assert_eq!(check(netns.netns(), &["10.0.0.1"]), Ok(()));
    assert_eq!(check(netns.netns(), &["::ffff:10.0.0.1", "fd00::1"]), Ok(()));
    assert_eq!(check(netns.netns(), &[]), Ok(()), "it has one");
    assert_eq!(check(&host, &["127.0.0.1"]), Err(NotThePods::Host));
    let error = check(netns.netns(), &["10.0.0.2"]).unwrap_err().to_string();
    assert!(error.contains("10.0.0.2") && error.contains("10.0.0.1"), "{error}");
    let empty = TestNetns::new().unwrap();
    assert_eq!(check(empty.netns(), &[]), Err(NotThePods::NoAddress));
}

/// CRI-O's conmon and Kata's shim are in the pod's cgroup and in the node's namespace; whichever comes first, the reason is the pod's own.
#[test]
fn programs_of_the_runtime_do_not_hide_the_reason() {
    let _alone = alone();
    let host = Path::new("/proc/self/ns/net");
    let other = pod_netns("10.0.0.9/32");
    for (conmon, app) in [(7, 8), (8, 7)] {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), conmon, host, A, 1, "conmon");
        process(proc.path(), app, other.path(), A, 1, "app");
        let missing = |ips: &[&str]| scan(proc.path(), &[wanted(A, ips)]).missing[A].clone();
        assert_eq!(missing(&["10.0.0.1"]), Missing::OtherAddress);
        assert_eq!(missing(&[]), Missing::NoAddress);
        let found = scan(proc.path(), &[wanted(A, &["10.0.0.9"])]);
        assert_eq!(found.namespaces[A].id(), other.netns().id());
    }
    for (called, missing) in [
        ("/opt/kata/bin/containerd-shim-kata-v2\0-id\0x\0", Missing::Sandbox("Kata Containers")),
        ("/usr/bin/containerd-shim-runc-v2\0-id\0kata\0", Missing::HostNetwork),
    ] {
        let proc = tempfile::tempdir().unwrap();
        // The kernel keeps 15 bytes of the name.
        process(proc.path(), 7, host, A, 1, "containerd-shim");
        std::fs::write(proc.path().join("7/cmdline"), called).unwrap();
        process(proc.path(), 8, host, A, 1, "virtiofsd");
        assert_eq!(scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A], missing);
    }
}

/// Kata's default leaves the address on the namespace's interface and passes the traffic by the rules.
#[test]
fn an_address_does_not_make_a_vm_a_pod() {
    let _alone = alone();
    let netns = pod_netns("10.0.0.1/32");
    netns.ip(&["tuntap add tap0_kata mode tap".to_owned()]).unwrap();
    let mut sleeper = netns.netns().enter(|_| Command::new("sleep").arg("60").spawn()).unwrap().unwrap();
    let devices = std::fs::read_to_string(format!("/proc/{}/net/dev", sleeper.id()));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let devices = devices.unwrap();
    for (devices, vm) in [
        (devices.clone(), true),
        (devices.replace("tap0_kata", "tap12_kata"), true),
        (devices.replace("tap0_kata", "tap_kata"), false),
        (devices.replace("tap0_kata", "tapx_kata"), false),
        (devices.replace("tap0_kata", "tap0"), false),
    ] {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 7, netns.path(), A, 1, "qemu-system-x86");
        std::fs::create_dir(proc.path().join("7/net")).unwrap();
        std::fs::write(proc.path().join("7/net/dev"), &devices).unwrap();
        let found = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]);
        assert_eq!(found.namespaces.contains_key(A), !vm, "{devices}");
        assert_eq!(found.missing.get(A), vm.then_some(&Missing::Sandbox("Kata Containers")), "{devices}");
    }
}

#[test]
fn what_may_not_be_looked_at_is_said() {
    let _alone = alone();
    let netns = pod_netns("10.0.0.1/32");
    let proc = tempfile::tempdir().unwrap();
    let missing = || scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A].clone();
    // A link to itself cannot be followed by root either.
    process(proc.path(), 7, Path::new("net"), A, 1, "app");
    assert!(
        matches!(missing(), Missing::Failed(text) if text.contains("7/ns/net") && text.contains("SYS_PTRACE"))
    );
    // Not a namespace.
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, Path::new("/etc/passwd"), A, 1, "app");
    let failed = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A].clone();
    assert!(matches!(&failed, Missing::Failed(text) if text.contains("7/ns/net")), "{failed:?}");
    // A process that has ended is no failure, and none matters once there is a namespace.
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, Path::new("/absent"), A, 1, "app");
    assert_eq!(scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A], Missing::NoProcess);
    process(proc.path(), 6, Path::new("net"), A, 1, "app");
    process(proc.path(), 8, netns.path(), A, 1, "app");
    let found = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]);
    assert!(found.namespaces.contains_key(A) && found.missing.is_empty());
}

#[test]
fn a_namespace_is_entered_once_for_many_processes() {
    let _alone = alone();
    let other = pod_netns("10.0.0.9/32");
    let proc = tempfile::tempdir().unwrap();
    for pid in 100..300 {
        process(proc.path(), pid, other.path(), A, 1, "app");
    }
    process(proc.path(), 300, other.path(), B, 1, "app");
    let count = AtomicUsize::new(0);
    let counting = |inside: &Inside| {
        count.fetch_add(1, Ordering::SeqCst);
        addresses(inside)
    };
    let host = Netns::current().unwrap().id();
    let scan = Scan { proc_root: proc.path().to_owned(), host };
    let found = scan.scan(&[wanted(A, &["10.0.0.1"]), wanted(B, &["10.0.0.9"])], &counting);
    assert_eq!(found.missing[A], Missing::OtherAddress);
    assert_eq!(found.namespaces[B].id(), other.netns().id(), "its owner still gets it");
    assert_eq!(count.into_inner(), 2);
}

/// A pod with `hostUsers: false`: its namespace belongs to another user namespace. The real procfs, and a real cgroup.
#[test]
fn a_pod_with_a_user_namespace_of_its_own() {
    let _alone = alone();
    let cgroup = Cgroup::new();
    let mut child = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            "ip address add 10.0.7.7/32 dev lo && echo ready && exec sleep 60",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    cgroup.take(child.id());
    let found = scan(Path::new("/proc"), &[wanted(A, &["10.0.7.7"])]);
    let mine = Netns::open(format!("/proc/{}/ns/net", child.id())).unwrap();
    let result = found.namespaces.get(A).map(|netns| netns.id() == mine.id());
    child.kill().unwrap();
    child.wait().unwrap();
    drop(cgroup);
    assert_eq!(result, Some(true), "{:?}", found.missing);
}

/// A cgroup named as kubelet does, in whichever hierarchy there is; gone when dropped.
struct Cgroup(Vec<std::path::PathBuf>);

impl Cgroup {
    fn new() -> Self {
        let base = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|dir| dir.join("cgroup.procs").exists());
        let top = base.expect("no cgroup hierarchy").join(format!("kubepods-test-{}", std::process::id()));
        let pod = top.join(format!("pod{A}"));
        let container = pod.join("c0ffee");
        std::fs::create_dir_all(&container).unwrap();
        Self(vec![container, pod, top])
    }

    fn take(&self, pid: u32) {
        std::fs::write(self.0[0].join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in &self.0 {
            for _ in 0..50 {
                if std::fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}
