//! The last known facts on disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cluster::{Cluster, Event, Source, Store, StoreEvent};
use facts::{Facts, PodRef};
use rundir::{FACTS_DIR, facts_file};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;
use testkit::{PATIENCE, Wait};

use crate::agent::{Agent, Setup};

const LIMIT: Duration = Duration::from_secs(5);

/// A store that is told what the watches tell.
struct Kept {
    cluster: Cluster,
    store: Arc<Store>,
    told: Arc<Mutex<Vec<String>>>,
    watch: tokio::task::JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Kept {
    fn start(run_dir: &Path, source: Source) -> Self {
        let (cluster, told) = (Cluster::new(), Arc::new(Mutex::new(Vec::new())));
        let observer = {
            let told = told.clone();
            move |event| {
                told.lock().unwrap().push(match event {
                    StoreEvent::Failed(error) => error.to_string(),
                    StoreEvent::Restored => "restored".to_owned(),
                });
            }
        };
        let store = Arc::new(Store::start(run_dir, cluster.clone(), observer).unwrap());
        let watch = tokio::spawn({
            let (cluster, store) = (cluster.clone(), store.clone());
            async move {
                cluster::watch::run(source, cluster, move |event| match event {
                    Event::Changed(keys) => store.changed(&keys),
                    Event::Synced => store.synced(),
                    _ => {}
                })
                .await;
            }
        });
        Self { cluster, store, told, watch }
    }

    async fn until(&self, what: &str, mut check: impl FnMut(&Self) -> bool) {
        let wait = Wait::new(what, PATIENCE);
        while !check(self) {
            tokio::time::sleep(wait.pause(|| format!("{:?}", self.told())).unwrap()).await;
        }
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }
}

/// What the files say, by their names; unreadable ones are left out, as a reader does.
fn files(dir: &Path) -> BTreeMap<String, Facts> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries
        .filter_map(|path| Some((name(&path), serde_json::from_slice(&fs::read(&path).ok()?).ok()?)))
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    files(dir).into_keys().collect()
}

fn team(facts: &Facts) -> Option<&str> {
    facts.namespace_labels.as_ref()?.get("team").map(String::as_str)
}

#[tokio::test]
async fn files_follow_the_index() {
    let (setup, run_dir) = (Setup::new(), TempDir::new().unwrap());
    let dir = run_dir.path().join(FACTS_DIR);
    setup.set_pod("web", "1");
    setup.set_pod("other", "1");
    let kept = Kept::start(run_dir.path(), setup.source());
    kept.until("two files", |_| names(&dir) == ["shop_other.json", "shop_web.json"]).await;
    let web = files(&dir).remove(&facts_file("shop", "web").unwrap()).unwrap();
    assert_eq!(team(&web), Some("red"));
    // the status is not kept on disk
    assert_eq!(web.pod.uid(), kept.cluster.index().pod("shop", "web").unwrap().uid());
    assert!(web.pod.has_containers());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&dir), mode(&dir.join("shop_web.json"))), (0o700, 0o600));

    let inode = |name: &str| fs::metadata(dir.join(name)).unwrap().ino();
    let (before, other) = (inode("shop_web.json"), inode("shop_other.json"));
    setup.set_pod("web", "2");
    kept.until("the change", |_| inode("shop_web.json") != before).await;
    assert_eq!(inode("shop_other.json"), other, "what did not change is not written");
    setup.server.set_namespace("shop", &[("team", "blue")]);
    kept.until("the labels", |_| files(&dir).values().all(|facts| team(facts) == Some("blue"))).await;
    setup.server.delete_pod("shop", "web");
    kept.until("the end of the pod", |_| names(&dir) == ["shop_other.json"]).await;
    assert!(kept.told().is_empty());
}

#[tokio::test]
async fn what_an_earlier_agent_left_stays_until_it_is_known_to_be_gone() {
    let (setup, run_dir) = (Setup::new(), TempDir::new().unwrap());
    let dir = run_dir.path().join(FACTS_DIR);
    for name in ["stays", "goes", "torn"] {
        setup.set_pod(name, "1");
    }
    {
        let kept = Kept::start(run_dir.path(), setup.source());
        kept.until("three files", |_| names(&dir).len() == 3).await;
    }
    fs::write(dir.join("shop_torn.json"), "{\"pod\": {").unwrap();
    fs::write(dir.join("unfinished"), "{").unwrap();
    fs::write(dir.join("README"), "not ours").unwrap();
    let inode = fs::metadata(dir.join("shop_stays.json")).unwrap().ino();
    setup.server.stop();
    setup.server.delete_pod("shop", "goes");
    let kept = Kept::start(run_dir.path(), setup.source());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(names(&dir), ["shop_goes.json", "shop_stays.json"], "nothing is known yet");
    setup.server.restart().unwrap();
    kept.until("the pods of now", |_| names(&dir) == ["shop_stays.json", "shop_torn.json"]).await;
    kept.until("no unfinished file", |_| !dir.join("unfinished").exists()).await;
    assert_eq!(fs::metadata(dir.join("shop_stays.json")).unwrap().ino(), inode, "it says the same already");
    assert!(dir.join("README").exists());
    // a directory that somebody removes is made and filled again
    fs::remove_dir_all(&dir).unwrap();
    setup.set_pod("new", "1");
    kept.until("all of them", |_| names(&dir) == ["shop_new.json", "shop_stays.json", "shop_torn.json"])
        .await;
}

#[tokio::test]
async fn a_thousand_pods_are_written_quickly() {
    // as /run is
    let tmpfs = Tmpfs::new("size=64m");
    let run_dir = &tmpfs.0;
    let manifests = TempDir::new().unwrap();
    let pod = |number| {
        format!(
            "---\n{{kind: Pod, metadata: {{name: web-{number}}}, spec: {{containers: [{{name: app}}]}}}}\n"
        )
    };
    fs::write(manifests.path().join("all.yaml"), (0..1000).map(pod).collect::<String>()).unwrap();
    let agent = Agent::start(Source::Manifests { dir: manifests.path().into(), own: None });
    agent.synced().await;
    let store = Store::start(run_dir.path(), agent.cluster.clone(), |event| panic!("{event:?}")).unwrap();
    let start = Instant::now();
    store.synced();
    assert!(store.flush(LIMIT));
    println!("1000 files in {:?}", start.elapsed());
    assert_eq!(names(&run_dir.path().join(FACTS_DIR)).len(), 1000);
    // as shipped it takes a tenth of what it takes here, and the machine may be busy
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_is_to_be_written_is_written_before_the_end() {
    let (setup, run_dir) = (Setup::new(), TempDir::new().unwrap());
    setup.set_pod("web", "1");
    let agent = setup.synced_agent().await;
    let store = Store::start(run_dir.path(), agent.cluster.clone(), |_| {}).unwrap();
    store.synced();
    drop(store);
    assert_eq!(names(&run_dir.path().join(FACTS_DIR)), ["shop_web.json"]);
}

/// A file system of its own, unmounted when dropped.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new(options: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), &*options).expect("this test needs root");
        Self(dir)
    }

    fn set_read_only(&self, read_only: bool) {
        let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_remount(self.0.path(), flags, c"").unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

/// Fails while `wrong` holds, is told once, keeps what was there, and catches up afterwards.
async fn survives(tmpfs: &Tmpfs, go_wrong: impl Fn(), go_right: impl Fn(), text: &str) {
    let setup = Setup::new();
    let run_dir = tmpfs.0.path();
    let dir = run_dir.join(FACTS_DIR);
    setup.set_pod("web", "1");
    let kept = Kept::start(run_dir, setup.source());
    kept.until("the first file", |_| names(&dir) == ["shop_web.json"]).await;
    go_wrong();
    setup.set_pod("web", &"2".repeat(5000));
    setup.set_pod("new", &"2".repeat(5000));
    kept.until("the failure", |kept| !kept.told().is_empty()).await;
    setup.set_pod("more", &"2".repeat(5000));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(kept.told().len(), 1, "told once: {:?}", kept.told());
    assert!(
        kept.told()[0].contains(text) && kept.told()[0].contains(&*dir.to_string_lossy()),
        "{:?}",
        kept.told()
    );
    assert_eq!(names(&dir), ["shop_web.json"], "the old file is whole");
    assert!(!kept.store.flush(Duration::from_millis(10)), "some are not written");
    go_right();
    kept.until("the rest", |_| names(&dir) == ["shop_more.json", "shop_new.json", "shop_web.json"]).await;
    kept.until("the good news", |kept| kept.told().last().is_some_and(|text| text == "restored")).await;
    assert!(kept.store.flush(LIMIT));
}

#[tokio::test]
async fn a_full_disk_is_told_once_and_survived() {
    let tmpfs = Tmpfs::new("size=64k");
    let ballast = tmpfs.0.path().join("ballast");
    let fill = || {
        // until not a page is left
        let _ = fs::write(&ballast, vec![0; 1 << 20]);
    };
    survives(&tmpfs, fill, || fs::remove_file(&ballast).unwrap(), "No space left").await;
}

#[tokio::test]
async fn a_read_only_directory_is_told_once_and_survived() {
    let tmpfs = Tmpfs::new("size=1m");
    survives(&tmpfs, || tmpfs.set_read_only(true), || tmpfs.set_read_only(false), "Read-only file system")
        .await;
}

#[tokio::test]
async fn a_file_in_the_place_of_the_directory_is_told() {
    let (setup, run_dir) = (Setup::new(), TempDir::new().unwrap());
    let dir = run_dir.path().join(FACTS_DIR);
    fs::write(&dir, "").unwrap();
    setup.set_pod("web", "1");
    let kept = Kept::start(run_dir.path(), setup.source());
    kept.until("the failure", |kept| kept.told().iter().any(|text| text.contains("is no directory"))).await;
    fs::remove_file(&dir).unwrap();
    kept.until("the file", |_| names(&dir) == ["shop_web.json"]).await;
}

#[test]
fn names_that_could_leave_the_directory_are_left_out() {
    let run_dir = TempDir::new().unwrap();
    let store = Store::start(run_dir.path(), Cluster::new(), |event| panic!("{event:?}")).unwrap();
    let key = |namespace: &str, name: &str| PodRef {
        namespace: namespace.into(),
        name: name.into(),
        uid: String::new(),
    };
    store.changed(&[key("..", "x"), key("shop", "../../x"), key("", ""), key("a", &"b".repeat(300))]);
    store.synced();
    assert!(store.flush(LIMIT));
    assert!(names(&run_dir.path().join(FACTS_DIR)).is_empty());
}

#[tokio::test]
async fn what_was_kept_is_remembered_as_far_as_it_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let facts = dir.path().join(FACTS_DIR);
    assert_eq!(cluster::store::remember(dir.path(), &Cluster::new()).0, 0, "nothing is there");
    fs::create_dir(&facts).unwrap();
    let pod = |namespace: &str, name: &str| {
        serde_json::json!({
            "pod": {"kind": "Pod", "metadata": {"namespace": namespace, "name": name, "uid": "u"}},
            "namespace_labels": {"team": "red"},
        })
        .to_string()
    };
    let file = |namespace: &str, name: &str| facts.join(facts_file(namespace, name).unwrap());
    fs::write(file("shop", "web"), pod("shop", "web")).unwrap();
    fs::write(file("shop", "torn"), &pod("shop", "torn")[..30]).unwrap();
    fs::write(file("shop", "other"), pod("bank", "vault")).unwrap();
    fs::write(file("shop", "foreign"), pod("shop", "foreign")).unwrap();
    std::os::unix::fs::chown(file("shop", "foreign"), Some(65534), None).unwrap();
    std::os::unix::fs::symlink(file("shop", "web"), file("shop", "link")).unwrap();
    let pipe = file("shop", "pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::write(file("shop", "large"), vec![b' '; (2 << 20) + 1]).unwrap();
    fs::write(facts.join("unfinished"), "{").unwrap();
    let cluster = Cluster::new();
    let (pods, unusable) = cluster::store::remember(dir.path(), &cluster);
    assert_eq!((pods, unusable.len()), (1, 6), "{unusable:?}");
    assert!(unusable.iter().all(|error| error.to_string().contains("are ignored: ")), "{unusable:?}");
    let known = cluster.index().facts("shop", "web").unwrap();
    assert_eq!(known.namespace_labels.unwrap()["team"], "red");
    assert!(cluster.index().is_remembered("shop", "web") && !cluster.state().synced);
}
