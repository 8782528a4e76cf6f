//! Namespaces of running pods, through a procfs that the test has made and through the real one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use netns::find::{Found, MissingNetns, NotThePods, SearchRoots, WantedPod, belongs_to};
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
    netns.address(ip).unwrap();
    netns
}

/// A process as procfs shows it.
fn process(root: &Path, pid: u32, netns: &Path, uid: &str, comm: &str) {
    let dir = root.join(pid.to_string());
    std::fs::create_dir_all(dir.join("ns")).unwrap();
    symlink(netns, dir.join("ns/net")).unwrap();
    std::fs::write(dir.join("cgroup"), format!("0::/kubepods/pod{uid}/{:064x}\n", 1)).unwrap();
    std::fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
    std::fs::write(dir.join("cmdline"), format!("{comm}\0")).unwrap();
}

/// What `ip` lists, as no crate below may list addresses itself.
fn addresses(_: &Inside) -> Result<Vec<IpAddr>, String> {
    let output =
        Command::new("ip").args(["-o", "address", "show"]).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let of_links = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let of_links = of_links.filter(|words| words.get(1) != Some(&"lo"));
    Ok(of_links.filter_map(|words| words.get(3)?.split('/').next()?.parse().ok()).collect())
}

fn wanted(uid: &str, ips: &[&str]) -> WantedPod {
    let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    WantedPod { uid: uid.into(), cgroup: None, ips, own_users: false, kernel_network: false }
}

fn scan(root: &Path, wanted: &[WantedPod]) -> Found {
    let host = Netns::current().unwrap().id();
    SearchRoots { proc_root: root.to_owned(), host }.scan(wanted, &addresses)
}

fn open_namespaces() -> usize {
    let links = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("net:[")).count()
}

#[test]
fn the_pods_own_and_never_another_pods() {
    let _alone = alone();
    let proc = tempfile::tempdir().unwrap();
    let root = proc.path();
    let own = pod_netns("10.0.0.1/32");
    process(root, 100, own.path(), A, "app");
    process(root, 101, own.path(), A, "app");
    // A process of pod A in the namespace of pod B, which comes before B's own.
    let other = pod_netns("10.0.0.2/32");
    process(root, 103, other.path(), A, "nsenter");
    process(root, 200, other.path(), B, "app");
    std::fs::create_dir(root.join("self")).unwrap();
    std::fs::create_dir(root.join("300")).unwrap();
    let before = open_namespaces();
    let found = scan(root, &[wanted(A, &["10.0.0.1"]), wanted(B, &["fd00::1", "10.0.0.2"])]);
    assert_eq!(found.namespaces[A].id(), own.netns().id());
    assert_eq!(found.namespaces[B].id(), other.netns().id());
    assert_eq!(open_namespaces(), before + 2, "the others are closed");
    drop(found);
    assert_eq!(open_namespaces(), before);

    // Without an address no namespace is entered.
    let count = AtomicUsize::new(0);
    let counting = |inside: &Inside| {
        count.fetch_add(1, Ordering::SeqCst);
        addresses(inside)
    };
    let host = Netns::current().unwrap().id();
    let found = SearchRoots { proc_root: root.to_owned(), host }.scan(&[wanted(A, &[])], &counting);
    assert_eq!((found.missing[A].clone(), count.into_inner()), (MissingNetns::NoAddress, 0));
}

/// Whoever may make namespaces on the node may make one that looks like the pod's: then it is not guessed which is.
#[test]
fn two_that_could_be_the_pods_are_none() {
    let _alone = alone();
    let proc = tempfile::tempdir().unwrap();
    let (first, second) = (pod_netns("10.0.0.1/32"), pod_netns("10.0.0.1/32"));
    process(proc.path(), 100, first.path(), A, "app");
    process(proc.path(), 101, second.path(), A, "app");
    process(proc.path(), 102, second.path(), A, "app");
    let before = open_namespaces();
    let found = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]);
    assert_eq!(open_namespaces(), before);
    let text = found.missing[A].to_string();
    for part in ["2 namespaces", &first.netns().id().to_string(), "100/ns/net", "101/ns/net"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(found.namespaces.is_empty());
}

/// A static pod's cgroup has the hash of its manifest. Anybody may say so of a pod: the address still tells.
#[test]
fn a_static_pod_is_found_by_its_hash() {
    let _alone = alone();
    let hash = "00112233445566778899aabbccddeeff";
    let proc = tempfile::tempdir().unwrap();
    let netns = pod_netns("10.0.0.1/32");
    process(proc.path(), 7, netns.path(), hash, "app");
    let of_hash = |uid: &str, ip: &str| WantedPod { cgroup: Some(hash.into()), ..wanted(uid, &[ip]) };
    let found = scan(proc.path(), &[of_hash(B, "10.0.0.2"), of_hash(A, "10.0.0.1")]);
    assert_eq!(found.namespaces[A].id(), netns.netns().id());
    assert_eq!(found.missing[B], MissingNetns::OtherAddress);
    assert_eq!(scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A], MissingNetns::NoProcess);
}

/// Anybody can give `lo` of a namespace of their own any address.
#[test]
fn an_address_of_lo_does_not_count() {
    let _alone = alone();
    let proc = tempfile::tempdir().unwrap();
    let netns = TestNetns::new().unwrap();
    netns.ip(&["address add 10.0.0.1/32 dev lo"]).unwrap();
    process(proc.path(), 7, netns.path(), A, "app");
    assert_eq!(scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A], MissingNetns::OtherAddress);
}

#[test]
fn why_there_is_none() {
    let _alone = alone();
    let proc = tempfile::tempdir().unwrap();
    let missing = |root: &Path| scan(root, &[wanted(A, &["10.0.0.1"])]).missing[A].clone();
    assert_eq!(missing(proc.path()), MissingNetns::NoProcess);
    assert!(matches!(missing(&proc.path().join("absent")), MissingNetns::Failed(_)));
    let host = Path::new("/proc/self/ns/net");
    process(proc.path(), 1, host, A, "app");
    assert_eq!(missing(proc.path()), MissingNetns::HostNetwork);
    let other = pod_netns("10.0.0.9/32");
    for (comm, sandbox) in [
        ("runsc-sandbox", "gVisor"),
        ("qemu-system-x86", "Kata Containers"),
        ("cloud-hyperviso", "Kata Containers"),
    ] {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 7, other.path(), A, comm);
        process(proc.path(), 8, other.path(), A, "app");
        let missing = missing(proc.path());
        assert_eq!(missing, MissingNetns::Sandbox(sandbox));
        assert!(missing.to_string().contains(sandbox));
    }
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, other.path(), A, "app");
    assert_eq!(missing(proc.path()), MissingNetns::OtherAddress);
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
        process(proc.path(), conmon, host, A, "conmon");
        process(proc.path(), app, other.path(), A, "app");
        let missing = |ips: &[&str]| scan(proc.path(), &[wanted(A, ips)]).missing[A].clone();
        assert_eq!(missing(&["10.0.0.1"]), MissingNetns::OtherAddress);
        assert_eq!(missing(&[]), MissingNetns::NoAddress);
        let found = scan(proc.path(), &[wanted(A, &["10.0.0.9"])]);
        assert_eq!(found.namespaces[A].id(), other.netns().id());
    }
    for (called, missing) in [
        ("/opt/kata/bin/containerd-shim-kata-v2\0-id\0x\0", MissingNetns::Sandbox("Kata Containers")),
        ("/usr/bin/containerd-shim-runc-v2\0-id\0kata\0", MissingNetns::HostNetwork),
    ] {
        let proc = tempfile::tempdir().unwrap();
        // The kernel keeps 15 bytes of the name.
        process(proc.path(), 7, host, A, "containerd-shim");
        std::fs::write(proc.path().join("7/cmdline"), called).unwrap();
        process(proc.path(), 8, host, A, "virtiofsd");
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
        process(proc.path(), 7, netns.path(), A, "qemu-system-x86");
        std::fs::create_dir(proc.path().join("7/net")).unwrap();
        std::fs::write(proc.path().join("7/net/dev"), &devices).unwrap();
        let found = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]);
        assert_eq!(found.namespaces.contains_key(A), !vm, "{devices}");
        let fine = WantedPod { kernel_network: true, ..wanted(A, &["10.0.0.1"]) };
        assert!(scan(proc.path(), &[fine]).namespaces.contains_key(A), "{devices}");
        assert_eq!(
            found.missing.get(A),
            vm.then_some(&MissingNetns::Sandbox("Kata Containers")),
            "{devices}"
        );
    }
}

#[test]
fn what_may_not_be_looked_at_is_said() {
    let _alone = alone();
    let netns = pod_netns("10.0.0.1/32");
    let proc = tempfile::tempdir().unwrap();
    let missing = || scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A].clone();
    // A link to itself cannot be followed by root either.
    process(proc.path(), 7, Path::new("net"), A, "app");
    assert!(
        matches!(missing(), MissingNetns::Failed(text) if text.contains("7/ns/net") && text.contains("SYS_PTRACE"))
    );
    // Not a namespace.
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, Path::new("/etc/passwd"), A, "app");
    let failed = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A].clone();
    assert!(matches!(&failed, MissingNetns::Failed(text) if text.contains("7/ns/net")), "{failed:?}");
    // A process that has ended is no failure, and none matters once there is a namespace.
    let proc = tempfile::tempdir().unwrap();
    process(proc.path(), 7, Path::new("/absent"), A, "app");
    assert_eq!(scan(proc.path(), &[wanted(A, &["10.0.0.1"])]).missing[A], MissingNetns::NoProcess);
    process(proc.path(), 6, Path::new("net"), A, "app");
    process(proc.path(), 8, netns.path(), A, "app");
    let found = scan(proc.path(), &[wanted(A, &["10.0.0.1"])]);
    assert!(found.namespaces.contains_key(A) && found.missing.is_empty());
}

#[test]
fn a_namespace_is_entered_once_for_many_processes() {
    let _alone = alone();
    let other = pod_netns("10.0.0.9/32");
    let proc = tempfile::tempdir().unwrap();
    for pid in 100..300 {
        process(proc.path(), pid, other.path(), A, "app");
    }
    process(proc.path(), 300, other.path(), B, "app");
    let count = AtomicUsize::new(0);
    let counting = |inside: &Inside| {
        count.fetch_add(1, Ordering::SeqCst);
        addresses(inside)
    };
    let host = Netns::current().unwrap().id();
    let scan = SearchRoots { proc_root: proc.path().to_owned(), host };
    let found = scan.scan(&[wanted(A, &["10.0.0.1"]), wanted(B, &["10.0.0.9"])], &counting);
    assert_eq!(found.missing[A], MissingNetns::OtherAddress);
    assert_eq!(found.namespaces[B].id(), other.netns().id(), "its owner still gets it");
    assert_eq!(count.into_inner(), 2);
}

/// A process of the real procfs, in a real cgroup of pod [`A`]; it ends when dropped.
struct Real {
    child: std::process::Child,
    _cgroup: Cgroup,
}

impl Real {
    /// In namespaces that these arguments of unshare(1) make, one inside of the other, the last with the address 10.0.7.7.
    fn unshared(unshares: &[&str]) -> Self {
        let cgroup = Cgroup::new();
        let setup = "ip link add eth0 type veth peer name peer0 && ip address add 10.0.7.7/32 dev eth0 && \
                     echo ready && exec sleep 60";
        let nested: String = unshares.iter().map(|args| format!("unshare {args} ")).collect();
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec {nested} sh -c '{setup}'")])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        cgroup.take(child.id());
        Self { child, _cgroup: cgroup }
    }

    fn scan(&self, own_users: bool) -> Found {
        scan(Path::new("/proc"), &[WantedPod { own_users, ..wanted(A, &["10.0.7.7"]) }])
    }

    fn is_found(&self, found: &Found) -> bool {
        let mine = Netns::open(format!("/proc/{}/ns/net", self.child.id())).unwrap();
        found.namespaces.get(A).is_some_and(|netns| netns.id() == mine.id())
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pod with `hostUsers: false`: its network namespace belongs to a user namespace that was made in the node's. Of a pod that shares the
/// node's users only a process of its own can have made such a one.
#[test]
fn a_namespace_of_another_user_namespace_is_the_pods_only_if_the_pod_has_one() {
    let _alone = alone();
    let pod = Real::unshared(&["--user --map-root-user --net"]);
    let found = pod.scan(true);
    assert!(pod.is_found(&found), "{:?}", found.missing);
    let found = pod.scan(false);
    assert_eq!((found.namespaces.len(), &found.missing[A]), (0, &MissingNetns::OtherOwner));
}

/// What a process of a pod with a user namespace of its own makes lies below that.
#[test]
fn a_namespace_made_within_the_pods_user_namespace_is_not_the_pods() {
    let _alone = alone();
    let decoy = Real::unshared(&["--user --map-root-user --net", "--user --map-root-user --net"]);
    for own_users in [true, false] {
        let found = decoy.scan(own_users);
        assert_eq!((found.namespaces.len(), &found.missing[A]), (0, &MissingNetns::OtherOwner));
    }
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
