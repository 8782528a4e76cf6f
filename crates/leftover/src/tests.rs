use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::results::names;
use crate::watcher::watch;

const LIST: &str =
    r#"{"name":"pods","cniVersion":"1.0.0","plugins":[{"type":"flannel"},{"type":"istio-cni"}]}"#;

fn kept(config: &str) -> String {
    let config = STANDARD.encode(config);
    format!(
        r#"{{"kind":"cniCacheV1","containerId":"c","config":"{config}","ifName":"eth0","networkName":"pods","result":{{"cniVersion":"1.0.0"}}}}"#
    )
}

/// A directory with plugins and a cache directory.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("bin")).unwrap();
        fs::create_dir_all(dir.path().join("cni/results")).unwrap();
        fs::write(dir.path().join("bin/istio-cni"), "program").unwrap();
        Self { dir }
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("bin/istio-cni")
    }

    fn mark(&self) -> Mark {
        Mark::of(&self.program())
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cni")
    }

    fn keep(&self, result: &str, config: &str) -> PathBuf {
        let path = self.cache().join(result);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, kept(config)).unwrap();
        path
    }
}

#[test]
fn a_result_names_the_plugins_of_its_configuration() {
    for before in 0..4 {
        // base64 shows the same text in three ways, by where it begins
        assert!(names(kept(&format!("{}{LIST}", " ".repeat(before))).as_bytes(), "istio-cni"));
    }
    assert!(names(kept(r#"{"type":"istio-cni","name":"pods"}"#).as_bytes(), "istio-cni"));
    let other = r#"{"name":"pods","plugins":[{"type":"istio-cni-other","log":"/var/run/istio-cni"}]}"#;
    assert!(!names(kept(other).as_bytes(), "istio-cni"));
    assert!(!names(br#"{"cniVersion":"0.3.1","ips":[]}"#, "istio-cni"), "no configuration");
    assert!(!names(b"", "istio-cni"));
    for unclear in [&b"{\"kind\":\"cniCacheV1\",\"conf"[..], b"\0\0", br#"{"config":"no base64!"}"#] {
        assert!(names(unclear, "istio-cni"), "{:?}", String::from_utf8_lossy(unclear));
    }
}

#[test]
fn results_are_counted_where_runtimes_keep_them() {
    let node = Node::new();
    let look = |cache: &Path| look(cache, "istio-cni");
    assert_eq!(look(&node.cache()), Results::Naming(0));
    node.keep("results/pods-a-eth0", LIST);
    node.keep("results/pods-b-eth0", &LIST.replace("istio-cni", "portmap"));
    assert_eq!(look(&node.cache()), Results::Naming(1));
    node.keep("multus/results/net-a-net1", LIST);
    fs::create_dir(node.cache().join("results/folder")).unwrap();
    fs::write(node.cache().join("last_reserved_ip.0"), "").unwrap();
    assert_eq!(look(&node.cache()), Results::Naming(2));
    assert_eq!(look(&node.dir.path().join("none")), Results::Absent);
    assert_eq!(look(&node.dir.path().join("bin")), Results::Absent);
    assert_eq!(look(&node.program()), Results::Unknown);
}

#[test]
fn a_marked_program_goes_with_the_last_result_that_names_it() {
    let node = Node::new();
    let (mark, result) = (node.mark(), node.keep("results/pods-a-eth0", LIST));
    assert_eq!(remove_if_unneeded(&mark, &node.cache()).unwrap(), Results::Unknown, "it is not marked");
    mark.set(&node.cache()).unwrap();
    assert_eq!(mark.cache(), Some(node.cache()));
    assert_eq!(remove_if_unneeded(&mark, &node.cache()).unwrap(), Results::Naming(1));
    assert!(node.program().exists() && mark.is_set());
    fs::remove_file(result).unwrap();
    assert_eq!(remove_if_unneeded(&mark, &node.cache()).unwrap(), Results::Naming(0));
    assert!(!node.program().exists() && !mark.is_set());
    assert_eq!(fs::read_dir(node.dir.path().join("bin")).unwrap().count(), 0);
}

/// What is unknown, or installed again, is not removed.
#[test]
fn a_program_stays_where_nothing_can_be_told_or_the_mark_is_gone() {
    let node = Node::new();
    let mark = node.mark();
    mark.set(Path::new("not absolute")).unwrap();
    assert_eq!(mark.cache(), Some(CACHE_DIR.into()));
    for cache in ["none", "bin"] {
        remove_if_unneeded(&mark, &node.dir.path().join(cache)).unwrap();
        assert!(node.program().exists(), "{cache}");
    }
    mark.clear().unwrap();
    mark.clear().unwrap();
    remove_if_unneeded(&mark, &node.cache()).unwrap();
    assert!(node.program().exists() && mark.cache().is_none());
    mark.set(&node.cache()).unwrap();
    assert!(remove_now(&mark).unwrap() && !node.program().exists() && !mark.is_set());
    assert!(!remove_now(&mark).unwrap());
}

/// Nobody but root can hold its lock, and nobody is waited for for ever.
#[test]
fn a_lock_that_is_held_ends_in_an_error() {
    let node = Node::new();
    let mark = node.mark();
    let path = node.program().with_file_name(Mark::name(&node.program()));
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    mark.set(&node.cache()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let held = fs::File::open(&path).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = mark.clear().unwrap_err().to_string();
    assert!(error.contains("another process has locked") && mark.is_set(), "{error}");
    drop(held);
    mark.clear().unwrap();
}

/// Whoever installs takes the mark first: a removal that has begun by then ends before, and one that begins later does nothing.
#[test]
fn an_installation_and_a_removal_take_turns() {
    for _ in 0..50 {
        let node = Node::new();
        let mark = node.mark();
        mark.set(&node.cache()).unwrap();
        let (removing, cache) = (mark.clone(), node.cache());
        let removal = std::thread::spawn(move || remove_if_unneeded(&removing, &cache));
        mark.clear().unwrap();
        fs::write(node.program(), "new").unwrap();
        removal.join().unwrap().unwrap();
        assert_eq!(fs::read(node.program()).unwrap(), b"new");
    }
}

#[test]
fn a_watcher_waits_for_its_own_result_and_no_other() {
    let node = Node::new();
    let mark = node.mark();
    mark.set(&node.cache()).unwrap();
    let (own, other) = (node.keep("results/pods-a-eth0", LIST), node.keep("results/pods-b-eth0", LIST));
    // The rest of the DEL fails: the runtime will try again.
    watch(&mark, &node.cache(), "pods-a-eth0", Duration::ZERO).unwrap();
    assert!(node.program().exists());
    fs::remove_file(&own).unwrap();
    watch(&mark, &node.cache(), "pods-a-eth0", Duration::ZERO).unwrap();
    assert!(node.program().exists(), "another result names it");
    let (waiting, cache) = (mark.clone(), node.cache());
    let watcher = std::thread::spawn(move || watch(&waiting, &cache, "pods-b-eth0", Duration::from_secs(60)));
    std::thread::sleep(Duration::from_millis(150));
    assert!(node.program().exists() && !watcher.is_finished());
    fs::remove_file(other).unwrap();
    watcher.join().unwrap().unwrap();
    assert!(!node.program().exists() && !mark.is_set());
}
