//! Namespaces that come, run programs and go.

use std::process::Command;
use std::time::Duration;

use netns::Netns;
use testkit::TestNetns;

#[test]
fn a_namespace_has_a_path_that_opens_it_and_lo_up() {
    let namespace = TestNetns::new().unwrap();
    assert_eq!(&Netns::open(namespace.path()).unwrap(), namespace.netns());
    assert_ne!(&Netns::current().unwrap(), namespace.netns());
    let links = namespace.run(Command::new("ip").args(["-o", "link"])).unwrap();
    assert_eq!(links.lines().filter(|l| l.contains("lo:") && l.contains("UP")).count(), 1, "{links}");
}

#[test]
fn programs_run_inside_and_their_failure_is_an_error_with_their_words() {
    let namespace = TestNetns::new().unwrap();
    let inside = namespace.run(Command::new("readlink").arg("/proc/self/ns/net")).unwrap();
    assert_eq!(inside.trim(), namespace.netns().id().to_string());
    let text = format!("{:#}", namespace.ip(&["link set nosuch up"]).unwrap_err());
    assert!(text.contains("ip -batch - failed") && text.contains("nosuch"), "{text}");
    let text = format!("{:#}", namespace.nft("table ip {").unwrap_err());
    assert!(text.contains("nft -f - failed") && text.contains("syntax error"), "{text}");
    let text = format!("{:#}", namespace.run(&mut Command::new("/nosuch/program")).unwrap_err());
    assert!(text.contains("cannot run /nosuch/program"), "{text}");
}

#[test]
fn a_kernel_setting_is_written_in_the_namespace_only() {
    let namespace = TestNetns::new().unwrap();
    let before = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fin_timeout").unwrap();
    namespace.set_sysctl("net.ipv4.tcp_fin_timeout", "17").unwrap();
    let inside = namespace.run(Command::new("cat").arg("/proc/sys/net/ipv4/tcp_fin_timeout")).unwrap();
    assert_eq!(inside.trim(), "17");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fin_timeout").unwrap(), before);
}

#[test]
fn a_spawned_program_ends_with_its_handle_and_the_namespace_with_its_value() {
    let namespace = TestNetns::new().unwrap();
    let process = namespace.spawn(Command::new("sleep").arg("60")).unwrap();
    let link = std::fs::read_link(format!("/proc/{}/ns/net", process.id())).unwrap();
    assert_eq!(link.to_string_lossy(), namespace.netns().id().to_string());
    let id = process.id();
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());

    // The kernel takes a namespace apart in the background: its end shows by the peer of its interface.
    let other = TestNetns::new().unwrap();
    other.ip(&[format!("link add v0 type veth peer name v0 netns {}", namespace.path().display())]).unwrap();
    drop(namespace);
    let gone = || !other.run(Command::new("ip").args(["-o", "link"])).unwrap().contains("v0");
    assert!((0..100).any(|_| gone() || {
        std::thread::sleep(Duration::from_millis(50));
        false
    }));
}

#[test]
fn a_panic_removes_the_namespace_too() {
    let seen = std::sync::Mutex::new(None);
    let result = std::panic::catch_unwind(|| {
        let namespace = TestNetns::new().unwrap();
        *seen.lock().unwrap() = Some((namespace.path().to_owned(), namespace.netns().id()));
        panic!("as a failing test does");
    });
    assert!(result.is_err());
    let (path, id) = seen.lock().unwrap().take().unwrap();
    let now = Netns::open(path).ok().map(|n| n.id());
    assert_ne!(now, Some(id));
}
